"""A plot of figures by name, drawn with Pillow: one bar each, the best on top."""

import math
from collections.abc import Mapping

import PIL.Image
import PIL.ImageDraw

from diffuseg.errors import InputError
from diffuseg.palettes import Color
from diffuseg.render.legend import INK, PAPER, text_font

_SIZE = 14  # of letters
_ROW = 22
_BAR = 400
_FILL: Color = (31, 95, 191)
_GRID: Color = (226, 229, 233)


def draw_bars(values: Mapping[str, float | None], *, title: str) -> PIL.Image.Image:
    """Return a bar for each share of 1, its name before it and its value, per cent, after it.

    Args:
        values: Shares by name; None, for what has no value, stands last and has no bar.
        title: What the shares are.

    Raises:
        InputError: There is nothing to draw.

    Example:
        >>> draw_bars({"ball": 0.96, "box": 0.5, "tree": None}, title="IoU").mode
        'RGB'
    """
    if not values:
        raise InputError("a plot needs values", got="none", remedy="give some")
    letters = text_font(_SIZE)
    rows = sorted(values.items(), key=lambda item: -math.inf if item[1] is None else item[1])[::-1]
    left = 16 + math.ceil(max(letters.getlength(name) for name in values))
    top = 2 * _ROW
    paper = PIL.Image.new("RGB", (left + _BAR + 60, top + _ROW * len(rows) + 8), PAPER)
    draw = PIL.ImageDraw.Draw(paper)
    draw.text((8, 8), title, font=letters, fill=INK)
    for share in range(0, 101, 25):
        x = left + _BAR * share // 100
        draw.line((x, top, x, paper.height - 8), fill=_GRID)
        draw.text((x, top - 4), str(share), font=letters, fill=INK, anchor="mb")
    for number, (name, value) in enumerate(rows):
        y = top + _ROW * number
        draw.text((left - 8, y + _ROW // 2), name, font=letters, fill=INK, anchor="rm")
        end = left
        if value is not None:
            end = left + round(_BAR * value)
            draw.rectangle((left, y + 3, end, y + _ROW - 4), fill=_FILL)
        shown = "-" if value is None else f"{100 * value:.1f}"
        draw.text((end + 6, y + _ROW // 2), shown, font=letters, fill=INK, anchor="lm")
    return paper
