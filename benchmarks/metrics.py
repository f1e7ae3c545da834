"""Metrics at benchmark speed, as ratios in one run: confusion counts, J and F, mVC.

Each is set against the formulation it is published in: a loop over classes with boolean masks; J
and F by morphology with a disk (by OpenCV if it is installed, else SciPy); VC window by window.

Run: python benchmarks/metrics.py [--repeats 5] [--check]

With --check it ends with exit code 1 unless confusion counts are 5 times as fast as the loop, and J
and F and mVC no slower than twice their references. Results are compared, too.
"""

import argparse
import importlib
import math
import time
from collections.abc import Callable
from typing import TypeVar

import numpy as np
from scipy import ndimage

from diffuseg.eval.metrics import ConfusionMatrix
from diffuseg.eval.video_metrics import LENGTHS, Consistency, plain_consistency
from diffuseg.eval.video_objects import boundary, boundary_f, jaccard

Result = TypeVar("Result")
LEAST = {"confusion counts": 5.0, "J and F": 0.5, "mVC8 and mVC16": 0.5}


def timed(work: Callable[[], Result], repeats: int) -> tuple[float, Result]:
    """Least seconds of several runs, and the last result."""
    least, result = math.inf, work()
    for _ in range(repeats):
        start = time.perf_counter()
        result = work()
        least = min(least, time.perf_counter() - start)
    return least, result


def label_maps(k: int, hw: tuple[int, int], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Blocks of classes, some of them ignored, and a prediction that is mostly right."""
    random = np.random.default_rng(seed)
    rows, columns = (np.arange(n) // 25 for n in hw)
    truth = ((rows[:, None] * 7 + columns) % k).astype(np.uint8)
    truth[random.random(hw) < 0.05] = 255
    prediction = np.where(truth == 255, 0, truth)
    wrong = random.random(hw) < 0.2
    prediction[wrong] = random.integers(0, k, np.count_nonzero(wrong))
    return truth, prediction.astype(np.uint8)


def discs(n: int, hw: tuple[int, int], shift: int) -> np.ndarray:
    """Labels of stuff that stands still and of discs that move."""
    rows, columns = np.ogrid[: hw[0], : hw[1]]
    clip = np.empty((n, *hw), dtype=np.uint8)
    for i in range(n):
        clip[i] = (rows // 60 + columns // 80) % 7
        for k in range(5):
            y, x = (60 + 90 * k) % hw[0], (40 + 150 * k + (2 * i + shift) * (k + 1)) % hw[1]
            clip[i][(rows - y) ** 2 + (columns - x) ** 2 < 40**2] = 10 + k
    return clip


def by_classes(truth: np.ndarray, prediction: np.ndarray, k: int) -> np.ndarray:
    """Hits, false alarms and misses of each class by boolean masks."""
    scored = truth != 255
    out = np.zeros((3, k), dtype=np.int64)
    for c in range(k):
        true, mine = (truth == c) & scored, (prediction == c) & scored
        out[:, c] = (true & mine).sum(), (~true & mine).sum(), (true & ~mine).sum()
    return out


def by_morphology(truth: np.ndarray, mask: np.ndarray) -> tuple[float, float]:
    """J and F with the boundaries dilated by a disk, as the published script does."""
    union = (truth | mask).sum()
    j = (truth & mask).sum() / union if union else 1.0
    radius = math.ceil(0.008 * math.hypot(*truth.shape))
    rows, columns = np.ogrid[-radius : radius + 1, -radius : radius + 1]
    disk = rows**2 + columns**2 <= radius**2
    edges = boundary(truth), boundary(mask)
    try:
        cv2 = importlib.import_module("cv2")
    except ImportError:
        near = [ndimage.binary_dilation(one, disk) for one in edges]
    else:
        grown = (cv2.dilate(one.astype(np.uint8), disk.astype(np.uint8)) for one in edges)
        near = [one.astype(bool) for one in grown]
    if not (edges[0].any() and edges[1].any()):
        return float(j), float(edges[0].any() == edges[1].any())
    precision = (edges[1] & near[0]).sum() / edges[1].sum()
    recall = (edges[0] & near[1]).sum() / edges[0].sum()
    whole = precision + recall
    return float(j), float(2 * precision * recall / whole) if whole else 0.0


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    ratios: dict[str, float] = {}
    alike = True

    def compare(name: str, work: Callable[[], Result], plain: Callable[[], Result], same) -> None:
        nonlocal alike
        mine, got = timed(work, options.repeats)
        theirs, want = timed(plain, max(1, options.repeats // 2))
        ratios[name] = theirs / mine
        equal = bool(same(got, want))
        alike = alike and equal
        print(
            f"{name}: {1000 * mine:.2f} ms, reference {1000 * theirs:.2f} ms, "
            f"ratio {theirs / mine:.2f}, equal: {equal}"
        )

    k = 21
    truth, prediction = label_maps(k, (375, 500), 0)

    def counted() -> np.ndarray:
        matrix = ConfusionMatrix(k)
        matrix.update(truth, prediction)
        hit = np.diag(matrix.counts)
        return np.stack([hit, matrix.counts.sum(axis=0) - hit, matrix.truth - hit])

    compare("confusion counts", counted, lambda: by_classes(truth, prediction, k), np.array_equal)

    pair = [discs(1, (480, 854), shift)[0] == 12 for shift in (0, 3)]
    compare(
        "J and F",
        lambda: (jaccard(pair[0], pair[1]), boundary_f(pair[0], pair[1])),
        lambda: by_morphology(pair[0], pair[1]),
        np.allclose,
    )

    clips = [discs(24, (480, 853), shift) for shift in (0, 3)]

    def one_pass() -> dict[int, np.ndarray]:
        held = Consistency(LENGTHS)
        for frames in zip(*clips, strict=True):
            held.add(*frames)
        return held.windows()

    compare(
        "mVC8 and mVC16",
        one_pass,
        lambda: {n: plain_consistency(clips[0], clips[1], n) for n in LENGTHS},
        lambda a, b: all(np.array_equal(a[n], b[n], equal_nan=True) for n in LENGTHS),
    )
    slow = [name for name, least in LEAST.items() if ratios[name] < least]
    if slow or not alike:
        print(f"too slow: {', '.join(slow) or 'none'}; equal: {alike}")
    return int(options.check and bool(slow or not alike))


if __name__ == "__main__":
    raise SystemExit(main())
