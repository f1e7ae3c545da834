"""Pictures for the companions that learn from captions: one size, and the nouns read off the text.

Nothing but the images and the captions of the training set is used.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from PIL import Image as PillowImage
from torch import Tensor

from diffuseg.errors import InputError
from diffuseg.train.data import Pictures, load_pictures, shard_path
from diffuseg.world.scenes import COLORS, HELD_OUT_PAIRS, STUFF, THINGS

PAIRS: tuple[tuple[str, str], ...] = tuple(
    (color, kind) for kind in THINGS for color in COLORS if (color, kind) not in HELD_OUT_PAIRS
)
"""Every (colour, kind) that training captions can name."""

COLOR_OF_PAIR: Float[Tensor, "pairs colors"] = torch.tensor(
    [[float(color == own) for color in COLORS] for own, _ in PAIRS]
)
"""1 where a pair of `PAIRS` has the colour."""

_NOUN = re.compile(rf"(?:\b({'|'.join(COLORS)}) )?\b({'|'.join((*THINGS, *STUFF))})\b")


@dataclass(frozen=True, kw_only=True, slots=True)
class Nouns:
    """What a caption names.

    Args:
        things: (colour, kind) of each thing, the colour None where it is not told.
        stuff: Names of the regions.
    """

    things: tuple[tuple[str | None, str], ...]
    stuff: tuple[str, ...]

    @property
    def colored(self) -> bool:
        """Whether every thing has its colour."""
        return all(color is not None for color, _ in self.things)


def read_nouns(caption: str) -> Nouns:
    """The things and stuff a caption names, in its order.

    Example:
        >>> read_nouns("a red car and house on grass")
        Nouns(things=(('red', 'car'), (None, 'house')), stuff=('grass',))
    """
    found = _NOUN.findall(caption)
    return Nouns(
        things=tuple((color or None, noun) for color, noun in found if noun in THINGS),
        stuff=tuple(noun for _, noun in found if noun in STUFF),
    )


def fullest_nouns(captions: Sequence[str]) -> Nouns:
    """The nouns of the caption that tells most: most nouns, then most colours, then the first."""
    read = [read_nouns(caption) for caption in captions]
    return max(
        read,
        key=lambda nouns: (
            len(nouns.things) + len(nouns.stuff),
            sum(color is not None for color, _ in nouns.things),
        ),
    )


def load_captioned(
    folder: Path,
    side: int,
    *,
    kinds: Sequence[str] = ("scenes", "crops"),
    shards: Iterable[int] | None = None,
) -> Pictures:
    """Pictures of several kinds together, none larger than `side` pixels square.

    Args:
        folder: Where the rendered shards are.
        side: Height and width of the pictures to return.
        kinds: Some of `diffuseg.train.data.KINDS`.
        shards: Which shards; all by default.

    Raises:
        InputError: They have not been rendered.
    """
    if shards is None:
        shards = range(len(list(folder.glob(f"{kinds[0]}-*.npz"))))
    shards = list(shards)
    for kind in kinds:
        if not shards or not shard_path(folder, kind, shards[-1]).exists():
            raise InputError(
                "the pictures must have been rendered",
                got=f"{folder} without {kind}-*.npz",
                remedy="run --stage render with the same work folder first",
            )
    images, captions = [], []
    for shard in shards:
        for kind in kinds:
            pictures = load_pictures(folder, kind, [shard])
            images.append(shrink(pictures.images, side))
            captions += pictures.captions
    return Pictures(images=np.concatenate(images), captions=captions)


def shrink(images: UInt8[np.ndarray, "n h w 3"], side: int) -> UInt8[np.ndarray, "n s s 3"]:
    """Square pictures brought to `side` pixels by averaging."""
    if images.shape[1:3] == (side, side):
        return images
    box = PillowImage.Resampling.BOX
    resized = (PillowImage.fromarray(image).resize((side, side), box) for image in images)
    return np.stack([np.asarray(image) for image in resized])


def to_pixels(images: UInt8[np.ndarray, "b h w 3"]) -> Float[Tensor, "b 3 h w"]:
    """Values in [-1, 1], as the companions' image processors give them."""
    planes = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2)
    return planes.float().div_(127.5).sub_(1)


def draw_views(
    images: UInt8[np.ndarray, "b f f 3"], rng: np.random.Generator, *, side: int, least: float
) -> UInt8[np.ndarray, "b s s 3"]:
    """Squares of at least `least` of the pictures' sides, brought to `side`; half are mirrored."""
    full = images.shape[1]
    extents = full * rng.uniform(least, 1, size=len(images))
    corners = rng.random((len(images), 2)) * (full - extents)[:, None]
    mirrored = rng.random(len(images)) < 0.5
    out = np.empty((len(images), side, side, 3), dtype=np.uint8)
    for i, (extent, (top, left)) in enumerate(zip(extents, corners, strict=True)):
        box = (left, top, left + extent, top + extent)
        picture = PillowImage.fromarray(images[i])
        view = np.asarray(picture.resize((side, side), PillowImage.Resampling.BICUBIC, box=box))
        out[i] = view[:, ::-1] if mirrored[i] else view
    return out


def recolor(
    pixels: Float[Tensor, "b 3 h w"], rng: np.random.Generator, *, share: float
) -> tuple[Float[Tensor, "b 3 h w"], Bool[Tensor, " b"]]:
    """Mix the channels of a share of the pictures at random, to shades of grey at one extreme.

    Shapes are then seen in colours that no training scene gives them.

    Returns:
        The pixels, and which pictures were left as they are.
    """
    plain = rng.random(len(pixels)) >= share
    mixes = rng.dirichlet([0.5] * 3, size=(len(pixels), 3))
    mixes[plain] = np.eye(3)
    turned = torch.einsum("bchw,bdc->bdhw", pixels, torch.from_numpy(mixes).float())
    return turned, torch.from_numpy(plain)


def noun_table(
    pictures: Sequence[Nouns],
) -> tuple[Bool[Tensor, "n things"], Bool[Tensor, "n stuff"], Bool[Tensor, "n pairs"]]:
    """Which kinds, which stuff and which (colour, kind) pairs each picture has."""
    kinds = torch.zeros(len(pictures), len(THINGS), dtype=torch.bool)
    stuff = torch.zeros(len(pictures), len(STUFF), dtype=torch.bool)
    pairs = torch.zeros(len(pictures), len(PAIRS), dtype=torch.bool)
    for row, nouns in enumerate(pictures):
        for color, kind in nouns.things:
            kinds[row, THINGS.index(kind)] = True
            if color is not None:
                pairs[row, PAIRS.index((color, kind))] = True
        for name in nouns.stuff:
            stuff[row, STUFF.index(name)] = True
    return kinds, stuff, pairs
