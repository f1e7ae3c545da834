"""The video U-Net and its training: denoising as in EDM, and queries taught by the image model.

T. Karras and others, Elucidating the design space of diffusion-based generative models, 2022. What
conditions a clip is what diffusers' `StableVideoDiffusionPipeline` gives: the embedding of its
first frame, that frame's latent (not scaled, a little noisy) beside every frame's, and three
numbers. Teaching queries follows S. Yu and others, Representation alignment for generation, 2024,
but without a head: the queries themselves shall lie as the features do.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from diffuseg.errors import InputError
from diffuseg.train.data import Progress
from diffuseg.train.log import TrainLog
from diffuseg.train.loop import train_steps
from diffuseg.train.video_data import VideoShard, find_clip
from diffuseg.train.video_encoders import layer_outputs
from diffuseg.train.video_recipe import VideoPhase, VideoRecipe

if TYPE_CHECKING:
    from diffusers.models.unets.unet_spatio_temporal_condition import (
        UNetSpatioTemporalConditionModel,
    )

_FPS = (5, 31)  # drawn at random: nothing can be read off it, so that any value will do
_JITTER = 0.3  # deviation of the logarithm of the told pace: a user's bucket is a guess
_USUAL_BUCKET = 127
# Of two frames the gradient of a convolution over time is not finite in bf16 on CPUs (torch 2.13).
_LEAST_FRAMES = 3
_SAMPLE = 4000  # tokens a shard from which the axes of the features are found


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoBatch:
    """One step's inputs, a pure function of (seed, phase, step).

    Args:
        clean: Scaled latents.
        noise: Standard normal.
        sigmas: Its strength, one a clip.
        first: The first frame's latent as the network is told it: not scaled, noisy.
        embeddings: The first frame's embedding.
        numbers: Frames a second, motion bucket, strength of the noise in `first`.
        coarse: What the queries of blocks 6 to 8 shall be like.
        fine: What those of blocks 9 to 11 shall be like.
    """

    clean: Float[Tensor, "b f 4 h w"]
    noise: Float[Tensor, "b f 4 h w"]
    sigmas: Float[Tensor, " b"]
    first: Float[Tensor, "b 4 h w"]
    embeddings: Float[Tensor, "b 1 e"]
    numbers: Float[Tensor, "b 3"]
    coarse: Float[Tensor, "b f c h2 w2"]
    fine: Float[Tensor, "b f d h w"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Axes:
    """Main axes of features: how to bring them to unit variance and to a layer's width."""

    mean: Float[Tensor, " c"]
    project: Float[Tensor, "k c"]

    def __call__(self, features: Float[Tensor, "*b c h w"]) -> Float[Tensor, "*b k h w"]:
        """Features along the axes."""
        centred = features.float().movedim(-3, -1) - self.mean
        return (centred @ self.project.T).movedim(-1, -3)


def find_axes(features: Float[Tensor, "n c"], width: int) -> Axes:
    """The axes of most variance, `width` at most, of features scaled to unit variance each.

    Example:
        >>> axes = find_axes(torch.randn(50, 3), 8)
        >>> axes(torch.randn(2, 3, 4, 4)).shape
        torch.Size([2, 3, 4, 4])
    """
    values = features.double()
    mean, spread = values.mean(0), values.std(0) + 1e-6
    scaled = (values - mean) / spread
    _, vectors = torch.linalg.eigh(scaled.T @ scaled)
    kept = vectors.flip(1)[:, :width].T
    return Axes(mean=mean.float(), project=(kept / spread).float())


def axes_of(shards: Sequence[VideoShard], name: str, width: int) -> Axes:
    """The axes of the features "coarse" or "fine" of all clips, from some tokens of every shard."""
    rows = []
    for number, shard in enumerate(shards):
        tokens = getattr(shard, name).movedim(2, -1).flatten(0, -2)
        generator = torch.Generator().manual_seed(number)
        rows.append(tokens[torch.randint(len(tokens), (_SAMPLE,), generator=generator)].float())
    return find_axes(torch.cat(rows), width)


class VideoDenoiser(nn.Module):
    """The U-Net, with EDM's scalings around it."""

    def __init__(self, recipe: VideoRecipe, *, embedding: int) -> None:
        super().__init__()
        self.unet = build_video_unet(recipe, embedding=embedding)
        self.taught = recipe.taught

    def forward(self, batch: VideoBatch) -> tuple[Tensor, dict[int, Float[Tensor, "r n c"]]]:
        """The network's output ("v"), and the queries of the taught blocks."""
        noisy = batch.clean + batch.sigmas[:, None, None, None, None] * batch.noise
        scale = (batch.sigmas.square() + 1).rsqrt()[:, None, None, None, None]
        first = batch.first[:, None].expand_as(noisy)
        names = {block: query_name(block) for block in self.taught}
        with layer_outputs(self.unet, *names.values()) as seen:
            output = self.unet(
                torch.cat([noisy * scale, first], dim=2),
                batch.sigmas.log() / 4,
                batch.embeddings,
                batch.numbers,
            ).sample
        return output, {block: seen[name] for block, name in names.items()}


def build_video_unet(recipe: VideoRecipe, *, embedding: int) -> "UNetSpatioTemporalConditionModel":
    """An untrained U-Net with the topology of Stable Video Diffusion's."""
    from diffusers.models.unets.unet_spatio_temporal_condition import (
        UNetSpatioTemporalConditionModel,
    )

    return UNetSpatioTemporalConditionModel(
        sample_size=recipe.size // 8,
        block_out_channels=recipe.channels,
        addition_time_embed_dim=recipe.time_width,
        projection_class_embeddings_input_dim=3 * recipe.time_width,
        cross_attention_dim=embedding,
        num_attention_heads=(recipe.heads,) * len(recipe.channels),
        num_frames=recipe.frames,
    )


def query_name(block: int) -> str:
    """The layer that gives the spatial queries of decoder block 3 to 11.

    Example:
        >>> query_name(7)
        'up_blocks.2.attentions.1.transformer_blocks.0.attn1.to_q'
    """
    return f"up_blocks.{block // 3}.attentions.{block % 3}.transformer_blocks.0.attn1.to_q"


def draw_sigmas(
    recipe: VideoRecipe, count: int, rng: np.random.Generator
) -> Float[np.ndarray, " b"]:
    """Strengths of noise: log-normal, a share of them faint.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> sigmas = draw_sigmas(VideoRecipe(faint=1.0), 100, rng)
        >>> bool(sigmas.min() >= 0.002), bool(sigmas.max() <= 1.3)
        (True, True)
    """
    usual = rng.normal(recipe.sigma_mean, recipe.sigma_std, count)
    low, high = np.log(recipe.faint_sigmas)
    faint = rng.uniform(low, high, count)
    return np.exp(np.where(rng.random(count) < recipe.faint, faint, usual))


def draw_frames(available: int, count: int, rng: np.random.Generator) -> list[int]:
    """`count` frames at even steps, now and then backwards.

    Example:
        >>> sorted(draw_frames(3, 3, np.random.default_rng(0)))
        [0, 1, 2]
    """
    step = int(rng.integers(1, max((available - 1) // max(count - 1, 1), 1) + 1))
    start = int(rng.integers(available - step * (count - 1)))
    frames = [start + step * k for k in range(count)]
    return frames[::-1] if rng.random() < 0.5 else frames


def draw_video_batch(
    shards: Sequence[VideoShard],
    recipe: VideoRecipe,
    phase: VideoPhase,
    *,
    key: tuple[int, ...],
    scaling: float,
    axes: Mapping[str, Axes],
) -> VideoBatch:
    """Draw windows of clips, noise and conditions for one step.

    Args:
        shards: The clips.
        recipe: The numbers.
        phase: Of this stretch.
        key: Seed of every choice.
        scaling: The autoencoder's scaling factor.
        axes: Those of "coarse" and "fine".
    """
    rng = np.random.default_rng(key)
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    count, side = phase.batch, phase.side
    columns: dict[str, list[Tensor]] = {
        name: [] for name in ("latents", "embeddings", "coarse", "fine", "paces")
    }
    for index in rng.integers(recipe.clips, size=count).tolist():
        shard, row = find_clip(shards, index)
        frames = draw_frames(shard.latents.shape[1], phase.frames, rng)
        height, width = shard.latents.shape[-2:]
        top, left = (2 * int(rng.integers((size - side) // 2 + 1)) for size in (height, width))
        window = np.s_[..., top : top + side, left : left + side]
        half = np.s_[..., top // 2 : (top + side) // 2, left // 2 : (left + side) // 2]
        columns["latents"].append(shard.latents[row, frames][window].float())
        columns["fine"].append(axes["fine"](shard.fine[row, frames][window]))
        columns["coarse"].append(axes["coarse"](shard.coarse[row, frames][half]))
        columns["embeddings"].append(shard.embeddings[row, frames[:1]].float())
        apart = abs(frames[1] - frames[0]) if len(frames) > 1 else 1
        columns["paces"].append(shard.paces[row] * apart)
    clean = torch.stack(columns["latents"])
    kept = torch.from_numpy(rng.random(count) >= recipe.dropout)
    strength = torch.from_numpy(np.exp(rng.normal(*recipe.augment, count))).float()
    first = clean[:, 0] / scaling
    first = first + strength[:, None, None, None] * torch.randn(first.shape, generator=generator)
    bucket = torch.stack(columns["paces"]) / recipe.usual_pace * _USUAL_BUCKET
    bucket = bucket * torch.from_numpy(np.exp(rng.normal(0, _JITTER, count))).float()
    fps = torch.from_numpy(rng.integers(*_FPS, size=count)).float()
    return VideoBatch(
        clean=clean,
        noise=torch.randn(clean.shape, generator=generator),
        sigmas=torch.from_numpy(draw_sigmas(recipe, count, rng)).float(),
        first=first * kept[:, None, None, None],
        embeddings=torch.stack(columns["embeddings"]) * kept[:, None, None],
        numbers=torch.stack([fps, bucket.clamp(max=255).round(), strength], dim=1),
        coarse=torch.stack(columns["coarse"]),
        fine=torch.stack(columns["fine"]),
    )


def v_target(batch: VideoBatch) -> Float[Tensor, "b f 4 h w"]:
    """What the network should give: the direction from the clean latents to the noise."""
    sigmas = batch.sigmas[:, None, None, None, None]
    return (batch.noise - sigmas * batch.clean) / (sigmas.square() + 1).sqrt()


def likeness_loss(
    batch: VideoBatch, queries: Mapping[int, Float[Tensor, "r n c"]]
) -> Float[Tensor, ""]:
    """One minus the cosine of queries and features; noisy clips count less."""
    weights = 1 / (1 + batch.sigmas.square())
    parts = []
    for block, found in queries.items():
        features = batch.coarse if block < 9 else batch.fine
        wanted = features.flatten(3).transpose(2, 3)
        found = found.float().unflatten(0, wanted.shape[:2])[..., : wanted.shape[-1]]
        parts.append(1 - functional.cosine_similarity(found, wanted, dim=-1).mean((1, 2)))
    return (weights * torch.stack(parts).mean(0)).mean()


def video_phase_path(work: Path, number: int) -> Path:
    """The checkpoint of phase `number` (from 0)."""
    return work / f"video-{number + 1}.safetensors"


def train_video_unet(
    recipe: VideoRecipe,
    shards: Sequence[VideoShard],
    work: Path,
    *,
    scaling: float,
    device: torch.device,
    log: TrainLog,
    progress: Progress | None = None,
) -> VideoDenoiser:
    """Train all phases (or go on with them) and return the averaged weights, frozen.

    Args:
        recipe: The numbers.
        shards: The clips, as `load_clips` gives them.
        work: Folder of the checkpoints `video-N.safetensors`.
        scaling: The autoencoder's scaling factor.
        device: Where to train.
        log: The journal.
        progress: Told (done, total) after every step, phases counted together.

    Raises:
        InputError: A phase has fewer frames than can be learned from.
    """
    from diffusers.models.attention_processor import AttnProcessor

    least = min(phase.frames for phase in recipe.phases)
    if least < _LEAST_FRAMES:
        raise InputError(
            f"a phase must show {_LEAST_FRAMES} frames or more",
            got=least,
            remedy="raise VideoPhase.frames",
        )
    torch.manual_seed(recipe.seed)
    model = VideoDenoiser(recipe, embedding=shards[0].embeddings.shape[-1]).to(device)
    if device.type == "cpu":
        # The fused kernel's backward pass in bf16 is slow on a CPU; products are not.
        model.unet.set_attn_processor(AttnProcessor())
    axes = {
        "coarse": axes_of(shards, "coarse", recipe.channels[1]),
        "fine": axes_of(shards, "fine", recipe.channels[0]),
    }
    total = sum(phase.steps for phase in recipe.phases)
    before = 0
    for number, phase in enumerate(recipe.phases):

        def losses(
            model: VideoDenoiser, step: int, number: int = number, phase: VideoPhase = phase
        ) -> dict[str, Float[Tensor, ""]]:
            key = (recipe.seed, 31 + number, step)
            batch = draw_video_batch(shards, recipe, phase, key=key, scaling=scaling, axes=axes)
            batch = batch_to(batch, device)
            with torch.autocast(device.type, torch.bfloat16):
                output, queries = model(batch)
            error = (output.float() - v_target(batch)).square().mean()
            return {"error": error, "likeness": recipe.likeness * likeness_loss(batch, queries)}

        def tell(done: int, _steps: int, before: int = before) -> None:
            if progress is not None:
                progress(before + done, total)

        model = train_steps(
            copy.deepcopy(model).requires_grad_(True),
            phase,
            losses,
            checkpoint=video_phase_path(work, number),
            log=log,
            progress=tell,
        )
        before += phase.steps
    return model


def batch_to(batch: VideoBatch, device: torch.device) -> VideoBatch:
    """The batch on a device."""
    return VideoBatch(
        **{name: getattr(batch, name).to(device) for name in VideoBatch.__dataclass_fields__}
    )
