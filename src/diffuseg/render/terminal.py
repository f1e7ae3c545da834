"""A look at a result in the terminal."""

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import UInt8

from diffuseg import render
from diffuseg.labelmaps import resized_labels
from diffuseg.palettes import UNDECIDED, name_palette
from diffuseg.render.legend import Entry, legend_entries
from diffuseg.result import Segmentation

if TYPE_CHECKING:
    from rich.console import Console, Group
    from rich.text import Text

_MAX_COLUMNS, _MAX_LINES = 72, 28
_LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
_UNDECIDED_MARK = "."
_UPPER_HALF, _SQUARE = "\u2580", "\u25a0"


def preview(seg: Segmentation, image: object = None, *, console: "Console") -> "Group":
    """Return a small picture of a segmentation with its legend, for `console.print`.

    Two pixels a character in 24-bit colour (half-blocks; rich reduces them where the terminal has
    fewer colours). Where the console is no terminal, has no colour (`NO_COLOR`) or no Unicode, one
    letter a class in plain ASCII instead.

    Args:
        seg: The segmentation.
        image: The image segmented, drawn below the colours; None: the colours alone.
        console: Where it will be printed; decides about size and colour.

    Raises:
        InputError: The image cannot be read, or is not the one segmented.

    Example:
        >>> from rich.console import Console
        >>> seg = Segmentation(labels=np.array([[0, 0], [0, 1]]), names=("sky", "kite"))
        >>> console = Console(width=12, no_color=True)
        >>> with console.capture() as printed:
        ...     console.print(preview(seg, console=console))
        >>> printed.get().splitlines()[5]
        'sssssskkkkkk'
    """
    from rich.columns import Columns
    from rich.console import Group

    plain = not console.is_terminal or console.no_color or console.options.ascii_only
    entries = legend_entries(seg)
    if plain:
        letters = _letters(seg.names)
        picture = _letter_picture(seg, letters, console.width)
        others = {"undecided": _UNDECIDED_MARK}
        marks = [letters.get(entry.name, others.get(entry.name, "+")) for entry in entries]
    else:
        picture = _color_picture(seg, image, console.width)
        marks = [_SQUARE] * len(entries)
    key = [_key(mark, entry, plain) for mark, entry in zip(marks, entries, strict=True)]
    return Group(picture, Columns(key, padding=(0, 2)))


def _color_picture(seg: Segmentation, image: object, columns: int) -> "Text":
    from rich.style import Style
    from rich.text import Text

    height, width = _grid(seg.hw, columns, aspect=1.0, most=2 * _MAX_LINES)
    height += height % 2
    if image is None:
        palette = np.concatenate([name_palette(seg.names), [UNDECIDED]]).astype(np.uint8)
        labels = resized_labels(seg.labels, (height, width))
        pixels = palette[np.where(labels == seg.ignore, len(seg.names), labels)]
    else:
        drawn = render.overlay(image, seg, contours=False, legend=False)
        pixels = np.asarray(drawn.resize((width, height)))
    text = Text(no_wrap=True)
    for upper, lower in zip(pixels[::2], pixels[1::2], strict=True):
        for above, below in zip(upper, lower, strict=True):
            style = Style.parse(f"{_rgb(above)} on {_rgb(below)}")
            text.append(_UPPER_HALF, style)
        text.append("\n")
    text.rstrip()
    return text


def _letter_picture(seg: Segmentation, letters: dict[str, str], columns: int) -> "Text":
    from rich.text import Text

    # A character is about twice as high as it is wide.
    hw = _grid(seg.hw, columns, aspect=0.5, most=_MAX_LINES)
    labels = resized_labels(seg.labels, hw)
    alphabet = np.array([*letters.values(), _UNDECIDED_MARK])
    shown = alphabet[np.where(labels == seg.ignore, len(seg.names), labels)]
    return Text("\n".join("".join(line) for line in shown), no_wrap=True)


def _letters(names: tuple[str, ...]) -> dict[str, str]:
    """Return a letter for every name: one of its own where that is free."""
    chosen: dict[str, str] = {}
    for name in names:
        wished = [letter for letter in name.lower() + name.upper() if letter in _LETTERS]
        free = (letter for letter in (*wished, *_LETTERS) if letter not in chosen.values())
        chosen[name] = next(free, "#")
    return chosen


def _grid(hw: tuple[int, int], columns: int, *, aspect: float, most: int) -> tuple[int, int]:
    width = min(columns, _MAX_COLUMNS)
    height = width * aspect * hw[0] / hw[1]
    if height > most:
        width, height = width * most / height, most
    return max(1, round(height)), max(1, round(width))


def _key(mark: str, entry: Entry, plain: bool) -> "Text":
    from rich.text import Text

    style = "" if plain else _rgb(np.array(entry.color, dtype=np.uint8))
    return Text.assemble((mark, style), f" {entry.name} ", (entry.share, "" if plain else "dim"))


def _rgb(color: UInt8[np.ndarray, "3"]) -> str:
    red, green, blue = color.tolist()
    return f"rgb({red},{green},{blue})"
