"""iSeg without classes: DiffSeg's segments, spread again and again by reduced self-attention.

"iSeg: An Iterative Refinement-based Framework for Training-free Segmentation" (Sun et al. 2024,
arXiv 2409.03209) reports results without classes, and neither says nor releases where its segments
start from; here they start from DiffSeg's.
"""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from diffuseg import ops
from diffuseg.attention import AttentionRecord
from diffuseg.methods.diffseg import DiffSeg
from diffuseg.methods.iseg_maps import check_heads, own_layers, self_attention
from diffuseg.methods.needs import Model, Needs
from diffuseg.methods.refinement import LogBase, code_units, reduce_entropy, refine
from diffuseg.methods.settings import check_settings, given, recorded_preset, with_preset
from diffuseg.methods.suppression import suppress
from diffuseg.result import Segmentation


@dataclass(frozen=True, slots=True, kw_only=True)
class ISegUnsupervised(DiffSeg):
    """Segment as DiffSeg does, and refine the segments by entropy-reduced self-attention.

    It has all of DiffSeg's settings. A field that is None takes the value found for the model (its
    preset, where DiffSeg's settings may be DiffSeg's own), else the one named last.

    Attributes:
        self_layers: Patterns on the names of the self-attention layers used, of which the finest
            count. The middle one of the last block where there is one, else all.
        self_heads: Numbers of their heads used, or "all". 1 and 2 of five (Stable Diffusion
            2.1-base), else "all".
        ent: How much is cut off the self-attention, in the units of `log_base`. 0.015.
        log_base: "10" or "e", as for `ISeg`.
        iterations: How often the segments are multiplied by the reduced self-attention (N). 10.

    Raises:
        InputError: A value out of range, or two that exclude each other.

    Example:
        >>> ISegUnsupervised(tau=0.9, ent=0.1).ent
        0.1
    """

    self_layers: tuple[str, ...] | None = None
    self_heads: tuple[int, ...] | Literal["all"] | None = None
    ent: float | None = None
    log_base: LogBase = "10"
    iterations: int | None = None

    def __post_init__(self) -> None:
        DiffSeg.__post_init__(self)
        heads, ent, times = self.self_heads, self.ent, self.iterations
        check_settings(
            (
                not isinstance(heads, tuple) or min(heads, default=-1) >= 0,
                "self_heads are numbers from 0",
                heads,
            ),
            (ent is None or ent >= 0, "ent must be 0 or more", ent),
            (times is None or times >= 0, "iterations must be 0 or more", times),
        )

    def needs(self, model: Model) -> Needs:
        """What DiffSeg needs."""
        return DiffSeg.needs(with_preset(self, model.preset.get("iseg-unsupervised", {})), model)

    def __call__(self, record: AttentionRecord, *, scores: bool = False) -> Segmentation:
        """Segment from a record of one image; segments are called "segment 0", "segment 1", …

        Args:
            record: Holds what `needs` says. Rows of the batch are taken for prompts, and averaged.
            scores: Whether the result keeps the map of every segment, at the image's size.

        Raises:
            InputError: The record has no self-attention or numbers that are not finite, a head is
                not there, or the settings do not fit its grids.
        """
        chosen = with_preset(self, recorded_preset(record, "iseg-unsupervised"))
        general: dict[str, object] = {"ent": 0.015, "iterations": 10}
        chosen = with_preset(chosen, general)

        # 1. DiffSeg's segments, on the grid of the self-attention
        found = DiffSeg.__call__(replace(chosen, relabel=False), record)
        layers = own_layers(record.layers, chosen.self_layers)
        check_heads("self_heads", chosen.self_heads, layers)
        hw = record.grid(layers[0])
        seeds = at_cells(found.labels, hw)  # [n, k]

        # 2. Spread over what the self-attention holds together
        attention = self_attention(record, layers, chosen.self_heads)
        ent = code_units(given(chosen.ent), chosen.log_base)
        attention = reduce_entropy(attention, ent=ent, inplace=True)
        seeds = seeds.to(attention.device)
        maps = refine(seeds, attention, iterations=given(chosen.iterations)).T

        # 3. At each pixel of the user's image the highest map wins
        header = record.header
        via = header.input_hw or hw
        planes = ops.minmax(ops.resize(maps.unflatten(1, hw)[None], via)[0])
        return suppress(
            record,
            planes.flatten(1),
            via,
            method="iseg-unsupervised",
            parameters={**found.provenance.parameters, "relabel": chosen.relabel},
            relabel=chosen.relabel,
            scores=scores,
        )


def at_cells(labels: Int[np.ndarray, "H W"], hw: tuple[int, int]) -> Float[Tensor, "n k"]:
    """Return a column for every label, 1 in the cells whose centre has it.

    Example:
        >>> at_cells(np.array([[0, 0, 0, 1]]), (1, 2)).tolist()
        [[1.0, 0.0], [0.0, 1.0]]
    """
    rows, columns = (
        ((np.arange(cells) + 0.5) * side / cells).astype(np.int64)
        for cells, side in zip(hw, labels.shape, strict=True)
    )
    centres = torch.from_numpy(labels[np.ix_(rows, columns)].astype(np.int64))
    return torch.nn.functional.one_hot(centres.flatten()).float()
