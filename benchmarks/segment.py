"""Seconds of each stage of `segment` on a warm model, for a scene of the embedded world.

Run: python benchmarks/segment.py [--model mini] [--repeats 10] [--threads 2]
"""

import argparse
import statistics
import time

import torch

import diffuseg as ds
from diffuseg.world import Scenes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--refine", type=int, default=None)
    parser.add_argument("--batch-size", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    scene = Scenes("test", seed=1)[0]
    start = time.perf_counter()
    find = ds.build_segmenter(options.model, ds.Attend(refine=options.refine), list(scene.names))
    loaded = time.perf_counter() - start
    images = [scene.image] * options.batch_size
    results = find.many(images)

    stages: dict[str, list[float]] = {}
    for _ in range(options.repeats):
        start = time.perf_counter()
        results = find.many(images)
        whole = (time.perf_counter() - start) / len(images)
        for name, seconds in {**results[0].provenance.seconds, "whole": whole}.items():
            stages.setdefault(name, []).append(seconds)

    size = "x".join(map(str, results[0].provenance.working_hw or ()))
    print(f"{find.model} at {size}, {options.threads} threads, batches of {len(images)}")
    print(f"loading, once: {loaded:.2f} s (imports included)")
    print("median (and worst) milliseconds an image:")
    for name, values in stages.items():
        print(f"  {name:8} {1e3 * statistics.median(values):7.1f} ({1e3 * max(values):.1f})")


if __name__ == "__main__":
    main()
