"""Cross-attention as a segmentation: each pixel goes to the class word it attends to most.

The maps of the class words are averaged over heads, layers and resolutions, as in DAAM ("What the
DAAM", Tang et al. 2022, arXiv 2210.04885), but taken from one denoising step of a given image. One
product with the self-attention completes them (DiffSegmenter, Wang et al. 2023, arXiv 2309.02773).
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from diffuseg import ops
from diffuseg.attention import AttentionRecord, layers_of
from diffuseg.errors import InputError
from diffuseg.methods.checking import recorded_classes
from diffuseg.methods.choosing import choose_cross, choose_self, matches, weigh_levels
from diffuseg.methods.edges import follow_edges
from diffuseg.methods.labelling import take_highest
from diffuseg.methods.needs import Model, Needs
from diffuseg.methods.settings import (
    check_settings,
    given,
    level_rule,
    recorded_preset,
    weight_rules,
    with_preset,
)
from diffuseg.prompts import TEMPLATE
from diffuseg.provenance import Provenance
from diffuseg.result import Segmentation

BACKGROUND = "background"


@dataclass(frozen=True, slots=True, kw_only=True)
class Attend:
    """Segment by cross-attention to the class words.

    A field that is None takes the value found for the model (its preset), else the one named last.

    Attributes:
        timestep: Noise level at which the image is shown, 0 to 999. 100 (DiffSegmenter).
        levels: Resolutions of cross-attention used: latent side over grid side. All there are.
        weights: How much each of `levels` counts. DiffSegmenter's: 0.3, 0.5, 0.1, 0.1 for levels
            8, 4, 2, 1.
        layers: Patterns on the names of the cross-attention layers used. All.
        heads: Numbers of the heads used, the same in every layer. All.
        prompt: "joint": all classes in one prompt, where they compete for every pixel;
            "per_class": one prompt a class. "joint".
        template: The prompt, {} standing for the classes. "a photo of {}".
        refine: How often the maps are multiplied by the finest self-attention, which spreads them
            over what belongs together. 0.
        self_layers: Patterns on the names of the self-attention layers `refine` uses, of which the
            finest count. All.
        normalise: How maps of different classes are made comparable. "none"; "minmax": each to
            [0, 1]; "sum": each to the same total; "softmax": over the classes at each pixel.
            "minmax" with a background threshold, else "none".
        temperature: Of the softmax over classes, which is taken of the maps' logarithm: 1 gives
            each class its share of the attention, less sharpens.
        background: "none": every pixel belongs to a class. "threshold": pixels where no class
            scores `threshold` are background. "words": `background_words` stand for it.
        threshold: Score of the background, in units of the normalised maps.
        edges: Radius, in pixels the model sees, of the guided filter that lets class maps follow
            the picture's edges (ours). 0: none, as in the papers. 0.
        background_words: Words for what may surround the classes, such as "sky" and "grass".

    Raises:
        InputError: A value out of range, or two that exclude each other.

    Example:
        >>> Attend(levels=(4, 8), weights=(1.0, 1.0), refine=1).refine
        1
    """

    timestep: int | None = None
    levels: tuple[int, ...] | None = None
    weights: tuple[float, ...] | None = None
    layers: tuple[str, ...] | None = None
    heads: tuple[int, ...] | None = None
    prompt: Literal["joint", "per_class"] | None = None
    template: str | None = None
    refine: int | None = None
    self_layers: tuple[str, ...] | None = None
    normalise: Literal["none", "minmax", "sum", "softmax"] | None = None
    temperature: float = 1.0
    background: Literal["none", "threshold", "words"] = "none"
    threshold: float = 0.4
    edges: int | None = None
    background_words: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check(self)

    def needs(self, model: Model) -> Needs:
        """The cross-attention of the layers used and, to refine, the finest self-attention."""
        chosen = self._filled(model.preset.get("attend", {}))
        layers = layers_of(model.unet)
        cross = choose_cross(layers, chosen.levels, chosen.layers)
        finest = choose_self(layers, chosen.self_layers) if chosen.refine else []
        return Needs(
            timesteps=(given(chosen.timestep),),
            kinds=("self", "cross") if finest else ("cross",),
            layers=tuple(layer.name for layer in (*cross, *finest)),
            prompt=given(chosen.prompt),
            template=given(chosen.template),
            background=self.background_words if self.background == "words" else (),
            picture=given(chosen.edges) > 0,
        )

    def __call__(self, record: AttentionRecord, *, scores: bool = False) -> Segmentation:
        """Segment from a record of one image.

        Args:
            record: Holds what `needs` says; its header names the classes and their tokens.
            scores: Whether the result keeps the map of every class, at the image's size.

        Raises:
            InputError: The record lacks the classes or a layer, level or head asked for.
        """
        maps, names = self.class_maps(record)
        chosen = self._filled(recorded_preset(record, "attend"))

        # A constant score for the background
        if chosen.background == "threshold":
            maps = torch.cat([torch.full_like(maps[:1], chosen.threshold), maps])
            names = (BACKGROUND, *names)

        # The best class of each pixel of the user's image
        hw = record.header.image_hw or record.header.input_hw or (maps.shape[1], maps.shape[2])
        labels, planes = best_class(maps, hw, keep=scores)
        return Segmentation(
            labels=labels,
            names=names,
            scores=planes,
            provenance=Provenance(
                model=record.header.model,
                method="attend",
                parameters=asdict(chosen),
                seed=record.header.seed,
                image_hw=record.header.image_hw,
                working_hw=record.header.input_hw,
            ),
        )

    def class_maps(self, record: AttentionRecord) -> tuple[Float[Tensor, "k h w"], tuple[str, ...]]:
        """Return one map a class on the finest grid used, before any background, and the names.

        Args:
            record: As for the method itself.

        Raises:
            InputError: The record lacks the classes or a layer, level or head asked for.
        """
        chosen = self._filled(recorded_preset(record, "attend"))
        names = _names_of(record, chosen)

        # 1. Where each class is looked for, per resolution, heads and layers averaged
        # A full record holds more than was asked for: only the levels of the chosen layers count.
        recorded = [one for one in record.layers if matches(one, chosen.layers)]
        pairs = weigh_levels(recorded, chosen.levels, chosen.weights)
        per_level = [_class_maps(record, names, level, chosen) for level, _ in pairs]  # [k, h, w]

        # 2. One map a class, on the finest grid used
        finest = max((maps.shape[1], maps.shape[2]) for maps in per_level)
        finest = _self_grid(record, chosen) if chosen.refine else finest
        resized = [ops.resize(maps[None], finest) for maps in per_level]
        maps = ops.weighted_mean(resized, [weight for _, weight in pairs])[0]  # [k, h, w]

        # 3. Spread each map over what the finest self-attention holds together
        if chosen.refine:
            attention = _self_attention(record, finest, chosen)  # [1, n, n]
            spread = maps.flatten(1).T[None]  # [1, n, k]
            for _ in range(chosen.refine):
                spread = ops.propagate(attention, spread)
            maps = spread[0].T.unflatten(1, finest).contiguous()

        # 4. Make classes comparable
        maps = _normalised(maps, given(chosen.normalise), chosen.temperature)
        maps = follow_edges(record, maps, given(chosen.edges))
        return maps, names

    def _filled(self, preset: Mapping[str, object]) -> "Attend":
        """This method with nothing left open but what means "all"."""
        known = with_preset(self, preset)
        if known.normalise is None:
            threshold = known.background == "threshold"
            known = replace(known, normalise="minmax" if threshold else "none")
        general = {
            "timestep": 100,
            "prompt": "joint",
            "template": TEMPLATE,
            "refine": 0,
            "edges": 0,
        }
        return with_preset(known, general)


def best_class(
    maps: Float[Tensor, "k h w"], hw: tuple[int, int], *, keep: bool = False
) -> tuple[Int[np.ndarray, "H W"], Float[np.ndarray, "k H W"] | None]:
    """Return the index of the highest map at each pixel of a larger grid, the lowest on ties.

    Scores are resized first (bilinear, half-pixel centres) and compared then; one class at a time,
    so that without `keep` the memory does not grow with the number of classes.

    Args:
        maps: One map a class.
        hw: Height and width of the result.
        keep: Whether the resized maps are returned too.

    Example:
        >>> best_class(torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]]), (1, 4))[0].tolist()
        [[0, 0, 1, 1]]
    """
    planes = (ops.resize(one[None, None], hw)[0, 0] for one in maps)
    return best_plane(planes, keep=keep)


def best_plane(
    planes: Iterable[Float[Tensor, "H W"]], *, keep: bool = False
) -> tuple[Int[np.ndarray, "H W"], Float[np.ndarray, "k H W"] | None]:
    """Return the index of the highest plane at each pixel, the lowest index on ties.

    Args:
        planes: One a class, at least one; from a generator only two exist at a time.
        keep: Whether the planes are returned too.

    Example:
        >>> best_plane(iter([torch.zeros(1, 2), torch.tensor([[0.0, 1.0]])]))[0].tolist()
        [[0, 1]]
    """
    labels, _, kept = take_highest(planes, keep=keep)
    held = torch.stack(kept).cpu().numpy() if keep else None
    return labels.cpu().numpy(), held


def _names_of(record: AttentionRecord, method: Attend) -> tuple[str, ...]:
    names = recorded_classes(record)
    if method.background == "words":
        if BACKGROUND not in names:
            raise InputError(
                "the background words must have been recorded",
                got=f"a record of the classes {', '.join(names)}",
                remedy='capture it with background="words"',
            )
        return (BACKGROUND, *(name for name in names if name != BACKGROUND))
    if method.background == "threshold" and BACKGROUND in names:
        raise InputError(
            "the background is either a class of yours or found by threshold",
            got=f"the class {BACKGROUND!r} and background='threshold'",
            remedy="leave one of them out",
        )
    return names


def _class_maps(
    record: AttentionRecord, names: tuple[str, ...], level: int, method: Attend
) -> Float[Tensor, "k h w"]:
    """Mean attention to the tokens of every class on the grid of a level."""
    patterns = "*" if method.layers is None else method.layers
    maps = record.cross_attention(level=level, layers=patterns, heads=method.heads)  # [b, n, t]
    # Equal layers of one level have one grid.
    grid = next(
        record.grid(one) for one in record.layers if one.kind == "cross" and one.factor == level
    )
    prompts = record.header.prompt_of(record.batch)
    found: list[Tensor] = []
    for name in names:
        columns = [
            maps[row][:, list(span.tokens)].mean(dim=1)
            for span in record.header.spans
            if span.name == name
            for row, prompt in enumerate(prompts)
            if prompt == span.row
        ]
        found.append(torch.stack(columns).mean(dim=0))
    return torch.stack(found).unflatten(1, grid)


def _self_grid(record: AttentionRecord, method: Attend) -> tuple[int, int]:
    layers = [one for one in record.layers if one.kind == "self"]
    matching = [one for one in layers if matches(one, method.self_layers)]
    if not matching:
        raise InputError(
            "refining needs recorded self-attention",
            got=f"self_layers={method.self_layers}, recorded: {len(layers)} layers of that kind",
            remedy="capture with refine=1, or use refine=0",
        )
    return max(record.grid(layer) for layer in matching)


def _self_attention(
    record: AttentionRecord, hw: tuple[int, int], method: Attend
) -> Float[Tensor, "1 n n"]:
    """Mean over the prompts, one at a time: all at once can be gigabytes."""
    patterns = "*" if method.self_layers is None else method.self_layers
    total = record.rows(0).self_attention(hw, layers=patterns)
    for row in range(1, record.batch):
        total.add_(record.rows(row).self_attention(hw, layers=patterns))
    return total.div_(record.batch)


def _normalised(
    maps: Float[Tensor, "k h w"], how: str, temperature: float
) -> Float[Tensor, "k h w"]:
    match how:
        case "minmax":
            return ops.minmax(maps)
        case "sum":
            return maps / maps.sum(dim=(1, 2), keepdim=True).clamp_min(1e-12)
        case "softmax":
            return torch.softmax(maps.clamp_min(1e-12).log() / temperature, dim=0)
    return maps


def _check(method: Attend) -> None:
    levels, weights = method.levels, method.weights
    check_settings(
        (method.edges is None or method.edges >= 0, "edges must be 0 or more", method.edges),
        (
            method.timestep is None or method.timestep >= 0,
            "timestep must be 0 or more",
            method.timestep,
        ),
        level_rule(levels),
        *weight_rules(weights, levels),
        (method.refine is None or method.refine >= 0, "refine must be 0 or more", method.refine),
        (method.temperature > 0, "temperature must be positive", method.temperature),
        (
            method.background != "words" or bool(method.background_words),
            'background="words" needs background_words',
            method.background_words,
        ),
        (
            method.background != "threshold" or method.normalise not in ("none", "sum"),
            'a background threshold needs normalise="minmax" or "softmax"',
            method.normalise,
        ),
    )
