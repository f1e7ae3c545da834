"""Writing the folder of a trained model: small files, checksums, and the old one replaced last."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from diffuseg.errors import InputError

CARD = "README.md"
"""The model card, which has no checksum: figures are filled in later."""


@contextmanager
def model_folder(out: Path) -> Iterator[Path]:
    """Yield an empty folder; with checksums it takes the place of `out` when the block ends well.

    A model card that is there already stays, unless the block writes one.

    Raises:
        InputError: `out` is a file, or the folder above it cannot be written to.

    Example:
        >>> import tempfile
        >>> out = Path(tempfile.mkdtemp()) / "model"
        >>> with model_folder(out) as folder:
        ...     write_json(folder / "diffuseg.json", {"size": 64})
        >>> sorted(path.name for path in out.iterdir())
        ['checksums.json', 'diffuseg.json']
    """
    folder = out.with_name(out.name + ".partial")
    check_output(out)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
        if (out / CARD).is_file() and not (folder / CARD).is_file():
            shutil.copy(out / CARD, folder / CARD)
        write_checksums(folder)
        _swap(folder, out)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def check_output(out: Path) -> None:
    """Make sure a model folder can be written, before hours are spent on what goes into it.

    Raises:
        InputError: `out` is a file, or the folder above it cannot be made or written to.
    """
    above = next(one for one in (out.absolute().parent, *out.absolute().parents) if one.exists())
    if out.is_file() or not above.is_dir() or not os.access(above, os.W_OK):
        raise InputError(
            "the model folder to write must be makeable",
            got=f"{out}, {'a file' if out.is_file() else f'in {above}, not to be written to'}",
            remedy="choose another folder",
        )


def _swap(folder: Path, out: Path) -> None:
    if not out.exists():
        os.replace(folder, out)
        return
    previous = out.with_name(out.name + ".previous")
    shutil.rmtree(previous, ignore_errors=True)
    os.replace(out, previous)
    os.replace(folder, out)
    shutil.rmtree(previous)


def write_json(path: Path, content: object) -> None:
    """Write a small file of a model folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n")


def write_checksums(folder: Path) -> None:
    """Write `checksums.json`: the SHA-256 of every other file of a model folder but its card."""
    sums = {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in ("checksums.json", CARD)
    }
    write_json(folder / "checksums.json", sums)


def stable_diffusion_index() -> dict[str, object]:
    """What `model_index.json` says of a Stable Diffusion 1.x or 2.x without companions."""
    import diffusers

    return {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": diffusers.__version__,
        "feature_extractor": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
