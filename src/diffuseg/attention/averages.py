"""Averaging over the layers, heads and timesteps of a record."""

from collections.abc import Sequence
from fnmatch import fnmatchcase

import torch
from jaxtyping import Float
from torch import Tensor

from diffuseg import ops
from diffuseg.attention.captured import CapturedPass, Contents, ReducedMap
from diffuseg.attention.layers import LayerId, as_tuple
from diffuseg.errors import InputError

Source = LayerId | ReducedMap


def sources_of(
    record: Contents,
    kind: str,
    *,
    hw: tuple[int, int] | None = None,
    levels: object = None,
    layers: object = "*",
) -> dict[tuple[int, int], list[Source]]:
    """Return what maps of a kind can be made from, by grid, largest grid first.

    Args:
        record: Where to look.
        kind: "self" or "cross".
        hw: Only this grid.
        levels: Only grids at these factors.
        layers: Only layers whose path matches one of these patterns.

    Raises:
        InputError: There is nothing of the kind; lists the grids there are.
    """
    patterns = as_tuple(layers, str, "layers must be a pattern on module paths, or several")
    factors = None if levels is None else as_tuple(levels, int, "levels must be whole numbers")
    wanted = {
        record.grids[one.name]
        for one in record.layers
        if one.kind == kind and (factors is None or one.factor in factors)
    }
    wanted = wanted if hw is None else wanted & {tuple(hw)}
    found: dict[tuple[int, int], list[Source]] = {}
    for layer in record.stored(kind):
        grid = record.grids[layer.name]
        if grid in wanted and any(fnmatchcase(layer.name, one) for one in patterns):
            found.setdefault(grid, []).append(layer)
    # A mean of all columns answers every question a mean of some columns does.
    for mean in sorted(record.reduced, key=lambda one: one.tokens is not None):
        fits = mean.kind == kind and mean.hw in wanted and not mean.pooled
        if fits and patterns == ("*",) and (mean.tokens is None or mean.hw not in found):
            found.setdefault(mean.hw, []).append(mean)
    if not found:
        grids = ", ".join(f"{h}x{w}" for h, w in grids_of(record, kind)) or "none"
        raise InputError(
            f"{kind}-attention of that grid must have been recorded",
            got=f"hw={hw}, level={levels}, layers={layers!r}",
            remedy=f"recorded grids: {grids} (a mean taken by reduce= has no layers)",
        )
    return dict(sorted(found.items(), reverse=True))


def grids_of(record: Contents, kind: str) -> tuple[tuple[int, int], ...]:
    """Return the grids (h, w) recorded for a kind of layer, largest first."""
    stored = {record.grids[layer.name] for layer in record.stored(kind)}
    means = {one.hw for one in record.reduced if one.kind == kind and not one.pooled}
    return tuple(sorted(stored | means, reverse=True))


def average(
    record: Contents,
    hw: tuple[int, int],
    sources: Sequence[Source],
    *,
    step: int | float | None = None,
    heads: Sequence[int] | None = None,
    chunk: int | None = None,
) -> ReducedMap:
    """Average the maps of layers and means of one grid; every head map counts the same.

    Raises:
        InputError: The step or a head was not recorded, or is asked of a mean.
    """
    means = [one for one in sources if isinstance(one, ReducedMap)]
    layers = [one for one in sources if isinstance(one, LayerId)]
    if means and (heads is not None or (step is not None and set(record.timesteps) != {step})):
        raise InputError(
            "a mean taken by reduce= cannot be split by head or step",
            got=f"heads={heads}, step={step}",
            remedy="record without reduce=, or with record(steps=..., heads=...)",
        )
    if means and len(sources) == 1:
        return means[0]
    total = means[0].values * means[0].count if means else None
    count = means[0].count if means else 0
    for one in record.passes_at(step):
        for layer in layers:
            q, k = pick_heads(one, layer, heads)
            if total is None:
                shape = (q.shape[0], q.shape[2], k.shape[2])
                total = torch.zeros(shape, dtype=torch.float32, device=q.device)
            bias = one.biases.get(layer.name)
            ops.add_attention(total, q, k, scale=layer.scale, bias=bias, chunk=chunk)
            count += q.shape[1]
    assert total is not None  # there is at least one layer and one pass
    return ReducedMap(kind=layers[0].kind, hw=hw, count=count, values=total.div_(count))


def pick_heads(
    one: CapturedPass, layer: LayerId, heads: Sequence[int] | None
) -> tuple[Float[Tensor, "b h n d"], Float[Tensor, "b h m d"]]:
    """Return queries and keys of a layer, of some heads or all.

    Raises:
        InputError: A head was not recorded.
    """
    q, k = one.queries[layer.name], one.keys[layer.name]
    if heads is None:
        return q, k
    if not heads or not all(0 <= head < q.shape[1] for head in heads):
        raise InputError(
            f"heads must be among the {q.shape[1]} recorded",
            got=list(heads),
            remedy="count from 0 among the recorded heads of that layer",
        )
    return q[:, list(heads)], k[:, list(heads)]


def column(mean: ReducedMap, row: int, tokens: Sequence[int]) -> Float[Tensor, "h w"]:
    """Return the mean column of some tokens for one row of the batch, on the grid.

    Raises:
        InputError: A token's column is not there.
    """
    kept = range(mean.values.shape[2]) if mean.tokens is None else mean.tokens
    if not tokens or not set(tokens) <= set(kept):
        raise InputError(
            "the tokens must be among those recorded",
            got=tuple(tokens),
            remedy=f"recorded: {list(kept) if mean.tokens else f'0 to {len(kept) - 1}'}",
        )
    columns = mean.values[row][:, [kept.index(token) for token in tokens]]
    return columns.mean(-1).unflatten(0, mean.hw)
