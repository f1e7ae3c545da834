"""Names for segments by cross-attention: Semantic DiffSeg on plain tensors.

"Diffuse, Attend, and Segment" (Tian et al., CVPR 2024), appendix 9.8: the cross-attention of the
nouns of a caption, brought to the size of the image, votes in every segment. Where paper and
authors' code differ, defaults follow the code.

Dimension names: `n` cells of a grid, `t` tokens, `l` nouns, `k` segments.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from diffuseg import ops
from diffuseg.errors import InputError
from diffuseg.methods.attend import best_class


@torch.no_grad()
def aggregate_cross(
    maps: Sequence[Float[Tensor, "_ t"]],
    grids: Sequence[tuple[int, int]],
    hw: tuple[int, int],
    *,
    weights: Sequence[float] | None = None,
    norm: Literal["pixel", "none"] = "pixel",
    tokens: Sequence[int] | None = None,
) -> Float[Tensor, "s h w"]:
    """Sum the cross-attention of several grids at one size, a map a token.

    Args:
        maps: For each grid, the mean over layers and heads, all tokens.
        grids: Height and width of each.
        hw: Height and width of the result.
        weights: One a grid, used as they are; default 1 for each (the authors' call).
        norm: "pixel": each grid's maps are divided by their sum over all tokens at every pixel (the
            authors' code). "none": they are added as they are (the paper's equation 10).
        tokens: Only these tokens' maps are made; the sum is over all nevertheless.

    Raises:
        InputError: There is not one weight a grid.

    Example:
        >>> maps = aggregate_cross([torch.full((4, 4), 0.2)], [(2, 2)], (8, 8))
        >>> maps.shape, round(float(maps[0, 0, 0]), 4)
        (torch.Size([4, 8, 8]), 0.25)
    """
    shares = [1.0] * len(grids) if weights is None else weights
    if not grids or len(shares) != len(grids):
        raise InputError(
            "there must be cross-attention, and one weight a resolution of it",
            got=f"{len(shares)} weights for {len(grids)} resolutions",
            remedy="leave the weights out, or give one for each grid",
        )
    columns = list(range(maps[0].shape[1])) if tokens is None else list(tokens)
    total = torch.zeros((len(columns), *hw), dtype=torch.float32, device=maps[0].device)
    for one, grid, share in zip(maps, grids, shares, strict=True):
        planes = one.float().T.unflatten(1, grid)  # [t, h, w]
        # Resizing is linear: the sum over tokens is resized once, not every token.
        whole = ops.resize(planes.sum(0)[None, None], hw)[0, 0] if norm == "pixel" else None
        for plane, token in zip(total, columns, strict=True):
            fine = ops.resize(planes[token][None, None], hw)[0, 0]
            plane.add_(fine if whole is None else fine / whole, alpha=share)
    return total


@torch.no_grad()
def noun_maps(
    maps: Float[Tensor, "t h w"],
    nouns: Sequence[Sequence[int]],
    norm: Literal["l2", "sum"] = "l2",
) -> Float[Tensor, "l h w"]:
    """Make the map of every noun from those of its tokens, all on one scale.

    Args:
        maps: From `aggregate_cross`.
        nouns: For each noun, the rows of its tokens in `maps`; their mean is taken.
        norm: "l2" (the authors' code): divided by the root of the sum of squares over pixels.
            "sum" (the paper's equation 10): by the sum.

    Example:
        >>> noun_maps(torch.tensor([[[3.0, 1.0]], [[1.0, 3.0]]]), [(0,), (0, 1)], "sum")
        tensor([[[0.7500, 0.2500]],
        <BLANKLINE>
                [[0.5000, 0.5000]]])
    """
    means = torch.stack([maps[list(rows)].float().mean(0) for rows in nouns])
    if norm == "sum":
        return means / means.sum((1, 2), keepdim=True)
    return means / means.square().sum((1, 2), keepdim=True).sqrt()


@torch.no_grad()
def vote(
    labels: Int[Tensor, "H W"],
    nouns: Float[Tensor, "l h w"],
    voting: Literal["mean", "sum", "majority"] = "mean",
) -> tuple[Int[Tensor, " k"], Float[Tensor, "k l"], Int[Tensor, " k"]]:
    """Let nouns vote in every segment.

    Args:
        labels: Segments, numbered from 0; numbers may be missing.
        nouns: From `noun_maps`. Where labels are finer, they are brought to their size one by one.
        voting: What a noun's score in a segment is. "mean" of its map (the authors' call); "sum"
            of its map (the paper's equation 11); "majority": the share of pixels where its map is
            the highest.

    Returns:
        The numbers of the segments that have pixels, ascending; their scores; and the noun with the
        highest score of each, the first on ties.

    Example:
        >>> maps = torch.tensor([[[1.0, 0.0]], [[0.0, 2.0]]])
        >>> ids, _, best = vote(torch.tensor([[7, 3]]), maps)
        >>> ids.tolist(), best.tolist()
        ([3, 7], [1, 0])
    """
    hw = (labels.shape[0], labels.shape[1])
    index = labels.flatten()
    areas = index.bincount()
    if voting == "majority":
        winner = torch.from_numpy(best_class(nouns, hw)[0])
        pairs = index * len(nouns) + winner.flatten().to(index)
        total = pairs.bincount(minlength=len(areas) * len(nouns)).view(-1, len(nouns)).double()
    else:
        # float64: a segment may be most of a large image.
        columns = [
            index.bincount(
                weights=ops.resize(one[None, None], hw).flatten().double(),
                minlength=len(areas),
            )
            for one in nouns
        ]
        total = torch.stack(columns, dim=1)
    ids = areas.nonzero().flatten()
    total = total[ids]
    if voting != "sum":
        total /= areas[ids, None]
    return ids, total.float(), total.argmax(1)
