"""The twelve things of the world, each a handful of signed distances painted in order.

A thing is drawn in its own frame: x to the right, y down, its body within [-1, 1]. The same code
gives the exact silhouette (distances alone) and the picture (colour, relief, rim): a mask can
therefore never disagree with its image. The whole silhouette is the thing, also the parts that do
not take its colour (trunk, wheels, stem).
"""

from collections.abc import Callable

import numpy as np

from diffuseg.world.brush import Brush, disc, is_dark, oval, polygon, slab

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

_BARK = np.array([0.44, 0.31, 0.21])
_STEM = np.array([0.30, 0.46, 0.20])
_CREAM = np.array([0.93, 0.88, 0.78])
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
            _BARK,
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


def _tree(brush: Brush, color: np.ndarray, look: tuple[float, ...]) -> None:
    u, v = brush.u, brush.v
    girth = 0.10 + 0.05 * look[3]
    brush.part(
        polygon(
            u,
            v,
            [
                (-girth * 0.8, 0.1),
                (girth * 0.8, 0.1),
                (girth * 1.35, 0.96),
                (-girth * 1.35, 0.96),
            ],
        ),
        _BARK,
        bevel=0.12,
        gloss=0.0,
    )
    if look[0] < 0.4:
        wide = 0.58 + 0.10 * look[1]
        for top, foot, half in (
            (-0.1, 0.58, wide),
            (-0.52, 0.20, wide * 0.82),
            (-0.97, -0.22, wide * 0.62),
        ):
            brush.part(
                polygon(u, v, [(0.0, top - 0.12), (half, foot), (-half, foot)]),
                color,
                bevel=0.22,
                gloss=0.05,
            )
        return
    spread = 0.36 + 0.06 * look[1]
    crown = [
        (-spread, -0.02, 0.38),
        (spread, 0.0, 0.37),
        (-0.26, -0.44, 0.38),
        (0.27, -0.46, 0.36),
        (0.0, -0.12 - 0.1 * look[2], 0.44),
    ]
    whole = np.full(u.shape, 1e9)
    for x, y, r in crown:
        whole = np.minimum(whole, disc(u - x, v - y, r))
    brush.part(whole, color, bevel=0.30, gloss=0.08)
    for x, y, r in crown[2:]:
        arc = np.maximum(np.abs(disc(u - x, v - y, r * 0.72)) - 0.022, (v - y) * -1.0 + 0.05)
        brush.flat(arc, color * 0.62 if not is_dark(color) else color + 0.16)


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


def _fish(brush: Brush, color: np.ndarray, look: tuple[float, ...]) -> None:
    u, v = brush.u, brush.v
    tall = 0.40 + 0.14 * look[0]
    fin = np.minimum(color * 0.68, 1.0) if not is_dark(color) else color + 0.10
    notch = 0.62 + 0.08 * look[1]
    tail = np.maximum(
        polygon(u, v, [(-0.35, 0.0), (-0.98, -0.52), (-0.98, 0.52)]),
        -disc(u + 0.98 + notch * 0.2, v, 0.24),
    )
    brush.part(tail, fin, bevel=0.12, gloss=0.1)
    back = [(-0.30, -tall * 0.7), (0.02, -tall - 0.26), (0.34, -tall * 0.6), (0.0, 0.0)]
    brush.part(polygon(u, v, back), fin, bevel=0.12, gloss=0.1)
    brush.part(
        polygon(u, v, [(0.0, tall * 0.6), (0.26, tall * 0.7), (-0.04, tall + 0.2)]),
        fin,
        bevel=0.1,
        gloss=0.1,
    )
    body = np.maximum(
        disc(u - 0.22, v - (1.0 - tall), np.sqrt(0.74**2 + (1.0 - tall) ** 2)),
        disc(u - 0.22, v + (1.0 - tall), np.sqrt(0.74**2 + (1.0 - tall) ** 2)),
    )
    brush.part(body, color, bevel=0.42, gloss=0.45)
    mark = color * 0.55 if not is_dark(color) else color + 0.18
    gill = np.maximum(
        np.abs(disc(u - 0.66, v, 0.36)) - 0.022,
        np.maximum(u - 0.55, np.abs(v) - tall * 0.6),
    )
    brush.flat(gill, mark)
    if look[2] > 0.5:
        for x in (-0.12, 0.08):
            band = np.maximum(np.abs(u - x) - 0.05, body + 0.07)
            brush.flat(
                band,
                np.minimum(color * 0.5 + 0.42, 1.0) if color.mean() < 0.6 else mark,
            )
    brush.flat(disc(u - 0.62, v + 0.10, 0.085), np.array([0.97, 0.97, 0.95]))
    brush.flat(disc(u - 0.635, v + 0.10, 0.045), np.array([0.05, 0.05, 0.06]))


def _flower(brush: Brush, color: np.ndarray, look: tuple[float, ...]) -> None:
    u, v = brush.u, brush.v
    n = 5 + int(look[0] * 3.999)
    head = -0.34
    brush.part(
        slab(u - 0.05 * (v - 0.2), v - 0.45, 0.05, 0.51, 0.04),
        _STEM,
        bevel=0.06,
        gloss=0.0,
    )
    for side in (-1.0, 1.0):
        x, y = (
            (u - side * 0.26) * 0.8 + side * (v - 0.56) * 0.6,
            (v - 0.56) * 0.8 - side * (u - side * 0.26) * 0.6,
        )
        brush.part(oval(x, y, 0.30, 0.11), _STEM * 1.1, bevel=0.10, gloss=0.0)
    y = v - head
    turn, r = np.arctan2(u, -y), np.sqrt(u * u + y * y)
    sector = 2.0 * np.pi / n
    folded = turn - sector * np.floor(turn / sector + 0.5)
    x, z = r * np.sin(folded), r * np.cos(folded)
    half = min(0.24, 0.40 * np.sin(np.pi / n) * 1.02) + 0.03 * look[1]
    petal = oval(x, z - 0.37, half, 0.27)
    brush.part(petal, color, bevel=0.20, gloss=0.1)
    heart = np.array([0.96, 0.80, 0.22])
    if color[0] > 0.8 and color[1] > 0.4 and color[2] < 0.5:
        heart = np.array([0.38, 0.22, 0.12])
    brush.part(disc(u, y, 0.17 + 0.05 * look[2]), heart, bevel=0.18, gloss=0.1)


def _mushroom(brush: Brush, color: np.ndarray, look: tuple[float, ...]) -> None:
    u, v = brush.u, brush.v
    girth = 0.22 + 0.08 * look[0]
    brim = 0.10 + 0.08 * look[1]
    brush.part(
        polygon(
            u,
            v,
            [(-girth, 0.0), (girth, 0.0), (girth * 1.25, 0.92), (-girth * 1.25, 0.92)],
        )
        - 0.03,
        _CREAM,
        bevel=0.28,
        gloss=0.0,
    )
    brush.flat(
        np.maximum(oval(u, v - brim, girth * 1.7, 0.13), slab(u, v - 0.5, girth, 0.5)),
        _CREAM * 0.62,
    )
    dome = np.maximum(
        oval(u, v - brim, 0.94, 0.98 + 0.04 * look[2]),
        oval(u, v + 0.42, 1.5, brim + 0.50),
    )
    brush.part(dome, color, bevel=0.45, gloss=0.3)
    spot = np.array([0.96, 0.95, 0.92]) if color.mean() < 0.88 else np.array([0.66, 0.60, 0.56])
    for x, y, r in (
        (-0.46, -0.20, 0.13),
        (0.02, -0.52, 0.14),
        (0.44, -0.22, 0.15),
        (-0.06, -0.14, 0.10),
    ):
        brush.flat(oval(u - x - 0.1 * (look[3] - 0.5), v - y, r, r * 0.86), spot)


DRAW: dict[str, Callable[[Brush, np.ndarray, tuple[float, ...]], None]] = {
    "ball": _ball,
    "box": _box,
    "tent": _tent,
    "star": _star,
    "ring": _ring,
    "moon": _moon,
    "house": _house,
    "tree": _tree,
    "car": _car,
    "fish": _fish,
    "flower": _flower,
    "mushroom": _mushroom,
}
