"""Milliseconds a click takes on a known image, for both ways to spread; and what comes once.

Run: python benchmarks/interactive.py [--model mini] [--repeats 20] [--threads 1] [--cells 64]
"""

import argparse
import statistics
import time

import torch

import diffuseg as ds
from diffuseg.methods.clicks import Clicks
from diffuseg.methods.interactive import Interactive
from diffuseg.world import Scenes

CASES = {
    "1 point": Clicks.read(points=(120, 130)),
    "5 points": Clicks.read(
        points=[(120, 130), (90, 99), (130, 77)], negative_points=[(9, 9), (3, 200)]
    ),
    "scribble": Clicks.read(
        lines=[[(20, 20), (230, 60), (40, 230)]], negative_lines=[[(5, 250), (250, 250)]]
    ),
    "box": Clicks.read(boxes=(60, 60, 190, 200)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cells", type=int, default=None)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    scene = Scenes("test", seed=1)[0]
    model = ds.load(options.model)
    for spread in ("attention", "likeness"):
        method = Interactive(spread=spread, cells=options.cells)
        picture = ds.interact(scene.image, model, method=method)
        picture = ds.interact(scene.image, model, method=method)  # warm
        once = ", ".join(f"{name} {1e3 * one:.0f}" for name, one in picture.seconds.items())
        print(f"{spread}, {options.threads} threads; once an image, ms: {once}")
        for name, clicks in CASES.items():
            seconds: list[float] = []
            for _ in range(options.repeats):
                if picture.prepared.likeness is not None:
                    picture.prepared.likeness.answers.clear()  # each time as if it were the first
                start = time.perf_counter()
                picture.select(clicks)
                seconds.append(time.perf_counter() - start)
            median, worst = statistics.median(seconds), max(seconds)
            print(f"  {name:9} {1e3 * median:7.1f} ms ({1e3 * worst:.1f})")


if __name__ == "__main__":
    main()
