"""Features of the pictures drawn of a class, pooled to what pixels of others are compared with.

Stage 2 of OVDiff (Karazija and others, 2023, arXiv 2306.09316, section 3.2): of the cells inside a
mask the mean over a picture (instance), over all pictures (class), and the centroids of k-means
(part), once for the foreground and once for the background around it.
"""

import warnings
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int16, Int64
from torch import Tensor

from diffuseg import ops
from diffuseg.errors import InputError

CLASS, INSTANCE, PART = 0, 1, 2
"""Values of `Prototypes.kinds`."""

_MOST_PARTS = 32766  # What a signed 16-bit cell can number on either side of "neither".


@dataclass(frozen=True, slots=True, kw_only=True)
class Prototypes:
    """Mean features of one sign, in the order class, instances, parts.

    Attributes:
        vectors: As pooled, of any length, float32.
        kinds: CLASS, INSTANCE or PART.
        sources: The picture of an instance, the cluster of a part, -1 of the class.
    """

    vectors: Float[Tensor, "p d"]
    kinds: Int64[Tensor, " p"]
    sources: Int64[Tensor, " p"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassPrototypes:
    """What is kept of one class, for one extractor; independent of all other classes.

    Attributes:
        positive: Of the foreground.
        negative: Of the background; no rows where no picture has any.
        cells: The cluster of every cell: from 0 of the foreground, `-(cluster + 2)` of the
            background, -1 of neither. A cell that both masks touch counts as foreground here.
    """

    positive: Prototypes
    negative: Prototypes
    cells: Int16[Tensor, "n h w"]


@torch.no_grad()
def pool_prototypes(
    features: Float[Tensor, "n h w d"],
    fg: Bool[Tensor, "m H W"],
    bg: Bool[Tensor, "m H W"],
    *,
    parts: int = 32,
    seed: int = 0,
    init: tuple[Float[Tensor, "k d"], Float[Tensor, "k d"]] | None = None,
    name: str = "",
) -> ClassPrototypes:
    """Pool the pictures of one class.

    A picture without foreground on the grid of the features is left out, its background too.

    Args:
        features: Of every picture, as they come, not scaled.
        fg: Where the class is, one a picture (m = n), at any size.
        bg: Where it surely is not.
        parts: Clusters a sign; where there are no more cells than that, every cell is one.
        seed: Of the k-means++ start.
        init: Centroids to start from instead, of foreground and background; k-means then goes on
            until no cell changes its cluster.
        name: Of the class, for messages.

    Returns:
        On the CPU.

    Raises:
        InputError: No picture has foreground, sizes do not fit, features are not finite.

    Example:
        >>> features = torch.tensor([[[[1.0, 0.0], [0.0, 3.0]]]])  # one picture of 1 x 2 cells
        >>> left = torch.tensor([[[True, False]]])
        >>> pooled = pool_prototypes(features, left, ~left, parts=1)
        >>> pooled.positive.vectors  # class, instance, part
        tensor([[1., 0.],
                [1., 0.],
                [1., 0.]])
        >>> pooled.cells
        tensor([[[ 0, -2]]], dtype=torch.int16)
    """
    called = f" of {name!r}" if name else ""
    grid = (features.shape[1], features.shape[2])
    _check(features, fg, bg, parts, called)
    fg, bg = (shrink_masks(masks, grid).to(features.device) for masks in (fg, bg))
    kept = fg.flatten(1).any(1)
    if not kept.any():
        raise InputError(
            f"at least one picture{called} must show it",
            got=f"{len(fg)} pictures without foreground",
            remedy="draw more or others (number, seed, template), use a looser mask rule, or leave "
            "the class out",
        )
    bg = bg & kept[:, None, None]
    starts = init or (None, None)
    positive, inside = _pool(features, fg, parts, seed, starts[0], called)
    negative, around = _pool(features, bg, parts, seed, starts[1], called)
    cells = torch.full(fg.shape, -1, dtype=torch.int16)
    cells[bg.cpu()] = -(around + 2)
    cells[fg.cpu()] = inside
    return ClassPrototypes(positive=positive, negative=negative, cells=cells)


def shrink_masks(masks: Bool[Tensor, "n H W"], hw: tuple[int, int]) -> Bool[Tensor, "n h w"]:
    """Return which cells of a grid masks touch: where the bilinear value, not smoothed, is above 0.

    Only the pixels nearest to a cell's centre are looked at.

    Example:
        >>> shrink_masks(torch.eye(4, dtype=torch.bool)[None], (2, 2))
        tensor([[[ True, False],
                 [False,  True]]])
    """
    return ops.resize(masks[:, None].float(), (hw[0], hw[1]))[:, 0] > 0


def cluster(
    samples: Float[Tensor, "s d"],
    parts: int,
    *,
    seed: int = 0,
    init: Float[Tensor, "k d"] | None = None,
) -> tuple[Float[Tensor, "k d"], Int64[Tensor, " s"]]:
    """Return centroids of k-means, and the cluster of every sample.

    Args:
        samples: On the CPU.
        parts: Clusters; with no more samples than that, every sample is its own.
        seed: Of the k-means++ start.
        init: Centroids to start from instead.

    Example:
        >>> centroids, index = cluster(torch.tensor([[0.0], [0.2], [5.0]]), 2)
        >>> sorted(round(float(one), 3) for one in centroids), bool(index[0] == index[1])
        ([0.1, 5.0], True)
    """
    if init is None and len(samples) <= parts:
        return samples.clone(), torch.arange(len(samples))
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    # A start of one's own is for results that can be followed: then to the very end.
    start = {} if init is None else {"init": init.numpy(), "tol": 0.0}
    clusters = parts if init is None else len(init)
    method = KMeans(clusters, n_init=1, max_iter=300, random_state=seed, **start)  # type: ignore[arg-type]
    with warnings.catch_warnings():
        # Fewer different samples than clusters: flat pictures.
        warnings.simplefilter("ignore", ConvergenceWarning)
        index = method.fit_predict(samples.numpy())
    centroids = np.ascontiguousarray(method.cluster_centers_, dtype=np.float32)
    return torch.from_numpy(centroids), torch.from_numpy(index.astype(np.int64))


def _pool(
    features: Float[Tensor, "n h w d"],
    masks: Bool[Tensor, "n h w"],
    parts: int,
    seed: int,
    init: Float[Tensor, "k d"] | None,
    called: str,
) -> tuple[Prototypes, Int16[Tensor, " s"]]:
    """The prototypes of one sign, and the cluster of every cell in the masks."""
    samples = features[masks].float().cpu()
    if not samples.isfinite().all():
        raise InputError(
            f"the features of the pictures{called} must be finite",
            got="NaN or infinity",
            remedy="run the model in float32",
        )
    if not len(samples):
        none = torch.zeros(0, dtype=torch.int64)
        return Prototypes(vectors=samples, kinds=none, sources=none), none.short()
    counts = masks.flatten(1).sum(1).cpu()
    pictures = counts.nonzero()[:, 0]
    means = [one.mean(0) for one in samples.split(counts[pictures].tolist())]
    centroids, index = cluster(samples, parts, seed=seed, init=init)
    pooled = Prototypes(
        vectors=torch.cat([samples.mean(0, keepdim=True), torch.stack(means), centroids]),
        kinds=torch.tensor([CLASS] + [INSTANCE] * len(means) + [PART] * len(centroids)),
        sources=torch.cat([torch.tensor([-1]), pictures, torch.arange(len(centroids))]),
    )
    return pooled, index.short()


def _check(features: Tensor, fg: Tensor, bg: Tensor, parts: int, called: str) -> None:
    if len(features) != len(fg) or fg.shape != bg.shape:
        raise InputError(
            f"there must be one foreground and one background{called} for each picture's features",
            got=f"features {tuple(features.shape)}, {tuple(fg.shape)} and {tuple(bg.shape)}",
            remedy="give masks of one size, in the order of the pictures",
        )
    if not 1 <= parts <= _MOST_PARTS:
        raise InputError(
            f"parts must lie in 1 to {_MOST_PARTS}", got=parts, remedy="the paper has 32"
        )
