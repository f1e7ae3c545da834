"""From one coarse map a class to labels at the image's size, with a background or without.

The last steps of iSeg (Sun et al. 2024, arXiv 2409.03209), one class at a time, so that the memory
does not grow with the number of classes unless the scores are asked for.
"""

from collections.abc import Iterable, Iterator
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from diffuseg import ops

Background = Literal["square", "threshold", "none"]

_EPSILON = 1e-6  # beside the maximum, as in the authors' code


def take_highest(
    planes: Iterable[Float[Tensor, "H W"]], *, keep: bool = False
) -> tuple[Int[Tensor, "H W"], Float[Tensor, "H W"], list[Tensor]]:
    """Return the index of the highest plane at each pixel, the lowest on ties, and its score.

    Args:
        planes: One a class, at least one; from a generator only two exist at a time.
        keep: Whether the planes are returned too, last; else an empty list is.

    Example:
        >>> take_highest([torch.zeros(1, 2), torch.tensor([[0.0, 1.0]])])[0].tolist()
        [[0, 1]]
    """
    kept: list[Tensor] = []
    labels, best = torch.zeros(0), torch.zeros(0)
    for index, plane in enumerate(planes):
        if keep:
            kept.append(plane)
        if index == 0:
            labels, best = torch.zeros_like(plane, dtype=torch.int32), plane
            continue
        better = plane > best
        labels[better] = index
        best = torch.where(better, plane, best)
    return labels, best, kept


@torch.no_grad()
def label_planes(
    planes: Iterator[Float[Tensor, "H W"]],
    *,
    background: Background = "square",
    threshold: float = 0.45,
    keep: bool = False,
) -> tuple[Int[np.ndarray, "H W"], Float[np.ndarray, "k H W"] | None]:
    """Return the class of every pixel, 0 being the background if there is one.

    Args:
        planes: The score of one class after the other, in [0, 1]; at least one.
        background: "square": its score is (1 - s) squared, s the highest of the classes.
            "threshold": where no class scores `threshold`. "none": every pixel has a class.
        threshold: The score needed.
        keep: Whether the scores are returned too, the background's first. With "threshold" it
            scores that number.

    Example:
        >>> label_planes(iter([torch.tensor([[0.3, 0.5]])]))[0].tolist()  # (1 - 0.3) ** 2 = 0.49
        [[0, 1]]
    """
    labels, best, kept = take_highest(planes, keep=keep)
    if background != "none":
        if background == "square":
            behind = (1 - best).square()
            empty = best <= behind
        else:
            behind = torch.full_like(best, threshold)
            empty = (best < threshold) | (best == 0)
        labels = (labels + 1).masked_fill_(empty, 0)
        kept = [behind, *kept]
    held = torch.stack(kept).cpu().numpy() if keep else None
    return labels.cpu().numpy(), held


def stretch(plane: Float[Tensor, "H W"]) -> Float[Tensor, "H W"]:
    """Shift and scale a map of the image's size to [0, 1], as the authors' code does last.

    Example:
        >>> stretch(torch.tensor([[2.0, 2.0]])).tolist()
        [[0.0, 0.0]]
    """
    plane = plane - plane.min()
    return plane / (plane.max() + _EPSILON)


def enlarged(
    maps: Float[Tensor, "k h w"],
    via: tuple[int, int],
    hw: tuple[int, int],
    *,
    minmax: bool = True,
) -> Iterator[Float[Tensor, "H W"]]:
    """Yield one map after the other at the image's size.

    Args:
        maps: One a class.
        via: Size of the image the model saw; maps are stretched to [0, 1] there, and again at `hw`.
        hw: Size of the result.
        minmax: Whether they are stretched at all.

    Example:
        >>> next(enlarged(torch.tensor([[[1.0, 3.0]]]), (1, 2), (1, 2))).shape
        torch.Size([1, 2])
    """
    for one in maps:
        plane = ops.resize(one[None, None], via)
        if minmax:
            plane = ops.minmax(plane)
        plane = ops.resize(plane, hw)[0, 0]
        yield stretch(plane) if minmax else plane
