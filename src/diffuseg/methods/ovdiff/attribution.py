"""OVDiff's attribution: where a drawn picture's class words were attended to.

DAAM's heat maps (Tang and others, 2023) as OVDiff takes them (Karazija and others, 2023): of all
layers, all heads and all steps of the sampling.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from diffuseg import ops
from diffuseg.errors import InputError

_LEAST_RANGE = 1e-6


class AttributionSum:
    """Mean over tokens, and over every head, layer and step added, of head maps at one size.

    Every map is brought to the grid of the first one added (bicubic) and clamped at 0. Sums are
    float32 and stay where the maps are; no map is kept.

    Args:
        tokens: How many tokens each row has; its other columns must be zero. By default, all.

    Example:
        >>> total = AttributionSum()
        >>> total.add(torch.ones(1, 2, 16, 3), (4, 4))
        >>> total.add(torch.zeros(1, 2, 4, 3), (2, 2))
        >>> total.mean().shape, float(total.mean()[0, 0, 0])
        (torch.Size([1, 4, 4]), 0.5)
    """

    def __init__(self, tokens: Int[Tensor, " b"] | None = None) -> None:
        self._tokens = tokens
        self._total: Tensor | None = None
        self._maps = 0

    @torch.no_grad()
    def add(self, maps: Float[Tensor, "b heads n k"], hw: tuple[int, int]) -> None:
        """Add the maps of one layer in one step.

        Args:
            maps: Attention probabilities, only the columns of the class's tokens.
            hw: The layer's grid, n = h w.

        Raises:
            InputError: The grid is not that of the maps, or rows are not as many as before.
        """
        b, heads, n, k = maps.shape
        total = (
            maps.new_zeros((b, *hw), dtype=torch.float32) if self._total is None else self._total
        )
        if hw[0] * hw[1] != n or len(total) != b or k == 0:
            raise InputError(
                f"maps must have {len(total)} rows, a grid and tokens",
                got=f"{tuple(maps.shape)} on a grid of {hw[0]}x{hw[1]}",
                remedy="add the maps of one batch only, each with its layer's grid",
            )
        size = (total.shape[1], total.shape[2])
        # Clamping comes after resizing, so that only maps of the final size may be summed first.
        if hw == size:
            summed = maps.float().sum((1, 3)).unflatten(1, hw)
        else:
            grids = maps.permute(0, 1, 3, 2).reshape(b, heads * k, *hw)
            summed = ops.resize(grids, size, mode="bicubic").clamp_(min=0).sum(1)
        self._total = total.add_(summed)
        if self._tokens is None:
            self._tokens = torch.full((b,), k)
        self._maps += heads

    def mean(self) -> Float[Tensor, "b s1 s2"]:
        """Return the mean of all that was added.

        Raises:
            InputError: Nothing was.
        """
        if self._total is None or self._tokens is None:
            raise InputError(
                "an attribution must be made of maps", got="none", remedy="add some first"
            )
        tokens = self._tokens.to(self._total)[:, None, None]
        return self._total / (self._maps * tokens)


def stretch(maps: Float[Tensor, "n h w"]) -> Float[Tensor, "n h w"]:
    """Bring every map to [0, 1]; one that is constant, or nearly so, to zeros.

    Example:
        >>> stretch(torch.tensor([[[1.0, 3.0]], [[2.0, 2.0]]])).tolist()
        [[[0.0, 1.0]], [[0.0, 0.0]]]
    """
    raised = maps.float() - maps.amin((1, 2), keepdim=True)
    return raised / raised.amax((1, 2), keepdim=True).clamp_min(_LEAST_RANGE)


@torch.no_grad()
def normalise_attribution(maps: Float[Tensor, "n s1 s2"], size: int) -> Float[Tensor, "n H W"]:
    """Attribution of pixels in [0, 1]: stretched, enlarged (bilinear), stretched again.

    Args:
        maps: Raw means.
        size: Side of the pictures.

    Raises:
        InputError: A map holds NaN or infinity.

    Example:
        >>> normalise_attribution(torch.rand(2, 4, 4), 8).shape
        torch.Size([2, 8, 8])
    """
    if not maps.isfinite().all():
        raise InputError(
            "attribution must be finite",
            got="NaN or infinity",
            remedy="draw the pictures again, in float32 if half precision overflows",
        )
    return stretch(ops.resize(stretch(maps)[:, None], (size, size))[:, 0])
