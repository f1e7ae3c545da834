"""Finding a model's folder: inside the package, on the disk, in the hub's cache, or on the hub."""

import logging
import os
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from diffuseg.backbones.catalog import KnownModel, lookup, unknown_model
from diffuseg.backbones.folder import Layout, inspect_folder, wanted_files
from diffuseg.errors import InputError, WeightsError

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFolder:
    """A folder found for what was asked.

    Attributes:
        folder: Where the files are.
        name: The catalog name, hub id or folder name it is known by.
        source: "embedded", the hub id, or the folder.
        known: The catalog's row, if there is one.
    """

    folder: Path
    name: str
    source: str
    known: KnownModel | None


def is_offline(offline: bool | None) -> bool:
    """Whether the network must not be used: as told, else what the environment says."""
    if offline is not None:
        return offline
    from huggingface_hub import constants

    asked = os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}
    return asked or constants.HF_HUB_OFFLINE


def embedded_folder(name: str) -> Path:
    """Where the package keeps an embedded model, whether it is there or not."""
    return Path(str(resources.files("diffuseg"))) / "world" / name


def cached_folder(repo: str) -> Path | None:
    """The hub cache's snapshot of a repository, complete or not."""
    from huggingface_hub import try_to_load_from_cache

    for file in ("model_index.json", "unet/config.json", "diffuseg.json"):
        found = try_to_load_from_cache(repo, file)
        if isinstance(found, str):
            return Path(found).parents[file.count("/")]
    return None


def find_model(
    name_or_path: str | os.PathLike[str],
    *,
    offline: bool | None = None,
    variant: str | None = None,
    half: bool = False,
) -> ModelFolder:
    """Find a model's folder: embedded, local, in the hub's cache, or downloaded.

    A copy on this machine is used as it is, whichever of a model's ids it came from; the network is
    asked only when there is none.

    Args:
        name_or_path: A catalog name, a hub id "owner/name", or a folder in diffusers format.
        offline: Never use the network; by default as HF_HUB_OFFLINE says.
        variant: Of the files, for instance "fp16"; an error if there is none.
        half: Prefer 16-bit files where both are offered.

    Raises:
        InputError: Nothing of that name is known.
        WeightsError: Nothing is found in any of the places, or what is found cannot be used.
    """
    if not isinstance(name_or_path, str | os.PathLike):
        raise unknown_model(name_or_path)
    text = os.fspath(name_or_path)
    known = None if isinstance(name_or_path, os.PathLike) else lookup(text)
    path = Path(text).expanduser()
    if known is not None and not known.ids:
        return _embedded(known, variant, half)
    if known is None and path.is_dir():
        inspect_folder(path, variant=variant, half=half)
        return ModelFolder(folder=path, name=path.resolve().name, source=str(path), known=None)
    if known is None and path.is_file():
        raise _single_file(path)
    if known is None and (isinstance(name_or_path, os.PathLike) or _looks_like_path(text)):
        raise WeightsError(
            "the model must be a folder in diffusers format",
            got=f"{path}, which does not exist",
            remedy="check the path, or name a model (diffuseg models lists them)",
        )
    if known is None and not _HUB_ID.fullmatch(text):
        raise unknown_model(text)
    return _from_hub(
        text if known is None else known.name,
        (text,) if known is None else known.ids,
        known,
        offline=is_offline(offline),
        choose=lambda names: wanted_files(names, variant, half),
        judge=lambda folder: inspect_folder(folder, variant=variant, half=half),
    )


def find_base(
    adapter: Path,
    base: str,
    *,
    offline: bool | None = None,
    variant: str | None = None,
    half: bool = False,
) -> ModelFolder:
    """Find the model that an adapter changes.

    A name of the catalog comes first, then a folder in the adapter's or beside it, then whatever
    `find_model` makes of it.

    Args:
        adapter: Its folder.
        base: As its diffuseg.json names it.
        offline: As for `find_model`, like the rest.
        variant: Of the files.
        half: Prefer 16-bit files.

    Raises:
        WeightsError: It is nowhere, or cannot be used.
    """
    wanted: str | Path = base
    if lookup(base) is None:
        near = (adapter / base, adapter.resolve().parent / base)
        wanted = next((one for one in near if one.is_dir()), base)
    try:
        return find_model(wanted, offline=offline, variant=variant, half=half)
    except (InputError, WeightsError) as error:
        raise WeightsError(
            f"the base model {base!r} of the adapter {adapter} must be to be had",
            got=f"{error.expected}: {error.got}",
            remedy=f"{error.remedy}; or put its folder beside the adapter, or correct base in "
            f"{adapter / 'diffuseg.json'}",
        ) from error


def _looks_like_path(text: str) -> bool:
    return text.startswith((".", "~")) or os.path.isabs(text) or text.count("/") > 1


def _embedded(known: KnownModel, variant: str | None, half: bool) -> ModelFolder:
    folder = embedded_folder(known.name)
    if not folder.is_dir():
        raise WeightsError(
            f"the embedded model {known.name!r} must be part of the package",
            got=f"no folder {folder}",
            remedy=f"make it with: diffuseg train {known.name}",
        )
    inspect_folder(folder, variant=variant, half=half)
    return ModelFolder(folder=folder, name=known.name, source="embedded", known=known)


def _single_file(path: Path) -> WeightsError:
    return WeightsError(
        "the model must be a folder in diffusers format",
        got=f"the file {path}",
        remedy='convert it once: python -c "from diffusers import StableDiffusionPipeline as P; '
        f"P.from_single_file('{path}').save_pretrained('{path.stem}')\"",
    )


def _from_hub(
    name: str,
    ids: tuple[str, ...],
    known: KnownModel | None,
    *,
    offline: bool,
    choose: Callable[[Collection[str]], list[str]],
    judge: Callable[[Path], Layout],
) -> ModelFolder:
    from huggingface_hub import constants

    tried: list[str] = []
    for repo in ids:
        folder = cached_folder(repo)
        if folder is None:
            continue
        try:
            judge(folder)
        except WeightsError as error:
            tried.append(f"{repo}, in the cache: {error.expected}: {error.got}")
            continue
        return ModelFolder(folder=folder, name=name, source=repo, known=known)
    if not tried:
        tried.append(f"the hub cache {constants.HF_HUB_CACHE}: none of {', '.join(ids)}")
    if offline:
        tried.append("the network: not asked (offline)")
    else:
        _announce(name, known)
        for repo in ids:
            try:
                folder = _download(repo, choose)
                judge(folder)
            except WeightsError as error:
                tried.append(f"{repo}: {error.expected}: {error.got}")
                continue
            except Exception as error:
                # Any failure of the network or the hub has the same answer: the next mirror.
                tried.append(f"{repo}: {_reason(error)}")
                continue
            return ModelFolder(folder=folder, name=name, source=repo, known=known)
    raise WeightsError(
        f"the weights of {name!r} must be on this machine or on the hub",
        got="\n    ".join(["not found; looked in", *tried]),
        remedy=_hub_remedy(ids[0], offline),
    )


def _announce(name: str, known: KnownModel | None) -> None:
    if known is None:
        log.info("downloading %s", name)
        return
    full, small = known.gigabytes
    log.info("downloading %s (%s; %.1f GB, %.1f GB in fp16)", name, known.licence, full, small)


def _reason(error: Exception) -> str:
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


def _hub_remedy(repo: str, offline: bool) -> str:
    other = (
        f"fetch it where there is a network (hf download {repo} --local-dir DIR), copy DIR here "
        'and give its path as the model; the embedded model "mini" needs no download'
    )
    if offline:
        return f"allow the network (offline=False, unset HF_HUB_OFFLINE), or {other}"
    return f"check the network and the id (a gated model needs: hf auth login), or {other}"


def _download(repo: str, choose: Callable[[Collection[str]], list[str]]) -> Path:
    from huggingface_hub import HfApi, snapshot_download

    info = HfApi().model_info(repo)
    wanted = choose([file.rfilename for file in info.siblings or ()])
    return Path(snapshot_download(repo, revision=info.sha, allow_patterns=wanted))
