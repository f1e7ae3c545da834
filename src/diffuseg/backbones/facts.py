"""What a model folder says of a model in words of this library: `diffuseg.json`, checked."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from diffuseg.backbones.folder import bad_folder


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What `diffuseg.json` in a model folder may say, beyond diffusers' own files.

    Attributes:
        size: Pixels of the side the model was trained at.
        vocabulary: Every word it knows, where the list is closed.
        mask_padding: Whether end and padding tokens are hidden from attention.
        preset: Settings found for it, by method name.
    """

    size: int | None = None
    vocabulary: tuple[str, ...] | None = None
    mask_padding: bool = False
    preset: Mapping[str, Mapping[str, object]] = field(default_factory=dict)


def read_facts(path: Path, raw: Mapping[str, object]) -> Facts:
    """Check what a `diffuseg.json` says.

    Args:
        path: The file, for errors.
        raw: Its contents.

    Raises:
        WeightsError: Something in it is not what it must be.
    """
    size, words = raw.get("size"), raw.get("vocabulary")
    mask, preset = raw.get("mask_padding", False), raw.get("preset", {})
    if size is not None and (not isinstance(size, int) or size < 1):
        raise bad_folder(path, f"has size {size!r}; it must be a number of pixels")
    if words is not None and not (isinstance(words, list) and all(map(_is_text, words))):
        raise bad_folder(path, "has a vocabulary that is no list of words")
    if not isinstance(mask, bool):
        raise bad_folder(path, f"has mask_padding {mask!r}; it must be true or false")
    if not isinstance(preset, dict) or not all(isinstance(one, dict) for one in preset.values()):
        raise bad_folder(path, "has a preset that is not {method: {setting: value}}")
    return Facts(
        size=size,
        vocabulary=None if words is None else tuple(words),
        mask_padding=mask,
        preset=preset,
    )


def _is_text(word: object) -> bool:
    return isinstance(word, str)
