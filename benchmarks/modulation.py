"""VidSeg's modulated denoising against one pass after the other: work of the U-Net, time, labels.

A clip of Scenes on the miniature; the labels are those of its first frame, their masks the truth of
every frame on the grid of the modulated layers. Two ways to the same images:

* serial: for every label, frame and sign, denoising runs from its first step to its last with that
  frame alone, whether the label is in the frame or not;
* ours: the unmodulated pass leaves the latents of step t_m; from there, labels, signs and frames
  share calls, pairs without the label are left out, and what lies before the modulated layers is
  computed once a frame at that step.

Both begin with the latents that the sampler, run backwards, ends with, and both need the
unmodulated pass, whose queries and keys go into the modulated ones: it counts on both sides. Rows
are rows of latents in calls of the U-Net. Times are of the processor, so that what else runs does
not show. Decoding is the same for both and not counted.

Run: python benchmarks/modulation.py [--frames 14] [--size 128] [--clip 0] [--start 22]

With --least RATIO it ends with exit code 1 if rows or time are not that many times fewer, or if
less than 99.9 % of the labels are equal.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn import functional as F

import diffuseg as ds
from diffuseg.labelmaps import resized_labels
from diffuseg.methods.vidseg import VidSeg
from diffuseg.methods.vidseg.denoising import (
    Plain,
    Responses,
    denoise_modulated,
    denoise_plain,
    invert,
)
from diffuseg.methods.vidseg.differences import Fusion, difference_maps, filter_maps, to_images
from diffuseg.methods.vidseg.modulation import Changing, Kept, attention_of, label_masks
from diffuseg.methods.vidseg.network import Call, Counted, Network
from diffuseg.methods.vidseg.schedule import (
    Schedule,
    euler_step,
    guidance_scales,
    guide,
    sd_schedule,
)
from diffuseg.methods.vidseg.settings import BLOCKS
from diffuseg.video.seeing import text_network
from diffuseg.world import Clips

R = TypeVar("R")

ROWS = 28
EQUAL = 0.999


@dataclass(frozen=True, kw_only=True)
class Task:
    """A clip ready to be modulated."""

    model: Any
    settings: VidSeg
    schedule: Schedule
    scales: Float[Tensor, " f"]
    start: Float[Tensor, "f c h w"]
    masks: Bool[Tensor, "l f h w"]
    labels: tuple[int, ...]
    hw: tuple[int, int]

    def network(self, *, restart: bool) -> Counted:
        first = self.settings.modulate_step or 0
        base = text_network(self.model)
        changing = Changing(
            base,
            self.model,
            kept=Kept(len(self.start)),
            injected=attention_of(BLOCKS, ["self", "cross"]),
            modulated=attention_of([self.settings.modulate_block or 7], ["cross"]),
            restart_step=first if restart else None,
        )
        # Of steps before t_m nothing is kept.
        return Counted(lambda x, call: (base if call.index < first else changing)(x, call))


def prepared(options: argparse.Namespace) -> Task:
    model: Any = ds.load("mini", device="cpu")
    settings = VidSeg(modulate_step=options.start).ready("sd")
    hw = (options.size, options.size)
    clip = Clips("test", seed=1, hw=hw, frames=options.frames)[options.clip]
    pixels = torch.stack([torch.tensor(one).permute(2, 0, 1) / 255 for one in clip.frames])
    grid = (options.size // model.scale // 2,) * 2  # of block 7
    coarse = torch.stack([torch.from_numpy(resized_labels(one, grid)) for one in clip.labels])
    labels = tuple(int(one) for one in np.unique(clip.labels[0]))
    schedule = sd_schedule(25, alphas=model.alphas, prediction=model.prediction)
    scales = guidance_scales(options.frames, settings.guidance or 5.0)
    start = invert(
        text_network(model), model.encode(pixels), schedule, start=0,
        scales=torch.ones_like(scales), rows=ROWS,
    )  # fmt: skip
    return Task(
        model=model, settings=settings, schedule=schedule, scales=scales, start=start,
        masks=label_masks(coarse, labels), labels=labels, hw=hw,
    )  # fmt: skip


def step(network: Network, x: Tensor, task: Task, call: Call) -> Tensor:
    """One step of one frame."""
    output = network(task.schedule.scaled(x, call.index), call)
    without, along = (task.schedule.denoised(x, half, call.index) for half in output.chunk(2))
    clean = guide(without, along, task.scales[call.frames])
    return euler_step(x, clean, task.schedule, call.index)


def unmodulated(network: Network, task: Task) -> Plain:
    """All steps; the states from `modulate_step` on are kept."""
    first = task.settings.modulate_step or 0
    parts = []
    for frames in torch.arange(len(task.start)).split(ROWS // 2):
        x = task.start[frames]
        for index in range(first):
            x = step(network, x, task, call_of(task, index, frames))
        parts.append(x)
    return denoise_plain(
        network, torch.cat(parts), task.schedule, start=first, scales=task.scales, rows=ROWS
    )


def call_of(task: Task, index: int, frames: Tensor) -> Call:
    return Call(index=index, time=task.schedule.time(index), frames=frames)


@torch.no_grad()
def serial(network: Counted, plain: Plain, task: Task) -> tuple[Responses, float, int]:
    """Every label, frame and sign by itself; also time and rows of the steps that are modulated."""
    settings = task.settings
    found: dict[int, list[Tensor]] = {1: [], -1: []}
    pairs: list[tuple[int, int]] = []
    spent, rows, first = 0.0, 0, settings.modulate_step or 0
    for label, frame in np.ndindex(*task.masks.shape[:2]):
        mask = task.masks[label, frame][None]
        inside = F.interpolate(mask[None].float(), task.start.shape[-2:], mode="nearest") > 0
        pairs.append((label, frame))
        for sign, latents in found.items():
            frames = torch.tensor([frame])
            x = task.start[frames]
            for index in range(first):
                x = step(network, x, task, call_of(task, index, frames))
            before, at = network.rows, time.process_time()
            for index in range(first, task.schedule.steps):
                call = replace(call_of(task, index, frames), modulated=True)
                if index == first:
                    call = replace(call, added=sign * (settings.strength or 0) * mask.float())
                x = step(network, x, task, call)
                if index in settings.blended:
                    x = torch.where(inside, x, plain.after(index)[frames])
            spent, rows = spent + time.process_time() - at, rows + network.rows - before
            latents.append(x)
    numbers = torch.tensor(pairs)
    responses = Responses(
        labels=numbers[:, 0], frames=numbers[:, 1],
        positive=torch.cat(found[1]), negative=torch.cat(found[-1]),
    )  # fmt: skip
    return responses, spent, rows


def batched(network: Network, plain: Plain, task: Task) -> list[Responses]:
    parts = denoise_modulated(
        network,
        plain,
        task.masks,
        task.schedule,
        strengths=torch.full((len(task.start),), task.settings.strength or 0.0),
        blended=task.settings.blended,
        rows=ROWS,
    )
    return list(parts)


def labels_of(parts: list[Responses], task: Task) -> Int64[Tensor, "f H W"]:
    fusion = Fusion(len(task.start), task.hw, task.labels)
    for part in parts:
        images = [
            to_images(task.model.decode(one), task.hw) for one in (part.positive, part.negative)
        ]
        maps = filter_maps(
            difference_maps(*images),
            task.masks[part.labels, part.frames],
            strength=task.settings.filter_strength,
        )
        fusion.add(part.labels, part.frames, maps)
    return fusion.labels()


def timed(function: Callable[[], R]) -> tuple[R, float]:
    start = time.process_time()
    result = function()
    return result, time.process_time() - start


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--frames", type=int, default=14)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--clip", type=int, default=0)
    parser.add_argument("--start", type=int, default=22)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--least", type=float, default=0.0)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    task = prepared(options)
    present = task.masks.flatten(2).any(2)
    print(
        f"{options.frames} frames of {options.size} px, {len(task.labels)} labels, "
        f"{int(present.sum())} of {present.numel()} pairs of frame and label there"
    )

    # 1. The unmodulated pass, which both need
    network = task.network(restart=True)
    plain, once = timed(lambda: unmodulated(network, task))
    shared = network.rows
    print(f"unmodulated, on both sides:  {shared:5} rows, {once:6.1f} s")

    # 2. Modulated, with and without what comes before the modulated layers
    network.rows = 0
    ours, spent = timed(lambda: batched(network, plain, task))
    rows = network.rows
    print(f"modulated, ours:             {rows:5} rows, {spent:6.1f} s")
    whole = task.network(restart=False)
    again = denoise_plain(
        whole, plain.noisy, task.schedule, start=plain.start, scales=task.scales, rows=ROWS
    )
    other, plainly = timed(lambda: batched(whole, again, task))
    print(f"  all layers at step t_m too:             {plainly:6.1f} s, {plainly / spent:.2f} x")
    print(f"  latents differ by {difference(ours, other):.1e}")

    # 3. One after the other
    whole.rows = 0
    (reference, late, late_rows), slow = timed(lambda: serial(whole, plain, task))
    print(f"modulated, serial:           {whole.rows:5} rows, {slow:6.1f} s")
    print(f"  of that from step t_m on:  {late_rows:5} rows, {late:6.1f} s")

    by_rows = (shared + whole.rows) / (shared + rows)
    by_time = (once + slow) / (once + spent)
    mine, theirs = labels_of(ours, task), labels_of([reference], task)
    equal = float((mine == theirs).float().mean())
    print(f"all in all {by_rows:.2f} x fewer rows, {by_time:.2f} x less time; {equal:.2%} equal")
    print(
        f"modulated passes alone {whole.rows / rows:.2f} x and {slow / spent:.2f} x, "
        f"from t_m on {late_rows / rows:.2f} x and {late / spent:.2f} x"
    )
    return int(equal < EQUAL or min(by_rows, by_time) < options.least)


def difference(parts: list[Responses], others: list[Responses]) -> float:
    pairs = zip(parts, others, strict=True)
    return max(float((one.positive - two.positive).abs().max()) for one, two in pairs)


if __name__ == "__main__":
    raise SystemExit(main())
