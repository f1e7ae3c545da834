"""DiffSegmenter: a map for each class word, completed by self-attention.

"Diffusion Model is Secretly a Training-free Open Vocabulary Semantic Segmenter" (Wang et al. 2023,
arXiv 2309.02773). Every class has a prompt of its own, so that no class takes attention from
another. The steps on tensors are in `completing`, the prompts in `wording`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from math import isfinite
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from diffuseg import ops
from diffuseg.attention import AttentionRecord, layers_of
from diffuseg.errors import InputError
from diffuseg.methods.attend import BACKGROUND, best_plane
from diffuseg.methods.checking import check_finite, recorded_classes
from diffuseg.methods.choosing import choose_cross, choose_self, matches, weigh_levels
from diffuseg.methods.completing import complete, fuse_levels
from diffuseg.methods.edges import follow_edges
from diffuseg.methods.needs import Model, Needs
from diffuseg.methods.settings import (
    check_settings,
    given,
    level_rule,
    recorded_preset,
    weight_rules,
    with_preset,
)
from diffuseg.methods.wording import PREFIXES
from diffuseg.provenance import Provenance
from diffuseg.result import Segmentation

PAPER_TIMESTEPS = (1, 50, 100, 150)
"""The noise levels the paper averages over; its code uses 100 alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DiffSegmenter:
    """Segment by the attention to each class word, completed by the finest self-attention.

    A field that is None takes the value found for the model (its preset), else the one named last.

    Attributes:
        timesteps: Noise levels; their results are averaged. (100,), as the authors' code; the paper
            has (1, 50, 100, 150).
        levels: Resolutions of cross-attention used: latent side over grid side. All there are.
        weights: How much each level counts. "paper": 0.3, 0.5, 0.1, 0.1 for levels 8, 4, 2, 1.
            "uniform". Or one number for each of `levels`. "paper".
        normalise: What is done to a level's map before they are added: "minmax", stretched to
            [0, 1], or "none". "minmax".
        layers: Patterns on the names of the cross-attention layers used. All.
        heads: Numbers of the heads used, the same in every layer. All.
        self_attention: What completes the maps. "finest": the mean self-attention of the finest
            grid. "all": that of all grids. "none". "finest".
        power: How often the maps are multiplied by it. 1.
        self_layers: Patterns on the names of the self-attention layers used. All.
        self_heads: Numbers of their heads used. All.
        template: The prompt of a class. "a photograph of {}"; for the tokens "voc10" and "coco"
            "a photography of {}".
        caption: Whether a captioner continues each prompt by what it sees. No; yes in the paper.
        tokens: Which tokens stand for a class. "words": all pieces of its words. "attributes": also
            those of a word in -ing right behind it, which only a captioner can have put there.
            "voc12", "voc10", "coco": as the authors' code for that data set. "attributes".
        legacy_coco_ing: With the tokens "coco", take the place after the word in -ing instead of
            the word, as the authors' code does.
        emphasis: Weight of the class word, w: its vector z becomes e + w (z - e), e being the empty
            prompt's. 1.21 ("++").
        edges: Radius, in pixels the model sees, of the guided filter that lets class maps follow
            the picture's edges (ours). 0: none, as in the papers. 0.
        background: "threshold": pixels where no class scores `threshold` are background. "none":
            every pixel belongs to a class. "threshold".
        threshold: Score of the background, where each class's map runs from 0 to 1. 0.45 (ours; the
            authors take the best for each data set).
        calibration: Factors on the scores of classes before they are compared, "name=factor" each.

    Raises:
        InputError: A value out of range, or two that exclude each other.

    Example:
        >>> DiffSegmenter(timesteps=PAPER_TIMESTEPS, weights="uniform").timesteps
        (1, 50, 100, 150)
    """

    timesteps: tuple[int, ...] | None = None
    levels: tuple[int, ...] | None = None
    weights: Literal["paper", "uniform"] | tuple[float, ...] | None = None
    normalise: Literal["minmax", "none"] | None = None
    layers: tuple[str, ...] | None = None
    heads: tuple[int, ...] | None = None
    self_attention: Literal["none", "finest", "all"] | None = None
    power: int | None = None
    self_layers: tuple[str, ...] | None = None
    self_heads: tuple[int, ...] | None = None
    template: str | None = None
    caption: bool | None = None
    tokens: Literal["words", "attributes", "voc12", "voc10", "coco"] | None = None
    legacy_coco_ing: bool = False
    emphasis: float | None = None
    edges: int | None = None
    background: Literal["threshold", "none"] | None = None
    threshold: float | None = None
    calibration: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check(self)

    def needs(self, model: Model) -> Needs:
        """Cross-attention of the layers used, one prompt a class, and what completes the maps."""
        chosen = self._filled(model.preset.get("diffsegmenter", {}))
        layers = layers_of(model.unet)
        used = choose_cross(layers, chosen.levels, chosen.layers)
        completed = chosen.self_attention != "none"
        if completed:
            finest = chosen.self_attention == "finest"
            used += choose_self(layers, chosen.self_layers, finest=finest)
        legacy = chosen.tokens == "coco" and chosen.legacy_coco_ing
        return Needs(
            timesteps=given(chosen.timesteps),
            kinds=("self", "cross") if completed else ("cross",),
            layers=tuple(layer.name for layer in used),
            prompt="per_class",
            template=given(chosen.template),
            continued=given(chosen.caption),
            reading="coco-legacy" if legacy else given(chosen.tokens),
            emphasis=given(chosen.emphasis),
            picture=given(chosen.edges) > 0,
        )

    def __call__(self, record: AttentionRecord, *, scores: bool = False) -> Segmentation:
        """Segment from a record of one image.

        Args:
            record: Holds what `needs` says; its header names the classes and their tokens.
            scores: Whether the result keeps the map of every class, at the image's size.

        Raises:
            InputError: The record lacks the classes or a timestep, layer, level or head asked for,
                or it holds numbers that are not finite.
        """
        chosen = self._filled(recorded_preset(record, "diffsegmenter"))
        names = _names_of(record, chosen)
        places = _places(record)
        hw = _grid(record, chosen)

        # 1. At each noise level: where every class word is looked for, fused and completed
        total = torch.zeros(0)
        steps = given(chosen.timesteps)
        for number, step in enumerate(steps):
            one = _completed(record, places, hw, step, chosen)  # [r, k, h, w]
            total = one if number == 0 else total.add_(one)

        # 2. One map a class: the mean over its synonyms, which have prompts of their own
        found: dict[str, list[Tensor]] = {name: [] for name in names}
        for (row, slot), (name, _) in places.items():
            found[name].append(total[row, slot])
        maps = torch.stack([torch.stack(one).mean(dim=0) for one in found.values()]) / len(steps)
        maps = follow_edges(record, maps, given(chosen.edges))

        # 3. At the user's size each class's map runs from 0 to 1; the background is a constant
        size = record.header.image_hw or record.header.input_hw or hw
        shown = (BACKGROUND, *names) if chosen.background == "threshold" else names
        labels, planes = best_plane(_planes(maps, names, size, chosen), keep=scores)
        return Segmentation(
            labels=labels,
            names=shown,
            scores=planes,
            provenance=Provenance(
                model=record.header.model,
                method="diffsegmenter",
                parameters=asdict(chosen),
                seed=record.header.seed,
                image_hw=record.header.image_hw,
                working_hw=record.header.input_hw,
            ),
        )

    def _filled(self, preset: Mapping[str, object]) -> "DiffSegmenter":
        """This method with nothing left open but what means "all"."""
        # Numbers belong to levels: one chosen alone does not go with the other of a preset.
        if self.levels is not None or isinstance(self.weights, tuple):
            preset = {name: preset[name] for name in preset if name not in ("levels", "weights")}
        known = with_preset(self, preset)
        if known.tokens is None:
            known = replace(known, tokens="attributes")
        prefix = PREFIXES.get(given(known.tokens), "a photograph of ")
        general = {
            "timesteps": (100,),
            "weights": "paper",
            "normalise": "minmax",
            "self_attention": "finest",
            "power": 1,
            "template": prefix + "{}",
            "caption": False,
            "emphasis": 1.21,
            "edges": 0,
            "background": "threshold",
            "threshold": 0.45,
        }
        return with_preset(known, general)


_Places = dict[tuple[int, int], tuple[str, tuple[int, ...]]]  # (row, slot): a class, its tokens


def _places(record: AttentionRecord) -> _Places:
    """Every prompt's classes, counted off; with one prompt a class there is one slot a row."""
    found: _Places = {}
    for row, prompt in enumerate(record.header.prompt_of(record.batch)):
        mine = [span for span in record.header.spans if span.row == prompt]
        found |= {(row, slot): (span.name, span.tokens) for slot, span in enumerate(mine)}
    return found


def _completed(
    record: AttentionRecord,
    places: _Places,
    hw: tuple[int, int],
    step: int,
    method: DiffSegmenter,
) -> Float[Tensor, "r k h w"]:
    """The maps of all classes at one noise level, on the finest grid."""
    recorded = [one for one in record.layers if matches(one, method.layers)]
    weights = None if method.weights in (None, "paper") else method.weights
    if weights == "uniform":
        pairs = [(level, 1.0) for level, _ in weigh_levels(recorded, method.levels, None)]
    else:
        pairs = weigh_levels(recorded, method.levels, weights)
    per_level = [_class_maps(record, places, level, step, method) for level, _ in pairs]
    fused = fuse_levels(
        per_level, hw, [weight for _, weight in pairs], normalise=method.normalise == "minmax"
    )
    if method.self_attention == "none":
        return _finite(fused)
    values = fused.flatten(2).transpose(1, 2)  # [r, n, k]
    spread = complete(
        record,
        values,
        hw,
        step=step,
        layers=method.self_layers or ("*",),
        heads=method.self_heads,
        power=given(method.power),
        every=method.self_attention == "all",
    )
    return _finite(spread).transpose(1, 2).unflatten(2, hw)


def _class_maps(
    record: AttentionRecord, places: _Places, level: int, step: int, method: DiffSegmenter
) -> Float[Tensor, "r k h w"]:
    """Mean attention to the tokens of every class on the grid of a level."""
    maps = record.cross_attention(
        level=level, layers=method.layers or ("*",), heads=method.heads, step=step
    )  # [r, n, t]
    grid = next(
        record.grid(one) for one in record.layers if one.kind == "cross" and one.factor == level
    )
    slots = 1 + max(slot for _, slot in places)
    found = maps.new_zeros((maps.shape[0], slots, maps.shape[1]))
    for (row, slot), (_, tokens) in places.items():
        found[row, slot] = maps[row][:, list(tokens)].mean(dim=1)
    # Looked at here too: stretched to [0, 1] they would be zeros.
    return _finite(found).unflatten(2, grid)


def _finite(maps: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
    check_finite(maps)
    return maps


def _grid(record: AttentionRecord, method: DiffSegmenter) -> tuple[int, int]:
    """The grid on which levels meet: that of the self-attention, else the finest used."""
    if method.self_attention == "none":
        used = [
            one
            for one in record.layers
            if one.kind == "cross"
            and (method.levels is None or one.factor in method.levels)
            and matches(one, method.layers)
        ]
    else:
        used = [
            one for one in record.layers if one.kind == "self" and matches(one, method.self_layers)
        ]
    if not used:
        kind = "cross" if method.self_attention == "none" else "self"
        raise InputError(
            f"{kind}-attention of the layers asked for must have been recorded",
            got=f"{len(record.layers)} recorded layers, none of which is",
            remedy='capture it with these settings, or use self_attention="none"',
        )
    return max(record.grid(layer) for layer in used)


def _planes(
    maps: Float[Tensor, "k h w"],
    names: tuple[str, ...],
    hw: tuple[int, int],
    method: DiffSegmenter,
) -> Iterator[Float[Tensor, "H W"]]:
    """Scores at the user's size, one plane at a time, the background first: it wins ties."""
    if method.background == "threshold":
        yield torch.full(hw, given(method.threshold), device=maps.device)
    factors = dict(_factor(text) for text in method.calibration)
    for name, one in zip(names, maps, strict=True):
        yield ops.minmax(ops.resize(one[None, None], hw)[0, 0]) * factors.get(name, 1.0)


def _names_of(record: AttentionRecord, method: DiffSegmenter) -> tuple[str, ...]:
    names = recorded_classes(record)
    if method.background == "threshold" and BACKGROUND in names:
        raise InputError(
            "the background is either a class of yours or found by threshold",
            got=f"the class {BACKGROUND!r} and background='threshold'",
            remedy="leave one of them out",
        )
    return names


def _factor(text: str) -> tuple[str, float]:
    name, _, number = text.rpartition("=")
    return name.strip(), float(number)


def _is_factor(text: str) -> bool:
    try:
        name, number = _factor(text)
    except ValueError:
        return False
    return bool(name) and isfinite(number) and number >= 0


def _check(method: DiffSegmenter) -> None:
    steps, levels, weights = method.timesteps, method.levels, method.weights
    numbers = weights if isinstance(weights, tuple) else None
    check_settings(
        (method.edges is None or method.edges >= 0, "edges must be 0 or more", method.edges),
        (
            steps is None or (min(steps, default=-1) >= 0 and len(set(steps)) == len(steps)),
            "timesteps must be 0 or more, each named once",
            steps,
        ),
        level_rule(levels),
        *weight_rules(numbers, levels),
        (method.power is None or method.power >= 0, "power must be 0 or more", method.power),
        (
            method.emphasis is None or (isfinite(method.emphasis) and method.emphasis >= 0),
            "emphasis must be a number of 0 or more",
            method.emphasis,
        ),
        (
            method.threshold is None or isfinite(method.threshold),
            "threshold must be a number",
            method.threshold,
        ),
        (
            not method.legacy_coco_ing or method.tokens == "coco",
            'legacy_coco_ing is for tokens="coco"',
            f"tokens={method.tokens!r}",
        ),
        (
            all(_is_factor(one) for one in method.calibration),
            "calibration must be texts such as dog=1.2, factors of 0 or more",
            method.calibration,
        ),
    )
