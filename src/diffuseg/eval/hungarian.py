"""Scores of segments without names: an assignment to the true classes first, counts afterwards."""

import numpy as np
from jaxtyping import Float, Int64, Integer

from diffuseg.errors import InputError


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
        if n_classes < 1:
            raise InputError(
                "matching needs at least one class", got=n_classes, remedy="count again"
            )
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
        from scipy.optimize import linear_sum_assignment

        table = histogram(truth, prediction, len(self.tp))
        rows = np.arange(len(table))
        if self.strict:
            rows = rows[table.sum(axis=1) > 0]
        chosen, columns = linear_sum_assignment(table[rows], maximize=True)
        matched = rows[chosen]
        hits = table[matched, columns]
        self.tp[matched] += hits
        self.fp[matched] += table[:, columns].sum(axis=0) - hits
        self.fn += table.sum(axis=1)
        self.fn[matched] -= hits
        self.n_pixels += int(table.sum())
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

    def miou(self) -> float:
        """Mean of `iou` over the classes that have one; NaN when none has."""
        known = self.iou()[self.tp + self.fp + self.fn > 0]
        return float(known.mean()) if known.size else float("nan")

    def accuracy(self) -> float:
        """Share of scored pixels in the segment of their class; NaN when none was scored."""
        return float(self.tp.sum() / self.n_pixels) if self.n_pixels else float("nan")


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
