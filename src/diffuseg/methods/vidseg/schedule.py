"""Noise levels, Euler steps and guidance of Stable Diffusion and Stable Video Diffusion.

The Euler sampler of "Elucidating the Design Space of Diffusion-Based Generative Models" (Karras et
al. 2022, arXiv 2206.00364) without churn. Latents carry their noise unscaled: x = z + sigma n.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from diffuseg.errors import InputError

Output = Literal["epsilon", "v_prediction"]

# The training noise of Stable Diffusion: beta from the first to the last, linear in its root.
_BETAS, _LEVELS = (0.00085, 0.012), 1000
# Of Stable Video Diffusion's sampling.
_SIGMAS, _RHO = (0.002, 700.0), 7.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Schedule:
    """Noise levels from the strongest to none.

    Attributes:
        sigmas: Standard deviation of the noise before every step, and 0 after the last.
        times: What the network is told of each step: the timestep of Stable Diffusion, ln(sigma)/4
            of Stable Video Diffusion.
        prediction: What the network's output means.
    """

    sigmas: Float[Tensor, " s1"]
    times: Float[Tensor, " s"]
    prediction: Output = "epsilon"

    @property
    def steps(self) -> int:
        """How many there are."""
        return len(self.times)

    def time(self, index: int) -> int | float:
        """What the network is told of a step: a whole number where it is one.

        Raises:
            InputError: There is no such step.
        """
        self.check(index)
        number = float(self.times[index])
        return int(number) if number.is_integer() else number

    def add_noise(
        self, latents: Float[Tensor, "f c h w"], noise: Float[Tensor, "#f c h w"], index: int
    ) -> Float[Tensor, "f c h w"]:
        """Latents as they are before a step.

        Raises:
            InputError: There is no such step.
        """
        self.check(index)
        return latents + float(self.sigmas[index]) * noise.to(latents)

    def scaled(self, x: Float[Tensor, "r c h w"], index: int) -> Float[Tensor, "r c h w"]:
        """Noisy latents as the network wants to see them, of variance one."""
        return x / self._deviation(index)

    def denoised(
        self, x: Float[Tensor, "r c h w"], output: Float[Tensor, "r c h w"], index: int
    ) -> Float[Tensor, "r c h w"]:
        """The clean latents that the network's output stands for; `x` is not scaled."""
        sigma, deviation = float(self.sigmas[index]), self._deviation(index)
        if self.prediction == "epsilon":
            return x - sigma * output
        return x / deviation**2 - sigma / deviation * output

    def check(self, index: int) -> None:
        """Make sure that there is a step.

        Raises:
            InputError: There is none of that number.
        """
        if not 0 <= index < self.steps:
            raise InputError(
                f"a step must be a number from 0 to {self.steps - 1}",
                got=index,
                remedy="steps count from 0, the strongest noise; choose a later or earlier one",
            )

    def _deviation(self, index: int) -> float:
        return float((self.sigmas[index].double() ** 2 + 1).sqrt())


def sd_schedule(
    steps: int = 25,
    *,
    alphas: Float[Tensor, " n"] | None = None,
    prediction: Output = "epsilon",
) -> Schedule:
    """Noise levels of Stable Diffusion: equally spaced timesteps that start at the last.

    Args:
        steps: From noise to nothing.
        alphas: Share of signal left at every timestep; Stable Diffusion's own by default.
        prediction: What the network's output means.

    Raises:
        InputError: There are more steps than timesteps, or none.

    Example:
        >>> schedule = sd_schedule(25)
        >>> schedule.time(22), round(float(schedule.sigmas[22]), 4), float(schedule.sigmas[25])
        (119, 0.3866, 0.0)
    """
    if alphas is None:
        first, last = (beta**0.5 for beta in _BETAS)
        betas = torch.linspace(first, last, _LEVELS, dtype=torch.float64) ** 2
        alphas = (1 - betas).cumprod(0)
    levels = len(alphas)
    _check_steps(steps, levels)
    # In whole numbers: the spacing is no fraction that floats can hold.
    times = torch.tensor([(levels - 1) * (steps - one) // steps for one in range(steps)])
    kept = alphas.detach().cpu().double()[times]
    return Schedule(
        sigmas=_ended(((1 - kept) / kept).sqrt()), times=times.float(), prediction=prediction
    )


def svd_schedule(steps: int = 25) -> Schedule:
    """Noise levels of Stable Video Diffusion: the seventh roots equally spaced, 700 to 0.002.

    Raises:
        InputError: There are fewer than two steps.

    Example:
        >>> [round(one, 3) for one in svd_schedule(25).sigmas[[0, 17, 25]].tolist()]
        [700.0, 1.273, 0.0]
    """
    _check_steps(steps, least=2)
    low, high = (sigma ** (1 / _RHO) for sigma in _SIGMAS)
    # Single precision throughout, as the model is sampled by its authors.
    sigmas = (high + torch.linspace(0, 1, steps) * (low - high)) ** _RHO
    return Schedule(sigmas=_ended(sigmas), times=sigmas.log() / 4, prediction="v_prediction")


def _ended(sigmas: Tensor) -> Float[Tensor, " s1"]:
    return torch.cat([sigmas.float(), torch.zeros(1)])


def _check_steps(steps: int, most: int | None = None, least: int = 1) -> None:
    if steps < least or (most is not None and steps > most):
        raise InputError(
            f"steps must be {least} or more" + (f", at most {most}" if most else ""),
            got=steps,
            remedy="the paper takes 25",
        )


def euler_step(
    x: Float[Tensor, "r c h w"],
    denoised: Float[Tensor, "r c h w"],
    schedule: Schedule,
    index: int,
) -> Float[Tensor, "r c h w"]:
    """Latents after a step, given what they would be without noise.

    Example:
        >>> euler_step(torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1, 1), sd_schedule(25), 24).item()
        0.0
    """
    now, then = float(schedule.sigmas[index]), float(schedule.sigmas[index + 1])
    return x + (then - now) * ((x - denoised) / now)


def guidance_scales(frames: int, scale: float | tuple[float, float]) -> Float[Tensor, " f"]:
    """How far each frame is guided: equally, or from a first scale to a last.

    Args:
        frames: Of the batch.
        scale: One number (Stable Diffusion, 5), or two (Stable Video Diffusion, 1 and 2.5).

    Example:
        >>> guidance_scales(4, (1.0, 2.5)).tolist()
        [1.0, 1.5, 2.0, 2.5]
    """
    first, last = scale if isinstance(scale, tuple) else (scale, scale)
    return torch.linspace(first, last, frames)


def guide(
    without: Float[Tensor, "r c h w"],
    along: Float[Tensor, "r c h w"],
    scales: Float[Tensor, " r"],
) -> Float[Tensor, "r c h w"]:
    """Denoised latents led from the unconditional ones past the conditional ones.

    Example:
        >>> guide(torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1), torch.tensor([5.0])).item()
        5.0
    """
    return without + scales.to(without).view(-1, 1, 1, 1) * (along - without)
