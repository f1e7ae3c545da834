"""The state of a run on disk, so that one that was stopped anywhere goes on where it was."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffuseg.eval.hungarian import SegmentCounts
from diffuseg.eval.metrics import ConfusionMatrix
from diffuseg.journal import extend_journal, read_journal, write_journal

Counts = ConfusionMatrix | SegmentCounts
"""What is counted of images: of named pixels, or of segments without names."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ImageScore:
    """What is kept of one image: its counts and how long it took."""

    index: int
    counts: Counts
    seconds: float


class RunState:
    """Scores by image, appended to a file as they come.

    The first line holds a hash of the settings; every other line one image. A line that was cut
    off by a crash is dropped, and a file of other settings is started anew.

    Args:
        path: The file; None keeps everything in memory.
        settings: All that the scores depend on, plain JSON values.
        empty: Without counts; it says how to count.

    Raises:
        InputError: The file cannot be written.
    """

    def __init__(self, path: Path | None, settings: Mapping[str, object], empty: Counts) -> None:
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

    def total(self) -> Counts:
        """Return the counts of all images; integers, so their order makes no difference."""
        return add_up((one.counts for one in self.scores.values()), self._empty)

    def _parse(self, row: Mapping[str, Any]) -> ImageScore:
        return ImageScore(
            index=row["index"], counts=self._empty.with_row(row), seconds=row["seconds"]
        )


def add_up(parts: Iterable[Counts], empty: Counts) -> Counts:
    """Return the counts of all parts, each of the kind of `empty`, together."""
    total: Any = empty
    for part in parts:
        total = total + part
    return total


def _row(score: ImageScore) -> dict[str, object]:
    return {"index": score.index, **score.counts.row(), "seconds": round(score.seconds, 6)}
