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
    """What is kept of one image.

    Attributes:
        index: Of the image in its data set.
        row: Its counts as `Counts.row` has them; few are not 0, so thousands of images are small.
        seconds: How long it took.
        parameters: The method's settings as they were used; kept with a run's first image only.
    """

    index: int
    row: Mapping[str, Any]
    seconds: float
    parameters: Mapping[str, object] | None = None

    @classmethod
    def of(
        cls,
        index: int,
        counts: Counts,
        seconds: float,
        parameters: Mapping[str, object] | None = None,
    ) -> "ImageScore":
        """Return the score of an image from its counts; seconds as a file keeps them."""
        return cls(index=index, row=counts.row(), seconds=round(seconds, 6), parameters=parameters)


class RunState:
    """Scores by image, appended to a file as they come.

    The first line holds a hash of the settings; every other line one image. A line that was cut
    off by a crash is dropped, and a file of other settings is started anew.

    Args:
        path: The file; None keeps everything in memory.
        settings: All that the scores depend on, plain JSON values.
        empty: Without counts; it says how to count.
        facts: What has to be known to make a report of the file alone, plain JSON values.

    Raises:
        InputError: The file cannot be written.
    """

    def __init__(
        self,
        path: Path | None,
        settings: Mapping[str, object],
        empty: Counts,
        facts: Mapping[str, object] | None = None,
    ) -> None:
        self.path = path
        self.scores: dict[int, ImageScore] = {}
        self._empty = empty
        text = json.dumps(settings, sort_keys=True, default=str)
        self.key = hashlib.sha256(text.encode()).hexdigest()
        if path is None:
            return
        head, self.scores = read_scores(path)
        if head.get("settings") != self.key:
            self.scores = {}
        write_scores(path, self.key, facts, self.scores.values())

    def add(self, scores: Sequence[ImageScore]) -> None:
        """Keep the scores of images that are not there yet."""
        new = [one for one in scores if one.index not in self.scores]
        self.scores |= {one.index: one for one in new}
        if self.path is not None and new:
            extend_journal(self.path, map(_row, new))

    def counts(self, index: int) -> Counts:
        """Return the counts of one image."""
        return self._empty.with_row(self.scores[index].row)

    def total(self) -> Counts:
        """Return the counts of all images; integers, so their order makes no difference."""
        return add_up(self.scores.values(), self._empty)


def read_scores(path: Path) -> tuple[Mapping[str, Any], dict[int, ImageScore]]:
    """Return the first line of a run's file and the scores of its images; {} if there is none."""
    rows: list[Mapping[str, Any]] = list(read_journal(path))
    if not rows or "settings" not in rows[0]:
        return {}, {}
    scores = {}
    for row in rows[1:]:
        held = dict(row)
        one = ImageScore(
            index=held.pop("index"),
            seconds=held.pop("seconds"),
            parameters=held.pop("parameters", None),
            row=held,
        )
        scores[one.index] = one
    return rows[0], scores


def write_scores(
    path: Path, key: str, facts: Mapping[str, object] | None, scores: Iterable[ImageScore]
) -> None:
    """Write a run's file anew, as a whole."""
    head = {"settings": key} | ({} if facts is None else {"facts": facts})
    write_journal(path, [head, *map(_row, scores)])


def add_up(scores: Iterable[ImageScore], empty: Counts) -> Counts:
    """Return the counts of all images, each of the kind of `empty`, together."""
    total: Any = empty
    for one in scores:
        total = total.with_row(one.row)
    return total


def _row(score: ImageScore) -> dict[str, object]:
    held = {} if score.parameters is None else {"parameters": score.parameters}
    return {"index": score.index, **score.row, "seconds": score.seconds, **held}
