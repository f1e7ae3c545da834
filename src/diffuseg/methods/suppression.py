"""From the maps of segments to the segmentation of the user's image."""

from collections.abc import Mapping
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from diffuseg.attention import AttentionRecord
from diffuseg.methods.attend import best_class
from diffuseg.methods.divergence import distances
from diffuseg.provenance import Provenance
from diffuseg.result import Segmentation

Assign = Literal["highest", "nearest"]
"""Which segment a pixel falls to: whose map is highest there, or nearest to the pixel's own."""


def rate_cells(
    maps: Float[Tensor, "k n"], fused: Float[Tensor, "n n"], assign: Assign | None
) -> Float[Tensor, "k n"]:
    """Return what segments compete with at every cell: the highest wins.

    Args:
        maps: One a segment.
        fused: The map of every cell.
        assign: "nearest" compares these, by symmetric KL divergence; else the maps' own values.
    """
    return -distances(maps, fused) if assign == "nearest" else maps


def suppress(
    record: AttentionRecord,
    maps: Float[Tensor, "k n"],
    grid: tuple[int, int],
    *,
    method: str,
    parameters: Mapping[str, object],
    relabel: bool = False,
    scores: bool = False,
) -> Segmentation:
    """Give every pixel of the user's image to the highest map: non-maximum suppression.

    Args:
        record: Where the maps come from.
        maps: One a segment.
        grid: Height and width of the grid of cells.
        method: Name of the method, for the provenance.
        parameters: Its settings.
        relabel: Whether segments are numbered by area, and those without a pixel left out. Else
            "segment 3" is the fourth map, and may have no pixel.
        scores: Whether the result keeps the maps, at the image's size.
    """
    header = record.header
    hw = header.image_hw or header.input_hw or grid
    labels, planes = best_class(maps.unflatten(1, grid), hw, keep=scores)
    return Segmentation.from_labels(
        labels,
        None if relabel else tuple(f"segment {i}" for i in range(len(maps))),
        scores=planes,
        provenance=Provenance(
            model=header.model,
            method=method,
            parameters=parameters,
            seed=header.seed,
            image_hw=header.image_hw,
            working_hw=header.input_hw,
        ),
    )
