"""The lattice of anchors around which maps are gathered."""

from typing import Literal

import numpy as np
from jaxtyping import Int

from diffuseg.errors import InputError

Grid = Literal["auto", "reference", "even"]

# The side for which the reference's formula was made; where few cells fall on an anchor, it bunches
# the anchors in the middle.
_REFERENCE_GRID = (64, 64)


def anchor_points(side: int, n: int, grid: Literal["reference", "even"]) -> tuple[int, ...]:
    """Return where `n` anchors lie along an axis of `side` cells.

    "reference" is the authors' formula: a whole number of cells apart, the rest left over on both
    sides. Unless there are many cells an anchor, that leaves out much of the image (28 cells, 16
    anchors: 6 to 21). "even" spreads them over all; there are no more than there are cells.

    Example:
        >>> anchor_points(64, 4, "reference"), anchor_points(28, 4, "even")
        ((0, 21, 42, 63), (3, 10, 17, 24))
    """
    if n == 1:
        return ((side - 1) // 2,)
    if grid == "even":
        n = min(n, side)
        return tuple(round((i + 0.5) * side / n - 0.5) for i in range(n))
    step = (side - 1) // (n - 1)
    start = (side - 1 - step * (n - 1)) // 2
    return tuple(start + step * i for i in range(n))


def anchor_grid(hw: tuple[int, int], n: int, grid: Grid = "auto") -> Int[np.ndarray, "k 2"]:
    """Return row and column of the anchors, `n` along each axis, row by row.

    Args:
        hw: Height and width of the grid of cells.
        n: Anchors along an axis.
        grid: How they are spread, see `anchor_points`. "auto": "reference" on 64 x 64 cells,
            where published numbers come from, else "even".

    Raises:
        InputError: Fewer than one anchor, or more than there are cells in a "reference" grid.

    Example:
        >>> anchor_grid((2, 4), 2).tolist()
        [[0, 0], [0, 2], [1, 0], [1, 2]]
    """
    chosen = grid
    if chosen == "auto":
        chosen = "reference" if hw == _REFERENCE_GRID else "even"
    if n < 1 or (chosen == "reference" and n > min(hw)):
        raise InputError(
            "there must be at least one anchor an axis, and no more than the attention has cells",
            got=f"{n} anchors for {hw[0]}x{hw[1]} cells",
            remedy='use fewer anchors, or grid="even"',
        )
    rows, columns = (anchor_points(side, n, chosen) for side in hw)
    return np.array([(row, column) for row in rows for column in columns], dtype=np.int64)
