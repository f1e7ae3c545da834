"""What Seg-diffusion's masks cost: shared work against the published way, and at full size.

    python benchmarks/segdiffusion.py --least 1.1 --json masks.json
    python benchmarks/segdiffusion.py --full-size --side 512

By default: one picture, several classes and runs, on the miniature with its first layer widened (it
has learned nothing, and costs the same). The published code denoises every query by itself and
encodes picture and text again for each; here a picture and a prompt are encoded once, and masks go
through the networks together. Both in one run, with the same steps and noise, results compared.

With --full-size: the architecture of Stable Diffusion 2.1 with random weights: a picture encoded,
one step of one mask, and its decoding, with the peak memory of the process. Weights take 1.9 GB in
bf16 and 3.8 GB in fp32. Then one update of low-rank weights in fp32 (--part training: that alone).
"""

import argparse
import json
import resource
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn

from diffuseg.backbones import load
from diffuseg.methods import SegDiffusion
from diffuseg.methods.segdiffusion.codec import mask_shares
from diffuseg.methods.segdiffusion.noise import start_noise
from diffuseg.methods.segdiffusion.sampling import denoise_masks
from diffuseg.segdiffusion.autoencoder import decode_channel, encode_pixels
from diffuseg.segdiffusion.levels import mask_scheduler, noise_levels
from diffuseg.segdiffusion.opening import open_segmenter
from diffuseg.segdiffusion.pictures import View, padded_pixels
from diffuseg.segdiffusion.segmenter import MaskSegmenter
from diffuseg.segdiffusion.surgery import widen_conv_in
from diffuseg.train.segdiffusion.batches import MaskBatch
from diffuseg.train.segdiffusion.lora import add_updates
from diffuseg.train.segdiffusion.recipe import SegRecipe
from diffuseg.train.segdiffusion.step import MaskLearner
from diffuseg.train.segdiffusion.update import Updater
from diffuseg.world import CLASSES, Scenes

_DRAWN = 1 << 16
_TOKENS, _WIDTH = 77, 1024  # of the text Stable Diffusion 2.1 is shown
_DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}

Network = TypeVar("Network", bound=nn.Module)


def mask_model() -> Any:
    """The miniature with its first layer widened."""
    model: Any = load("mini", device="cpu")
    widen_conv_in(model.unet)
    return replace(model, scheduler=mask_scheduler(model.scheduler))


@torch.no_grad()
def one_by_one(find: MaskSegmenter, view: View) -> Tensor:
    """Masks of classes, every query by itself, picture and prompt encoded again for each."""
    model, method = find.model, find.settings
    runs, found = method.runs or 1, []
    for prompt in view.prompts:
        members = []
        for run in range(runs):
            picture = encode_pixels(
                model.vae, padded_pixels(view.image, view.hw, view.padded) * 2 - 1
            )
            text = model.embed(prompt)
            _, channels, height, width = picture.shape
            shape = (channels, height, width)
            noise = start_noise(shape, seed=method.seed or 0, picture=view.key, runs=runs)

            def network(x: Tensor, timestep: int, text: Any = text) -> Tensor:
                return model.denoise(x, timestep, text)

            done = denoise_masks(network, picture, noise[run : run + 1], find.schedule)
            members.append(mask_shares(decode_channel(model.vae, done))[0])
        found.append(torch.stack(members).mean(0))
    return torch.stack(found)


def timed(work: Callable[[], Any]) -> tuple[float, float, Any]:
    """Seconds on the clock and of the processor, and the result."""
    wall, cpu = time.perf_counter(), time.process_time()
    found = work()
    return time.perf_counter() - wall, time.process_time() - cpu, found


def measure_sharing(options: argparse.Namespace) -> dict[str, Any]:
    """The processor's seconds of both ways, and how far their masks lie apart."""
    names, image = list(CLASSES[: options.classes]), Scenes("test", seed=1)[0].image
    side = options.side or 256
    settings = SegDiffusion(
        steps=options.steps, runs=options.runs, side=side, background="none", batch=options.batch
    )
    model, ours, theirs, apart = mask_model(), [], [], 0.0
    for _ in range(options.repeats):
        # A segmenter of its own each time: no prompt may be known beforehand.
        find = open_segmenter(model, settings, keep_scores=True)
        [view] = find.view([image], [names])
        _, seconds, seg = timed(lambda f=find, v=view: f(v.image, names))
        ours.append(seconds)
        _, seconds, shares = timed(lambda f=find, v=view: one_by_one(f, v))
        theirs.append(seconds)
        shares = shares[:, : view.hw[0], : view.hw[1]]
        seen = nn.functional.interpolate(shares[None], size=view.image.hw, mode="bilinear")[0]
        apart = max(apart, float((torch.from_numpy(seg.scores.copy()) - seen).abs().max()))
    return {
        "classes": len(names), "runs": options.runs, "steps": options.steps, "side": side,
        "ours_cpu_seconds": min(ours), "one_by_one_cpu_seconds": min(theirs),
        "ratio": min(theirs) / min(ours), "largest_difference": apart,
    }  # fmt: skip


def random_network(build: Callable[[], Network], dtype: torch.dtype) -> Network:
    """A network with random weights of a size that keeps numbers finite, drawn quickly."""
    with torch.device("meta"):
        network = build()
    network = network.to(dtype).to_empty(device="cpu").eval().requires_grad_(False)
    draw = torch.rand(_DRAWN, generator=torch.Generator().manual_seed(0)) * 2 - 1
    for name, parameter in network.named_parameters():
        if parameter.ndim > 1:
            flat, bound = parameter.view(-1), parameter[0].numel() ** -0.5
            drawn = (draw * bound).to(dtype)
            for start in range(0, flat.numel(), _DRAWN):
                part = flat[start : start + _DRAWN]
                part.copy_(drawn[: part.numel()])
        else:
            parameter.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
    return network


def full_unet(dtype: torch.dtype) -> UNet2DConditionModel:
    """The U-Net of Stable Diffusion 2.1, which takes a picture's and a mask's latents."""
    return random_network(
        lambda: UNet2DConditionModel(
            sample_size=64,
            in_channels=8,
            block_out_channels=(320, 640, 1280, 1280),
            attention_head_dim=(5, 10, 20, 20),  # pyright: ignore[reportArgumentType]
            cross_attention_dim=_WIDTH,
            use_linear_projection=True,
        ),
        dtype,
    )


def full_vae(dtype: torch.dtype) -> AutoencoderKL:
    """Its autoencoder."""
    return random_network(
        lambda: AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),  # pyright: ignore[reportArgumentType]
            down_block_types=("DownEncoderBlock2D",) * 4,  # pyright: ignore[reportArgumentType]
            up_block_types=("UpDecoderBlock2D",) * 4,  # pyright: ignore[reportArgumentType]
            layers_per_block=2,
            latent_channels=4,
            scaling_factor=0.18215,
        ),
        dtype,
    )


@torch.no_grad()
def measure_inference(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of every part of one mask at full size, and the peak memory."""
    dtype, side = _DTYPES[options.dtype], options.side or 512
    unet, vae = full_unet(dtype), full_vae(dtype)
    generator = torch.Generator().manual_seed(1)
    pixels = torch.rand(1, 3, side, side, generator=generator) * 2 - 1
    text = torch.randn(1, _TOKENS, _WIDTH, generator=generator).to(dtype)
    encoding, _, picture = timed(lambda: encode_pixels(vae, pixels))
    noise = torch.randn(picture.shape, generator=generator)
    seen = torch.cat([picture, noise], 1).to(dtype)
    stepping, _, output = timed(lambda: unet(seen, 999, encoder_hidden_states=text).sample)
    decoding, _, channel = timed(lambda: decode_channel(vae, output))
    return {
        "dtype": options.dtype, "side": side, "encode_seconds": encoding,
        "step_seconds": stepping, "decode_seconds": decoding,
        "finite": bool(channel.isfinite().all()),
        "peak_gigabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9,
        "unet_parameters": sum(one.numel() for one in unet.parameters()),
    }  # fmt: skip


def measure_training(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of one update at full size, of one picture and one query, and the peak memory.

    Low-rank updates and what they change are in single precision, activations are computed again.
    A whole U-Net with gradients, moments and average takes 17.3 GB instead of 3.5.
    """
    from accelerate import Accelerator

    side = options.side or 256
    unet, vae = full_unet(torch.float32), full_vae(torch.float32)
    unet.enable_gradient_checkpointing()
    recipe = SegRecipe(steps=2, images=1, queries=1, warmup=1, crop=side, precision="fp32",
                       weights="lora", checkpointing=True)  # fmt: skip
    network = add_updates(unet, rank=recipe.rank, convolutions=False).train()
    learned = {name: one for name, one in network.named_parameters() if one.requires_grad}
    generator = torch.Generator().manual_seed(1)
    config = mask_scheduler({"prediction_type": "v_prediction", "beta_schedule": "scaled_linear",
                             "beta_start": 0.00085, "beta_end": 0.012})  # fmt: skip
    learner = MaskLearner(
        unet=network, vae=vae, texts=torch.randn(1, _TOKENS, _WIDTH, generator=generator),
        text_mask=None, levels=noise_levels(config),
    )  # fmt: skip
    updater = Updater(
        network=network, learned=learned,
        average={name: one.detach().clone() for name, one in learned.items()},
        optimizer=torch.optim.AdamW(learned.values(), lr=recipe.rate), learner=learner,
        recipe=recipe, accelerator=Accelerator(cpu=True), parts=1,
    )  # fmt: skip
    mask = torch.zeros(1, side, side, dtype=torch.bool)
    mask[:, : side // 2] = True
    batch = MaskBatch(
        pixels=torch.randint(0, 256, (1, 3, side, side), dtype=torch.uint8, generator=generator),
        known=torch.ones_like(mask), owners=torch.zeros(1, dtype=torch.long), classes=(0,),
        masks=mask, timesteps=torch.tensor([500]),
        noise=torch.randn(1, 4, side // 8, side // 8, generator=generator),
    )  # fmt: skip
    before = {name: one.detach().clone() for name, one in learned.items()}
    seconds, cpu, found = timed(lambda: updater(0, lambda part: batch))
    return {
        "side": side, "update_seconds": seconds, "update_cpu_seconds": cpu, "loss": found.loss,
        "gradient": found.norm, "done": found.done,
        "changed": sum(not torch.equal(one, before[name]) for name, one in learned.items()),
        "learned_parameters": sum(one.numel() for one in learned.values()),
        "peak_gigabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9,
    }  # fmt: skip


PARTS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "sharing": measure_sharing,
    "inference": measure_inference,
    "training": measure_training,
}
"""What is measured, by name; those at full size only with --full-size."""

FULL_SIZE = ("inference", "training")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--full-size", action="store_true")
    parser.add_argument("--part", choices=PARTS, help="only this one")
    parser.add_argument("--classes", type=int, default=6)
    parser.add_argument("--runs", type=int, default=2)
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--side", type=int, help="256; 512 at full size")
    parser.add_argument("--batch", type=int, default=8, help="masks denoised at once")
    parser.add_argument("--dtype", choices=_DTYPES, default="bf16", help="at full size")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--least", type=float, help="fail below this ratio")
    parser.add_argument("--json", help="file for the figures")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    wanted = [name for name in PARTS if (name in FULL_SIZE) == options.full_size]
    found = {name: PARTS[name](options) for name in ([options.part] if options.part else wanted)}
    for name, row in found.items():
        shown = (f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items())
        print(f"{name}: {', '.join(shown)}")
    if options.json:
        with open(options.json, "w") as file:
            json.dump(found, file, indent=2)
    sharing = found.get("sharing")
    if sharing and sharing["largest_difference"] > 1e-4:
        raise SystemExit("both ways must give the same masks")
    if sharing and options.least and sharing["ratio"] < options.least:
        raise SystemExit(f"the ratio must be {options.least} or more")


if __name__ == "__main__":
    main()
