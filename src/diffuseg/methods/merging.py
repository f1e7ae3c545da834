"""Attention maps joined into segments, without a word: DiffSeg's algorithm on plain tensors.

"Diffuse, Attend, and Segment" (Tian et al., CVPR 2024): the self-attention of all resolutions is
fused into one tensor that holds a probability map over the image for every cell; maps near in
symmetric KL divergence are averaged, first around a grid of anchors, then among themselves. Where
paper and authors' code differ, this follows the code, whose numbers are the published ones.

Fusing, anchors and divergences have modules of their own; all steps can be had from here.

Dimension names: `b` images, `n` and `m` cells of the finest grid (the map of each, and what it is a
map over), `k` and `j` maps before and after a pass.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from diffuseg.methods.anchors import Grid, anchor_grid, anchor_points
from diffuseg.methods.divergence import Precision, anchor_distances, distances, mean_of
from diffuseg.methods.fusing import Weighting, aggregate, resolution_weights
from diffuseg.methods.threshold import automatic_tau

Tau = float | Literal["auto"]

__all__ = [
    "Grid",
    "Precision",
    "Proposals",
    "Tau",
    "Weighting",
    "aggregate",
    "anchor_distances",
    "anchor_grid",
    "anchor_points",
    "distances",
    "group_near",
    "mean_of",
    "merge",
    "merge_pass",
    "refine_maps",
    "resolution_weights",
]


@dataclass(frozen=True, slots=True)
class Proposals:
    """What merging leaves of one image's maps.

    Attributes:
        maps: One map over the cells a proposal, in the order in which anchors claimed them.
        counts: How many maps there were after each pass.
        taus: The threshold of each pass.
    """

    maps: Float[Tensor, "k m"]
    counts: tuple[int, ...]
    taus: tuple[float, ...]


def group_near(near: Bool[np.ndarray, "k k"], *, reuse: bool = True) -> Bool[np.ndarray, "j k"]:
    """Return the groups that maps form if each, in order, claims the maps near it.

    A map that was claimed starts no group of its own. In the authors' code it still counts in
    later groups; in the paper's algorithm (`reuse=False`) it is gone.

    Example:
        >>> chain = np.array([[1, 1, 0], [1, 1, 1], [0, 1, 1]], dtype=bool)
        >>> group_near(chain).astype(int).tolist()
        [[1, 1, 0], [0, 1, 1]]
        >>> group_near(chain, reuse=False).astype(int).tolist()
        [[1, 1, 0], [0, 0, 1]]
    """
    used = np.zeros(len(near), dtype=bool)
    groups: list[np.ndarray] = []
    for i, row in enumerate(near):
        if used[i]:
            continue
        claimed = row if reuse else row & ~used
        used |= claimed
        if claimed.any():
            groups.append(claimed)
    return np.stack(groups) if groups else near[:0]


@torch.no_grad()
def merge_pass(
    maps: Float[Tensor, "k m"], tau: float, *, reuse: bool = True
) -> Float[Tensor, "j m"]:
    """Average the maps that are near each other, see `group_near`.

    Means are plain: it does not matter how many cells a map stands for.
    """
    apart = distances(maps, maps)
    apart.fill_diagonal_(0)
    groups = group_near((apart < tau).cpu().numpy(), reuse=reuse)
    return mean_of(torch.from_numpy(groups).to(maps.device), maps)


@torch.no_grad()
def merge(
    fused: Float[Tensor, "b n m"],
    anchors: Int[Tensor, " k"],
    taus: Sequence[Tau],
    *,
    reuse: bool = True,
    precision: Precision = "float32",
    chunk: int | None = None,
) -> list[Proposals]:
    """Merge the maps of each image into proposals.

    The first pass gives every anchor the mean of all cells' maps near its own. Each further pass
    averages the maps the last one left that are near each other.

    Args:
        fused: From `aggregate`.
        anchors: Indices of cells, in the order in which they may claim.
        taus: Threshold of every pass, in nats; the first is of the anchors' pass. "auto": what the
            divergences of the image's anchors from each other suggest, see `automatic_tau`.
        reuse: Whether maps claimed in a pass count in later groups of it, see `group_near`.
        precision: As for `anchor_distances`.
        chunk: As for `distances`.

    Example:
        >>> block = torch.tensor([0.4999, 0.4999, 0.0001, 0.0001])
        >>> fused = torch.stack([block, block, block.flip(0), block.flip(0)])[None]
        >>> [found] = merge(fused, torch.arange(4), [1.0, 1.0])
        >>> found.counts
        (4, 2)
    """
    apart = anchor_distances(fused, anchors, precision=precision, chunk=chunk)
    known = [_thresholds(one, anchors, taus) for one in apart]
    limits = apart.new_tensor([one[0] for one in known])
    first = mean_of(apart < limits[:, None, None], fused)  # [b, k, m]
    results: list[Proposals] = []
    for maps, chosen in zip(first, known, strict=True):
        counts = [len(maps)]
        for tau in chosen[1:]:
            maps = merge_pass(_known(maps), tau, reuse=reuse)
            counts.append(len(maps))
        results.append(Proposals(_known(maps), tuple(counts), chosen))
    return results


def _thresholds(
    apart: Float[Tensor, "k n"], anchors: Int[Tensor, " k"], taus: Sequence[Tau]
) -> tuple[float, ...]:
    """The threshold of each pass over one image's maps."""
    if "auto" not in taus:
        return tuple(map(float, taus))
    k = len(anchors)
    among = apart[:, anchors]
    above = torch.ones_like(among, dtype=torch.bool).triu(1)
    found = automatic_tau(among[above] if k > 1 else apart)
    return tuple(found if tau == "auto" else float(tau) for tau in taus)


def _known(maps: Float[Tensor, "k m"]) -> Float[Tensor, "j m"]:
    """Without the maps that half precision has lost."""
    return maps[~maps.isnan().any(-1)]


@torch.no_grad()
def refine_maps(
    fused: Float[Tensor, "n m"],
    maps: Float[Tensor, "k m"],
    how: Literal["kmeans", "kl"] = "kmeans",
) -> tuple[Int[Tensor, " n"], Float[Tensor, "k m"]]:
    """Assign every cell to a proposal and give each the mean map of its cells.

    Args:
        fused: From `aggregate`, of one image.
        maps: Proposals.
        how: "kmeans" (the authors' option): Lloyd's algorithm on the cells' maps in Euclidean
            space, started at the proposals. "kl": the proposal least far in symmetric KL.

    Returns:
        The proposal of every cell, and the new maps; a proposal without cells stays as it was.

    Example:
        >>> cells = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.1, 0.9]])
        >>> index, means = refine_maps(cells, torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
        >>> index.tolist()
        [0, 0, 1]
    """
    if how == "kl":
        index = distances(maps, fused).argmin(0)
    else:
        index = torch.from_numpy(_kmeans(fused, maps)).to(fused.device)
    chosen = index[None] == torch.arange(len(maps), device=fused.device)[:, None]
    means = mean_of(chosen, fused)
    return index, torch.where(chosen.any(-1, keepdim=True), means, maps.float())


def _kmeans(fused: Tensor, maps: Tensor) -> Int[np.ndarray, " n"]:
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    cells, start = (one.cpu().numpy().astype(np.float64) for one in (fused, maps))
    # scikit-learn's own types know only text for both.
    method = KMeans(n_clusters=len(start), init=start, n_init=1)  # type: ignore[arg-type]
    with warnings.catch_warnings():
        # Fewer different maps than proposals: an image of one colour.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return method.fit_predict(cells).astype(np.int64)
