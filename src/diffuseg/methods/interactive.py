"""Interactive segmentation: what belongs to the places a user points at.

iSeg's interactive mode (Sun et al. 2024, arXiv 2409.03209): a map that is 1 where the user has
pointed is multiplied by the entropy-reduced self-attention again and again. What the authors leave
open, marks on what is not wanted and how they compete with the others, is ours; so is the other way
to spread, by likeness.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from diffuseg import ops
from diffuseg.attention import AttentionRecord, LayerId, layers_of
from diffuseg.errors import InputError
from diffuseg.image import Image, to_tensor
from diffuseg.methods.checking import check_finite
from diffuseg.methods.choosing import matches
from diffuseg.methods.clicks import Clicks
from diffuseg.methods.likeness import Likeness, describe
from diffuseg.methods.needs import Model, Needs
from diffuseg.methods.refinement import fold, join_columns, minsum, reduce_entropy, refine
from diffuseg.methods.settings import check_settings, given, recorded_preset, with_preset
from diffuseg.provenance import Provenance
from diffuseg.result import Segmentation

SELECTED, REST = "selected", "rest"

_TEMPLATE = "a photography of {} and other object and background"
# Cells up to which, on a CPU, all products are multiplied out once rather than anew for each mark.
_FOLDED_CELLS = 1600
# Cells of a line that speak for all of it by likeness; the others are much like them.
_STROKE = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Interactive:
    """Select what belongs to points, lines, boxes, masks and words.

    A field that is None takes the value found for the model (its preset, under "interactive"), else
    the one named last, which is that of the authors' code.

    Attributes:
        spread: "attention": marks spread along self-attention (iSeg). "likeness": to cells with
            like queries, keys and colours, see `likeness`; for models whose self-attention is wide,
            and for edges finer than its grid. "attention".
        timestep: Noise level at which the image is shown, 0 to 999. 100.
        emphasis: What the start token of the empty prompt, or the tokens of the words, are
            multiplied by. 1.6.
        self_layers: Patterns on the names of the self-attention layers used. For "attention" the
            finest of them count: by default the second of the last block. For "likeness" all do:
            by default those on the way up, but for the coarsest.
        self_heads: Numbers of the heads used, the same in every layer. All. (For "attention".)
        ent: How much of the self-attention is cut, see `reduce_entropy`. 0.1. (For "attention".)
        iterations: How often maps are multiplied by it. 50. (For "attention".)
        threshold: Score, 0 to 1, that a pixel must exceed to be selected. 0.5; 0.35 for "likeness".
        cells: For "likeness": cells along the longer side of the image. 64.
        reach: For "likeness": how unlike a mark the cells may be for which it speaks, as a squared
            distance; two cells are 4 to 5 apart on average. 0.8.
        colour: For "likeness": whether colours count.
        cross_levels: For words: resolutions of cross-attention used, latent side over grid side.
            4 and 2.
        cross_weights: How much each of them counts. 0.7 and 0.3.
        template: For words: the prompt, {} standing for them. "a photography of {} and other object
            and background".

    Raises:
        InputError: A value out of range.

    Example:
        >>> Interactive(iterations=10).iterations
        10
    """

    spread: Literal["attention", "likeness"] | None = None
    timestep: int | None = None
    emphasis: float | None = None
    self_layers: tuple[str, ...] | None = None
    self_heads: tuple[int, ...] | None = None
    ent: float | None = None
    iterations: int | None = None
    threshold: float | None = None
    cells: int | None = None
    reach: float | None = None
    colour: bool = True
    cross_levels: tuple[int, ...] | None = None
    cross_weights: tuple[float, ...] | None = None
    template: str | None = None

    def __post_init__(self) -> None:
        _check(self)

    def needs(self, model: Model, *, words: bool = False) -> Needs:
        """The finest self-attention of one call and, for words, the cross-attention to them.

        Args:
            model: Whose layers are used.
            words: Whether classes are named, to be joined with what is pointed at.

        Raises:
            InputError: The model has no such layers.
        """
        chosen = self._filled(model.preset.get("interactive", {}))
        layers = layers_of(model.unet)
        used = [one.name for one in _self_layers(layers, chosen)]
        if words:
            used += [one.name for one in _cross_layers(layers, given(chosen.cross_levels))]
        return Needs(
            timesteps=(given(chosen.timestep),),
            kinds=("self", "cross") if words else ("self",),
            layers=tuple(used),
            prompt="joint" if words else "empty",
            template=given(chosen.template),
            emphasis=given(chosen.emphasis),
            emphasis_on="classes" if words else "start",
            emphasis_rule="scale",
        )

    def prepare(self, record: AttentionRecord, image: Image | None = None) -> "Prepared":
        """Do once all that does not depend on where the user points.

        Args:
            record: Holds what `needs` says. If it knows classes, their maps are joined with what is
                pointed at.
            image: The image, for its colours; without, they do not count.

        Raises:
            InputError: The record lacks attention, or has numbers that are not finite.
        """
        chosen = self._filled(recorded_preset(record, "interactive"))
        layers = _self_layers([one for one in record.layers if one.kind == "self"], chosen)
        finest = max(record.grid(one) for one in layers)
        hw = record.header.image_hw or record.header.input_hw or finest
        words = None
        if record.header.spans:
            words = _class_columns(record, finest, chosen)
            check_finite(words)
        if chosen.spread == "likeness":
            longer = given(chosen.cells) / max(hw)
            grid = (max(1, round(hw[0] * longer)), max(1, round(hw[1] * longer)))
            colours = to_tensor(image, hw) if image is not None and chosen.colour else None
            if words is not None:
                planes = ops.minmax(words.T.unflatten(1, finest))
                words = ops.resize(planes[None], grid)[0].flatten(1).T.cpu()
            like = describe(record.rows(0), layers, grid, colours, reach=given(chosen.reach))
            return Prepared(
                method=chosen, grid=grid, hw=hw, likeness=like, words=words, record=record
            )
        names = [one.name for one in layers]
        attention = torch.zeros(())
        for row in range(record.batch):
            attention = attention + record.rows(row).self_attention(
                finest, layers=names, heads=chosen.self_heads
            )
        attention = attention[0].div_(record.batch)  # [n, n]
        check_finite(attention)
        attention = reduce_entropy(attention, ent=given(chosen.ent), clamp=True)
        iterations = given(chosen.iterations)
        if words is not None:
            words = refine(words, attention, iterations=iterations)
        folded = len(attention) <= _FOLDED_CELLS or attention.device.type != "cpu"
        return Prepared(
            method=chosen,
            grid=finest,
            hw=hw,
            attention=fold(attention, iterations) if folded else attention,
            folded=folded,
            words=words,
            record=record,
        )

    def __call__(
        self,
        record: AttentionRecord,
        clicks: Clicks,
        image: Image | None = None,
        *,
        scores: bool = False,
    ) -> Segmentation:
        """Select from a record of one image; for many selections of one, `prepare` it first.

        Args:
            record: As for `prepare`.
            clicks: What the user points at; may be empty if the record knows classes.
            image: As for `prepare`.
            scores: Whether the result keeps the scores of "rest" and "selected".

        Raises:
            InputError: As `prepare`; nothing wanted is pointed at, or outside of the image.
        """
        return self.prepare(record, image).select(clicks, scores=scores)

    def _filled(self, preset: Mapping[str, object]) -> "Interactive":
        """This method with nothing left open but what means "all"."""
        known = with_preset(with_preset(self, preset), {"spread": "attention"})
        general = {
            "timestep": 100,
            "emphasis": 1.6,
            "ent": 0.1,
            "iterations": 50,
            "threshold": 0.5 if known.spread == "attention" else 0.35,
            "cells": 64,
            "reach": 0.8,
            "cross_levels": (4, 2),
            "cross_weights": (0.7, 0.3),
            "template": _TEMPLATE,
        }
        return with_preset(known, general)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Prepared:
    """An image of which things can be selected again and again, each time in milliseconds.

    Made by `Interactive.prepare`.

    Attributes:
        method: The settings, as they are used.
        grid: Height and width of the grid of cells.
        hw: Height and width of the image.
        record: What it is made from.
        attention: The reduced self-attention, [query, key], or its folded power.
        folded: Whether it is that.
        likeness: Instead of it, how much cells are alike.
        words: The maps of the classes named, if there are any; refined by attention.
    """

    method: Interactive
    grid: tuple[int, int]
    hw: tuple[int, int]
    record: AttentionRecord
    attention: Float[Tensor, "n n"] | None = None
    folded: bool = False
    likeness: Likeness | None = None
    words: Float[Tensor, "n k"] | None = None

    def select(self, clicks: Clicks, *, scores: bool = False) -> Segmentation:
        """Return what belongs to the marks (and words), called "selected", and the "rest".

        A pixel is selected if its score exceeds the threshold and is higher than for what is not
        wanted; the score of the rest is the higher of these two. A cell with a point or line has no
        score for the other side, nor has what lies in a box or mask that is not wanted.

        Raises:
            InputError: Nothing wanted is pointed at, or something outside of the image.
        """
        if len(clicks) or self.words is None:
            clicks.check(self.hw, needs_wanted=self.words is None)
        planes = self._by_attention(clicks) if self.likeness is None else self._by_likeness(clicks)
        for plane, cells in zip(planes, self._pinned(clicks), strict=True):
            plane[cells] = 0
        high = ops.resize(planes.view(1, -1, *self.grid), self.hw)[0]
        rest = high[1].clamp_min(given(self.method.threshold))
        header = self.record.header
        return Segmentation(
            labels=(high[0] > rest).int().cpu().numpy(),
            names=(REST, SELECTED),
            scores=torch.stack([rest, high[0]]).cpu().numpy() if scores else None,
            provenance=Provenance(
                model=header.model,
                method="interactive",
                parameters=asdict(self.method),
                seed=header.seed,
                image_hw=header.image_hw,
                working_hw=header.input_hw,
            ),
        )

    def _by_attention(self, clicks: Clicks) -> Float[Tensor, "2 n"]:
        """Maps of what is wanted and what is not, by iSeg's products."""
        seeds, wanted = clicks.seeds(self.hw, self.grid)
        maps = self._refined(seeds)
        if self.words is not None:
            maps = torch.cat([self.words, maps], 1)
            wanted = torch.cat([wanted.new_ones(self.words.shape[1]), wanted])
        return join_columns(maps, wanted)

    def _by_likeness(self, clicks: Clicks) -> Float[Tensor, "2 n"]:
        """A map of what is wanted, which has gone by what is not already."""
        strokes = clicks.only("point", "line").sparse(_STROKE)
        seeds, wanted = strokes.seeds(self.hw, self.grid)
        areas, _ = clicks.only("box", "mask", positive=True).seeds(self.hw, self.grid)
        hints = None if self.words is None else self.words.amax(1)
        inside = areas.amax(1) if areas.shape[1] else None
        plane = given(self.likeness).select(seeds, wanted, inside, hints)
        return torch.stack([plane, torch.zeros_like(plane)])

    def _pinned(self, clicks: Clicks) -> tuple[Bool[Tensor, " n"], Bool[Tensor, " n"]]:
        """Cells that are not wanted for sure, and those that are: the user has pointed at them."""
        exact, out = clicks.only("point", "line", positive=True), clicks.only(positive=False)
        exactly_out = out.only("point", "line")
        here, there, surely = (one.covered(self.hw, self.grid) for one in (exact, out, exactly_out))
        return there & ~here, here & ~surely

    def _refined(self, seeds: Float[Tensor, "n k"]) -> Float[Tensor, "n k"]:
        """Refine maps of seeds; what is everywhere stays everywhere."""
        attention = given(self.attention)
        seeds = seeds.to(attention.device)
        if not seeds.shape[1]:
            return seeds
        if self.folded:
            maps = minsum(attention @ seeds)
        else:
            maps = refine(seeds, attention, iterations=given(self.method.iterations))
        return torch.where(seeds.amin(0) == seeds.amax(0), seeds, maps)


def _self_layers(layers: Sequence[LayerId], method: Interactive) -> list[LayerId]:
    """The layers that are used, of those that there are."""
    patterns = method.self_layers
    found = [one for one in layers if one.kind == "self" and matches(one, patterns)]
    if not found:
        raise InputError(
            "self_layers must match self-attention layers",
            got=patterns,
            remedy="leave it out, or use a pattern such as up_blocks.3.*",
        )
    if method.spread == "likeness":
        coarsest = max(one.factor for one in layers)
        up = [one for one in found if one.stage == "up" and one.factor < coarsest]
        return found if patterns is not None else up or found
    finest = min(one.factor for one in found)
    found = [one for one in found if one.factor == finest]
    if patterns is not None:
        return found
    last = [one for one in found if one.stage == "up"] or found
    second = [one for one in last if one.index == 1 and one.block == last[-1].block]
    return second or last[-1:]


def _cross_layers(layers: Sequence[LayerId], levels: tuple[int, ...]) -> list[LayerId]:
    found = [one for one in layers if one.kind == "cross" and one.factor in levels]
    # Of grids of half the latent's side the authors read the last block, but for its last layer.
    fine = [one for one in found if one.factor == 2 and one.stage == "up"]
    left_out = {one for one in found if one.factor == 2} - {one for one in fine if one.index < 2}
    kept = [one for one in found if one not in left_out]
    if {one.factor for one in kept} != set(levels):
        raise InputError(
            "cross_levels must be levels of the model's cross-attention",
            got=levels,
            remedy="levels here are "
            + ", ".join(map(str, sorted({one.factor for one in layers if one.kind == "cross"}))),
        )
    return kept


def _class_columns(
    record: AttentionRecord, grid: tuple[int, int], method: Interactive
) -> Float[Tensor, "n k"]:
    """One map a class: each level's attention to its tokens, every token's summing to 1."""
    recorded = [one for one in record.layers if one.kind == "cross"]
    levels, weights = given(method.cross_levels), given(method.cross_weights)
    names = [one.name for one in _cross_layers(recorded, levels)]
    total: Tensor | None = None
    for level, weight in zip(levels, weights, strict=True):
        maps = record.cross_attention(level=level, layers=names)  # [b, n, t]
        layer = next(one for one in recorded if one.factor == level)
        maps = maps / maps.sum(1, keepdim=True)
        planes = maps.transpose(1, 2).unflatten(2, record.grid(layer))
        fine = ops.resize(planes, grid).flatten(2) * weight  # [b, t, n]
        total = fine if total is None else total + fine
    prompts = record.header.prompt_of(record.batch)
    columns: list[Tensor] = []
    for name in record.header.names:
        rows = [
            given(total)[row][list(span.tokens)].mean(0)
            for span in record.header.spans
            if span.name == name
            for row, prompt in enumerate(prompts)
            if prompt == span.row
        ]
        columns.append(torch.stack(rows).mean(0))
    return torch.stack(columns, 1)


def _check(method: Interactive) -> None:
    levels, weights = method.cross_levels, method.cross_weights
    check_settings(
        (
            method.timestep is None or method.timestep >= 0,
            "timestep must be 0 or more",
            method.timestep,
        ),
        (method.ent is None or method.ent >= 0, "ent must be 0 or more", method.ent),
        (
            method.iterations is None or method.iterations >= 0,
            "iterations must be 0 or more",
            method.iterations,
        ),
        (
            method.threshold is None or 0 <= method.threshold < 1,
            "threshold must be at least 0 and less than 1",
            method.threshold,
        ),
        (method.reach is None or method.reach > 0, "reach must be positive", method.reach),
        (method.cells is None or 8 <= method.cells <= 512, "cells must be 8 to 512", method.cells),
        (
            weights is None or levels is None or len(weights) == len(levels),
            "there must be one cross weight a cross level",
            f"levels {levels}, weights {weights}",
        ),
    )
