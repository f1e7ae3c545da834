"""The twelve things of the world, each a handful of signed distances painted in order.

A thing is drawn in its own frame: x to the right, y down, its body within [-1, 1]. The same code
gives the exact silhouette (distances alone) and the picture (colour, relief, rim): a mask can
therefore never disagree with its image. The whole silhouette is the thing, also the parts that do
not take its colour (trunk, wheels, stem). What is made stands here, what grows in `growing`.
"""

from collections.abc import Callable

import numpy as np

from diffuseg.world.brush import Brush, disc, is_dark, oval, polygon, slab
from diffuseg.world.growing import BARK, draw_fish, draw_flower, draw_mushroom, draw_tree

THINGS = (
    "ball",
    "box",
    "tent",
    "star",
    "ring",
    "moon",
    "house",
    "tree",
    "car",
    "fish",
    "flower",
    "mushroom",
)

_RUBBER = np.array([0.13, 0.13, 0.15])
_GLASS = np.array([0.72, 0.86, 0.93])
_STEEL = np.array([0.74, 0.75, 0.77])


def _ball(brush: Brush, color: np.ndarray, look: tuple[float, ...]) -> None:
    u, v = brush.u, brush.v
    d = disc(u, v, 0.92)
    brush.part(d, color, bevel=0.92, gloss=0.75)
    pale = color.mean() < 0.5
    mark = color * 0.35 + (0.6 if pale else 0.0)
    width = 0.035 + 0.02 * look[1]
    if look[0] < 0.5:
        bow = 0.45 + 0.25 * look[2]
        for side in (-1.0, 1.0):
            seam = np.abs(disc(u - side * (bow + 0.75), v, 0.95)) - width
            brush.flat(np.maximum(seam, d + 0.07), mark)
    else:
        seam = np.minimum(
            np.abs(oval(u, v, 0.92, 0.30 + 0.2 * look[2])) - width,
            np.abs(oval(u, v, 0.34, 0.92)) - width,
        )
        brush.flat(np.maximum(seam, d + 0.07), mark)


def _box(brush: Brush, color: np.ndarray, look: tuple[float, ...]) -> None:
    u, v = brush.u, brush.v
    dx, dy = 0.30 + 0.20 * look[0], 0.26 + 0.18 * look[1]
    x0, y1 = -0.82, 0.80
    x1, y0 = 0.84 - dx, -0.80 + dy
    lid = [(x0, y0), (x0 + dx, y0 - dy), (x1 + dx, y0 - dy), (x1, y0)]
    side = [(x1, y0), (x1 + dx, y0 - dy), (x1 + dx, y1 - dy), (x1, y1)]
    front = [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]
    light = np.minimum(color * 1.05 + 0.16, 1.0)
    if is_dark(color):
        light = color + 0.24
    brush.part(polygon(u, v, side) - 0.01, color * 0.56, bevel=0.05, gloss=0.05)
    brush.part(polygon(u, v, lid) - 0.01, light, bevel=0.05, gloss=0.05)
    brush.part(polygon(u, v, front) - 0.01, color * 0.92, bevel=0.05, gloss=0.05)
    tape = color * 0.5 + (0.42 if color.mean() < 0.6 else 0.12)
    mid, half = (x0 + x1) / 2.0, 0.07 + 0.05 * look[2]
    brush.flat(
        polygon(
            u,
            v,
            [
                (mid - half, y0),
                (mid + half, y0),
                (mid + half, y0 + 0.4),
                (mid - half, y0 + 0.4),
            ],
        ),
        tape,
    )
    brush.flat(
        polygon(
            u,
            v,
            [
                (mid - half, y0),
                (mid - half + dx, y0 - dy + 0.02),
                (mid + half + dx, y0 - dy + 0.02),
                (mid + half, y0),
            ],
        ),
        tape,
    )


def _tent(brush: Brush, color: np.ndarray, look: tuple[float, ...]) -> None:
    u, v = brush.u, brush.v
    apex, depth = -0.35 + 0.15 * look[0], 0.50 + 0.2 * look[1]
    foot, top = 0.68, -0.66
    left, right = -0.95, 0.28
    back = [(apex, top), (apex + depth, top + 0.04), (0.95, foot - 0.10), (right, foot)]
    front = [(apex, top), (right, foot), (left, foot)]
    for tip in (-0.10, 0.10):
        brush.part(
            polygon(
                u,
                v,
                [
                    (apex + tip - 0.02, top - 0.17),
                    (apex + tip + 0.03, top - 0.17),
                    (apex - tip + 0.03, top + 0.1),
                    (apex - tip - 0.02, top + 0.1),
                ],
            ),
            BARK,
            bevel=0.03,
            gloss=0.0,
            rim=False,
        )
    brush.part(polygon(u, v, back), color * 0.66, bevel=0.12, gloss=0.05)
    brush.part(polygon(u, v, front), color, bevel=0.10, gloss=0.05)
    gap = 0.13 + 0.12 * look[2]
    low, high = foot - 0.03, top + 0.42
    mid = (left + right) / 2.0
    dark = color * 0.16 + 0.05
    brush.flat(
        polygon(u, v, [(apex, high), (mid + gap, low), (mid - gap, low)]),
        dark if not is_dark(color) else np.full(3, 0.36),
    )
    flap = np.minimum(color * 0.7 + 0.32, 1.0)
    brush.flat(polygon(u, v, [(apex, high), (mid - gap, low), (mid - gap * 2.1, low)]), flap)


def _star(brush: Brush, color: np.ndarray, look: tuple[float, ...]) -> None:
    u, v = brush.u, brush.v
    n = 5 if look[0] < 0.6 else 6 if look[0] < 0.8 else 4
    inner = {4: 0.38, 5: 0.40, 6: 0.50}[n] + 0.08 * look[1]
    turn = np.arctan2(u, -v)
    sector = 2.0 * np.pi / n
    folded = turn - sector * np.floor(turn / sector + 0.5)
    r = np.sqrt(u * u + v * v)
    side = np.abs(folded)
    x, y = r * np.sin(side), r * np.cos(side)
    ix, iy = inner * np.sin(sector / 2.0), inner * np.cos(sector / 2.0)
    ex, ey = ix, iy - 0.98
    length = np.sqrt(ex * ex + ey * ey)
    d = (ex * -(y - 0.98) + ey * x) / -length
    brush.part(d, color, bevel=0.16, gloss=0.2)
    if brush.light is not None:
        strength = 0.10 + 0.12 * look[2]
        brush.tone(1.0 + np.clip(folded * r * 14.0, -1.0, 1.0) * strength)


def _ring(brush: Brush, color: np.ndarray, look: tuple[float, ...]) -> None:
    u, v = brush.u, brush.v
    flat = 1.0 if look[0] < 0.4 else 0.62 + 0.3 * look[1]
    thick = (0.34 + 0.16 * look[2]) / 2.0
    middle = 0.95 - thick
    r = np.sqrt(u * u + (v / flat) ** 2)
    d = np.abs(r - middle) - thick
    brush.part(d * flat, color, bevel=thick, gloss=0.6)


def _moon(brush: Brush, color: np.ndarray, look: tuple[float, ...]) -> None:
    u, v = brush.u, brush.v
    shift, r = 0.46 + 0.16 * look[0], 0.72 + 0.08 * look[1]
    outer = disc(u, v, 0.95)
    d = np.maximum(outer, -disc(u - shift, v, r))
    brush.part(d, color, bevel=0.30, gloss=0.15)
    hole = color * 0.70 if not is_dark(color) else color + 0.16
    for x, y, size in ((-0.66, -0.12, 0.11), (-0.52, 0.36, 0.14), (-0.48, -0.52, 0.09)):
        brush.flat(
            disc(u - x - 0.05 * (look[2] - 0.5), v - y - 0.2 * (look[3] - 0.5), size),
            hole,
        )


def _house(brush: Brush, color: np.ndarray, look: tuple[float, ...]) -> None:
    u, v = brush.u, brush.v
    eaves = -0.12 - 0.16 * look[0]
    half = 0.66 + 0.10 * look[1]
    foot = 0.86
    roof = color * 0.45 + np.array([0.06, 0.03, 0.02])
    if is_dark(color):
        roof = color + 0.14
    if look[2] > 0.35:
        brush.part(
            slab(u - 0.42, v + 0.52, 0.11, 0.34),
            color * 0.5 + 0.14,
            bevel=0.05,
            gloss=0.0,
        )
    brush.part(
        slab(u, v - (foot + eaves) / 2.0, half, (foot - eaves) / 2.0),
        color,
        bevel=0.07,
        gloss=0.05,
    )
    brush.part(
        polygon(
            u,
            v,
            [(0.0, -0.95), (half + 0.22, eaves + 0.06), (-half - 0.22, eaves + 0.06)],
        ),
        roof,
        bevel=0.10,
        gloss=0.05,
    )
    door = color * 0.28 + 0.04 if not is_dark(color) else np.array([0.50, 0.48, 0.46])
    wall = (foot + eaves) / 2.0
    at = (-0.30, 0.30) if look[3] < 0.5 else (0.0, 0.0)
    brush.flat(slab(u - at[0], v - (foot - 0.27), 0.16, 0.27), door)
    panes = (at[1],) if at[1] else (-0.42, 0.42)
    for x in panes:
        brush.flat(slab(u - x, v - wall + 0.04, 0.17, 0.17), color * 0.3 + 0.05)
        brush.flat(slab(u - x, v - wall + 0.04, 0.13, 0.13), _GLASS)
        cross = np.minimum(np.abs(u - x), np.abs(v - wall + 0.04)) - 0.018
        brush.flat(
            np.maximum(cross, slab(u - x, v - wall + 0.04, 0.13, 0.13)),
            color * 0.3 + 0.05,
        )


def _car(brush: Brush, color: np.ndarray, look: tuple[float, ...]) -> None:
    u, v = brush.u, brush.v
    roof = -0.46 - 0.10 * look[0]
    belt = -0.06
    rear, front = -0.66 - 0.12 * look[1], 0.44 + 0.14 * look[2]
    cabin = [
        (rear + 0.20, roof),
        (front - 0.34, roof),
        (front + 0.06, belt + 0.06),
        (rear - 0.06, belt + 0.06),
    ]
    brush.part(polygon(u, v, cabin) - 0.03, color, bevel=0.14, gloss=0.2)
    brush.part(slab(u, v - 0.12, 0.97, 0.26, 0.14), color, bevel=0.20, gloss=0.5)
    mid = (rear + front) / 2.0 - 0.05
    for x0, x1, x2, x3 in (
        (rear + 0.24, mid - 0.04, mid - 0.04, rear + 0.06),
        (mid + 0.04, front - 0.38, front - 0.08, mid + 0.04),
    ):
        pane = [(x0, roof + 0.08), (x1, roof + 0.08), (x2, belt), (x3, belt)]
        brush.flat(polygon(u, v, pane), _GLASS)
    brush.flat(slab(u - 0.90, v - 0.02, 0.05, 0.06), np.array([1.0, 0.96, 0.72]))
    brush.flat(slab(u + 0.92, v - 0.02, 0.035, 0.06), np.array([0.75, 0.12, 0.10]))
    line = color * 0.5 if not is_dark(color) else color + 0.2
    brush.flat(slab(u - mid, v - 0.12, 0.014, 0.18), line)
    for x in (-0.55, 0.57):
        brush.part(disc(u - x, v - 0.36, 0.24), _RUBBER, bevel=0.08, gloss=0.1)
        brush.flat(disc(u - x, v - 0.36, 0.11), _STEEL)


DRAW: dict[str, Callable[[Brush, np.ndarray, tuple[float, ...]], None]] = {
    "ball": _ball,
    "box": _box,
    "tent": _tent,
    "star": _star,
    "ring": _ring,
    "moon": _moon,
    "house": _house,
    "tree": draw_tree,
    "car": _car,
    "fish": draw_fish,
    "flower": draw_flower,
    "mushroom": draw_mushroom,
}
