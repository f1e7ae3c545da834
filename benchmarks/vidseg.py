"""VidSeg's labels from batch to batch against plain forms: time, and whether they are equal.

Made-up features of a batch: regions with a direction each and noise, moved from frame to frame. The
neighbours' vote runs against scikit-learn's KNeighborsClassifier (brute force, on the same numbers
in single and, with --double, in double precision), tracks and their votes against loops. Labels
must be equal. Times are of the processor, so that what else runs does not show.

Run: python benchmarks/vidseg.py [--frames 14] [--hw 28 52] [--width 640] [--device cpu] [--double]

With --least RATIO it ends with exit code 1 if the neighbours' vote is not that many times as fast,
and always if labels differ.
"""

import argparse
import statistics
import time
from collections import Counter
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int64
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor

from diffuseg.methods.vidseg.correspondence import Tracks, refine_labels, track
from diffuseg.methods.vidseg.features import aggregate_queries
from diffuseg.methods.vidseg.nearest import vote_nearest

R = TypeVar("R")

REGIONS = 12
NEIGHBOURS = 4


def made_up(
    frames: int, hw: tuple[int, int], width: int, seed: int
) -> tuple[Float[Tensor, "f n c"], Int64[Tensor, "f h w"]]:
    """Columns of regions that move a cell a frame, and which region every cell is in."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(REGIONS, width, generator=torch.Generator().manual_seed(0))
    columns = torch.arange(hw[1])[None] + torch.arange(frames)[:, None]
    regions = (columns * REGIONS // hw[1]) % REGIONS
    regions = regions[:, None].expand(-1, hw[0], -1).contiguous()
    noise = 2 * torch.randn(frames, hw[0] * hw[1], width, generator=generator)
    return aggregate_queries([directions[regions.flatten(1)] + noise]), regions


def tracked_plainly(features: Float[Tensor, "f n c"]) -> list[list[int]]:
    unit = torch.nn.functional.normalize(features, dim=2)
    points = [list(range(features.shape[1]))]
    for q in range(len(features) - 1):
        step = []
        for cell in points[-1]:
            ahead, first = unit[q + 1] @ unit[q][cell], unit[0] @ unit[q][cell]
            step.append(int((q / (q + 1) * ahead + 1 / (q + 1) * first).argmax()))
        points.append(step)
    return points


def refined_plainly(
    labels: Int64[Tensor, "f h w"], points: list[list[int]], jump: int
) -> list[list[int]]:
    width = labels.shape[2]
    flat = labels.flatten(1).tolist()
    result = [list(one) for one in flat]
    for start in range(len(flat[0])):
        way = [one[start] for one in points]
        places = [divmod(one, width) for one in way]
        if any(
            abs(one - other) > jump
            for after, before in zip(places[1:], places, strict=False)
            for one, other in zip(after, before, strict=True)
        ):
            continue
        vote = Counter(flat[frame][cell] for frame, cell in enumerate(way)).most_common(1)[0][0]
        for frame, cell in enumerate(way):
            result[frame][cell] = vote
    return result


def timed(function: Callable[[], R], device: str, repeats: int = 1) -> tuple[float, R]:
    """Return the median of the seconds, and what came of it."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    taken, result = [], function()
    for _ in range(repeats):
        if device != "cpu":
            torch.cuda.synchronize()
        start = clock()
        result = function()
        if device != "cpu":
            torch.cuda.synchronize()
        taken.append(clock() - start)
    return statistics.median(taken), result


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--frames", type=int, default=14)
    parser.add_argument("--hw", type=int, nargs=2, default=(28, 52))
    parser.add_argument("--width", type=int, default=640)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--double", action="store_true")
    parser.add_argument("--least", type=float, default=0.0)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    hw = (options.hw[0], options.hw[1])
    before, regions = made_up(options.frames, hw, options.width, 1)
    batch, _ = made_up(options.frames, hw, options.width, 2)
    cells, references = (one.flatten(0, 1) for one in (batch, before))
    wrong = torch.rand(regions.shape, generator=torch.Generator().manual_seed(3)) < 0.3
    labels = torch.where(wrong, (regions + 1) % REGIONS, regions)
    same = True

    # 1. The neighbours' vote, from one batch to the next
    there = [one.to(options.device) for one in (cells, references, labels.flatten())]
    ours, found = timed(
        lambda: vote_nearest(*there, neighbours=NEIGHBOURS), options.device, options.repeats
    )
    start = time.process_time()
    product = cells @ references.T
    least = time.process_time() - start
    del product
    print(f"{len(cells)} cells, {len(references)} references, {options.width} channels")
    print(
        f"vote: {ours:.2f} s on {options.device}; the product alone, on the processor {least:.2f}"
    )
    ratio = 0.0
    for kind in (np.float32, np.float64)[: 1 + options.double]:
        plain = KNeighborsClassifier(NEIGHBOURS, algorithm="brute")
        plain.fit(references.numpy().astype(kind), labels.flatten().numpy())
        queries = cells.numpy().astype(kind)
        start = time.process_time()
        expected = plain.predict(queries)
        spent = time.process_time() - start
        agree = float((found.cpu().numpy() == expected).mean())
        same &= agree == 1
        ratio = ratio or spent / ours
        print(
            f"scikit-learn, {kind.__name__}: {spent:.2f} s, {spent / ours:.1f} x; {agree:.2%} equal"
        )

    # 2. Tracks, and votes along them
    start = time.process_time()
    points = tracked_plainly(batch)
    plainly = time.process_time() - start
    batch, labels = batch.to(options.device), labels.to(options.device)
    ours, tracks = timed(lambda: track(batch, hw), options.device, options.repeats)
    equal = tracks.points.tolist() == points
    print(f"tracks: {ours:.3f} s, a loop {plainly:.2f} s, {plainly / ours:.0f} x; equal: {equal}")
    same &= equal
    tracks = Tracks(points=tracks.points, hw=hw)
    ours, refined = timed(lambda: refine_labels(labels, tracks), options.device, options.repeats)
    start = time.process_time()
    loop = refined_plainly(labels.cpu(), points, 1)
    plainly = time.process_time() - start
    equal = refined.flatten(1).tolist() == loop
    print(f"votes: {ours:.4f} s, a loop {plainly:.3f} s, {plainly / ours:.0f} x; equal: {equal}")
    same &= equal
    return int(not same or ratio < options.least)


if __name__ == "__main__":
    raise SystemExit(main())
