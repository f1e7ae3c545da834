"""What a bank's classes were learned from, to be looked at: pictures with their masks."""

from collections.abc import Sequence

import numpy as np
import PIL.Image
from jaxtyping import Bool, UInt8

from diffuseg.errors import InputError
from diffuseg.ovdiff.bank import Bank
from diffuseg.palettes import color_of
from diffuseg.render import strip

_SHADE = 0.3  # Of what surely is not the class.
_TINT = 0.35  # Of what is.


def contact_sheet(
    bank: Bank,
    names: Sequence[str] | None = None,
    *,
    pictures: int = 8,
    height: int = 128,
    font: str | None = None,
) -> PIL.Image.Image:
    """Return the first pictures of classes, a row each.

    The class is tinted and outlined, what surely is not the class is dark, the rest as it is.

    Args:
        bank: With pictures.
        names: Of classes; None: all.
        pictures: How many of each class at most.
        height: Of every picture, in pixels.
        font: A font file for names in other scripts than the Latin; None: Pillow's own font.

    Raises:
        InputError: There is no such class, it is damaged, or there is no picture to show.
    """
    panels: list[UInt8[np.ndarray, "h w 3"]] = []
    titles: list[str] = []
    rows = [bank.get(name, pictures=True) for name in (bank.names if names is None else names)]
    columns = min(
        pictures, max((len(row.images) for row in rows if row.images is not None), default=0)
    )
    for row in rows:
        if row.images is None or row.fg is None or row.bg is None:
            continue
        color = np.array(color_of(row.name))
        shown = zip(row.images[:columns], row.fg.numpy(), row.bg.numpy(), strict=False)
        drawn = [_marked(image, fg, bg, color) for image, fg, bg in shown]
        blank = np.full_like(drawn[0], 255)
        panels += drawn + [blank] * (columns - len(drawn))
        titles += [row.name] + [""] * (columns - 1)
    if not panels:
        raise InputError(
            "a contact sheet needs pictures",
            got=f"none kept in {bank.path}" if rows else f"no class in {bank.path}",
            remedy="build the bank with its pictures (keep_pictures=True)",
        )
    return strip(panels, titles, columns=columns, height=height, font=font)


def _marked(
    image: UInt8[np.ndarray, "h w 3"],
    fg: Bool[np.ndarray, "h w"],
    bg: Bool[np.ndarray, "h w"],
    color: np.ndarray,
) -> UInt8[np.ndarray, "h w 3"]:
    marked = image.astype(np.float32)
    marked[bg] *= _SHADE
    marked[fg] = (1 - _TINT) * marked[fg] + _TINT * color
    inside = fg.copy()
    for axis in (0, 1):
        for step in (-1, 1):
            inside &= np.roll(fg, step, axis)
    marked[fg & ~inside] = color
    return np.rint(marked).astype(np.uint8)
