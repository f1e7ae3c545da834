"""MaskCut: masks of objects from normalised cuts of a vision transformer's features.

Wang and others, "Cut and learn for unsupervised object detection and instance segmentation"
(2023). Cells are cut in two by the second eigenvector of their graph, the more salient part is a
mask, its cells are taken out, and so on.
"""

from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from diffuseg.errors import InputError

_APART = 1e-5  # weight of cells that are not alike; the graph stays connected
_ALIKE = 0.5  # overlap with the mask before from which a mask is none of its own
_LEAST_SHARE = 0.01  # of the cells
_FEW_CELLS = 32  # below, an iteration costs more than it saves

Cells = Float[np.ndarray, "n n"]


@torch.no_grad()
def mask_cut(
    features: Float[Tensor, "h w d"],
    *,
    threshold: float = 0.15,
    number: int = 3,
    size: tuple[int, int],
) -> Bool[Tensor, "r H W"]:
    """Propose masks of one picture.

    Args:
        features: Keys of a vision transformer; scale does not matter.
        threshold: Least cosine of neighbours.
        number: Masks looked for; fewer may be found, none where all cells are alike.
        size: Height and width of the masks.

    Returns:
        Masks that do not overlap, in the order found, on the CPU.

    Raises:
        InputError: Features hold NaN or infinity, or no number of masks is asked for.

    Example:
        >>> features = torch.zeros(8, 8, 2)
        >>> features[..., 0] = 1
        >>> features[2:5, 2:5] = torch.tensor([0.0, 1.0])
        >>> masks = mask_cut(features, size=(16, 16))
        >>> masks.shape, int(masks[0].sum())
        (torch.Size([1, 16, 16]), 36)
    """
    masks = cut_cells(features, threshold=threshold, number=number)
    large = F.interpolate(masks[None].to(torch.uint8), size=size, mode="nearest")[0].bool()
    return large[large.flatten(1).any(1)]


@torch.no_grad()
def cut_cells(
    features: Float[Tensor, "h w d"], *, threshold: float, number: int
) -> Bool[Tensor, "r h w"]:
    """The masks by cells, one for every cut; empty where a cut found nothing new.

    Raises:
        InputError: As `mask_cut`.
    """
    if number < 1 or not features.isfinite().all():
        raise InputError(
            "masks are cut from finite features, one or more",
            got=f"number={number}" if number < 1 else "features with NaN or infinity",
            remedy="number=3, and features in float32",
        )
    hw = features.shape[:2]
    weights = affinity(features, threshold)
    masks = np.zeros((number, *hw), dtype=bool)
    taken = np.zeros(hw, dtype=bool)
    before, vector = np.zeros(hw, dtype=bool), None
    for turn in range(number):
        if vector is None:
            vector = second_vector(weights)
        if vector is None:
            break
        found = _salient_part(vector.reshape(hw))
        if turn and (_overlap(found, before) > _ALIKE or found.sum() <= _LEAST_SHARE * found.size):
            found = np.zeros_like(found)
        before = found
        if found.any():
            masks[turn] = found & ~taken
            taken |= found
            weights[taken.ravel()] = _APART
            weights[:, taken.ravel()] = _APART
            vector = None  # the graph has changed; else the next turn has the same cut
    return torch.from_numpy(masks)


def affinity(features: Float[Tensor, "h w d"], threshold: float) -> Cells:
    """Weights between cells: 1 where their cosine is above the threshold, else next to nothing.

    Example:
        >>> affinity(torch.eye(2)[None], 0.15).tolist()
        [[1.0, 1e-05], [1e-05, 1.0]]
    """
    unit = F.normalize(features.float().flatten(0, 1), dim=1)
    return np.where((unit @ unit.T).cpu().numpy() > threshold, 1.0, _APART)


def second_vector(weights: Cells) -> Float[np.ndarray, " n"] | None:
    """Second smallest eigenvector v of (D - W) v = t D v, up to sign and scale.

    D^-1/2 W D^-1/2 has the vectors D^1/2 v for values 1 - t, and its first is known: the root of
    the degrees. That one is moved to the other end of the spectrum, and what is then largest is
    found by Lanczos' iteration.

    Returns:
        The vector, or None where all weights are equal and every cut is as good as any.

    Example:
        >>> weights = np.kron(np.eye(2), np.ones((2, 2))) + 1e-5
        >>> vector = second_vector(weights)
        >>> (np.sign(vector) * np.sign(vector[0])).tolist()
        [1.0, 1.0, -1.0, -1.0]
    """
    from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh

    if weights.min() == weights.max():
        return None
    n, scale = len(weights), 1 / np.sqrt(weights.sum(1))
    first = 1 / scale
    first /= np.linalg.norm(first)

    def product(x: np.ndarray) -> np.ndarray:
        x = x.ravel()
        # Values lie in [-1, 1]: twice the first away, it is the least.
        return scale * (weights @ (scale * x)) - 2 * first * (first @ x)

    if n > _FEW_CELLS:
        # The iteration needs a start that is not the first vector itself: some fixed numbers.
        start = np.random.default_rng(0).standard_normal(n)
        operator = cast(Any, LinearOperator)((n, n), matvec=product, dtype=np.float64)
        try:
            return scale * cast(Any, eigsh)(operator, k=1, which="LA", v0=start)[1][:, 0]
        except ArpackNoConvergence:
            pass
    dense = scale[:, None] * weights * scale - 2 * np.outer(first, first)
    return scale * np.linalg.eigh(dense)[1][:, -1]


def _salient_part(vector: Float[np.ndarray, "h w"]) -> np.ndarray:
    """The side of the cut that holds its strongest cell and few corners, as far as it connects."""
    from scipy.ndimage import label

    side = vector > vector.mean()
    strongest = np.unravel_index(np.abs(vector).argmax(), vector.shape)
    corners = side[[0, 0, -1, -1], [0, -1, 0, -1]].sum()
    if corners >= 3 or not side[strongest]:
        side, vector = ~side, -vector
    pieces, _ = cast(Any, label)(side)
    return pieces == pieces[np.unravel_index(vector.argmax(), vector.shape)]


def _overlap(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / max(1, (a | b).sum()))
