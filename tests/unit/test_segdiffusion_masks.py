"""Seg-diffusion's masks: codec, ensembles, labels, losses, settings, and the widened U-Net."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from hypothesis import given, settings
from hypothesis import strategies as st

from diffuseg.errors import InputError
from diffuseg.methods.segdiffusion import SegDiffusion
from diffuseg.methods.segdiffusion.codec import (
    mask_pixels,
    mask_shares,
    mean_channel,
    threshold_shares,
)
from diffuseg.methods.segdiffusion.ensemble import Moments, label_classes, pool_names, pool_runs
from diffuseg.methods.segdiffusion.sampling import denoise_masks
from diffuseg.methods.segdiffusion.schedule import Levels, ddim_schedule
from diffuseg.methods.segdiffusion.training import (
    class_targets,
    denoising_loss,
    mask_loss,
    rate_factor,
    valid_cells,
)
from diffuseg.segdiffusion.surgery import widen_conv_in
from support import models


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 4), st.integers(1, 9), st.integers(1, 9), st.integers(0, 99))
def test_a_mask_comes_back(count, height, width, seed):
    masks = draw(count, height, width, seed=seed) > 0
    pixels = mask_pixels(masks)
    assert set(pixels.unique().tolist()) <= {-1.0, 1.0}
    assert torch.equal(threshold_shares(mask_shares(mean_channel(pixels))), masks)


def test_empty_and_full_masks_stay_what_they_are():
    for mask in (torch.zeros(1, 4, 4).bool(), torch.ones(1, 4, 4).bool()):
        assert torch.equal(mask_shares(mean_channel(mask_pixels(mask))), mask.float())


def test_channels_are_averaged_before_they_are_cut_off():
    decoded = torch.tensor([3.0, -1.0, -1.0]).view(1, 3, 1, 1)
    assert mask_shares(mean_channel(decoded)).item() == pytest.approx(2 / 3)
    with pytest.raises(InputError, match="threshold"):
        threshold_shares(torch.zeros(1, 1), 1.5)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 9), st.integers(0, 99))
def test_moments_are_those_of_all_runs_at_once(count, seed):
    runs = 0.7 + 1e-3 * draw(count, 3, 4, seed=seed)
    moments = Moments()
    for run in runs:
        moments.add(run)
    found, whole = moments.pooled(), pool_runs(runs)
    torch.testing.assert_close(found.share, whole.share)
    if count == 1:
        assert found.uncertainty is None
        assert whole.uncertainty is None
    else:
        exact = runs.double().std(0).float()
        torch.testing.assert_close(found.uncertainty, exact, rtol=1e-3, atol=1e-6)


def test_pools_of_nothing():
    with pytest.raises(InputError, match="a run"):
        Moments().pooled()
    with pytest.raises(InputError, match="a run"):
        pool_runs(torch.zeros(0, 2, 2))


def test_a_constant_map_is_no_nan():
    pooled = pool_runs(torch.full((3, 4, 4), 0.2), "legacy")
    assert pooled.share.tolist() == np.zeros((4, 4)).tolist()
    assert pooled.uncertainty.tolist() == np.zeros((4, 4)).tolist()


def test_an_absent_class_is_stretched_only_by_the_published_code():
    faint = 0.01 * torch.rand(5, 6, 6, generator=torch.Generator().manual_seed(0))
    assert pool_runs(faint).share.max() < 0.01
    assert pool_runs(faint, "median").share.max() < 0.01
    assert pool_runs(faint, "legacy").share.max() == 1


def test_labels_with_and_without_a_background():
    runs = torch.tensor([[0.9, 0.6], [0.5, 0.7]])  # two runs of a, of b: the spec's example
    a, b = runs[:, 0].mean().view(1, 1), runs[:, 1].mean().view(1, 1)
    assert label_classes([a, b], (1, 1), background="none")[0].item() == 0
    assert label_classes([a, b], (1, 1))[0].item() == 1
    labels, scores = label_classes([a, b], (1, 1), threshold=0.75, keep=True)
    assert labels.item() == 0
    assert scores is not None
    assert scores[:, 0, 0].tolist() == pytest.approx([0.75, 0.7, 0.65])
    # The first of equal ones.
    assert label_classes([a, a], (1, 1), background="none")[0].item() == 0
    with pytest.raises(InputError, match="a class"):
        label_classes([], (1, 1))


def test_maps_are_enlarged_before_they_are_compared():
    one, other = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.2, 0.6]])
    # Equal at 4/7 of the way between the centres of the two cells, not at their border.
    labels, _ = label_classes([one, other], (1, 32), background="none")
    assert int((labels == 0).sum()) == round(32 * (0.25 + 0.5 * 0.8 / 1.4))


def test_classes_of_several_names():
    maps = [draw(2, 2, seed=seed) for seed in range(4)]
    found = list(pool_names(maps, [0, 1, 1, 2]))
    expected = [maps[0], torch.maximum(maps[1], maps[2]), maps[3]]
    assert len(found) == 3
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_targets_of_classes():
    labels = torch.tensor([[1, 2], [255, 2]], dtype=torch.uint8)
    masks, known = class_targets(labels, [2, 258, 1])
    assert masks.int().tolist() == [[[0, 1], [0, 1]], [[0, 0], [0, 0]], [[1, 0], [0, 0]]]
    assert known.tolist() == [[True, True], [False, True]]
    with pytest.raises(InputError, match="255"):
        class_targets(labels, [1, 255])


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 3), st.integers(1, 3), st.sampled_from([1, 2, 8]), st.integers(0, 99))
def test_one_unknown_pixel_spoils_its_cell(height, width, scale, seed):
    known = draw(2, height * scale, width * scale, seed=seed) > -2
    pooled = torch.nn.functional.max_pool2d((~known).float()[:, None], scale)[:, 0]
    assert torch.equal(valid_cells(known, scale), pooled == 0)


def test_cells_need_whole_sides():
    with pytest.raises(InputError, match="multiples of 8"):
        valid_cells(torch.ones(1, 8, 12).bool())


def test_losses_of_nothing_known_are_zero_and_can_be_descended():
    output = draw(2, 4, 2, 2).requires_grad_()
    loss = denoising_loss(output, draw(2, 4, 2, 2, seed=1), torch.zeros(2, 2, 2).bool())
    loss.backward()
    assert loss.item() == 0
    assert output.grad.abs().max() == 0
    channel, nothing = draw(1, 4, 4).requires_grad_(), torch.zeros(1, 4, 4).bool()
    loss = mask_loss(channel, nothing, nothing)
    loss.backward()
    assert loss.item() == 0
    assert channel.grad.abs().max() == 0


def test_what_is_not_valid_does_not_count():
    target, valid = draw(3, 4, 2, 2), torch.ones(3, 2, 2).bool()
    valid[0, 0] = False
    output = target + 1
    output[0, :, 0] = torch.nan
    assert denoising_loss(output, target, valid).item() == pytest.approx(1)
    output[1] += 1  # now 4 in one of the queries
    plain = denoising_loss(output, target, valid).item()
    assert plain == pytest.approx((2 * 1 + 4 * 4 + 4 * 1) / 10, rel=1e-5)
    balanced = denoising_loss(output, target, valid, balanced=True).item()
    assert balanced == pytest.approx((1 + 4 + 1) / 3, rel=1e-5)


def test_decoded_masks_are_led_back_from_beyond():
    masks = torch.eye(8).bool()[None]
    known = torch.ones_like(masks)
    right = masks.float() * 2 - 1
    wrong = (-3 * right).requires_grad_()
    loss = mask_loss(wrong, masks, known)
    loss.backward()
    assert torch.isfinite(loss)
    assert wrong.grad is not None
    assert (wrong.grad[masks] < 0).all()
    assert loss > 10 * mask_loss(right, masks, known)
    square = mask_loss(wrong, masks, known, square=1.0) - loss
    assert square.item() == pytest.approx(4, rel=1e-4)  # shares of -1 and 2
    known[0, 0] = False
    spoilt = wrong.detach().clone()
    spoilt[0, 0] = torch.nan
    assert torch.isfinite(mask_loss(spoilt, masks, known))


def test_a_negative_query_wants_nothing():
    nothing, known = torch.zeros(1, 8, 8).bool(), torch.ones(1, 8, 8).bool()
    quiet, loud = (mask_loss(torch.full((1, 8, 8), v), nothing, known) for v in (-1.0, 1.0))
    assert quiet < 1e-3
    assert loud > 5


def test_the_learning_rate_falls_after_it_rose():
    rates = [rate_factor(step, total=50, warmup=10) for step in range(60)]
    assert rates[0] == 0
    assert max(rates) == rates[10] == 1
    assert all(a >= b for a, b in pairwise(rates[10:]))
    assert rates[50:] == [0.01] * 10
    assert rate_factor(0, warmup=0) == 1
    with pytest.raises(InputError, match="rise"):
        rate_factor(3, total=5, warmup=5)


def test_rows_do_not_see_each_other():
    levels = Levels(alphas=torch.linspace(0.99, 0.0, 100))
    schedule, picture = ddim_schedule(levels, 4), draw(1, 4, 3, 3)
    start = draw(5, 4, 3, 3, seed=1)

    def network(x, time):
        return torch.sin(x[:, :4] * x[:, 4:]) + time / 100

    whole = denoise_masks(network, picture, start, schedule)
    alone = [denoise_masks(network, picture, one[None], schedule) for one in start]
    torch.testing.assert_close(whole, torch.cat(alone))
    with pytest.raises(InputError, match="one picture"):
        denoise_masks(network, picture.repeat(2, 1, 1, 1), start, schedule)


def test_settings_are_checked_and_filled():
    assert SegDiffusion().ready().steps == 4
    assert SegDiffusion().ready({"profile": "quality"}).runs == 10
    assert SegDiffusion(profile="paper").ready({"steps": 2, "side": 256}).steps == 50
    assert SegDiffusion(steps=1).ready({"steps": 3, "side": 256}).side == 256
    with pytest.raises(InputError, match="single run"):
        SegDiffusion(profile="one-step", runs=3).ready()
    for wrong in (
        {"steps": 0},
        {"threshold": 1.5},
        {"template": "a photo"},
        {"start": "zeros", "steps": 2},
        {"batch": 0},
    ):
        with pytest.raises(InputError):
            SegDiffusion(**wrong)


@pytest.fixture
def unet():
    return models.sd15(levels=2, layers=1)


def seen(unet, latents):
    text = draw(len(latents), models.TOKENS, models.CROSS_DIM, seed=3)
    return unet(latents, 500, encoder_hidden_states=text).sample


def test_the_same_latents_twice_are_those_once(unet):
    latents = draw(2, 4, 8, 8)
    before = seen(unet, latents)
    widen_conv_in(unet)
    torch.testing.assert_close(seen(unet, torch.cat([latents, latents], 1)), before)


def test_a_wide_unet_is_saved_and_loaded(unet, tmp_path):
    widen_conv_in(unet)
    unet.save_pretrained(tmp_path)
    loaded = UNet2DConditionModel.from_pretrained(tmp_path).eval().requires_grad_(False)
    assert loaded.config["in_channels"] == 8
    both = draw(1, 8, 8, 8)
    torch.testing.assert_close(seen(loaded, both), seen(unet, both))
    assert torch.equal(loaded.conv_in.weight, unet.conv_in.weight)
    # Widened once more, it stays what it has learned.
    weight = loaded.conv_in.weight
    widen_conv_in(loaded)
    assert loaded.conv_in.weight is weight


def test_other_ways_to_widen(unet):
    latents, other = draw(1, 4, 8, 8), draw(1, 4, 8, 8, seed=1)
    before, bias = seen(unet, latents), unet.conv_in.bias.clone()
    widen_conv_in(unet, copy="image_only")
    torch.testing.assert_close(seen(unet, torch.cat([latents, other], 1)), before)
    fresh = models.sd15(levels=2, layers=1).requires_grad_(True).to(torch.bfloat16)
    widen_conv_in(fresh, copy="random", generator=torch.Generator().manual_seed(0))
    assert fresh.conv_in.weight.requires_grad
    assert fresh.conv_in.weight.dtype == torch.bfloat16
    torch.testing.assert_close(fresh.conv_in.bias.float(), bias, rtol=1e-2, atol=1e-3)
    assert 0.9 < fresh.conv_in.weight.abs().max() * (8 * 9) ** 0.5 <= 1.01


def test_a_unet_for_something_else_is_refused():
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=9,
        block_out_channels=(8,),
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=12,
        attention_head_dim=2,
    )
    with pytest.raises(InputError, match="4 channels"):
        widen_conv_in(unet)
