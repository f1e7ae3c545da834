"""Entropy-reduced self-attention, and class maps spread along it again and again.

The steps on tensors of iSeg (Sun et al. 2024, arXiv 2409.03209): weak links of the self-attention
are cut, so that a map can be multiplied by it many times without flowing over the whole image.
"""

import math
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

LogBase = Literal["10", "e"]

# Rows worked on at a time, by bytes: they and two scratch copies stay in the last cache level.
_CHUNK_BYTES = 1 << 20
# Rows of a matrix product with few columns, by bytes; measured on 4096 x 4096 with 20 columns.
_PRODUCT_BYTES = 8 << 20
_LN_10 = math.log(10)


def code_units(ent: float, log_base: LogBase) -> float:
    """Return how much is cut, for `reduce_entropy`, of a number meant with log10 or ln.

    Example:
        >>> round(code_units(0.01, "e"), 4)  # the paper's lambda
        0.023
    """
    return ent if log_base == "10" else ent * _LN_10


@torch.no_grad()
def reduce_entropy(
    attention: Float[Tensor, "n m"],
    *,
    ent: float = 0.015,
    clamp: bool = False,
    inplace: bool = False,
) -> Float[Tensor, "n m"]:
    """Cut weak links of self-attention: A + ent log10(e A), of A with every key's maximum at 1.

    Below a cut that `ent` sets the sum is negative and the link is removed; what remains is scaled
    so that every query's row sums to 1. A query with no link above the cut keeps its row as it was
    given, because an empty row would make all maps undefined.

    Args:
        attention: Non-negative, [query, key], rows summing to 1.
        ent: How much is cut, the paper's lambda times ln 10. 0 cuts nothing, but keys are scaled.
        clamp: Whether links are limited to 1 before rows are scaled, as in interactive use.
        inplace: Whether `attention` (float32) is overwritten and returned; else it is copied.

    Example:
        >>> maps = torch.tensor([[0.90, 0.10, 0.00], [0.05, 0.90, 0.05], [0.00, 0.30, 0.70]])
        >>> reduce_entropy(maps, ent=0.2)[0]  # the link of 0.1 / 0.9 is just above the cut
        tensor([0.9935, 0.0065, 0.0000])
    """
    result = attention if inplace else torch.empty_like(attention, dtype=torch.float32)
    n, m = attention.shape
    tiny = torch.finfo(torch.float32).tiny
    highest = attention.amax(0).float().clamp_min_(tiny)
    size = max(1, _CHUNK_BYTES // (4 * m))
    scratch = highest.new_empty((2, min(size, n), m))
    for start in range(0, n, size):
        rows = attention[start : start + size]
        links, logs = scratch[:, : len(rows)]
        torch.div(rows, highest, out=links)
        if ent / _LN_10 >= tiny:  # what float32 would read as 0 times -inf is no number
            # log(0) is -inf, and so no link stays none.
            torch.log(links, out=logs)
            links.add_(logs, alpha=ent / _LN_10).add_(ent / _LN_10)
        links.clamp_(0, 1 if clamp else None)
        sums = links.sum(1, keepdim=True)
        links.div_(sums)
        empty = sums[:, 0] == 0
        if empty.any():
            links[empty] = rows[empty].float()
        result[start : start + size] = links
    return result


@torch.no_grad()
def refine(
    maps: Float[Tensor, "n k"], attention: Float[Tensor, "n n"], *, iterations: int = 10
) -> Float[Tensor, "n k"]:
    """Multiply maps by attention `iterations` times; `minsum` comes first and after every product.

    Args:
        maps: A column for each class.
        attention: [query, key], rows summing to 1, such as from `reduce_entropy`.
        iterations: 0 returns `minsum(maps)`.

    Example:
        >>> refine(torch.tensor([[1.0], [0.0], [0.0]]), torch.eye(3), iterations=5)[:, 0]
        tensor([1., 0., 0.])
    """
    n = len(maps)
    size = max(1, _PRODUCT_BYTES // (4 * n))
    # A row for each class, many pixels of it at a time: the fastest of the layouts of a product
    # with few classes.
    now = minsum(maps).T.contiguous()  # [k, n]
    after = torch.empty_like(now)
    for _ in range(iterations):
        for start in range(0, n, size):
            part = slice(start, start + size)
            after[:, part] = now @ attention[part].T
        now, after = _minsum_rows(after), now
    return now.T.contiguous()


def minsum(maps: Float[Tensor, "n k"]) -> Float[Tensor, "n k"]:
    """Shift every map to a minimum of 0 and scale it to a sum of 1; a constant map becomes zeros.

    Example:
        >>> minsum(torch.tensor([[1.0, 2.0], [4.0, 2.0]]))
        tensor([[0., 0.],
                [1., 0.]])
    """
    return _minsum_rows(maps.float().T.clone()).T.contiguous()


def _minsum_rows(maps: Float[Tensor, "k n"]) -> Float[Tensor, "k n"]:
    maps.sub_(maps.amin(1, keepdim=True))
    return maps.div_(maps.sum(1, keepdim=True).clamp_min_(torch.finfo(torch.float32).tiny))


def join_columns(maps: Float[Tensor, "n k"], wanted: Bool[Tensor, " k"]) -> Float[Tensor, "2 n"]:
    """Return one map, 0 to 1, of what is wanted, and one of what is not.

    Every map is scaled to a maximum of 1; then the mean of those of a kind, scaled once more.

    Example:
        >>> join_columns(torch.tensor([[4.0, 0.0], [0.0, 2.0]]), torch.tensor([True, False]))
        tensor([[1., 0.],
                [0., 1.]])
    """
    unit = _unit(maps)
    kinds = wanted.to(maps.device)
    planes = [
        unit[:, kinds].mean(1) if kinds.any() else torch.zeros_like(unit[:, 0]),
        unit[:, ~kinds].mean(1) if not kinds.all() else torch.zeros_like(unit[:, 0]),
    ]
    return _unit(torch.stack(planes, 1)).T


def fold(attention: Float[Tensor, "n n"], iterations: int) -> Float[Tensor, "n n"]:
    """Return a matrix that does in one product what `refine` does in `iterations`.

    Its rows sum to 1, so attention leaves a constant what it is, and to shift and scale a map
    between products is to shift and scale the result: `refine(x)` is `minsum(fold @ x)` whatever
    comes in between. Without the constant part, which is taken out of every row here, nothing is
    left that rounding could lose the rest in.

    Example:
        >>> attention = torch.tensor([[0.8, 0.2], [0.4, 0.6]])
        >>> fold(attention, 2) @ torch.tensor([[1.0], [0.0]])
        tensor([[ 0.0800],
                [-0.0800]])
    """
    step = attention - attention.mean(0)
    result = torch.eye(len(attention), dtype=attention.dtype, device=attention.device)
    result = result - 1 / len(attention)
    while iterations:
        if iterations & 1:
            result = result @ step
        iterations >>= 1
        if iterations:
            step = step @ step
    return result


def _unit(maps: Float[Tensor, "n k"]) -> Float[Tensor, "n k"]:
    return maps / maps.amax(0).clamp_min(torch.finfo(torch.float32).tiny)
