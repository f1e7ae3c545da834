"""The noise schedule a model was trained with, and drawing images with it."""

import difflib
import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, cast, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from diffuseg.errors import InputError, WeightsError

MAX_SEED = 2**63 - 1


@runtime_checkable
class Scheduler(Protocol):
    """What sampling needs of a diffusers scheduler."""

    timesteps: Tensor
    init_noise_sigma: float | Tensor

    def set_timesteps(self, num_inference_steps: int, device: torch.device) -> None: ...
    def scale_model_input(self, sample: Tensor, timestep: Tensor) -> Tensor: ...
    def step(self, *inputs: Tensor, **options: object) -> tuple[Tensor, ...]: ...


def cumulative_alphas(config: Mapping[str, object]) -> Float[Tensor, " s"]:
    """The share of signal left at every timestep (alpha-bar), from a scheduler's configuration.

    Computed in double precision; diffusers does it in single.

    Raises:
        WeightsError: The schedule is of a kind that is not known.

    Example:
        >>> alphas = cumulative_alphas({"beta_schedule": "linear", "num_train_timesteps": 1000})
        >>> len(alphas), round(alphas[0].item(), 4)
        (1000, 0.9999)
    """
    steps = int(cast(int, config.get("num_train_timesteps", 1000)))
    start = float(cast(float, config.get("beta_start", 0.0001)))
    end = float(cast(float, config.get("beta_end", 0.02)))
    schedule = config.get("beta_schedule", "linear")
    trained = config.get("trained_betas")
    if trained is not None:
        betas = torch.tensor(trained, dtype=torch.float64)
    elif schedule == "linear":
        betas = torch.linspace(start, end, steps, dtype=torch.float64)
    elif schedule == "scaled_linear":
        betas = torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float64).square()
    elif schedule == "squaredcos_cap_v2":
        # Nichol and Dhariwal (arXiv 2102.09672), equation 17.
        at = (torch.arange(steps + 1, dtype=torch.float64) / steps + 0.008) / 1.008
        bar = (at * math.pi / 2).cos().square()
        betas = (1 - bar[1:] / bar[:-1]).clamp(max=0.999)
    else:
        raise WeightsError(
            "the model's noise schedule must be linear, scaled_linear or squaredcos_cap_v2",
            got=f"beta_schedule {schedule!r} in scheduler/scheduler_config.json",
            remedy="use a model with one of these",
        )
    bar = (1 - betas).cumprod(0)
    if config.get("rescale_betas_zero_snr"):
        # Lin et al. (arXiv 2305.08891), algorithm 1: no signal is left at the last timestep.
        root = bar.sqrt()
        bar = ((root - root[-1]) * root[0] / (root[0] - root[-1])).square()
    return bar.float()


def build_scheduler(choice: object, config: Mapping[str, object]) -> Scheduler:
    """A fresh scheduler for this model's noise schedule.

    Args:
        choice: The name of a diffusers scheduler class ("DDIMScheduler", "DDIM"), an instance whose
            settings are taken as they are, or None for the model's own.
        config: The model's scheduler configuration.

    Raises:
        InputError: There is no such scheduler.
    """
    import diffusers
    from diffusers.schedulers.scheduling_utils import SchedulerMixin

    if isinstance(choice, SchedulerMixin):
        # Sampling changes a scheduler; the caller's stays as it is.
        kind, settings = type(choice), cast(Any, choice).config
        return cast(Any, kind).from_config(settings)
    name = config.get("_class_name", "DDIMScheduler") if choice is None else choice
    for spelling in (name, f"{name}Scheduler"):
        found = getattr(diffusers, spelling, None) if isinstance(spelling, str) else None
        if isinstance(found, type) and issubclass(found, SchedulerMixin):
            return cast(Any, found).from_config(dict(config))
    known = [entry for entry in dir(diffusers) if entry.endswith("Scheduler")]
    near = difflib.get_close_matches(f"{name}", known, n=3, cutoff=0.4)
    raise InputError(
        "the scheduler must be the name of a diffusers scheduler or an instance of one",
        got=name,
        remedy=f"for example {', '.join(near or ['DDIMScheduler', 'DPMSolverMultistepScheduler'])}",
    )


def step_options(
    scheduler: Scheduler, generators: list[torch.Generator]
) -> dict[str, list[torch.Generator]]:
    """What a scheduler's step takes beside the usual: the generators, if it draws noise."""
    takes = inspect.signature(scheduler.step).parameters
    return {"generator": generators} if "generator" in takes else {}


def spread_seeds(seed: int | Sequence[int], count: int) -> list[int]:
    """One seed an image: counted up from a single one, or as many as given.

    Raises:
        InputError: A seed is no whole number from 0 to 2^63 - 1, or there are too few or too many.

    Example:
        >>> spread_seeds(7, 3), spread_seeds([1, 5], 2)
        ([7, 8, 9], [1, 5])
    """
    seeds: list[int] = []
    if isinstance(seed, int):
        seeds = [seed + index for index in range(count)]
    elif isinstance(seed, Sequence):
        seeds = list(seed)
    fine = all(isinstance(one, int) and 0 <= one <= MAX_SEED for one in seeds)
    if not fine or len(seeds) != count:
        raise InputError(
            f"a seed must be a whole number from 0 to {MAX_SEED}, or one for each of {count} rows",
            got=seed,
            remedy="for example seed=0",
        )
    return seeds


def seeded_noise(
    shape: tuple[int, int, int], seed: int | Sequence[int], count: int = 1
) -> Float[Tensor, "b c h w"]:
    """Normal noise, drawn on the CPU in single precision so that every device sees the same.

    Args:
        shape: Channels, height and width of the latents.
        seed: Of the first row, the next ones counting up; or one a row.
        count: Rows.

    Example:
        >>> torch.equal(seeded_noise((4, 2, 2), 3, count=2)[1:], seeded_noise((4, 2, 2), 4))
        True
    """
    rows = [torch.Generator().manual_seed(one) for one in spread_seeds(seed, count)]
    return torch.stack([torch.randn(shape, generator=generator) for generator in rows])
