"""A training log: means over windows of steps, as JSON lines and for TensorBoard."""

import logging
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import UInt8

from diffuseg.journal import extend_journal, read_journal, write_journal

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

log = logging.getLogger(__name__)


class TrainLog:
    """Collects losses and writes their mean every `every` steps.

    A line of JSON is appended to `path`, and a point is added to the curves in the folder
    `tensorboard` beside it, if that package is installed (the extra `train`):
    `tensorboard --logdir FOLDER` shows them. A resumed run goes on with the same curves.

    Args:
        path: The file of lines.
        every: Steps in a line.
        digits: What means are rounded to; None: as they are.
    """

    def __init__(self, path: Path, *, every: int = 50, digits: int | None = 5) -> None:
        self.path = path
        self.every = every
        self.digits = digits
        self._sums: dict[str, float] = {}
        self._counts: dict[str, int] = {}
        self._after: int | None = None
        self._curves: SummaryWriter | None = None
        path.parent.mkdir(parents=True, exist_ok=True)

    def rewind(self, step: int) -> None:
        """Forget the lines after a step: the run is taken up there, and writes them again."""
        rows = [row for row in read_journal(self.path) if int(str(row["step"])) <= step]
        if self.path.is_file():
            write_journal(self.path, rows)
        self._after = step

    def write(self, stage: str, step: int, **values: float | None) -> None:
        """Add one step's values; a line is written when `step` completes a window.

        A value that is None, or no finite number, does not count; a name without any stands in the
        line as null.
        """
        for name, value in values.items():
            known = value is not None and math.isfinite(value)
            self._sums[name] = self._sums.get(name, 0.0) + (value if known and value else 0.0)
            self._counts[name] = self._counts.get(name, 0) + known
        if step % self.every == 0:
            means = {name: self._mean(name) for name in self._sums}
            row = {"stage": stage, "step": step, "time": round(time.time(), 1), **means}
            extend_journal(self.path, [row])
            self._draw(stage, step, means)
            self._sums, self._counts = {}, {}

    def show(self, stage: str, step: int, picture: UInt8[np.ndarray, "h w 3"]) -> None:
        """Put a picture beside the curves, where they are drawn."""
        curves = self._open()
        if curves is not None:
            curves.add_image(stage, picture, step, dataformats="HWC")
            curves.flush()

    def _mean(self, name: str) -> float | None:
        if not self._counts[name]:
            return None
        mean = self._sums[name] / self._counts[name]
        return mean if self.digits is None else round(mean, self.digits)

    def _draw(self, stage: str, step: int, means: Mapping[str, float | None]) -> None:
        curves = self._open()
        if curves is None:
            return
        for name, value in means.items():
            if value is not None:
                curves.add_scalar(f"{stage}/{name}", value, step)
        curves.flush()

    def _open(self) -> "SummaryWriter | None":
        if self._curves is None:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                log.debug("no curves: pip install 'diffuseg[train]' for TensorBoard")
                return None
            purge = None if self._after is None else self._after + 1
            self._curves = SummaryWriter(self.path.parent / "tensorboard", purge_step=purge)
        return self._curves
