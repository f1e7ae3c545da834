"""The noise levels masks are denoised with, from a model's own.

diffusers computes them in single precision, and a model has to be sampled with the very numbers it
was trained with: where no signal is left at the end, those of the first levels differ by more than
rounding.
"""

from collections.abc import Mapping
from typing import cast

from diffuseg.errors import InputError
from diffuseg.methods.segdiffusion.schedule import Levels, Output


def noise_levels(config: Mapping[str, object]) -> Levels:
    """Noise levels as diffusers has them.

    Args:
        config: Of a scheduler.

    Raises:
        InputError: Noise is predicted where no signal is left.

    Example:
        >>> levels = noise_levels({"beta_schedule": "scaled_linear", "beta_start": 0.00085,
        ...                        "beta_end": 0.012, "prediction_type": "v_prediction"})
        >>> len(levels), round(levels.alphas[999].item(), 7)
        (1000, 0.0046601)
    """
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    kept = _kept(config)
    kept["rescale_betas_zero_snr"] = bool(config.get("rescale_betas_zero_snr"))
    scheduler = cast(DDIMScheduler, DDIMScheduler.from_config(kept))
    prediction = cast(Output, scheduler.config["prediction_type"])
    return Levels(alphas=scheduler.alphas_cumprod, prediction=prediction)


def mask_scheduler(config: Mapping[str, object]) -> dict[str, object]:
    """The configuration of the scheduler that masks are denoised with, from the model's own.

    DDIM with trailing timesteps, the model's noise levels and what its output means; where that is
    not the noise, the last level is left no signal, so that masks begin where training ends.

    Args:
        config: Of the model.

    Raises:
        InputError: Noise is predicted where no signal is left.

    Example:
        >>> config = mask_scheduler({"prediction_type": "v_prediction", "beta_end": 0.012})
        >>> config["timestep_spacing"], config["rescale_betas_zero_snr"], config["beta_end"]
        ('trailing', True, 0.012)
    """
    epsilon = config.get("prediction_type", "epsilon") == "epsilon"
    if epsilon and config.get("rescale_betas_zero_snr"):
        raise InputError(
            "a model that predicts noise must have some signal left at every timestep",
            got="rescale_betas_zero_snr=true with prediction_type='epsilon'",
            remedy="turn it off in the scheduler's configuration",
        )
    return {
        **_kept(config),
        "_class_name": "DDIMScheduler",
        "timestep_spacing": "trailing",
        "rescale_betas_zero_snr": not epsilon,
        "clip_sample": False,
        "set_alpha_to_one": False,
        "steps_offset": 1,
        "thresholding": False,
    }


_LEVELS = (
    *("num_train_timesteps", "beta_schedule", "beta_start", "beta_end", "trained_betas"),
    "prediction_type",
)


def _kept(config: Mapping[str, object]) -> dict[str, object]:
    return {name: config[name] for name in _LEVELS if name in config}
