"""The things of the world that grow: a tree, a fish, a flower and a mushroom.

Each is drawn as `shapes` says: its silhouette and its picture by the same code.
"""

import numpy as np

from diffuseg.world.brush import Brush, disc, is_dark, oval, polygon, slab

BARK = np.array([0.44, 0.31, 0.21])
_STEM = np.array([0.30, 0.46, 0.20])
_CREAM = np.array([0.93, 0.88, 0.78])


def draw_tree(brush: Brush, color: np.ndarray, look: tuple[float, ...]) -> None:
    """A fir of three tiers, or a crown of leaves, on a trunk."""
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
        BARK,
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


def draw_fish(brush: Brush, color: np.ndarray, look: tuple[float, ...]) -> None:
    """A fish from the side, plain or banded."""
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


def draw_flower(brush: Brush, color: np.ndarray, look: tuple[float, ...]) -> None:
    """A flower of five to eight petals on a stem with two leaves."""
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


def draw_mushroom(brush: Brush, color: np.ndarray, look: tuple[float, ...]) -> None:
    """A mushroom with a spotted dome."""
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
