"""Drawings of results: overlay, side by side, heat-map, strips. Pillow and NumPy only.

A name has the same colour in every drawing (`palettes.color_of`). Legends stand beside or below the
picture and hide nothing of it. Text and lines grow with the drawing.
"""

import itertools
from collections.abc import Sequence

import numpy as np
import PIL.Image
import PIL.ImageDraw
from jaxtyping import Float, Int, UInt8

from diffuseg.errors import InputError
from diffuseg.image import read_image
from diffuseg.labelmaps import resized_labels
from diffuseg.palettes import UNDECIDED, name_palette
from diffuseg.render.legend import (
    PAPER,
    Font,
    draw_legend,
    draw_titles,
    legend_entries,
    text_font,
    text_size,
)
from diffuseg.result import Segmentation

# Longer side of drawings with words: smaller pictures are enlarged, larger ones reduced.
_MIN_SIDE, _MAX_SIDE = 320, 2048

# Dark violet to pale yellow; OKLab lightness rises evenly, so that equal steps look equal.
_HEAT = (
    "0c0229 1f033e 35064e 4e0a5a 6a0e61 871163 a4185f c21d55 "
    "e1233e f4441f f57124 f9902e faae48 fcc961 fde37c fefc88"
)


def overlay(
    image: object,
    seg: Segmentation,
    *,
    opacity: float = 0.5,
    contours: bool = True,
    legend: bool = True,
    font: str | None = None,
) -> PIL.Image.Image:
    """Return the image with its classes in colour.

    Args:
        image: The image segmented, in any form `read_image` takes.
        seg: Its segmentation. Undecided pixels are left as they are.
        opacity: Of the colours, 0 to 1.
        contours: Whether the borders between classes are drawn.
        legend: Whether colours, names and shares of the area are listed beside the picture, or
            below it if it is wide. Pictures smaller than 320 pixels are then enlarged by a whole
            factor, larger ones than 2048 reduced. Without legend the size is the image's own.
        font: A font file for names in other scripts than the Latin; None: Pillow's own font.

    Raises:
        InputError: The image cannot be read or is not the one segmented (another size), or
            `opacity` lies outside [0, 1].

    Example:
        >>> image = np.full((32, 48, 3), 128, dtype=np.uint8)
        >>> seg = Segmentation(labels=np.zeros((32, 48), dtype=int), names=("sky",))
        >>> overlay(image, seg, legend=False).size
        (48, 32)
    """
    pixels = _matched(image, seg)
    if not legend:
        return PIL.Image.fromarray(_painted(pixels, seg.labels, seg, opacity, contours))
    hw = _display_hw(seg.hw)
    painted = _painted(_resized(pixels, hw), resized_labels(seg.labels, hw), seg, opacity, contours)
    size = text_size(max(hw))
    entries = legend_entries(seg)
    if hw[1] > 1.2 * hw[0]:
        key = draw_legend(entries, size=size, width=hw[1], font=font)
        return _stacked([PIL.Image.fromarray(painted), key], margin=size)
    key = draw_legend(entries, size=size, height=hw[0], font=font)
    return _abreast([PIL.Image.fromarray(painted), key], margin=size)


def side_by_side(
    image: object, seg: Segmentation, *, opacity: float = 0.5, font: str | None = None
) -> PIL.Image.Image:
    """Return input, overlay and labels beside each other, the legend below.

    Args and errors are those of `overlay`.

    Example:
        >>> image = np.full((32, 48, 3), 128, dtype=np.uint8)
        >>> seg = Segmentation(labels=np.zeros((32, 48), dtype=int), names=("sky",))
        >>> side_by_side(image, seg).mode
        'RGB'
    """
    hw = _display_hw(seg.hw, most=_MAX_SIDE // 2)
    pixels, labels = _resized(_matched(image, seg), hw), resized_labels(seg.labels, hw)
    panels = [
        PIL.Image.fromarray(panel)
        for panel in (
            pixels,
            _painted(pixels, labels, seg, opacity, True),
            _painted(pixels, labels, seg, 1.0, False),
        )
    ]
    size = text_size(max(hw))
    figure = _abreast(panels, margin=size // 2, outside=0)
    titles = draw_titles(
        ("input", "overlay", "labels"), [hw[1]] * 3, size=size, gap=size // 2, font=font
    )
    key = draw_legend(legend_entries(seg), size=size, width=figure.width, font=font)
    return _stacked([_stacked([titles, figure], margin=0), key], margin=size)


def heatmap(
    image: object,
    scores: object,
    *,
    opacity: float = 0.7,
    limits: tuple[float, float] | None = None,
    colorbar: bool = True,
) -> PIL.Image.Image:
    """Return the image under a map of scores, dark where they are low, bright where high.

    Args:
        image: Any form `read_image` takes; it is drawn grey, so that colour means score.
        scores: The map, of any size; spread over the image bilinearly.
        opacity: Of the colours, 0 to 1.
        limits: The scores of the darkest and the brightest colour; None: the least and greatest.
        colorbar: Whether the colours and the limits are shown beside the picture, which is then
            brought between 320 and 2048 pixels. Without it the size is the image's own.

    Raises:
        InputError: The image cannot be read; the scores are no finite map; the limits are not
            increasing; `opacity` lies outside [0, 1].

    Example:
        >>> image = np.full((32, 48, 3), 128, dtype=np.uint8)
        >>> heatmap(image, np.eye(4), colorbar=False).size
        (48, 32)
    """
    _check_opacity(opacity)
    held = np.asarray(scores, dtype=np.float32)
    if held.ndim != 2 or not held.size or not np.isfinite(held).all():
        raise InputError(
            "scores must be finite numbers of shape (h, w)",
            got=f"shape {held.shape}, {int((~np.isfinite(held)).sum())} not finite",
            remedy="pass the map of one name, such as seg.scores[0]",
        )
    low, high = (float(held.min()), float(held.max())) if limits is None else limits
    if limits is not None and not low < high:
        raise InputError("limits must increase", got=limits, remedy="pass (low, high)")
    read = read_image(image)
    hw = _display_hw(read.hw) if colorbar else read.hw
    spread = np.asarray(
        PIL.Image.fromarray(held).resize((hw[1], hw[0]), PIL.Image.Resampling.BILINEAR)
    )
    # A flat map has no contrast to show; all of it gets the darkest colour.
    level = np.clip((spread - low) / (high - low if high > low else 1.0), 0, 1)
    grey = _resized(read.pixels, hw).mean(axis=2, keepdims=True)
    mixed = (1 - opacity) * grey + opacity * heat_colors(level)
    picture = PIL.Image.fromarray(np.rint(mixed).astype(np.uint8))
    if not colorbar:
        return picture
    size = text_size(max(hw))
    return _abreast([picture, _colorbar(hw[0], low, high, text_font(size), size)], margin=size)


def heat_colors(level: Float[np.ndarray, "*shape"]) -> UInt8[np.ndarray, "*shape 3"]:
    """Return the colours of levels between 0 and 1.

    Example:
        >>> heat_colors(np.array([0.0, 1.0])).sum(axis=1).tolist()
        [55, 642]
    """
    anchors = np.array([list(bytes.fromhex(code)) for code in _HEAT.split()], dtype=np.float64)
    place = np.linspace(0, 1, len(anchors))
    channels = [np.interp(level, place, anchors[:, channel]) for channel in range(3)]
    return np.rint(np.stack(channels, axis=-1)).astype(np.uint8)


def strip(
    panels: Sequence[object],
    titles: Sequence[str] = (),
    *,
    columns: int | None = None,
    height: int = 256,
    font: str | None = None,
) -> PIL.Image.Image:
    """Return pictures in rows, each with its title above.

    Args:
        panels: Pictures in any form `read_image` takes.
        titles: One for every picture, or none at all.
        columns: Pictures a row; None: all in one.
        height: To which all pictures are scaled, in pixels.
        font: A font file for titles in other scripts than the Latin; None: Pillow's own font.

    Raises:
        InputError: There are no pictures, or titles for some only; or a number is too small.

    Example:
        >>> strip([np.zeros((32, 32, 3), dtype=np.uint8)] * 3, ("a", "b", "c"), height=64).mode
        'RGB'
    """
    if not panels or len(titles) not in (0, len(panels)):
        raise InputError(
            "a strip has at least one picture, and a title for all or for none",
            got=f"{len(panels)} pictures, {len(titles)} titles",
            remedy="pass as many titles as pictures",
        )
    if height < 16 or (columns is not None and columns < 1):
        raise InputError(
            "a strip is at least 16 pixels high and one picture wide",
            got=f"height={height}, columns={columns}",
            remedy="use height=256",
        )
    size = text_size(round(height * 1.5))
    gap = size // 2
    scaled = [_scaled_to(read_image(panel).pixels, height) for panel in panels]
    n_columns = columns or len(scaled)
    rows: list[PIL.Image.Image] = []
    for start in range(0, len(scaled), n_columns):
        row = scaled[start : start + n_columns]
        rows.append(_abreast(row, margin=gap, outside=0))
        if titles:
            widths = [picture.width for picture in row]
            named = titles[start : start + n_columns]
            line = draw_titles(named, widths, size=size, gap=gap, font=font)
            rows[-1] = _stacked([line, rows[-1]], margin=0)
    return _stacked(rows, margin=gap)


def cutout(image: object, seg: Segmentation, name: str) -> PIL.Image.Image:
    """Return the pixels of one name, the others transparent (RGBA, at the image's own size).

    Raises:
        InputError: The image cannot be read or is not the one segmented, or there is no such name.

    Example:
        >>> image = np.full((32, 48, 3), 128, dtype=np.uint8)
        >>> seg = Segmentation(labels=np.zeros((32, 48), dtype=int), names=("sky", "sea"))
        >>> cutout(image, seg, "sea").getextrema()[3]
        (0, 0)
    """
    opaque = np.uint8(255) * seg[name][..., None]
    return PIL.Image.fromarray(np.concatenate([_matched(image, seg), opaque], axis=2))


def _matched(image: object, seg: Segmentation) -> UInt8[np.ndarray, "h w 3"]:
    read = read_image(image)
    if read.hw != seg.hw:
        raise InputError(
            "image and segmentation must have the same size",
            got=f"image {read.hw[0]}x{read.hw[1]}, segmentation {seg.hw[0]}x{seg.hw[1]}",
            remedy=f"pass the image segmented, or seg.resize({read.hw})",
        )
    return read.pixels


def _check_opacity(opacity: float) -> None:
    if not 0 <= opacity <= 1:
        raise InputError("opacity must lie in [0, 1]", got=opacity, remedy="use 0.5")


def _painted(
    pixels: UInt8[np.ndarray, "h w 3"],
    labels: Int[np.ndarray, "h w"],
    seg: Segmentation,
    opacity: float,
    contours: bool,
) -> UInt8[np.ndarray, "h w 3"]:
    _check_opacity(opacity)
    undecided = labels == seg.ignore
    palette = np.concatenate([name_palette(seg.names), [UNDECIDED]]).astype(np.uint8)
    colors = palette[np.where(undecided, len(seg.names), labels)]
    # Labels alone (opacity 1) show undecided pixels grey; over an image they stay untouched.
    alpha = np.where(undecided & (opacity < 1), 0, round(opacity * 255)).astype(np.uint16)[
        ..., None
    ]
    mixed = ((pixels * (255 - alpha) + colors * alpha + 127) // 255).astype(np.uint8)
    if contours:
        _outline(mixed, colors, labels)
    return mixed


def _outline(
    mixed: UInt8[np.ndarray, "h w 3"],
    colors: UInt8[np.ndarray, "h w 3"],
    labels: Int[np.ndarray, "h w"],
) -> None:
    """Draw a line along both sides of every border, in place.

    Each side in a light tone of its own colour: a white line would swallow poles and other thin
    things whole.
    """
    border = np.zeros(labels.shape, dtype=bool)
    for away in range(1, 1 + max(1, round(max(labels.shape) / 700))):
        upright = labels[away:] != labels[:-away]
        level = labels[:, away:] != labels[:, :-away]
        border[away:] |= upright
        border[:-away] |= upright
        border[:, away:] |= level
        border[:, :-away] |= level
    mixed[border] = (colors[border].astype(np.uint16) + 255) // 2


def _resized(pixels: UInt8[np.ndarray, "h w 3"], hw: tuple[int, int]) -> UInt8[np.ndarray, "H W 3"]:
    if pixels.shape[:2] == hw:
        return pixels
    picture = PIL.Image.fromarray(pixels)
    return np.array(picture.resize((hw[1], hw[0]), PIL.Image.Resampling.BICUBIC))


def _scaled_to(pixels: UInt8[np.ndarray, "h w 3"], height: int) -> PIL.Image.Image:
    width = max(1, round(pixels.shape[1] * height / pixels.shape[0]))
    return PIL.Image.fromarray(_resized(pixels, (height, width)))


def _display_hw(hw: tuple[int, int], most: int = _MAX_SIDE) -> tuple[int, int]:
    longer = max(hw)
    if longer < _MIN_SIDE:
        factor = -(-_MIN_SIDE // longer)
        return hw[0] * factor, hw[1] * factor
    scale = min(1.0, most / longer)
    return max(1, round(hw[0] * scale)), max(1, round(hw[1] * scale))


def _colorbar(height: int, low: float, high: float, letters: Font, size: int) -> PIL.Image.Image:
    ticks = [(high, 0.0), ((low + high) / 2, 0.5), (low, 1.0)]
    texts = [f"{value:.3g}" for value, _ in ticks]
    width = size + size // 2 + round(max(letters.getlength(text) for text in texts))
    picture = PIL.Image.new("RGB", (width, height), PAPER)
    levels = np.broadcast_to(np.linspace(1, 0, height)[:, None], (height, size))
    picture.paste(PIL.Image.fromarray(heat_colors(levels)), (0, 0))
    draw = PIL.ImageDraw.Draw(picture)
    for (_, place), text in zip(ticks, texts, strict=True):
        y = min(height - 1 - size // 2, max(size // 2, round(place * height)))
        draw.text((size + size // 2, y), text, font=letters, fill=(32, 33, 36), anchor="lm")
    return picture


def _abreast(
    pictures: Sequence[PIL.Image.Image], *, margin: int, outside: int | None = None
) -> PIL.Image.Image:
    """Put pictures beside each other on white paper, aligned at the top."""
    edge = margin if outside is None else outside
    width = sum(picture.width for picture in pictures) + margin * (len(pictures) - 1)
    height = max(picture.height for picture in pictures)
    paper = PIL.Image.new("RGB", (width + 2 * edge, height + 2 * edge), PAPER)
    places = itertools.accumulate((picture.width + margin for picture in pictures), initial=edge)
    for picture, x in zip(pictures, places, strict=False):
        paper.paste(picture, (x, edge))
    return paper


def _stacked(pictures: Sequence[PIL.Image.Image], *, margin: int) -> PIL.Image.Image:
    """Put pictures below each other on white paper, aligned at the left."""
    width = max(picture.width for picture in pictures)
    height = sum(picture.height for picture in pictures) + margin * (len(pictures) - 1)
    paper = PIL.Image.new("RGB", (width + 2 * margin, height + 2 * margin), PAPER)
    places = itertools.accumulate((picture.height + margin for picture in pictures), initial=margin)
    for picture, y in zip(pictures, places, strict=False):
        paper.paste(picture, (margin, y))
    return paper
