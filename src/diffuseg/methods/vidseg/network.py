"""How the loops of `denoising` call a network, whatever it is."""

from collections.abc import Callable
from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Call:
    """What the network is called for.

    Attributes:
        index: Number of the step.
        time: What the network is to be told of it, see `Schedule.times`.
        frames: Of the batch; which one each row of latents is.
        halves: 2: the rows are wanted twice, first unconditional, then conditional. 1: conditional
            only, as without guidance.
        clip: Frames that see each other, so many rows after each other; 1 where none do.
        modulated: Whether attention is to be the unmodulated pass's, step for step. Else this is
            that pass.
        added: What is added to the modulated layers' output, at every position of every row and in
            both halves; None: nothing.
    """

    index: int
    time: int | float
    frames: Int[Tensor, " r"]
    halves: int = 2
    clip: int = 1
    modulated: bool = False
    added: Float[Tensor, "r h w"] | None = None


Network = Callable[[Float[Tensor, "r c h w"], Call], Float[Tensor, "r2 c h w"]]
"""Scaled latents and what they are, to the network's output for `halves` times as many rows."""


class Counted:
    """A network that counts how much it is asked to do.

    Attributes:
        calls: How often it was called.
        rows: Of latents in all calls, those of both halves.

    Example:
        >>> import torch
        >>> network = Counted(lambda x, call: torch.zeros_like(x))
        >>> _ = network(torch.zeros(3, 4, 8, 8), Call(index=0, time=1, frames=torch.arange(3)))
        >>> network.calls, network.rows
        (1, 6)
    """

    def __init__(self, network: Network) -> None:
        self._network = network
        self.calls = 0
        self.rows = 0

    def __call__(self, x: Float[Tensor, "r c h w"], call: Call) -> Float[Tensor, "r2 c h w"]:
        self.calls += 1
        self.rows += call.halves * len(x)
        return self._network(x, call)
