"""Video metrics against their plain forms: mVC in one pass and window by window, F by rows and EDT.

Run: python benchmarks/video_metrics.py [--frames 71] [--height 480] [--width 853] [--least 2]

With --least RATIO it ends with exit code 1 if one pass is not that many times as fast as windows.
"""

import argparse
import math
import time
from collections.abc import Callable
from typing import TypeVar

import numpy as np
from scipy import ndimage

from diffuseg.eval.video_metrics import LENGTHS, Consistency, plain_consistency
from diffuseg.eval.video_objects import boundary, dilate

Result = TypeVar("Result")


def moving_discs(n: int, height: int, width: int, shift: int) -> np.ndarray:
    """Labels of stuff that stands still and of discs that move."""
    rows, columns = np.ogrid[:height, :width]
    clip = np.empty((n, height, width), dtype=np.uint8)
    for i in range(n):
        clip[i] = (rows // 60 + columns // 80) % 7
        for k in range(5):
            y, x = (60 + 90 * k) % height, (40 + 150 * k + (2 * i + shift) * (k + 1)) % width
            clip[i][(rows - y) ** 2 + (columns - x) ** 2 < 40**2] = 10 + k
    return clip


def timed(work: Callable[[], Result], repeats: int) -> tuple[float, Result]:
    """Least seconds of several runs, and the last result."""
    least, result = math.inf, work()
    for _ in range(repeats):
        start = time.perf_counter()
        result = work()
        least = min(least, time.perf_counter() - start)
    return least, result


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--frames", type=int, default=71)
    parser.add_argument("--height", type=int, default=480)
    parser.add_argument("--width", type=int, default=853)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--least", type=float, default=0.0)
    options = parser.parse_args()
    truth = moving_discs(options.frames, options.height, options.width, 0)
    prediction = moving_discs(options.frames, options.height, options.width, 3)

    def one_pass() -> dict[int, np.ndarray]:
        held = Consistency(LENGTHS)
        for pair in zip(truth, prediction, strict=True):
            held.add(*pair)
        return held.windows()

    def by_windows() -> dict[int, np.ndarray]:
        return {n: plain_consistency(truth, prediction, n) for n in LENGTHS}

    fast, got = timed(one_pass, options.repeats)
    slow, want = timed(by_windows, 1)
    same = all(np.array_equal(got[n], want[n], equal_nan=True) for n in LENGTHS)
    print(f"{options.frames} frames of {options.height}x{options.width}, one process")
    print(f"mVC8 and mVC16: one pass {fast:.3f} s, windows {slow:.3f} s, ratio {slow / fast:.1f}")
    print(f"equal: {same}")
    edge = boundary(truth[0] == 12)
    radius = math.ceil(0.008 * math.hypot(*edge.shape))
    rows, near = timed(lambda: dilate(edge, radius), options.repeats)
    distances, far = timed(
        lambda: np.asarray(ndimage.distance_transform_edt(~edge)) <= radius, options.repeats
    )
    print(
        f"dilation by {radius}: rows {1000 * rows:.1f} ms, distance transform "
        f"{1000 * distances:.1f} ms, ratio {distances / rows:.1f}, "
        f"equal: {np.array_equal(near, far)}"
    )
    return int(not same or slow / fast < options.least)


if __name__ == "__main__":
    raise SystemExit(main())
