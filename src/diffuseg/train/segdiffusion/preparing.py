"""All that a training needs before its first step, and what may be wrong with it."""

from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from accelerate import Accelerator
from torch import nn

from diffuseg.backbones.sd import StableDiffusion
from diffuseg.backbones.text import ClipTower
from diffuseg.errors import InputError
from diffuseg.segdiffusion.levels import mask_scheduler, noise_levels
from diffuseg.segdiffusion.surgery import widen_conv_in
from diffuseg.train.segdiffusion.exporting import base_name
from diffuseg.train.segdiffusion.lora import add_updates
from diffuseg.train.segdiffusion.mixing import Merged
from diffuseg.train.segdiffusion.recipe import SegRecipe
from diffuseg.train.segdiffusion.relations import spoken
from diffuseg.train.segdiffusion.running import Meter, Running
from diffuseg.train.segdiffusion.sources import (
    BACKGROUND,
    Drawn,
    Latents,
    describe_data,
    prepare_sources,
)
from diffuseg.train.segdiffusion.starting import Start, load_start
from diffuseg.train.segdiffusion.state import RunFacts, plain_recipe
from diffuseg.train.segdiffusion.step import MaskLearner
from diffuseg.train.segdiffusion.update import Updater


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Run:
    """What a training needs besides its state.

    Attributes:
        model: What is fine-tuned.
        wide: Whether it denoised masks before.
        inner: What learns, as it is called on one process.
        updater: Does updates.
        drawn: What batches come from.
    """

    model: StableDiffusion
    wide: bool
    inner: nn.Module
    updater: Updater
    drawn: Drawn

    @property
    def accelerator(self) -> Accelerator:
        """Knows the processes."""
        return self.updater.accelerator


def describe_run(
    model: StableDiffusion, merged: Merged, recipe: SegRecipe, begun: Start | None
) -> RunFacts:
    """What tells a run from others."""
    config = dict(begun.scheduler if begun else model.scheduler)
    if recipe.prediction:
        config["prediction_type"] = recipe.prediction
        if recipe.prediction == "epsilon":
            config["rescale_betas_zero_snr"] = False
    scheduler = mask_scheduler(config)
    return RunFacts(
        recipe=plain_recipe(recipe),
        base=base_name(model),
        data=describe_data(merged),
        scheduler=scheduler,
        start=begun.folder.resolve().name if begun else None,
    )


def check_model(model: StableDiffusion, recipe: SegRecipe, facts: RunFacts) -> None:
    """Make sure a model can learn what the recipe asks.

    Raises:
        InputError: It cannot.
    """
    if not isinstance(model, StableDiffusion) or not isinstance(model.tower, ClipTower):
        raise InputError(
            "what learns masks must be a Stable Diffusion 1.x or 2.x",
            got=repr(model),
            remedy='for example load("sd1.5")',
        )
    needed = model.scale * 2 ** (len(model.unet.config["block_out_channels"]) - 1)
    if recipe.crop % needed:
        raise InputError(
            f"crop must be a multiple of {needed}, what the U-Net halves",
            got=recipe.crop,
            remedy=f"use {max(1, round(recipe.crop / needed)) * needed}",
        )
    predicts = facts.scheduler.get("prediction_type", "epsilon")
    if recipe.objective == "one-step" and predicts == "epsilon":
        raise InputError(
            "a single step needs a model that predicts velocities",
            got="one that predicts noise: of zeros, which is what it is shown, there is none, and "
            "what it says would be multiplied by 15",
            remedy="fine-tune with prediction=v_prediction first and start from that run, or set "
            "it here",
        )


def prepare_run(
    model: StableDiffusion,
    merged: Merged,
    work: Path,
    recipe: SegRecipe,
    accelerator: Accelerator,
    begun: Start | None,
    running: Running,
    facts: RunFacts,
    meter: Meter,
) -> Run:
    """Look at the data, and make a model ready to learn from them.

    Raises:
        InputError: Something is wrong with the data, or the model does not know their words.
    """
    names = [spoken(name) for name in merged.classes]
    levels = noise_levels(facts.scheduler)
    latents = Latents(
        channels=int(model.unet.config["out_channels"]), scale=model.scale, timesteps=len(levels)
    )
    drawn = prepare_sources(merged, work, recipe, accelerator, running, latents, meter)
    model.check_words([name for name in names if name != BACKGROUND])
    device = accelerator.device
    texts = [model.embed([one.format(name) for name in names]) for one in recipe.templates]
    masks = [one.mask for one in texts if one.mask is not None]
    # Its words are known now.
    cast(nn.Module, cast(ClipTower, model.tower).encoder).to("cpu")
    vae = model.vae.to(device).float().eval().requires_grad_(False)
    wide = model.denoises_masks
    unet = model.unet.float().requires_grad_(True)
    widen_conv_in(unet)
    if recipe.checkpointing:
        unet.enable_gradient_checkpointing()
    inner: nn.Module = unet
    if recipe.weights == "lora":
        inner = add_updates(
            unet,
            rank=recipe.rank,
            convolutions=recipe.convolutions,
            text=recipe.text == "learned",
            seed=recipe.seed,
        )
    inner.to(device).train()
    learned = {name: one for name, one in inner.named_parameters() if one.requires_grad}
    if begun is not None:
        load_start(begun, inner, learned)
    network = accelerator.prepare_model(inner)
    learner = MaskLearner(
        unet=network,
        vae=vae,
        texts=torch.cat([one.vectors for one in texts]).float().to(device),
        text_mask=torch.cat(masks).to(device) if masks else None,
        levels=levels,
        end_to_end=recipe.objective == "one-step",
        balanced=recipe.balanced,
        templates=len(recipe.templates),
    )
    updater = Updater(
        network=network,
        learned=learned,
        average={name: one.detach().clone() for name, one in learned.items()},
        optimizer=torch.optim.AdamW(
            learned.values(), lr=recipe.rate, weight_decay=recipe.weight_decay
        ),
        learner=learner,
        recipe=recipe,
        accelerator=accelerator,
        parts=facts.parts[1],
    )
    return Run(model=model, wide=wide, inner=inner, updater=updater, drawn=drawn)
