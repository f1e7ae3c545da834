"""Scores of a segmentation against the truth, from integer counts that can be added up anywhere."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Int64, Integer, UInt8

from diffuseg.errors import InputError
from diffuseg.files import atomic_path

AVERAGES = ("gt_present", "union_present", "all_eps", "all_zero")
"""The rules by which a mean over classes is taken, see `ConfusionMatrix.miou`."""


_UNDECIDED, _OTHER = 255, 254  # bytes that stand for undecided pixels, for labels that are none


class ConfusionMatrix:
    """Counts of (true class, predicted class) over all pixels of all images seen so far.

    One `bincount` an image, int64 throughout: `uint8` products wrap at 255, and 32-bit counters
    wrap on a large training set. Matrices of separate images, shards or processes are added with
    `+`; the order makes no difference.

    Args:
        n_classes: Number of classes, k.
        ignore: Label of pixels that are not scored. Other labels outside 0 to k-1 are not scored
            either, as in the published scripts.
        undecided: Label by which a prediction says "none of the classes" (65535 in a
            `Segmentation`). Such pixels are missed by their class and charged to no other. None:
            a prediction outside 0 to k-1 is an error.

    Attributes:
        counts: `counts[g, p]`, pixels of class g predicted as p.
        missed: `missed[g]`, pixels of class g predicted as undecided.
        n_images: Number of label maps added.

    Example:
        >>> truth, prediction = np.array([[0, 0], [1, 255]]), np.array([[0, 1], [1, 0]])
        >>> matrix = ConfusionMatrix(2)
        >>> matrix.update(truth, prediction)
        >>> matrix.counts.tolist(), matrix.iou().tolist(), matrix.miou()
        ([[1, 1], [0, 1]], [0.5, 0.5], 0.5)
    """

    def __init__(self, n_classes: int, *, ignore: int = 255, undecided: int | None = None) -> None:
        if n_classes < 1:
            raise InputError(
                "a confusion matrix needs at least one class", got=n_classes, remedy="count again"
            )
        if undecided is not None and 0 <= undecided < n_classes:
            raise InputError(
                "the label of undecided pixels must not be a class",
                got=f"undecided={undecided} with {n_classes} classes",
                remedy="use a label that no class has",
            )
        self.ignore = ignore
        self.undecided = undecided
        self.counts = np.zeros((n_classes, n_classes), dtype=np.int64)
        self.missed = np.zeros(n_classes, dtype=np.int64)
        self.n_images = 0

    @property
    def n_classes(self) -> int:
        """Number of classes."""
        return len(self.counts)

    @property
    def n_pixels(self) -> int:
        """Number of pixels scored."""
        return int(self.counts.sum() + self.missed.sum())

    @property
    def truth(self) -> Int64[np.ndarray, " k"]:
        """Pixels of every class in the truth."""
        return self.counts.sum(axis=1) + self.missed

    def update(self, truth: object, prediction: object) -> None:
        """Add the pixels of one image, or of a stack of images as one.

        Args:
            truth: Integer class index of every pixel, of any shape.
            prediction: The same for the prediction, of the same shape.

        Raises:
            InputError: The shapes differ, a map is not of integers, or a scored pixel is predicted
                as a class that does not exist.
        """
        g, p = np.asarray(truth), np.asarray(prediction)
        if g.shape != p.shape or g.dtype.kind not in "iu" or p.dtype.kind not in "iu":
            raise InputError(
                "truth and prediction must be integer maps of one shape",
                got=f"truth {g.dtype} {g.shape}, prediction {p.dtype} {p.shape}",
                remedy="resize the prediction to the truth: segmentation.resize(truth.shape)",
            )
        self._add(g.reshape(-1), p.reshape(-1))
        self.n_images += 1

    def _add(self, g: Integer[np.ndarray, " n"], p: Integer[np.ndarray, " n"]) -> None:
        k = self.n_classes
        if k <= _OTHER:
            # Pairs of bytes are counted without a mask for anything: what is not scored, undecided
            # or wrong has rows and columns of its own.
            pairs = _codes(g, None).astype(np.uint16)
            pairs <<= 8
            pairs |= _codes(p, self.undecided)
            table = np.bincount(pairs, minlength=65536).reshape(256, 256)[:k]
            if 0 <= self.ignore < k:
                table[self.ignore] = 0
            if not table[:, k:_UNDECIDED].any():
                self.counts += table[:, :k]
                self.missed += table[:, _UNDECIDED]
                return
        scored = (g != self.ignore) & (g >= 0) & (g < k)
        g, p = g[scored].astype(np.int64), p[scored].astype(np.int64)
        if self.undecided is not None:
            decided = p != self.undecided
            self.missed += np.bincount(g[~decided], minlength=k)
            g, p = g[decided], p[decided]
        if p.size and (p.min() < 0 or p.max() >= k):
            wrong = np.unique(p[(p < 0) | (p >= k)])
            raise InputError(
                f"predictions must be class indices from 0 to {k - 1}",
                got=f"labels {wrong[:5].tolist()}",
                remedy="map the prediction to the classes of the truth, or name the label of "
                "undecided pixels: ConfusionMatrix(..., undecided=65535)",
            )
        self.counts += np.bincount(k * g + p, minlength=k * k).reshape(k, k)

    def __add__(self, other: "ConfusionMatrix") -> "ConfusionMatrix":
        """Return the matrix of both sets of images.

        Raises:
            InputError: The two do not count the same way.
        """
        if not isinstance(other, ConfusionMatrix):
            return NotImplemented
        mine, theirs = ((m.n_classes, m.ignore, m.undecided) for m in (self, other))
        if mine != theirs:
            raise InputError(
                "matrices can be added when classes, ignore and undecided labels are the same",
                got=f"{mine} and {theirs}",
                remedy="score both parts with the same settings",
            )
        total = ConfusionMatrix(self.n_classes, ignore=self.ignore, undecided=self.undecided)
        total.counts = self.counts + other.counts
        total.missed = self.missed + other.missed
        total.n_images = self.n_images + other.n_images
        return total

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ConfusionMatrix):
            return NotImplemented
        return (
            (self.ignore, self.undecided, self.n_images)
            == (other.ignore, other.undecided, other.n_images)
            and np.array_equal(self.counts, other.counts)
            and np.array_equal(self.missed, other.missed)
        )

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"ConfusionMatrix {self.n_classes} classes, {self.n_images} images"

    def iou(self) -> Float[np.ndarray, " k"]:
        """Intersection over union of every class; NaN where a class is in neither map."""
        hit = np.diag(self.counts).astype(np.float64)
        return _ratio(hit, self.truth + self.counts.sum(axis=0) - hit)

    def miou(self, average: str = "gt_present", *, classes: Sequence[int] | None = None) -> float:
        """Return the mean intersection over union; NaN when there is nothing to average.

        Args:
            average: Which classes count. "gt_present" (iSeg, VSPW): those with pixels in the truth.
                "union_present" (mmsegmentation, DiffSeg): also those only predicted, as 0.
                "all_eps" (DiffSegmenter): all, with 1e-10 added to the union. "all_zero" (OVDiff):
                all, absent ones as 0. On a complete split the four agree; on a part they do not.
            classes: Indices of the classes averaged over; all by default.

        Raises:
            InputError: Another rule.
        """
        hit = np.diag(self.counts)
        whole = self.truth + self.counts.sum(axis=0) - hit
        return mean_iou(hit, whole, self.truth, average, classes=classes)

    def iou_eps(self) -> Float[np.ndarray, " k"]:
        """Intersection over union with 1e-10 in the denominator: 0 for absent classes."""
        hit = np.diag(self.counts).astype(np.float64)
        return hit / (self.truth + self.counts.sum(axis=0) - hit + 1e-10)

    def class_accuracy(self) -> Float[np.ndarray, " k"]:
        """Share of every class's pixels that is right; NaN for classes not in the truth."""
        return _ratio(np.diag(self.counts).astype(np.float64), self.truth)

    def mean_accuracy(self) -> float:
        """Mean of `class_accuracy` over the classes in the truth."""
        return _mean(self.class_accuracy())

    def accuracy(self) -> float:
        """Share of scored pixels that is right; NaN when none was scored."""
        return float(np.trace(self.counts) / self.n_pixels) if self.n_pixels else float("nan")

    def fwiou(self) -> float:
        """Intersection over union weighted by the frequency of the classes in the truth."""
        if not self.n_pixels:
            return float("nan")
        return float(np.nansum(self.iou() * self.truth) / self.n_pixels)

    def row(self) -> dict[str, object]:
        """Return the counts of a single image as plain JSON values; they are mostly zero."""
        return {"counts": sparse(self.counts), "missed": sparse(self.missed)}

    def with_row(self, row: Mapping[str, Any]) -> "ConfusionMatrix":
        """Return these counts and those of the `row` of an image together."""
        total = self + ConfusionMatrix(self.n_classes, ignore=self.ignore, undecided=self.undecided)
        for truth, predicted, count in row["counts"]:
            total.counts[truth, predicted] += count
        for truth, count in row["missed"]:
            total.missed[truth] += count
        total.n_images += 1
        return total

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the counts to an `.npz` file; return its path."""
        target = Path(path)
        if target.suffix != ".npz":
            raise InputError("counts are saved as .npz", got=str(target), remedy="use that suffix")
        undecided = [] if self.undecided is None else [self.undecided]
        with atomic_path(target) as temporary:
            np.savez_compressed(
                temporary,
                counts=self.counts,
                missed=self.missed,
                n_images=np.int64(self.n_images),
                ignore=np.int64(self.ignore),
                undecided=np.array(undecided, dtype=np.int64),
            )
        return target

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "ConfusionMatrix":
        """Return the matrix `save` wrote.

        Raises:
            InputError: The file is missing, damaged or of another kind.
        """
        try:
            with Path(path).open("rb") as stream, np.load(stream) as file:
                counts, missed = file["counts"], file["missed"]
                undecided = file["undecided"].tolist()
                matrix = cls(
                    len(counts),
                    ignore=int(file["ignore"]),
                    undecided=undecided[0] if undecided else None,
                )
                matrix.counts += counts
                matrix.missed += missed
                matrix.n_images = int(file["n_images"])
        # A damaged archive can raise almost anything from zipfile, zlib and numpy.
        except Exception as error:
            raise InputError(
                "the file must hold the counts of a confusion matrix",
                got=f"{path}: {error}",
                remedy="give a file written by ConfusionMatrix.save",
            ) from error
        return matrix


def mean_iou(
    hit: Int64[np.ndarray, " k"],
    whole: Int64[np.ndarray, " k"],
    truth: Int64[np.ndarray, " k"],
    average: str,
    *,
    classes: Sequence[int] | None = None,
) -> float:
    """Return the mean intersection over union by one of the rules of `ConfusionMatrix.miou`.

    Args:
        hit: Pixels of each class that are right.
        whole: Pixels of each class in the truth or in the prediction.
        truth: Pixels of each class in the truth.
        average: The rule.
        classes: Indices of the classes averaged over; all by default.

    Raises:
        InputError: Another rule.

    Example:
        >>> counts = np.array([2, 0, 0]), np.array([4, 1, 0]), np.array([3, 0, 0])
        >>> mean_iou(*counts, "gt_present"), mean_iou(*counts, "union_present")
        (0.5, 0.25)
    """
    iou = _ratio(hit.astype(np.float64), whole)
    match average:
        case "gt_present":
            values = np.where(truth > 0, iou, np.nan)
        case "union_present":
            values = iou
        case "all_eps":
            values = hit / (whole + 1e-10)
        case "all_zero":
            values = np.nan_to_num(iou)
        case _:
            raise InputError(
                f"average must be one of {', '.join(AVERAGES)}",
                got=repr(average),
                remedy='use "gt_present" unless a publication says otherwise',
            )
    return _mean(values if classes is None else values[list(classes)])


def _codes(labels: Integer[np.ndarray, " n"], undecided: int | None) -> UInt8[np.ndarray, " n"]:
    """Labels as bytes: those below 254 as they are, undecided pixels 255, all others 254."""
    if labels.size == 0:
        return labels.astype(np.uint8)
    low, high = labels.min(), labels.max()
    if low >= 0 and high < _OTHER and (undecided is None or not low <= undecided <= high):
        return labels.astype(np.uint8)
    codes = np.where((labels < 0) | (labels > _OTHER), _OTHER, labels).astype(np.uint8)
    if undecided is not None:
        codes[labels == undecided] = _UNDECIDED
    return codes


def sparse(counts: Int64[np.ndarray, "*shape"]) -> list[list[int]]:
    """Return the entries that are not zero: their place, then their value.

    Example:
        >>> sparse(np.array([[0, 0], [7, 0]]))
        [[1, 0, 7]]
    """
    places = np.argwhere(counts)
    return [[*map(int, place), int(counts[tuple(place)])] for place in places]


def _ratio(
    part: Float[np.ndarray, " k"], whole: Int[np.ndarray, " k"] | Float[np.ndarray, " k"]
) -> Float[np.ndarray, " k"]:
    out = np.full(len(part), np.nan)
    return np.divide(part, whole, out=out, where=whole > 0)


def _mean(values: Float[np.ndarray, " k"]) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")
