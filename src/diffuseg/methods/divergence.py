"""Attention maps as distributions: how far apart they are, and their means.

All products are of full float32, and large tensors exist a chunk at a time.

Dimension names: `b` images, `n` and `m` cells of the finest grid (the map of each, and what it is a
map over), `k` and `j` maps.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Precision = Literal["float32", "float16"]

# Bytes of a chunk of maps (or of their logarithms) that exist at a time beside the tensor itself.
_SCRATCH_BYTES = {"cpu": 8 << 20}
_SCRATCH_BYTES_ACCELERATOR = 256 << 20
# Zeros come from underflow; a visible epsilon would change distances, small entries are many.
_TINY = torch.finfo(torch.float32).tiny


@torch.no_grad()
def distances(
    p: Float[Tensor, "*b k m"], q: Float[Tensor, "*b n m"], *, chunk: int | None = None
) -> Float[Tensor, "*b k n"]:
    """Symmetric KL divergence of every map of `p` from every map of `q`, in nats.

    Half of KL(p|q) + KL(q|p), which is half the sum of (p - q)(log p - log q). Multiplied out, it
    is two matrix products and the maps' own entropies. Float32; entries are clamped to its
    smallest normal number before the logarithm. Rounding may leave some 1e-6 of either sign where
    two maps are equal.

    Args:
        p: Maps.
        q: Maps; their logarithms exist `chunk` at a time.
        chunk: Changes memory, not the result.

    Example:
        >>> p = torch.tensor([[0.5, 0.5], [0.9, 0.1]])
        >>> [[round(abs(x), 4) for x in row] for row in distances(p, p).tolist()]
        [[0.0, 0.4394], [0.4394, 0.0]]
    """
    p, q = p.float(), q.float()
    result = p.new_empty((*p.shape[:-1], q.shape[-2]))
    log_p = p.clamp_min(_TINY).log_()
    # A shift of all logarithms at a cell by one number changes no distance, but the terms that
    # cancel get smaller, and with them the rounding.
    shift = log_p.mean(-2, keepdim=True)
    log_p.sub_(shift)
    own_p = (p * log_p).sum(-1, keepdim=True)
    size = chunk or rows_that_fit(q, q.numel() // max(1, q.shape[-2]))
    with exact_products(p.device):
        for start in range(0, q.shape[-2], size):
            part = q[..., start : start + size, :]
            log_q = part.clamp_min(_TINY).log_().sub_(shift)
            found = p @ log_q.mT
            found.add_(log_p @ part.mT)
            own_q = log_q.mul_(part).sum(-1)
            torch.sub(own_p + own_q.unsqueeze(-2), found, out=found)
            result[..., start : start + size] = found.mul_(0.5)
    return result


@torch.no_grad()
def anchor_distances(
    fused: Float[Tensor, "b n m"],
    anchors: Int[Tensor, " k"],
    *,
    precision: Precision = "float32",
    chunk: int | None = None,
) -> Float[Tensor, "b k n"]:
    """Symmetric KL divergence of the anchors' maps from those of all cells.

    It depends on no threshold: many can be tried on one.

    Args:
        fused: From `aggregate`.
        anchors: Indices of cells.
        precision: "float16" rounds the maps as the authors' code does; a map with an entry below
            3e-8 is then NaN from all others, and lost. Only to trace published numbers.
        chunk: As for `distances`.
    """
    lost: Tensor | None = None
    if precision == "float16":
        fused = fused.half().float()
        lost = (fused == 0).any(-1)  # [b, n]
    result = distances(fused[:, anchors], fused, chunk=chunk)
    # Exact, so that an anchor belongs to itself at the smallest threshold.
    result[:, torch.arange(len(anchors), device=result.device), anchors] = 0
    if lost is not None:
        result.masked_fill_(lost[:, None] | lost[:, anchors, None], torch.nan)
    return result


@torch.no_grad()
def mean_of(
    chosen: Bool[Tensor, "*b k n"], maps: Float[Tensor, "*b n m"]
) -> Float[Tensor, "*b k m"]:
    """Return the plain mean of the chosen maps, for every row of choices; NaN where none is.

    Example:
        >>> mean_of(torch.tensor([[True, True]]), torch.tensor([[1.0], [2.0]]))
        tensor([[1.5000]])
    """
    with exact_products(maps.device):
        total = chosen.float() @ maps.float()
    return total.div_(chosen.sum(-1, keepdim=True))


def rows_that_fit(tensor: Tensor, row: int) -> int:
    """Return how many rows of `row` numbers fit the scratch memory of the tensor's device.

    Example:
        >>> rows_that_fit(torch.zeros(1), row=1 << 20)
        2
    """
    room = _SCRATCH_BYTES.get(tensor.device.type, _SCRATCH_BYTES_ACCELERATOR)
    return max(1, room // (4 * max(1, row)))


@contextmanager
def exact_products(device: torch.device) -> Iterator[None]:
    """Matrix products in full float32: TensorFloat-32 or autocast would be 1e-2 off, and flip."""
    before = torch.get_float32_matmul_precision()
    with torch.autocast(device.type, enabled=False):
        if before == "highest":
            yield
            return
        torch.set_float32_matmul_precision("highest")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(before)
