"""Seg-diffusion's noise and schedule: properties that hold for any size, strength and step."""

import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from hypothesis import given, settings
from hypothesis import strategies as st

from diffuseg.errors import InputError
from diffuseg.methods.segdiffusion.noise import (
    LEGACY,
    MULTIRES,
    WHITE,
    PyramidNoise,
    compose,
    draw_pyramid,
    level_sizes,
    start_noise,
)
from diffuseg.methods.segdiffusion.schedule import (
    Levels,
    ddim_schedule,
    one_step_latents,
    spaced_timesteps,
)
from diffuseg.segdiffusion.levels import mask_scheduler, noise_levels

SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
STRATEGIES = ("original", "every_layer", "power_of_two", "random_step")
sides = st.integers(1, 20)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def draw(*shape, seed=0):
    return torch.randn(shape, generator=seeded(seed))


@settings(deadline=None, max_examples=40)
@given(sides, sides, st.sampled_from(STRATEGIES), st.floats(0, 1), st.integers(0, 99))
def test_every_sample_has_a_deviation_of_one(height, width, strategy, strength, seed):
    drawn = draw_pyramid((2, 4, height, width), strategy=strategy, generator=seeded(seed))
    noise = compose(drawn, torch.tensor([strength, 0.9]))
    torch.testing.assert_close(noise.std((1, 2, 3)), torch.ones(2))
    sizes = [tuple(level.shape[2:]) for level in drawn.levels]
    assert sizes == level_sizes((height, width), drawn.factors, strategy)
    assert all(1 not in size for size in sizes[:-1]) or strategy == "every_layer"


def test_samples_do_not_scale_each_other():
    drawn = draw_pyramid((4, 4, 16, 16), generator=seeded())
    strength = torch.tensor([0.0, 0.3, 0.6, 0.9])
    alone = [
        compose(type(drawn)(base=drawn.base[i : i + 1], factors=drawn.factors,
                            levels=tuple(one[i : i + 1] for one in drawn.levels)),
                strength[i : i + 1])
        for i in range(4)
    ]  # fmt: skip
    torch.testing.assert_close(compose(drawn, strength), torch.cat(alone))
    whole = compose(drawn, strength, norm="batch").std((1, 2, 3))
    assert whole.max() > whole.min() * 1.05


def test_without_strength_noise_is_white():
    times = torch.zeros(24, dtype=torch.int64)
    noise = PyramidNoise().draw((24, 4, 32, 32), times, generator=seeded())
    # As much in the slowest waves as in all others, which a pyramid has a hundred times as much in.
    power = torch.fft.rfft2(noise).abs().square().mean((0, 1)) / 1024
    assert power[0, 0] == pytest.approx(1, abs=0.4)
    assert power[:3, :3].mean() == pytest.approx(1, abs=0.2)
    pyramid = MULTIRES.draw((24, 4, 32, 32), times, generator=seeded())
    assert torch.fft.rfft2(pyramid).abs().square().mean((0, 1))[0, 0] / 1024 > 20


def test_kinds_of_noise():
    times = torch.tensor([0, 500, 999])
    assert PyramidNoise().strengths(times).tolist() == pytest.approx([0, 0.45, 0.8991])
    assert MULTIRES.strengths(times).tolist() == pytest.approx([0.9] * 3)
    assert LEGACY.strengths(times).tolist() == pytest.approx([0.3] * 3)
    white = WHITE.draw((3, 4, 8, 8), times, generator=seeded(5))
    assert torch.equal(white, draw(3, 4, 8, 8, seed=5))
    with pytest.raises(InputError, match="0 or more"):
        PyramidNoise(strength=-1.0)
    with pytest.raises(InputError, match="two numbers"):
        compose(draw_pyramid((1, 1, 1, 1)), torch.ones(1))
    with pytest.raises(InputError, match="height"):
        draw_pyramid((1, 4, 0, 8))


def test_runs_begin_from_their_own_noise():
    shape = (4, 3, 5)
    three = start_noise(shape, seed=0, picture="a", runs=3)
    assert torch.equal(three[:2], start_noise(shape, seed=0, picture="a", runs=2))
    others = [start_noise(shape, seed=1, picture="a"), start_noise(shape, seed=0, picture="b")]
    distinct = torch.cat([three, *others]).flatten(1)
    assert torch.pdist(distinct).min() > 1
    # No pair of seed and run is another's.
    assert not torch.equal(three[1], start_noise(shape, seed=1, picture="a")[0])


@pytest.mark.parametrize("spacing", ["trailing", "leading", "linspace"])
def test_timesteps_are_diffusers_own(spacing):
    scheduler = DDIMScheduler(**SD, timestep_spacing=spacing, steps_offset=1)
    for steps in (*range(1, 60), 64, 96, 100, 123, 250, 333, 500, 999):
        scheduler.set_timesteps(steps)
        expected = tuple(scheduler.timesteps.tolist())
        if len(expected) > steps or expected[-1] < 0:
            continue  # its own arithmetic has gone astray there
        assert spaced_timesteps(steps, spacing=spacing) == expected


def test_timesteps_that_cannot_be():
    for steps in (0, 1001):
        with pytest.raises(InputError, match="1 to 1000"):
            spaced_timesteps(steps)
    with pytest.raises(InputError, match="end at 999"):
        spaced_timesteps(1000, spacing="leading")
    assert len(spaced_timesteps(1000)) == 1000


@pytest.mark.parametrize("steps", [1, 3, 7])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_steps_are_diffusers_own(steps, prediction):
    config = {**SD, "prediction_type": prediction}
    scheduler = DDIMScheduler(
        **config, timestep_spacing="trailing", clip_sample=False, set_alpha_to_one=False
    )
    scheduler.set_timesteps(steps)
    schedule = ddim_schedule(noise_levels(config), steps)
    x = theirs = draw(2, 4, 3, 5)
    for index, time in enumerate(scheduler.timesteps):
        output = draw(2, 4, 3, 5, seed=index + 1)
        theirs = scheduler.step(output, time, theirs).prev_sample
        x = schedule.step(x, output, index)
        torch.testing.assert_close(x, theirs, rtol=1e-5, atol=1e-5)


@settings(deadline=None, max_examples=30)
@given(
    st.sampled_from(["epsilon", "v_prediction", "sample"]),
    st.lists(st.integers(1, 900), min_size=1, max_size=3),
)
def test_a_perfect_output_stands_for_what_was_there(prediction, times):
    levels = noise_levels({**SD, "prediction_type": prediction})
    count, when = len(times), torch.tensor(times)
    clean, noise = draw(count, 4, 3, 3), draw(count, 4, 3, 3, seed=1)
    noisy = levels.add_noise(clean, noise, when)
    output = levels.target(clean, noise, when)
    close = {"rtol": 1e-3, "atol": 1e-3}
    torch.testing.assert_close(levels.clean(noisy, output, when), clean, **close)
    torch.testing.assert_close(levels.noise_in(noisy, output, when), noise, **close)


def test_half_precision_is_only_the_networks():
    levels = noise_levels(mask_scheduler({**SD, "prediction_type": "v_prediction"}))
    x, output = draw(1, 4, 2, 2), draw(1, 4, 2, 2, seed=1).bfloat16()
    assert ddim_schedule(levels, 4).step(x, output, 0).dtype == torch.float32


def test_levels_that_cannot_be():
    with pytest.raises(InputError, match="some signal"):
        Levels(alphas=torch.tensor([0.9, 0.0]), prediction="epsilon")
    with pytest.raises(InputError, match="some signal"):
        mask_scheduler({**SD, "prediction_type": "epsilon", "rescale_betas_zero_snr": True})
    for wrong in ([0.5, 1.2], [-0.1, 0.2], [float("nan")]):
        with pytest.raises(InputError, match=r"\[0, 1\]"):
            Levels(alphas=torch.tensor(wrong))
    levels = noise_levels({**SD, "prediction_type": "epsilon"})
    with pytest.raises(InputError, match="from 0 to 999"):
        levels.add_noise(draw(1, 1, 1, 1), draw(1, 1, 1, 1), -1)
    with pytest.raises(InputError, match="from 0 to 999"):
        levels.add_noise(draw(2, 1, 1, 1), draw(2, 1, 1, 1), torch.tensor([0, 1000]))
    with pytest.raises(InputError, match="velocities"):
        one_step_latents(draw(1, 4, 2, 2), levels)


def test_a_masks_scheduler_is_the_models_own():
    config = mask_scheduler({**SD, "prediction_type": "v_prediction", "clip_sample": True})
    scheduler = DDIMScheduler.from_config(config)
    assert scheduler.config["timestep_spacing"] == "trailing"
    assert not scheduler.config["clip_sample"]
    assert scheduler.alphas_cumprod[-1] == 0
    plain = noise_levels(mask_scheduler({**SD, "prediction_type": "epsilon"}))
    assert plain.alphas[-1].item() == pytest.approx(0.0046601, rel=1e-4)
