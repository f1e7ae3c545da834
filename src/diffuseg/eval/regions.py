"""Regions without classes against those several people drew: covering, Rand index, boundaries.

Regions against a person's: one table of overlaps, exact integers. Boundaries: pixels that differ
from a neighbour, found if one of the other's lies within the tolerance; and, for the benchmark's F,
thinned and matched one to one, see `boundaries`.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from jaxtyping import Bool, Int64, Integer

from diffuseg.errors import InputError
from diffuseg.eval.boundaries import (
    BoundaryCounts,
    count_boundaries,
    find_best_scales,
    thin_boundary,
)

TOLERANCE = 0.0075
"""How far a boundary may be off, as a share of the picture's diagonal (BSDS500)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RegionScores:
    """What one image scored, a value for every person who cut it.

    Attributes:
        covering: Mean over the person's regions, by size, of the best overlap (IoU) with a segment.
        rand: Share of pairs of pixels both put together or both put apart.
        voi: Variation of information, in bits; 0 is the same cut.
        boundary_found: Pixels of the person's boundaries near one of the segmentation.
        boundary_truth: Pixels of the person's boundaries.
        boundary_right: Pixels of the segmentation's boundaries near one of the person's.
        boundary_drawn: Pixels of the segmentation's boundaries.
        segments: Number of segments.
        matched: Counts of thin boundaries, matched one to one: found, truth, right, drawn.
    """

    covering: tuple[float, ...]
    rand: tuple[float, ...]
    voi: tuple[float, ...]
    boundary_found: tuple[int, ...]
    boundary_truth: tuple[int, ...]
    boundary_right: tuple[int, ...]
    boundary_drawn: int
    segments: int
    matched: tuple[int, int, int, int]

    @property
    def boundaries(self) -> BoundaryCounts:
        """Thin boundaries matched one to one, over all people."""
        found, truth, right, drawn = self.matched
        return BoundaryCounts(found=found, truth=truth, right=right, drawn=drawn)

    def to_dict(self) -> dict[str, object]:
        """Return plain JSON values, from which `RegionScores(**values)` is the same again."""
        return asdict(self)


def score_regions(
    prediction: Integer[np.ndarray, "h w"],
    people: Sequence[Integer[np.ndarray, "_ _"]],
    *,
    tolerance: float | int = TOLERANCE,
    boundaries: Sequence[Bool[np.ndarray, "_ _"]] = (),
) -> RegionScores:
    """Compare a segmentation with the cuts of several people; numbers of regions mean nothing.

    Args:
        prediction: Segment of every pixel; undecided pixels are a segment like others.
        people: Region of every pixel, by each person.
        tolerance: How far a boundary may be off: a share of the diagonal, or pixels from 1 on.
        boundaries: Thin boundaries of every person, where the data set has them; else those of
            the regions are thinned.

    Raises:
        InputError: Nobody cut the image, the sizes differ, or boundaries are missing.

    Example:
        >>> halves = np.repeat([[0, 1]], 4, axis=0).repeat(2, axis=1)
        >>> found = score_regions(halves, [halves + 7, np.zeros_like(halves)])
        >>> found.covering, found.voi, found.boundary_truth, found.boundaries.f
        ((1.0, 0.5), (0.0, 1.0), (4, 0), 1.0)
    """
    wrong = [one.shape for one in [*people, *boundaries] if one.shape != prediction.shape]
    if not people or wrong:
        raise InputError(
            "there must be cuts of the size of the segmentation",
            got=f"{wrong[0]} and {prediction.shape}" if wrong else "none",
            remedy="resize the segmentation: segmentation.resize(truth.shape)",
        )
    if boundaries and len(boundaries) != len(people):
        raise InputError(
            "every person's regions must have boundaries",
            got=f"{len(boundaries)} boundaries of {len(people)} people",
            remedy="leave boundaries out: they are made of the regions",
        )
    within = tolerance if tolerance >= 1 else tolerance * math.hypot(*prediction.shape)
    drawn = region_boundary(prediction)
    near_drawn = _near(drawn, within)
    tables = [_overlaps(one, prediction) for one in people]
    edges = [region_boundary(one) for one in people]
    thin = boundaries or [thin_boundary(one) for one in edges]
    counts = count_boundaries(thin_boundary(drawn), thin, within)
    return RegionScores(
        covering=tuple(map(covering, tables)),
        rand=tuple(map(rand_index, tables)),
        voi=tuple(map(variation_of_information, tables)),
        boundary_found=tuple(int(np.count_nonzero(one & near_drawn)) for one in edges),
        boundary_truth=tuple(int(np.count_nonzero(one)) for one in edges),
        boundary_right=tuple(int(np.count_nonzero(drawn & _near(one, within))) for one in edges),
        boundary_drawn=int(np.count_nonzero(drawn)),
        segments=tables[0].shape[1],
        matched=(counts.found, counts.truth, counts.right, counts.drawn),
    )


def mean_regions(scores: Iterable[RegionScores]) -> dict[str, float]:
    """Return the figures of many images; the order of the images makes no difference.

    Covering, Rand index and variation of information are means over people, then over images;
    boundaries are counted over all of them. `f` is of boundaries matched one to one. Scores of one
    segmentation an image have one scale, so that F is ODS and OIS at once; for several see
    `best_regions`.

    Example:
        >>> one, other = np.zeros((4, 4), int), np.eye(4, dtype=int)
        >>> found = mean_regions([score_regions(one, [one]), score_regions(other, [other])])
        >>> found["covering"], found["voi"], found["boundary_recall"], found["segments"]
        (1.0, 0.0, 1.0, 1.5)
    """
    rows = list(scores)
    if not rows:
        return dict.fromkeys(_FIGURES, math.nan)
    truth = sum(sum(one.boundary_truth) for one in rows)
    drawn = sum(one.boundary_drawn * len(one.boundary_right) for one in rows)
    recall = sum(sum(one.boundary_found) for one in rows) / truth if truth else math.nan
    precision = sum(sum(one.boundary_right) for one in rows) / drawn if drawn else math.nan
    # Sums that do not depend on the order: parts of a run may be joined in any.
    n = len(rows)
    return {
        "covering": math.fsum(_mean(one.covering) for one in rows) / n,
        "rand": math.fsum(_mean(one.rand) for one in rows) / n,
        "voi": math.fsum(_mean(one.voi) for one in rows) / n,
        "boundary_recall": recall,
        "boundary_precision": precision,
        **_f_figures(sum((one.boundaries for one in rows), BoundaryCounts())),
        "segments": math.fsum(one.segments for one in rows) / n,
    }


def best_regions(images: Iterable[Sequence[RegionScores]]) -> tuple[dict[str, float], int]:
    """Return the figures of images that were cut at several scales, and the best scale's number.

    All figures are of the scale whose F is best for the data set (ODS), but for `ois`: there each
    image has its own best scale. With one scale `ods` and `ois` are that scale's F.

    Args:
        images: Scores of each scale, for every image in the same order of scales.

    Raises:
        InputError: There are no images or scales, or images have unlike numbers of them.

    Example:
        >>> two, one = np.repeat([[0, 0, 1, 1]], 4, axis=0), np.zeros((4, 4), dtype=int)
        >>> rows = [[score_regions(cut, [two]) for cut in (one, two)]]
        >>> figures, scale = best_regions(rows)
        >>> scale, figures["ods"], figures["ois"], figures["covering"]
        (1, 1.0, 1.0, 1.0)
    """
    rows = [tuple(one) for one in images]
    best = find_best_scales([one.boundaries for one in row] for row in rows)
    figures = mean_regions(row[best.scale] for row in rows)
    # After F, before what is not of boundaries.
    segments = figures.pop("segments")
    return figures | {"ods": best.ods.f, "ois": best.ois.f, "segments": segments}, best.scale


def _f_figures(counts: BoundaryCounts) -> dict[str, float]:
    return {"f": counts.f, "f_recall": counts.recall, "f_precision": counts.precision}


_FIGURES = (
    *("covering", "rand", "voi", "boundary_recall", "boundary_precision"),
    *("f", "f_recall", "f_precision", "segments"),
)


def covering(table: Int64[np.ndarray, "r s"]) -> float:
    """Return how well segments cover a person's regions, from the pixels they share.

    Example:
        >>> covering(np.array([[2, 0], [1, 1]]))
        0.583...
    """
    regions, segments = table.sum(axis=1), table.sum(axis=0)
    best = (table / (regions[:, None] + segments[None] - table)).max(axis=1)
    return float((regions * best).sum() / table.sum())


def rand_index(table: Int64[np.ndarray, "r s"]) -> float:
    """Return the share of pairs of pixels on which both agree; 1 for a single pixel.

    Example:
        >>> rand_index(np.array([[2, 0], [1, 1]]))
        0.5
    """
    # Python's integers: the pairs of pairs of a large picture do not fit into 64 bits.
    whole, both = _pairs([int(table.sum())]), _pairs(table.ravel().tolist())
    regions, segments = (_pairs(table.sum(axis=axis).tolist()) for axis in (1, 0))
    return (whole + 2 * both - regions - segments) / whole if whole else 1.0


def variation_of_information(table: Int64[np.ndarray, "r s"]) -> float:
    """Return how much neither cut tells of the other, in bits.

    Example:
        >>> variation_of_information(np.array([[2, 2]]))
        1.0
    """
    joint = _entropy(table.ravel())
    value = 2 * joint - _entropy(table.sum(axis=1)) - _entropy(table.sum(axis=0))
    return max(value, 0.0)  # rounding of what is 0


def region_boundary(regions: Integer[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """Return the pixels that differ from their right, lower or lower right neighbour.

    Example:
        >>> region_boundary(np.array([[1, 5], [1, 5]])).tolist()
        [[True, False], [True, False]]
    """
    padded = np.pad(regions, ((0, 1), (0, 1)), mode="edge")
    neighbours = padded[:-1, 1:], padded[1:, :-1], padded[1:, 1:]
    return np.logical_or.reduce([regions != one for one in neighbours])


def _near(edges: Bool[np.ndarray, "h w"], within: float | int) -> Bool[np.ndarray, "h w"]:
    from scipy.ndimage import distance_transform_edt

    if not edges.any():
        return np.zeros_like(edges)
    return np.asarray(distance_transform_edt(~edges)) <= within


def _overlaps(
    truth: Integer[np.ndarray, "h w"], prediction: Integer[np.ndarray, "h w"]
) -> Int64[np.ndarray, "r s"]:
    """Pixels every region shares with every segment."""
    rows, row = np.unique(truth, return_inverse=True)
    columns, column = np.unique(prediction, return_inverse=True)
    flat = row.reshape(-1).astype(np.int64) * len(columns) + column.reshape(-1)
    counts = np.bincount(flat, minlength=len(rows) * len(columns))
    return counts.reshape(len(rows), len(columns)).astype(np.int64)


def _pairs(sizes: Sequence[int]) -> int:
    return sum(n * (n - 1) // 2 for n in sizes)


def _entropy(counts: Int64[np.ndarray, " n"]) -> float:
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log2(shares)).sum())


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
