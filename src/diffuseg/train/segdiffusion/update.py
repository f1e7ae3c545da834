"""One update of what learns: batches through the networks, gradients, a step, the average."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from diffuseg.methods.segdiffusion.training import rate_factor
from diffuseg.train.segdiffusion.batches import MaskBatch
from diffuseg.train.segdiffusion.recipe import SegRecipe
from diffuseg.train.segdiffusion.step import Learned, MaskLearner

if TYPE_CHECKING:
    from accelerate import Accelerator

_BINS = 10


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Update:
    """What one update found.

    Attributes:
        loss: Mean of all processes and parts.
        norm: Of the gradient, before it is clipped.
        done: Whether weights changed; not where either is no number.
        empty: Parts without any pixel that is known, on this process.
        values: For the log; of errors those of this process.
    """

    loss: float
    norm: float
    done: bool
    empty: int
    values: Mapping[str, float | None]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Updater:
    """What learns, and how.

    Attributes:
        network: As it is called: on several processes the one that joins gradients.
        learned: The parameters that learn, by name.
        average: Their moving average.
        optimizer: Descends.
        learner: From batches to losses.
        recipe: The numbers.
        accelerator: Knows the processes.
        parts: Batches an update, on each process.
    """

    network: nn.Module
    learned: Mapping[str, nn.Parameter]
    average: Mapping[str, Tensor]
    optimizer: torch.optim.Optimizer
    learner: MaskLearner
    recipe: SegRecipe
    accelerator: "Accelerator"
    parts: int

    def __call__(self, step: int, draw: Callable[[int], MaskBatch]) -> Update:
        """Do one update.

        Args:
            step: Its number, from 0.
            draw: Gives the batch of a part.
        """
        recipe = self.recipe
        rate = recipe.rate * rate_factor(
            step + 1, total=recipe.steps, final=recipe.final, warmup=recipe.warmup
        )
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        batches, found = [], []
        for part in range(self.parts):
            batches.append(draw(part))
            found.append(self._descend(batches[-1], last=part == self.parts - 1))
        losses = torch.stack([one.loss.detach() for one in found]).mean()
        norm = torch.nn.utils.clip_grad_norm_(self.learned.values(), recipe.clip).item()
        loss = self._mean(losses)
        done = math.isfinite(loss) and math.isfinite(norm)
        decay = min(recipe.ema, (1 + step) / (10 + step))
        if done:
            self.optimizer.step()
            self._follow(1 - decay)
        values = {"loss": loss, "gradient": norm, "rate": rate, "ema": decay}
        return Update(
            loss=loss,
            norm=norm,
            done=done,
            empty=sum(one.valid == 0 for one in found),
            values=values | self._errors(batches, found),
        )

    def _descend(self, batch: MaskBatch, *, last: bool) -> Learned:
        # Gradients of processes are joined once an update.
        apart = nullcontext() if last else self.accelerator.no_sync(self.network)
        half = torch.autocast(
            self.accelerator.device.type, torch.bfloat16, enabled=self.recipe.precision == "bf16"
        )
        with apart:
            with half:
                found = self.learner(batch)
            self.accelerator.backward(found.loss / self.parts)
        return found

    def _mean(self, value: Tensor) -> float:
        if self.accelerator.num_processes == 1:
            return value.item()
        return torch.as_tensor(self.accelerator.reduce(value, reduction="mean")).item()

    @torch.no_grad()
    def _follow(self, share: float) -> None:
        for name, value in self.learned.items():
            self.average[name].lerp_(value, share)

    def _errors(self, batches: list[MaskBatch], found: list[Learned]) -> dict[str, float | None]:
        errors = torch.cat([one.errors for one in found]).float().cpu()
        present = torch.cat([one.present for one in found]).cpu()
        times = torch.cat([one.timesteps for one in batches])
        total = len(self.learner.levels)
        values = {"present": _mean(errors[present]), "absent": _mean(errors[~present])}
        if not self.learner.end_to_end:
            bins = times * _BINS // total
            values |= {f"t{one}": _mean(errors[bins == one]) for one in range(_BINS)}
            strengths = self.recipe.pyramid.strengths(times, total)
            values["strength"] = torch.as_tensor(strengths).float().mean().item()
        values["valid"] = sum(one.valid for one in found) / len(found)
        return values

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Let the network have its averaged weights for a while."""
        held = {name: value.detach().clone() for name, value in self.learned.items()}
        try:
            self._put(self.average)
            yield
        finally:
            self._put(held)

    @torch.no_grad()
    def _put(self, values: Mapping[str, Tensor]) -> None:
        for name, value in self.learned.items():
            value.copy_(values[name])


def _mean(values: Tensor) -> float | None:
    return values.mean().item() if len(values) else None
