"""Windows: squares cut out of scenes around one thing, as a person would frame it for a photograph.

The world says where it put a thing, so that it can be framed and named; no mask is looked at.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from diffuseg.errors import InputError
from diffuseg.train.captioned import shrink
from diffuseg.train.data import load_pictures, shard_path
from diffuseg.train.recipe import MiniRecipe
from diffuseg.world.scenes import COLORS, THINGS, Scenes

_CANVAS = 256.0  # units of a layout along the shorter side


@dataclass(frozen=True, kw_only=True, slots=True)
class Framed:
    """Things that can be framed: their scene, centre (row, column in pixels), kind and colour."""

    images: UInt8[np.ndarray, "n h w 3"]
    scenes: Int[np.ndarray, " m"]
    centers: Float[np.ndarray, "m 2"]
    kinds: Int[Tensor, " m"]
    colors: Int[Tensor, " m"]


def load_framed(recipe: MiniRecipe, folder: Path, *, shards: Iterable[int] | None = None) -> Framed:
    """Every thing of the rendered scenes that can be framed without another thing's centre.

    Raises:
        InputError: The scenes have not been rendered.
    """
    side, window = recipe.clip.size, recipe.clip.teacher.window
    numbers = range(len(list(folder.glob("scenes-*.npz")))) if shards is None else list(shards)
    if not numbers or not shard_path(folder, "scenes", numbers[-1]).exists():
        raise InputError(
            "the pictures must have been rendered",
            got=f"{folder} without scenes-*.npz",
            remedy="run --stage render with the same work folder first",
        )
    world = Scenes("train", seed=recipe.seed, hw=(recipe.size, recipe.size))
    images, found = [], []
    for shard in numbers:
        part = shrink(load_pictures(folder, "scenes", [shard]).images, side)
        first = sum(map(len, images))
        images.append(part)
        for offset in range(len(part)):
            sprites = world.layout(shard * recipe.shard + offset).sprites
            centers = np.array([(s.y, s.x) for s in sprites]) * (side / _CANVAS)
            for i, sprite in enumerate(sprites):
                apart = np.abs(np.delete(centers, i, axis=0) - centers[i]).max(1) > window / 2
                if apart.all():
                    kind, color = THINGS.index(sprite.kind), COLORS.index(sprite.color)
                    found.append((first + offset, *centers[i], kind, color))
    table = np.array(found)
    return Framed(
        images=np.concatenate(images),
        scenes=table[:, 0].astype(np.int64),
        centers=table[:, 1:3],
        kinds=torch.from_numpy(table[:, 3].astype(np.int64)),
        colors=torch.from_numpy(table[:, 4].astype(np.int64)),
    )


def cut_windows(
    framed: Framed,
    rows: Int[np.ndarray, " b"],
    rng: np.random.Generator,
    *,
    side: int,
    reach: int,
) -> UInt8[np.ndarray, "b s s 3"]:
    """Windows around things, off centre by up to `reach` pixels, half of them mirrored."""
    full = framed.images.shape[1]
    out = np.empty((len(rows), side, side, 3), dtype=np.uint8)
    moved = framed.centers[rows] + rng.integers(-reach, reach + 1, size=(len(rows), 2)) - side / 2
    corners = np.rint(moved).clip(0, full - side).astype(np.int64)
    mirrored = rng.random(len(rows)) < 0.5
    for i, (top, left) in enumerate(corners):
        window = framed.images[framed.scenes[rows[i]], top : top + side, left : left + side]
        out[i] = window[:, ::-1] if mirrored[i] else window
    return out
