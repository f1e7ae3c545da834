"""Seg-diffusion learns: a tiny network one picture by heart, and which mask is of which word."""

from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import nn
from torch.nn import functional as F

from diffuseg.methods.segdiffusion.codec import mask_shares, picture_pixels, threshold_shares
from diffuseg.methods.segdiffusion.sampling import denoise_masks
from diffuseg.methods.segdiffusion.schedule import Levels, ddim_schedule
from diffuseg.segdiffusion.autoencoder import decode_channel, encode_pixels
from diffuseg.segdiffusion.levels import mask_scheduler, noise_levels
from diffuseg.train.segdiffusion.batches import BatchSource
from diffuseg.train.segdiffusion.pictures import KeptPictures
from diffuseg.train.segdiffusion.queries import QuerySampler
from diffuseg.train.segdiffusion.recipe import SegRecipe
from diffuseg.train.segdiffusion.step import MaskLearner
from diffuseg.train.segdiffusion.update import Updater
from support.labelled import Blocks

SCHEDULE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


class Pooling(nn.Module):
    """An autoencoder whose latents are the means of 8x8 pixels, exact for the masks used here."""

    config: ClassVar[dict] = {"scaling_factor": 1.0}
    device, dtype = torch.device("cpu"), torch.float32

    def encode(self, pixels, *, return_dict):
        means = F.avg_pool2d(pixels, 8)
        latents = torch.cat([means, means.mean(1, keepdim=True)], 1)
        return (SimpleNamespace(mode=lambda: latents),)

    def decode(self, latents, *, return_dict):
        return (F.interpolate(latents[:, :3], scale_factor=8.0),)


def tiny_unet():
    torch.manual_seed(2)
    return UNet2DConditionModel(
        sample_size=8, in_channels=8, block_out_channels=(16, 32), layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), norm_num_groups=4,
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), attention_head_dim=4,
        cross_attention_dim=12,
    )  # fmt: skip


@pytest.fixture(autouse=True)
def forgotten():
    """What accelerate holds for the whole process; other trainings want it otherwise."""
    yield
    AcceleratorState._reset_state()


def build(recipe, *, levels=None, shown=None):
    pictures = Blocks(1)
    table = np.ones((1, 3), bool) if shown is None else shown
    sampler = QuerySampler(pictures.classes, table, unasked=("grass",), queries=recipe.queries,
                           negatives=recipe.negatives)  # fmt: skip
    source = BatchSource(wholes=KeptPictures(pictures), sampler=sampler, recipe=recipe)
    unet = tiny_unet()
    texts = torch.randn(3, 5, 12, generator=torch.Generator().manual_seed(3))
    learner = MaskLearner(
        unet=unet, vae=Pooling(), texts=texts, text_mask=None,
        levels=levels or noise_levels(mask_scheduler(
            {**SCHEDULE, "prediction_type": "v_prediction"})),
        end_to_end=recipe.objective == "one-step",
    )  # fmt: skip
    learned = dict(unet.named_parameters())
    updater = Updater(
        network=unet, learned=learned, average={n: p.detach().clone() for n, p in learned.items()},
        optimizer=torch.optim.AdamW(learned.values(), lr=recipe.rate), learner=learner,
        recipe=recipe, accelerator=Accelerator(cpu=True), parts=1,
    )  # fmt: skip
    return updater, source


STILL = {"zoom": (1.0, 1.0), "flip": False, "jitter": 0.0, "crop": 64, "precision": "fp32"}


def test_one_picture_is_learned_by_heart_and_masks_go_with_their_words():
    recipe = SegRecipe(
        steps=100, images=2, queries=2, negatives=0.0, warmup=10, learning_rate=8e-3, final=0.05,
        timestep_power=0.5, **STILL,
    )  # fmt: skip
    updater, source = build(recipe)
    losses = [
        updater(step, lambda part, step=step: source.draw(step, images=2)).loss
        for step in range(recipe.steps)
    ]
    assert np.mean(losses[-20:]) < np.mean(losses[:5]) / 5
    learner, whole = updater.learner, KeptPictures(Blocks(1))[0]
    picture = encode_pixels(
        learner.vae, picture_pixels(torch.from_numpy(whole.pixels).permute(2, 0, 1)[None])
    )
    masks = torch.stack([torch.from_numpy(whole.labels == one) for one in (1, 2)])
    start = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(9))
    schedule = ddim_schedule(learner.levels, 4)

    def asked(classes):
        def network(x, time):
            return learner.denoise(x, torch.full((len(x),), time), classes)

        return denoise_masks(network, picture, start.expand(2, -1, -1, -1), schedule)

    def overlap(latents, truth):
        found = threshold_shares(mask_shares(decode_channel(learner.vae, latents)))
        return (found & truth).sum((1, 2)) / (found | truth).sum((1, 2))

    with torch.no_grad():
        found, swapped = asked((1, 2)), asked((2, 1))
    assert (overlap(found, masks) > 0.8).all()
    assert (overlap(swapped, masks.flip(0)) > 0.8).all()
    assert (overlap(found, masks.flip(0)) < 0.2).all()


def test_a_single_step_sends_gradients_through_the_decoder():
    recipe = SegRecipe(steps=4, images=2, queries=2, warmup=1, objective="one-step",
                       learning_rate=2e-3, **STILL)  # fmt: skip
    updater, source = build(recipe)
    found = updater(0, lambda part: source.draw(0, images=2))
    assert found.done
    assert found.norm > 1e-4
    assert all(one.grad is None for one in updater.learner.vae.parameters())
    assert "t0" not in found.values


def test_pixels_of_which_nothing_is_known_make_no_gradient():
    recipe = SegRecipe(steps=2, images=1, queries=1, warmup=1, **STILL)
    updater, source = build(recipe)
    batch = source.draw(0, images=1)
    batch.known[:] = False
    found = updater(0, lambda part: batch)
    assert (found.loss, found.norm, found.empty) == (0.0, 0.0, 1)
    assert found.done


@pytest.mark.parametrize("bad", ["loss", "gradient"])
def test_weights_average_and_moments_stay_where_something_is_no_number(bad):
    recipe = SegRecipe(steps=3, images=1, queries=1, warmup=1, **STILL)
    updater, source = build(recipe)
    updater(0, lambda part: source.draw(0, images=1))
    held = {name: one.detach().clone() for name, one in updater.learned.items()}
    average = {name: one.clone() for name, one in updater.average.items()}
    if bad == "loss":
        batch = source.draw(1, images=1)
        batch.noise[:] = float("inf")
    else:
        batch = source.draw(1, images=1)
        weight = updater.learner.unet.conv_out.weight
        weight.register_hook(lambda gradient: gradient * float("nan"))
    found = updater(1, lambda part: batch)
    assert not found.done
    for name, one in updater.learned.items():
        assert torch.equal(one, held[name])
        assert torch.equal(updater.average[name], average[name])


def test_the_averaged_weights_are_there_for_a_while_only():
    recipe = SegRecipe(steps=3, images=1, queries=1, warmup=1, **STILL)
    updater, source = build(recipe)
    for step in range(3):
        updater(step, lambda part, step=step: source.draw(step, images=1))
    name, weight = next(iter(updater.learned.items()))
    before = weight.detach().clone()
    with updater.averaged():
        assert torch.equal(weight, updater.average[name])
        assert not torch.equal(weight, before)
    assert torch.equal(weight, before)


def test_levels_of_another_number_are_binned_alike():
    levels = Levels(alphas=torch.linspace(0.99, 0.0, 50))
    recipe = SegRecipe(steps=2, images=4, queries=2, warmup=1, **STILL)
    updater, source = build(recipe, levels=levels)
    from dataclasses import replace

    source = replace(source, timesteps=50)
    found = updater(0, lambda part: source.draw(0, images=4))
    assert {f"t{n}" for n in range(10)} <= found.values.keys()
    assert sum(found.values[f"t{n}"] is not None for n in range(10)) >= 3
