"""iSeg: cross-attention to the class words, spread again and again by reduced self-attention.

"iSeg: An Iterative Refinement-based Framework for Training-free Segmentation" (Sun et al. 2024,
arXiv 2409.03209). The steps on tensors are in `prototypes`, `refinement` and `labelling`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from diffuseg import ops
from diffuseg.attention import AttentionRecord, LayerId, layers_of
from diffuseg.errors import InputError
from diffuseg.methods.attend import BACKGROUND
from diffuseg.methods.checking import check_finite, recorded_classes
from diffuseg.methods.choosing import choose_cross, matches, weigh_levels
from diffuseg.methods.dialects import Wording
from diffuseg.methods.divergence import Precision
from diffuseg.methods.edges import follow_edges
from diffuseg.methods.iseg_maps import (
    Reading,
    check_heads,
    class_maps,
    own_layers,
    self_attention,
)
from diffuseg.methods.iseg_profiles import ISEG_PRESETS, Profile, profile_texts
from diffuseg.methods.labelling import Background, enlarged, label_planes
from diffuseg.methods.needs import Model, Needs
from diffuseg.methods.refinement import LogBase, code_units, minsum, reduce_entropy, refine
from diffuseg.methods.settings import (
    check_settings,
    given,
    level_rule,
    recorded_preset,
    weight_rules,
    with_preset,
)
from diffuseg.provenance import Provenance
from diffuseg.result import Segmentation

# Of a U-Net with Stable Diffusion's blocks; elsewhere all layers of a level serve.
_CROSS_LAYERS = (
    "down_blocks.1.attentions.1.*",
    "down_blocks.2.*",
    "up_blocks.1.*",
    "up_blocks.2.attentions.[01].*",
)
# By latent side over grid side: grids of 16 and 32 for latents of 64.
_LEVEL_WEIGHTS = {4: 0.7, 2: 0.3}


@dataclass(frozen=True, slots=True, kw_only=True)
class ISeg:
    """Segment by the class words' cross-attention, refined by entropy-reduced self-attention.

    A field that is None takes the profile's value, else the one found for the model (its preset),
    else the one named last.

    Attributes:
        profile: A task and data set of the paper, with the authors' settings, prompt and names of
            classes for it; see `ISEG_PRESETS`. None.
        timestep: Noise level at which the image is shown, 0 to 999. 100.
        template: The prompt, {} standing for the classes. The profile's; "a photograph of {} and
            other object and background, ground, land, …" without one.
        wording: Of that prompt. "reference": as it was run. "intended": with all the words of the
            authors' list, most of which their code never adds.
        legacy_token_table: Whether a profile counts tokens by the authors' table, in which "fire
            hydrant" is one short.
        gamma: Factor on the text embedding of the class words (Cat-Cross); 1 leaves them. 1.6.
        scale: What gamma acts on. "embedding" (the authors' code): keys and values. "key": keys,
            as the paper's formula has it.
        levels: Resolutions of cross-attention used: latent side over grid side. 4 and 2.
        weights: How much each of `levels` counts. 0.7 for level 4, 0.3 for 2 and any other.
        layers: Patterns on the names of the cross-attention layers used. The authors' where the
            model has Stable Diffusion's blocks, else all.
        heads: Numbers of the heads used, the same in every layer; "all"; "voc": the authors' list
            for VOC, for Stable Diffusion 2.1-base only. "all".
        self_layers: Patterns on the names of the self-attention layers used, of which the finest
            count. The middle one of the last block where there is one, else all.
        self_heads: Numbers of their heads used, or "all". 1 and 2 of five (Stable Diffusion
            2.1-base), else "all".
        clusters: About how many prototypes the pixels' text attention is replaced by; 0 leaves it
            as it is. 32.
        rounds: Of finding the prototypes.
        kl_dtype: Precision in which they are compared; "float16" only to trace published numbers.
        ent_self: Whether self-attention is reduced and maps are refined several times (Ent-Self).
            Else they are multiplied by it once, as it is.
        ent: How much is cut off the self-attention, in the units of `log_base`. 0.015.
        log_base: "10" (the authors' code): ent log10(e A). "e" (the paper): lambda ln(e A), lambda
            being ent / 2.303.
        iterations: How often maps are multiplied by the reduced self-attention (N). 10.
        normalise: How maps of different classes are made comparable. "minmax" (the authors'): each
            to [0, 1]. "sum": each has a minimum of 0 and the same total. "none": no map is shifted
            or scaled while it is refined. "minmax".
        edges: Radius, in pixels the model sees, of the guided filter that lets class maps follow
            the picture's edges (ours). 0: none, as in the papers. 0.
        background: "square": it scores (1 - s) squared where s is the best class's score.
            "threshold": pixels where no class scores `threshold`. "none": every pixel belongs to a
            class. "square".
        threshold: Score of the background. 0.45.

    Raises:
        InputError: A value out of range, or two that exclude each other.

    Example:
        >>> ISeg(profile="open-vocabulary-coco", iterations=5).iterations
        5
    """

    profile: Profile | None = None
    timestep: int | None = None
    template: str | None = None
    wording: Wording = "reference"
    legacy_token_table: bool = False
    gamma: float | None = None
    scale: Literal["embedding", "key"] = "embedding"
    levels: tuple[int, ...] | None = None
    weights: tuple[float, ...] | None = None
    layers: tuple[str, ...] | None = None
    heads: tuple[int, ...] | Literal["all", "voc"] | None = None
    self_layers: tuple[str, ...] | None = None
    self_heads: tuple[int, ...] | Literal["all"] | None = None
    clusters: int | None = None
    rounds: int = 20
    kl_dtype: Precision = "float32"
    ent_self: bool = True
    ent: float | None = None
    log_base: LogBase = "10"
    iterations: int | None = None
    normalise: Literal["minmax", "sum", "none"] | None = None
    edges: int | None = None
    background: Background | None = None
    threshold: float | None = None

    def __post_init__(self) -> None:
        _check(self)

    def needs(self, model: Model) -> Needs:
        """The cross-attention of the layers used, and the self-attention maps are refined by."""
        chosen = self._filled(model.preset.get("iseg", {}))
        layers = layers_of(model.unet)
        cross, own = _cross_layers(layers, chosen), own_layers(layers, chosen.self_layers)
        check_heads("heads", chosen.heads, cross)
        check_heads("self_heads", chosen.self_heads, own)
        legacy = self.legacy_token_table
        return Needs(
            timesteps=(given(chosen.timestep),),
            kinds=("self", "cross"),
            layers=tuple(layer.name for layer in (*cross, *own)),
            template=given(chosen.template),
            dialect=chosen.profile and profile_texts(chosen.profile, legacy=legacy)[1],
            emphasis=given(chosen.gamma),
            emphasis_rule="key" if self.scale == "key" else "scale",
            picture=given(chosen.edges) > 0,
        )

    def __call__(self, record: AttentionRecord, *, scores: bool = False) -> Segmentation:
        """Segment from a record of one image.

        Args:
            record: Holds what `needs` says; its header names the classes and their tokens.
            scores: Whether the result keeps the map of every class, at the image's size.

        Raises:
            InputError: The record lacks the classes, or a layer, level or head asked for, or holds
                numbers that are not finite.
        """
        chosen = self._filled(recorded_preset(record, "iseg"))
        names = _names(record, chosen)
        cross = _cross_layers(record.layers, chosen)
        own = own_layers(record.layers, chosen.self_layers)
        check_heads("heads", chosen.heads, cross)
        check_heads("self_heads", chosen.self_heads, own)
        hw = record.grid(own[0])

        # 1. Where each class is looked for, pixels that attend to the text alike taken together
        how = Reading(
            layers=tuple(cross),
            levels=_level_weights(chosen),
            heads=given(chosen.heads),
            clusters=given(chosen.clusters),
            rounds=chosen.rounds,
            precision=chosen.kl_dtype,
        )
        maps = class_maps(record, names, hw, how)  # [n, k]

        # 2. Spread each map over what the self-attention holds together
        attention = self_attention(record, own, chosen.self_heads)  # [n, n]
        check_finite(maps, attention)
        maps = _spread(maps, attention, chosen).T.unflatten(1, hw)  # [k, h, w]
        maps = follow_edges(record, maps, given(chosen.edges))

        # 3. The best class, or the background, at each pixel of the user's image
        header = record.header
        size = header.image_hw or header.input_hw or hw
        background: Background = given(chosen.background)
        planes = enlarged(
            maps, header.input_hw or hw, size, minmax=given(chosen.normalise) == "minmax"
        )
        labels, held = label_planes(
            planes, background=background, threshold=given(chosen.threshold), keep=scores
        )
        return Segmentation(
            labels=labels,
            names=names if background == "none" else (BACKGROUND, *names),
            scores=held,
            provenance=Provenance(
                model=header.model,
                method="iseg",
                parameters=asdict(chosen),
                seed=header.seed,
                image_hw=header.image_hw,
                working_hw=header.input_hw,
            ),
        )

    def _filled(self, preset: Mapping[str, object]) -> "ISeg":
        """This method with nothing left open but what the model decides."""
        profile = self.profile or "pseudo-mask-voc"
        template = profile_texts(profile, self.wording)[0]
        general: dict[str, object] = {
            "timestep": 100,
            "template": template,
            "gamma": 1.6,
            "clusters": 32,
            **{**ISEG_PRESETS["pseudo-mask-voc"], "heads": "all"},
            "normalise": "minmax",
            "edges": 0,
            "threshold": 0.45,
        }
        known = self
        if self.profile:
            known = with_preset(known, {**ISEG_PRESETS[self.profile], "template": template})
        if self.levels is not None:
            preset = {name: value for name, value in preset.items() if name != "weights"}
        known = with_preset(known, preset)
        if known.levels is None:
            known = replace(known, levels=tuple(_LEVEL_WEIGHTS))
        return with_preset(known, general)


def _cross_layers(layers: Sequence[LayerId], method: ISeg) -> list[LayerId]:
    levels = given(method.levels)
    found = choose_cross(layers, levels, method.layers)
    if method.layers is None:
        usual = [layer for layer in found if matches(layer, _CROSS_LAYERS)]
        if {one.factor for one in usual} == {one.factor for one in found}:
            found = usual
    missing = sorted(set(levels) - {one.factor for one in found})
    if missing:
        raise InputError(
            "every level must have cross-attention layers",
            got=f"none at {', '.join(map(str, missing))}",
            remedy="levels here are " + ", ".join(map(str, sorted({one.factor for one in found}))),
        )
    return found


def _level_weights(method: ISeg) -> tuple[tuple[int, float], ...]:
    levels = given(method.levels)
    weights = method.weights or tuple(_LEVEL_WEIGHTS.get(level, 0.3) for level in levels)
    return tuple(weigh_levels((), levels, weights))


def _names(record: AttentionRecord, method: ISeg) -> tuple[str, ...]:
    names = recorded_classes(record)
    if method.background != "none" and BACKGROUND in names:
        raise InputError(
            "the background is either a class of yours or found from the scores",
            got=f"the class {BACKGROUND!r} and background={method.background!r}",
            remedy='leave the class out, or use background="none"',
        )
    return names


@torch.no_grad()
def _spread(
    maps: Float[Tensor, "n k"], attention: Float[Tensor, "n n"], method: ISeg
) -> Float[Tensor, "n k"]:
    """Refine maps; `attention` is overwritten."""
    times = given(method.iterations)
    if method.ent_self:
        ent = code_units(given(method.ent), method.log_base)
        attention = reduce_entropy(attention, ent=ent, inplace=True)
        if method.normalise != "none":
            return refine(maps, attention, iterations=times)
    else:
        times = 1
    for _ in range(times):
        maps = ops.propagate(attention[None], maps[None])[0]
    return minsum(maps) if method.normalise == "sum" else maps


def _heads_fit(heads: object) -> bool:
    return not isinstance(heads, tuple) or (bool(heads) and min(heads) >= 0)


def _check(method: ISeg) -> None:
    levels, weights, threshold = method.levels, method.weights, method.threshold
    check_settings(
        (method.edges is None or method.edges >= 0, "edges must be 0 or more", method.edges),
        (
            method.profile is None or method.profile in get_args(Profile),
            f"the profile must be one of {', '.join(get_args(Profile))}",
            method.profile,
        ),
        (
            not method.legacy_token_table or method.profile is not None,
            "the authors' token table is for the classes of a profile",
            "no profile",
        ),
        (
            method.timestep is None or method.timestep >= 0,
            "timestep must be 0 or more",
            method.timestep,
        ),
        (method.gamma is None or method.gamma >= 0, "gamma must be 0 or more", method.gamma),
        level_rule(levels),
        (
            levels is None or len(set(levels)) == len(levels),
            "every level must be named once",
            levels,
        ),
        *weight_rules(weights, levels),
        (_heads_fit(method.heads), "heads are numbers from 0", method.heads),
        (_heads_fit(method.self_heads), "self_heads are numbers from 0", method.self_heads),
        (
            method.clusters is None or method.clusters >= 0,
            "clusters must be 0 or more",
            method.clusters,
        ),
        (method.rounds >= 1, "rounds must be 1 or more", method.rounds),
        (method.ent is None or method.ent >= 0, "ent must be 0 or more", method.ent),
        (
            method.iterations is None or method.iterations >= 0,
            "iterations must be 0 or more",
            method.iterations,
        ),
        (
            method.background in (None, "none") or method.normalise in (None, "minmax"),
            'a background needs normalise="minmax"',
            f"background={method.background!r}, normalise={method.normalise!r}",
        ),
        (
            threshold is None or 0 <= threshold <= 1,
            "threshold must lie between 0 and 1",
            threshold,
        ),
    )
