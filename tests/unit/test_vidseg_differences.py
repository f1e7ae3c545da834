"""Schedules, difference maps and fusion: what must hold whatever the images are."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffuseg.errors import InputError
from diffuseg.methods.vidseg.denoising import denoise_plain, invert
from diffuseg.methods.vidseg.differences import (
    Fusion,
    as_stored,
    blur,
    difference_maps,
    filter_maps,
    fuse,
    to_images,
)
from diffuseg.methods.vidseg.modulation import frame_strengths, resize_masks
from diffuseg.methods.vidseg.schedule import guidance_scales, sd_schedule, svd_schedule


def images(seed, count=4, hw=(9, 14)):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, *hw), generator=generator, dtype=torch.uint8)


def maps_of(seed, *shape):
    """Maps with many equal values."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 4, shape, generator=generator).float()


# ---- differences


@pytest.mark.parametrize("compat", ["fixed", "reference"])
def test_equal_images_give_zero(compat):
    shown = images(0)
    found = difference_maps(shown, shown, compat=compat)
    masks = torch.ones(4, 3, 4, dtype=torch.bool)
    assert not found.any()
    assert not filter_maps(found, masks).any()
    assert not as_stored(found).any()


def test_differences_do_not_depend_on_the_sign():
    assert difference_maps(images(0), images(1)).equal(difference_maps(images(1), images(0)))


def test_eight_bits_wrap_in_the_reference_only():
    pulled = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    for step in (1, 15, 16, 17, 255):
        pushed = torch.full_like(pulled, step)
        fixed = difference_maps(pushed, pulled)
        wrapped = difference_maps(pushed, pulled, compat="reference")
        assert fixed.allclose(torch.full((8, 8), step * 3**0.5), atol=1e-3)
        assert wrapped.allclose(torch.full((8, 8), (3 * (step * step % 256)) ** 0.5), atol=1e-3)


def test_a_constant_stays_where_it_is_blurred():
    assert blur(torch.full((2, 5, 7), 3.0), 5, 3.0).allclose(torch.full((2, 5, 7), 3.0))
    sharp = torch.zeros(1, 9, 9)
    sharp[0, 4, 4] = 1
    found = blur(sharp, 5, 3.0)[0]
    assert found.sum().item() == pytest.approx(1)
    assert (found > 0).sum() == 25
    assert found.equal(found.T)


@pytest.mark.parametrize(("side", "width"), [(4, 3.0), (0, 3.0), (5, 0.0), (19, 3.0)])
def test_filters_that_cannot_be(side, width):
    with pytest.raises(InputError):
        blur(torch.zeros(1, 9, 9), side, width)


def test_decoded_images_are_cut_off():
    decoded = torch.tensor([-1.0, 0.0, 0.9999, 1.0, 50.0]).view(1, 1, 1, 5).expand(1, 3, 1, 5)
    assert to_images(decoded, (1, 5))[0, 0, 0].tolist() == [0, 0, 254, 255, 255]
    assert to_images(decoded, (7, 3)).shape == (1, 3, 7, 3)


# ---- filtering and fusing


def test_filtering_by_strength():
    maps = difference_maps(images(0), images(1))
    masks = torch.zeros(4, 3, 4, dtype=torch.bool)
    masks[:2] = True
    whole = filter_maps(maps, masks, strength=None)
    weak = filter_maps(maps, masks, strength=0.25)
    assert whole.amax((1, 2)).allclose(torch.ones(4), atol=1e-4)
    assert weak[:2].allclose(whole[:2])
    assert weak[2:].allclose(0.25 * whole[2:])
    assert filter_maps(maps, masks, strength=1.0).allclose(whole)
    raw = filter_maps(maps, masks, strength=None, normalise=False)
    assert raw.equal(maps)


def test_one_mask_a_map():
    with pytest.raises(InputError, match="one mask a map"):
        filter_maps(torch.zeros(2, 8, 8), torch.ones(1, 4, 4, dtype=torch.bool))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 999), labels=st.integers(1, 5), absent=st.integers(0, 5))
def test_fusing_a_few_at_a_time_in_any_order(seed, labels, absent):
    maps = maps_of(seed, labels, 2, 3, 4)
    maps[absent:, 1] = 0
    values = torch.arange(labels) * 50 + 5
    whole = fuse(maps, values)
    assert whole.equal(values[maps.argmax(0)])
    fusion = Fusion(2, (3, 4), values)
    pairs = maps.flatten(2).any(2).nonzero()
    generator = torch.Generator().manual_seed(seed)
    for part in pairs[torch.randperm(len(pairs), generator=generator)].split(2):
        fusion.add(part[:, 0], part[:, 1], maps[part[:, 0], part[:, 1]])
    assert fusion.labels().equal(whole)


def test_where_there_is_no_difference_the_first_label_counts():
    assert fuse(torch.zeros(3, 1, 2, 2), [255, 0, 7]).unique().tolist() == [255]


@pytest.mark.parametrize("values", [[], [1], [1, 2, 3]])
def test_one_label_a_map(values):
    with pytest.raises(InputError):
        fuse(torch.zeros(2, 1, 4, 4), values)


def test_masks_on_other_grids():
    masks = torch.zeros(2, 3, 8, 8, dtype=torch.bool)
    masks[0, :, :4] = True
    smaller = resize_masks(masks, (4, 4))
    assert smaller.shape == (2, 3, 4, 4)
    assert smaller[0, :, 0].eq(1).all()
    assert not smaller[1].any()
    assert resize_masks(masks, (8, 8)).equal(masks.float())
    assert resize_masks(masks[:0], (4, 4)).shape == (0, 3, 4, 4)


# ---- schedules


@pytest.mark.parametrize("schedule", [sd_schedule(25), sd_schedule(7), svd_schedule(9)])
def test_noise_falls_to_nothing(schedule):
    assert (schedule.sigmas.diff() < 0).all()
    assert schedule.sigmas[-1] == 0
    assert schedule.steps == len(schedule.sigmas) - 1


def test_schedules_of_other_models():
    shares = torch.linspace(0.9, 0.1, 10)
    schedule = sd_schedule(3, alphas=shares)
    assert schedule.times.tolist() == [9, 6, 3]
    assert schedule.sigmas[0].item() == pytest.approx(3.0)


@pytest.mark.parametrize("make", [sd_schedule, svd_schedule])
def test_steps_that_cannot_be(make):
    with pytest.raises(InputError):
        make(0)
    with pytest.raises(InputError):
        sd_schedule(1001)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_what_a_right_network_says_is_undone(prediction):
    schedule = sd_schedule(25, prediction=prediction)
    clean, noise = (torch.randn(2, 4, 4, 4) for _ in range(2))
    x = schedule.add_noise(clean, noise, 20)
    signal = 1 / (1 + schedule.sigmas[20] ** 2).sqrt()
    rest = schedule.sigmas[20] * signal
    said = noise if prediction == "epsilon" else signal * noise - rest * clean
    assert schedule.denoised(x, said, 20).allclose(clean, atol=1e-4)


@pytest.mark.parametrize("scale", [1.0, 5.0])
def test_inverting_is_sampling_backwards(scale):
    schedule = sd_schedule(25)
    direction = torch.randn(2, 4, 4, 4)
    scales = guidance_scales(2, scale)

    def network(x, call):  # the same noise everywhere: both ways are straight lines
        return direction[call.frames].repeat(call.halves, 1, 1, 1)

    clean = torch.randn(2, 4, 4, 4)
    noisy = invert(network, clean, schedule, start=18, scales=scales, rows=2)
    assert noisy.allclose(schedule.add_noise(clean, direction, 18), atol=1e-5)
    plain = denoise_plain(network, noisy, schedule, start=18, scales=scales)
    assert plain.states[-1].allclose(clean, atol=1e-5)


def test_guidance_and_strengths_by_frame():
    assert guidance_scales(3, 5.0).tolist() == [5, 5, 5]
    assert guidance_scales(1, (1.0, 2.5)).tolist() == [1]
    assert frame_strengths(3, 50.0).tolist() == [50, 50, 50]
