"""Boundaries matched one to one with those people drew: F of the BSDS benchmark, ODS and OIS.

The benchmark thins what is drawn to lines of one pixel, pairs each pixel with at most one of a
person's within the tolerance, and counts. A pixel drawn is right if it has a partner of any person;
recall is over the pixels of all of them.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool

from diffuseg.errors import InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class BoundaryCounts:
    """Pixels of thin boundaries, of one image or of many.

    Attributes:
        found: Pixels of people's boundaries that have a partner, summed over people.
        truth: Pixels of people's boundaries.
        right: Pixels drawn that have a partner of at least one person.
        drawn: Pixels drawn.

    Example:
        >>> BoundaryCounts(found=6, truth=8, right=3, drawn=6).f
        0.6
    """

    found: int = 0
    truth: int = 0
    right: int = 0
    drawn: int = 0

    @property
    def recall(self) -> float:
        """Share of people's pixels that were found; 0 where there are none, as in the benchmark."""
        return self.found / self.truth if self.truth else 0.0

    @property
    def precision(self) -> float:
        """Share of the pixels drawn that are right; 0 where nothing was drawn."""
        return self.right / self.drawn if self.drawn else 0.0

    @property
    def f(self) -> float:
        """Harmonic mean of recall and precision; 0 if both are."""
        both = self.recall + self.precision
        return 2 * self.recall * self.precision / both if both else 0.0

    def __add__(self, other: "BoundaryCounts") -> "BoundaryCounts":
        """Return the counts of both together."""
        return BoundaryCounts(
            found=self.found + other.found,
            truth=self.truth + other.truth,
            right=self.right + other.right,
            drawn=self.drawn + other.drawn,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class BestScales:
    """The benchmark's two figures of images that were segmented at several scales.

    Attributes:
        ods: Counts of all images at the one scale that is best for the data set.
        ois: Counts of all images, each at the scale that is best for it.
        scale: Which scale `ods` is of.
    """

    ods: BoundaryCounts
    ois: BoundaryCounts
    scale: int


def find_best_scales(images: Iterable[Sequence[BoundaryCounts]]) -> BestScales:
    """Return the counts at the best scale of the data set (ODS) and of each image (OIS).

    The truth chooses both: with several scales the figures are an oracle's. With one they are equal
    and nothing is chosen. Between scales nothing is interpolated, as the benchmark does between the
    99 thresholds of a soft map.

    Args:
        images: Counts of each scale, for every image in the same order of scales.

    Raises:
        InputError: There are no images or scales, or images have unlike numbers of them.

    Example:
        >>> good = BoundaryCounts(found=9, truth=10, right=9, drawn=10)
        >>> bad = BoundaryCounts(found=2, truth=10, right=2, drawn=10)
        >>> found = find_best_scales([[good, bad], [good, bad], [bad, good]])
        >>> found.scale, round(found.ods.f, 3), found.ois.f
        (0, 0.667, 0.9)
    """
    rows = [tuple(one) for one in images]
    numbers = {len(one) for one in rows}
    if len(numbers) != 1 or 0 in numbers:
        raise InputError(
            "every image must have been cut at the same scales",
            got=f"{sorted(numbers)} scales" if numbers else "no images",
            remedy="score each image at each scale",
        )
    none = BoundaryCounts()
    scales = [sum(one, none) for one in zip(*rows, strict=True)]
    best = max(range(len(scales)), key=lambda i: scales[i].f)
    # Of equals the last, as in the benchmark.
    own = [max(reversed(one), key=lambda counts: counts.f) for one in rows]
    return BestScales(ods=scales[best], ois=sum(own, none), scale=best)


def thin_boundary(boundary: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """Return lines of one pixel, connected as the boundary is.

    Guo and Hall's parallel thinning, repeated until nothing changes, which is what the benchmark
    does (`bwmorph(..., "thin", inf)`).

    Example:
        >>> thin_boundary(np.ones((3, 5), dtype=bool)).astype(int).tolist()
        [[0, 0, 0, 0, 0], [0, 1, 1, 1, 0], [0, 0, 0, 0, 0]]
    """
    held = np.pad(boundary.astype(bool), 1)
    left = -1
    while left != (left := int(np.count_nonzero(held))):
        for half in (0, 4):
            held &= ~_removable(held, half)
    return held[1:-1, 1:-1]


# Neighbours anticlockwise from the right: rows down, columns right.
_AROUND = ((0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1), (1, 0), (1, 1))


def _removable(held: Bool[np.ndarray, "h w"], half: int) -> Bool[np.ndarray, "h w"]:
    """Pixels without which lines stay connected; the second half pass looks from the other side."""
    # The margin of one pixel is empty: what is rolled around is, too.
    x = [np.roll(held, (-down, -right), (0, 1)) for down, right in _AROUND]
    runs = sum((~x[i] & (x[i + 1] | x[(i + 2) % 8])).astype(np.int8) for i in range(0, 8, 2))
    pairs = sum((x[i] | x[i + 1]).astype(np.int8) for i in range(0, 8, 2))
    shifted = sum((x[i + 1] | x[(i + 2) % 8]).astype(np.int8) for i in range(0, 8, 2))
    few = np.minimum(pairs, shifted)
    kept = (x[1 + half] | x[2 + half] | ~x[(7 + half) % 8]) & x[half]
    return np.asarray((runs == 1) & (few >= 2) & (few <= 3) & ~kept)


def match_boundaries(
    drawn: Bool[np.ndarray, "h w"], truth: Bool[np.ndarray, "h w"], within: float | int
) -> tuple[Bool[np.ndarray, "h w"], Bool[np.ndarray, "h w"]]:
    """Pair pixels of two boundaries one to one: as many as can be, and of those the nearest.

    The benchmark solves the same assignment with Goldberg's CSA, where a pixel left alone costs
    100 times the tolerance; here it costs more than all pairs together.

    Args:
        drawn: Pixels of one boundary.
        truth: Pixels of the other.
        within: How far partners may be apart, in pixels.

    Returns:
        Which pixels of each have a partner, as many in both.

    Example:
        >>> two, one = np.array([[True, True, False]]), np.array([[False, False, True]])
        >>> [side.tolist() for side in match_boundaries(two, one, 2)]
        [[[False, True, False]], [[False, False, True]]]
    """
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import min_weight_full_bipartite_matching
    from scipy.spatial import KDTree

    here, there = np.argwhere(drawn), np.argwhere(truth)
    mine, theirs = np.zeros_like(drawn, dtype=bool), np.zeros_like(truth, dtype=bool)
    if not len(here) or not len(there):
        return mine, theirs
    # Distances of whole pixels: what is meant to be on the circle must not fall out of it.
    near = KDTree(here).sparse_distance_matrix(
        KDTree(there), within * (1 + 1e-12), output_type="coo_matrix"
    )
    # A column of its own lets each pixel stay alone, at more than all pairs cost together. Zeros
    # would be taken for pairs that may not be: all costs are one higher.
    n, m = len(here), len(there)
    alone = n * float(within) + 2
    costs = np.concatenate([near.data + 1, np.full(n, alone)])
    rows = np.concatenate([near.row, np.arange(n)])
    columns = np.concatenate([near.col, m + np.arange(n)])
    table = csr_array((costs, (rows, columns)), shape=(n, m + n))
    row, column = min_weight_full_bipartite_matching(table)
    paired = column < m
    mine[tuple(here[row[paired]].T)] = True
    theirs[tuple(there[column[paired]].T)] = True
    return mine, theirs


def count_boundaries(
    drawn: Bool[np.ndarray, "h w"],
    people: Sequence[Bool[np.ndarray, "h w"]],
    within: float | int,
) -> BoundaryCounts:
    """Count the pixels of a thin boundary and of those of several people that have partners.

    Example:
        >>> line = np.eye(4, dtype=bool)
        >>> count_boundaries(line, [line, np.zeros_like(line)], 1)
        BoundaryCounts(found=4, truth=4, right=4, drawn=4)
    """
    right, found = np.zeros_like(drawn, dtype=bool), 0
    for one in people:
        mine, theirs = match_boundaries(drawn, one, within)
        right |= mine
        found += int(np.count_nonzero(theirs))
    return BoundaryCounts(
        found=found,
        truth=sum(int(np.count_nonzero(one)) for one in people),
        right=int(np.count_nonzero(right)),
        drawn=int(np.count_nonzero(drawn)),
    )
