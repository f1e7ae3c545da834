"""A training log: means over windows of steps, as JSON lines and for TensorBoard."""

import json
import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

log = logging.getLogger(__name__)


class TrainLog:
    """Collects losses and writes their mean every `every` steps.

    A line of JSON is appended to `path`, and a point is added to the curves in the folder
    `tensorboard` beside it, if that package is installed (the extra `train`):
    `tensorboard --logdir FOLDER` shows them. A resumed run goes on with the same curves.
    """

    def __init__(self, path: Path, *, every: int = 50) -> None:
        self.path = path
        self.every = every
        self._sums: dict[str, float] = {}
        self._count = 0
        self._curves: SummaryWriter | None = None
        path.parent.mkdir(parents=True, exist_ok=True)

    def write(self, stage: str, step: int, **values: float) -> None:
        """Add one step's values; a line is written when `step` completes a window."""
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        self._count += 1
        if step % self.every == 0:
            means = {name: round(total / self._count, 5) for name, total in self._sums.items()}
            row = {"stage": stage, "step": step, "time": round(time.time(), 1), **means}
            with self.path.open("a") as file:
                file.write(json.dumps(row) + "\n")
            self._draw(stage, step, means)
            self._sums, self._count = {}, 0

    def _draw(self, stage: str, step: int, means: dict[str, float]) -> None:
        if self._curves is None:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                log.debug("no curves: pip install 'diffuseg[train]' for TensorBoard")
                return
            self._curves = SummaryWriter(self.path.parent / "tensorboard")
        for name, value in means.items():
            self._curves.add_scalar(f"{stage}/{name}", value, step)
        self._curves.flush()
