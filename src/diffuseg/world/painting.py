"""Layouts turned into pixels: picture, class labels and instances in one pass."""

import numpy as np
from jaxtyping import Float, UInt8

from diffuseg.world.composition import Layout, boundary_side, whole_area
from diffuseg.world.shapes import THINGS
from diffuseg.world.sprites import Sprite, Stamp, stamp
from diffuseg.world.textures import STUFF, Grid, paint_stuff

CLASSES: tuple[str, ...] = (*THINGS, *STUFF)
"""Class names in index order: label i of a scene is `CLASSES[i]`."""


def paint_layout(
    layout: Layout, grid: Grid
) -> tuple[
    UInt8[np.ndarray, "h w 3"],
    UInt8[np.ndarray, "h w"],
    UInt8[np.ndarray, "h w"],
    list[int],
]:
    """Paint a layout: picture, class labels, instances, and the pixel area of each whole thing.

    Args:
        layout: What to paint.
        grid: Where; the layout's canvas or a part of it.
    """
    canvas, labels = paint_regions(layout, grid)
    instances = np.zeros(labels.shape, dtype=np.uint8)
    in_sky = labels == CLASSES.index("sky")
    whole: list[int] = []
    for i, sprite in enumerate(layout.sprites):
        drawn = stamp(sprite, grid, layout.light)
        whole.append(whole_area(sprite, grid))
        if drawn is None:
            continue
        _cast_shadow(canvas, in_sky, drawn, sprite, layout, grid)
        h, w = drawn.cover.shape
        window = np.s_[drawn.top : drawn.top + h, drawn.left : drawn.left + w]
        canvas[window] += (drawn.rgb - canvas[window]) * drawn.cover[..., None]
        inside = drawn.inside
        labels[window][inside] = CLASSES.index(sprite.kind)
        instances[window][inside] = i + 1
        in_sky[window][inside] = False
    return finish(canvas, layout), labels, instances, whole


def paint_regions(
    layout: Layout, grid: Grid
) -> tuple[Float[np.ndarray, "h w 3"], UInt8[np.ndarray, "h w"]]:
    """Paint the stuff of a layout: picture in [0, 1] and class labels."""
    pictures = [
        paint_stuff(name, np.random.Generator(np.random.PCG64(seed)), grid, layout.light)
        for name, seed in zip(layout.stuff, layout.stuff_seeds, strict=True)
    ]
    first = CLASSES.index(layout.stuff[0])
    labels = np.full((grid.y.size, grid.x.size), first, dtype=np.uint8)
    if len(pictures) == 1:
        return pictures[0], labels
    side = boundary_side(layout, grid)
    share = np.clip(0.5 + side / max(grid.step, 1.0), 0.0, 1.0)
    crease = 1.0 - 0.22 * np.clip(1.0 - np.abs(side) / 2.2, 0.0, 1.0)
    canvas = pictures[0] + (pictures[1] - pictures[0]) * share[..., None]
    labels[side >= 0.0] = CLASSES.index(layout.stuff[1])
    return canvas * crease[..., None], labels


def finish(canvas: Float[np.ndarray, "h w 3"], layout: Layout) -> UInt8[np.ndarray, "h w 3"]:
    """Apply a layout's exposure and contrast and quantise."""
    *gain, contrast = layout.tone
    toned = (canvas * np.array(gain) - 0.5) * contrast + 0.5
    return np.floor(np.clip(toned, 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8)


def _cast_shadow(
    canvas: np.ndarray,
    in_sky: np.ndarray,
    drawn: Stamp,
    sprite: Sprite,
    layout: Layout,
    grid: Grid,
) -> None:
    """Darken what lies behind a thing; the sky takes no shadow."""
    down, right, strength = layout.shadow
    dy, dx = (round(part * sprite.size / grid.step) for part in (down, right))
    h, w = drawn.distance.shape
    top, left = drawn.top + dy, drawn.left + dx
    y0, x0 = max(top, 0), max(left, 0)
    y1, x1 = min(top + h, canvas.shape[0]), min(left + w, canvas.shape[1])
    if y1 <= y0 or x1 <= x0:
        return
    d = drawn.distance[y0 - top : y1 - top, x0 - left : x1 - left]
    soft = 0.07 * sprite.size
    dark = np.clip(0.5 - d / soft, 0.0, 1.0)
    dark = dark * dark * (3.0 - 2.0 * dark) * strength * ~in_sky[y0:y1, x0:x1]
    canvas[y0:y1, x0:x1] *= (1.0 - dark)[..., None]
