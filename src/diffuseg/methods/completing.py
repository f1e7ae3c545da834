"""DiffSegmenter's two steps on tensors: class maps of several resolutions fused, then completed."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from diffuseg import ops
from diffuseg.attention import AttentionRecord, spread
from diffuseg.methods.choosing import matches
from diffuseg.methods.fusing import aggregate


def fuse_levels(
    maps: Sequence[Float[Tensor, "r k _ _"]],
    hw: tuple[int, int],
    weights: Sequence[float],
    *,
    normalise: bool = True,
) -> Float[Tensor, "r k H W"]:
    """Fuse maps of several resolutions on one grid.

    Args:
        maps: For each resolution, k maps a row.
        hw: The grid they are brought to (bilinear).
        weights: How much each resolution counts; divided by their sum.
        normalise: Whether each map is stretched to [0, 1] first; those of fine grids, where a
            word shares its place with many others, would count less than their weight says.

    Example:
        >>> maps = [torch.eye(2)[None, None], torch.ones(1, 1, 1, 1)]
        >>> fuse_levels(maps, (2, 2), (3.0, 1.0))[0, 0]
        tensor([[0.7500, 0.0000],
                [0.0000, 0.7500]])
    """
    fine = [ops.resize(one, hw) for one in maps]
    if normalise:
        fine = [ops.minmax(one) for one in fine]
    return ops.weighted_mean(fine, weights)


def complete(
    record: AttentionRecord,
    values: Float[Tensor, "r n k"],
    hw: tuple[int, int],
    *,
    step: int | float | None = None,
    layers: Sequence[str] = ("*",),
    heads: Sequence[int] | None = None,
    power: int = 1,
    every: bool = False,
) -> Float[Tensor, "r n k"]:
    """Spread maps over what belongs together: S^power x, S the mean self-attention of the grid.

    Args:
        record: Whose rows have k maps each; they are spread by the attention of their own row.
        values: The maps, flattened.
        hw: Their grid.
        step: The timestep; None for the mean over all.
        layers: Patterns on the names of the self-attention layers used.
        heads: Numbers of the heads used.
        power: How often S is applied.
        every: Use the self-attention of all resolutions, each counting the same. The paper has this
            ("A^self_all") without saying how; coarser maps are brought to the grid as DiffSeg does.

    Raises:
        InputError: No self-attention of that grid was recorded.
    """
    if power == 1 and not every:
        return spread(record, values, hw, layers=layers, step=step, heads=heads)
    rows: list[Tensor] = []
    # A row at a time: at 64 x 64 cells its matrix is 67 MB.
    for number in range(record.batch):
        one = record.rows(number)
        grids = _grids(one, layers) if every else (hw,)
        means = (one.self_attention(at, layers=layers, step=step, heads=heads) for at in grids)
        fused = aggregate(means, grids, (1 / len(grids),) * len(grids)) if every else next(means)
        spreading = values[number : number + 1]
        for _ in range(power):
            spreading = ops.propagate(fused, spreading)
        rows.append(spreading)
    return torch.cat(rows)


def _grids(record: AttentionRecord, layers: Sequence[str]) -> tuple[tuple[int, int], ...]:
    """Grids of the self-attention layers used, finest first."""
    patterns = tuple(layers)
    used = {
        record.grid(one) for one in record.layers if one.kind == "self" and matches(one, patterns)
    }
    return tuple(sorted(used, reverse=True))
