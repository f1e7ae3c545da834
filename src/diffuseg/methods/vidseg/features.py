"""Features of cells: the queries of several blocks made one.

The paper's are the mean of blocks of one resolution. A small network's blocks say different things,
the coarser what is there, the finer where: those are joined.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from diffuseg.errors import InputError
from diffuseg.ops import resize

_LEAST = 1e-12  # a cell of zeros has no largest channel to be divided by


def aggregate_queries(queries: Sequence[Float[Tensor, "f n c"]]) -> Float[Tensor, "f n c"]:
    """Return the mean over blocks, every cell divided by its largest absolute channel.

    Args:
        queries: One a block, of the same grid and width.

    Raises:
        InputError: There are none, or of different shapes, or some are not finite.

    Example:
        >>> aggregate_queries([torch.tensor([[[1.0, -4.0]]]), torch.tensor([[[3.0, -4.0]]])])
        tensor([[[ 0.5000, -1.0000]]])
    """
    shapes = {tuple(one.shape) for one in queries}
    if len(shapes) != 1:
        raise InputError(
            "queries must be of one block or more with the same grid and channels",
            got=sorted(shapes),
            remedy="choose feature_blocks of one resolution, such as 6,7,8",
        )
    mean = queries[0].float()
    for one in queries[1:]:
        mean = mean + one.float()
    mean = mean / len(queries)
    if not mean.isfinite().all():
        raise InputError(
            "queries must be finite",
            got="NaN or infinity",
            remedy="run the model in float32 or bfloat16",
        )
    return mean / mean.abs().amax(2, keepdim=True).clamp_min(_LEAST)


def join_queries(
    queries: Sequence[Float[Tensor, "f _n _c"]], grids: Sequence[tuple[int, int]]
) -> Float[Tensor, "f m d"]:
    """Return the blocks' queries side by side, each of length 1, on the finest of their grids.

    Args:
        queries: One a block.
        grids: Rows and columns of each.

    Raises:
        InputError: There are none, they are not of their grids, or some are not finite.

    Example:
        >>> coarse, fine = torch.ones(1, 1, 1), torch.tensor([[[3.0, 4.0], [0.0, 2.0]]])
        >>> join_queries([coarse, fine], [(1, 1), (1, 2)])
        tensor([[[1.0000, 0.6000, 0.8000],
                 [1.0000, 0.0000, 1.0000]]])
    """
    if not queries or [h * w for h, w in grids] != [one.shape[1] for one in queries]:
        raise InputError(
            "queries must be of one block or more, with the grid of each",
            got=f"{[tuple(one.shape) for one in queries]} on {list(grids)}",
            remedy="give the grids of feature_blocks",
        )
    finest = max(grids)
    parts = []
    for one, grid in zip(queries, grids, strict=True):
        planes = one.float().transpose(1, 2).unflatten(2, grid)
        parts.append(F.normalize(resize(planes, finest).flatten(2), dim=1, eps=_LEAST))
    joined = torch.cat(parts, 1).transpose(1, 2)
    if not joined.isfinite().all():
        raise InputError(
            "queries must be finite",
            got="NaN or infinity",
            remedy="run the model in float32 or bfloat16",
        )
    return joined
