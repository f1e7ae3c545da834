"""The brush things are drawn with: a union of signed distances, painted part by part."""

import numpy as np

from diffuseg.world.textures import Light


class Brush:
    """Collects the parts of one thing: their union of distances and, with a light, their paint.

    Args:
        u: Columns in the thing's own frame, its body within [-1, 1].
        v: Rows in the thing's own frame.
        radius: Half the thing's size in canvas units.
        step: Side of a pixel in canvas units.
        light: The scene's light, or None for the distances alone.

    Attributes:
        distance: Signed distance to the union of the parts, canvas units.
        cover: Share of each pixel painted so far.
        rgb: What is painted there.
    """

    def __init__(
        self,
        u: np.ndarray,
        v: np.ndarray,
        radius: float,
        step: float,
        light: Light | None,
    ) -> None:
        self.u, self.v = u, v
        self.light = light
        self._radius, self._step = radius, step
        self.distance = np.full(u.shape, 1e9)
        self.cover = np.zeros(u.shape)
        self.rgb = np.zeros((*u.shape, 3))

    def part(
        self,
        d: np.ndarray,
        color: np.ndarray,
        *,
        bevel: float = 0.22,
        gloss: float = 0.25,
        rim: bool = True,
    ) -> None:
        """Paint where a distance in the thing's own frame is negative, and count it to the thing.

        Args:
            d: Signed distance, or any function with its zero line; negative inside.
            color: Base colour.
            bevel: Width over which the edge is rounded, in radii of the thing.
            gloss: Strength of the highlight.
            rim: Whether the edge is drawn, dark, or pale for a dark thing: what makes black on
                water and white on snow readable.
        """
        d = d * self._radius
        self.distance = np.minimum(self.distance, d)
        light = self.light
        if light is None:
            return
        slope_y, slope_x = np.gradient(d, self._step)
        steep = np.sqrt(slope_y * slope_y + slope_x * slope_x)
        slope_y /= steep + 1e-6
        slope_x /= steep + 1e-6
        d = d / np.clip(steep, 0.5, 2.5)
        # The normal of a quarter round of width `bevel`; 0.92 keeps it from lying flat at the edge.
        lean = (1.0 - np.clip(-d / (bevel * self._radius), 0.0, 1.0)) * 0.92
        up = np.sqrt(1.0 - lean * lean)
        facing = (slope_y * light.y + slope_x * light.x) * lean + up * light.z
        lit = light.ambient + (1.28 - light.ambient) * np.maximum(facing, 0.0)
        shine = np.maximum(2.0 * up * facing - light.z, 0.0)
        shine *= shine
        shine *= shine
        shine = gloss * shine * shine
        glow = 0.05 * np.maximum(facing, 0.0)
        paint = color * lit[..., None] + (shine + glow)[..., None]
        if rim:
            dark = is_dark(color)
            edge = np.clip(1.0 + (d + 0.4) / 1.9, 0.0, 1.0) * (0.5 if dark else 0.55)
            line = np.full(3, 0.42) if dark else color * 0.25
            paint += (line - paint) * edge[..., None]
        self._over(np.clip(0.5 - d / self._step, 0.0, 1.0), paint)

    def flat(self, d: np.ndarray, color: np.ndarray) -> None:
        """Paint a detail without relief; `d` must be a distance and inside the silhouette."""
        if self.light is None:
            return
        shine = self.light.ambient + (1.1 - self.light.ambient) * self.light.z
        cover = np.clip(0.5 - d * self._radius / self._step, 0.0, 1.0)
        self._over(cover, color * shine)

    def tone(self, factor: np.ndarray) -> None:
        """Multiply what is painted so far."""
        if self.light is not None:
            self.rgb *= factor[..., None]

    def _over(self, cover: np.ndarray, paint: np.ndarray) -> None:
        # Both rgb are opaque colours of what they cover, so the share is that of "over".
        whole = cover + self.cover * (1.0 - cover)
        share = cover / np.maximum(whole, 1e-9)
        self.rgb += (paint - self.rgb) * share[..., None]
        self.cover = whole


def is_dark(color: np.ndarray) -> bool:
    """Whether details must be drawn paler than a colour, for none darker could be seen."""
    return bool(color.mean() < 0.2)


def disc(u: np.ndarray, v: np.ndarray, r: float) -> np.ndarray:
    """Distance to a disc of radius r."""
    return np.sqrt(u * u + v * v) - r


def oval(u: np.ndarray, v: np.ndarray, a: float, b: float) -> np.ndarray:
    """Distance to an ellipse to first order, exact on its border."""
    k = np.sqrt((u / a) ** 2 + (v / b) ** 2)
    g = np.sqrt((u / (a * a)) ** 2 + (v / (b * b)) ** 2)
    return np.where(k > 1e-6, k * (k - 1.0) / np.maximum(g, 1e-6), -min(a, b))


def slab(u: np.ndarray, v: np.ndarray, a: float, b: float, r: float = 0.0) -> np.ndarray:
    """A rectangle of half sides a and b with corners rounded by r."""
    x, y = np.abs(u) - (a - r), np.abs(v) - (b - r)
    outer = np.sqrt(np.maximum(x, 0.0) ** 2 + np.maximum(y, 0.0) ** 2)
    return outer + np.minimum(np.maximum(x, y), 0.0) - r


def polygon(u: np.ndarray, v: np.ndarray, corners: list[tuple[float, float]]) -> np.ndarray:
    """A convex polygon given clockwise as seen (x right, y down)."""
    d = np.full(u.shape, -1e9)
    for (x0, y0), (x1, y1) in zip(corners, corners[1:] + corners[:1], strict=True):
        ex, ey = x1 - x0, y1 - y0
        length = float(np.sqrt(ex * ex + ey * ey))
        d = np.maximum(d, ((u - x0) * ey - (v - y0) * ex) / length)
    return d
