"""The video miniature's training set: clips of Scenes as latents, embeddings and features.

Clips of the split `train` alone, pictures alone: no mask, name or caption is read.
"""

import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from safetensors.torch import load_file, save_file
from torch import Tensor

from diffuseg.files import atomic_path
from diffuseg.train.data import Progress
from diffuseg.train.video_encoders import Encoders
from diffuseg.train.video_recipe import VideoRecipe
from diffuseg.train.work import require_stage
from diffuseg.world.painting import paint_layout
from diffuseg.world.textures import Grid
from diffuseg.world.videos import Clips


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoShard:
    """Some clips, half precision.

    Args:
        latents: Scaled posterior means.
        embeddings: The image encoder's, of every frame.
        coarse: Features the queries of blocks 6 to 8 are taught.
        fine: Features those of block 9 are taught.
        paces: How much of its clip lies between two frames.
    """

    latents: Float[Tensor, "n f 4 h w"]
    embeddings: Float[Tensor, "n f e"]
    coarse: Float[Tensor, "n f c h2 w2"]
    fine: Float[Tensor, "n f d h w"]
    paces: Float[Tensor, " n"]


def draw_moments(recipe: VideoRecipe, index: int) -> Float[np.ndarray, " f"]:
    """The moments of clip `index` that are shown, parts of the whole from 0 to 1.

    Example:
        >>> moments = draw_moments(VideoRecipe(frames=3, paces=(0.25,)), 0)
        >>> bool(np.allclose(np.diff(moments), 0.25)), bool(0 <= moments[0] <= 0.5)
        (True, True)
    """
    rng = np.random.default_rng([recipe.seed, 30, index])
    pace = rng.choice(recipe.paces)
    span = pace * (recipe.frames - 1)
    return rng.uniform(0, max(1 - span, 0)) + pace * np.arange(recipe.frames)


def render_moments(
    clips: Clips, index: int, moments: Float[np.ndarray, " f"]
) -> UInt8[np.ndarray, "f h w 3"]:
    """Some moments of a clip as pictures."""
    layout, base = clips.layout(index), Grid.of(clips.hw)
    return np.stack(
        [
            paint_layout(layout.at(time), base.moved(*layout.camera(time)))[0]
            for time in moments.tolist()
        ]
    )


def video_shard_path(folder: Path, shard: int) -> Path:
    """The file of one shard."""
    return folder / f"clips-{shard:04d}.safetensors"


def video_shard_count(recipe: VideoRecipe) -> int:
    """In how many files the clips are kept."""
    return -(-recipe.clips // recipe.shard)


@cache
def _encoders(folder: Path) -> Encoders:
    return Encoders(folder)


def render_video_shard(recipe: VideoRecipe, image_model: Path, folder: Path, shard: int) -> int:
    """Render and encode one shard, if it is missing; returns its number."""
    path = video_shard_path(folder, shard)
    if path.exists():
        return shard
    clips = Clips(split="train", seed=recipe.seed, hw=(recipe.size, recipe.size), frames=2)
    encoders = _encoders(image_model)
    held: dict[str, list[Tensor]] = {field.name: [] for field in fields(VideoShard)}
    for index in range(shard * recipe.shard, min((shard + 1) * recipe.shard, recipe.clips)):
        moments = draw_moments(recipe, index)
        encoded = encoders(torch.from_numpy(render_moments(clips, index, moments)))
        for name in ("latents", "embeddings", "coarse", "fine"):
            held[name].append(getattr(encoded, name).half().contiguous())
        held["paces"].append(torch.tensor(moments[1] - moments[0]).float())
    with atomic_path(path) as temporary:
        save_file({name: torch.stack(rows).contiguous() for name, rows in held.items()}, temporary)
    return shard


def render_clips(
    recipe: VideoRecipe,
    image_model: Path,
    folder: Path,
    *,
    workers: int,
    progress: Progress | None = None,
) -> None:
    """Render and encode every missing shard into `folder`.

    Args:
        recipe: The numbers.
        image_model: Folder of the image miniature.
        folder: Where the shards go.
        workers: Processes; with one, it is done in this one.
        progress: Told (done, total) after every shard.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shards = range(video_shard_count(recipe))

    def tell(done: int) -> None:
        if progress is not None:
            progress(done, len(shards))

    if workers <= 1:
        for shard in shards:
            render_video_shard(recipe, image_model, folder, shard)
            tell(shard + 1)
        return
    # A forked process would inherit torch's threads as they stand, locks and all.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        workers, mp_context=context, initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        jobs = [
            pool.submit(render_video_shard, recipe, image_model, folder, shard) for shard in shards
        ]
        for done, job in enumerate(as_completed(jobs), start=1):
            job.result()
            tell(done)


def load_clips(recipe: VideoRecipe, folder: Path) -> list[VideoShard]:
    """The recipe's shards, in order; what is not looked at stays on disk.

    Raises:
        InputError: One has not been rendered.
    """
    paths = [video_shard_path(folder, shard) for shard in range(video_shard_count(recipe))]
    return [VideoShard(**load_file(require_stage(path, "render"))) for path in paths]


def find_clip(shards: Sequence[VideoShard], index: int) -> tuple[VideoShard, int]:
    """The shard of a clip and its row there."""
    size = len(shards[0].paces)
    return shards[index // size], index % size
