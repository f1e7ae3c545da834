"""Prototypes of pixels' text attention: k-means with a symmetric KL divergence.

In iSeg's code (github.com/linsun449/iseg.code), though not in its paper, class maps are smoothed so
before they are refined: every pixel gets the mean of all pixels that attend to the text alike.
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from diffuseg.methods.divergence import Precision, exact_products

_NO_ATTENTION = 1e-6  # stands for zeros
_SMOOTHING = 1e-5  # is added to both maps before they are compared


@torch.no_grad()
def cluster_pixels(
    pixels: Float[Tensor, "n t"],
    hw: tuple[int, int],
    *,
    count: int = 32,
    rounds: int = 20,
    precision: Precision = "float32",
) -> Int[Tensor, " n"]:
    """Return which cluster every pixel is in, numbered from 0 without gaps.

    A prototype no pixel is nearest to is dropped, so there may be fewer clusters than prototypes.

    Args:
        pixels: How much each attends to every token of the text.
        hw: Their grid, height and width.
        count: About how many prototypes; see `prototype_grid`.
        rounds: Of assigning pixels and averaging; there is no early stop.
        precision: "float16" rounds as the authors' code does, where near distances become ties.
            Only to trace published numbers.

    Example:
        >>> pixels = torch.tensor([[0.9, 0.1], [0.1, 0.9], [0.8, 0.2], [0.2, 0.8]])
        >>> cluster_pixels(pixels, (1, 4), count=2)
        tensor([0, 1, 0, 1])
    """
    known = pixels.float()
    known = known.where(known != 0, _NO_ATTENTION)
    prototypes = known[prototype_grid(hw, count).to(known.device)]
    labels = torch.zeros(len(known), dtype=torch.int64, device=known.device)
    compared = _Compared(known) if precision == "float32" else None
    for _ in range(rounds):
        if compared is None:
            apart = half_distances(prototypes, known)
        else:
            apart = compared.distances(prototypes)
        labels = apart.argmin(0).unique(return_inverse=True)[1]
        prototypes = means_of(known, labels)
        prototypes = prototypes.where(prototypes != 0, _NO_ATTENTION)
    return labels


def prototype_grid(hw: tuple[int, int], count: int) -> Int[Tensor, " k"]:
    """Return the pixels the first prototypes are, in a grid of about `count` over the image.

    The step is rounded down as in the authors' code: 32 on 64 x 64 pixels become 36.

    Example:
        >>> prototype_grid((4, 4), 4).tolist()
        [0, 2, 8, 10]
    """
    ys, xs = (torch.arange(0, side, max(1, math.floor(side / math.sqrt(count)))) for side in hw)
    return (ys[:, None] * hw[1] + xs).flatten()


def means_of(pixels: Float[Tensor, "n t"], labels: Int[Tensor, " n"]) -> Float[Tensor, "k t"]:
    """Return the mean of every cluster's pixels; clusters are numbered without gaps.

    Example:
        >>> means_of(torch.tensor([[1.0], [3.0], [5.0]]), torch.tensor([0, 0, 1]))
        tensor([[2.],
                [5.]])
    """
    sizes = torch.bincount(labels)
    total = pixels.new_zeros((len(sizes), pixels.shape[1])).index_add_(0, labels, pixels)
    return total.div_(sizes[:, None])


def half_distances(p: Float[Tensor, "k t"], q: Float[Tensor, "n t"]) -> Float[Tensor, "k n"]:
    """Symmetric KL divergence of all pairs as the authors' code has it, every step in float16.

    Example:
        >>> half_distances(torch.tensor([[0.5, 0.5]]), torch.tensor([[0.5, 0.5]]))
        tensor([[0.]])
    """
    q = q.half() + _SMOOTHING
    log_q = q.log()
    rows = []
    for one in p.half() + _SMOOTHING:  # [t]
        ratio = one.log() - log_q  # [n, t]
        rows.append(0.5 * (one * ratio).sum(-1) - 0.5 * (q * ratio).sum(-1))
    return torch.stack(rows).float()


class _Compared:
    """Pixels that prototypes are compared with round after round; their logarithms are kept."""

    def __init__(self, pixels: Float[Tensor, "n t"]) -> None:
        self._q = pixels + _SMOOTHING
        self._log_q = self._q.log()
        # One number a token shifts no distance, but the terms that cancel get smaller.
        self._shift = self._log_q.mean(0)
        self._log_q -= self._shift
        self._own = (self._q * self._log_q).sum(1)

    def distances(self, prototypes: Float[Tensor, "k t"]) -> Float[Tensor, "k n"]:
        """Half the sum of (p - q)(log p - log q), multiplied out."""
        p = prototypes + _SMOOTHING
        log_p = p.log() - self._shift
        with exact_products(p.device):
            found = p @ self._log_q.T + log_p @ self._q.T
        return ((p * log_p).sum(1, keepdim=True) + self._own - found).mul_(0.5)
