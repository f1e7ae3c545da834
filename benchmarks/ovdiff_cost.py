"""What a bank costs, by part; and what it would cost with Stable Diffusion 1.5.

    python benchmarks/ovdiff_cost.py --json cost.json

On the miniature everything is measured: pictures of one and of two classes, few and more of each,
then masks, features and prototypes from them, then one scene compared with banks of several sizes
(repeated classes under other names). For Stable Diffusion 1.5 only the U-Net is measured, of full
size with random weights, guided, at 64x64 latents: classes x pictures x steps of that is what
drawing takes, decoding left out. Needs about 5 GB.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from record import build_unet  # type: ignore[import-not-found]

from diffuseg.api import find_model
from diffuseg.methods import OVDiff
from diffuseg.methods.ovdiff.foreground import split_foreground
from diffuseg.methods.ovdiff.matching import assemble, match
from diffuseg.methods.ovdiff.prototypes import ClassPrototypes, pool_prototypes
from diffuseg.ovdiff.extractors import find_extractors, find_proposer
from diffuseg.ovdiff.supports import draw_supports
from diffuseg.world import CLASSES, Scenes

_PAPER = OVDiff().ready()


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Processor's seconds and the result."""
    start = time.process_time()
    found = work()
    return time.process_time() - start, found


@torch.no_grad()
def measure_mini(steps: int) -> dict[str, Any]:
    """Seconds of every part of a bank of the miniature."""
    model = find_model("mini")
    settings = replace(OVDiff().ready(model.preset.get("ovdiff")), steps=steps)
    extractors = find_extractors(model, settings)
    cuts = replace(settings, proposals="maskcut")
    rows = []
    entries: dict[str, ClassPrototypes] = {}
    for classes, number in ((1, 2), (1, 4), (2, 2), (2, 4)):
        mine = replace(settings, number=number)
        drawing, drawn = timed(lambda n=classes, s=mine: list(draw_supports(model, CLASSES[:n], s)))
        spent = {"masks": 0.0, "MaskCut": 0.0, "pooling": 0.0} | dict.fromkeys(extractors, 0.0)
        for supports in drawn:
            pictures = list(supports.images)
            size = pictures[0].shape[0]
            seconds, masks = timed(
                lambda s=supports, p=pictures, m=mine, z=size: split_foreground(
                    s.attribution, find_proposer(model, m)(p), m, size=z
                )
            )
            spent["masks"] += seconds
            spent["MaskCut"] += timed(lambda p=pictures: find_proposer(model, cuts)(p))[0]
            fg, bg = masks
            for name, extract in extractors.items():
                seconds, features = timed(lambda e=extract, p=pictures: e(p, support=True))
                spent[name] += seconds
                # Whatever the masks are, pooling is to have something to pool.
                fg[:, :: size // 8, :: size // 8] = True
                seconds, entries[name] = timed(
                    lambda f=features, a=fg, b=bg, m=mine: pool_prototypes(
                        f, a, b, parts=m.parts or 1
                    )
                )
                spent["pooling"] += seconds
        rows.append({"classes": classes, "number": number, "drawing": drawing, **spent})
    return {"steps": steps, "size": settings.size or model.size, "rows": rows,
            "matching": measure_matching(extractors, entries)}  # fmt: skip


def measure_matching(
    extractors: dict[str, Any], entries: dict[str, ClassPrototypes]
) -> list[dict[str, float]]:
    """Seconds of one scene: its features, and comparing them with few and many classes."""
    scene = Scenes("test", seed=1)[0].image
    looking, grids = timed(lambda: {name: one([scene]) for name, one in extractors.items()})
    rows = []
    for count in (18, 100, 400):
        known = {name: assemble([one] * count, [False] * count) for name, one in entries.items()}
        chosen = range(min(count, 10))
        comparing, _ = timed(
            lambda k=known, c=chosen: [match(grids[n], k[n], selected=list(c)) for n in grids]
        )
        rows.append({"classes": count, "kept": len(chosen), "looking": looking,
                     "comparing": comparing})  # fmt: skip
    return rows


@torch.no_grad()
def measure_full(repeats: int) -> dict[str, float]:
    """Seconds of a guided call of a full-size U-Net, and what a bank takes by that."""
    unet = build_unet()
    latents, text = torch.randn(2, 4, 64, 64), torch.randn(2, 77, 768)
    call = min(timed(lambda: unet(latents, 300, text).sample)[0] for _ in range(repeats))
    number, steps = _PAPER.number or 0, _PAPER.steps or 0
    return {
        "call": call,
        "class_hours": call * number * steps / 3600,
        "calls_per_class": float(number * steps),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=10, help="of the miniature's sampler")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--skip-full", action="store_true")
    parser.add_argument("--json", help="file for the figures")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, Any] = {"mini": measure_mini(options.steps)}
    if not options.skip_full:
        found["full"] = measure_full(options.repeats)
    print(f"mini, {found['mini']['steps']} steps, {found['mini']['size']} px, processor seconds")
    for row in found["mini"]["rows"]:
        print("  " + ", ".join(f"{k} {v:.2f}" if k not in ("classes", "number") else f"{k} {v}"
                               for k, v in row.items()))  # fmt: skip
    for row in found["mini"]["matching"]:
        print("  a scene: " + ", ".join(f"{name} {value:.3g}" for name, value in row.items()))
    if "full" in found:
        full = found["full"]
        print(
            f"Stable Diffusion 1.5: {full['call']:.1f} s a guided U-Net call on this core; "
            f"{full['calls_per_class']:.0f} of them: {full['class_hours']:.1f} h a class (computed)"
        )
    if options.json:
        with open(options.json, "w") as file:
            json.dump(found, file, indent=2)


if __name__ == "__main__":
    main()
