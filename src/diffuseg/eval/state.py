"""The state of a run on disk, so that one that was stopped anywhere goes on where it was."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from diffuseg.eval.metrics import ConfusionMatrix
from diffuseg.journal import extend_journal, read_journal, write_journal


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ImageScore:
    """What is kept of one image: its counts and how long it took."""

    index: int
    matrix: ConfusionMatrix
    seconds: float


class RunState:
    """Scores by image, appended to a file as they come.

    The first line holds a hash of the settings; every other line one image. A line that was cut
    off by a crash is dropped, and a file of other settings is started anew.

    Args:
        path: The file; None keeps everything in memory.
        settings: All that the scores depend on, plain JSON values.
        empty: A matrix without counts, which says how to count.

    Raises:
        InputError: The file cannot be written.
    """

    def __init__(
        self, path: Path | None, settings: Mapping[str, object], empty: ConfusionMatrix
    ) -> None:
        self.path = path
        self.scores: dict[int, ImageScore] = {}
        self._empty = empty
        text = json.dumps(settings, sort_keys=True, default=str)
        self._key = hashlib.sha256(text.encode()).hexdigest()
        if path is None:
            return
        rows = read_journal(path)
        if not rows or rows[0].get("settings") != self._key:
            rows = [{"settings": self._key}]
        for row in rows[1:]:
            one = self._parse(row)
            self.scores[one.index] = one
        write_journal(path, rows)

    def add(self, scores: Sequence[ImageScore]) -> None:
        """Keep the scores of images that are not there yet."""
        new = [one for one in scores if one.index not in self.scores]
        self.scores |= {one.index: one for one in new}
        if self.path is not None and new:
            extend_journal(self.path, map(_row, new))

    def total(self) -> ConfusionMatrix:
        """Return the counts of all images; integers, so their order makes no difference."""
        return sum((one.matrix for one in self.scores.values()), self._empty)

    def _parse(self, row: Mapping[str, Any]) -> ImageScore:
        matrix = self._empty + self._empty
        for truth, predicted, count in row["counts"]:
            matrix.counts[truth, predicted] = count
        for truth, count in row["missed"]:
            matrix.missed[truth] = count
        matrix.n_images = 1
        return ImageScore(index=row["index"], matrix=matrix, seconds=row["seconds"])


def _row(score: ImageScore) -> dict[str, object]:
    counts = score.matrix.counts
    return {
        "index": score.index,
        "counts": [[int(g), int(p), int(counts[g, p])] for g, p in np.argwhere(counts)],
        "missed": [[int(g), int(n)] for g, n in enumerate(score.matrix.missed) if n],
        "seconds": round(score.seconds, 6),
    }
