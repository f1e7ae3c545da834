"""Which of many names an image shows, decided from how alike the image and the names are.

Three rules: DiffSegmenter's (Wang et al. 2023, arXiv 2309.02773), what is nearly as alike as the
best; TagCLIP's (Lin et al. 2024), what lies in the upper part of the range; and the share of a name
among all of them in the part of the image where it is strongest, which small things need.
"""

import math
from collections.abc import Sequence
from itertools import product

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from diffuseg.errors import InputError

Box = tuple[int, int, int, int]
"""`(y0, x0, y1, x1)`; the last row and column are outside."""


def near_best(likeness: Float[Tensor, " k"], share: float) -> Bool[Tensor, " k"]:
    """Return which names are at least `share` times as alike as the best one.

    Where even the best is not alike at all, only it is kept.

    Example:
        >>> near_best(torch.tensor([0.30, 0.20, 0.295]), 0.97).tolist()
        [True, False, True]
    """
    best = likeness.max()
    return likeness >= (share * best if best > 0 else best)


def in_upper_range(likeness: Float[Tensor, " k"], theta: float) -> Bool[Tensor, " k"]:
    """Return which names lie above the least by more than `theta` of the range; the best always.

    Example:
        >>> in_upper_range(torch.tensor([0.1, 0.2, 0.18]), 0.6).tolist()
        [False, True, True]
        >>> in_upper_range(torch.tensor([0.2]), 0.6).tolist()
        [True]
    """
    low, high = likeness.min(), likeness.max()
    return at_least_one(likeness > low + theta * (high - low), likeness)


def strongest_share(likeness: Float[Tensor, "w k"], scale: float) -> Float[Tensor, " k"]:
    """Return every name's share among all names, in the window where it is largest.

    Args:
        likeness: Cosines of windows and names.
        scale: What they are multiplied by before the softmax.

    Example:
        >>> strongest_share(torch.tensor([[1.0, 0.0], [0.0, 0.0]]), 1.0)
        tensor([0.7311, 0.5000])
    """
    return torch.softmax(scale * likeness, dim=1).amax(dim=0)


def at_least_one(kept: Bool[Tensor, " k"], likeness: Float[Tensor, " k"]) -> Bool[Tensor, " k"]:
    """Return what is kept or, if that is nothing, the name that is most alike.

    Example:
        >>> at_least_one(torch.tensor([False, False]), torch.tensor([0.1, 0.3])).tolist()
        [False, True]
    """
    if bool(kept.any()):
        return kept
    best = torch.zeros_like(kept)
    best[likeness.argmax()] = True
    return best


def window_boxes(hw: tuple[int, int], parts: Sequence[int]) -> list[Box]:
    """Return square windows over an image, each overlapping its neighbours by about half.

    Args:
        hw: Height and width of the image.
        parts: How many times a window fits into the shorter side; 1 is as much of the image as a
            square can be, and over a long image there are several of that size.

    Raises:
        InputError: No part, or one that is not positive.

    Example:
        >>> window_boxes((4, 4), (1,)), len(window_boxes((4, 4), (1, 2)))
        ([(0, 0, 4, 4)], 10)
    """
    if not parts or min(parts) < 1:
        raise InputError(
            "windows are given by how many fit into the shorter side",
            got=parts,
            remedy="use 1 for the whole image, 1,2 for its halves as well",
        )
    boxes: list[Box] = []
    for part in parts:
        side = max(1, min(hw) // part)
        tops, lefts = (_starts(length, side) for length in hw)
        boxes += [(top, left, top + side, left + side) for top, left in product(tops, lefts)]
    return list(dict.fromkeys(boxes))


def _starts(length: int, side: int) -> list[int]:
    """Where windows begin so that they cover a side evenly, each half over the next."""
    steps = math.ceil(2 * (length - side) / side)
    return [round(number * (length - side) / steps) for number in range(steps)] + [length - side]
