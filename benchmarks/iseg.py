"""iSeg's refinement in place against the direct out-of-place form: time, memory, labels.

Both start from one made-up head mean of the real size, 4096 queries and keys, and 20 class maps.
Each runs in a process of its own, so that peaks of memory are its own; they are beyond the
attention and the maps themselves. "in place" overwrites the attention, which a method has no use
for afterwards; "of a copy" leaves it alone, as the direct form does.

Run: python benchmarks/iseg.py [--side 64] [--classes 20] [--iterations 10] [--threads 1]
"""

import argparse
import math
import multiprocessing
import resource
import statistics
import time

import torch
from jaxtyping import Float
from torch import Tensor

from diffuseg.methods.attend import best_class
from diffuseg.methods.refinement import reduce_entropy, refine

ENT = 0.015
FORMS = ("direct", "of a copy", "in place")


def made_up(side: int, classes: int) -> tuple[Float[Tensor, "n n"], Float[Tensor, "n k"]]:
    """Attention with some structure, and maps that are high in parts of the image."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(1, 12, side // 8, side // 8, generator=generator)
    features = torch.nn.functional.interpolate(coarse, size=(side, side), mode="bicubic")
    features = features[0].flatten(1)
    attention = torch.softmax(0.7 * features.T @ features, dim=-1)
    maps = torch.softmax(features.T @ torch.randn(12, classes, generator=generator), dim=-1)
    return attention, maps


def direct(
    attention: Float[Tensor, "n n"], maps: Float[Tensor, "n k"], iterations: int
) -> Float[Tensor, "n k"]:
    """The published steps, each with a result of its own."""
    a = attention / attention.max(dim=0, keepdim=True).values
    a = torch.where(a > 0, a + ENT * torch.log10(math.e * a), a)
    a = torch.clamp(a, min=0)
    a = a / a.sum(dim=1, keepdim=True)
    x = maps
    for number in range(iterations + 1):
        x = a @ x if number else x
        x = x - x.min(dim=0, keepdim=True).values
        x = x / x.sum(dim=0, keepdim=True)
    return x


def measure(form: str, arguments: argparse.Namespace, answers) -> None:
    """Run one form; send its median seconds, its peak in bytes, the links kept, and the labels."""
    torch.set_num_threads(arguments.threads)
    side = arguments.side
    attention, maps = made_up(side, arguments.classes)
    seconds, peak, found = [], 0, maps
    for _ in range(arguments.repeats):
        given = attention.clone() if form == "in place" else attention
        base = resident()
        reset_peak()
        start = time.perf_counter()
        if form == "direct":
            found = direct(given, maps, arguments.iterations)
        else:
            links = reduce_entropy(given, ent=ENT, inplace=form == "in place")
            found = refine(maps, links, iterations=arguments.iterations)
            del links
        seconds.append(time.perf_counter() - start)
        peak = max(peak, highest() - base)
        del given
    kept = float((reduce_entropy(attention, ent=ENT) > 0).float().mean())
    planes = found.T.unflatten(1, (side, side))
    labels, _ = best_class(planes, (8 * side, 8 * side))
    answers.put((statistics.median(seconds), peak, kept, labels))


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
    parser.add_argument("--classes", type=int, default=20)
    parser.add_argument("--iterations", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    results = {}
    for form in FORMS:
        answers = context.Queue()
        process = context.Process(target=measure, args=(form, arguments, answers))
        process.start()
        results[form] = answers.get()
        process.join()
    direct_seconds, _, kept, labels = results["direct"]
    cells = arguments.side**2
    print(
        f"{cells} x {cells}, {arguments.classes} classes, {arguments.iterations} iterations, "
        f"{arguments.threads} thread(s); {kept:.0%} of links kept"
    )
    for form in FORMS:
        seconds, peak, _, mine = results[form]
        print(
            f"{form:<10} {seconds * 1e3:7.0f} ms  {direct_seconds / seconds:5.1f} x  "
            f"{peak / 2**20:6.0f} MB beyond  {(mine == labels).mean():.4%} equal labels"
        )


if __name__ == "__main__":
    main()
