"""Clips: short videos of the procedural world, with exact masks of every frame.

A clip is a scene's layout with a motion for every thing and one for the camera. Motion is a
function of time from 0 to 1, so a clip of 64 frames shows what one of 16 shows, in finer steps.
Textures are functions of the place in the world, and things carry theirs along: every frame is
painted exactly, nothing is warped.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import SupportsIndex

import numpy as np
from jaxtyping import Bool, UInt8

from diffuseg.errors import InputError
from diffuseg.world.captions import caption_scene
from diffuseg.world.composition import is_held_out
from diffuseg.world.motions import ClipLayout, sample_clip
from diffuseg.world.painting import CLASSES, paint_layout
from diffuseg.world.scenes import check_count, check_hw, check_split, generator
from diffuseg.world.sprites import Sprite
from diffuseg.world.textures import Grid

_PURPOSE = 2  # of the random stream; the one after it is for captions
_MAX_FRAMES = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Track:
    """One thing through a clip.

    Args:
        kind: One of `THINGS`.
        color: One of `COLORS`.
        bboxes: (top, left, bottom, right) a frame, the last two exclusive; None where unseen.
        areas: Visible pixels a frame.
        visible_fractions: Visible pixels over those of the whole silhouette, a frame.

    Example:
        >>> track = Clips("train", hw=(64, 64), frames=3)[0].things[0]
        >>> len(track.bboxes), len(track.areas), track.held_out
        (3, 3, False)
    """

    kind: str
    color: str
    bboxes: tuple[tuple[int, int, int, int] | None, ...]
    areas: tuple[int, ...]
    visible_fractions: tuple[float, ...]

    @property
    def held_out(self) -> bool:
        """Whether no training scene has a thing of this kind in this colour."""
        return is_held_out(self.color, self.kind)


@dataclass(frozen=True, slots=True, kw_only=True)
class Clip:
    """A video and everything there is to know about it.

    Args:
        frames: The pictures, sRGB.
        labels: Index into `CLASSES` of every pixel.
        instances: 0 for stuff, i + 1 for `things[i]`, the same through the whole clip.
        things: The things, far to near.
        stuff: The regions.
        captions: Several phrasings; the first names everything, the last ones only a part.
        fps: Frames a second at which it is meant to be shown.
        seed: Seed of the stream.
        split: Split of the stream.
        index: Place in the stream.

    Example:
        >>> clip = Clips("val", hw=(64, 64), frames=4)[0]
        >>> clip.frames.shape, clip.instances.shape
        ((4, 64, 64, 3), (4, 64, 64))
    """

    frames: UInt8[np.ndarray, "f h w 3"]
    labels: UInt8[np.ndarray, "f h w"]
    instances: UInt8[np.ndarray, "f h w"]
    things: tuple[Track, ...]
    stuff: tuple[str, ...]
    captions: tuple[str, ...]
    fps: int
    seed: int
    split: str
    index: int

    @property
    def caption(self) -> str:
        """The caption that names everything."""
        return self.captions[0]

    @property
    def names(self) -> tuple[str, ...]:
        """The class names present in any frame, in class order."""
        return tuple(CLASSES[int(i)] for i in np.unique(self.labels))


class Clips:
    """An endless, seeded stream of clips; train, val and test share none.

    Args:
        split: "train", "val" or "test"; training never sees the pairs of `HELD_OUT_PAIRS`.
        seed: Which stream; not negative.
        hw: Image height and width in pixels, 64 to 4096 each.
        frames: Frames a clip, 2 to 4096. The motion is the same for any number.
        fps: Frames a second, for players.

    Raises:
        InputError: Unknown split, negative seed, or a number out of range.

    Example:
        >>> clips = Clips("train", seed=1, hw=(64, 96), frames=3)
        >>> len(clips[0].frames)
        3
    """

    def __init__(
        self,
        split: str = "train",
        seed: int = 0,
        hw: Sequence[int] = (256, 256),
        *,
        frames: int = 64,
        fps: int = 12,
    ) -> None:
        self.split = check_split(split)
        self.seed = check_count("seed", seed)
        self.hw = check_hw(hw)
        self.frames = check_count("frames", frames)
        self.fps = check_count("fps", fps)
        if not 2 <= self.frames <= _MAX_FRAMES or self.fps < 1:
            raise InputError(
                f"a clip has 2 to {_MAX_FRAMES} frames and at least 1 frame a second",
                got=f"frames={frames}, fps={fps}",
                remedy="pass for instance frames=64, fps=12",
            )

    def __getitem__(self, index: SupportsIndex) -> Clip:
        index = check_count("index", index)
        layout = self.layout(index)
        shape = (self.frames, *self.hw)
        frames = np.empty((*shape, 3), dtype=np.uint8)
        labels, instances = np.empty(shape, dtype=np.uint8), np.empty(shape, dtype=np.uint8)
        wholes = []
        base = Grid.of(self.hw)
        for f, time in enumerate(np.linspace(0.0, 1.0, self.frames)):
            grid = base.moved(*layout.camera(float(time)))
            painted = paint_layout(layout.at(float(time)), grid)
            frames[f], labels[f], instances[f], whole = painted
            wholes.append(whole)
        sprites = layout.scene.sprites
        rng = generator(self.seed, self.split, index, _PURPOSE + 1)
        return Clip(
            frames=frames,
            labels=labels,
            instances=instances,
            things=tuple(
                _track(sprite, instances == i + 1, [whole[i] for whole in wholes])
                for i, sprite in enumerate(sprites)
            ),
            stuff=layout.scene.stuff,
            captions=caption_scene([(s.color, s.kind) for s in sprites], layout.scene.stuff, rng),
            fps=self.fps,
            seed=self.seed,
            split=self.split,
            index=index,
        )

    def __iter__(self) -> Iterator[Clip]:
        index = 0
        while True:
            yield self[index]
            index += 1

    def layout(self, index: SupportsIndex) -> ClipLayout:
        """The layout of one clip, without painting it.

        Raises:
            InputError: Negative index.
        """
        index = check_count("index", index)
        unit = 256.0 / min(self.hw)
        canvas = (self.hw[0] * unit, self.hw[1] * unit)
        rng = generator(self.seed, self.split, index, _PURPOSE)
        return sample_clip(rng, canvas, held_out=self.split != "train")


def _track(sprite: Sprite, masks: Bool[np.ndarray, "f h w"], wholes: list[int]) -> Track:
    bboxes: list[tuple[int, int, int, int] | None] = []
    areas = [int(mask.sum()) for mask in masks]
    for mask, area in zip(masks, areas, strict=True):
        if not area:
            bboxes.append(None)
            continue
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        box = (rows[0], columns[0], rows[-1] + 1, columns[-1] + 1)
        bboxes.append((int(box[0]), int(box[1]), int(box[2]), int(box[3])))
    shares = (min(1.0, area / max(whole, 1)) for area, whole in zip(areas, wholes, strict=True))
    return Track(
        kind=sprite.kind,
        color=sprite.color,
        bboxes=tuple(bboxes),
        areas=tuple(areas),
        visible_fractions=tuple(shares),
    )
