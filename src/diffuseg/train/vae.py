"""Stage 1: the autoencoder, trained on small crops."""

from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional

from diffuseg.train.checkpoint import load_checkpoint, save_checkpoint
from diffuseg.train.data import Progress
from diffuseg.train.log import TrainLog
from diffuseg.train.recipe import MiniRecipe, VaePhase, VaeRecipe

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

_SAVE_EVERY = 500


def build_vae(recipe: VaeRecipe, *, size: int) -> "AutoencoderKL":
    """An untrained autoencoder of the recipe's shape."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    config: dict[str, object] = {
        "in_channels": 3,
        "out_channels": 3,
        "latent_channels": 4,
        "block_out_channels": recipe.channels,
        "layers_per_block": 1,
        "norm_num_groups": 8,
        "down_block_types": ("DownEncoderBlock2D",) * len(recipe.channels),
        "up_block_types": ("UpDecoderBlock2D",) * len(recipe.channels),
        "mid_block_add_attention": False,
        "sample_size": size,
    }
    vae = AutoencoderKL.from_config(config)
    if not isinstance(vae, AutoencoderKL):
        raise TypeError(f"diffusers built a {type(vae).__name__}")
    return vae


def random_crops(
    images: UInt8[np.ndarray, "n h w 3"],
    count: int,
    side: int,
    rng: np.random.Generator,
    *,
    busy: float = 0.0,
) -> Float[Tensor, "b 3 s s"]:
    """`count` random crops in [-1, 1], mirrored half of the time.

    A share `busy` of them has the highest contrast among three times as many candidates.
    """
    picked = round(busy * count)
    candidates = np.stack([_crop(images, side, rng) for _ in range(count + 2 * picked)])
    chosen = list(range(count - picked))
    if picked:
        cells = candidates[count - picked :, ::4, ::4].reshape(3 * picked, -1, 3)
        contrast = cells.astype(np.float32).std(axis=1).sum(axis=1)
        chosen += [count - picked + int(i) for i in np.argsort(contrast)[-picked:]]
    crops = torch.from_numpy(candidates[chosen])
    return crops.permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


def _crop(
    images: UInt8[np.ndarray, "n h w 3"], side: int, rng: np.random.Generator
) -> UInt8[np.ndarray, "s s 3"]:
    height, width = images.shape[1:3]
    top = rng.integers(0, height - side + 1)
    left = rng.integers(0, width - side + 1)
    crop = images[rng.integers(len(images)), top : top + side, left : left + side]
    return crop[:, ::-1] if rng.random() < 0.5 else crop


def train_vae(
    recipe: MiniRecipe,
    images: UInt8[np.ndarray, "n h w 3"],
    work: Path,
    *,
    device: torch.device,
    log: TrainLog,
    progress: Progress | None = None,
) -> "AutoencoderKL":
    """Train (or resume) the autoencoder and set its scaling factor to unit latent variance."""
    settings = recipe.vae
    torch.manual_seed(recipe.seed)
    vae = build_vae(settings, size=recipe.size)
    torch.nn.Module.to(vae, device)
    optimizer = torch.optim.AdamW(vae.parameters(), betas=(0.9, 0.99))
    checkpoint = work / "vae.safetensors"
    done = 0
    if checkpoint.exists():
        done = int(str(load_checkpoint(checkpoint, {"vae": vae}, optimizer)["step"]))
    vae.train()
    total = sum(phase.steps for phase in settings.phases)
    end = 0
    for phase in settings.phases:
        start, end = end, end + phase.steps
        for step in range(max(done, start), end):
            loss = _vae_step(vae, optimizer, images, recipe, phase, step=step, start=start)
            log.write("vae", step + 1, loss=loss)
            if progress is not None:
                progress(step + 1, total)
            if (step + 1) % _SAVE_EVERY == 0 or step + 1 == total:
                save_checkpoint(checkpoint, {"vae": vae}, optimizer, {"step": step + 1})
    vae.eval().requires_grad_(False)
    sample = torch.from_numpy(images[:64]).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)
    spread = torch.cat(
        [vae.encode(part.to(device), return_dict=False)[0].mean for part in sample.split(8)]
    )
    vae.register_to_config(scaling_factor=round(1 / spread.std().item(), 5))
    return vae


def _vae_step(
    vae: "AutoencoderKL",
    optimizer: torch.optim.Optimizer,
    images: UInt8[np.ndarray, "n h w 3"],
    recipe: MiniRecipe,
    phase: VaePhase,
    *,
    step: int,
    start: int,
) -> float:
    """One update; `step` counts from the first phase on, `start` is where this phase began."""
    settings = recipe.vae
    rng = np.random.default_rng([recipe.seed, 1, step])
    noise = torch.Generator().manual_seed(step)
    for group in optimizer.param_groups:
        group["lr"] = phase.learning_rate * min(1.0, 2 - 2 * (step - start) / phase.steps)
    images_in = random_crops(images, settings.batch, settings.crop, rng, busy=phase.busy)
    images_in = images_in.to(vae.device)
    posterior = vae.encode(images_in, return_dict=False)[0]
    draws = torch.randn(posterior.mean.shape, generator=noise).to(vae.device)
    latents = posterior.mean + posterior.std * draws
    images_out = vae.decode(cast(torch.FloatTensor, latents), return_dict=False)[0]
    loss = functional.l1_loss(images_out, images_in) + functional.mse_loss(images_out, images_in)
    loss = loss + phase.kl * posterior.kl().mean() / latents[0].numel()
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
    optimizer.step()
    return loss.item()


@torch.inference_mode()
def encode_pictures(
    vae: "AutoencoderKL",
    images: UInt8[np.ndarray, "n height width 3"],
    *,
    batch: int = 16,
    progress: Progress | None = None,
) -> Float[Tensor, "n 2 4 h w"]:
    """Scaled latent means of every picture and of its mirror image."""
    rows = []
    for start in range(0, len(images), batch):
        part = torch.from_numpy(images[start : start + batch]).permute(0, 3, 1, 2)
        part = part.to(vae.device).float().div_(127.5).sub_(1)
        both = torch.stack([part, part.flip(-1)], dim=1).flatten(0, 1)
        latents = vae.encode(both, return_dict=False)[0].mean * vae.config["scaling_factor"]
        rows.append(latents.unflatten(0, (-1, 2)).cpu())
        if progress is not None:
            progress(min(start + batch, len(images)), len(images))
    return torch.cat(rows)
