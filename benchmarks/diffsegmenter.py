"""What DiffSegmenter gains by showing all classes of an image at once, beside one after the other.

    python benchmarks/diffsegmenter.py --model mini --json diffsegmenter.json

Three ways to the same ten maps, in one process, on one thread:

* `together`: one batch, a row a class;
* `alone`: the image is segmented anew for every class;
* `reference`: the same, and the U-Net sees the empty prompt beside each class, as the authors' code
  has it, whose half of the attention is not used.

Seconds are the processor's, the least of several repeats taken in turn, so that a machine shared
with other work gives the same ratios. Maps are compared, and the stages counted apart.

`--model random` puts a random U-Net with a quarter of Stable Diffusion 1.5's channels behind mini's
encoders, at 256 px unless `--size` says otherwise.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

import diffuseg as ds
from diffuseg import api
from diffuseg.attention import record
from diffuseg.image import to_tensor
from diffuseg.methods import DiffSegmenter
from diffuseg.world import CLASSES, Scenes

METHOD = DiffSegmenter(background="none")


def random_unet(width: int) -> UNet2DConditionModel:
    """Stable Diffusion 1.5's layout, a quarter of its channels."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=32,
        block_out_channels=(80, 160, 320, 320),
        attention_head_dim=8,
        cross_attention_dim=width,
        norm_num_groups=16,
    )
    return unet.eval().requires_grad_(False)


def find_model(name: str) -> Any:
    model = api.find_model("mini", device="cpu")
    if name == "random":
        return replace(model, unet=random_unet(model.tower.width), preset={})
    return ds.load(name, device="cpu")


def seconds(call: Callable[[], object]) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


def with_empty_half(model: Any, prompt: str, latents: torch.Tensor, needs: ds.Needs) -> None:
    """One class as the authors' code runs it: the whole U-Net on [empty prompt, class prompt]."""
    text = model.embed(["", prompt])
    with torch.no_grad(), record(model, layers=needs.layers, kinds=needs.kinds, half="cond"):
        model.denoise(latents.expand(2, -1, -1, -1), needs.timesteps[0], text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--size", type=int)
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()
    torch.set_num_threads(1)

    model = find_model(options.model)
    image = ds.read_image(Scenes("test", seed=3)[0].image)
    names = list(CLASSES[: options.classes])
    find = ds.build_segmenter(model, METHOD, names, keep_scores=True, size=options.size)
    needs = METHOD.needs(model)
    hw = find(image, names[:1]).provenance.working_hw  # also warms up
    assert hw is not None
    pixels = to_tensor(image, hw)
    latents = model.encode(pixels)
    alone: list[Any] = []

    ways: dict[str, Callable[[], object]] = {
        "together": lambda: find(image),
        "alone": lambda: [alone.append(find(image, [name])) for name in names],
        "encode": lambda: model.encode(pixels),
        "text_empty": lambda: model.embed(""),
        "unet_one_row": lambda: unet_rows(model, needs, latents, names[:1]),
        "unet_all_rows": lambda: unet_rows(model, needs, latents, names),
        "reference_unet": lambda: [
            with_empty_half(model, f"a photograph of {name}", latents, needs) for name in names
        ],
    }
    best = dict.fromkeys(ways, float("inf"))
    for _ in range(options.repeats):
        for name, call in ways.items():
            best[name] = min(best[name], seconds(call))

    together = find(image)
    singles = np.concatenate([one.scores for one in alone[: len(names)]])
    assert together.scores is not None
    reference = best["reference_unet"] + best["alone"] - len(names) * best["unet_one_row"]
    rows = len(names)
    report = {
        "model": options.model,
        "classes": rows,
        "working_hw": hw,
        "seconds": {name: round(value, 3) for name, value in best.items()},
        "ratio_alone": round(best["alone"] / best["together"], 2),
        "ratio_reference": round(reference / best["together"], 2),
        "ratio_unet": round(rows * best["unet_one_row"] / best["unet_all_rows"], 2),
        "share_of_encoding": round(best["encode"] / best["together"], 3),
        "largest_difference": float(np.abs(singles - together.scores).max()),
        "equal_labels": float((singles.argmax(0) == together.labels).mean()),
    }
    print(json.dumps(report, indent=2))
    if options.json:
        with open(options.json, "w") as file:
            json.dump(report, file, indent=2)


def unet_rows(model: Any, needs: ds.Needs, latents: torch.Tensor, names: list[str]) -> None:
    """The U-Net alone, stopped where the record is full."""
    text = model.embed([f"a photograph of {name}" for name in names])
    recorder = record(model, layers=needs.layers, kinds=needs.kinds, early_exit=True)
    with torch.no_grad(), recorder:
        recorder.run(lambda: model.denoise(latents, needs.timesteps[0], text))


if __name__ == "__main__":
    main()
