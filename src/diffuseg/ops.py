"""Pure tensor functions on attention: maps from queries and keys, aggregation, propagation.

Dimension names: `b` rows of the batch, `h` heads, `n` queries, `m` keys, `d` width of one head, `c`
channels or classes. Everything is computed in float32 whatever the inputs are, because softmax and
its sums underflow in half precision; no input is changed.
"""

import math
from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

# Scores of a chunk are written, normalised and summed in place; on a CPU that is fast as long as
# they stay in the last cache level. Measured for 8 heads of 4096 x 4096: 8 MB is the optimum.
_SCRATCH_BYTES = {"cpu": 8 << 20}
_SCRATCH_BYTES_ACCELERATOR = 256 << 20
_MIN_ROWS = 8


def split_heads(tensor: Float[Tensor, "b n c"], heads: int) -> Float[Tensor, "b h n d"]:
    """View a projection's output head by head.

    Example:
        >>> split_heads(torch.zeros(1, 3, 8), 2).shape
        torch.Size([1, 2, 3, 4])
    """
    return tensor.unflatten(-1, (heads, -1)).transpose(1, 2)


def merge_heads(tensor: Float[Tensor, "b h n d"]) -> Float[Tensor, "b n c"]:
    """Undo `split_heads`.

    Example:
        >>> merge_heads(torch.zeros(1, 2, 3, 4)).shape
        torch.Size([1, 3, 8])
    """
    return tensor.transpose(1, 2).flatten(-2)


@torch.no_grad()
def attention_maps(
    q: Float[Tensor, "b h n d"],
    k: Float[Tensor, "b h m d"],
    *,
    scale: float,
    bias: Float[Tensor, "b _ m"] | None = None,
    chunk: int | None = None,
) -> Float[Tensor, "b n m"]:
    """Attention probabilities, averaged over heads: mean over h of softmax(scale q kT + bias).

    The per-head maps never exist as a whole: scores are made for `chunk` query rows at a time, so
    the memory beyond the result is bounded, and the result does not depend on `chunk`.

    Args:
        q: Queries.
        k: Keys.
        scale: Factor on the scores, `d ** -0.5` for Stable Diffusion.
        bias: Added to the scores of every head (an attention mask); its middle side is 1 or n.
        chunk: Query rows at a time; default by the size of the processor's cache.

    Example:
        >>> maps = attention_maps(torch.zeros(1, 2, 3, 4), torch.zeros(1, 2, 5, 4), scale=0.5)
        >>> maps.shape, round(float(maps[0, 0, 0]), 3)
        (torch.Size([1, 3, 5]), 0.2)
    """
    total = q.new_zeros((q.shape[0], q.shape[2], k.shape[2]), dtype=torch.float32)
    add_attention(total, q, k, scale=scale, bias=bias, chunk=chunk)
    return total.div_(q.shape[1])


@torch.no_grad()
def add_attention(
    total: Float[Tensor, "b n m"],
    q: Float[Tensor, "b h n d"],
    k: Float[Tensor, "b h m d"],
    *,
    scale: float,
    bias: Float[Tensor, "b _ m"] | None = None,
    chunk: int | None = None,
) -> None:
    """Add the sum over heads of softmax(scale q kT + bias) to `total`, in place.

    This is `attention_maps` for running sums over layers and steps; `total` is float32.

    Example:
        >>> total = torch.zeros(1, 3, 5)
        >>> q, k = torch.zeros(1, 2, 3, 4), torch.zeros(1, 2, 5, 4)
        >>> add_attention(total, q, k, scale=0.5)
        >>> round(float(total[0].sum()), 3)  # one for each head and query
        6.0
    """
    for rows, part, maps in _chunks(q, k, scale=scale, bias=bias, chunk=chunk):
        total[rows, part].add_(maps.sum(1))


@torch.no_grad()
def head_maps(
    q: Float[Tensor, "b h n d"],
    k: Float[Tensor, "b h m d"],
    *,
    scale: float,
    bias: Float[Tensor, "b _ m"] | None = None,
    tokens: Sequence[int] | None = None,
    chunk: int | None = None,
) -> Float[Tensor, "b h n t"]:
    """Attention probabilities of every head, all keys or only the columns `tokens`.

    With `tokens` the softmax still runs over all keys, and the other columns are dropped chunk by
    chunk. Without, mind the size: 8 heads of 4096 x 4096 are 537 MB.

    Example:
        >>> q, k = torch.zeros(1, 2, 3, 4), torch.zeros(1, 2, 5, 4)
        >>> head_maps(q, k, scale=0.5, tokens=[1, 2]).shape
        torch.Size([1, 2, 3, 2])
    """
    columns = None if tokens is None else torch.tensor(list(tokens), device=q.device)
    width = k.shape[2] if columns is None else len(columns)
    kept = q.new_empty((*q.shape[:3], width), dtype=torch.float32)
    for rows, part, maps in _chunks(q, k, scale=scale, bias=bias, chunk=chunk):
        kept[rows, :, part] = maps if columns is None else maps.index_select(3, columns)
    return kept


@torch.no_grad()
def attend(
    q: Float[Tensor, "b h n d"],
    k: Float[Tensor, "b h m d"],
    values: Float[Tensor, "b m c"],
    *,
    scale: float,
    bias: Float[Tensor, "b _ m"] | None = None,
    chunk: int | None = None,
) -> Float[Tensor, "b n c"]:
    """Head-mean attention applied to `values` without making the maps.

    Equal to `propagate(attention_maps(q, k, ...), values)` up to rounding; the product is linear,
    so every chunk of probabilities is used and forgotten.

    Example:
        >>> q, k = torch.zeros(1, 2, 3, 4), torch.zeros(1, 2, 5, 4)
        >>> attend(q, k, torch.ones(1, 5, 1), scale=0.5)[0, :, 0]
        tensor([1., 1., 1.])
    """
    result = q.new_empty((q.shape[0], q.shape[2], values.shape[2]), dtype=torch.float32)
    values = values.float()
    for rows, part, maps in _chunks(q, k, scale=scale, bias=bias, chunk=chunk):
        result[rows, part] = maps.sum(1) @ values[rows]
    return result.div_(q.shape[1])


@torch.no_grad()
def head_divergence(
    q: Float[Tensor, "b h n d"],
    k: Float[Tensor, "b h m d"],
    *,
    scale: float,
    bias: Float[Tensor, "b _ m"] | None = None,
    chunk: int | None = None,
) -> Float[Tensor, "b n"]:
    """How far apart the heads of a query are: mean symmetric KL divergence of all pairs, in nats.

    No pair is formed. With the mean over heads of the logarithms taken from each, the sum over
    pairs is one of products of every head with itself, and nothing that cancels is left.

    Args:
        q: Queries, of two heads or more.
        k: Keys.
        scale: As for `attention_maps`, like `bias` and `chunk`.
        bias: Added to the scores of every head.
        chunk: Query rows at a time.

    Example:
        >>> head_divergence(torch.ones(1, 2, 3, 4), torch.ones(1, 2, 5, 4), scale=0.5)
        tensor([[0., 0., 0.]])
    """
    result = q.new_empty((q.shape[0], q.shape[2]), dtype=torch.float32)
    for rows, part, maps in _chunks(q, k, scale=scale, bias=bias, chunk=chunk):
        logs = maps.clamp_min(torch.finfo(torch.float32).tiny).log_()
        logs.sub_(logs.mean(1, keepdim=True))
        result[rows, part] = logs.mul_(maps).sum((1, 3))
    return result.div_(q.shape[1] - 1)


def _chunks(
    q: Tensor, k: Tensor, *, scale: float, bias: Tensor | None, chunk: int | None
) -> Iterator[tuple[slice, slice, Tensor]]:
    """Yield (batch rows, query rows, probabilities [b h n m] of them).

    One buffer serves all chunks: what was yielded is gone when the next is asked for.
    """
    batch, heads, n, _ = q.shape
    m = k.shape[2]
    room = _SCRATCH_BYTES.get(q.device.type, _SCRATCH_BYTES_ACCELERATOR) // (4 * heads * m)
    size = min(n, max(_MIN_ROWS, room) if chunk is None else chunk)
    # Where all queries of a row fit, several rows go together: small maps come in large batches.
    together = max(1, room // n) if chunk is None else 1
    scratch = q.new_empty((min(together, batch) * heads * size * m,), dtype=torch.float32)
    for first in range(0, batch, together):
        rows = slice(first, min(first + together, batch))
        # Contiguous copies are small, feed the matrix product best, and make results independent
        # of how the caller's tensors lie in memory (a loaded record equals a fresh one).
        queries = q[rows].float().flatten(0, 1).contiguous()
        keys = k[rows].float().flatten(0, 1).contiguous().transpose(1, 2)
        for start in range(0, n, size):
            part = slice(start, min(start + size, n))
            shape = (rows.stop - first, heads, part.stop - start, m)
            scores = scratch[: math.prod(shape)].view(shape)
            if bias is not None:
                added = bias[rows] if bias.shape[1] == 1 else bias[rows, part]
                scores.copy_(added[:, None])
            beta = 0 if bias is None else 1
            flat = scores.view(-1, *shape[2:])
            torch.baddbmm(flat, queries[:, part], keys, beta=beta, alpha=scale, out=flat)
            if scores.device.type == "cpu":
                torch.softmax(flat, -1, out=flat)
            else:
                scores = scores.softmax(-1)
            yield rows, part, scores


def weighted_mean(
    maps: Sequence[Float[Tensor, "*s"]], weights: Sequence[int | float]
) -> Float[Tensor, "*s"]:
    """Mean of equally shaped maps, each counted `weights[i]` times.

    With head counts as weights, head means of several layers become the mean over all heads.

    Example:
        >>> weighted_mean([torch.zeros(2), torch.ones(2)], [1, 3])
        tensor([0.7500, 0.7500])
    """
    total = maps[0].float() * weights[0]
    for one, weight in zip(maps[1:], weights[1:], strict=True):
        total.add_(one, alpha=weight)
    return total.div_(sum(weights))


def resize(
    maps: Float[Tensor, "b c h w"], hw: tuple[int, int], *, mode: str = "bilinear"
) -> Float[Tensor, "b c H W"]:
    """Resize maps to `hw` (height, width): half-pixel centres, no antialias; float32.

    `mode` is "bilinear" or "bicubic" (A = -0.75), the two the papers use.

    Example:
        >>> resize(torch.ones(1, 1, 2, 3), (4, 6)).shape
        torch.Size([1, 1, 4, 6])
    """
    if maps.shape[-2:] == hw:
        return maps.float()
    return F.interpolate(maps.float(), size=hw, mode=mode, align_corners=False)


def minmax(maps: Float[Tensor, "*b h w"]) -> Float[Tensor, "*b h w"]:
    """Stretch every map to [0, 1] over its last two sides; a constant map becomes zeros.

    Example:
        >>> minmax(torch.tensor([[[1.0, 3.0]], [[2.0, 2.0]]]))
        tensor([[[0., 1.]],
        <BLANKLINE>
                [[0., 0.]]])
    """
    maps = maps.float()
    low, high = maps.amin((-2, -1), keepdim=True), maps.amax((-2, -1), keepdim=True)
    span = high - low
    return torch.where(span > 0, (maps - low) / span.where(span > 0, 1.0), 0.0)


def propagate(
    attention: Float[Tensor, "b n m"], values: Float[Tensor, "b m c"]
) -> Float[Tensor, "b n c"]:
    """Spread `values` along attention: every query gets the weighted mean of its keys' values.

    Example:
        >>> propagate(torch.full((1, 2, 2), 0.5), torch.tensor([[[0.0], [1.0]]]))[0, :, 0]
        tensor([0.5000, 0.5000])
    """
    return attention.float() @ values.float()
