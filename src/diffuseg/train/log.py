"""A training log: one JSON line per record, averaged over a window of steps."""

import json
import time
from pathlib import Path


class TrainLog:
    """Collects losses and appends their mean to `path` every `every` steps."""

    def __init__(self, path: Path, *, every: int = 50) -> None:
        self.path = path
        self.every = every
        self._sums: dict[str, float] = {}
        self._count = 0
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
            self._sums, self._count = {}, 0
