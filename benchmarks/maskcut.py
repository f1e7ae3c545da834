"""MaskCut's eigenvector by Lanczos against the plain generalised eigenproblem: time, partition.

Features are made up: objects of one direction each on a ground of another, and noise. Both forms
solve the same graph one after the other, in one process; "plain" is the second vector of
(D - W) v = t D v as the reference asks LAPACK for it.

Run: python benchmarks/maskcut.py [--cells 40 60] [--noise 0.3] [--threads 1] [--least 5]

With --least RATIO it ends with exit code 1 if Lanczos is not that many times as fast.
"""

import argparse
import statistics
import time

import numpy as np
import torch
from jaxtyping import Float
from scipy.linalg import eigh
from torch import Tensor

from diffuseg.methods.ovdiff.maskcut import Cells, affinity, cut_cells, second_vector

WIDTH = 64
THRESHOLD = 0.15


def made_up(side: int, noise: float) -> Float[Tensor, "h w d"]:
    """Three discs on a ground."""
    generator = torch.Generator().manual_seed(0)
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    labels = torch.zeros(side, side, dtype=torch.long)
    for number, (y, x, radius) in enumerate([(0.3, 0.3, 0.18), (0.7, 0.6, 0.2), (0.25, 0.75, 0.1)]):
        apart = (rows / side - y) ** 2 + (columns / side - x) ** 2
        labels[apart < radius**2] = number + 1
    directions = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=generator))[0]
    return directions[labels] + noise * torch.randn(side, side, WIDTH, generator=generator)


def plain(weights: Cells) -> Float[np.ndarray, " n"]:
    """The reference's form."""
    degrees = np.diag(weights.sum(1))
    return eigh(degrees - weights, degrees, subset_by_index=[1, 1])[1][:, 0]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cells", type=int, nargs="+", default=[40, 60], help="of a side")
    parser.add_argument("--noise", type=float, default=0.3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3, help="of Lanczos; plain runs once")
    parser.add_argument("--least", type=float, default=0.0)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    slowest = float("inf")
    for side in options.cells:
        features = made_up(side, options.noise)
        weights = affinity(features, THRESHOLD)
        spent, found = [], None
        for _ in range(options.repeats):
            start = time.perf_counter()
            found = second_vector(weights)
            spent.append(time.perf_counter() - start)
        if found is None:
            raise SystemExit("all cells are alike; try less noise")
        start = time.perf_counter()
        expected = plain(weights)
        direct = time.perf_counter() - start
        start = time.perf_counter()
        masks = cut_cells(features, threshold=THRESHOLD, number=3)
        whole = time.perf_counter() - start

        cosine = found @ expected / np.linalg.norm(found) / np.linalg.norm(expected)
        found = found * np.sign(cosine)
        same = np.mean((found > found.mean()) == (expected > expected.mean()))
        lanczos = statistics.median(spent)
        slowest = min(slowest, direct / lanczos)
        print(
            f"{side * side} cells: plain {direct:.2f} s, Lanczos {lanczos:.3f} s, "
            f"{direct / lanczos:.0f} x; |cos| {abs(cosine):.9f}, "
            f"{same:.4%} of cells on the same side; "
            f"{len(masks)} masks in {whole:.2f} s"
        )
    return int(slowest < options.least)


if __name__ == "__main__":
    raise SystemExit(main())
