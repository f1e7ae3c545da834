"""Noise levels of masks, what a network is trained to say of them, and DDIM's way back.

The sampler of "Denoising Diffusion Implicit Models" (Song et al. 2020, arXiv 2010.02502) without
noise of its own; why its timesteps must begin at the last is in Lin et al. (arXiv 2305.08891).
Everything is computed in single precision or better, whatever the network's is.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from diffuseg.errors import InputError

Output = Literal["epsilon", "v_prediction", "sample"]
Spacing = Literal["trailing", "leading", "linspace"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Levels:
    """The noise levels of a model, by timestep, and what its network's output means.

    Attributes:
        alphas: Share of signal left at every timestep (alpha-bar), on the CPU.
        prediction: What the output means: the noise, the velocity, or the clean latents.

    Raises:
        InputError: Shares are not in [0, 1], or noise is predicted where no signal is left, so that
            the clean latents cannot be told from it.

    Example:
        >>> levels = Levels(alphas=torch.tensor([0.64, 0.0]), prediction="v_prediction")
        >>> clean, noise = torch.full((1, 1, 1, 1), 2.0), torch.ones(1, 1, 1, 1)
        >>> round(levels.add_noise(clean, noise, 0).item(), 4)  # 0.8 * 2 + 0.6 * 1
        2.2
    """

    alphas: Float[Tensor, " s"]
    prediction: Output = "v_prediction"

    def __post_init__(self) -> None:
        low, high = self.alphas.min().item(), self.alphas.max().item()
        if not (low >= 0 and high <= 1):
            raise InputError(
                "shares of signal must lie in [0, 1]",
                got=f"{low:.4g} to {high:.4g}",
                remedy="give the cumulative products of 1 - beta",
            )
        if low == 0 and self.prediction == "epsilon":
            raise InputError(
                "a model that predicts noise must have some signal left at every timestep",
                got="a schedule that ends without any (rescale_betas_zero_snr)",
                remedy="turn that off in the scheduler's configuration, or predict velocities",
            )

    def __len__(self) -> int:
        return len(self.alphas)

    def add_noise(
        self,
        latents: Float[Tensor, "b c h w"],
        noise: Float[Tensor, "b c h w"],
        timesteps: int | Int[Tensor, " b"],
    ) -> Float[Tensor, "b c h w"]:
        """Latents at noise levels, one for all or one a row.

        Raises:
            InputError: There is no such timestep.
        """
        signal, rest = self._parts(timesteps, latents)
        return signal * latents.float() + rest * noise.float()

    def target(
        self,
        latents: Float[Tensor, "b c h w"],
        noise: Float[Tensor, "b c h w"],
        timesteps: int | Int[Tensor, " b"],
    ) -> Float[Tensor, "b c h w"]:
        """What the network is to put out where these latents carry this noise.

        Raises:
            InputError: There is no such timestep.
        """
        if self.prediction == "epsilon":
            return noise.float()
        if self.prediction == "sample":
            return latents.float()
        signal, rest = self._parts(timesteps, latents)
        return signal * noise.float() - rest * latents.float()

    def clean(
        self,
        x: Float[Tensor, "b c h w"],
        output: Float[Tensor, "b c h w"],
        timesteps: int | Int[Tensor, " b"],
    ) -> Float[Tensor, "b c h w"]:
        """The clean latents that an output stands for.

        Raises:
            InputError: There is no such timestep.
        """
        signal, rest = self._parts(timesteps, x)
        x, output = x.float(), output.float()
        if self.prediction == "sample":
            return output
        if self.prediction == "v_prediction":
            return signal * x - rest * output
        return (x - rest * output) / signal

    def noise_in(
        self,
        x: Float[Tensor, "b c h w"],
        output: Float[Tensor, "b c h w"],
        timesteps: int | Int[Tensor, " b"],
    ) -> Float[Tensor, "b c h w"]:
        """The noise that an output stands for.

        Raises:
            InputError: There is no such timestep.
        """
        signal, rest = self._parts(timesteps, x)
        x, output = x.float(), output.float()
        if self.prediction == "epsilon":
            return output
        if self.prediction == "v_prediction":
            return signal * output + rest * x
        return (x - signal * output) / rest

    def _parts(
        self, timesteps: int | Tensor, like: Tensor
    ) -> tuple[Float[Tensor, "_b 1 1 1"], Float[Tensor, "_b 1 1 1"]]:
        """Roots of the shares of signal and of noise."""
        asked = torch.as_tensor(timesteps).reshape(-1).cpu()
        if len(asked) and not 0 <= int(asked.min()) <= int(asked.max()) < len(self):
            raise InputError(
                f"a timestep must be a whole number from 0 to {len(self) - 1}",
                got=asked.tolist(),
                remedy="choose one in that range; small ones add little noise",
            )
        kept = self.alphas.cpu()[asked].double().view(-1, 1, 1, 1)
        device = like.device
        return kept.sqrt().float().to(device), (1 - kept).sqrt().float().to(device)


def spaced_timesteps(
    steps: int, *, levels: int = 1000, spacing: Spacing = "trailing", offset: int = 1
) -> tuple[int, ...]:
    """The timesteps a network is asked at, the noisiest first.

    Args:
        steps: How many.
        levels: Of the model.
        spacing: "trailing": from the last one down, as latents begin as nothing but noise.
            "leading": from the first one up, which the reference does: few steps then never see the
            last levels. "linspace": from the last to the first.
        offset: Added with "leading".

    Raises:
        InputError: There are fewer timesteps than that, or none is asked for.

    Example:
        >>> spaced_timesteps(4), spaced_timesteps(4, spacing="leading")
        ((999, 749, 499, 249), (751, 501, 251, 1))
    """
    if not 1 <= steps <= levels:
        raise InputError(
            f"steps must be 1 to {levels}", got=steps, remedy="4 are quick, 10 are enough"
        )
    # In NumPy's floats, whose roundings diffusers has too.
    if spacing == "trailing":
        times = np.round(np.arange(levels, 0, -levels / steps))[:steps] - 1
    elif spacing == "leading":
        times = (np.arange(steps) * (levels // steps))[::-1] + offset
    else:
        times = np.linspace(0, levels - 1, steps).round()[::-1]
    if times.max() >= levels:
        raise InputError(
            f"timesteps must end at {levels - 1}",
            got=f"{steps} leading ones behind {offset} end at {int(times.max())}",
            remedy="take fewer steps, or trailing ones",
        )
    return tuple(int(time) for time in times)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Schedule:
    """Steps from noise to a mask.

    Attributes:
        levels: Of the model.
        timesteps: At which its network is asked.
        stride: By how much the timestep falls in a step. This need not be what the next of
            `timesteps` has, where steps do not divide levels.
        final: Share of signal after the last step.

    Example:
        >>> schedule = ddim_schedule(Levels(alphas=torch.tensor([0.9, 0.5])), 1)
        >>> x, output = torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1)
        >>> schedule.timesteps, round(schedule.step(x, output, 0).item(), 4)
        ((1,), -0.4472)
    """

    levels: Levels
    timesteps: tuple[int, ...]
    stride: int
    final: float

    def step(
        self, x: Float[Tensor, "b c h w"], output: Float[Tensor, "b c h w"], index: int
    ) -> Float[Tensor, "b c h w"]:
        """Latents after a step, by its number from 0."""
        now = self.timesteps[index]
        then = now - self.stride
        kept = float(self.levels.alphas[then].double()) if then >= 0 else self.final
        clean = self.levels.clean(x, output, now)
        return kept**0.5 * clean + (1 - kept) ** 0.5 * self.levels.noise_in(x, output, now)


def ddim_schedule(
    levels: Levels,
    steps: int,
    *,
    spacing: Spacing = "trailing",
    offset: int = 1,
    final: float | None = None,
) -> Schedule:
    """Return the steps of DDIM without noise.

    Args:
        levels: Of the model.
        steps: How many.
        spacing: As for `spaced_timesteps`, like `offset`.
        offset: Added with "leading".
        final: Share of signal after the last step; by default that of timestep 0, as Stable
            Diffusion has it.

    Raises:
        InputError: As `spaced_timesteps`.
    """
    return Schedule(
        levels=levels,
        timesteps=spaced_timesteps(steps, levels=len(levels), spacing=spacing, offset=offset),
        stride=len(levels) // steps,
        final=float(levels.alphas[0].double()) if final is None else final,
    )


def one_step_latents(output: Float[Tensor, "b c h w"], levels: Levels) -> Float[Tensor, "b c h w"]:
    """The clean latents of a network that was shown zeros instead of noise, at the last timestep.

    What is trained end to end (Garcia et al. 2024, arXiv 2409.11355).

    Raises:
        InputError: The network predicts noise, of which zeros have none: what it says would be
            multiplied by some 15, or divided by 0.

    Example:
        >>> levels = Levels(alphas=torch.tensor([0.9, 0.0]))
        >>> one_step_latents(torch.ones(1, 1, 1, 1), levels).item()
        -1.0
    """
    if levels.prediction == "epsilon":
        raise InputError(
            "a model must predict velocities or clean latents to segment from zeros",
            got="one that predicts noise",
            remedy='train it with prediction="v_prediction" first, or begin at noise',
        )
    return levels.clean(torch.zeros_like(output), output, len(levels) - 1)
