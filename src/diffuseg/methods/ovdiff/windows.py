"""Windows over a picture, and what is found in them brought together (OVDiff, section 3.3)."""

from itertools import product

import torch
from jaxtyping import Float, Int
from torch import Tensor

from diffuseg import ops
from diffuseg.errors import InputError

Box = tuple[int, int, int, int]
"""`(y0, x0, y1, x1)`; the last row and column are outside."""


def window_boxes(hw: tuple[int, int], crop: int, stride: int) -> list[Box]:
    """Return square windows over a picture, row by row; the last of a row ends where it ends.

    A side shorter than the crop is covered whole.

    Args:
        hw: Height and width of the picture.
        crop: Side of a window.
        stride: From one to the next.

    Raises:
        InputError: A size is not positive.

    Example:
        >>> window_boxes((448, 597), 448, 224)
        [(0, 0, 448, 448), (0, 149, 448, 597)]
    """
    if min(*hw, crop, stride) < 1:
        raise InputError(
            "pictures, windows and strides must be a pixel or more",
            got=f"{hw}, {crop} and {stride}",
            remedy="the paper has crops of 448 and 336, and a stride of 224",
        )
    down, across = (_intervals(length, crop, stride) for length in hw)
    return [(y0, x0, y1, x1) for (y0, y1), (x0, x1) in product(down, across)]


def _intervals(length: int, crop: int, stride: int) -> list[tuple[int, int]]:
    count = max(length - crop + stride - 1, 0) // stride + 1
    ends = [min(number * stride + crop, length) for number in range(count)]
    return [(max(end - crop, 0), end) for end in ends]


class Merge:
    """The mean of what is found in windows, and by several extractors, pixel by pixel.

    Args:
        rows: Planes a window has, background and classes.
        hw: Of the picture that the windows are in.
        device: Where sums are kept.

    Example:
        >>> merge = Merge(1, (2, 3))
        >>> merge.add(torch.ones(1, 1, 1), (0, 0, 2, 2))
        >>> merge.add(torch.zeros(1, 1, 1), (0, 1, 2, 3))
        >>> merge.mean()[0, 0]
        tensor([1.0000, 0.5000, 0.0000])
    """

    def __init__(
        self, rows: int, hw: tuple[int, int], *, device: torch.device | str = "cpu"
    ) -> None:
        self.sums: Float[Tensor, "r H W"] = torch.zeros((rows, *hw), device=device)
        self.counts: Int[Tensor, "H W"] = torch.zeros(hw, dtype=torch.int32, device=device)

    @torch.no_grad()
    def add(self, similarities: Float[Tensor, "r h w"], box: Box) -> None:
        """Count what was found in a window, on a grid of any size."""
        y0, x0, y1, x1 = box
        found = ops.resize(similarities[None], (y1 - y0, x1 - x0))[0].clamp(-1, 1)
        self.sums[:, y0:y1, x0:x1] += found
        self.counts[y0:y1, x0:x1] += 1

    def mean(self) -> Float[Tensor, "r H W"]:
        """Return the means; 0 where no window was."""
        return self.sums / self.counts.clamp_min(1)
