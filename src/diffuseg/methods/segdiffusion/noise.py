"""Noise of several resolutions, which masks are trained with, and the noise they begin from.

A pyramid of normal noise enlarged to one size, the coarser the weaker; with annealing it is white
where a mask is hardly noisy and a pyramid where there is little else. As in Marigold (Ke et al.
2023, arXiv 2312.02145), from whose code every draw can be repeated bit for bit.
"""

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from diffuseg.errors import InputError

Strategy = Literal["original", "every_layer", "power_of_two", "random_step"]
"""How much smaller a level is than the one before.

"original": by a number r from 2 to 4 to the power of the level, counted from 0, so that the first
is as large as the whole. "power_of_two": the same with r = 2. "random_step": by r. "every_layer":
by 2, until the shorter side is 1.
"""
Norm = Literal["sample", "batch", "none"]
Shape = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pyramid:
    """What was drawn: normal noise of several sizes, the largest first.

    Attributes:
        base: Of the size of the latents.
        levels: What is enlarged and added.
        factors: The divisor each level was found with, r.
    """

    base: Float[Tensor, "b c h w"]
    levels: tuple[Float[Tensor, "b c _h _w"], ...]
    factors: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PyramidNoise:
    """The noise of training.

    Attributes:
        strength: Weight of a level against the one before, k.
        anneal: Whether it falls with the timestep, k t / T, to white noise at 0.
        strategy: How levels shrink.
        levels: Most levels there may be; 0: white noise.
        norm: What is brought to a standard deviation of 1: every "sample", the "batch" as a whole
            (as the references do; where timesteps differ, samples are then scaled wrongly), or
            "none".

    Raises:
        InputError: A number is out of range.

    Example:
        >>> times, generator = torch.tensor([0, 999]), torch.Generator().manual_seed(0)
        >>> noise = PyramidNoise().draw((2, 4, 8, 8), times, generator=generator)
        >>> [round(one, 3) for one in noise.std((1, 2, 3)).tolist()]
        [1.0, 1.0]
    """

    strength: float = 0.9
    anneal: bool = True
    strategy: Strategy = "original"
    levels: int = 10
    norm: Norm = "sample"

    def __post_init__(self) -> None:
        if not (math.isfinite(self.strength) and self.strength >= 0 and self.levels >= 0):
            raise InputError(
                "strength and levels must be numbers of 0 or more",
                got=f"strength {self.strength}, levels {self.levels}",
                remedy="the paper's ancestor has 0.9 and 10",
            )

    def strengths(self, timesteps: Int[Tensor, " b"], total: int = 1000) -> Float[Tensor, " b"]:
        """Strength of every sample's pyramid.

        Args:
            timesteps: Of the samples, from 0.
            total: How many there are.
        """
        if not self.anneal:
            return torch.full(timesteps.shape, self.strength)
        return self.strength * (timesteps.cpu().float() / total)

    def draw(
        self,
        shape: Shape,
        timesteps: Int[Tensor, " b"],
        *,
        total: int = 1000,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "b c h w"]:
        """Draw noise of a shape, on the CPU.

        Args:
            shape: Samples, channels, height and width.
            timesteps: Of the samples.
            total: How many there are.
            generator: Where chance comes from.
        """
        drawn = draw_pyramid(shape, strategy=self.strategy, levels=self.levels, generator=generator)
        return compose(drawn, self.strengths(timesteps, total), norm=self.norm)


MULTIRES = PyramidNoise(anneal=False)
"""Of several resolutions at every timestep."""
WHITE = PyramidNoise(levels=0, norm="none")
"""Of one: what diffusion models are trained with otherwise."""
LEGACY = PyramidNoise(strength=0.3, anneal=False, levels=6, norm="batch")
"""What the published code does, against its paper."""


def level_sizes(
    hw: tuple[int, int], factors: Sequence[float], strategy: Strategy = "original"
) -> list[tuple[int, int]]:
    """The sizes of the levels that divisors lead to; none follows one with a side of 1.

    Args:
        hw: Height and width of the latents.
        factors: One a level, r.
        strategy: How levels shrink.

    Example:
        >>> level_sizes((12, 16), [2.0, 2.0, 2.0], "power_of_two")
        [(12, 16), (6, 8), (1, 2)]
    """
    sizes: list[tuple[int, int]] = []
    for index, factor in enumerate(factors):
        hw = _shrunk(hw, torch.tensor([factor]), index, strategy)
        sizes.append(hw)
        if 1 in hw and strategy != "every_layer":
            break
    return sizes


def draw_pyramid(
    shape: Shape,
    *,
    strategy: Strategy = "original",
    levels: int = 10,
    generator: torch.Generator | None = None,
) -> Pyramid:
    """Draw the parts of a pyramid, on the CPU: the base, then of every level its divisor and noise.

    Args:
        shape: Samples, channels, height and width.
        strategy: How levels shrink. One divisor serves the whole batch.
        levels: At most; with "every_layer" there are as many as fit.
        generator: Where chance comes from.

    Raises:
        InputError: A side is not positive.

    Example:
        >>> drawn = draw_pyramid((1, 4, 8, 8), strategy="every_layer")
        >>> [tuple(level.shape[2:]) for level in drawn.levels]
        [(4, 4), (2, 2), (1, 1)]
    """
    if min(shape) < 1:
        raise InputError(
            "noise must have samples, channels, a height and a width",
            got=shape,
            remedy="give (b, c, h, w)",
        )
    base = torch.randn(shape, generator=generator)
    drawn = list(_draw_levels(shape, strategy, levels, generator))
    return Pyramid(
        base=base,
        levels=tuple(level for _, level in drawn),
        factors=tuple(factor for factor, _ in drawn),
    )


def _draw_levels(
    shape: Shape, strategy: Strategy, levels: int, generator: torch.Generator | None
) -> Iterator[tuple[float, Tensor]]:
    hw = shape[2:]
    if strategy == "every_layer":
        levels = min(levels, int(math.log2(min(hw))))
    for index in range(levels):
        factor = torch.tensor([2.0])
        if strategy in ("original", "random_step"):
            factor = torch.rand(1, generator=generator) * 2 + 2
        hw = _shrunk(hw, factor, index, strategy)
        yield factor.item(), torch.randn((*shape[:2], *hw), generator=generator)
        if 1 in hw and strategy != "every_layer":
            return


def _shrunk(
    hw: tuple[int, int], factor: Float[Tensor, "1"], index: int, strategy: Strategy
) -> tuple[int, int]:
    # Divided in single precision, as the draws of the references are.
    divisor = factor**index if strategy in ("original", "power_of_two") else factor
    height, width = (max(1, int(side / divisor)) for side in hw)
    return height, width


def compose(
    drawn: Pyramid, strength: Float[Tensor, " b"], *, norm: Norm = "sample"
) -> Float[Tensor, "b c h w"]:
    """Add up a pyramid, every level weighted by the strength to the power of its number.

    The mean is left as it is: coarse levels shift whole channels, and are meant to. Of strength 0
    only the first level remains beside the base, and the sum is white.

    Args:
        drawn: The parts.
        strength: Of every sample.
        norm: What is brought to a standard deviation of 1.

    Raises:
        InputError: There is a single number a sample, which has no deviation.

    Example:
        >>> drawn = Pyramid(base=torch.tensor([[[[1.0, -1.0]]]]), levels=(), factors=())
        >>> compose(drawn, torch.ones(1)).tolist()
        [[[[0.7071067690849304, -0.7071067690849304]]]]
    """
    noise, hw = drawn.base.clone(), drawn.base.shape[2:]
    weight = strength.to(noise).view(-1, 1, 1, 1)
    for index, level in enumerate(drawn.levels):
        enlarged = F.interpolate(level, size=hw, mode="bilinear", align_corners=False)
        noise += enlarged * weight**index
    if norm == "none":
        return noise
    if noise[0].numel() < 2:
        raise InputError(
            "a sample must have two numbers or more to be brought to a deviation of 1",
            got=tuple(noise.shape),
            remedy='take larger latents, or norm="none"',
        )
    return noise / (noise.std() if norm == "batch" else noise.std((1, 2, 3), keepdim=True))


def start_noise(
    shape: tuple[int, int, int], *, seed: int, picture: str, runs: int = 1
) -> Float[Tensor, "n c h w"]:
    """What masks begin from: white noise that depends on the picture and the run alone.

    All classes of a run begin from the same, so which others are asked for changes nothing.

    Args:
        shape: Channels, height and width of the latents.
        seed: Chosen by the user.
        picture: What tells the picture from others.
        runs: How many.

    Example:
        >>> one = start_noise((4, 2, 2), seed=0, picture="a", runs=1)
        >>> torch.equal(start_noise((4, 2, 2), seed=0, picture="a", runs=3)[:1], one)
        True
    """
    drawn = []
    for run in range(runs):
        digest = hashlib.sha256(f"{seed}\n{run}\n{picture}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
        drawn.append(torch.randn(shape, generator=generator))
    return torch.stack(drawn)
