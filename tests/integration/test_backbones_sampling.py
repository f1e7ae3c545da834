"""Noise levels, one call of the U-Net and sampling, against diffusers' own pipelines."""

import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_euler_ancestral_discrete import (
    EulerAncestralDiscreteScheduler,
)

from diffuseg.backbones import TextEmbedding, load, seeded_noise
from diffuseg.backbones.sampling import cumulative_alphas
from diffuseg.errors import InputError, WeightsError
from support.refusal import refused


def reference(pipe, prompts, *, seeds, **options) -> torch.Tensor:
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return pipe(list(prompts), generator=generators, output_type="pt", **options).images


def test_noise_levels_are_the_scheduler_s(models, pipes, kind):
    latents, noise = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    for timestep in (0, 1, 300, 999):
        expected = pipes[kind].scheduler.add_noise(latents, noise, torch.tensor([timestep]))
        noisy = models[kind].add_noise(latents, timestep, noise)
        torch.testing.assert_close(noisy, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "config",
    [
        {"beta_schedule": "linear"},
        {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
        {"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 50},
        {"trained_betas": [0.1, 0.2, 0.3], "num_train_timesteps": 3},
        {"beta_schedule": "scaled_linear", "rescale_betas_zero_snr": True},
    ],
)
def test_every_schedule_agrees_with_diffusers(config):
    expected = DDIMScheduler(**config).alphas_cumprod
    torch.testing.assert_close(cumulative_alphas(config), expected, rtol=2e-5, atol=1e-7)


def test_an_unknown_schedule_is_refused():
    with pytest.raises(WeightsError, match="linear, scaled_linear or squaredcos_cap_v2"):
        cumulative_alphas({"beta_schedule": "sigmoid"})


@pytest.mark.parametrize("timestep", [-1, 1000, 2.5, True, None])
def test_a_timestep_outside_the_schedule_is_refused(models, timestep):
    latents = torch.zeros(1, 4, 8, 8)
    with refused("whole number from 0 to 999"):
        models["sd15"].add_noise(latents, timestep, latents)
    with refused("whole number from 0 to 999"):
        models["sd15"].denoise(latents, timestep, models["sd15"].embed(""))


def test_denoise_is_the_u_net_s_own_output(models, pipes, kind):
    model = models[kind]
    latents = torch.randn(1, 4, 8, 12, generator=torch.Generator().manual_seed(0))
    text = model.embed("a dog")
    extra = None
    if kind == "sdxl":
        sizes = torch.tensor([[64.0, 96.0, 0.0, 0.0, 64.0, 96.0]])
        extra = {"text_embeds": text.pooled, "time_ids": sizes}
    with torch.no_grad():
        expected = pipes[kind].unet(
            latents, 50, encoder_hidden_states=text.vectors, added_cond_kwargs=extra
        )
    assert torch.equal(model.denoise(latents, 50, text), expected.sample)


def test_one_picture_meets_many_prompts_and_the_other_way_round(models, kind):
    model = models[kind]
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    text = model.embed(["a dog", "a cat"])
    pairs = [model.denoise(latents[row : row + 1], 50, text[row : row + 1]) for row in (0, 1)]
    torch.testing.assert_close(model.denoise(latents, 50, text), torch.cat(pairs))
    broad = model.denoise(latents[:1], 50, text)
    torch.testing.assert_close(broad[0], pairs[0][0])
    torch.testing.assert_close(model.denoise(latents, 50, text[1:])[1], pairs[1][0])
    with pytest.raises(InputError, match="as many, or one of either"):
        model.denoise(latents, 50, TextEmbedding.concat([text, text[:1]]))


def test_both_predictions_tell_noise_and_picture_apart(models, kind):
    model = models[kind]
    clean, noise = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    noisy = model.add_noise(clean, 400, noise)
    signal = model.alphas[400].sqrt()
    rest = (1 - model.alphas[400]).sqrt()
    perfect = noise if model.prediction == "epsilon" else signal * noise - rest * clean
    torch.testing.assert_close(model.predict_x0(noisy, 400, perfect), clean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        model.predict_epsilon(noisy, 400, perfect), noise, rtol=1e-4, atol=1e-5
    )


def test_predictions_agree_with_the_scheduler(models, pipes, kind):
    output, noisy = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    driver = DDIMScheduler.from_config(pipes[kind].scheduler.config, clip_sample=False)
    driver.set_timesteps(1000)
    expected = driver.step(output, 400, noisy).pred_original_sample
    torch.testing.assert_close(
        models[kind].predict_x0(noisy, 400, output), expected, rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("negative", ["", "red sky"])
def test_sampling_is_the_pipeline_s(models, pipes, kind, negative):
    drawn = models[kind].sample(
        ["a dog", "a red car"], steps=3, guidance=5.0, negative=negative, seed=7
    )
    expected = reference(
        pipes[kind],
        ["a dog", "a red car"],
        seeds=(7, 8),
        num_inference_steps=3,
        guidance_scale=5.0,
        negative_prompt=[negative] * 2 if negative else None,
    )
    assert torch.equal(drawn, expected)


def test_sampling_takes_any_scheduler_and_size(models, pipes, kind):
    pipe, model = pipes[kind], models[kind]
    own = pipe.scheduler
    options = {"num_inference_steps": 3, "guidance_scale": 1.0, "height": 64, "width": 96}
    for name, made in (
        ("DPMSolverMultistepScheduler", DPMSolverMultistepScheduler),
        # Draws noise at every step.
        ("EulerAncestralDiscrete", EulerAncestralDiscreteScheduler),
    ):
        pipe.scheduler = made.from_config(own.config)
        expected = reference(pipe, ["a dog"], seeds=(3,), **options)
        drawn = model.sample("a dog", steps=3, guidance=1.0, seed=3, hw=(64, 96), scheduler=name)
        assert drawn.shape == (1, 3, 64, 96)
        assert torch.equal(drawn, expected), name
    pipe.scheduler = own


def test_a_scheduler_of_the_user_s_own_is_left_alone(models):
    mine = DPMSolverMultistepScheduler.from_config(models["sd15"].scheduler, use_karras_sigmas=True)
    drawn = models["sd15"].sample("a dog", steps=3, scheduler=mine)
    again = models["sd15"].sample("a dog", steps=3, scheduler=mine)
    assert torch.equal(drawn, again)
    assert mine.num_inference_steps is None
    plain = models["sd15"].sample("a dog", steps=3, scheduler="DPMSolverMultistep")
    assert not torch.equal(drawn, plain)


def test_an_image_depends_on_its_own_seed_alone(models):
    model = models["sd15"]
    both = model.sample(["a dog", "a dog"], steps=2, seed=[5, 9])
    torch.testing.assert_close(model.sample("a dog", steps=2, seed=9), both[1:])
    assert not torch.allclose(both[0], both[1])


def test_every_step_is_reported_and_can_be_watched(models):
    seen, batches = [], []
    model = models["sd15"]
    handle = model.unet.register_forward_hook(
        lambda module, args, output: batches.append(output[0].shape[0])
    )
    try:
        model.sample(
            ["a dog"],
            steps=3,
            scheduler="DDIM",
            on_step=lambda index, timestep, latents: seen.append((index, timestep, latents.shape)),
        )
        model.sample(["a dog"], steps=2, scheduler="DDIM", guidance=1.0)
    finally:
        handle.remove()
    assert seen == [(0, 667, (1, 4, 8, 8)), (1, 334, (1, 4, 8, 8)), (2, 1, (1, 4, 8, 8))]
    assert batches == [2, 2, 2, 1, 1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scheduler": "DPMSolver++"}, "name of a diffusers scheduler"),
        ({"scheduler": 3}, "name of a diffusers scheduler"),
        ({"scheduler": "StableDiffusionPipeline"}, "name of a diffusers scheduler"),
        ({"steps": 0}, "steps must be a whole number above 0"),
        ({"steps": 2.5}, "steps must be a whole number above 0"),
        ({"seed": -1}, "a seed must be"),
        ({"seed": [1, 2]}, "a seed must be"),
        ({"seed": 1.5}, "a seed must be"),
        ({"seed": 2**63}, "a seed must be"),
    ],
)
def test_sampling_refuses_what_makes_no_sense(models, options, message):
    with refused(message):
        models["sd15"].sample("a dog", **({"steps": 1} | options))


def test_noise_is_the_same_wherever_a_row_stands():
    noise = seeded_noise((4, 8, 8), 3, count=3)
    assert torch.equal(noise[2:], seeded_noise((4, 8, 8), 5))
    assert torch.equal(noise[0], torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(3)))
    assert torch.equal(noise[[0, 2]], seeded_noise((4, 8, 8), [3, 5], count=2))


def test_an_empty_negative_prompt_is_zeros_for_sdxl_unless_told_otherwise(models):
    from dataclasses import replace

    tower = models["sdxl"].tower
    assert not tower.negative("", 1).vectors.any()
    assert not tower.negative("", 1).pooled.any()
    told = replace(tower, zero_negative=False)
    assert torch.equal(told.negative("", 1).vectors, told.embed([""]).vectors)
    assert torch.equal(tower.negative("sky", 1).vectors, tower.embed(["sky"]).vectors)


def test_half_precision_samples_from_the_same_noise(homes, models):
    small = load(homes["sd15"], device="cpu", dtype="bf16")
    drawn = small.sample("a dog", steps=2, seed=1, guidance=2.0)
    torch.testing.assert_close(
        drawn, models["sd15"].sample("a dog", steps=2, seed=1, guidance=2.0), rtol=0.1, atol=0.1
    )
