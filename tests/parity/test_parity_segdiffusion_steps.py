"""Seg-diffusion's steps on tensors against what the references' own functions put out."""

import json
import re

import numpy as np
import pytest
import torch

from diffuseg.methods.segdiffusion.ensemble import Moments, pool_runs
from diffuseg.methods.segdiffusion.noise import (
    LEGACY,
    Pyramid,
    PyramidNoise,
    compose,
    draw_pyramid,
    level_sizes,
)
from diffuseg.methods.segdiffusion.schedule import Levels, ddim_schedule, spaced_timesteps
from diffuseg.methods.segdiffusion.training import rate_factor
from diffuseg.segdiffusion.levels import mask_scheduler, noise_levels
from diffuseg.segdiffusion.surgery import widen_kernels


def tensor(array):
    return torch.from_numpy(array)


def config_of(golden, name):
    return json.loads(bytes(golden[name]))


def cases(golden, prefix):
    return sorted(name.removeprefix(prefix) for name in golden.arrays if name.startswith(prefix))


def pyramid_of(golden, case=""):
    found = sorted(
        (name for name in golden.arrays if re.fullmatch(rf"in_level\d+{re.escape(case)}", name)),
        key=lambda name: int(re.findall(r"\d+", name)[0]),
    )
    return Pyramid(
        base=tensor(golden[f"in_base{case}"]),
        levels=tuple(tensor(golden[name]) for name in found),
        factors=tuple(golden[f"in_r{case}"].tolist()),
    )


@pytest.mark.golden("segdiffusion_noise_pyramid")
def test_noise_pyramid(golden):
    shape = tuple(golden["param_shape"].tolist())
    for case in cases(golden, "in_base."):
        strategy = "original" if case == "legacy" else case.split(".")[0]
        drawn, strength = pyramid_of(golden, f".{case}"), tensor(golden[f"in_strength.{case}"])
        sizes = level_sizes(shape[2:], drawn.factors, strategy)
        golden.check(f"out_sizes.{case}", sizes)
        golden.check(f"out_noise_batchnorm.{case}", compose(drawn, strength, norm="batch"),
                     atol=2e-6)  # fmt: skip
        if case == "legacy":
            assert golden.scalar("param_max_levels.legacy") == LEGACY.levels
            np.testing.assert_allclose(strength, LEGACY.strength, rtol=1e-6)
            continue
        golden.check(f"out_noise_samplenorm.{case}", compose(drawn, strength), atol=2e-6)
        # The same draws, in the same order.
        generator = torch.Generator().manual_seed(golden.scalar(f"param_seed.{case}"))
        most = golden.scalar("param_max_levels")
        ours = draw_pyramid(shape, strategy=strategy, levels=most, generator=generator)
        golden.check(f"in_base.{case}", ours.base)
        golden.check(f"in_r.{case}", ours.factors, rtol=1e-6)
        for number, level in enumerate(ours.levels):
            golden.check(f"in_level{number}.{case}", level)
        assert len(ours.levels) == len(drawn.levels)


_KINDS = {
    "v_zsnr": {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True},
    "v": {"prediction_type": "v_prediction"},
    "eps": {"prediction_type": "epsilon"},
}
_SD2 = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


@pytest.mark.golden("segdiffusion_noise_anneal")
def test_noise_anneal(golden):
    times, total = tensor(golden["in_t"]), golden.scalar("param_T")
    strengths = [
        PyramidNoise(strength=k).strengths(times, total) for k in golden["param_k"].tolist()
    ]
    golden.check("out_strength", torch.stack(strengths), atol=1e-6)
    latents, noise = tensor(golden["in_latent"]), tensor(golden["in_noise"])
    for case in cases(golden, "out_noisy."):
        levels = noise_levels({**_SD2, "num_train_timesteps": total, **_KINDS[case]})
        golden.check(f"out_noisy.{case}", levels.add_noise(latents, noise, times), atol=1e-6)
        velocity = Levels(alphas=levels.alphas, prediction="v_prediction")
        golden.check(f"out_velocity.{case}", velocity.target(latents, noise, times), atol=1e-6)


@pytest.mark.golden("segdiffusion_schedule")
def test_schedule(golden):
    config = config_of(golden, "param_config_sd2")
    for case in cases(golden, "out_alphas_cumprod."):
        levels = noise_levels({**config, **_KINDS[case]})
        golden.check(f"out_alphas_cumprod.{case}", levels.alphas, atol=1e-6)
        golden.check(f"out_final_alpha.{case}", [ddim_schedule(levels, 1).final], atol=1e-6)
    # What a model is given before it is trained has the same levels.
    fitted = noise_levels(mask_scheduler(config))
    golden.check("out_alphas_cumprod.v_zsnr", fitted.alphas, atol=1e-6)
    for case in cases(golden, "out_timesteps."):
        spacing, steps = case.split(".")
        found = spaced_timesteps(
            int(steps),
            levels=config["num_train_timesteps"],
            spacing=spacing,
            offset=config["steps_offset"],
        )
        golden.check(f"out_timesteps.{case}", found)


def schedule_of(config):
    levels = noise_levels(config)
    return ddim_schedule(
        levels,
        config["steps"],
        spacing=config["timestep_spacing"],
        offset=config["steps_offset"],
        final=1.0 if config["set_alpha_to_one"] else None,
    )


@pytest.mark.golden("segdiffusion_ddim")
def test_ddim(golden):
    for case in cases(golden, "in_z."):
        config = config_of(golden, f"param_cfg.{case}")
        schedule, x = schedule_of(config), tensor(golden[f"in_z.{case}"])
        golden.check(f"out_timesteps.{case}", schedule.timesteps)
        path, clean = [], []
        for index, output in enumerate(tensor(golden[f"in_model_out.{case}"])):
            clean.append(schedule.levels.clean(x, output, schedule.timesteps[index]))
            x = schedule.step(x, output, index)
            path.append(x)
        close = 1e-4 if config["prediction_type"] == "epsilon" else 1e-5
        golden.check(f"out_x0.{case}", torch.stack(clean), atol=close)
        golden.check(f"out_traj.{case}", torch.stack(path), atol=close)


@pytest.mark.golden("segdiffusion_ensemble")
def test_ensemble(golden):
    for case in cases(golden, "in_preds."):
        runs = tensor(golden[f"in_preds.{case}"])
        if case == "legacy":
            pooled = pool_runs(runs, "legacy")
            golden.check("out_pred.legacy", pooled.share, atol=1e-6)
            golden.check("out_unc.legacy", pooled.uncertainty, atol=1e-6)
            continue
        moments = Moments()
        for run in runs:
            moments.add(run)
        found = {"mean": [pool_runs(runs), moments.pooled()], "median": [pool_runs(runs, "median")]}
        for name, several in found.items():
            for pooled in several:
                golden.check(f"out_{name}.{case}", pooled.share[None], atol=1e-6)
                if (unsure := f"out_unc_{name}.{case}") in golden:
                    assert pooled.uncertainty is not None
                    golden.check(unsure, pooled.uncertainty[None], atol=1e-6)
                else:
                    assert pooled.uncertainty is None


@pytest.mark.golden("segdiffusion_conv_in")
def test_conv_in(golden):
    weight = widen_kernels(tensor(golden["in_weight"]))
    golden.check("out_weight", weight)
    golden.check("out_in_channels", weight.shape[1])
    bias = tensor(golden["in_bias"])
    golden.check("out_bias", bias)  # it stays
    picture, mask = tensor(golden["in_image_latent"]), tensor(golden["in_target_latent"])

    def convolved(x):
        return torch.nn.functional.conv2d(x, weight, bias, padding=1)

    golden.check("out_forward", convolved(torch.cat([picture, mask], 1)), atol=2e-6)
    same = convolved(torch.cat([picture, picture], 1))
    golden.check("out_forward_same", same, atol=2e-6)
    golden.check("in_forward_old", same, atol=2e-6)


@pytest.mark.golden("segdiffusion_lr")
def test_learning_rate(golden):
    settings = {
        "total": golden.scalar("param_total"),
        "final": golden.scalar("param_final_ratio"),
        "warmup": golden.scalar("param_warmup"),
    }
    found = [rate_factor(step, **settings) for step in golden["in_iter"].tolist()]
    golden.check("out_factor", found, rtol=1e-6)
