"""What recording costs: seconds and memory beside the plain forward pass of a full-size SD 1.5.

    python benchmarks/record.py --json record.json

The U-Net has the configuration of stable-diffusion-v1-5 and random weights; one pass at batch 1,
latent 64x64 (512 px), float32, on the CPU. Seconds are the least of several repeats, taken in turn
in one process, so that all variants see the same machine; where it is shared with other work, the
processor's seconds say more than the clock's. Memory is the peak of a process of its
own for every variant, less that of the plain pass. Needs about 8 GB.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor

from diffuseg.attention import HeadMean, record

_TIMESTEP = 300
_TOKENS = 77
_DRAWN = 1 << 16


def build_unet() -> UNet2DConditionModel:
    """The U-Net of stable-diffusion-v1-5, random weights."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(
            sample_size=64,
            block_out_channels=(320, 640, 1280, 1280),
            attention_head_dim=8,
            cross_attention_dim=768,
        )
    unet = unet.to_empty(device="cpu").eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in unet.named_parameters():
        if parameter.ndim > 1:
            # Drawing 860 million numbers takes longer than the passes; a repeated draw will do.
            draw = torch.rand(_DRAWN, generator=generator) * 2 - 1
            bound = parameter[0].numel() ** -0.5
            flat = parameter.view(-1)
            for start in range(0, flat.numel(), _DRAWN):
                part = flat[start : start + _DRAWN]
                torch.mul(draw[: part.numel()], bound, out=part)
        else:
            parameter.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
    return unet


class Bench:
    """One U-Net, one input, and every way to run it."""

    def __init__(self, side: int) -> None:
        generator = torch.Generator().manual_seed(1)
        self.unet = build_unet()
        self.latent = torch.randn(1, 4, side, side, generator=generator)
        self.text = torch.randn(1, _TOKENS, 768, generator=generator)

    def forward(self) -> Tensor:
        return self.unet(self.latent, _TIMESTEP, self.text).sample

    def plain(self) -> object:
        """the pass alone"""
        return self.forward()

    def record_qk(self) -> object:
        """queries and keys of all 32 layers kept"""
        with record(self.unet) as rec:
            self.forward()
        return rec

    def record_qk_maps(self) -> object:
        """the same, then the mean self-attention of every grid made from them"""
        with record(self.unet, kinds="self") as rec:
            self.forward()
        return [rec.self_attention(hw) for hw in rec.grids("self")]

    def record_mean(self) -> object:
        """mean self-attention of every grid, taken while it runs (what DiffSeg needs)"""
        with record(self.unet, kinds="self", reduce=HeadMean()) as rec:
            self.forward()
        return [rec.self_attention(hw) for hw in rec.grids("self")]

    def early_exit(self) -> object:
        """queries and keys up to up_blocks.1, then the pass is left"""
        blocks = ("down_blocks.*", "mid_block.*", "up_blocks.1.*")
        with record(self.unet, layers=blocks, early_exit=True) as rec:
            self.forward()
        return rec

    def processors(self) -> object:
        """replaced processors that keep the maps of every head, then the same means"""
        kept: list[Tensor] = []
        before = dict(self.unet.attn_processors)
        processors = {name: Materialise(kept if "attn1" in name else None) for name in before}
        self.unet.set_attn_processor(processors)  # pyright: ignore[reportArgumentType]
        try:
            self.forward()
        finally:
            self.unet.set_attn_processor(before)
        sizes = sorted({maps.shape[-1] for maps in kept}, reverse=True)
        return [
            torch.stack([m.mean(0) for m in kept if m.shape[-1] == size]).mean(0) for size in sizes
        ], kept


class Materialise:
    """The usual way to look at attention: a processor that makes and keeps all probabilities."""

    def __init__(self, kept: list[Tensor] | None) -> None:
        self.kept = kept

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, **_) -> Tensor:
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        q, k, v = attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context)
        q, k, v = (attn.head_to_batch_dim(one) for one in (q, k, v))
        maps = attn.get_attention_scores(q, k)
        if self.kept is not None:
            self.kept.append(maps)
        return attn.to_out[0](attn.batch_to_head_dim(torch.bmm(maps, v)))


VARIANTS = ("plain", "record_qk", "record_qk_maps", "record_mean", "early_exit", "processors")


def seconds(bench: Bench, repeats: int) -> dict[str, tuple[float, float]]:
    """The least seconds of every variant, on the clock and of the processor, taken in turn."""
    wall: dict[str, list[float]] = {name: [] for name in VARIANTS}
    cpu: dict[str, list[float]] = {name: [] for name in VARIANTS}
    bench.plain()  # the first pass also pays for memory that later ones reuse
    for _ in range(repeats):
        for name in VARIANTS:
            run: Callable[[], object] = getattr(bench, name)
            start, start_cpu = time.perf_counter(), time.process_time()
            run()
            wall[name].append(time.perf_counter() - start)
            cpu[name].append(time.process_time() - start_cpu)
    return {name: (min(wall[name]), min(cpu[name])) for name in VARIANTS}


def peak_bytes(name: str, arguments: list[str]) -> int:
    """The peak memory of a process that runs one variant once."""
    command = [sys.executable, __file__, "--only", name, *arguments]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--side", type=int, default=64, help="side of the latent")
    parser.add_argument("--json", help="file to write the numbers to")
    parser.add_argument("--only", choices=VARIANTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with torch.inference_mode():
        if options.only:
            result = getattr(Bench(options.side), options.only)()
            print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10)
            del result
            return
        shared = ["--threads", str(options.threads), "--side", str(options.side)]
        peaks = {name: peak_bytes(name, shared) for name in VARIANTS}
        times = seconds(Bench(options.side), options.repeats)
    rows = [
        {
            "variant": name,
            "what": getattr(Bench, name).__doc__,
            "seconds": round(times[name][0], 3),
            "ratio": round(times[name][0] / times["plain"][0], 3),
            "cpu_seconds": round(times[name][1], 3),
            "cpu_ratio": round(times[name][1] / times["plain"][1], 3),
            "megabytes_above_plain": round((peaks[name] - peaks["plain"]) / 1e6, 1),
        }
        for name in VARIANTS
    ]
    print(f"{'':15}{'seconds':>9}{'ratio':>7}{'CPU s':>9}{'ratio':>7}{'MB above':>10}")
    for row in rows:
        print(
            f"{row['variant']:15}{row['seconds']:9.2f}{row['ratio']:7.2f}{row['cpu_seconds']:9.2f}"
            f"{row['cpu_ratio']:7.2f}{row['megabytes_above_plain']:10.0f}  {row['what']}"
        )
    report = {"torch": torch.__version__, "threads": options.threads, "variants": rows}
    print(json.dumps(report))
    if options.json:
        with open(options.json, "w") as file:
            json.dump(report, file, indent=1)


if __name__ == "__main__":
    main()
