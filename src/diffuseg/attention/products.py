"""Products with self-attention whose maps are never made."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from diffuseg import ops
from diffuseg.attention import averages
from diffuseg.attention.attention_record import AttentionRecord
from diffuseg.attention.layers import LayerId


def spread(
    record: AttentionRecord,
    values: Float[Tensor, "b n k"],
    hw: tuple[int, int] | None = None,
    *,
    layers: str | Sequence[str] = "*",
    step: int | float | None = None,
    heads: Sequence[int] | None = None,
) -> Float[Tensor, "b n k"]:
    """Multiply values by the mean self-attention of a grid, each row of the batch by its own.

    Equal to `record.self_attention(hw, ...) @ values` up to rounding: the product with a mean is
    the mean of products, so each layer's maps are used a few query rows at a time and forgotten.

    Args:
        record: With self-attention.
        values: Of every cell of the grid.
        hw: The grid; may be left out if only one was recorded.
        layers: Only layers whose path matches this pattern or one of these.
        step: Only this timestep; None for the mean over all.
        heads: Only these of the recorded heads.

    Raises:
        InputError: No such grid, layer, step or head was recorded, or several grids and none named.
    """
    contents = record._contents
    sources = averages.sources_of(contents, "self", hw=hw, layers=layers)
    [first, *others] = sources.values()
    stored = [one for one in first if isinstance(one, LayerId)]
    if others or len(stored) < len(first):
        mean = record.self_attention(hw, layers=layers, step=step, heads=heads)
        return ops.propagate(mean, values)
    total = torch.zeros_like(values, dtype=torch.float32)
    count = 0
    for one in contents.passes_at(step):
        for layer in stored:
            q, k = averages.pick_heads(one, layer, heads)
            bias = one.biases.get(layer.name)
            part = ops.attend(q, k, values, scale=layer.scale, bias=bias)
            total.add_(part, alpha=q.shape[1])
            count += q.shape[1]
    return total.div_(count)
