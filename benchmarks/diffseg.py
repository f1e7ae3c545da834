"""DiffSeg's merge as matrix products against the direct pairwise form: time, memory, labels.

Both work on one made-up tensor of the real size, a 64 x 64 grid and 256 anchors, the direct form
in chunks of anchors as the authors' code. Each runs in a process of its own, so that peaks of
memory are its own; figures are of all rounds, memory beyond the tensor itself.

Run: python benchmarks/diffseg.py [--side 64] [--anchors 16] [--threads 1] [--repeats 3]
"""

import argparse
import multiprocessing
import resource
import statistics
import time
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from diffuseg.methods import merging
from diffuseg.methods.attend import best_class

# The authors' chunk: 16 anchors against all cells, over a gigabyte a temporary on 64 x 64.
ANCHORS_AT_A_TIME = 16


def made_up(side: int) -> Float[Tensor, "1 n n"]:
    """Attention with some structure: softmax of products of smooth random features, fused."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(1, 12, side // 8, side // 8, generator=generator)
    parts, grids = [], []
    for divisor in (1, 2, 4, 8):
        hw = (side // divisor, side // divisor)
        features = torch.nn.functional.interpolate(coarse, size=hw, mode="bicubic")[0].flatten(1)
        parts.append(torch.softmax(features.T @ features, dim=-1)[None])
        grids.append(hw)
    return merging.aggregate(parts, grids)


def direct_distances(p: Float[Tensor, "k m"], q: Float[Tensor, "n m"]) -> Float[Tensor, "k n"]:
    """Half the sum of (p - q)(log p - log q), every pair of maps written out."""
    rows = []
    for start in range(0, len(p), ANCHORS_AT_A_TIME):
        part = p[start : start + ANCHORS_AT_A_TIME, None]
        ratio = part.log() - q[None].log()
        forth = (part * ratio).sum(-1) / 2
        back = -(q[None] * ratio).sum(-1) / 2
        rows.append(forth + back)
    return torch.cat(rows)


def direct_merge(
    fused: Float[Tensor, "n m"], anchors: Int[Tensor, " k"], taus: Sequence[float]
) -> Float[Tensor, "j m"]:
    """The published loop."""
    near = direct_distances(fused[anchors], fused) < taus[0]
    maps = torch.stack([fused[row].mean(0) for row in near])
    for tau in taus[1:]:
        used: set[int] = set()
        found = []
        for i, one in enumerate(maps):
            if i not in used:
                close = direct_distances(one[None], maps)[0] < tau
                used |= set(close.nonzero()[:, 0].tolist())
                found.append(maps[close].mean(0))
        maps = torch.stack(found)
    return maps


def measure(form: str, side: int, n: int, threads: int, repeats: int, answers) -> None:
    """Run one form; send its median seconds, its peak in bytes, and the labels."""
    torch.set_num_threads(threads)
    fused = made_up(side)
    points = merging.anchor_grid((side, side), n)
    anchors = torch.from_numpy(points @ np.array([side, 1]))
    taus = [0.9] * 3
    # Pages that making the tensor has freed must not hide the peak: ask for the level now.
    base = resident()
    seconds = []
    peak = 0
    maps = torch.zeros(0)
    for _ in range(repeats):
        reset_peak()
        start = time.perf_counter()
        if form == "products":
            maps = merging.merge(fused, anchors, taus)[0].maps
        else:
            maps = direct_merge(fused[0], anchors, taus)
        seconds.append(time.perf_counter() - start)
        peak = max(peak, highest() - base)
    labels, _ = best_class(maps.unflatten(1, (side, side)), (8 * side, 8 * side))
    answers.put((statistics.median(seconds), peak, len(maps), labels))


def resident() -> int:
    """Bytes of memory this process holds."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def reset_peak() -> None:
    """Make `highest` count from here (Linux)."""
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")


def highest() -> int:
    """Most bytes this process has held since `reset_peak`."""
    with open("/proc/self/status") as file:
        [line] = [line for line in file if line.startswith("VmHWM")]
    return int(line.split()[1]) << 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--anchors", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3, help="Of the products; direct runs once.")
    options = parser.parse_args()

    context = multiprocessing.get_context("spawn")
    results = {}
    for form, repeats in (("products", options.repeats), ("direct", 1)):
        answers = context.Queue()
        arguments = (form, options.side, options.anchors, options.threads, repeats, answers)
        process = context.Process(target=measure, args=arguments)
        process.start()
        results[form] = answers.get()
        process.join()
        seconds, peak, count, _ = results[form]
        print(f"{form:9} {seconds:8.3f} s  {peak / 1e6:8.1f} MB  {count} segments", flush=True)
    (fast, lean, _, mine), (slow, fat, _, theirs) = results["products"], results["direct"]
    print(f"ratio     {slow / fast:8.1f} x  {fat / max(1, lean):8.1f} x")
    print(f"labels equal: {(mine == theirs).mean():.4%}")


if __name__ == "__main__":
    main()
