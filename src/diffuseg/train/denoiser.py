"""Stage 2: U-Net and text tower, trained together on latents and captions."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from accelerate import Accelerator
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from diffuseg.train.checkpoint import load_checkpoint, save_checkpoint
from diffuseg.train.data import Progress
from diffuseg.train.grounding import Tiles, draw_mosaics, mosaic_loss
from diffuseg.train.log import TrainLog
from diffuseg.train.loop import follow_weights
from diffuseg.train.recipe import DenoiserRecipe, MiniRecipe, PhaseRecipe
from diffuseg.world.sprites import COLORS
from diffuseg.world.tokenizer import END, START

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

_SAVE_EVERY = 100
TIMESTEPS = 1000


@dataclass(frozen=True, kw_only=True, slots=True)
class Latents:
    """Cached latents with their phrasings: [n, 2 (mirrored or not), 4, h, w] and token ids."""

    values: Float[Tensor, "n 2 4 h w"]
    tokens: Int[Tensor, "n k t"]


class Denoiser(nn.Module):
    """U-Net and text tower as one module, so that both are trained by one call.

    `constant` holds the state every end and padding position should have.
    """

    def __init__(self, recipe: DenoiserRecipe, tokenizer: "CLIPTokenizer", *, side: int) -> None:
        from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
        from transformers import CLIPTextConfig, CLIPTextModel

        super().__init__()
        start, end = (tokenizer.get_vocab()[token] for token in (START, END))
        self.end_id = end
        self.heads = recipe.heads
        self.unet = UNet2DConditionModel(
            sample_size=side,
            in_channels=4,
            out_channels=4,
            layers_per_block=2,
            block_out_channels=recipe.channels,
            norm_num_groups=16,
            cross_attention_dim=recipe.text_width,
            # diffusers reads this as the number of heads for this class of U-Net.
            attention_head_dim=recipe.heads,
            down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
            up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        )
        self.text = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizer),
                hidden_size=recipe.text_width,
                intermediate_size=4 * recipe.text_width,
                projection_dim=recipe.text_width,
                num_hidden_layers=recipe.text_layers,
                num_attention_heads=recipe.text_heads,
                max_position_embeddings=tokenizer.model_max_length,
                bos_token_id=start,
                eos_token_id=end,
                pad_token_id=end,
            )
        )
        self.constant = nn.Parameter(torch.zeros(recipe.text_width))

    def forward(
        self,
        noisy: Float[Tensor, "b 4 h w"],
        timesteps: Int[Tensor, " b"],
        tokens: Int[Tensor, "b t"],
        hide_padding: bool,
    ) -> tuple[Float[Tensor, "b 4 h w"], Float[Tensor, ""]]:
        """Predicted noise, and how far end and padding states are from constant."""
        states = self.text(tokens).last_hidden_state
        padding = tokens == self.end_id
        leak = (states - self.constant)[padding].square().mean()
        mask: Bool[Tensor, "b t"] | None = ~padding if hide_padding else None
        output = self.unet(noisy, timesteps, states, encoder_attention_mask=mask).sample
        return output, leak


def tokenize(tokenizer: "CLIPTokenizer", captions: list[tuple[str, ...]]) -> Int[Tensor, "n k t"]:
    """Token ids of every phrasing, padded to the tokenizer's length."""
    flat = [phrase for phrases in captions for phrase in phrases]
    ids = tokenizer(flat, padding="max_length", truncation=True, return_tensors="pt").input_ids
    return ids.unflatten(0, (len(captions), -1))


def color_ids(tokenizer: "CLIPTokenizer") -> Int[Tensor, " c"]:
    """The token ids of the world's colours."""
    return tokenizer(" ".join(COLORS), return_tensors="pt").input_ids[0, 1:-1]


def drop_tokens(
    tokens: Int[Tensor, "b t"], dropped: Bool[Tensor, "b t"], *, end: int
) -> Int[Tensor, "b t"]:
    """Take tokens out of captions: the rest moves up, and end tokens fill the length.

    Example:
        >>> words = torch.tensor([[0, 5, 7, 1, 1]])
        >>> drop_tokens(words, words == 5, end=1).tolist()
        [[0, 7, 1, 1, 1]]
    """
    order = dropped.to(torch.uint8).argsort(dim=1, stable=True)
    return tokens.masked_fill(dropped, end).gather(1, order)


def scaled_linear_alphas() -> Float[Tensor, " s"]:
    """Cumulative alphas of Stable Diffusion's schedule (beta 0.00085 to 0.012, scaled linear)."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, TIMESTEPS, dtype=torch.float64).square()
    return (1 - betas).cumprod(0).float()


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """One step's inputs, a pure function of (seed, phase, step, rank)."""

    clean: Float[Tensor, "b 4 h w"]
    noise: Float[Tensor, "b 4 h w"]
    timesteps: Int[Tensor, " b"]
    tokens: Int[Tensor, "b t"]
    hide_padding: bool


def draw_batch(
    data: Latents,
    recipe: DenoiserRecipe,
    phase: PhaseRecipe,
    *,
    count: int,
    key: tuple[int, ...],
    empty: Int[Tensor, " t"],
    colors: Int[Tensor, " c"],
) -> Batch:
    """Draw `count` latents, phrasings, noise and timesteps for one step."""
    rng = np.random.default_rng(key)
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    rows = torch.from_numpy(rng.integers(len(data.values), size=count))
    mirrored = torch.from_numpy(rng.integers(2, size=count))
    phrasing = torch.from_numpy(rng.integers(data.tokens.shape[1], size=count))
    tokens = data.tokens[rows, phrasing]
    colorless = torch.from_numpy(rng.random(count) < phase.colorless)
    named = torch.isin(tokens, colors) & colorless[:, None]
    tokens = drop_tokens(tokens, named, end=int(empty[-1]))
    dropped = torch.from_numpy(rng.random(count) < recipe.caption_dropout)
    tokens = torch.where(dropped[:, None], empty, tokens)
    hide = bool(rng.random() >= recipe.open_share)
    if hide:
        # Hidden positions change nothing, so only the longest caption's length (and one end
        # token, for the constancy loss) is worth computing.
        tokens = tokens[:, : int((tokens != tokens[0, -1]).sum(1).max()) + 1]
    u = torch.rand(count, generator=generator)
    return Batch(
        clean=data.values[rows, mirrored].float(),
        noise=torch.randn((count, *data.values.shape[2:]), generator=generator),
        timesteps=(TIMESTEPS * u**phase.timestep_power).long().clamp_(0, TIMESTEPS - 1),
        tokens=tokens,
        hide_padding=hide,
    )


def phase_path(work: Path, number: int) -> Path:
    """The checkpoint of the U-Net's phase `number` (from 0)."""
    return work / f"unet-{number + 1}.safetensors"


def train_phase(
    model: Denoiser,
    average: Denoiser,
    data: Sequence[Latents],
    recipe: MiniRecipe,
    number: int,
    work: Path,
    *,
    tokenizer: "CLIPTokenizer",
    accelerator: Accelerator,
    log: TrainLog,
    progress: Progress | None = None,
    tiles: Sequence[Tiles] = (),
) -> None:
    """Train phase `number` (or resume it), updating `model` and its moving `average`.

    `data` are the phase's pictures and those of its `turns`; `tiles` are the pictures of mosaics,
    one set for each of the phase's `grounding`.
    """
    from diffusers.models.attention_processor import AttnProcessor

    settings = recipe.denoiser
    empty = tokenizer("", padding="max_length", return_tensors="pt").input_ids[0]
    colors = color_ids(tokenizer)
    phase = settings.phases[number]
    counts = [phase.batch, *(count for _, count in phase.turns)]
    checkpoint = phase_path(work, number)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=phase.learning_rate, betas=(0.9, 0.99), weight_decay=0.01
    )
    step = 0
    if checkpoint.exists():
        modules = {"model": model, "average": average}
        step = int(str(load_checkpoint(checkpoint, modules, optimizer)["step"]))
    wrapped, stepper = accelerator.prepare(model, optimizer)
    average.to(accelerator.device)
    alphas = scaled_linear_alphas().to(accelerator.device)
    model.train()
    if accelerator.device.type == "cpu":
        # The fused kernel's backward pass in bf16 takes 40 % of a step on a CPU; products do not.
        model.unet.set_attn_processor(AttnProcessor())
    while step < phase.steps:
        rate = phase.learning_rate * min(1.0, (step + 1) / phase.warmup)
        rate *= 1 - (1 - phase.last_rate) * step / phase.steps
        for group in optimizer.param_groups:
            group["lr"] = rate
        key = (recipe.seed, 2 + number, step, accelerator.process_index)
        turn = step % len(counts)
        batch = draw_batch(
            data[turn], settings, phase, count=counts[turn], key=key, empty=empty, colors=colors
        )
        clean = batch.clean.to(accelerator.device)
        noise = batch.noise.to(accelerator.device)
        timesteps = batch.timesteps.to(accelerator.device)
        level = alphas[timesteps][:, None, None, None]
        noisy = level.sqrt() * clean + (1 - level).sqrt() * noise
        with accelerator.autocast():
            output, leak = wrapped(
                noisy, timesteps, batch.tokens.to(accelerator.device), batch.hide_padding
            )
        errors = (output.float() - noise).square().mean((1, 2, 3))
        weights = (1 / level.flatten()).clamp(max=phase.weight_cap)
        loss = (weights * errors).mean() + settings.constant_padding * leak
        found = torch.zeros((), device=accelerator.device)
        for part, (ask, held) in enumerate(zip(phase.grounding, tiles, strict=True)):
            if step % ask.every:
                continue
            mosaics = draw_mosaics(held, ask, key=(*key, part)).to(accelerator.device)
            with accelerator.autocast():
                rated = mosaic_loss(model, mosaics, alphas, ask)
            found = found + ask.weight * rated
        loss = loss + found
        stepper.zero_grad(set_to_none=True)
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(model.parameters(), 1.0)
        stepper.step()
        step += 1
        follow_weights(average, model, min(settings.ema, (1 + step) / (10 + step)))
        if not accelerator.is_main_process:
            continue
        log.write(
            f"unet-{number + 1}",
            step,
            loss=loss.item(),
            error=errors.mean().item(),
            leak=leak.item(),
            grounding=found.item(),
        )
        if progress is not None:
            progress(step, phase.steps)
        if step % _SAVE_EVERY == 0 or step == phase.steps:
            facts = {"step": step, "phase": number}
            save_checkpoint(checkpoint, {"model": model, "average": average}, optimizer, facts)
    accelerator.wait_for_everyone()
    accelerator.free_memory()
