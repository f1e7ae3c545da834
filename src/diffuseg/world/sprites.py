"""Things placed on a canvas: pose, shade of colour, and the stamp they leave on an image."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from diffuseg.world.brush import Brush
from diffuseg.world.shapes import DRAW
from diffuseg.world.textures import Grid, Light

COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "white", "black")

UPRIGHT = frozenset({"tent", "house", "tree", "car", "flower", "mushroom"})

_PAINT = {
    "red": (0.86, 0.09, 0.10),
    "orange": (0.98, 0.50, 0.04),
    "yellow": (0.98, 0.87, 0.10),
    "green": (0.08, 0.62, 0.20),
    "blue": (0.10, 0.24, 0.86),
    "purple": (0.55, 0.13, 0.72),
    "white": (0.96, 0.96, 0.95),
    "black": (0.085, 0.085, 0.095),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Sprite:
    """One thing as placed on the canvas.

    Args:
        kind: One of `THINGS`.
        color: One of `COLORS`.
        tint: Three draws in [0, 1] that move the colour within its name.
        y: Row of the centre, canvas units (the image's shorter side is 256).
        x: Column of the centre, canvas units.
        size: Diameter, canvas units.
        angle: Rotation in turns.
        mirror: Whether left and right are swapped.
        stretch: Width over height, about 1.
        look: Four draws in [0, 1] that choose the variant (points, petals, roof, ...).
    """

    kind: str
    color: str
    tint: tuple[float, float, float]
    y: float
    x: float
    size: float
    angle: float
    mirror: bool
    stretch: float
    look: tuple[float, float, float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stamp:
    """A painted thing on the rectangle of the image it may touch.

    Args:
        top: First row of the rectangle in the image.
        left: First column.
        distance: Signed distance to the silhouette in canvas units, negative inside.
        cover: Share of each pixel the thing covers.
        rgb: Its picture, meaningful where `cover` is positive.
    """

    top: int
    left: int
    distance: Float[np.ndarray, "h w"]
    cover: Float[np.ndarray, "h w"]
    rgb: Float[np.ndarray, "h w 3"]

    @property
    def inside(self) -> Bool[np.ndarray, "h w"]:
        """Pixels at least half covered: those whose centre lies in the silhouette."""
        return self.distance <= 0.0


def stamp(sprite: Sprite, grid: Grid, light: Light | None = None) -> Stamp | None:
    """Draw a sprite on the part of a grid it may touch, or only its silhouette without a light.

    Args:
        sprite: What to draw and where.
        grid: The image's pixel centres.
        light: The scene's light; None leaves `rgb` black and is several times faster.

    Returns:
        The stamp, or None when the sprite is wholly outside the grid.

    Example:
        >>> ball = Sprite(kind="ball", color="red", tint=(0.5, 0.5, 0.5), y=128.0, x=128.0,
        ...               size=100.0, angle=0.0, mirror=False, stretch=1.0, look=(0, 0, 0, 0))
        >>> drawn = stamp(ball, Grid.of((64, 64)))
        >>> int(drawn.inside.sum())
        408
    """
    radius = sprite.size / 2.0
    reach = radius * 1.55 + 3.0 * grid.step
    top, bottom = np.searchsorted(grid.y, [sprite.y - reach, sprite.y + reach])
    left, right = np.searchsorted(grid.x, [sprite.x - reach, sprite.x + reach])
    if bottom - top < 2 or right - left < 2:
        return None
    y = (grid.y[top:bottom, None] - sprite.y) / radius
    x = (grid.x[None, left:right] - sprite.x) / radius
    cos, sin = np.cos(2.0 * np.pi * sprite.angle), np.sin(2.0 * np.pi * sprite.angle)
    u, v = x * cos + y * sin, y * cos - x * sin
    if sprite.mirror:
        u = -u
    wide = np.sqrt(sprite.stretch)
    brush = Brush(u / wide, v * wide, radius, grid.step, light)
    DRAW[sprite.kind](brush, _shade_of(sprite), sprite.look)
    # Where parts meet, pixels outside both can add up to more than half: the mask decides.
    cover = np.where(brush.distance > 0.0, np.minimum(brush.cover, 0.499), brush.cover)
    return Stamp(
        top=int(top),
        left=int(left),
        distance=brush.distance,
        cover=cover,
        rgb=brush.rgb,
    )


def _shade_of(sprite: Sprite) -> np.ndarray:
    """The sprite's own shade of its colour."""
    base = np.array(_PAINT[sprite.color])
    a, b, c = (t - 0.5 for t in sprite.tint)
    if sprite.color == "white":
        return np.clip(base + np.array([a, b * 0.5, -a]) * 0.05 - abs(c) * 0.04, 0.0, 1.0)
    if sprite.color == "black":
        return np.clip(base + np.array([a, b, c]) * 0.05, 0.02, 1.0)
    turned = base + a * 0.10 * (np.roll(base, 1) - np.roll(base, 2))
    return np.clip((turned + 0.07 * np.abs(b)) * (1.0 + c * 0.24), 0.0, 1.0)
