"""What iSeg reads from a record: class maps before they are refined, and what refines them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from diffuseg import ops
from diffuseg.attention import AttentionRecord, LayerId
from diffuseg.errors import InputError
from diffuseg.methods.choosing import choose_self, matches
from diffuseg.methods.divergence import Precision
from diffuseg.methods.iseg_profiles import VOC_HEAD_COUNTS, VOC_HEADS
from diffuseg.methods.prototypes import cluster_pixels, means_of

# Of a U-Net with Stable Diffusion's blocks; elsewhere all of the finest serve.
_SELF_LAYERS = ("up_blocks.3.attentions.1.*",)
# Of the five heads that layer has in Stable Diffusion 2.1-base.
_SELF_HEADS = {5: (1, 2)}

Heads = tuple[int, ...] | Literal["all", "voc"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """How class maps are made from a record.

    Attributes:
        layers: Cross-attention layers, in forward order.
        levels: Their levels and how much each counts.
        heads: Which heads of every layer; "voc": the authors' list.
        clusters: About how many prototypes pixels are replaced by; 0: none.
        rounds: Of finding them.
        precision: In which they are compared.
    """

    layers: tuple[LayerId, ...]
    levels: tuple[tuple[int, float], ...]
    heads: Heads = "all"
    clusters: int = 32
    rounds: int = 20
    precision: Precision = "float32"


def class_maps(
    record: AttentionRecord, names: Sequence[str], hw: tuple[int, int], how: Reading
) -> Float[Tensor, "n k"]:
    """Return the map of every class on a grid; of a class in several prompts their mean.

    Args:
        record: Its header names the classes and their tokens.
        names: The classes.
        hw: The grid.
        how: What of the record is used.
    """
    maps: dict[str, list[Tensor]] = {name: [] for name in names}
    for row, prompt in enumerate(record.header.prompt_of(record.batch)):
        spans = [span for span in record.header.spans if span.row == prompt and span.name in maps]
        if not spans:
            continue
        one = record.rows(row)
        levels = [_of_level(one, level, how) for level, _ in how.levels]
        pixels = token_maps(levels, [weight for _, weight in how.levels], hw)  # [n, t]
        if how.clusters:
            labels = cluster_pixels(
                pixels, hw, count=how.clusters, rounds=how.rounds, precision=how.precision
            )
            pixels = means_of(pixels, labels)[labels]
        for span in spans:
            maps[span.name].append(pixels[:, list(span.tokens)].mean(1))
    return torch.stack([torch.stack(found).mean(0) for found in maps.values()], dim=1)


def token_maps(
    levels: Sequence[Float[Tensor, "t _ _"]], weights: Sequence[float], hw: tuple[int, int]
) -> Float[Tensor, "n t"]:
    """Add up the levels' maps, each of which is given the sum 1 and the size `hw` first.

    Example:
        >>> token_maps([torch.ones(1, 1, 1), torch.ones(1, 2, 2)], (0.5, 0.4), (2, 2))[:, 0]
        tensor([0.6000, 0.6000, 0.6000, 0.6000])
    """
    tiny = torch.finfo(torch.float32).tiny
    total = torch.zeros((), device=levels[0].device)
    for maps, weight in zip(levels, weights, strict=True):
        scaled = maps / maps.sum((1, 2), keepdim=True).clamp_min(tiny)
        total = total + weight * ops.resize(scaled[None], hw)[0]
    return total.flatten(1).T.contiguous()


def check_heads(name: str, heads: Heads | None, layers: Sequence[LayerId]) -> None:
    """Make sure that layers have the heads asked for.

    Raises:
        InputError: They have not.
    """
    fewest = min(layer.heads for layer in layers)
    if isinstance(heads, tuple) and max(heads) >= fewest:
        raise InputError(
            f"{name} must be there in every layer used",
            got=f"head {max(heads)} of layers with {fewest}",
            remedy=f"use 0 to {fewest - 1}, or other layers",
        )
    if heads == "voc":
        counts: dict[int, int] = {}
        for layer in layers:
            counts[layer.factor] = counts.get(layer.factor, 0) + layer.heads
        if any(VOC_HEAD_COUNTS.get(level) != count for level, count in counts.items()):
            wanted = " and ".join(f"{n} at level {one}" for one, n in VOC_HEAD_COUNTS.items())
            raise InputError(
                f'{name}="voc" is for iSeg\'s layers of Stable Diffusion 2.1-base: {wanted}',
                got=", ".join(f"{n} heads at level {one}" for one, n in counts.items()),
                remedy=f'use {name}="all"',
            )


def own_layers(layers: Sequence[LayerId], patterns: tuple[str, ...] | None = None) -> list[LayerId]:
    """Return the self-attention layers maps are refined by, all of one level.

    Args:
        layers: Of a model, or recorded.
        patterns: On their names; None: iSeg's where there is one, else all.

    Raises:
        InputError: None matches.
    """
    found = choose_self(layers, patterns)
    usual = [layer for layer in found if matches(layer, _SELF_LAYERS)]
    return usual if usual and patterns is None else found


@torch.no_grad()
def self_attention(
    record: AttentionRecord,
    layers: Sequence[LayerId],
    heads: tuple[int, ...] | Literal["all"] | None = None,
) -> Float[Tensor, "n n"]:
    """Return the mean over layers, heads and prompts; one prompt at a time, they are large.

    Args:
        record: Of one image.
        layers: All of one level.
        heads: None: 1 and 2 of five (Stable Diffusion 2.1-base), else all.
    """
    counts = {layer.heads for layer in layers}
    usual = _SELF_HEADS.get(max(counts)) if len(counts) == 1 else None
    chosen = usual if heads is None else None if heads == "all" else heads
    names, hw = [layer.name for layer in layers], record.grid(layers[0])
    total = record.rows(0).self_attention(hw, layers=names, heads=chosen)[0]
    for row in range(1, record.batch):
        total.add_(record.rows(row).self_attention(hw, layers=names, heads=chosen)[0])
    return total.div_(record.batch)


def _of_level(record: AttentionRecord, level: int, how: Reading) -> Float[Tensor, "t h w"]:
    """Mean attention of a level's heads to every token, for a record of one row."""
    layers = [layer for layer in how.layers if layer.factor == level]
    names = [layer.name for layer in layers]
    if how.heads != "voc":
        heads = None if how.heads == "all" else how.heads
        maps = record.cross_attention(level=level, layers=names, heads=heads)[0]  # [n, t]
    else:
        parts: list[Tensor] = []
        counts: list[int] = []
        first = 0
        for layer in layers:
            mine = [one - first for one in VOC_HEADS[level] if 0 <= one - first < layer.heads]
            first += layer.heads
            if mine:
                parts.append(record.maps(layer, heads=mine)[0])
                counts.append(len(mine))
        maps = ops.weighted_mean(parts, counts)
    return maps.T.unflatten(1, record.grid(layers[0]))
