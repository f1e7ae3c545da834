"""Images through a model together, recorded, and taken apart again."""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from diffuseg.attention import AttentionRecord, RecordHeader, record
from diffuseg.backbones import Diffusion, TextEmbedding, seeded_noise
from diffuseg.errors import InputError
from diffuseg.image import Image, to_tensor
from diffuseg.methods import Needs
from diffuseg.prompts import ClassName, ClassPrompts, TokenSpan, build_prompts, parse_classes

# Rows (images x prompts) that go through the U-Net at once; more only for the prompts of one image.
_MAX_ROWS = 16


@dataclass(frozen=True, slots=True)
class Asked:
    """What is looked for in one image: the prompts, and which of their tokens name what."""

    prompts: ClassPrompts
    spans: tuple[TokenSpan, ...]


@dataclass(frozen=True, slots=True)
class Job:
    """One image on its way to the model, which will see it at `hw`."""

    image: Image
    asked: Asked
    hw: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Shot:
    """The record of one image, and its share of the seconds each stage of the batch took."""

    record: AttentionRecord
    seconds: dict[str, float]


@torch.no_grad()
def capture_batch(jobs: Sequence[Job], model: Diffusion, needs: Needs, seed: int) -> list[Shot]:
    """Record images of one working size together."""
    start = time.perf_counter()
    hw = jobs[0].hw
    latents = model.encode(torch.cat([to_tensor(job.image, hw) for job in jobs]))  # [b, c, h, w]
    encoded = time.perf_counter()

    text = _embed(model, [prompt for job in jobs for prompt in job.asked.prompts.prompts])
    owners = [i for i, job in enumerate(jobs) for _ in job.asked.prompts.prompts]
    rows = latents[owners]  # [r, c, h, w]
    noise = _noise(latents, seed) if needs.noise else None  # [1, c, h, w]
    header = RecordHeader(
        model=model_name(model),
        prompts=text.prompts,
        tokens=text.tokens,
        seed=seed if needs.noise else None,
        input_hw=hw,
        provenance={"source": model.source, "preset": json.dumps(dict(model.preset))},
    )
    recorder = record(
        model,
        layers=needs.layers,
        kinds=needs.kinds,
        levels=needs.levels,
        heads=needs.heads,
        features=needs.features,
        device=None,
        early_exit=True,
        header=header,
    )
    with recorder as held:
        for timestep in needs.timesteps:
            noisy = rows if noise is None else model.add_noise(rows, timestep, noise)
            recorder.run(partial(model.denoise, noisy, timestep, text))

    seconds = {
        "encode": (encoded - start) / len(jobs),
        "denoise": (time.perf_counter() - encoded) / len(jobs),
    }
    return [
        Shot(_part(held, [i for i, owner in enumerate(owners) if owner == number], job), seconds)
        for number, job in enumerate(jobs)
    ]


def _part(held: AttentionRecord, rows: Sequence[int], job: Job) -> AttentionRecord:
    """The record of one image of a batch."""
    part = held.rows(rows)
    header = replace(
        part.header,
        names=job.asked.prompts.names,
        spans=job.asked.spans,
        image_hw=job.image.hw,
    )
    return part.with_header(header)


def group_jobs(jobs: Sequence[Job]) -> list[list[int]]:
    """Which images go through the model together: one working size, not too many rows."""
    groups: list[list[int]] = []
    room: dict[tuple[int, int], tuple[list[int], int]] = {}
    for number, job in enumerate(jobs):
        n_rows = len(job.asked.prompts.prompts)
        group, used = room.get(job.hw, ([], 0))
        if not group or used + n_rows > _MAX_ROWS:
            group, used = [], 0
            groups.append(group)
        group.append(number)
        room[job.hw] = (group, used + n_rows)
    return groups


def ask(model: Diffusion, needs: Needs, classes: tuple[ClassName, ...] | None) -> Asked:
    """The prompts of an image, every word known to the model and every name within its reach."""
    if needs.prompt == "empty":
        return Asked(ClassPrompts(prompts=("",), names=(), spans=()), ())
    if classes is None:
        raise InputError(
            "this method needs the names of the classes to look for",
            got="none",
            remedy='name them, for example "car, tree, grass"',
        )
    if needs.background:
        if any(one.name.casefold() == "background" for one in classes):
            raise InputError(
                "the background is either a class of yours or found by words",
                got="the class 'background' and background words",
                remedy="leave one of them out",
            )
        surroundings = ClassName(name="background", words=needs.background)
        classes = parse_classes([*classes, surroundings])
    model.check_words([word for one in classes for word in one.words])
    joint = needs.prompt == "joint"
    prompts = build_prompts(classes, needs.template, joint=joint, fits=model.fits)
    return Asked(prompts, model.token_spans(prompts))


def _embed(model: Diffusion, prompts: Sequence[str]) -> TextEmbedding:
    """Embed each different prompt once; images of a batch often share theirs."""
    different = list(dict.fromkeys(prompts))
    text = model.embed(different)
    rows = [different.index(prompt) for prompt in prompts]
    return TextEmbedding(
        vectors=text.vectors[rows],
        prompts=tuple(prompts),
        tokens=tuple(text.tokens[row] for row in rows),
        mask=None if text.mask is None else text.mask[rows],
        pooled=None if text.pooled is None else text.pooled[rows],
    )


def _noise(latents: Float[Tensor, "b c h w"], seed: int) -> Float[Tensor, "1 c h w"]:
    """One noise for every image, so that a batch gives what its images give alone."""
    channels, height, width = latents.shape[1:]
    return seeded_noise((channels, height, width), seed).to(latents.device, latents.dtype)


def model_name(model: Diffusion) -> str:
    """Return a model's name, with the source of its weights where that says more.

    Example:
        >>> model_name(load("mini"))  # doctest: +SKIP
        'mini (embedded)'
    """
    return model.name if model.source == model.name else f"{model.name} ({model.source})"
