"""Seconds to encode one picture and run the U-Net once, warm: what every method pays first.

Run: python benchmarks/encode.py [--model mini] [--size 256] [--threads 2] [--repeats 20] [--json F]

With --most SECONDS it ends with exit code 1 if the median is above (0.3 for mini on two cores).
"""

import argparse
import json
import platform
import statistics
import time

import torch

from diffuseg.api import find_model
from diffuseg.image import Image, to_tensor
from diffuseg.world import Scenes


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="mini")
    parser.add_argument("--size", type=int, help="pixels of a side; the model's own if left out")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--most", type=float, help="seconds the whole may take")
    parser.add_argument("--json", help="file to write the numbers to")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    model = find_model(options.model, device=options.device)
    side = options.size or model.size
    scene = Scenes("test", seed=1)[0]
    pixels = to_tensor(Image(pixels=scene.image), (side, side)).to(model.device, model.dtype)
    text = model.embed([scene.caption])
    rows: dict[str, list[float]] = {"encode": [], "denoise": [], "both": []}
    with torch.inference_mode():
        for number in range(options.repeats + 2):
            start = time.perf_counter()
            latents = model.encode(pixels)
            wait(model)
            encoded = time.perf_counter()
            model.denoise(latents, 200, text)
            wait(model)
            done = time.perf_counter()
            if number >= 2:  # the first ones also pay for memory that later ones reuse
                spent = (encoded - start, done - encoded, done - start)
                for name, seconds in zip(rows, spent, strict=True):
                    rows[name].append(seconds)

    found = {
        name: {"median": statistics.median(values), "least": min(values), "most": max(values)}
        for name, values in rows.items()
    }
    print(f"{model.name}, {side} x {side}, {options.threads} threads, {model.device}")
    for name, one in found.items():
        shown = ", ".join(f"{key} {1e3 * value:.0f}" for key, value in one.items())
        print(f"{name:8} {shown} ms")
    if options.json:
        report = {
            "model": model.name,
            "pixels": side,
            "threads": options.threads,
            "device": str(model.device),
            "processor": platform.processor() or platform.machine(),
            "torch": torch.__version__,
            "seconds": found,
        }
        with open(options.json, "w") as file:
            json.dump(report, file, indent=1)
    return int(options.most is not None and found["both"]["median"] > options.most)


def wait(model: object) -> None:
    """Wait for an accelerator."""
    if getattr(model, "device", torch.device("cpu")).type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    raise SystemExit(main())
