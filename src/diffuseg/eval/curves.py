"""Plots of figures, drawn with Pillow: lines over a number, and bars of a distribution."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

import PIL.Image
import PIL.ImageDraw

from diffuseg.errors import InputError
from diffuseg.palettes import Color
from diffuseg.render.legend import INK, PAPER, Entry, draw_legend, text_font

_HW = (420, 640)
_SIZE = 14  # of letters
_GRID: Color = (226, 229, 233)
_COLORS: tuple[Color, ...] = (
    (31, 95, 191), (214, 92, 33), (38, 140, 79), (150, 61, 160),
    (190, 45, 70), (0, 146, 160), (125, 105, 30), (90, 96, 104),
)  # fmt: skip

Points = Sequence[tuple[float, float]]


def draw_curves(
    lines: Mapping[str, Points], *, x_label: str, y_label: str, fill: bool = False
) -> PIL.Image.Image:
    """Return a plot of lines, with their names below.

    Numbers x that lie evenly on a logarithmic scale rather than on a plain one are drawn so.

    Args:
        lines: Points (x, y) by the name of the line, in order of x.
        x_label: What x is.
        y_label: What y is.
        fill: Whether the area below a line is tinted, as for a distribution.

    Raises:
        InputError: There are no points.

    Example:
        >>> lines = {"miou": [(50.0, 61.0), (100.0, 63.5)]}
        >>> draw_curves(lines, x_label="timestep", y_label="per cent").mode
        'RGB'
    """
    points = [point for line in lines.values() for point in line]
    if not points:
        raise InputError("a plot needs points", got="none", remedy="give lines with points")
    letters = text_font(_SIZE)
    all_x = sorted({x for x, _ in points})
    logarithmic = not fill and _is_geometric(all_x)
    x_ticks = all_x if logarithmic else _ticks(all_x)
    y_ticks = _ticks([y for _, y in points] + ([0.0] if fill else []))
    left = 22 + max(math.ceil(letters.getlength(_number(y))) for y in y_ticks)
    top, bottom, right = 2 * _SIZE, _HW[0] - 4 * _SIZE, _HW[1] - 28

    def place(point: tuple[float, float]) -> tuple[float, float]:
        x, y = point
        low, high = x_ticks[0], x_ticks[-1]
        across = (
            math.log(x / low) / math.log(high / low) if logarithmic else (x - low) / (high - low)
        )
        up = (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])
        return left + across * (right - left), bottom - up * (bottom - top)

    plot = PIL.Image.new("RGB", (_HW[1], _HW[0]), PAPER)
    draw = PIL.ImageDraw.Draw(plot, "RGBA")
    for y in y_ticks:
        at = place((x_ticks[0], y))
        draw.line((at, (right, at[1])), fill=_GRID)
        draw.text((left - 8, at[1]), _number(y), font=letters, fill=INK, anchor="rm")
    for x in x_ticks:
        at = place((x, y_ticks[0]))
        draw.line((at, (at[0], bottom + 4)), fill=INK)
        draw.text((at[0], bottom + 8), _number(x), font=letters, fill=INK, anchor="mt")
    draw.line(((left, bottom), (right, bottom)), fill=INK)
    draw.text((left, _SIZE // 2), y_label, font=letters, fill=INK, anchor="lt")
    draw.text(((left + right) / 2, _HW[0] - _SIZE), x_label, font=letters, fill=INK, anchor="mm")
    for number, line in enumerate(lines.values()):
        color = _COLORS[number % len(_COLORS)]
        places = [place(point) for point in line]
        if fill and len(places) > 1:
            draw.polygon([(places[0][0], bottom), *places, (places[-1][0], bottom)], (*color, 60))
        if len(places) > 1:
            draw.line(places, fill=color, width=2, joint="curve")
        for x, y in () if fill else places:
            draw.ellipse((x - 3, y - 3, x + 3, y + 3), fill=color)
    names = [
        Entry(color=_COLORS[number % len(_COLORS)], name=name, share="")
        for number, name in enumerate(lines)
    ]
    legend = draw_legend(names, size=_SIZE, width=_HW[1] - 2 * _SIZE)
    paper = PIL.Image.new("RGB", (max(_HW[1], legend.width), _HW[0] + legend.height), PAPER)
    paper.paste(plot)
    paper.paste(legend, (_SIZE, _HW[0]))
    return paper


def draw_abreast(pictures: Sequence[PIL.Image.Image]) -> PIL.Image.Image:
    """Return plots beside each other.

    Example:
        >>> plot = draw_curves({"a": [(0.0, 1.0)]}, x_label="x", y_label="y")
        >>> draw_abreast([plot, plot]).width == 2 * plot.width
        True
    """
    height = max(one.height for one in pictures)
    paper = PIL.Image.new("RGB", (sum(one.width for one in pictures), height), PAPER)
    left = 0
    for one in pictures:
        paper.paste(one, (left, 0))
        left += one.width
    return paper


def _is_geometric(values: Sequence[float]) -> bool:
    """Whether the steps between rising numbers are more alike as ratios than as differences."""
    if len(values) < 3 or values[0] <= 0:
        return False
    steps = [b - a for a, b in pairwise(values)]
    ratios = [math.log(b / a) for a, b in pairwise(values)]
    return max(ratios) / min(ratios) < max(steps) / min(steps)


def _ticks(values: Sequence[float]) -> list[float]:
    """About five round numbers that reach from below the least to above the greatest."""
    low, high = min(values), max(values)
    span = high - low or abs(high) or 1.0
    rough = span / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * one for one in (1, 2, 2.5, 5, 10) if power * one >= rough * 0.999)
    first = math.floor(low / step + 1e-9)
    last = max(math.ceil(high / step - 1e-9), first + 1)
    return [number * step for number in range(first, last + 1)]


def _number(value: float) -> str:
    return f"{value:.6g}"
