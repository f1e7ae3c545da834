"""Images through a model together, recorded, and taken apart again."""

import json
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from diffuseg.asking import Asked
from diffuseg.attention import (
    AttentionRecord,
    InjectQK,
    LayerId,
    RecordHeader,
    intervene,
    join_rows,
    layers_of,
    record,
)
from diffuseg.attention.captured import Contents, ReducedMap
from diffuseg.attention.layers import select_layers
from diffuseg.backbones import Diffusion, Features, TextEmbedding, seeded_noise
from diffuseg.backbones.text import reweight
from diffuseg.image import Image, to_tensor
from diffuseg.methods import Needs
from diffuseg.models import model_name

# Rows (images x prompts) that go through the U-Net at once.
_MAX_ROWS = 16


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
def capture_batch(
    jobs: Sequence[Job], model: Diffusion | Features, needs: Needs, seed: int
) -> list[Shot]:
    """Record images of one working size together."""
    pixels = torch.cat([to_tensor(job.image, jobs[0].hw) for job in jobs])  # [b, 3, H, W]
    if isinstance(model, Features):
        return _through_vit(jobs, pixels, model)
    shots = _through_unet(jobs, pixels, model, needs, seed)
    if not needs.picture:
        return shots
    seen = (pixels * 255).round().to(torch.uint8)
    pairs = zip(shots, seen, strict=True)
    return [replace(shot, record=shot.record.with_picture(one)) for shot, one in pairs]


def _through_unet(
    jobs: Sequence[Job],
    pixels: Float[Tensor, "b 3 H W"],
    model: Diffusion,
    needs: Needs,
    seed: int,
) -> list[Shot]:
    start = time.perf_counter()
    latents = model.encode(pixels)  # [b, c, h, w]
    encoded = time.perf_counter()

    stressed = [row for job in jobs for row in _rows_of(job.asked, needs)]
    text = _embed(model, stressed, needs)
    owners = [i for i, job in enumerate(jobs) for _ in job.asked.prompts.prompts]
    rows = latents[owners]  # [r, c, h, w]
    noise = _noise(latents, seed) if needs.noise else None  # [1, c, h, w]
    parts: list[AttentionRecord] = []
    # The prompts of one image may be more than go through the U-Net at once.
    for first in range(0, len(rows), _MAX_ROWS):
        run = slice(first, first + _MAX_ROWS)
        header = RecordHeader(
            model=model_name(model),
            prompts=text.prompts[run],
            tokens=text.tokens[run],
            seed=seed if needs.noise else None,
            input_hw=jobs[0].hw,
            provenance={
                "source": model.source,
                "preset": json.dumps(dict(model.preset)),
                **_emphasis_of(needs),
            },
        )
        with _scaling_keys(model, stressed[run], text[run], needs):
            parts.append(_record_rows(model, needs, rows[run], text[run], noise, header))
    held = join_rows(parts)

    seconds = {
        "encode": (encoded - start) / len(jobs),
        "denoise": (time.perf_counter() - encoded) / len(jobs),
    }
    return [
        Shot(_part(held, [i for i, owner in enumerate(owners) if owner == number], job), seconds)
        for number, job in enumerate(jobs)
    ]


def _record_rows(
    model: Diffusion,
    needs: Needs,
    rows: Float[Tensor, "r c h w"],
    text: TextEmbedding,
    noise: Float[Tensor, "1 c h w"] | None,
    header: RecordHeader,
) -> AttentionRecord:
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
    return held


def _through_vit(
    jobs: Sequence[Job], pixels: Float[Tensor, "b 3 H W"], model: Features
) -> list[Shot]:
    """The mean of a vision transformer's attention among patches, as a record."""
    start = time.perf_counter()
    height, width = pixels.shape[2] // model.patch, pixels.shape[3] // model.patch
    layers: list[LayerId] = []
    total = torch.zeros(0)
    for number, maps in enumerate(model.attentions(pixels)):  # [b, heads, n, n]
        one = maps.sum(1)
        total = one if number == 0 else total.add_(one)
        layers.append(_vit_layer(number, maps.shape[1]))
    count = sum(layer.heads for layer in layers)
    mean = ReducedMap(kind="self", hw=(height, width), count=count, values=total.div_(count))
    header = RecordHeader(
        model=model_name(model),
        input_hw=jobs[0].hw,
        latent_hw=(height, width),
        provenance={"source": model.source, "preset": json.dumps(dict(model.preset))},
    )
    grids = {layer.name: (height, width) for layer in layers}
    held = AttentionRecord(Contents(header=header, layers=layers, grids=grids, reduced=[mean]))
    seconds = {"attend": (time.perf_counter() - start) / len(jobs)}
    return [Shot(_part(held, [number], job), seconds) for number, job in enumerate(jobs)]


def _vit_layer(number: int, heads: int) -> LayerId:
    # Width and scale are of use where queries and keys are kept.
    return LayerId(
        name=f"layers.{number}.attention",
        stage="vit",
        block=number,
        index=0,
        depth=0,
        kind="self",
        heads=heads,
        width=0,
        scale=1.0,
        factor=1,
    )


def _part(held: AttentionRecord, rows: Sequence[int], job: Job) -> AttentionRecord:
    """The record of one image of a batch."""
    part = held.rows(rows)
    caption = {} if job.asked.caption is None else {"caption": job.asked.caption}
    header = replace(
        part.header,
        names=job.asked.prompts.names,
        spans=job.asked.spans,
        image_hw=job.image.hw,
        provenance={**part.header.provenance, **caption},
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


_Row = tuple[str, tuple[int, ...]]  # a prompt, and the tokens of it that are stressed


def _rows_of(asked: Asked, needs: Needs) -> list[_Row]:
    prompts = asked.prompts.prompts
    stressed: list[set[int]] = [set() for _ in prompts]
    if needs.emphasis != 1 and needs.emphasis_on == "start":
        stressed = [{0} for _ in prompts]
    elif needs.emphasis != 1:
        for span in asked.spans if asked.stressed is None else asked.stressed:
            stressed[span.row].update(span.tokens)
    return [(text, tuple(sorted(at))) for text, at in zip(prompts, stressed, strict=True)]


def _embed(model: Diffusion, rows: Sequence[_Row], needs: Needs) -> TextEmbedding:
    """Embed each different row once; images of a batch often share theirs."""
    different = list(dict.fromkeys(rows))
    text = _stressed(model, different, needs)
    at = [different.index(row) for row in rows]
    return TextEmbedding(
        vectors=text.vectors[at],
        prompts=tuple(prompt for prompt, _ in rows),
        tokens=tuple(text.tokens[row] for row in at),
        mask=None if text.mask is None else text.mask[at],
        pooled=None if text.pooled is None else text.pooled[at],
    )


def _stressed(model: Diffusion, rows: Sequence[_Row], needs: Needs) -> TextEmbedding:
    prompts = [prompt for prompt, _ in rows]
    text = model.embed(prompts)
    if needs.emphasis_rule == "key" or not any(tokens for _, tokens in rows):
        return text
    weights = _weights(rows, text, needs)
    if needs.emphasis_rule == "blend":
        origin = model.embed("").vectors
    else:
        origin = torch.zeros_like(text.vectors[:1])  # 0 + w (z - 0)
    return replace(text, vectors=reweight(text.vectors, origin, weights))


def _weights(rows: Sequence[_Row], text: TextEmbedding, needs: Needs) -> Float[Tensor, "r t"]:
    weights = torch.ones(text.vectors.shape[:2])
    for row, (_, tokens) in enumerate(rows):
        weights[row, list(tokens)] = needs.emphasis
    return weights


def _scaling_keys(
    model: Diffusion, rows: Sequence[_Row], text: TextEmbedding, needs: Needs
) -> AbstractContextManager[object]:
    """What lets the keys of stressed tokens count more while the U-Net runs."""
    if needs.emphasis_rule != "key" or not any(tokens for _, tokens in rows):
        return nullcontext()
    weights = _weights(rows, text, needs)[:, None, :, None]  # [r, 1, t, 1]
    layers = layers_of(model.unet)
    read = select_layers(layers, names=needs.layers, kinds=needs.kinds, levels=needs.levels)
    # The U-Net stops behind the last layer that is read: later ones never run.
    before = layers[: 1 + max(map(layers.index, read))]
    names = tuple(layer.name for layer in before if layer.kind == "cross")
    return intervene(
        model,
        InjectQK(k=lambda layer, step, own: own * weights.to(own), layers=names, kinds="cross"),
    )


def _emphasis_of(needs: Needs) -> dict[str, str | float]:
    if needs.emphasis == 1:
        return {}
    return {
        "emphasis": needs.emphasis,
        "emphasis_on": needs.emphasis_on,
        "emphasis_rule": needs.emphasis_rule,
    }


def _noise(latents: Float[Tensor, "b c h w"], seed: int) -> Float[Tensor, "1 c h w"]:
    """One noise for every image, so that a batch gives what its images give alone."""
    channels, height, width = latents.shape[1:]
    return seeded_noise((channels, height, width), seed).to(latents.device, latents.dtype)
