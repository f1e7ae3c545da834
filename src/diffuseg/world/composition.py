"""Layouts: what a scene is made of and where, drawn at random, before it has pixels."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from diffuseg.world.shapes import THINGS
from diffuseg.world.sprites import COLORS, UPRIGHT, Sprite, stamp
from diffuseg.world.textures import STUFF, Grid, Light

HELD_OUT_PAIRS: frozenset[tuple[str, str]] = frozenset(
    {
        ("orange", "ball"),
        ("blue", "box"),
        ("black", "tent"),
        ("green", "star"),
        ("purple", "ring"),
        ("red", "moon"),
        ("yellow", "house"),
        ("white", "tree"),
        ("orange", "car"),
        ("black", "fish"),
        ("blue", "flower"),
        ("green", "mushroom"),
    }
)
"""(colour, kind) pairs that occur in val and test but never in train."""

_COARSE_STEP = 2.0  # canvas units a sample when a layout's visibility is judged
_MIN_VISIBLE = 0.42  # on the coarse grid; the exact share then stays above 0.35
_MIN_AREA = 330.0  # visible canvas units squared on the coarse grid
_MIN_STUFF = 0.06  # share of the canvas every region keeps


def is_held_out(color: str, kind: str) -> bool:
    """Whether no training scene has a thing of this kind in this colour.

    Example:
        >>> is_held_out("blue", "flower"), is_held_out("red", "car")
        (True, False)
    """
    return (color, kind) in HELD_OUT_PAIRS


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Everything that determines a scene before it has pixels.

    Args:
        stuff: One or two region names; the second lies where `boundary` is positive.
        boundary: (row, column, angle in turns, bend, waves) of the line between two regions.
        stuff_seeds: One seed a region.
        sprites: The things, far to near.
        light: The scene's light.
        shadow: (rows, columns, strength) of cast shadows, relative to a thing's size.
        tone: Gain of the three channels, and contrast.
        hw: Canvas in units.
    """

    stuff: tuple[str, ...]
    boundary: tuple[float, float, float, float, float]
    stuff_seeds: tuple[int, ...]
    sprites: tuple[Sprite, ...]
    light: Light
    shadow: tuple[float, float, float]
    tone: tuple[float, float, float, float]
    hw: tuple[float, float]


def sample_layout(
    rng: np.random.Generator, canvas: tuple[float, float], *, held_out: bool
) -> Layout:
    """Draw a layout in which every thing and every region can be seen.

    Args:
        rng: Source of all choices.
        canvas: Height and width in canvas units.
        held_out: Whether pairs of `HELD_OUT_PAIRS` may occur.
    """
    while True:
        stuff = _sample_stuff(rng)
        boundary = _sample_boundary(rng, stuff, canvas)
        light = sample_light(rng)
        n = int(np.searchsorted([0.28, 0.68, 0.94], rng.random(), side="right")) + 1
        kinds = [THINGS[int(i)] for i in rng.permutation(len(THINGS))[:n]]
        sprites = [sample_sprite(rng, kind, canvas, n, held_out=held_out) for kind in kinds]
        sprites.sort(key=lambda s: s.y + 0.35 * s.size)
        shade = 0.10 + 0.10 * rng.random()
        slide = shade if light.x < 0 else -shade
        stuff_seeds = tuple(int(i) for i in rng.integers(2**31, size=len(stuff)))
        strength = 0.25 + 0.3 * rng.random()
        red, green, blue = (0.92 + 0.14 * gain for gain in _tone(rng))
        contrast = 0.88 + 0.22 * rng.random()
        layout = Layout(
            stuff=stuff,
            boundary=boundary,
            stuff_seeds=stuff_seeds,
            sprites=tuple(sprites),
            light=light,
            shadow=(_round(shade * 0.8), _round(slide), _round(strength)),
            tone=(_round(red), _round(green), _round(blue), _round(contrast)),
            hw=canvas,
        )
        if _can_be_seen(layout):
            return layout


def sample_light(rng: np.random.Generator) -> Light:
    """Draw a light from above, left or right."""
    turn = (rng.random() - 0.5) * 0.42 * 2.0 * np.pi
    height = 0.60 + 0.22 * rng.random()
    flat = float(np.sqrt(1.0 - height * height))
    return Light(
        y=_round(-flat * np.cos(turn)),
        x=_round(flat * np.sin(turn)),
        z=_round(height),
        ambient=_round(0.34 + 0.16 * rng.random()),
    )


def sample_sprite(
    rng: np.random.Generator,
    kind: str,
    canvas: tuple[float, float],
    n: int,
    *,
    held_out: bool,
) -> Sprite:
    """Draw colour, place, size and pose of one thing of `n`."""
    colors = [c for c in COLORS if held_out or not is_held_out(c, kind)]
    color = colors[int(rng.integers(len(colors)))]
    largest = (150.0, 128.0, 112.0, 96.0)[n - 1]
    size = 58.0 + (largest - 58.0) * rng.random()
    margin = size * 0.34
    turn = rng.random() - 0.5
    return Sprite(
        kind=kind,
        color=color,
        tint=(_round(rng.random()), _round(rng.random()), _round(rng.random())),
        y=_round(margin + (canvas[0] - 2.0 * margin) * rng.random()),
        x=_round(margin + (canvas[1] - 2.0 * margin) * rng.random()),
        size=_round(size),
        angle=_round(turn * (2.0 * 15.0 / 360.0 if kind in UPRIGHT else 1.0)),
        mirror=bool(rng.random() < 0.5),
        stretch=_round(0.86 + 0.30 * rng.random()),
        look=(
            _round(rng.random()),
            _round(rng.random()),
            _round(rng.random()),
            _round(rng.random()),
        ),
    )


def boundary_side(layout: Layout, grid: Grid) -> Float[np.ndarray, "h w"]:
    """About the distance to the boundary in canvas units, positive in the second region."""
    row, column, turn, bend, waves = layout.boundary
    cos, sin = np.cos(2.0 * np.pi * turn), np.sin(2.0 * np.pi * turn)
    y, x = grid.y[:, None] - row, grid.x[None, :] - column
    across, along = y * cos - x * sin, y * sin + x * cos
    return across + bend * along * along + waves * np.sin(along * 0.045)


def whole_area(sprite: Sprite, grid: Grid) -> int:
    """Pixels of the uncut silhouette, also beyond the border."""
    reach = sprite.size * 0.8 + 2.0 * grid.step
    below, after = (int(np.ceil(reach / grid.step)) + 1 for _ in range(2))
    row = int(np.floor(sprite.y / grid.step))
    column = int(np.floor(sprite.x / grid.step))
    whole = Grid(
        y=(np.arange(row - below, row + below + 1) + 0.5) * grid.step,
        x=(np.arange(column - after, column + after + 1) + 0.5) * grid.step,
        step=grid.step,
    )
    drawn = stamp(sprite, whole)
    return 0 if drawn is None else int(drawn.inside.sum())


def _round(value: float) -> float:
    return round(float(value), 4)


def _tone(rng: np.random.Generator) -> tuple[float, float, float]:
    bright, warm = rng.random(), rng.random() - 0.5
    return bright + 0.3 * warm, bright, bright - 0.3 * warm


def _sample_stuff(rng: np.random.Generator) -> tuple[str, ...]:
    ground = [name for name in STUFF if name != "sky"]
    draw = rng.random()
    if draw < 0.40:
        return (STUFF[int(rng.integers(len(STUFF)))],)
    if draw < 0.66:
        return ("sky", ground[int(rng.integers(len(ground)))])
    first, second = rng.permutation(len(ground))[:2]
    return (ground[int(first)], ground[int(second)])


def _sample_boundary(
    rng: np.random.Generator, stuff: tuple[str, ...], canvas: tuple[float, float]
) -> tuple[float, float, float, float, float]:
    """Row, column, angle (0: the second region below), bend and waviness of the boundary."""
    place = 0.28 + 0.44 * rng.random(2)
    tilt = (rng.random() - 0.5) * 0.10
    upright = rng.random() < 0.35 and stuff[0] != "sky"
    turn = tilt * (0.9 if stuff[0] == "sky" else 1.6) + (0.25 if upright else 0.0)
    if stuff[0] != "sky" and rng.random() < 0.25:
        turn = rng.random()
    if stuff[-1] == "brick" and stuff[0] == "sky":
        turn = 0.0
    bend = (rng.random() - 0.5) * 0.0022
    waves = rng.random() ** 2 * 5.0
    return (
        _round(place[0] * canvas[0]),
        _round(place[1] * canvas[1]),
        _round(turn),
        round(float(bend if turn else 0.0), 6),
        _round(waves if turn else 0.0),
    )


def _can_be_seen(layout: Layout) -> bool:
    """Whether every thing and region keeps enough of itself, judged on a coarse grid."""
    step = _COARSE_STEP
    grid = Grid(
        y=np.arange(step / 2.0, layout.hw[0], step),
        x=np.arange(step / 2.0, layout.hw[1], step),
        step=step,
    )
    owner = np.full((grid.y.size, grid.x.size), -1, dtype=np.int64)
    if len(layout.stuff) == 2:
        owner[boundary_side(layout, grid) >= 0.0] = -2
    sky = 0 if layout.stuff[0] == "sky" else None
    for i, sprite in enumerate(layout.sprites):
        if sky is not None and len(layout.stuff) == 2 and sprite.kind in UPRIGHT:
            foot_y = min(sprite.y + 0.4 * sprite.size, layout.hw[0] - step)
            row = int(foot_y / step)
            column = int(np.clip(sprite.x / step, 0, grid.x.size - 1))
            if owner[row, column] == -1:
                return False
        drawn = stamp(sprite, grid)
        if drawn is None:
            return False
        h, w = drawn.distance.shape
        owner[drawn.top : drawn.top + h, drawn.left : drawn.left + w][drawn.inside] = i
    for i, sprite in enumerate(layout.sprites):
        visible = int((owner == i).sum())
        if visible < _MIN_VISIBLE * whole_area(sprite, grid) or visible * step**2 < _MIN_AREA:
            return False
    regions = [(owner == -1 - i).mean() for i in range(len(layout.stuff))]
    return bool(min(regions) >= _MIN_STUFF)
