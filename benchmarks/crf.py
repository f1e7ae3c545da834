"""A dense CRF's lattice against all pairs of pixels: time, and how far they agree, in one run.

Scenes whose boundaries were made to wander, with grain as a camera has it. Small pictures are done
both ways; large ones only on the lattice. Times are of the processor, so that what else runs does
not show.

Run: python benchmarks/crf.py [--side 96] [--count 4] [--grain 4]

With --least SHARE it ends with exit code 1 if fewer labels are equal.
"""

import argparse
import time
from dataclasses import replace

import numpy as np
from jaxtyping import Integer, UInt8
from scipy.ndimage import gaussian_filter

from diffuseg.methods.crf import DenseCrf, crf_labels
from diffuseg.world import Scenes

LARGE = ((256, 256), (480, 854))
LABELS = 6


def made_up(
    hw: tuple[int, int], number: int, grain: float
) -> tuple[UInt8[np.ndarray, "h w 3"], Integer[np.ndarray, "h w"], Integer[np.ndarray, "h w"]]:
    """A picture, its labels, and those with boundaries that wander by some pixels."""
    scene = Scenes("test", seed=1, hw=hw)[number]
    rng = np.random.default_rng(number)
    pixels = np.asarray(scene.image) + grain * rng.standard_normal((*hw, 3))
    image = np.clip(pixels, 0, 255).astype(np.uint8)
    truth = np.asarray(scene.labels).astype(np.int32)
    shifts = [gaussian_filter(rng.standard_normal(hw), min(hw) / 40) for _ in range(2)]
    places = np.indices(hw) + [min(hw) / 32 * one / one.std() for one in shifts]
    rows, columns = places.round().astype(int)
    given = truth[np.clip(rows, 0, hw[0] - 1), np.clip(columns, 0, hw[1] - 1)]
    # As many labels always: some corners are something else.
    for i in range(LABELS - len(np.unique(given))):
        given[:4, 4 * i : 4 * i + 4] = 1000 + i
    return image, truth, given


def timed(
    image: UInt8[np.ndarray, "h w 3"], labels: Integer[np.ndarray, "h w"], settings: DenseCrf
) -> tuple[Integer[np.ndarray, "h w"], float]:
    start = time.process_time()
    found = crf_labels(image, labels, settings)
    return found, time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", type=int, default=96)
    parser.add_argument("--count", type=int, default=4)
    parser.add_argument("--grain", type=float, default=4.0)
    parser.add_argument("--least", type=float, default=0.0)
    options = parser.parse_args()

    settings, seconds, equal = DenseCrf(), np.zeros(2), []
    for number in range(options.count):
        image, _, given = made_up((options.side, options.side), number, options.grain)
        near, quick = timed(image, given, settings)
        exact, slow = timed(image, given, replace(settings, filter="exact"))
        seconds += quick, slow
        equal.append(float((near == exact).mean()))
    lattice, pairs = seconds / options.count
    side, ratio = options.side, pairs / lattice
    print(f"{side}x{side}, {settings.iterations} iterations, mean of {options.count}")
    print(f"  lattice {lattice:.2f} s, all pairs {pairs:.2f} s: {ratio:.1f} times as fast")
    print(f"  equal labels: {min(equal):.4f} at least, {np.mean(equal):.4f} in the mean")
    for hw in LARGE:
        image, truth, given = made_up(hw, 1, options.grain)
        found, quick = timed(image, given, settings)
        before, after = ((one == truth).mean() for one in (given, found))
        print(f"{hw[0]}x{hw[1]}, {len(np.unique(given))} labels: {quick:.2f} s; ", end="")
        print(f"right before {before:.4f}, after {after:.4f}")
    if min(equal) < options.least:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
