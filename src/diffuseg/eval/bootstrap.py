"""How far a figure would move with other images: confidence intervals by resampling images."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int64

from diffuseg.errors import InputError
from diffuseg.eval.metrics import ConfusionMatrix, mean_iou
from diffuseg.eval.state import Counts

RESAMPLES = 1000
LEVEL = 0.95
SEED = 0

_AT_ONCE = 2**22  # numbers of the table of draws held at a time


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ImageCounts:
    """What accuracy and IoU of any set of images are made of: three integers a class and image.

    Whole confusion matrices of 5000 images with 171 classes would be 1.2 GB; this is 21 MB.

    Attributes:
        hit: Pixels of each class that are right.
        whole: Pixels of each class in the truth or in the prediction.
        truth: Pixels of each class in the truth.
    """

    hit: Int64[np.ndarray, "n k"]
    whole: Int64[np.ndarray, "n k"]
    truth: Int64[np.ndarray, "n k"]

    @classmethod
    def of(cls, images: Iterable[Counts]) -> "ImageCounts":
        """Return the counts of some images, in their order.

        Raises:
            InputError: There are no images.

        Example:
            >>> matrix = ConfusionMatrix(2)
            >>> matrix.update(np.array([0, 1]), np.array([0, 0]))
            >>> ImageCounts.of([matrix]).whole.tolist()
            [[2, 1]]
        """
        parts = [_parts(one) for one in images]
        if not parts:
            raise InputError("there must be images to draw from", got="none", remedy="score some")
        hit, whole, truth = (np.stack(held) for held in zip(*parts, strict=True))
        return cls(hit=hit, whole=whole, truth=truth)


def draw_intervals(
    images: ImageCounts,
    average: str,
    *,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    seed: int = SEED,
) -> dict[str, tuple[float, float]]:
    """Return the bootstrap interval of mIoU and accuracy over images (percentiles).

    As many images are drawn again and again, with replacement, and their counts added up. Integers
    are summed, so that the same seed gives the same numbers everywhere.

    Args:
        images: The counts of each image.
        average: The rule of the mean IoU.
        resamples: How often is drawn.
        level: Share of the draws that lies inside.
        seed: Of the draws.

    Returns:
        Lower and upper end of "miou" and "acc"; without those that no draw has.

    Raises:
        InputError: A number is out of range, or the rule is unknown.

    Example:
        >>> matrix = ConfusionMatrix(2)
        >>> matrix.update(np.array([0, 1]), np.array([0, 1]))
        >>> draw_intervals(ImageCounts.of([matrix, matrix]), "gt_present", resamples=10)["miou"]
        (1.0, 1.0)
    """
    if resamples < 1 or not 0 < level < 1:
        raise InputError(
            "an interval needs draws, and a level between 0 and 1",
            got=f"{resamples} draws, level {level}",
            remedy=f"use {RESAMPLES} and {LEVEL}",
        )
    n = len(images.hit)
    random = np.random.default_rng(seed)
    values: dict[str, list[float]] = {"miou": [], "acc": []}
    # Floats hold integers to 2**53 exactly, and their matrix product is the fast one.
    tables = [one.astype(np.float64) for one in (images.hit, images.whole, images.truth)]
    step = max(1, _AT_ONCE // n)
    for start in range(0, resamples, step):
        times = _draw(random, n, min(step, resamples - start))
        for hit, whole, truth in zip(*(times @ one for one in tables), strict=True):
            counts = hit.astype(np.int64), whole.astype(np.int64), truth.astype(np.int64)
            values["miou"].append(mean_iou(*counts, average))
            pixels = truth.sum()
            values["acc"].append(float(hit.sum() / pixels) if pixels else float("nan"))
    found = {}
    for name, held in values.items():
        known = np.array(held)[~np.isnan(held)]
        if known.size:
            low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2])
            found[name] = (float(low), float(high))
    return found


def _draw(random: np.random.Generator, n: int, rows: int) -> Float[np.ndarray, "rows n"]:
    """How often each of n images is drawn."""
    places = random.integers(0, n, (rows, n)) + n * np.arange(rows)[:, None]
    return np.bincount(places.reshape(-1), minlength=rows * n).reshape(rows, n).astype(np.float64)


def _parts(counts: Counts) -> tuple[Int64[np.ndarray, " k"], ...]:
    if isinstance(counts, ConfusionMatrix):
        hit = np.diag(counts.counts)
        return hit, counts.truth + counts.counts.sum(axis=0) - hit, counts.truth
    held = counts.image
    return held.tp, held.tp + held.fp + held.fn, held.tp + held.fn
