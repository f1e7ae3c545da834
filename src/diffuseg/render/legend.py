"""The words in drawings: the legend of a segmentation, and lines of text."""

import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont

from diffuseg.errors import InputError
from diffuseg.palettes import UNDECIDED, Color, color_of
from diffuseg.result import Segmentation

PAPER: Color = (255, 255, 255)
INK: Color = (32, 33, 36)
_PALE: Color = (112, 117, 124)
_HAIRLINE: Color = (190, 194, 200)

_MAX_ENTRIES = 48
_MAX_NAME_EMS = 14

Font = PIL.ImageFont.FreeTypeFont


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One line of a legend: a colour, its name and the share of the image."""

    color: Color
    name: str
    share: str


def text_size(side: int) -> int:
    """Return the height of text, in pixels, for a drawing whose longer side is `side`.

    Example:
        >>> text_size(100), text_size(1000), text_size(10000)
        (13, 26, 40)
    """
    return min(40, max(13, round(side / 38)))


def text_font(size: int, file: str | None = None) -> Font:
    """Return a font in the size given: of a TrueType or OpenType file, or Pillow's built-in one.

    Raises:
        InputError: The file is missing or no font.

    Example:
        >>> text_font(20).getlength("tree") > text_font(10).getlength("tree")
        True
    """
    if file is None:
        return cast(Font, PIL.ImageFont.load_default(size))
    try:
        return PIL.ImageFont.truetype(file, size)
    except OSError as error:
        raise InputError(
            "the font must be a TrueType or OpenType file",
            got=f"{file}: {error}",
            remedy="give the path of a .ttf or .otf file",
        ) from error


def fit_text(text: str, font: Font, width: int | float) -> str:
    """Return the text, shortened with an ellipsis where it is wider than `width` pixels.

    The built-in font has the letters of English only; accents are dropped for it. Other scripts
    need a font file.

    Example:
        >>> fit_text("a very long class name", text_font(20), 100)
        'a very lon…'
    """
    shown = " ".join(text.split())
    if font.getname() == text_font(10).getname():
        parts = unicodedata.normalize("NFKD", shown)
        shown = "".join(letter for letter in parts if not unicodedata.combining(letter))
    if font.getlength(shown) <= width:
        return shown
    while shown and font.getlength(shown + "…") > width:
        shown = shown[:-1]
    return shown.rstrip() + "…"


def legend_entries(seg: Segmentation) -> tuple[Entry, ...]:
    """Return what the legend of a segmentation lists: the names present, the largest first.

    Undecided pixels come last. Of more than 48 names the smallest are counted in one line.

    Example:
        >>> seg = Segmentation.from_labels([[0, 1, 1]], names=("car", "tree"))
        >>> [(entry.name, entry.share) for entry in legend_entries(seg)]
        [('tree', '66.7 %'), ('car', '33.3 %')]
    """
    areas = {name: area for name, area in seg.areas.items() if area}
    n_pixels = seg.labels.size
    ordered = sorted(areas, key=lambda name: -areas[name])
    entries = [
        Entry(color=color_of(name), name=name, share=format_share(areas[name] / n_pixels))
        for name in ordered[:_MAX_ENTRIES]
    ]
    if rest := ordered[_MAX_ENTRIES:]:
        share = sum(areas[name] for name in rest) / n_pixels
        entries.append(Entry(color=PAPER, name=f"{len(rest)} more", share=format_share(share)))
    if undecided := n_pixels - sum(areas.values()):
        share = format_share(undecided / n_pixels)
        entries.append(Entry(color=UNDECIDED, name="undecided", share=share))
    return tuple(entries)


def format_share(share: float) -> str:
    """Return a share of the image in per cent.

    Example:
        >>> format_share(0.302), format_share(0.0001), format_share(1.0)
        ('30.2 %', '< 0.1 %', '100.0 %')
    """
    return "< 0.1 %" if share < 0.0005 else f"{100 * share:.1f} %"


def draw_legend(
    entries: Sequence[Entry],
    *,
    size: int,
    width: int | None = None,
    height: int | None = None,
    font: str | None = None,
) -> PIL.Image.Image:
    """Return the legend as a picture, in columns.

    Args:
        entries: The lines.
        size: Height of the text in pixels.
        width: As many columns as fit into it, at least one; None: as few as `height` allows.
        height: As many lines a column as fit into it, at least one.
        font: A font file; None: Pillow's own.

    Example:
        >>> draw_legend([Entry(color=(255, 0, 0), name="car", share="3.0 %")], size=12).mode
        'RGB'
    """
    letters = text_font(size, font)
    names = [fit_text(entry.name, letters, _MAX_NAME_EMS * size) for entry in entries]
    swatch, gap, line = round(size * 1.05), round(size * 0.55), round(size * 1.75)
    name_width = math.ceil(max((letters.getlength(name) for name in names), default=0))
    share_width = math.ceil(max((letters.getlength(entry.share) for entry in entries), default=0))
    cell = swatch + gap + name_width + 2 * gap + share_width
    apart = 3 * gap
    n_columns = 1
    if width is not None:
        n_columns = max(1, (width + apart) // (cell + apart))
    elif height is not None:
        n_columns = max(1, math.ceil(len(entries) / max(1, height // line)))
    n_lines = max(1, math.ceil(len(entries) / n_columns))
    columns = [range(i, min(i + n_lines, len(names))) for i in range(0, len(names), n_lines)]
    cells = [
        swatch + 3 * gap + share_width + math.ceil(max(letters.getlength(names[i]) for i in column))
        for column in columns
    ]
    total = sum(cells) + apart * max(0, len(cells) - 1)
    picture = PIL.Image.new("RGB", (max(1, total), n_lines * line), PAPER)
    draw = PIL.ImageDraw.Draw(picture)
    x = 0
    for column, cell in zip(columns, cells, strict=True):
        for row, i in enumerate(column):
            y = row * line + line // 2
            top, color = y - swatch // 2, entries[i].color
            draw.rounded_rectangle(
                (x, top, x + swatch - 1, top + swatch - 1),
                radius=swatch // 5,
                fill=color,
                outline=_HAIRLINE if min(color) > 150 else None,
            )
            draw.text((x + swatch + gap, y), names[i], font=letters, fill=INK, anchor="lm")
            draw.text((x + cell, y), entries[i].share, font=letters, fill=_PALE, anchor="rm")
        x += cell + apart
    return picture


def draw_titles(
    titles: Sequence[str], widths: Sequence[int], *, size: int, gap: int, font: str | None = None
) -> PIL.Image.Image:
    """Return one line of titles, each at the left edge of a panel of the width given.

    Example:
        >>> draw_titles(["input", "labels"], [100, 100], size=12, gap=10).size[0]
        210
    """
    letters = text_font(size, font)
    total = sum(widths) + gap * (len(widths) - 1)
    picture = PIL.Image.new("RGB", (total, round(size * 1.6)), PAPER)
    draw = PIL.ImageDraw.Draw(picture)
    x = 0
    for title, width in zip(titles, widths, strict=True):
        shown = fit_text(title, letters, width)
        draw.text((x, round(size * 0.7)), shown, font=letters, fill=INK, anchor="lm")
        x += width + gap
    return picture
