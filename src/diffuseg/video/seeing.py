"""A batch of frames shown to a model: latents, the unmodulated pass, its features.

What VidSeg's steps on tensors need of a model, and no more.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np
import PIL.Image
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from diffuseg.attention.layers import LayerId, layers_of
from diffuseg.backbones import Diffusion, VideoDiffusion
from diffuseg.backbones.protocols import FrameCondition, TextEmbedding
from diffuseg.errors import InputError
from diffuseg.image import working_hw
from diffuseg.methods.settings import given
from diffuseg.methods.vidseg.denoising import Plain, denoise_plain, invert
from diffuseg.methods.vidseg.features import aggregate_queries, join_queries
from diffuseg.methods.vidseg.modulation import Changing, Kept, attention_of
from diffuseg.methods.vidseg.network import Call, Network
from diffuseg.methods.vidseg.schedule import (
    Schedule,
    guidance_scales,
    sd_schedule,
    svd_schedule,
)
from diffuseg.methods.vidseg.settings import BLOCKS, Kind, Modulated, VidSeg

Pixels = UInt8[np.ndarray, "h w 3"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Seen:
    """What a model made of a batch.

    Attributes:
        features: By which cells are labelled.
        tracked: By which cells are followed; None where nothing is.
        grid: Rows and columns of both.
        seen_hw: Height and width at which the model saw the frames.
        modulated_grid: Of the layers that are modulated.
        plain: The unmodulated pass.
        network: As the modulated passes call it.
        schedule: Noise levels.
    """

    features: Float[Tensor, "f n c"]
    tracked: Float[Tensor, "g m d"] | None
    grid: tuple[int, int]
    seen_hw: tuple[int, int]
    modulated_grid: tuple[int, int]
    plain: Plain
    network: Network
    schedule: Schedule


@torch.no_grad()
def look(
    model: Diffusion | VideoDiffusion,
    settings: VidSeg,
    frames: Sequence[Pixels],
    *,
    rows: int | None = None,
) -> Seen:
    """Show frames to a model.

    Args:
        model: With attention in all of `BLOCKS` that settings name.
        settings: `VidSeg.ready` for its kind.
        frames: Of one size. Stable Video Diffusion sees them together, from the first on.
        rows: Most rows in a call of the U-Net; all by default.

    Raises:
        InputError: The model lacks a block.
    """
    count, start = len(frames), given(settings.modulate_step)
    step, drawn = given(settings.feature_step), given(settings.sample_posterior)
    hw = seen_hw(frames[0].shape[:2], model, settings)
    images = torch.stack([_brought(one, hw) for one in frames])
    # Set again for every batch: batches of one size get the same noise.
    generator = torch.Generator().manual_seed(given(settings.seed))
    clip = isinstance(model, VideoDiffusion)
    channels = int(model.unet.config["in_channels"])  # pyright: ignore
    shape = (
        1 if settings.noise == "shared" else count,
        channels // 2 if clip else channels,  # the other half is the conditioning frame's
        *(side // model.scale for side in hw),
    )
    noise = torch.randn(shape, generator=generator) if drawn else None
    latents = model.encode(images, noise=noise).float()
    latent_hw = latents.shape[-2], latents.shape[-1]

    layers = layers_of(model)
    featured, followed, target = _read_layers(layers, settings)
    named = tuple(one.name for one in (*featured, *([followed] if followed else ())))
    injected = attention_of(BLOCKS, _injected(settings))
    # What is put back holds the features, if it is of their kind; without modulation nothing else
    # need be kept.
    held = settings.modulate and all(
        any(fnmatchcase(name, one) for one in injected) for name in named
    )

    scales = guidance_scales(count, (given(settings.guidance_first), given(settings.guidance)))
    if clip:
        base, schedule = (
            frame_network(model, settings, images[:1], generator),
            svd_schedule(given(settings.steps)),
        )
    else:
        base, schedule = (
            text_network(model),
            sd_schedule(
                given(settings.steps),
                alphas=getattr(model, "alphas", None),
                prediction=model.prediction,
            ),
        )
    network = Changing(
        base,
        model,
        kept=Kept(count),
        injected=injected if settings.modulate else (),
        modulated=attention_of([given(settings.modulate_block)], given(settings.modulated)),
        features=() if held else named,
        feature_step=step,
        restart_step=start,
    )
    options = {"start": start, "scales": scales, "clip": clip, "rows": rows}
    if settings.noise == "inversion":
        noisy = invert(base, latents, schedule, **options)
    else:
        noisy = schedule.add_noise(latents, torch.randn(shape, generator=generator), start)
    plain = denoise_plain(network, noisy, schedule, **options)
    kept = network.kept
    queries = [kept.queries(step, one.name) for one in featured]
    grids = [one.hw(latent_hw) for one in featured]
    joined = settings.join == "concat"
    return Seen(
        features=join_queries(queries, grids) if joined else aggregate_queries(queries),
        tracked=kept.queries(step, followed.name).float() if followed else None,
        grid=max(grids) if joined else grids[0],
        seen_hw=hw,
        modulated_grid=target.hw(latent_hw),
        plain=plain,
        network=network,
        schedule=schedule,
    )


def text_network(model: Diffusion) -> Network:
    """Return a model's U-Net as the loops of denoising call it.

    The conditional half has the empty prompt; the unconditional half has zeros, not the empty
    prompt, as the authors' code has it.
    """
    empty = model.embed("")
    without = torch.zeros_like(empty.vectors)

    def network(x: Float[Tensor, "r c h w"], call: Call) -> Float[Tensor, "r2 c h w"]:
        halves = (without, empty.vectors)[2 - call.halves :]
        rows = len(x) * call.halves
        text = TextEmbedding(
            vectors=torch.cat([one.expand(len(x), -1, -1) for one in halves]),
            prompts=empty.prompts * rows,
            tokens=empty.tokens * rows,
            mask=None if empty.mask is None else empty.mask.expand(rows, -1),
            pooled=None if empty.pooled is None else empty.pooled.expand(rows, -1),
        )
        return model.denoise(x.repeat(call.halves, 1, 1, 1), int(call.time), text)

    return network


def frame_network(
    model: VideoDiffusion,
    settings: VidSeg,
    frame: Float[Tensor, "1 3 H W"],
    generator: torch.Generator,
) -> Network:
    """Return a video model's U-Net as the loops of denoising call it.

    Args:
        model: Stable Video Diffusion.
        settings: What it is told beside the frame.
        frame: The first of the batch, which conditions all of them.
        generator: Draws the noise on it.
    """
    condition = model.condition(
        frame,
        fps_id=given(settings.fps_id),
        motion_bucket=given(settings.motion_bucket),
        noise_level=given(settings.condition_noise),
        noise=torch.randn(frame.shape, generator=generator),
    )
    halves = condition.without(), condition

    def network(x: Float[Tensor, "r c h w"], call: Call) -> Float[Tensor, "r2 c h w"]:
        clips = x.unflatten(0, (-1, call.clip))
        each = [one for one in halves[2 - call.halves :] for _ in range(len(clips))]
        rows = clips.repeat(call.halves, 1, 1, 1, 1)
        return model.denoise(rows, call.time, FrameCondition.concat(each)).flatten(0, 1)

    return network


def kind_of(model: Diffusion | VideoDiffusion) -> Kind:
    """Return which of the two kinds of settings a model needs."""
    return "svd" if isinstance(model, VideoDiffusion) else "sd"


def check_model(model: Diffusion | VideoDiffusion, settings: VidSeg) -> None:
    """Make sure that a model can do what settings ask, before frames are read.

    Raises:
        InputError: It lacks a block, or sees no such size.
    """
    seen_hw((64, 64), model, settings)
    _read_layers(layers_of(model), settings)


def seen_hw(
    hw: tuple[int, ...], model: Diffusion | VideoDiffusion, settings: VidSeg
) -> tuple[int, int]:
    """Return the height and width at which a model sees frames of size `hw`.

    Sides are brought down to multiples of `settings.multiple`, but never to nothing; where
    `settings.side` gives the area, to the nearest.

    Raises:
        InputError: That is no multiple of the model's own cells.
    """
    multiple = given(settings.multiple)
    # Of a video model the coarsest: its U-Net cannot do with halves of a cell.
    cell = model.coarsest if isinstance(model, VideoDiffusion) else model.scale
    if multiple % cell:
        raise InputError(
            f"multiple must be one of the model's {cell} pixels a cell",
            got=multiple,
            remedy=f"use {max(1, multiple // cell) * cell}, or leave it out",
        )
    if settings.side and not settings.size:
        return working_hw((hw[0], hw[1]), size=settings.side, multiple=multiple)
    height, width = settings.size or hw
    return max(multiple, height // multiple * multiple), max(multiple, width // multiple * multiple)


def stride(model: Diffusion | VideoDiffusion) -> int:
    """Return the pixels that one cell of a model's coarsest grid stands for."""
    if isinstance(model, VideoDiffusion):
        return model.coarsest
    return model.scale * max(one.factor for one in layers_of(model))


def _read_layers(
    layers: Sequence[LayerId], settings: VidSeg
) -> tuple[list[LayerId], LayerId | None, LayerId]:
    """The layers that features are of, that is tracked (None: none is), that is modulated."""
    kind: Modulated = "cross" if settings.feature == "cross_q" else "self"
    featured = [_layer(layers, block, kind) for block in given(settings.feature_blocks)]
    followed = _layer(layers, given(settings.track_block), "self") if settings.refine else None
    block = given(settings.modulate_block)
    targets = [_layer(layers, block, one) for one in given(settings.modulated)]
    return featured, followed, targets[0]


def _injected(settings: VidSeg) -> tuple[Modulated, ...]:
    """Kinds of attention whose queries and keys are the unmodulated pass's."""
    if settings.backbone_kind == "sd":
        return ("self", "cross")
    return ("temporal",) if settings.injected == "code" else ("temporal", "self")


def _layer(layers: Sequence[LayerId], block: int, kind: Modulated) -> LayerId:
    """The first attention of its kind in a decoder block."""
    [pattern] = attention_of([block], [kind])
    found = next((one for one in layers if fnmatchcase(one.name, pattern)), None)
    if found is None:
        raise InputError(
            f"the model must have {kind}-attention in decoder block {block}",
            got="none there",
            remedy="use Stable Diffusion 1.x, 2.x or Stable Video Diffusion, or other blocks",
        )
    return found


def _brought(pixels: Pixels, hw: tuple[int, int]) -> Float[Tensor, "3 H W"]:
    if pixels.shape[:2] != hw:
        picture = PIL.Image.fromarray(pixels)
        pixels = np.array(picture.resize((hw[1], hw[0]), PIL.Image.Resampling.BICUBIC))
    return torch.tensor(pixels).permute(2, 0, 1).float() / 255
