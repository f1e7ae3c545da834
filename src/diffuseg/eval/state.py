"""The state of a run on disk, so that one that was stopped anywhere goes on where it was."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from diffuseg.errors import InputError
from diffuseg.eval.metrics import ConfusionMatrix


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
        lines = _complete_lines(path)
        try:
            if lines and json.loads(lines[0]).get("settings") == self._key:
                self._read(lines[1:])
                path.write_text("".join(f"{line}\n" for line in lines))
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(json.dumps({"settings": self._key}) + "\n")
        except OSError as error:
            raise InputError(
                "the report folder must be writable",
                got=f"{path}: {error.strerror or error}",
                remedy="choose a folder you may write to",
            ) from error

    def add(self, scores: Sequence[ImageScore]) -> None:
        """Keep the scores of images that are not there yet."""
        new = [one for one in scores if one.index not in self.scores]
        self.scores |= {one.index: one for one in new}
        if self.path is not None and new:
            with self.path.open("a") as file:
                file.write("".join(_line(one) for one in new))

    def total(self) -> ConfusionMatrix:
        """Return the counts of all images; integers, so their order makes no difference."""
        return sum((one.matrix for one in self.scores.values()), self._empty)

    def _read(self, lines: Sequence[str]) -> None:
        for line in lines:
            row = json.loads(line)
            matrix = self._empty + self._empty
            for truth, predicted, count in row["counts"]:
                matrix.counts[truth, predicted] = count
            for truth, count in row["missed"]:
                matrix.missed[truth] = count
            matrix.n_images = 1
            self.scores[row["index"]] = ImageScore(
                index=row["index"], matrix=matrix, seconds=row["seconds"]
            )


def _line(score: ImageScore) -> str:
    counts = score.matrix.counts
    cells = np.argwhere(counts)
    row = {
        "index": score.index,
        "counts": [[int(g), int(p), int(counts[g, p])] for g, p in cells],
        "missed": [[int(g), int(n)] for g, n in enumerate(score.matrix.missed) if n],
        "seconds": round(score.seconds, 6),
    }
    return json.dumps(row) + "\n"


def _complete_lines(path: Path) -> list[str]:
    """The lines of the file up to the first that is not whole."""
    if not path.is_file():
        return []
    lines: list[str] = []
    for line in path.read_text(errors="replace").split("\n")[:-1]:
        try:
            if not isinstance(json.loads(line), dict):
                break
        except ValueError:
            break
        lines.append(line)
    return lines
