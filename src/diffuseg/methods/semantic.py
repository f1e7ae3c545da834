"""Semantic DiffSeg: DiffSeg's segments, named by the nouns of a caption.

"Diffuse, Attend, and Segment: Unsupervised Zero-Shot Segmentation using Stable Diffusion" (Tian et
al., CVPR 2024), appendix 9.8. Self-attention makes the segments, cross-attention to the nouns of
the same pass names them. The steps on tensors are in `naming`.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from diffuseg.attention import AttentionRecord
from diffuseg.errors import InputError
from diffuseg.methods.checking import check_finite
from diffuseg.methods.diffseg import DiffSeg
from diffuseg.methods.naming import aggregate_cross, noun_maps, vote
from diffuseg.methods.needs import Model, Needs
from diffuseg.methods.nouns import PICTURE_WORDS, fold_plurals
from diffuseg.methods.settings import recorded_preset, with_preset
from diffuseg.prompts import TokenSpan
from diffuseg.result import Segmentation

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class SemanticDiffSeg(DiffSeg):
    """Segment as DiffSeg does, and name every segment by a noun of a caption.

    It has all of DiffSeg's settings. A field that is None takes the value found for the model (its
    preset), else the one named last.

    Attributes:
        masks_from: Which prompt the segments are found under. "caption" (the authors' code), so
            that one pass serves for all; "empty", so that segments are those of DiffSeg.
        cross_weights: How much each resolution of cross-attention counts, finest first. 1 each (the
            authors' call).
        cross_layers: Patterns on the names of the cross-attention layers used. All.
        cross_heads: Numbers of the heads used, the same in every layer. All.
        cross_norm: "pixel": each resolution's maps are divided by their sum over all tokens at
            every pixel (the authors' code). "none": they are added as they are (equation 10).
        norm: What makes the maps of nouns comparable: "l2", the root of the sum of squares over
            pixels (the authors' code), or "sum" (equation 10).
        voting: The score of a noun in a segment: "mean" of its map (the authors' call); "sum"
            (equation 11); "majority": the share of pixels where its map is the highest.
        skip: Nouns of a caption that name no segment; by default those that speak of the picture
            ("photo", "background"). The authors' code skips none.
        fold: Whether singular and plural of a caption's noun are one name.

    Raises:
        InputError: A value out of range, or two that exclude each other.

    Example:
        >>> SemanticDiffSeg(tau=0.9, voting="sum").tau
        0.9
    """

    masks_from: Literal["caption", "empty"] = "caption"
    cross_weights: tuple[float, ...] | None = None
    cross_layers: tuple[str, ...] | None = None
    cross_heads: tuple[int, ...] | None = None
    cross_norm: Literal["pixel", "none"] = "pixel"
    norm: Literal["l2", "sum"] = "l2"
    voting: Literal["mean", "sum", "majority"] = "mean"
    skip: tuple[str, ...] = PICTURE_WORDS
    fold: bool = False

    def __post_init__(self) -> None:
        DiffSeg.__post_init__(self)
        weights = self.cross_weights
        if weights is not None and (min(weights, default=-1) < 0 or not any(weights)):
            raise InputError(
                "cross_weights must not be negative, nor all zero",
                got=weights,
                remedy="leave them out, or give one for each resolution",
            )

    def needs(self, model: Model) -> Needs:
        """All attention of one call on the clean latents under the caption, or of two."""
        chosen = with_preset(self, model.preset.get("semantic-diffseg", {}))
        return replace(
            DiffSeg.needs(chosen, model),
            kinds=("self", "cross"),
            prompt="caption_and_empty" if chosen.masks_from == "empty" else "caption",
        )

    def __call__(self, record: AttentionRecord, *, scores: bool = False) -> Segmentation:
        """Segment and name from a record of one image.

        If the caption has no noun the segments keep their numbers, and a warning is logged.

        Args:
            record: Holds what `needs` says; its header names the nouns and their tokens.
            scores: Whether the result keeps the score of every noun, the same all over a segment.

        Raises:
            InputError: The record lacks a kind of attention or the prompt of the segments, it holds
                numbers that are not finite, or the settings do not fit its grids.
        """
        chosen = with_preset(self, recorded_preset(record, "semantic-diffseg"))
        # Every row has its own prompt from here on.
        record = record.rows(slice(None))

        # 1. Segments without names, at the size of the user's image
        found = DiffSeg.__call__(chosen, _of_masks(record, chosen.masks_from))
        caption = str(record.header.provenance.get("caption", ""))
        origin = replace(found.provenance, method="semantic-diffseg", caption=caption)

        # 2. One map a noun, all on one scale, at the size the model saw
        names = _names(record, chosen)
        spans = [span for span in record.header.spans if span.name in names]
        if not spans:
            log.warning("no noun to name segments by: they stay numbered")
            return replace(found, provenance=origin)
        maps = _noun_maps(record, chosen, spans)  # [l, h, w]
        check_finite(maps)

        # 3. The noun with the highest score names a segment; a name is one label, however often
        labels = torch.from_numpy(found.labels.astype(np.int64)).to(maps.device)
        ids, votes, best = (one.cpu().numpy() for one in vote(labels, maps, chosen.voting))
        kept = tuple(dict.fromkeys(names.values()))
        owner = np.array([kept.index(names[span.name]) for span in spans])  # [l]
        name_of = np.zeros(len(found.names), dtype=np.int32)
        name_of[ids] = owner[best]
        planes = None
        if scores:
            best_of = [votes[:, owner == name].max(1, initial=0) for name in range(len(kept))]
            by_segment = np.zeros((len(kept), len(found.names)), dtype=np.float32)
            by_segment[:, ids] = np.stack(best_of)
            planes = by_segment[:, found.labels]
        return Segmentation(
            labels=name_of[found.labels], names=kept, scores=planes, provenance=origin
        )


def _of_masks(record: AttentionRecord, masks_from: str) -> AttentionRecord:
    """The rows of a record whose prompt the segments are found under."""
    prompts = record.header.prompts
    if record.header.provenance.get("caption") == "":
        return record  # the captioner had nothing to say
    rows = [row for row, prompt in enumerate(prompts) if (not prompt) == (masks_from == "empty")]
    if not rows:
        raise InputError(
            f'masks_from="{masks_from}" needs a record under that prompt',
            got=f"the prompts {', '.join(map(repr, prompts))}" if prompts else "no prompt",
            remedy=f'capture it with masks_from="{masks_from}"',
        )
    return record.rows(rows)


def _names(record: AttentionRecord, method: SemanticDiffSeg) -> dict[str, str]:
    """The names that vote, and what each is reported as; classes of the user's are all kept."""
    names = record.header.names
    if "caption" not in record.header.provenance:
        return {name: name for name in names}
    kept = [name for name in names if name not in method.skip]
    return fold_plurals(kept) if method.fold else {name: name for name in kept}


def _noun_maps(
    record: AttentionRecord, method: SemanticDiffSeg, spans: Sequence[TokenSpan]
) -> Float[Tensor, "l h w"]:
    patterns = method.cross_layers or ("*",)
    grids = sorted(
        {
            record.grid(one)
            for one in record.layers
            if one.kind == "cross" and any(fnmatchcase(one.name, pattern) for pattern in patterns)
        },
        reverse=True,
    )
    weights = method.cross_weights or (1.0,) * len(grids)
    hw = record.header.input_hw or record.header.image_hw or max(grids, default=(1, 1))
    maps: list[Tensor] = []
    for row in range(record.batch):
        mine = [span.tokens for span in spans if span.row == row]
        if not mine:
            continue
        tokens = sorted({token for one in mine for token in one})
        one = record.rows(row)
        planes = aggregate_cross(
            [one.cross_attention(at, layers=patterns, heads=method.cross_heads)[0] for at in grids],
            grids,
            hw,
            weights=weights,
            norm=method.cross_norm,
            tokens=tokens,
        )
        places = [[tokens.index(token) for token in one] for one in mine]
        maps += noun_maps(planes, places, method.norm)
    return torch.stack(maps)
