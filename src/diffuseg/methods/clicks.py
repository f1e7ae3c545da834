"""What a user points at: points, lines, boxes and masks, wanted or not, as seeds on a grid."""

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from diffuseg.errors import InputError

Shape = Literal["point", "line", "box", "mask"]

_FORMS = {
    "point": "a point is (x, y), in pixels from the top left",
    "line": "a line is two points (x, y) or more, or one",
    "box": "a box is (x0, y0, x1, y1), two opposite corners in any order",
}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Mark:
    """One thing a user has pointed at.

    Attributes:
        shape: "point", "line", "box" or "mask".
        positive: Whether it shows what is wanted, or what is not.
        at: Pixels (x, y): the point; the pixels of the line; two opposite corners of the box, the
            right and lower edges outside.
        mask: For "mask": True on its pixels, at the image's size.
    """

    shape: Shape
    positive: bool = True
    at: tuple[tuple[int, int], ...] = ()
    mask: Bool[np.ndarray, "h w"] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Clicks:
    """All that a user has pointed at in an image, in order.

    Attributes:
        marks: Points, lines, boxes and masks.

    Example:
        >>> clicks = Clicks.read(points=[(40, 50), (3, 4)], labels=[1, 0], boxes=(10, 10, 60, 70))
        >>> [(mark.shape, mark.positive) for mark in clicks.marks]
        [('point', True), ('point', False), ('box', True)]
    """

    marks: tuple[Mark, ...] = field(default=())

    def __len__(self) -> int:
        return len(self.marks)

    def __add__(self, other: "Clicks") -> "Clicks":
        return replace(self, marks=self.marks + other.marks)

    @classmethod
    def read(
        cls,
        *,
        points: object = (),
        labels: object = None,
        lines: object = (),
        boxes: object = (),
        masks: object = (),
        negative_points: object = (),
        negative_lines: object = (),
        negative_boxes: object = (),
        negative_masks: object = (),
    ) -> "Clicks":
        """Read marks from numbers, nested lists or arrays; single ones need no list around them.

        Args:
            points: Pixels (x, y); fractions are of the pixel they lie in.
            labels: For every one of `points`, 1 if it is wanted and 0 if not; None: all are wanted.
            lines: Sequences of points, joined by straight strokes.
            boxes: (x0, y0, x1, y1), in any order of corners.
            masks: Arrays `h w` of the image's size, not zero where the mask is.
            negative_points: As `points`, not wanted; likewise the others.
            negative_lines: As `lines`.
            negative_boxes: As `boxes`.
            negative_masks: As `masks`.

        Raises:
            InputError: One of them has another form, or there are more or fewer labels than points.
        """
        marks: list[Mark] = []
        wanted = _labels(labels, given := _points(points))
        marks += [
            Mark(shape="point", positive=p, at=(xy,)) for xy, p in zip(given, wanted, strict=True)
        ]
        marks += [Mark(shape="point", positive=False, at=(xy,)) for xy in _points(negative_points)]
        for positive, some_lines, some_boxes, some_masks in (
            (True, lines, boxes, masks),
            (False, negative_lines, negative_boxes, negative_masks),
        ):
            marks += [Mark(shape="line", positive=positive, at=at) for at in _lines(some_lines)]
            marks += [Mark(shape="box", positive=positive, at=at) for at in _boxes(some_boxes)]
            marks += [Mark(shape="mask", positive=positive, mask=one) for one in _masks(some_masks)]
        return cls(marks=tuple(marks))

    def check(self, hw: tuple[int, int], *, needs_wanted: bool = True) -> None:
        """Make sure all marks lie in an image and, with `needs_wanted`, one shows what is wanted.

        Args:
            hw: Height and width of the image.
            needs_wanted: Not if something else says what is wanted.

        Raises:
            InputError: Not so.

        Example:
            >>> Clicks.read(points=(3, 4)).check((10, 10))
        """
        for mark in self.marks:
            _check_mark(mark, hw)
        if needs_wanted and not any(mark.positive for mark in self.marks):
            raise InputError(
                "at least one mark must show what is wanted",
                got=f"{len(self.marks)} that show what is not" if self.marks else "none",
                remedy="add a point, line, box or mask on the thing, such as points=[(x, y)]",
            )

    def only(self, *shapes: Shape, positive: bool | None = None) -> "Clicks":
        """Return the marks of some shapes (all if none is named), of a sign (None: of both).

        Example:
            >>> len(Clicks.read(points=(3, 4), boxes=(1, 1, 2, 2)).only("point", "line"))
            1
        """
        kept = [
            mark
            for mark in self.marks
            if (not shapes or mark.shape in shapes) and positive in (None, mark.positive)
        ]
        return replace(self, marks=tuple(kept))

    def seeds(
        self, hw: tuple[int, int], grid: tuple[int, int]
    ) -> tuple[Float[Tensor, "n k"], Bool[Tensor, " k"]]:
        """Return a map a seed on a grid, 1 where it lies, and which of them are wanted.

        A point is one seed, a box one, a mask one (the share of each cell it covers); a line is a
        seed for every cell it meets. Pixel (x, y) lies in cell (y gh // h, x gw // w); the smallest
        box has one cell.

        Args:
            hw: Height and width of the image; no mark lies outside.
            grid: Of the grid.

        Example:
            >>> clicks = Clicks.read(points=(9, 0), negative_points=(0, 9))
            >>> maps, wanted = clicks.seeds((10, 10), (2, 2))
            >>> maps.T.tolist(), wanted.tolist()
            ([[0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0]], [True, False])
        """
        columns: list[Tensor] = []
        wanted: list[bool] = []
        for mark in self.marks:
            found = _seeds(mark, hw, grid)
            columns += found
            wanted += [mark.positive] * len(found)
        if not columns:
            return torch.zeros(grid[0] * grid[1], 0), torch.zeros(0, dtype=torch.bool)
        return torch.stack(columns, dim=1), torch.tensor(wanted)

    def sparse(self, count: int) -> "Clicks":
        """Return the marks with lines of at most `count` pixels, evenly along them.

        Example:
            >>> Clicks.read(lines=[(0, 0), (9, 0)]).sparse(3).marks[0].at
            ((0, 0), (4, 0), (9, 0))
        """
        thinned = [
            replace(
                mark, at=tuple(mark.at[int(i)] for i in np.linspace(0, len(mark.at) - 1, count))
            )
            if mark.shape == "line" and len(mark.at) > count
            else mark
            for mark in self.marks
        ]
        return replace(self, marks=tuple(thinned))

    def covered(self, hw: tuple[int, int], grid: tuple[int, int]) -> Bool[Tensor, " n"]:
        """Return the cells in which marks lie, those of masks if they cover half.

        Example:
            >>> Clicks.read(points=(9, 0)).covered((10, 10), (2, 2)).tolist()
            [False, True, False, False]
        """
        return (self.seeds(hw, grid)[0] >= 0.5).any(1)


def parse_place(text: str) -> list[float]:
    """Read numbers with commas, such as "40,50" or "10,10,60,70".

    Raises:
        InputError: Something is not a number.

    Example:
        >>> parse_place("40, 50")
        [40.0, 50.0]
    """
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise InputError(
            "a place is numbers with commas between",
            got=repr(text),
            remedy="write x,y for a point, x0,y0,x1,y1 for a box, x,y:x,y for a line",
        ) from error


def parse_line(text: str) -> list[list[float]]:
    """Read points with colons between, such as "10,10:60,70".

    Raises:
        InputError: As `parse_place`.

    Example:
        >>> parse_line("1,2:3,4")
        [[1.0, 2.0], [3.0, 4.0]]
    """
    return [parse_place(part) for part in text.split(":")]


def _seeds(mark: Mark, hw: tuple[int, int], grid: tuple[int, int]) -> list[Float[Tensor, " n"]]:
    (height, width), (rows, columns) = hw, grid
    if mark.mask is not None:
        # How much of each cell the mask covers; cells may differ by a row or column of pixels.
        cell = np.add.outer(
            np.arange(height) * rows // height * columns, np.arange(width) * columns // width
        )
        total = np.bincount(cell.ravel(), minlength=rows * columns)
        inside = np.bincount(cell[mark.mask], minlength=rows * columns)
        return [torch.from_numpy(inside / np.maximum(total, 1)).float()]
    cells = [(y * rows // height, x * columns // width) for x, y in mark.at]
    if mark.shape == "box":
        # The lower right corner of the image is a place for a corner, but no cell.
        y0, x0 = np.minimum(np.min(cells, axis=0), (rows - 1, columns - 1))
        y1, x1 = np.max(cells, axis=0)
        seed = torch.zeros(grid)
        seed[y0 : max(y1, y0 + 1), x0 : max(x1, x0 + 1)] = 1
        return [seed.flatten()]
    found: list[Tensor] = []
    for y, x in dict.fromkeys(cells):
        seed = torch.zeros(grid)
        seed[y, x] = 1
        found.append(seed.flatten())
    return found


def _check_mark(mark: Mark, hw: tuple[int, int]) -> None:
    height, width = hw
    if mark.mask is not None:
        if mark.mask.shape != hw or not mark.mask.any():
            empty = " without a pixel" if not mark.mask.any() else ""
            raise InputError(
                f"a mask must have the image's size, {height} high and {width} wide, and a pixel",
                got=f"one of {mark.mask.shape[0]} x {mark.mask.shape[1]}{empty}",
                remedy="make it from the image, not zero where the thing is",
            )
        return
    # The far edges of a box are outside of it.
    last = 0 if mark.shape == "box" else 1
    for x, y in mark.at:
        if not (0 <= x <= width - last and 0 <= y <= height - last):
            raise InputError(
                f"a {mark.shape} must lie in the image, {width} wide and {height} high",
                got=f"({x}, {y})",
                remedy=f"give x from 0 to {width - last} and y from 0 to {height - last}, x first",
            )


def _points(given: object, shape: Shape = "point") -> list[tuple[int, int]]:
    return [(int(x), int(y)) for x, y in _numbers(given, 2, shape)]


def _lines(given: Any) -> list[tuple[tuple[int, int], ...]]:
    if _is_empty(given):
        return []
    held = list(given) if isinstance(given, Iterable) else [given]
    first = held[0] if isinstance(held[0], Iterable) else ()
    single = not any(isinstance(one, Iterable) for one in first)
    return [_stroke(_points(one, "line")) for one in ([held] if single else held)]


def _boxes(given: object) -> list[tuple[tuple[int, int], ...]]:
    return [
        ((int(x0), int(y0)), (int(x1), int(y1))) for x0, y0, x1, y1 in _numbers(given, 4, "box")
    ]


def _masks(given: Any) -> list[Bool[np.ndarray, "h w"]]:
    if _is_empty(given):
        return []
    single = getattr(given, "ndim", 0) == 2
    held = [given] if single or not isinstance(given, Iterable) else list(given)
    masks = [np.asarray(one) for one in held]
    for one in masks:
        if one.ndim != 2 or one.dtype.kind not in "biuf":
            raise InputError(
                "a mask is an array of height and width, not zero where it is",
                got=f"shape {one.shape}, type {one.dtype}",
                remedy="pass one such array, or a list of them",
            )
    return [one != 0 for one in masks]


def _stroke(points: list[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """All pixels of straight strokes from point to point."""
    found = points[:1]
    for (x0, y0), (x1, y1) in pairwise(points):
        steps = max(abs(x1 - x0), abs(y1 - y0))
        xs, ys = np.linspace(x0, x1, steps + 1), np.linspace(y0, y1, steps + 1)
        found += [(round(x), round(y)) for x, y in zip(xs[1:], ys[1:], strict=True)]
    return tuple(found)


def _numbers(given: object, width: int, shape: Shape) -> list[list[float]]:
    """Rows of so many numbers; one row needs no list around it."""
    if _is_empty(given):
        return []
    rows: np.ndarray = np.empty(0)
    with suppress(TypeError, ValueError):
        rows = np.asarray(given, dtype=np.float64)
    rows = rows[None] if rows.ndim == 1 else rows
    if rows.ndim != 2 or rows.shape[1] != width or not np.isfinite(rows).all():
        raise InputError(
            _FORMS[shape], got=repr(given)[:80], remedy=f"pass a {shape}, or a list of them"
        )
    # The pixel a fraction lies in; also for what lies left of the image, and is refused later.
    return np.floor(rows).tolist()


def _labels(labels: object, points: list[tuple[int, int]]) -> list[bool]:
    if labels is None:
        return [True] * len(points)
    held = np.atleast_1d(np.asarray(labels))
    if held.shape != (len(points),) or not np.isin(held, (0, 1)).all():
        raise InputError(
            "there must be one label, 1 or 0, for each point",
            got=f"{held.tolist()} for {len(points)} points",
            remedy="use 1 where the thing is wanted and 0 where it is not",
        )
    return [bool(one) for one in held]


def _is_empty(given: Any) -> bool:
    return given is None or (hasattr(given, "__len__") and len(given) == 0)
