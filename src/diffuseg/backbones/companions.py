"""Finding and loading companions of a diffusion model: folders in transformers' own format."""

import json
import logging
import os
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from torch import nn

from diffuseg.backbones.components import load_component
from diffuseg.backbones.folder import verify_checksums
from diffuseg.backbones.weights import embedded_folder, is_offline
from diffuseg.errors import InputError, WeightsError
from diffuseg.image import Image, read_image

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase
    from transformers.image_processing_utils import BaseImageProcessor

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_FILES = ("*.json", "*.safetensors", "*.txt")
_PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".h5", ".msgpack")
_Part = TypeVar("_Part", bound=nn.Module)
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class CompanionFolder:
    """A companion's folder, found and looked into.

    Attributes:
        folder: Where the files are.
        name: The name it was asked for, or the folder's.
        source: "embedded", the hub id, or the folder.
        architecture: The transformers class its configuration names.
        vocabulary: Every word it knows, where the list is closed.
        preset: Settings found for it, by method name.
    """

    folder: Path
    name: str
    source: str
    architecture: str
    vocabulary: tuple[str, ...] | None
    preset: Mapping[str, Mapping[str, object]]


def find_companion(
    name_or_path: str | os.PathLike[str],
    part: str,
    architectures: Collection[str],
    *,
    offline: bool | None = None,
    text: bool = True,
) -> CompanionFolder:
    """Find a companion: embedded, local, in the hub's cache, or downloaded.

    Args:
        name_or_path: "mini", a hub id "owner/name", or a folder in transformers format; of a folder
            that holds a whole miniature, the part is taken.
        part: Its folder in the miniature, for instance "clip".
        architectures: The transformers classes that will do.
        offline: Never use the network; by default as HF_HUB_OFFLINE says.
        text: Whether it reads text, and so must have a tokenizer.

    Raises:
        InputError: Nothing of that name can be.
        WeightsError: Nothing is found, or what is found cannot be used.
    """
    if not isinstance(name_or_path, str | os.PathLike):
        raise _unknown(name_or_path, part)
    asked = os.fspath(name_or_path)
    path = Path(asked).expanduser()
    if name_or_path == "mini":
        folder, name, source = embedded_folder("mini") / part, "mini", "embedded"
        if not folder.is_dir():
            raise WeightsError(
                f"the embedded miniature must have its {part}",
                got=f"no folder {folder}",
                remedy="make it with: diffuseg train mini",
            )
        verify_checksums(folder.parent)
    elif path.is_dir():
        folder = path if (path / "config.json").is_file() else path / part
        name, source = path.resolve().name, str(path)
        verify_checksums(path)
    elif isinstance(name_or_path, os.PathLike) or asked.startswith((".", "~", "/")):
        raise WeightsError(
            "the model must be a folder in transformers format",
            got=f"{path}, which {'is a file' if path.exists() else 'does not exist'}",
            remedy="check the path",
        )
    elif _HUB_ID.fullmatch(asked):
        folder, name, source = _from_hub(asked, offline=is_offline(offline)), asked, asked
    else:
        raise _unknown(name_or_path, part)
    architecture = _inspect(folder, architectures, text=text)
    path = folder / "diffuseg.json"
    facts = _read_json(path) if path.is_file() else {}
    words, preset = facts.get("vocabulary"), facts.get("preset", {})
    if not isinstance(preset, dict) or not all(isinstance(one, dict) for one in preset.values()):
        raise _bad(f"{path} has a preset that is not {{method: {{setting: value}}}}")
    return CompanionFolder(
        folder=folder,
        name=name,
        source=source,
        architecture=architecture,
        vocabulary=tuple(map(str, words)) if isinstance(words, list) else None,
        preset=preset,
    )


def load_part(
    kind: type[_Part], found: CompanionFolder, dtype: torch.dtype, device: torch.device
) -> _Part:
    """Load a companion's network, frozen.

    Raises:
        WeightsError: The weights do not fit the configuration.
    """
    try:
        part = load_component(kind, found.folder, variant=None, dtype=dtype, device=device)
    except WeightsError as error:
        raise _bad(error.got) from error
    log.info("%s %s from %s (%s on %s)", kind.__name__, found.name, found.source, dtype, device)
    return part


def load_text_files(found: CompanionFolder) -> "PreTrainedTokenizerBase":
    """Load a companion's tokenizer.

    Raises:
        WeightsError: The files are not a tokenizer's.
    """
    from transformers import AutoTokenizer

    return _load(AutoTokenizer, found, "tokenizer")


def load_image_files(found: CompanionFolder) -> "BaseImageProcessor":
    """Load a companion's image processor; of two, the one that needs no torchvision.

    Raises:
        WeightsError: The file is not an image processor's.
    """
    import transformers

    name = str(_read_json(found.folder / "preprocessor_config.json").get("image_processor_type"))
    # transformers 5 moved the implementations on Pillow to names of their own.
    pillow = getattr(transformers, f"{name.removesuffix('Fast').removesuffix('Pil')}Pil", None)
    return _load(pillow or transformers.AutoImageProcessor, found, "image processor")


def _load(kind: type, found: CompanionFolder, what: str) -> Any:
    try:
        return cast(Any, kind).from_pretrained(found.folder, local_files_only=True)
    except Exception as error:
        # A dozen kinds of exception, for files that do not fit.
        brief = " ".join(str(error).split())[:300]
        raise _bad(f"{found.folder}: the {what} cannot be loaded: {brief}") from error


def read_images(images: object) -> list[Image]:
    """One picture or several, of anything `read_image` takes.

    Args:
        images: A picture; a list, tuple or other iterable of pictures; or an array or tensor with
            a batch dimension in front.

    Raises:
        InputError: There is none, or one cannot be read.

    Example:
        >>> import numpy as np
        >>> read_images(np.zeros((2, 32, 48, 3), np.uint8))
        [Image 32x48 (array), Image 32x48 (array)]
    """
    several = isinstance(images, Iterable) and not isinstance(
        images, str | bytes | bytearray | memoryview
    )
    ndim = getattr(images, "ndim", None)
    if not several or (ndim is not None and ndim < 4):
        return [read_image(images)]
    found = [read_image(image) for image in cast(Iterable[object], images)]
    if not found:
        raise InputError("at least one image must be given", got=images, remedy="pass an image")
    return found


def check_known(name: str, vocabulary: Sequence[str] | None, texts: Sequence[str]) -> None:
    """Make sure a model can know all words, where its vocabulary is closed.

    Raises:
        InputError: Names the words it does not know and the ones it does.
    """
    if vocabulary is None:
        return
    words = dict.fromkeys(word for text in texts for word in re.findall(r"\w+", text.lower()))
    unknown = [word for word in words if word not in vocabulary]
    if unknown:
        raise InputError(
            f"the model {name!r} knows only these words: {', '.join(vocabulary)}",
            got=", ".join(unknown),
            remedy="choose among them, or load a model that reads any English",
        )


def _from_hub(repo: str, *, offline: bool) -> Path:
    from huggingface_hub import constants, snapshot_download, try_to_load_from_cache

    cached = try_to_load_from_cache(repo, "config.json")
    if isinstance(cached, str):
        return Path(cached).parent
    tried = [f"the hub cache {constants.HF_HUB_CACHE}"]
    if offline:
        tried.append("the network: not asked (offline)")
    else:
        log.info("downloading %s", repo)
        try:
            return Path(snapshot_download(repo, allow_patterns=list(_FILES)))
        except Exception as error:
            # Any failure of the network or the hub has the same answer.
            first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
            tried.append(f"the hub: {type(error).__name__}: {first}")
    raise WeightsError(
        f"the weights of {repo!r} must be on this machine or on the hub",
        got="\n    ".join(["not found; looked in", *tried]),
        remedy=(
            "allow the network (offline=False, unset HF_HUB_OFFLINE)"
            if offline
            else "check the network and the id (a gated model needs: hf auth login)"
        )
        + f", or fetch it where there is a network (hf download {repo} --local-dir DIR), copy DIR "
        'here and give its path; "mini" needs no download',
    )


def _inspect(folder: Path, architectures: Collection[str], *, text: bool) -> str:
    config = _read_json(folder / "config.json")
    declared = config.get("architectures")
    found = declared[0] if isinstance(declared, list) and declared else None
    expected = " or ".join(sorted(architectures))
    if found not in architectures:
        raise _bad(f"{folder / 'config.json'} is the configuration of {found}, not of {expected}")
    names = {path.name for path in folder.iterdir()}
    if not {"model.safetensors", "model.safetensors.index.json"} & names:
        pickles = sorted(name for name in names if name.endswith(_PICKLES))
        if pickles:
            raise WeightsError(
                "weights must be safetensors; a pickle can run any code and is never opened",
                got=f"{folder} has only {', '.join(pickles)}",
                remedy=f'if you trust them, convert them once: python -c "from transformers import '
                f"{found} as M; M.from_pretrained('FOLDER').save_pretrained('NEW')\"",
            )
        raise _bad(f"{folder / 'model.safetensors'} is missing")
    for name in ("preprocessor_config.json", "tokenizer_config.json")[: 1 + text]:
        _read_json(folder / name)
    return str(found)


def _read_json(path: Path) -> dict[str, object]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise _bad(f"{path} is missing") from error
    except (OSError, ValueError) as error:
        raise _bad(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise _bad(f"{path} must hold a JSON object")
    return cast(dict[str, object], content)


def _bad(what: object) -> WeightsError:
    return WeightsError(
        "the model folder must be whole and in transformers format",
        got=what,
        remedy="fetch or save the model again: config.json, model.safetensors, the tokenizer's "
        "files and preprocessor_config.json",
    )


def _unknown(name: object, part: str) -> InputError:
    return InputError(
        f'the {part} model must be "mini", a hub id (owner/name) or a folder',
        got=name if isinstance(name, str) else f"{name!r} ({type(name).__name__})",
        remedy='use "mini", or a path that begins with "./" for a folder',
    )
