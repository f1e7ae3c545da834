"""Muon: the momentum of matrices made orthogonal before it is followed, AdamW for everything else.

K. Jordan and others, Muon: an optimizer for hidden layers in neural networks, 2024. PyTorch has it
from 2.9 on, for matrices only; here it shares one optimizer, so one checkpoint, with the rest.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

_QUINTIC = (3.4445, -4.7750, 2.0315)  # the author's; drives singular values to about 1
_ROUNDS = 5


class Muon(torch.optim.Optimizer):
    """Descends groups with "orthogonal" by Muon and the others by AdamW.

    Args:
        groups: Each with "params", "weight_decay" and "orthogonal"; "lr" is set before every step.
        betas: Of AdamW.
        momentum: Of Muon, Nesterov's kind.

    Example:
        >>> weight = torch.nn.Parameter(torch.eye(2))
        >>> group = {"params": [weight], "weight_decay": 0.0, "orthogonal": True, "lr": 0.5}
        >>> weight.grad = torch.tensor([[0.0, 1e-3], [-1e-3, 0.0]])
        >>> Muon([group]).step()
        >>> [round(abs(value), 1) for value in (torch.eye(2) - weight.detach()).flatten().tolist()]
        [0.0, 0.6, 0.6, 0.0]
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        *,
        betas: tuple[float, float] = (0.9, 0.98),
        momentum: float = 0.95,
    ) -> None:
        super().__init__(groups, {"lr": 0.0, "betas": betas, "momentum": momentum, "eps": 1e-8})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """Move every parameter that has a gradient; returns what `closure` does."""
        loss = closure() if closure is not None else None
        for group in self.param_groups:
            follow = self._follow_orthogonal if group["orthogonal"] else self._follow_adam
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    follow(parameter, parameter.grad, group)
        return loss

    def _follow_orthogonal(self, weight: Tensor, slope: Tensor, group: dict[str, Any]) -> None:
        state = self.state[weight]
        if not state:
            state["mean"] = torch.zeros_like(weight)
        mean = state["mean"].lerp_(slope, 1 - group["momentum"])
        rows, columns = weight.shape
        size = group["lr"] * math.sqrt(max(1.0, rows / columns))
        weight.add_(orthogonalize(slope.lerp(mean, group["momentum"])), alpha=-size)

    def _follow_adam(self, weight: Tensor, slope: Tensor, group: dict[str, Any]) -> None:
        state = self.state[weight]
        if not state:
            state |= {"mean": torch.zeros_like(weight), "square": torch.zeros_like(weight)}
            state["step"] = torch.zeros(())
        state["step"] += 1
        count, (slow, slower) = state["step"].item(), group["betas"]
        mean = state["mean"].lerp_(slope, 1 - slow)
        square = state["square"].lerp_(slope.square(), 1 - slower)
        scale = (square / (1 - slower**count)).sqrt_().add_(group["eps"])
        weight.addcdiv_(mean, scale, value=-group["lr"] / (1 - slow**count))


def orthogonalize(matrix: Float[Tensor, "r c"]) -> Float[Tensor, "r c"]:
    """About the nearest matrix whose singular values are all 1 (they end between 0.7 and 1.2)."""
    tall = matrix.shape[0] > matrix.shape[1]
    found = (matrix.T if tall else matrix).bfloat16()
    found = found / (found.norm() + 1e-7)
    first, third, fifth = _QUINTIC
    for _ in range(_ROUNDS):
        gram = found @ found.T
        found = first * found + (third * gram + fifth * gram @ gram) @ found
    return (found.T if tall else found).to(matrix.dtype)
