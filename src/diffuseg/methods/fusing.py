"""The self-attention of several resolutions fused into one map a cell."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from diffuseg import ops
from diffuseg.attention import AttentionRecord
from diffuseg.errors import InputError
from diffuseg.methods.checking import check_finite
from diffuseg.methods.divergence import rows_that_fit

Weighting = Literal["proportional", "per_map", "equal"]


def resolution_weights(
    grids: Sequence[tuple[int, int]],
    how: Weighting = "proportional",
    *,
    layers: Sequence[int] | None = None,
) -> tuple[float, ...]:
    """Return how much each grid's maps count, summing to 1.

    Args:
        grids: Height and width of each.
        how: "proportional" to the side of the grid, as the code has it: 8:4:2:1 for 64, 32, 16, 8.
            "per_map": the paper's formula read literally, proportional to the side for every
            layer, so that grids with more layers count more. "equal".
        layers: Number of layers of each grid, for "per_map".

    Example:
        >>> resolution_weights([(4, 4), (2, 2), (2, 2)])
        (0.5, 0.25, 0.25)
    """
    counts = layers if how == "per_map" and layers is not None else [1] * len(grids)
    sides = [1.0 if how == "equal" else (h * w) ** 0.5 for h, w in grids]
    raw = [side * count for side, count in zip(sides, counts, strict=True)]
    return tuple(one / sum(raw) for one in raw)


@torch.no_grad()
def aggregate(
    maps: Iterable[Float[Tensor, "b _ _"]],
    grids: Sequence[tuple[int, int]],
    weights: Sequence[float] | None = None,
    *,
    chunk: int | None = None,
) -> Float[Tensor, "b n n"]:
    """Fuse the self-attention of several grids on the finest.

    Each map is resized to the finest grid (bilinear), divided by its sum and weighted; the cells a
    coarse query covers all get its map. With weights that sum to 1, so does every result.

    Args:
        maps: For each grid, the mean over layers and heads, a map a query. Read one after the
            other, so a generator keeps only one of them in memory.
        grids: Height and width of each; each divides the largest.
        weights: One a grid, used as they are; default `resolution_weights(grids)`.
        chunk: Query rows of a grid that are resized at a time; changes memory, not the result.

    Raises:
        InputError: A grid does not divide the largest, or there is not one weight a grid.

    Example:
        >>> fused = aggregate([torch.ones(1, 16, 16), torch.ones(1, 4, 4)], [(4, 4), (2, 2)])
        >>> fused.shape, round(float(fused[0, 0].sum()), 4)
        (torch.Size([1, 16, 16]), 1.0)
    """
    if not grids:
        raise InputError("there must be maps to fuse", got="none", remedy="record self-attention")
    height, width = max(grids)
    for h, w in grids:
        if height % h or width % w:
            raise InputError(
                "every attention grid must divide the finest",
                got=f"grids {', '.join(f'{a}x{b}' for a, b in grids)}",
                remedy="segment at a working size that is a multiple of 64",
            )
    shares = resolution_weights(grids) if weights is None else weights
    if len(shares) != len(grids):
        raise InputError(
            "there must be one weight a resolution",
            got=f"{len(shares)} weights for {len(grids)} resolutions",
            remedy=f"give {len(grids)}, for {', '.join(f'{a}x{b}' for a, b in grids)}",
        )
    n = height * width
    total = torch.zeros(0)
    for one, (h, w), share in zip(maps, grids, shares, strict=True):
        batch = one.shape[0]
        if not total.numel():
            total = torch.zeros((batch, n, n), dtype=torch.float32, device=one.device)
        # [b, h, rows a query covers, w, columns it covers, n]
        tiled = total.view(batch, h, height // h, w, width // w, n)
        lines = max(1, (chunk or rows_that_fit(one, batch * n)) // w)
        for start in range(0, h, lines):
            part = one[:, start * w : (start + lines) * w].float()
            fine = ops.resize(part.reshape(-1, 1, h, w), (height, width)).flatten(1)
            fine = fine * (share / fine.sum(-1, keepdim=True))
            target = tiled[:, start : start + lines]
            target.add_(fine.view(batch, target.shape[1], 1, w, 1, n))
    return total


def without_weights(preset: Mapping[str, object], weighting: Weighting | None) -> dict[str, object]:
    """Return a preset without its weights if a weighting was chosen, which they would overrule.

    Example:
        >>> without_weights({"timestep": 300, "weights": [0, 1]}, "equal")
        {'timestep': 300}
    """
    overruled = weighting is not None
    return {name: one for name, one in preset.items() if not (overruled and name == "weights")}


def fuse_record(
    record: AttentionRecord,
    weighting: Weighting = "proportional",
    weights: Sequence[float] | None = None,
    *,
    normalise: bool = False,
) -> tuple[Float[Tensor, "1 n n"], tuple[int, int]]:
    """Fuse all self-attention of a record of one image; prompts are averaged.

    Args:
        record: Rows of its batch are prompts of the same image.
        weighting: As for `resolution_weights`, used without `weights`.
        weights: One a grid, finest first. The cells are those of the finest grid that counts.
        normalise: Whether `weights` are divided by their sum.

    Returns:
        The map of every cell, and height and width of the grid of cells.

    Raises:
        InputError: There is no self-attention, its grids or the weights do not fit, or there are
            numbers that are not finite.
    """
    grids = record.grids("self")
    if weights is None:
        layers = [
            sum(one.kind == "self" and record.grid(one) == hw for one in record.layers)
            for hw in grids
        ]
        shares = resolution_weights(grids, weighting, layers=layers)
    else:
        whole = sum(weights) if normalise else 1.0
        shares = tuple(one / whole for one in weights)
        # Leaving out the finest leaves the cells of the next one.
        first = next((i for i, share in enumerate(shares) if share), 0)
        if len(shares) == len(grids):
            grids, shares = grids[first:], shares[first:]
    fused = aggregate(_grid_means(record, grids), grids, shares)
    check_finite(fused)
    return fused, grids[0]


def _grid_means(
    record: AttentionRecord, grids: tuple[tuple[int, int], ...]
) -> Iterator[Float[Tensor, "1 _ _"]]:
    """Mean over layers, heads and prompts of each grid; one prompt at a time, they are large."""
    for hw in grids:
        total = record.rows(0).self_attention(hw)
        for row in range(1, record.batch):
            total.add_(record.rows(row).self_attention(hw))
        yield total.div_(record.batch)
