"""Stuff textures of the world: grass, sand, water, brick, snow and sky, painted from lattice noise.

Lengths are in canvas units: the shorter side of an image is 256 units whatever its pixels, so the
same scene looks the same at every size. All arithmetic is double, all random numbers are uniform
draws of one generator: images do not depend on the machine.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

STUFF = ("grass", "sand", "water", "brick", "snow", "sky")

_LATTICE = 128  # lattice points a side; noise repeats after this many cells


@dataclass(frozen=True, slots=True, kw_only=True)
class Light:
    """Where a scene's light comes from, and how strong it is.

    Args:
        y: Component towards the light along the rows (negative: from above).
        x: Component towards the light along the columns.
        z: Component towards the viewer.
        ambient: Brightness of what faces away from the light, 0 to 1.
    """

    y: float
    x: float
    z: float
    ambient: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """Pixel centres of an image in canvas units.

    Args:
        y: Row centres.
        x: Column centres.
        step: Side of a pixel.

    Example:
        >>> Grid.of((64, 128)).step
        4.0
    """

    y: Float[np.ndarray, " h"]
    x: Float[np.ndarray, " w"]
    step: float

    @classmethod
    def of(cls, hw: tuple[int, int]) -> "Grid":
        """The grid of a whole image of `hw` pixels."""
        step = 256.0 / min(hw)
        return cls(
            y=(np.arange(hw[0]) + 0.5) * step,
            x=(np.arange(hw[1]) + 0.5) * step,
            step=step,
        )

    def moved(self, y: float, x: float) -> "Grid":
        """The same pixels looking at a place further down and to the right."""
        return Grid(y=self.y + y, x=self.x + x, step=self.step)


def paint_stuff(
    name: str, rng: np.random.Generator, grid: Grid, light: Light
) -> Float[np.ndarray, "h w 3"]:
    """Paint one stuff texture over a whole grid, in [0, 1].

    Args:
        name: One of `STUFF`.
        rng: Source of the texture's look; the same state gives the same texture.
        grid: Where to paint.
        light: The scene's light.

    Example:
        >>> light = Light(y=-0.6, x=0.3, z=0.7, ambient=0.4)
        >>> paint_stuff("sand", np.random.default_rng(0), Grid.of((64, 96)), light).shape
        (64, 96, 3)
    """
    return _PAINTERS[name](rng, grid, light)


def _fade(t: np.ndarray) -> np.ndarray:
    return t * t * (3.0 - 2.0 * t)


def _noise(
    rng: np.random.Generator, grid: Grid, cell: tuple[float, float]
) -> Float[np.ndarray, "h w"]:
    """Smooth value noise in [0, 1] on the axes of a grid, `cell` units a lattice step."""
    lattice = rng.random((_LATTICE, _LATTICE))
    y = grid.y / cell[0] + rng.random() * _LATTICE
    x = grid.x / cell[1] + rng.random() * _LATTICE
    row, column = np.floor(y), np.floor(x)
    i, j = row.astype(np.int64), column.astype(np.int64)
    s, t = _fade(y - row)[:, None], _fade(x - column)[None, :]
    top, bottom = lattice[i % _LATTICE], lattice[(i + 1) % _LATTICE]
    rows = top + (bottom - top) * s
    left, right = rows[:, j % _LATTICE], rows[:, (j + 1) % _LATTICE]
    return left + (right - left) * t


def _noise_at(rng: np.random.Generator, y: np.ndarray, x: np.ndarray) -> Float[np.ndarray, "h w"]:
    """Smooth value noise in [0, 1] at arbitrary lattice coordinates."""
    lattice = rng.random((_LATTICE, _LATTICE)).ravel()
    row, column = np.floor(y), np.floor(x)
    s, t = _fade(y - row), _fade(x - column)
    i, j = row.astype(np.int64) % _LATTICE, column.astype(np.int64) % _LATTICE
    below, after = (i + 1) % _LATTICE * _LATTICE, (j + 1) % _LATTICE
    i *= _LATTICE
    top = lattice[i + j] * (1.0 - t) + lattice[i + after] * t
    bottom = lattice[below + j] * (1.0 - t) + lattice[below + after] * t
    return top + (bottom - top) * s


def _octaves(
    rng: np.random.Generator, grid: Grid, cell: tuple[float, float], n: int
) -> Float[np.ndarray, "h w"]:
    """Sum of `n` octaves of noise, each half as wide and half as strong, in [0, 1]."""
    total = np.zeros((grid.y.size, grid.x.size))
    weight, scale = 1.0, 1.0
    for _ in range(n):
        total += weight * _noise(rng, grid, (cell[0] * scale, cell[1] * scale))
        weight, scale = weight * 0.5, scale * 0.5
    return total / (2.0 - 2.0 * weight)


def _mix(low: np.ndarray, high: np.ndarray, t: np.ndarray) -> Float[np.ndarray, "h w 3"]:
    return low + (high - low) * t[..., None]


def _pick(rng: np.random.Generator, palette: list[list[float]], spread: float) -> np.ndarray:
    """A colour between two neighbours of a palette, each channel moved by up to `spread`."""
    i = int(rng.integers(len(palette)))
    j = int(rng.integers(len(palette)))
    colors = np.asarray(palette)
    t = rng.random()
    base = colors[i] * t + colors[j] * (1.0 - t)
    return np.clip(base + (rng.random(3) - 0.5) * 2.0 * spread, 0.0, 1.0)


def _relief(height: np.ndarray, grid: Grid, light: Light, strength: float) -> np.ndarray:
    """Brightness of a height field under the light, around 0."""
    slope_y, slope_x = np.gradient(height, grid.step)
    return -(slope_y * light.y + slope_x * light.x) * strength


def _grass(rng: np.random.Generator, grid: Grid, light: Light) -> np.ndarray:
    base = _pick(
        rng,
        [
            [0.36, 0.60, 0.18],
            [0.24, 0.50, 0.16],
            [0.47, 0.60, 0.20],
            [0.30, 0.56, 0.28],
        ],
        0.03,
    )
    y, x = grid.y[:, None], grid.x[None, :]
    patches = _octaves(rng, grid, (44.0, 60.0), 2)
    bend = (patches - 0.5) * 16.0
    lean = (rng.random(2) - 0.5) * 0.7
    width = 2.2 + rng.random(2) * 1.2
    length = 13.0 + rng.random(2) * 9.0
    left = _noise_at(rng, y / length[0] + bend * 0.1, (x + lean[0] * y + bend) / width[0])
    right = _noise_at(rng, y / length[1] - bend * 0.1, (x - (0.25 + lean[1]) * y + bend) / width[1])
    blades = np.maximum(left, right)
    shade = 0.52 + 0.62 * blades**1.5 + 0.34 * (patches - 0.5)
    tips = np.clip((blades - 0.74) * 3.2, 0.0, 1.0)
    out = base * shade[..., None]
    return _mix(out, np.minimum(base * 1.25 + [0.16, 0.15, 0.0], 1.0), tips * 0.6)


def _sand(rng: np.random.Generator, grid: Grid, light: Light) -> np.ndarray:
    base = _pick(
        rng,
        [
            [0.88, 0.76, 0.52],
            [0.80, 0.64, 0.42],
            [0.90, 0.82, 0.64],
            [0.78, 0.58, 0.40],
        ],
        0.025,
    )
    y, x = grid.y[:, None], grid.x[None, :]
    dunes = _octaves(rng, grid, (70.0, 90.0), 2)
    spacing = 9.0 + rng.random() * 6.0
    tilt = (rng.random() - 0.5) * 0.9
    phase = (y + tilt * x) / spacing + dunes * (4.0 + rng.random() * 3.0)
    saw = phase - np.floor(phase)
    ripple = np.where(saw < 0.7, saw / 0.7, (1.0 - saw) / 0.3)
    amount = 0.4 + 0.6 * _noise(rng, grid, (60.0, 60.0))
    grain = _noise(rng, grid, (1.3, 1.3)) - 0.5
    specks = np.clip((_noise(rng, grid, (2.0, 2.0)) - 0.86) * 7.0, 0.0, 1.0)
    shade = 1.0 + (_fade(ripple) - 0.6) * 0.22 * amount + (dunes - 0.5) * 0.2 + grain * 0.16
    return base * (shade - specks * 0.28)[..., None]


def _water(rng: np.random.Generator, grid: Grid, light: Light) -> np.ndarray:
    deep = _pick(rng, [[0.05, 0.26, 0.46], [0.04, 0.36, 0.46], [0.10, 0.30, 0.56]], 0.03)
    pale = np.minimum(deep * 0.6 + [0.30, 0.46, 0.46], 1.0)
    y, x = grid.y[:, None], grid.x[None, :]
    drift = _octaves(rng, grid, (36.0, 64.0), 2)
    sway = (drift - 0.5) * 2.4
    scale = 0.8 + rng.random() * 0.5
    long = _noise_at(rng, y / (6.0 * scale) + sway, x / (26.0 * scale) + sway)
    short = _noise_at(rng, y / (3.4 * scale) - sway, x / (13.0 * scale) + sway * 0.5)
    ridge = 1.0 - np.abs(2.0 * long - 1.0)
    fine = 1.0 - np.abs(2.0 * short - 1.0)
    wave = 0.62 * ridge + 0.38 * fine
    out = _mix(deep, pale, np.clip(wave * 0.95 - 0.22 + (drift - 0.5) * 0.5, 0.0, 1.0))
    glint = np.clip((ridge * fine - 0.72) * 4.5, 0.0, 1.0)
    return _mix(out, np.array([0.94, 0.98, 1.0]), glint * 0.85)


def _brick(rng: np.random.Generator, grid: Grid, light: Light) -> np.ndarray:
    base = _pick(
        rng,
        [
            [0.66, 0.30, 0.22],
            [0.56, 0.26, 0.20],
            [0.74, 0.46, 0.32],
            [0.60, 0.40, 0.34],
        ],
        0.03,
    )
    mortar = _pick(rng, [[0.80, 0.77, 0.72], [0.62, 0.59, 0.56]], 0.02)
    tall = 14.0 + rng.random() * 6.0
    wide = tall * (2.0 + rng.random() * 0.5)
    joint = 1.1 + rng.random() * 0.6
    wobble = _noise(rng, grid, (7.0, 7.0)) - 0.5
    y = grid.y[:, None] + wobble * 0.9 + rng.random() * tall
    row = np.floor(y / tall)
    x = grid.x[None, :] + wobble * 0.9 + (row % 2.0) * wide * 0.5 + rng.random() * wide
    column = np.floor(x / wide)
    down, along = y - row * tall, x - column * wide
    edge = np.minimum(np.minimum(down, tall - down), np.minimum(along, wide - along))
    solid = np.clip((edge - joint) / max(1.0, grid.step) + 0.5, 0.0, 1.0)
    tones = rng.random((3, 64, 64))
    i, j = row.astype(np.int64) % 64, column.astype(np.int64) % 64
    tone = tones[0][i, j]
    rough = _octaves(rng, grid, (5.0, 5.0), 2) - 0.5
    lit = np.clip(1.0 - np.abs(down - joint - 1.0) / 1.6, 0.0, 1.0) * 0.10
    dim = np.clip(1.0 - np.abs(tall - joint - 1.0 - down) / 1.8, 0.0, 1.0) * 0.14
    shade = 0.80 + tone * 0.36 + rough * 0.34 + lit - dim
    brick = base * shade[..., None]
    brick[..., 0] += (tones[1][i, j] - 0.5) * 0.07
    return _mix(mortar * (0.94 + rough * 0.3)[..., None], brick, solid)


def _snow(rng: np.random.Generator, grid: Grid, light: Light) -> np.ndarray:
    bright = _pick(rng, [[0.97, 0.98, 1.0], [0.95, 0.95, 0.96], [0.98, 0.95, 0.93]], 0.012)
    shadow = _pick(rng, [[0.62, 0.72, 0.88], [0.70, 0.74, 0.88], [0.66, 0.78, 0.90]], 0.02)
    height = _octaves(rng, grid, (52.0, 74.0), 3)
    lit = _relief(height, grid, light, 26.0) + 0.34 * (height - 0.5)
    out = _mix(shadow, bright, _fade(np.clip(0.66 + lit, 0.0, 1.0)))
    grain = _noise(rng, grid, (1.6, 1.6)) - 0.5
    dots = _noise(rng, grid, (3.0, 3.0))
    sparkle = np.clip((dots - 0.88) * 9.0, 0.0, 1.0)
    pits = np.clip((0.10 - dots) * 9.0, 0.0, 1.0)
    return out * (1.0 + grain * 0.05 + sparkle * 0.10 - pits * 0.16)[..., None]


def _sky(rng: np.random.Generator, grid: Grid, light: Light) -> np.ndarray:
    zenith, horizon = [
        ([0.20, 0.46, 0.86], [0.68, 0.84, 0.97]),
        ([0.34, 0.58, 0.88], [0.86, 0.92, 0.96]),
        ([0.30, 0.38, 0.66], [0.97, 0.74, 0.58]),
        ([0.48, 0.58, 0.68], [0.78, 0.83, 0.87]),
    ][int(rng.integers(4))]
    shift = (rng.random(3) - 0.5) * 0.06
    y = grid.y[:, None] / 256.0
    reach = 0.55 + 0.5 * rng.random()
    fall = np.clip(y / reach, 0.0, 1.0) + np.zeros((1, grid.x.size))
    blue = _mix(np.array(zenith) + shift, np.array(horizon) + shift, fall)
    puffs = _octaves(rng, grid, (34.0, 78.0), 4)
    cover = 0.46 + 0.14 * rng.random()
    cloud = _fade(np.clip((puffs - cover) * 4.0, 0.0, 1.0))
    belly = _fade(np.clip((puffs - cover - 0.08) * 3.0, 0.0, 1.0))
    white = np.array([0.99, 0.98, 0.97]) * (1.0 - belly * 0.07)[..., None]
    return blue + (white - blue) * (cloud * 0.88)[..., None]


_PAINTERS: dict[str, Callable[[np.random.Generator, Grid, Light], np.ndarray]] = {
    "grass": _grass,
    "sand": _sand,
    "water": _water,
    "brick": _brick,
    "snow": _snow,
    "sky": _sky,
}
