"""The baselines of DiffSeg: ordinary clustering of the same fused attention.

"Diffuse, Attend, and Segment" (Tian et al., CVPR 2024), appendix 9.4, for which no code was
published. A cell's map over the image is a vector; scikit-learn groups them.
"""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import ClassVar, Literal, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from diffuseg.attention import AttentionRecord
from diffuseg.errors import InputError
from diffuseg.methods.divergence import mean_of
from diffuseg.methods.fusing import Weighting, fuse_record, without_weights
from diffuseg.methods.needs import Model, Needs
from diffuseg.methods.settings import (
    check_settings,
    given,
    recorded_preset,
    weight_rules,
    with_preset,
)
from diffuseg.methods.suppression import Assign, rate_cells, suppress
from diffuseg.result import Segmentation

C = TypeVar("C", bound="Clustering")

Noise = Literal["nearest", "own"]

# What it takes to make DiffSeg's fused maps: a baseline is compared on the same.
_SHARED = ("timestep", "weighting", "weights", "assign")
_NOISE = -1  # scikit-learn's label of cells in no cluster


@dataclass(frozen=True, slots=True, kw_only=True)
class Clustering(ABC):
    """What the baselines share: the record, the fused maps, and how clusters become segments.

    A field that is None takes the value of the model's preset for DiffSeg, else the one named last.

    Attributes:
        timestep: As for DiffSeg. 300.
        weighting: As for DiffSeg. "proportional".
        weights: As for DiffSeg, instead of `weighting`.
        normalise: As for DiffSeg.
        assign: As for DiffSeg: which cluster's mean map a pixel falls to. "highest".
        relabel: Number segments by area and leave out those without a pixel.

    Raises:
        InputError: A value out of range.
    """

    name: ClassVar[str]

    timestep: int | None = None
    weighting: Weighting | None = None
    weights: tuple[float, ...] | None = None
    normalise: bool = False
    assign: Assign | None = None
    relabel: bool = False

    def __post_init__(self) -> None:
        weights = self.weights
        check_settings(
            (
                self.timestep is None or self.timestep >= 0,
                "timestep must be 0 or more",
                self.timestep,
            ),
            *weight_rules(weights),
        )

    def needs(self, model: Model) -> Needs:
        """All self-attention of one call on the clean latents, with an empty prompt."""
        preset = model.preset
        chosen = self._filled(preset.get("diffseg", {}), preset.get(self.name, {}))
        return Needs(
            timesteps=(given(chosen.timestep),), kinds=("self",), prompt="empty", noise=False
        )

    def __call__(self, record: AttentionRecord, *, scores: bool = False) -> Segmentation:
        """Segment from a record of one image; segments are called "segment 0", "segment 1", …

        Args:
            record: Holds what `needs` says. Rows of the batch are taken for prompts, and averaged.
            scores: Whether the result keeps the map of every segment, at the image's size.

        Raises:
            InputError: The number of clusters is left open where it must be known, the record has
                no self-attention or numbers that are not finite, or the weights do not fit.
        """
        chosen = self._filled(
            recorded_preset(record, "diffseg"), recorded_preset(record, self.name)
        )
        fused, grid = fuse_record(
            record, given(chosen.weighting), chosen.weights, normalise=chosen.normalise
        )
        index = torch.from_numpy(chosen._cluster(fused[0])).to(fused.device)
        members = index == torch.arange(int(index.max()) + 1, device=fused.device)[:, None]
        return suppress(
            record,
            rate_cells(mean_of(members, fused[0]), fused[0], chosen.assign),
            grid,
            method=self.name,
            parameters=asdict(chosen),
            relabel=chosen.relabel,
            scores=scores,
        )

    @abstractmethod
    def _cluster(self, fused: Float[Tensor, "n m"]) -> Int[np.ndarray, " n"]:
        """The cluster of every cell, numbered from 0 without gaps."""

    def _filled(self: C, shared: Mapping[str, object], own: Mapping[str, object]) -> C:
        """This method with nothing left open that all baselines have, but `weights`."""
        same = {name: value for name, value in shared.items() if name in _SHARED}
        general = {"timestep": 300, "weighting": "proportional", "assign": "highest"}
        known = with_preset(self, without_weights(own, self.weighting))
        return with_preset(with_preset(known, without_weights(same, known.weighting)), general)


@dataclass(frozen=True, slots=True, kw_only=True)
class KMeans(Clustering):
    """Segment an image by k-means on the fused self-attention.

    The number of segments must be known: the paper gives all images the average number of classes
    of the data set ("K-Means-C"), or each its own ("K-Means-S"), both from the ground truth.

    Attributes:
        k: Number of clusters. Fewer are found where fewer maps differ.
        starts: Runs from different k-means++ starts, of which the best counts. 10 (scikit-learn's
            default at the time of the paper).
        random_state: Seed of the starts.

    Raises:
        InputError: A value out of range.

    Example:
        >>> KMeans(k=3).starts
        10
    """

    name: ClassVar[str] = "kmeans"

    k: int | None = None
    starts: int = 10
    random_state: int = 0

    def __post_init__(self) -> None:
        Clustering.__post_init__(self)
        check_settings(
            (self.k is None or self.k >= 1, "k must be 1 or more", self.k),
            (self.starts >= 1, "starts must be 1 or more", self.starts),
            (self.random_state >= 0, "random_state must be 0 or more", self.random_state),
        )

    def _cluster(self, fused: Float[Tensor, "n m"]) -> Int[np.ndarray, " n"]:
        if self.k is None:
            raise InputError(
                "k-means must be told how many segments there are",
                got="no k",
                remedy="set k, for example --set k=4 or KMeans(k=4)",
            )
        return kmeans_cells(fused, self.k, starts=self.starts, random_state=self.random_state)


@dataclass(frozen=True, slots=True, kw_only=True)
class Dbscan(Clustering):
    """Segment an image by DBSCAN (density) on the fused self-attention.

    Attributes:
        eps: Euclidean distance up to which maps are neighbours. None: `quantile` says.
        quantile: Instead, the share of all pairs of the image's maps that are neighbours. 0.05:
            distances depend on model and grid, the share much less.
        min_samples: Neighbours, itself included, that make a map the core of a cluster. 5
            (scikit-learn's default).
        noise: What becomes of maps in no cluster. "nearest": they join the cluster with the nearest
            mean. "own": they are a segment of their own, the last. The paper does not say.

    Raises:
        InputError: A value out of range.

    Example:
        >>> Dbscan(quantile=0.1).min_samples
        5
    """

    name: ClassVar[str] = "dbscan"

    eps: float | None = None
    quantile: float | None = None
    min_samples: int = 5
    noise: Noise = "nearest"

    def __post_init__(self) -> None:
        Clustering.__post_init__(self)
        share = self.quantile
        check_settings(
            (self.eps is None or self.eps > 0, "eps must be positive", self.eps),
            (share is None or 0 < share < 1, "quantile must lie between 0 and 1", share),
            (self.min_samples >= 1, "min_samples must be 1 or more", self.min_samples),
        )

    def _cluster(self, fused: Float[Tensor, "n m"]) -> Int[np.ndarray, " n"]:
        return dbscan_cells(
            fused,
            self.eps,
            quantile=0.05 if self.quantile is None else self.quantile,
            min_samples=self.min_samples,
            noise=self.noise,
        )


def kmeans_cells(
    fused: Float[Tensor, "n m"], k: int, *, starts: int = 10, random_state: int = 0
) -> Int[np.ndarray, " n"]:
    """Return the cluster of every cell by k-means on their maps.

    Example:
        >>> index = kmeans_cells(torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.1, 0.9]]), 2)
        >>> bool(index[0] == index[1] != index[2])
        True
    """
    from sklearn.cluster import KMeans as Lloyd
    from sklearn.exceptions import ConvergenceWarning

    cells = fused.cpu().numpy()
    method = Lloyd(n_clusters=min(k, len(cells)), n_init=starts, random_state=random_state)  # type: ignore[arg-type]
    with warnings.catch_warnings():
        # Fewer different maps than clusters: an image of one colour.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return _consecutive(method.fit_predict(cells))


def dbscan_cells(
    fused: Float[Tensor, "n m"],
    eps: float | None = None,
    *,
    quantile: float = 0.05,
    min_samples: int = 5,
    noise: Noise = "nearest",
) -> Int[np.ndarray, " n"]:
    """Return the cluster of every cell by DBSCAN on their maps; all one if none is dense.

    Args:
        fused: A map a cell.
        eps: Distance of neighbours; None: that of the `quantile` of all pairs.
        quantile: Used without `eps`.
        min_samples: Neighbours of a core.
        noise: See `Dbscan`.

    Example:
        >>> cells = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.1, 0.9]])
        >>> dbscan_cells(cells, 0.3, min_samples=1).tolist()
        [0, 0, 1]
    """
    from sklearn.cluster import DBSCAN
    from sklearn.metrics import pairwise_distances

    cells = fused.cpu().numpy()
    apart = pairwise_distances(cells)
    if eps is None:
        above = np.triu_indices(len(cells), 1)
        eps = float(np.quantile(apart[above], quantile)) if len(cells) > 1 else 0.0
    # Maps that are all the same lie no distance apart, which scikit-learn does not take.
    eps = max(eps, float(np.finfo(np.float32).tiny))
    found = DBSCAN(eps=eps, min_samples=min_samples, metric="precomputed").fit_predict(apart)
    lost = found == _NOISE
    if lost.all():
        return np.zeros(len(cells), dtype=np.int64)
    if lost.any() and noise == "nearest":
        means = np.stack([cells[found == i].mean(0) for i in range(found.max() + 1)])
        found[lost] = pairwise_distances(cells[lost], means).argmin(1)
    elif lost.any():
        found[lost] = found.max() + 1
    return found.astype(np.int64)


def _consecutive(index: np.ndarray) -> Int[np.ndarray, " n"]:
    return np.unique(index, return_inverse=True)[1].astype(np.int64)
