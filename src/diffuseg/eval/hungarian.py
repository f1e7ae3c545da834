"""Scores of segments without names: an assignment to the true classes first, counts afterwards."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int64, Integer

from diffuseg.errors import InputError
from diffuseg.eval.metrics import ConfusionMatrix, mean_iou, sparse


class ImageMatching:
    """Counts after a one-to-one assignment of classes to segments, made anew for every image.

    As DiffSeg and iSeg are published. The assignment looks at the truth, so it is an oracle, far
    more lenient than one assignment for a data set. It maximises the pixels that agree.

    Segments left over go to classes absent from the image, which of them is chance, and count
    against those: that is published, and it makes the mean IoU depend on the numbers of the
    segments, so never renumber them before. `strict` assigns to classes present only. Accuracy is
    the same either way.

    Args:
        n_classes: Number of classes, k.
        strict: Whether classes absent from an image get no segment of it.

    Attributes:
        tp: Pixels of each class in the segment assigned to it.
        fp: Pixels of that segment that are of other classes.
        fn: Pixels of the class elsewhere.
        n_pixels: Pixels scored, those with a label from 0 to k-1.
        n_images: Images added.

    Example:
        >>> matching = ImageMatching(2)
        >>> matching.update(np.array([[0, 0, 1, -1]]), np.array([[5, 5, 3, 3]]))
        >>> matching.accuracy(), matching.miou()
        (1.0, 1.0)
    """

    def __init__(self, n_classes: int, *, strict: bool = False) -> None:
        _check_classes(n_classes)
        self.strict = strict
        self.tp, self.fp, self.fn = (np.zeros(n_classes, dtype=np.int64) for _ in range(3))
        self.n_pixels = 0
        self.n_images = 0

    def update(self, truth: object, prediction: object) -> None:
        """Add an image.

        Args:
            truth: Class of every pixel; those outside 0 to k-1 are not scored.
            prediction: Segment of every pixel, numbered from 0, of the same shape.

        Raises:
            InputError: The shapes differ, a map is not of integers, or a segment's number is
                negative.
        """
        self.add_table(histogram(truth, prediction, len(self.tp)))

    def add_table(
        self, table: Int64[np.ndarray, "k s"], missed: Int64[np.ndarray, " k"] | None = None
    ) -> None:
        """Add an image by its `histogram`, and by its pixels in no segment."""
        rows = np.arange(len(table))
        if self.strict:
            rows = rows[table.sum(axis=1) > 0]
        matched, columns = assign(table, rows)
        hits = table[matched, columns]
        self.tp[matched] += hits
        self.fp[matched] += table[:, columns].sum(axis=0) - hits
        self.fn += table.sum(axis=1)
        self.fn[matched] -= hits
        self.n_pixels += int(table.sum())
        if missed is not None:
            self.fn += missed
            self.n_pixels += int(missed.sum())
        self.n_images += 1

    def __add__(self, other: "ImageMatching") -> "ImageMatching":
        """Return the counts of both sets of images.

        Raises:
            InputError: The two do not count the same way.
        """
        if not isinstance(other, ImageMatching):
            return NotImplemented
        if (len(self.tp), self.strict) != (len(other.tp), other.strict):
            raise InputError(
                "matchings can be added when classes and protocol are the same",
                got=f"{len(self.tp)} and {len(other.tp)} classes, strict {self.strict} and "
                f"{other.strict}",
                remedy="score both parts with the same settings",
            )
        total = ImageMatching(len(self.tp), strict=self.strict)
        total.tp, total.fp, total.fn = (
            mine + theirs
            for mine, theirs in zip(
                (self.tp, self.fp, self.fn), (other.tp, other.fp, other.fn), strict=True
            )
        )
        total.n_pixels = self.n_pixels + other.n_pixels
        total.n_images = self.n_images + other.n_images
        return total

    def iou(self) -> Float[np.ndarray, " k"]:
        """Intersection over union of every class; NaN where there is nothing of it."""
        whole = self.tp + self.fp + self.fn
        return np.divide(self.tp, whole, out=np.full(len(whole), np.nan), where=whole > 0)

    def miou(
        self, average: str = "union_present", *, classes: Sequence[int] | None = None
    ) -> float:
        """Return the mean of `iou`; NaN when there is nothing to average.

        Args:
            average: Which classes count, see `ConfusionMatrix.miou`. "union_present" is published:
                classes with pixels in the truth or in a segment assigned to them.
            classes: Indices of the classes averaged over; all by default.

        Raises:
            InputError: Another rule.
        """
        tp, fp, fn = self.tp, self.fp, self.fn
        return mean_iou(tp, tp + fp + fn, tp + fn, average, classes=classes)

    def accuracy(self) -> float:
        """Share of scored pixels in the segment of their class; NaN when none was scored."""
        return float(self.tp.sum() / self.n_pixels) if self.n_pixels else float("nan")


class SegmentCounts:
    """Counts of nameless segments, from which the figures of every protocol are made.

    Args:
        n_classes: Number of classes, k.
        undecided: Label of pixels that are in no segment (65535 in a `Segmentation`).

    Attributes:
        image: An assignment for every image, as published.
        strict: The same among the classes present only; its mean IoU depends on no numbering.
        majority: Every segment taken for the class most of its pixels have. No names for these
            segments can be more right, so it tells wrong borders from wrong assignments.
        table: Pixels of every class in the segments of every number, over all images.
        missed: Pixels of every class that are in no segment.
        n_segments: Segments found, over all images.

    Example:
        >>> counts = SegmentCounts(2)
        >>> counts.update(np.array([0, 0, 1, 1]), np.array([0, 3, 4, 4]))
        >>> counts.accuracy(), counts.majority.accuracy(), counts.n_segments
        (0.75, 1.0, 3)
    """

    def __init__(self, n_classes: int, *, undecided: int | None = None) -> None:
        self.image = ImageMatching(n_classes)
        self.strict = ImageMatching(n_classes, strict=True)
        self.majority = ConfusionMatrix(n_classes, undecided=n_classes)
        self.table = np.zeros((n_classes, n_classes), dtype=np.int64)
        self.missed = np.zeros(n_classes, dtype=np.int64)
        self.undecided = undecided
        self.n_segments = 0

    @property
    def n_images(self) -> int:
        """Number of images added."""
        return self.image.n_images

    @property
    def n_pixels(self) -> int:
        """Number of pixels scored."""
        return self.image.n_pixels

    @property
    def dataset(self) -> ImageMatching:
        """One assignment for all images, as if they were one (IIC, PiCIE, STEGO).

        Made for clusters that are those of the data set. Where segments are found anew in each
        image, their numbers mean nothing elsewhere, and this is a lower bound.
        """
        whole = ImageMatching(len(self.table))
        whole.add_table(self.table, self.missed)
        return whole

    def update(self, truth: object, prediction: object) -> None:
        """Add an image; arguments and errors are those of `ImageMatching.update`."""
        g, p = np.asarray(truth), np.asarray(prediction)
        k = len(self.table)
        missed = np.zeros(k, dtype=np.int64)
        if self.undecided is not None and g.shape == p.shape:
            away = p == self.undecided
            missed = histogram(g[away], np.zeros_like(p[away]), k).sum(axis=1)
            g, p = g[~away], p[~away]
        self._add(histogram(g, p, k), missed, len(np.unique(p)))

    def _add(
        self, table: Int64[np.ndarray, "k s"], missed: Int64[np.ndarray, " k"], segments: int
    ) -> None:
        for matching in (self.image, self.strict):
            matching.add_table(table, missed)
        commonest = table.argmax(axis=0)
        np.add.at(self.majority.counts.T, commonest, table.T)
        self.majority.missed += missed
        self.majority.n_images += 1
        self.table = _padded_sum(self.table, table)
        self.missed += missed
        self.n_segments += segments

    def __add__(self, other: "SegmentCounts") -> "SegmentCounts":
        """Return the counts of both sets of images.

        Raises:
            InputError: The two have different classes.
        """
        if not isinstance(other, SegmentCounts):
            return NotImplemented
        total = SegmentCounts(len(self.table), undecided=self.undecided)
        total.image = self.image + other.image
        total.strict = self.strict + other.strict
        total.majority = self.majority + other.majority
        total.table = _padded_sum(self.table, other.table)
        total.missed = self.missed + other.missed
        total.n_segments = self.n_segments + other.n_segments
        return total

    def row(self) -> dict[str, object]:
        """Return the counts of a single image as plain JSON values."""
        return {
            "table": sparse(self.table),
            "width": self.table.shape[1],
            "missed": sparse(self.missed),
            "segments": self.n_segments,
        }

    def with_row(self, row: Mapping[str, Any]) -> "SegmentCounts":
        """Return these counts and those of the `row` of an image together."""
        k = len(self.table)
        table, missed = np.zeros((k, row["width"]), np.int64), np.zeros(k, np.int64)
        for truth, segment, count in row["table"]:
            table[truth, segment] = count
        for truth, count in row["missed"]:
            missed[truth] = count
        total = self + SegmentCounts(k, undecided=self.undecided)
        total._add(table, missed, row["segments"])
        return total

    def iou(self) -> Float[np.ndarray, " k"]:
        """Intersection over union of every class, matched image by image."""
        return self.image.iou()

    def miou(
        self, average: str = "union_present", *, classes: Sequence[int] | None = None
    ) -> float:
        """Mean of `iou`, see `ImageMatching.miou`."""
        return self.image.miou(average, classes=classes)

    def accuracy(self) -> float:
        """Share of scored pixels in the segment of their class, matched image by image."""
        return self.image.accuracy()


def assign(
    table: Int64[np.ndarray, "k s"], rows: Int64[np.ndarray, " r"]
) -> tuple[Int64[np.ndarray, " m"], Int64[np.ndarray, " m"]]:
    """Assign columns to some rows one to one, so that their sum is greatest.

    Returns:
        Rows and their columns. On ties, SciPy's choice, which published figures contain.

    Example:
        >>> found = assign(np.array([[2, 3], [0, 3]]), np.array([0, 1]))
        >>> found[1].tolist()
        [0, 1]
    """
    from scipy.optimize import linear_sum_assignment

    chosen, columns = linear_sum_assignment(table[rows], maximize=True)
    return rows[chosen], columns.astype(np.int64)


def histogram(truth: object, prediction: object, n_classes: int) -> Int64[np.ndarray, "k s"]:
    """Count the pixels of every class in every segment; at least as many columns as classes.

    Raises:
        InputError: As `ImageMatching.update`.

    Example:
        >>> histogram(np.array([0, 1, -1]), np.array([2, 0, 0]), 2).tolist()
        [[0, 0, 1], [1, 0, 0]]
    """
    g, p = np.asarray(truth), np.asarray(prediction)
    if g.shape != p.shape or g.dtype.kind not in "iu" or p.dtype.kind not in "iu":
        raise InputError(
            "truth and prediction must be integer maps of one shape",
            got=f"truth {g.dtype} {g.shape}, prediction {p.dtype} {p.shape}",
            remedy="resize the prediction to the truth: segmentation.resize(truth.shape)",
        )
    if p.size and p.min() < 0:
        raise InputError(
            "segments must be numbered from 0",
            got=f"a segment {int(p.min())}",
            remedy="use the labels of a Segmentation",
        )
    return _counted(g.reshape(-1), p.reshape(-1), n_classes)


def _counted(
    g: Integer[np.ndarray, " n"], p: Integer[np.ndarray, " n"], k: int
) -> Int64[np.ndarray, "k s"]:
    # As published, segments that only cover unscored pixels have their column too.
    width = max(k, int(p.max(initial=-1)) + 1)
    scored = (g >= 0) & (g < k)
    index = width * g[scored].astype(np.int64) + p[scored].astype(np.int64)
    return np.bincount(index, minlength=k * width).reshape(k, width).astype(np.int64)


def _padded_sum(
    a: Int64[np.ndarray, "k _"], b: Int64[np.ndarray, "k _"]
) -> Int64[np.ndarray, "k _"]:
    total = np.zeros((len(a), max(a.shape[1], b.shape[1])), dtype=np.int64)
    total[:, : a.shape[1]] += a
    total[:, : b.shape[1]] += b
    return total


def _check_classes(n_classes: int) -> None:
    if n_classes < 1:
        raise InputError("matching needs at least one class", got=n_classes, remedy="count again")
