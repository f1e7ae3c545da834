"""The nearest neighbours' vote by matrix products: what a brute-force search finds, sooner."""

import torch
from jaxtyping import Float, Int64, Integer
from torch import Tensor

from diffuseg.errors import InputError

# What the distances held at a time may take.
_PRODUCT_BYTES = 16 << 20
# Distances are looked through in groups of so many: only groups with a small one are sorted.
_GROUP = 16
# So many more than asked for are ranked again, by distances that have not lost digits.
_SPARE = 4


def vote_nearest(
    cells: Float[Tensor, "n c"],
    references: Float[Tensor, "m d"],
    labels: Integer[Tensor, " r"],
    *,
    neighbours: int = 4,
) -> Int64[Tensor, " n"]:
    """Return the most frequent label among every cell's nearest references, of equals the smallest.

    As `share_votes`, which says what may be wrong.

    Example:
        >>> references = torch.tensor([[0.0], [1.0], [10.0]])
        >>> vote_nearest(torch.tensor([[9.0]]), references, torch.tensor([3, 3, 5]), neighbours=1)
        tensor([5])
    """
    shares, known = share_votes(cells, references, labels, neighbours=neighbours)
    return known[shares.argmax(1)].long()


@torch.no_grad()
def share_votes(
    cells: Float[Tensor, "n c"],
    references: Float[Tensor, "m d"],
    labels: Integer[Tensor, " r"],
    *,
    neighbours: int = 4,
) -> tuple[Float[Tensor, "n k"], Integer[Tensor, " k"]]:
    """Return every label's share of the votes of the nearest references, and the labels in order.

    Nearness is Euclidean and every neighbour has one vote; with fewer references all vote.

    Args:
        cells: What is labelled.
        references: What has labels.
        labels: Any numbers.
        neighbours: How many vote.

    Raises:
        InputError: There are no references, labels or widths that do not fit, or features that are
            not finite.

    Example:
        >>> references = torch.tensor([[0.0], [1.0], [10.0]])
        >>> share_votes(torch.tensor([[6.0]]), references, torch.tensor([3, 3, 5]), neighbours=2)
        (tensor([[0.5000, 0.5000]]), tensor([3, 5]))
    """
    if (
        len(references) == 0
        or len(labels) != len(references)
        or cells.shape[1] != references.shape[1]
        or not (_finite(references) and _finite(cells))
    ):
        raise InputError(
            "there must be references with a label each, finite and as wide as what is labelled",
            got=f"{len(references)} of {references.shape[1]} channels with {len(labels)} labels, "
            f"for {cells.shape[1]} channels",
            remedy="give features of the same blocks, run in float32",
        )
    known, codes = torch.unique(labels, return_inverse=True)
    # Products lose fewer digits of a distance where the features lie around zero.
    centre = references.float().mean(0)
    references = references.float() - centre
    halves = references.square().sum(1) / 2
    count = min(neighbours, len(references))
    shortlist = min(count + _SPARE, len(references))
    # A product in single precision is off by `slack` times lengths at most: where the gap behind
    # the last neighbour is wider than two such errors, nothing has to be looked at again.
    slack = torch.finfo(torch.float32).eps * references.shape[1]
    longest = (2 * halves.amax()).sqrt()
    size = max(1, _PRODUCT_BYTES // (4 * len(references)))
    shares = references.new_zeros(len(cells), len(known))
    vote = references.new_full((1, 1), 1 / count)
    for part, found in zip(cells.split(size), shares.split(size), strict=True):
        rows = part.float() - centre
        apart = torch.addmm(halves, rows, references.T, alpha=-1)
        values, near = _smallest(apart, shortlist)
        if shortlist > count:
            lengths = torch.linalg.vector_norm(rows, dim=1)
            gap = values[:, count] - values[:, count - 1]
            unsure = gap <= 2 * slack * longest * (lengths + longest)
            near[unsure] = _ranked(rows[unsure], references, near[unsure])
        found.scatter_add_(1, codes[near[:, :count]], vote.expand(len(rows), count))
    return shares, known


def _ranked(
    rows: Float[Tensor, "n c"], references: Float[Tensor, "m c"], near: Int64[Tensor, "n k"]
) -> Int64[Tensor, "n k"]:
    """References sorted by differences, which lose no digits; of equals the first is first."""
    near = near.sort(1).values
    apart = (references[near] - rows[:, None]).square().sum(2, dtype=torch.float64)
    return near.gather(1, apart.sort(dim=1, stable=True).indices)


def _smallest(
    values: Float[Tensor, "n m"], count: int
) -> tuple[Float[Tensor, "n k"], Int64[Tensor, "n k"]]:
    """Every row's smallest values, the smallest first, and their places."""
    m = values.shape[1]
    groups = m // _GROUP
    if groups <= 4 * count:
        least = values.topk(count, largest=False)
        return least.values, least.indices
    # The smallest values lie in the groups with the smallest minima.
    body = values[:, : groups * _GROUP].unflatten(1, (groups, _GROUP))
    best = body.amin(2).topk(count, largest=False, sorted=False).indices
    inside = best[:, :, None] * _GROUP + torch.arange(_GROUP, device=values.device)
    rest = torch.arange(groups * _GROUP, m, device=values.device).expand(len(values), -1)
    places = torch.cat([inside.flatten(1), rest], 1)
    least = values.gather(1, places).topk(count, largest=False)
    return least.values, places.gather(1, least.indices)


def _finite(values: Float[Tensor, "n c"]) -> bool:
    """Whether all are numbers; sooner than asking each, for NaN is passed on."""
    return not values.numel() or bool(torch.stack(torch.aminmax(values)).isfinite().all())
