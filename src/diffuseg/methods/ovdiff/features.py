"""Queries of several cross-attention layers as one grid of features (OVDiff, supplement A.2)."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from diffuseg import ops
from diffuseg.errors import InputError


@torch.no_grad()
def join_queries(
    queries: Sequence[Float[Tensor, "b _ _"]], grids: Sequence[tuple[int, int]], size: int
) -> Float[Tensor, "b s s D"]:
    """Enlarge the queries of every layer to one square grid and lay them side by side.

    Nothing is normalised: a cosine of the whole row is what they are compared by.

    Args:
        queries: What `to_q` gives, before heads are split, [b, cells, channels] a layer.
        grids: Height and width of every layer's grid.
        size: Side of the grid wanted.

    Raises:
        InputError: There are no layers, or cells that are not those of the grid.

    Example:
        >>> join_queries([torch.ones(1, 4, 3), torch.zeros(1, 1, 2)], [(2, 2), (1, 1)], 2)[0, 0, 0]
        tensor([1., 1., 1., 0., 0.])
    """
    cells = [one.shape[1] for one in queries]
    if not queries or cells != [h * w for h, w in grids]:
        raise InputError(
            "every layer's queries must fill its grid, and there must be one layer or more",
            got=f"{cells} cells for grids {list(grids)}",
            remedy="take both from the same recorded call",
        )
    widths = [one.shape[2] for one in queries]
    first = queries[0]
    joined = first.new_empty((len(first), size, size, sum(widths)), dtype=torch.float32)
    for part, one, grid in zip(joined.split(widths, dim=3), queries, grids, strict=True):
        planes = one.unflatten(1, grid).permute(0, 3, 1, 2)
        part.copy_(ops.resize(planes, (size, size)).permute(0, 2, 3, 1))
    return joined
