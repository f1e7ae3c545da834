"""Denoising a batch of frames once as it is, and again with every label pushed and pulled.

The network is any function of noisy latents and of a `Call`, so these loops know no model. Latents
are in single precision between calls.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from diffuseg.errors import InputError
from diffuseg.methods.vidseg.modulation import resize_masks
from diffuseg.methods.vidseg.network import Call, Network
from diffuseg.methods.vidseg.schedule import Schedule, euler_step, guide


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Plain:
    """The unmodulated pass.

    Attributes:
        start: Its first step.
        noisy: Latents before it.
        states: Latents after every step.
        scales: Guidance of every frame.
        clip: Whether all frames see each other.
    """

    start: int
    noisy: Float[Tensor, "f c h w"]
    states: tuple[Float[Tensor, "f c h w"], ...]
    scales: Float[Tensor, " f"]
    clip: bool

    def after(self, index: int) -> Float[Tensor, "f c h w"]:
        """Latents after a step."""
        return self.states[index - self.start]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Responses:
    """Latents of some labels in some frames, denoised with modulation.

    Attributes:
        labels: Number of each pair's label, in the order of the masks.
        frames: Its frame.
        positive: Where the label was pushed.
        negative: Where it was pulled.
    """

    labels: Int[Tensor, " p"]
    frames: Int[Tensor, " p"]
    positive: Float[Tensor, "p c h w"]
    negative: Float[Tensor, "p c h w"]


@torch.no_grad()
def denoise_plain(
    network: Network,
    noisy: Float[Tensor, "f c h w"],
    schedule: Schedule,
    *,
    start: int,
    scales: Float[Tensor, " _f"],
    clip: bool = False,
    rows: int | None = None,
) -> Plain:
    """Denoise the frames of a batch as they are.

    Args:
        network: Keeps what the modulated passes need: it gets every step and every frame once.
        noisy: Latents before the first step.
        schedule: Noise levels.
        start: The first step.
        scales: Guidance of every frame; where all are 1 the unconditional half is left out.
        clip: Whether all frames see each other, as Stable Video Diffusion's do; then they go
            together.
        rows: Most rows in a call, both halves counted; all together by default.

    Raises:
        InputError: There is no such step; scales are not as many as frames.

    Example:
        >>> from diffuseg.methods.vidseg.schedule import sd_schedule
        >>> noise = lambda x, call: x.repeat(call.halves, 1, 1, 1)
        >>> x = torch.randn(2, 4, 8, 8)
        >>> plain = denoise_plain(noise, x, sd_schedule(25), start=22, scales=torch.full((2,), 5.0))
        >>> len(plain.states)
        3
    """
    schedule.check(start)
    if len(scales) != len(noisy):
        raise InputError(
            "there must be one guidance scale a frame",
            got=f"{len(scales)} for {len(noisy)} frames",
            remedy="make them with guidance_scales(len(latents), scale)",
        )
    states, x = [], noisy.float()
    halves = _halves(scales)
    count = len(x) if clip or rows is None else max(1, rows // halves)
    for index in range(start, schedule.steps):
        parts = [
            _step(
                network, x[frames], schedule, _call(schedule, index, frames, scales, clip), scales
            )
            for frames in torch.arange(len(x), device=x.device).split(count)
        ]
        x = torch.cat(parts)
        states.append(x)
    return Plain(start=start, noisy=noisy.float(), states=tuple(states), scales=scales, clip=clip)


@torch.no_grad()
def denoise_modulated(
    network: Network,
    plain: Plain,
    masks: Bool[Tensor, "l f h w"],
    schedule: Schedule,
    *,
    strengths: Float[Tensor, " _f"],
    blended: range,
    grid: tuple[int, int] | None = None,
    rows: int | None = None,
) -> Iterator[Responses]:
    """Denoise once more for every label and both signs, with attention of the unmodulated pass.

    A label is added to, or taken from, the output of the modulated layers inside its mask at the
    first step. Labels, signs and frames share calls, as many as `rows` lets; pairs whose mask is
    empty are left out, as pushing and pulling nothing gives the same image twice. Where frames
    see each other, a label that is in one of them takes all of them through the network, and what
    comes out is given for the frames it is in, or for all if latents are not blended at the end.

    Args:
        network: As `denoise_plain` had it.
        plain: The unmodulated pass.
        masks: Where each label is in each frame.
        schedule: Noise levels.
        strengths: What is added in each frame, lambda.
        blended: Steps after which latents outside the mask are the unmodulated pass's again.
        grid: Of the modulated layers; that of the masks by default.
        rows: Most rows in a call, both halves counted. A single pair, or a single label where
            frames see each other, goes together even if it has more. All by default.

    Yields:
        Pairs of labels and frames, a call's at a time, in order of the labels.

    Raises:
        InputError: Masks or strengths do not fit the frames.
    """
    frames = len(plain.noisy)
    if masks.ndim != 4 or masks.shape[1] != frames or len(strengths) != frames:
        raise InputError(
            f"there must be masks and strengths of {frames} frames",
            got=f"masks {tuple(masks.shape)} and {len(strengths)} strengths",
            remedy="masks are label by frame by row by column, see label_masks",
        )
    masks = masks.to(plain.noisy.device)
    present = masks.flatten(2).any(2)
    pairs = (present.any(1, keepdim=True).expand_as(present) if plain.clip else present).nonzero()
    each = 2 * _halves(plain.scales)
    if plain.clip:
        each *= frames
    count = len(pairs) if rows is None else max(1, rows // each)
    if plain.clip and rows is not None:
        count *= frames
    for part in pairs.split(count or 1):
        if not len(part):
            continue
        found = _modulated(network, plain, masks, schedule, part, strengths, blended, grid)
        if plain.clip and schedule.steps - 1 in blended:
            there = present[part[:, 0], part[:, 1]]
            found = Responses(
                labels=found.labels[there],
                frames=found.frames[there],
                positive=found.positive[there],
                negative=found.negative[there],
            )
        yield found


def _modulated(
    network: Network,
    plain: Plain,
    masks: Bool[Tensor, "l f h w"],
    schedule: Schedule,
    pairs: Int[Tensor, "p 2"],
    strengths: Float[Tensor, " f"],
    blended: range,
    grid: tuple[int, int] | None,
) -> Responses:
    labels, which = pairs.unbind(1)
    coarse = masks[labels, which]
    amounts = strengths.to(coarse.device)[which].view(-1, 1, 1)
    added = resize_masks(coarse, grid or (coarse.shape[1], coarse.shape[2])) * amounts
    added = torch.cat([added, -added])
    inside = F.interpolate(coarse[:, None].float(), size=plain.noisy.shape[-2:], mode="nearest") > 0
    inside = inside.repeat(2, 1, 1, 1)
    frames = which.repeat(2)

    x = plain.noisy[frames]
    for index in range(plain.start, schedule.steps):
        call = _call(schedule, index, frames, plain.scales, plain.clip)
        first = added if index == plain.start else None
        x = _step(network, x, schedule, replace(call, modulated=True, added=first), plain.scales)
        if index in blended:
            x = torch.where(inside, x, plain.after(index)[frames])
    positive, negative = x.chunk(2)
    return Responses(labels=labels, frames=which, positive=positive, negative=negative)


@torch.no_grad()
def invert(
    network: Network,
    latents: Float[Tensor, "f c h w"],
    schedule: Schedule,
    *,
    start: int,
    scales: Float[Tensor, " f"],
    clip: bool = False,
    rows: int | None = None,
) -> Float[Tensor, "f c h w"]:
    """Latents before a step as the sampler itself would have had them: its steps backwards.

    The slope at a noise level is taken where the latents still have the level below. Arguments are
    those of `denoise_plain`; `latents` are clean, and what the network keeps of these calls is not
    to be used.

    Raises:
        InputError: There is no such step.

    Example:
        >>> from diffuseg.methods.vidseg.schedule import sd_schedule
        >>> noise = lambda x, call: torch.ones_like(x)
        >>> x = torch.zeros(1, 4, 8, 8)
        >>> noisy = invert(noise, x, sd_schedule(25), start=22, scales=torch.ones(1))
        >>> round(noisy[0, 0, 0, 0].item(), 4)  # all of the noise of that level
        0.3866
    """
    schedule.check(start)
    x, halves = latents.float(), _halves(scales)
    count = len(x) if clip or rows is None else max(1, rows // halves)
    for index in reversed(range(start, schedule.steps)):
        sigma, below = float(schedule.sigmas[index]), float(schedule.sigmas[index + 1])
        parts = []
        for frames in torch.arange(len(x), device=x.device).split(count):
            call = _call(schedule, index, frames, scales, clip)
            clean = _denoised(network, x[frames], schedule, call, scales)
            parts.append(x[frames] + (sigma - below) * ((x[frames] - clean) / sigma))
        x = torch.cat(parts)
    return x


def _halves(scales: Float[Tensor, " f"]) -> int:
    return 1 if bool((scales == 1).all()) else 2


def _call(
    schedule: Schedule,
    index: int,
    frames: Int[Tensor, " r"],
    scales: Float[Tensor, " f"],
    clip: bool,
) -> Call:
    return Call(
        index=index,
        time=schedule.time(index),
        frames=frames,
        halves=_halves(scales),
        clip=len(scales) if clip else 1,
    )


def _step(
    network: Network,
    x: Float[Tensor, "r c h w"],
    schedule: Schedule,
    call: Call,
    scales: Float[Tensor, " f"],
) -> Float[Tensor, "r c h w"]:
    clean = _denoised(network, x, schedule, call, scales)
    return euler_step(x, clean, schedule, call.index)


def _denoised(
    network: Network,
    x: Float[Tensor, "r c h w"],
    schedule: Schedule,
    call: Call,
    scales: Float[Tensor, " f"],
) -> Float[Tensor, "r c h w"]:
    output = network(schedule.scaled(x, call.index), call).float()
    if call.halves == 1:
        return schedule.denoised(x, output, call.index)
    without, along = (schedule.denoised(x, half, call.index) for half in output.chunk(2))
    return guide(without, along, scales.to(x.device)[call.frames])
