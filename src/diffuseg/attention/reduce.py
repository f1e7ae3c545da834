"""Means of attention maps taken while they are recorded, for methods that need no more than that.

A reduction takes the layers of its kinds as they come and keeps no queries or keys of them; layers
of other kinds are stored as usual. It starts afresh every time it is given to `record()`.
"""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from diffuseg import ops
from diffuseg.attention.captured import ReducedMap
from diffuseg.attention.layers import LayerId, LayerShape, as_tuple, check_kinds
from diffuseg.errors import InputError

_FLOAT_BYTES = 4
_SPATIAL_KINDS = ("self", "cross")


@runtime_checkable
class Reduction(Protocol):
    """What `record(reduce=...)` takes; anything with these methods will do."""

    def reset(self) -> None:
        """Forget everything taken so far."""
        ...

    def takes(self, layer: LayerId) -> bool:
        """Say whether the layer's maps go here; queries and keys are then not stored."""
        ...

    def update(
        self,
        layer: LayerId,
        step: int | float,
        q: Float[Tensor, "b h n d"],
        k: Float[Tensor, "b h m d"],
        hw: tuple[int, int],
        bias: Float[Tensor, "b _ m"] | None = None,
    ) -> None:
        """Take one layer at one timestep; `q` and `k` must not be changed or kept."""
        ...

    def finish(self) -> Sequence[ReducedMap]:
        """Return the means of all that was taken, and forget it."""
        ...

    def nbytes(self, shapes: Sequence[LayerShape]) -> int:
        """Say how many bytes the means of such layers will take."""
        ...


class HeadMean:
    """Mean over layers, heads and timesteps of one mean map for each kind and grid.

    What DiffSeg needs of Stable Diffusion at 512 x 512, the mean self-attention at 64, 32, 16 and
    8, is 71 MB this way (per-head maps of all 16 layers: 2.9 GB in float32).

    Args:
        kinds: "self", "cross" or both.
        chunk: Query rows at a time; default by the size of the processor's cache.

    Example:
        >>> HeadMean().kinds
        ('self',)
    """

    def __init__(self, *, kinds: object = ("self",), chunk: int | None = None) -> None:
        self.kinds = check_kinds(kinds, _SPATIAL_KINDS)
        self.chunk = chunk
        self.reset()

    def reset(self) -> None:
        self._sums = _Sums()

    def takes(self, layer: LayerId) -> bool:
        return layer.kind in self.kinds

    def update(
        self,
        layer: LayerId,
        step: int | float,
        q: Float[Tensor, "b h n d"],
        k: Float[Tensor, "b h m d"],
        hw: tuple[int, int],
        bias: Float[Tensor, "b _ m"] | None = None,
    ) -> None:
        shape = (q.shape[0], q.shape[2], k.shape[2])
        total = self._sums.grow((layer.kind, hw), q.shape[1], shape, q.device)
        ops.add_attention(total, q, k, scale=layer.scale, bias=bias, chunk=self.chunk)

    def finish(self) -> list[ReducedMap]:
        means = [
            ReducedMap(kind=kind, hw=hw, count=count, values=values)
            for kind, hw, count, values in self._sums.means()
        ]
        self.reset()
        return means

    def nbytes(self, shapes: Sequence[LayerShape]) -> int:
        sizes = {(s.layer.kind, s.hw): s.rows * s.queries * s.keys for s in shapes}
        return _FLOAT_BYTES * sum(sizes.values())


class TokenColumns:
    """Only some tokens' columns of the attention maps, taken right after the softmax.

    Without `size`, one mean over layers, heads and timesteps for each grid. With `size`, the
    attribution of DAAM as OVDiff uses it: every head map is brought to that size (bicubic), clamped
    at 0, and all layers of all grids go into one mean.

    Args:
        tokens: Indices into the token sequence; the columns come in this order.
        size: Height and width, or None.
        kinds: "cross" (or "self", with positions for tokens).

    Raises:
        InputError: No tokens, or negative or doubled ones.

    Example:
        >>> TokenColumns((6, 7), size=(64, 64)).tokens
        (6, 7)
    """

    def __init__(
        self, tokens: object, *, size: tuple[int, int] | None = None, kinds: object = ("cross",)
    ) -> None:
        expected = "tokens must be different indices into the token sequence"
        self.tokens = as_tuple(tokens, int, expected)
        if not self.tokens or min(self.tokens) < 0 or len(set(self.tokens)) < len(self.tokens):
            raise InputError(expected, got=tokens, remedy="for example the tokens of a TokenSpan")
        self.kinds = check_kinds(kinds, _SPATIAL_KINDS)
        self.size = size
        self.reset()

    def reset(self) -> None:
        self._sums = _Sums()

    def takes(self, layer: LayerId) -> bool:
        return layer.kind in self.kinds

    def update(
        self,
        layer: LayerId,
        step: int | float,
        q: Float[Tensor, "b h n d"],
        k: Float[Tensor, "b h m d"],
        hw: tuple[int, int],
        bias: Float[Tensor, "b _ m"] | None = None,
    ) -> None:
        if max(self.tokens) >= k.shape[2]:
            raise InputError(
                f"tokens must be among the {k.shape[2]} of the prompt",
                got=self.tokens,
                remedy="count from 0, the start token",
            )
        maps = ops.head_maps(q, k, scale=layer.scale, bias=bias, tokens=self.tokens)
        summed = maps.sum(1) if self.size is None else self._resized(maps, hw)
        key = (layer.kind, self.size or hw)
        self._sums.grow(key, q.shape[1], tuple(summed.shape), q.device).add_(summed)

    def _resized(
        self, maps: Float[Tensor, "b h n t"], hw: tuple[int, int]
    ) -> Float[Tensor, "b N t"]:
        b, heads, _, t = maps.shape
        grids = maps.permute(0, 1, 3, 2).reshape(b, heads * t, *hw)
        assert self.size is not None
        large = ops.resize(grids, self.size, mode="bicubic").clamp(min=0)
        return large.reshape(b, heads, t, -1).sum(1).transpose(1, 2)

    def finish(self) -> list[ReducedMap]:
        means = [
            ReducedMap(
                kind=kind,
                hw=hw,
                tokens=self.tokens,
                pooled=self.size is not None,
                count=count,
                values=values,
            )
            for kind, hw, count, values in self._sums.means()
        ]
        self.reset()
        return means

    def nbytes(self, shapes: Sequence[LayerShape]) -> int:
        sizes = {
            (s.layer.kind, self.size or s.hw): s.rows * (math.prod(self.size or s.hw))
            for s in shapes
        }
        return _FLOAT_BYTES * len(self.tokens) * sum(sizes.values())


class _Sums:
    """One running sum for each kind and grid, with how many head maps went into it."""

    def __init__(self) -> None:
        self._totals: dict[tuple[str, tuple[int, int]], Tensor] = {}
        self._counts: Counter[tuple[str, tuple[int, int]]] = Counter()

    def grow(
        self,
        key: tuple[str, tuple[int, int]],
        count: int,
        shape: tuple[int, ...],
        device: torch.device,
    ) -> Tensor:
        """The sum that `count` more maps are now added to by the caller."""
        if key not in self._totals:
            # A sum begun under inference_mode must be able to go on outside of it.
            with torch.inference_mode(False):
                self._totals[key] = torch.zeros(shape, dtype=torch.float32, device=device)
        self._counts[key] += count
        return self._totals[key]

    def means(self) -> list[tuple[str, tuple[int, int], int, Tensor]]:
        """Kind, grid, count and mean (in place of the sum) of each."""
        return [
            (kind, hw, count, self._totals[kind, hw].div_(count))
            for (kind, hw), count in self._counts.items()
        ]
