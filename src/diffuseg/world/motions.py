"""What moves in a clip and how: drawn at random, before there are pixels."""

from dataclasses import dataclass, replace

import numpy as np

from diffuseg.world.composition import Layout, sample_layout, whole_area
from diffuseg.world.sprites import UPRIGHT, Sprite, stamp
from diffuseg.world.textures import Grid

_CHECK_TIMES = 9  # moments at which a clip is judged
_CHECK_STEP = 4.0  # canvas units a sample then
_SEEN_FRACTION, _SEEN_AREA = 0.40, 320.0  # when a thing counts as seen
_SEEN_TIMES = 5  # of the moments, for every thing
_LARGEST = 165.0  # canvas units a thing may grow to

Point = tuple[float, float]
"""Rows and columns, canvas units."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Motion:
    """How one thing moves about the place it has in the layout.

    Args:
        start: (rows, columns) from that place at time 0, canvas units.
        end: The same at time 1.
        arc: How far the path bulges sideways.
        grow: Size factor at time 0 and at time 1.
        turn: Rotation over the clip, in turns.
        smooth: Whether it starts and ends at rest.
        returns: Whether it is back at its start at time 1, and at its end half-way.
    """

    start: Point
    end: Point
    arc: float
    grow: Point
    turn: float
    smooth: bool
    returns: bool

    def apply(self, sprite: Sprite, time: float) -> Sprite:
        """The sprite at a time from 0 to 1."""
        if self.returns:
            share = 0.5 - 0.5 * float(np.cos(2.0 * np.pi * time))
        else:
            share = _ease(time) if self.smooth else time
        down, right = (a + (b - a) * share for a, b in zip(self.start, self.end, strict=True))
        along = (self.end[0] - self.start[0], self.end[1] - self.start[1])
        length = max(float(np.sqrt(along[0] ** 2 + along[1] ** 2)), 1.0)
        bulge = self.arc * 4.0 * share * (1.0 - share) / length
        factor = self.grow[0] + (self.grow[1] - self.grow[0]) * share
        return replace(
            sprite,
            y=sprite.y + down + along[1] * bulge,
            x=sprite.x + right - along[0] * bulge,
            size=sprite.size * factor,
            angle=sprite.angle + self.turn * (share - 0.5),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipLayout:
    """Everything that determines a clip before it has pixels.

    Args:
        scene: The layout at rest.
        motions: One a sprite.
        pan: (rows, columns) the camera moves over the clip.
    """

    scene: Layout
    motions: tuple[Motion, ...]
    pan: Point

    def camera(self, time: float) -> Point:
        """Where the image's corner is at a time from 0 to 1."""
        share = _ease(time) - 0.5
        return self.pan[0] * share, self.pan[1] * share

    def at(self, time: float) -> Layout:
        """The layout at a time from 0 to 1, in the world's coordinates."""
        moved = (m.apply(s, time) for m, s in zip(self.motions, self.scene.sprites, strict=True))
        return replace(self.scene, sprites=tuple(moved))


def sample_clip(rng: np.random.Generator, canvas: Point, *, held_out: bool) -> ClipLayout:
    """Draw a clip in which every thing is well seen for a good part of the time.

    Args:
        rng: Source of all choices.
        canvas: Height and width in canvas units.
        held_out: Whether pairs of `HELD_OUT_PAIRS` may occur.
    """
    while True:
        scene = sample_layout(rng, canvas, held_out=held_out)
        if len(scene.sprites) == 1 and rng.random() < 0.8:
            continue  # things that meet are what a clip is for
        pan = _sample_pan(rng)
        sprites: list[Sprite] = []
        motions: list[Motion] = []
        for i, sprite in enumerate(scene.sprites):
            meets = i > 0 and rng.random() < 0.6
            if meets:
                sprite = _beside(rng, sprite, sprites[-1], canvas)
            sprites.append(sprite)
            motions.append(_sample_motion(rng, sprite, canvas, pan, moves=meets or i == 0))
        scene = replace(scene, sprites=tuple(sprites))
        clip = ClipLayout(scene=scene, motions=tuple(motions), pan=pan)
        if _can_be_seen(clip):
            return clip


def _ease(time: float) -> float:
    return time * time * (3.0 - 2.0 * time)


def _sample_pan(rng: np.random.Generator) -> Point:
    across, down, rests = rng.random(3)
    if rests < 0.35:
        return 0.0, 0.0
    right = (30.0 + 90.0 * across) * (1.0 if rests < 0.675 else -1.0)
    return round((down - 0.5) * 60.0, 3), round(float(right), 3)


def _beside(rng: np.random.Generator, sprite: Sprite, other: Sprite, canvas: Point) -> Sprite:
    """The sprite put close to another, so that their paths meet."""
    near = 0.5 * (sprite.size + other.size) * 0.5
    y = other.y + (rng.random() - 0.5) * near
    x = other.x + (rng.random() - 0.5) * near * 2.0
    return replace(
        sprite,
        y=round(float(np.clip(y, 0.2 * canvas[0], 0.8 * canvas[0])), 3),
        x=round(float(np.clip(x, 0.2 * canvas[1], 0.8 * canvas[1])), 3),
    )


def _sample_motion(
    rng: np.random.Generator, sprite: Sprite, canvas: Point, pan: Point, *, moves: bool
) -> Motion:
    upright = sprite.kind in UPRIGHT
    turn = (rng.random() - 0.5) * (0.06 if upright else 1.2)
    growth = 0.72 + 0.56 * rng.random(2)
    grow = np.minimum(growth, _LARGEST / sprite.size)
    draw, smooth = rng.random(), bool(rng.random() < 0.6)
    start, end, returns = (0.0, 0.0), (0.0, 0.0), False
    path = _sample_path(rng, sprite, canvas, upright=upright)
    out = _way_out(rng, sprite, canvas, upright=upright)
    if not moves and draw < 0.2:
        turn, grow = 0.0, np.ones(2)
    elif draw < 0.62:
        start, end = path
    elif draw < 0.74:
        start, end = (out[0] - pan[0] / 2.0, out[1] - pan[1] / 2.0), path[1]
    elif draw < 0.90:
        start, end = path[0], (out[0] + pan[0] / 2.0, out[1] + pan[1] / 2.0)
    else:
        end, returns = out, True
    arc = (rng.random() - 0.5) * 50.0
    return Motion(
        start=(round(start[0], 3), round(start[1], 3)),
        end=(round(end[0], 3), round(end[1], 3)),
        arc=round(float(arc), 3),
        grow=(round(float(grow[0]), 4), round(float(grow[1]), 4)),
        turn=round(float(turn), 4),
        smooth=smooth,
        returns=returns,
    )


def _sample_path(
    rng: np.random.Generator, sprite: Sprite, canvas: Point, *, upright: bool
) -> tuple[Point, Point]:
    """Two ends about the sprite's place, both on the canvas, as offsets."""
    angle = 2.0 * np.pi * rng.random()
    half = 35.0 + 45.0 * rng.random()
    down = half * float(np.sin(angle)) * (0.35 if upright else 1.0)
    right = half * float(np.cos(angle))
    if upright and abs(right) < 0.5 * half:
        right = half if right > 0.0 else -half
    ends = []
    for sign in (-1.0, 1.0):
        y = np.clip(sprite.y + sign * down, 0.15 * canvas[0], 0.85 * canvas[0])
        x = np.clip(sprite.x + sign * right, 0.15 * canvas[1], 0.85 * canvas[1])
        ends.append((float(y) - sprite.y, float(x) - sprite.x))
    return ends[0], ends[1]


def _way_out(rng: np.random.Generator, sprite: Sprite, canvas: Point, *, upright: bool) -> Point:
    """Offset from the sprite's place to one wholly outside the canvas."""
    away = 0.85 * sprite.size + 6.0
    side = int(rng.integers(2 if upright else 4))
    jitter = (rng.random() - 0.5) * 60.0
    return (
        (jitter, -away - sprite.x),
        (jitter, canvas[1] + away - sprite.x),
        (-away - sprite.y, jitter),
        (canvas[0] + away - sprite.y, jitter),
    )[side]


def _can_be_seen(clip: ClipLayout) -> bool:
    """Whether each thing is seen often enough, and one at every moment, judged on a coarse grid."""
    step = _CHECK_STEP
    height, width = clip.scene.hw
    base = Grid(
        y=np.arange(step / 2.0, height, step), x=np.arange(step / 2.0, width, step), step=step
    )
    n = len(clip.scene.sprites)
    seen = np.zeros((_CHECK_TIMES, n), dtype=bool)
    for k in range(_CHECK_TIMES):
        time = k / (_CHECK_TIMES - 1)
        grid = base.moved(*clip.camera(time))
        sprites = clip.at(time).sprites
        owner = np.full((base.y.size, base.x.size), -1, dtype=np.int64)
        for i, sprite in enumerate(sprites):
            drawn = stamp(sprite, grid)
            if drawn is not None:
                h, w = drawn.distance.shape
                owner[drawn.top : drawn.top + h, drawn.left : drawn.left + w][drawn.inside] = i
        for i, sprite in enumerate(sprites):
            area = int((owner == i).sum())
            enough = area >= _SEEN_FRACTION * whole_area(sprite, base)
            seen[k, i] = enough and area * step**2 >= _SEEN_AREA
    return bool(seen.any(axis=1).all() and (seen.sum(axis=0) >= _SEEN_TIMES).all())
