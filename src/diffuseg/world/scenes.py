"""Scenes: a procedural world with exact answers.

A scene is drawn in two steps. The layout is a handful of numbers, the same for every image size:
which stuff, which things, where, under which light. Painting turns it into pixels and masks. Both
follow from (seed, split, index) alone, on every machine.
"""

import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import SupportsIndex

import numpy as np
from jaxtyping import UInt8

from diffuseg.errors import InputError
from diffuseg.world.captions import caption_scene
from diffuseg.world.composition import HELD_OUT_PAIRS, Layout, is_held_out, sample_layout
from diffuseg.world.painting import CLASSES, paint_layout
from diffuseg.world.shapes import THINGS
from diffuseg.world.sprites import COLORS, Sprite
from diffuseg.world.textures import STUFF, Grid

__all__ = [
    "CLASSES",
    "COLORS",
    "HELD_OUT_PAIRS",
    "SPLITS",
    "STUFF",
    "THINGS",
    "Scene",
    "Scenes",
    "Thing",
]

SPLITS: tuple[str, ...] = ("train", "val", "test")

_TAG = 0x5CE7E5  # keeps these random streams apart from any other use of the same seed
_MIN_SIDE, _MAX_SIDE = 64, 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Thing:
    """One thing of a scene, with its exact place.

    Args:
        kind: One of `THINGS`.
        color: One of `COLORS`.
        bbox: (top, left, bottom, right) of its visible pixels, the last two exclusive.
        area: Number of visible pixels.
        visible_fraction: Visible pixels over the pixels of the whole, uncut silhouette.
        sprite: How it was placed.

    Example:
        >>> thing = Scenes("train", hw=(64, 64))[0].things[0]
        >>> thing.kind in THINGS, thing.visible_fraction > 0.35, thing.held_out
        (True, True, False)
    """

    kind: str
    color: str
    bbox: tuple[int, int, int, int]
    area: int
    visible_fraction: float
    sprite: Sprite

    @property
    def held_out(self) -> bool:
        """Whether no training scene has a thing of this kind in this colour."""
        return is_held_out(self.color, self.kind)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """A picture and everything there is to know about it.

    Args:
        image: The picture, sRGB.
        labels: Index into `CLASSES` of every pixel.
        instances: 0 for stuff, i + 1 for `things[i]`.
        things: The things, far to near.
        stuff: The regions.
        captions: Several phrasings; the first names everything, the last ones only a part.
        seed: Seed of the stream.
        split: Split of the stream.
        index: Place in the stream.

    Example:
        >>> scene = Scenes("val", hw=(64, 64))[0]
        >>> scene.image.shape, scene.labels.shape
        ((64, 64, 3), (64, 64))
        >>> set(scene.names) == {t.kind for t in scene.things} | set(scene.stuff)
        True
    """

    image: UInt8[np.ndarray, "h w 3"]
    labels: UInt8[np.ndarray, "h w"]
    instances: UInt8[np.ndarray, "h w"]
    things: tuple[Thing, ...]
    stuff: tuple[str, ...]
    captions: tuple[str, ...]
    seed: int
    split: str
    index: int

    @property
    def caption(self) -> str:
        """The caption that names everything."""
        return self.captions[0]

    @property
    def names(self) -> tuple[str, ...]:
        """The class names present in `labels`, in class order."""
        return tuple(CLASSES[int(i)] for i in np.unique(self.labels))


class Scenes:
    """An endless, seeded stream of scenes; train, val and test share none.

    Args:
        split: "train", "val" or "test". The splits are different random streams, and training
            never sees the pairs of `HELD_OUT_PAIRS`.
        seed: Which stream; not negative.
        hw: Image height and width in pixels, 64 to 4096 each. The same index shows the same scene
            at every size of one aspect ratio.

    Raises:
        InputError: Unknown split, negative seed, or size out of range.

    Example:
        >>> scenes = Scenes("train", seed=1, hw=(64, 96))
        >>> scenes[3].image.shape
        (64, 96, 3)
        >>> (scenes[3].image == scenes[3].image).all().item()
        True
    """

    def __init__(self, split: str = "train", seed: int = 0, hw: Sequence[int] = (256, 256)) -> None:
        self.split = check_split(split)
        self.seed = check_count("seed", seed)
        self.hw = check_hw(hw)

    def __getitem__(self, index: SupportsIndex) -> Scene:
        index = check_count("index", index)
        layout = self.layout(index)
        image, labels, instances, whole = paint_layout(layout, Grid.of(self.hw))
        rng = generator(self.seed, self.split, index, 1)
        nouns = [(s.color, s.kind) for s in layout.sprites]
        things = tuple(
            _thing(sprite, instances == i + 1, whole[i]) for i, sprite in enumerate(layout.sprites)
        )
        return Scene(
            image=image,
            labels=labels,
            instances=instances,
            things=things,
            stuff=layout.stuff,
            captions=caption_scene(nouns, layout.stuff, rng),
            seed=self.seed,
            split=self.split,
            index=index,
        )

    def __iter__(self) -> Iterator[Scene]:
        index = 0
        while True:
            yield self[index]
            index += 1

    def layout(self, index: SupportsIndex) -> Layout:
        """The layout of one scene, without painting it.

        Raises:
            InputError: Negative index.

        Example:
            >>> layout = Scenes("train").layout(0)
            >>> all((s.color, s.kind) not in HELD_OUT_PAIRS for s in layout.sprites)
            True
        """
        index = check_count("index", index)
        unit = 256.0 / min(self.hw)
        canvas = (self.hw[0] * unit, self.hw[1] * unit)
        rng = generator(self.seed, self.split, index, 0)
        return sample_layout(rng, canvas, held_out=self.split != "train")


def check_split(split: str) -> str:
    """The split, if it is one."""
    if split not in SPLITS:
        raise InputError(
            "split must be 'train', 'val' or 'test'",
            got=split,
            remedy="choose one of the three",
        )
    return split


def check_count(name: str, value: SupportsIndex) -> int:
    """A number that is not negative."""
    try:
        number = operator.index(value)
    except TypeError:
        number = -1
    if number < 0 or isinstance(value, bool):
        raise InputError(
            f"{name} must be an integer of at least 0",
            got=value,
            remedy=f"pass {name}=0 or more",
        )
    return number


def check_hw(hw: Sequence[int]) -> tuple[int, int]:
    """Height and width within range."""
    try:
        height, width = (operator.index(n) for n in hw)
    except (TypeError, ValueError):
        height, width = 0, 0
    if not all(_MIN_SIDE <= n <= _MAX_SIDE for n in (height, width)):
        raise InputError(
            f"hw must be (height, width), each {_MIN_SIDE} to {_MAX_SIDE} pixels",
            got=hw,
            remedy="pass for instance hw=(256, 256)",
        )
    return height, width


def generator(seed: int, split: str, index: int, purpose: int) -> np.random.Generator:
    """The random stream of one item of one split, for one purpose."""
    entropy = [_TAG, seed, SPLITS.index(split), index, purpose]
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(entropy)))


def _thing(sprite: Sprite, mask: np.ndarray, whole: int) -> Thing:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    area = int(mask.sum())
    return Thing(
        kind=sprite.kind,
        color=sprite.color,
        bbox=(int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1),
        area=area,
        visible_fraction=min(1.0, area / max(whole, 1)),
        sprite=sprite,
    )
