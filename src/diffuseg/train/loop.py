"""The training loop of the companions: AdamW or Muon, warm-up, cosine decay, averages, resume."""

import copy
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from diffuseg.train.checkpoint import load_checkpoint, save_checkpoint
from diffuseg.train.data import Progress
from diffuseg.train.log import TrainLog
from diffuseg.train.muon import Muon

_SAVE_EVERY = 100
_LAYER = re.compile(r"\.(layers|h)\.\d")  # the latter are those of GPT-2
_Model = TypeVar("_Model", bound=nn.Module)


@runtime_checkable
class Schedule(Protocol):
    """The numbers of a recipe that the loop reads."""

    @property
    def steps(self) -> int: ...
    @property
    def learning_rate(self) -> float: ...
    @property
    def warmup(self) -> int: ...
    @property
    def weight_decay(self) -> float: ...
    @property
    def ema(self) -> float: ...


def learning_rate(schedule: Schedule, step: int) -> float:
    """The rate of a step counted from 0: linear warm-up, then half a cosine down to a hundredth.

    Example:
        >>> from diffuseg.train.recipe import ClipRecipe
        >>> settings = ClipRecipe(steps=100, warmup=10, learning_rate=1.0)
        >>> [round(learning_rate(settings, step), 2) for step in (0, 9, 55, 99)]
        [0.1, 1.0, 0.51, 0.01]
    """
    if step < schedule.warmup:
        return schedule.learning_rate * (step + 1) / schedule.warmup
    share = (step - schedule.warmup) / max(schedule.steps - schedule.warmup, 1)
    return schedule.learning_rate * (0.01 + 0.99 * (1 + math.cos(math.pi * share)) / 2)


def turn_layers(factor: float) -> Callable[[str], float]:
    """For `train_steps`: Muon for what the layers of a transformer hold, AdamW for the rest.

    Example:
        >>> turn = turn_layers(20.0)
        >>> turn("tower.encoder.layers.0.mlp.fc1.weight"), turn("projection.weight")
        (20.0, 0.0)
    """
    return lambda name: factor if _LAYER.search(name) else 0.0


def train_steps(
    model: _Model,
    schedule: Schedule,
    losses: Callable[[_Model, int], Mapping[str, Float[Tensor, ""]]],
    *,
    checkpoint: Path,
    log: TrainLog,
    progress: Progress | None = None,
    slow: Callable[[str], float] = lambda name: 1.0,
    turn: Callable[[str], float] | None = None,
) -> _Model:
    """Train `model` (or go on with it) and return its moving average, frozen.

    Args:
        model: On its device; the checkpoint, if there is one, is loaded into it.
        schedule: Steps, rates and averaging.
        losses: The named losses of (model, step); their sum is descended, and every draw must be a
            pure function of the step.
        checkpoint: Where the state is kept; its stem names the stage in the log.
        log: The journal.
        progress: Told (done, total) after every step.
        slow: Factor on the learning rate, by parameter name.
        turn: Which matrices Muon descends, by parameter name: a further factor on their learning
            rate, 0 for those that stay with AdamW. Everything stays with it when None.
    """
    average = copy.deepcopy(model).requires_grad_(False)
    groups, betas = _groups(model, schedule, slow, turn), (0.9, 0.98)
    optimizer = (
        torch.optim.AdamW(groups, betas=betas) if turn is None else Muon(groups, betas=betas)
    )
    modules = {"model": model, "average": average}
    step = 0
    if checkpoint.exists():
        step = int(str(load_checkpoint(checkpoint, modules, optimizer)["step"]))
    model.train()
    while step < schedule.steps:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(schedule, step) * group["factor"]
        parts = losses(model, step)
        loss = torch.stack(list(parts.values())).sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
        follow_weights(average, model, min(schedule.ema, (1 + step) / (10 + step)))
        log.write(checkpoint.stem, step, **{name: part.item() for name, part in parts.items()})
        if progress is not None:
            progress(step, schedule.steps)
        if step % _SAVE_EVERY == 0 or step == schedule.steps:
            save_checkpoint(checkpoint, modules, optimizer, {"step": step})
    return average.eval()


def _groups(
    model: nn.Module,
    schedule: Schedule,
    slow: Callable[[str], float],
    turn: Callable[[str], float] | None,
) -> list[dict[str, Any]]:
    """Matrices decay; gains, biases, tokens and the temperature do not."""
    groups: dict[tuple[float, float, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        decay = schedule.weight_decay if parameter.ndim > 1 else 0.0
        turned = turn(name) if turn is not None and parameter.ndim == 2 else 0.0
        factor = slow(name) * (turned or 1.0)
        groups.setdefault((decay, factor, turned > 0), []).append(parameter)
    return [
        {"params": parameters, "weight_decay": decay, "factor": factor, "orthogonal": turned}
        for (decay, factor, turned), parameters in groups.items()
    ]


@torch.no_grad()
def follow_weights(average: nn.Module, model: nn.Module, decay: float) -> None:
    """Move the exponential average of the weights one step towards the model's."""
    for ours, theirs in zip(average.parameters(), model.parameters(), strict=True):
        ours.lerp_(theirs, 1 - decay)
    for ours, theirs in zip(average.buffers(), model.buffers(), strict=True):
        ours.copy_(theirs)  # running statistics are averages already
