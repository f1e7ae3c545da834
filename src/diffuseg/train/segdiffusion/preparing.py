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
from diffuseg.train.segdiffusion.batches import BatchSource
from diffuseg.train.segdiffusion.exporting import base_name
from diffuseg.train.segdiffusion.indexing import data_key, index_pictures
from diffuseg.train.segdiffusion.lora import add_updates
from diffuseg.train.segdiffusion.pictures import KeptPictures, LabelledPictures
from diffuseg.train.segdiffusion.queries import QuerySampler
from diffuseg.train.segdiffusion.recipe import SegRecipe
from diffuseg.train.segdiffusion.running import Meter, Running
from diffuseg.train.segdiffusion.starting import Start, load_start
from diffuseg.train.segdiffusion.state import RunFacts, plain_recipe
from diffuseg.train.segdiffusion.step import MaskLearner
from diffuseg.train.segdiffusion.update import Updater
from diffuseg.train.segdiffusion.validation import Checks

BACKGROUND = "background"
"""The class that is never asked for: it is what is none of the others."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Run:
    """What a training needs besides its state.

    Attributes:
        model: What is fine-tuned.
        wide: Whether it denoised masks before.
        inner: What learns, as it is called on one process.
        updater: Does updates.
        source: Draws their batches.
    """

    model: StableDiffusion
    wide: bool
    inner: nn.Module
    updater: Updater
    source: BatchSource

    @property
    def accelerator(self) -> Accelerator:
        """Knows the processes."""
        return self.updater.accelerator


def describe_run(
    model: StableDiffusion, pictures: LabelledPictures, recipe: SegRecipe, begun: Start | None
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
        data=f"{pictures.name}-{data_key(pictures)}",
        scheduler=scheduler,
        start=str(begun.folder.resolve()) if begun else None,
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
    pictures: LabelledPictures,
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
    kept = KeptPictures(pictures, gibibytes=running.gibibytes)
    # One process reads, the others find what it wrote.
    with accelerator.main_process_first(), meter("looking at all pictures") as told:
        shown = index_pictures(kept, cache=work, progress=told)
    unasked = tuple(name for name in pictures.classes if name == BACKGROUND)
    sampler = QuerySampler(
        pictures.classes,
        shown,
        without=recipe.without,
        unasked=unasked,
        queries=recipe.queries,
        negatives=recipe.negatives,
        least=recipe.least,
    )
    names = [spoken(name) for name in pictures.classes]
    model.check_words([name for name in names if name not in unasked])
    device = accelerator.device
    text = model.embed([recipe.template.format(name) for name in names])
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
    levels = noise_levels(facts.scheduler)
    learner = MaskLearner(
        unet=network,
        vae=vae,
        texts=text.vectors.float().to(device),
        text_mask=None if text.mask is None else text.mask.to(device),
        levels=levels,
        end_to_end=recipe.objective == "one-step",
        balanced=recipe.balanced,
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
    source = BatchSource(
        wholes=kept,
        sampler=sampler,
        recipe=recipe,
        channels=int(unet.config["out_channels"]),
        scale=model.scale,
        timesteps=len(levels),
    )
    return Run(model=model, wide=wide, inner=inner, updater=updater, source=source)


def spoken(name: str) -> str:
    """A class as one would say it: data sets write "wall-other-merged" and "sofa|couch".

    Example:
        >>> spoken("wall-other-merged"), spoken("sofa|couch"), spoken("traffic_light")
        ('wall', 'sofa', 'traffic light')
    """
    first = name.split("|")[0].strip().replace("_", " ")
    return first.removesuffix("-merged").removesuffix("-other").strip() or name


def prepare_checks(
    pictures: LabelledPictures,
    validation: LabelledPictures | None,
    recipe: SegRecipe,
    running: Running,
) -> Checks | None:
    """What is looked at now and then.

    Raises:
        InputError: The pictures are of other classes, or something is wrong with them.
    """
    if validation is None:
        return None
    if tuple(validation.classes) != tuple(pictures.classes):
        raise InputError(
            "pictures to validate on must have the classes of those that are learned from",
            got=f"{len(validation.classes)} classes, and {len(pictures.classes)}",
            remedy="take another part of the same data set",
        )
    kept = KeptPictures(validation, gibibytes=running.gibibytes)
    index_pictures(kept)
    return Checks(
        kept=kept,
        size=recipe.crop,
        unasked=tuple(name for name in pictures.classes if name == BACKGROUND),
        hidden=recipe.without,
        steps=1 if recipe.objective == "one-step" else running.validation_steps,
    )
