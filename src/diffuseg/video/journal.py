"""What a run over a video has done, batch by batch, so that it goes on after being killed."""

import hashlib
import json
import os
import re
import shutil
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import PIL.Image
from jaxtyping import Integer, UInt16

from diffuseg.errors import InputError
from diffuseg.files import atomic_folder, atomic_path
from diffuseg.image import SUFFIXES
from diffuseg.labelmaps import integer_map

_ABOUT, _STATE = "run.json", "state.npz"
_BATCH = re.compile(r"(\d{6})-(\d{8})-(\d{6})")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Batch:
    folder: Path
    first: int
    n: int

    @property
    def end(self) -> int:
        return self.first + self.n


class VideoRun:
    """The batches of a run that are done, in a folder beside its output.

    A batch is there whole or not at all: its folder, with the labels of its frames as 16-bit PNG
    files, appears under its name in one step. Batches may overlap; the later one counts.

    Args:
        output: What the run will write; the folder is beside it, `.NAME.diffuseg-run`.
        key: Of everything the labels depend on, such as the settings and `source_stamp`. Batches of
            a run with another key are thrown away.
        resume: False throws away what is there whatever its key.

    Raises:
        InputError: The folder cannot be written.

    Example:
        >>> import tempfile
        >>> output = Path(tempfile.mkdtemp()) / "out.mp4"
        >>> run = VideoRun(output, key="settings")
        >>> run.keep(0, [np.zeros((2, 2), dtype=int)] * 3)
        >>> VideoRun(output, key="settings").n_frames, VideoRun(output, key="others").n_frames
        (3, 0)
    """

    def __init__(self, output: str | os.PathLike[str], *, key: str, resume: bool = True) -> None:
        target = Path(output)
        self.folder = target.with_name(f".{target.name}.diffuseg-run")
        self._batches: list[_Batch] = []
        if not resume or _read_key(self.folder) != key:
            self.discard()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _unwritable(self.folder, error) from error
        for left in self.folder.glob(".diffuseg-*"):
            # Of a batch that was being written when the run was killed.
            shutil.rmtree(left, ignore_errors=True)
        with atomic_path(self.folder / _ABOUT) as temporary:
            temporary.write_text(json.dumps({"key": key}) + "\n", encoding="utf-8")
        self._batches = _found_batches(self.folder)

    @property
    def n_batches(self) -> int:
        """Number of batches done."""
        return len(self._batches)

    @property
    def n_frames(self) -> int:
        """Number of frames done, from the first."""
        return max((batch.end for batch in self._batches), default=0)

    def keep(
        self,
        first: int,
        labels: Sequence[Integer[np.ndarray, "h w"]],
        state: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        """Keep a batch that is done.

        Args:
            first: Index of its first frame, at most `n_frames`.
            labels: Labels of its frames, 0 to 65535.
            state: What the next batch starts from. Only that of the last batch is kept.

        Raises:
            InputError: There would be a gap, the batch is empty, labels are out of range, or the
                folder cannot be written.
        """
        if not labels or not 0 <= first <= self.n_frames:
            raise InputError(
                f"the next batch must have frames, the first of them {self.n_frames} or earlier",
                got=f"{len(labels)} frames from {first}",
                remedy="keep batches in their order",
            )
        maps = [_checked(one) for one in labels]
        path = self.folder / f"{self.n_batches:06d}-{first:08d}-{len(maps):06d}"
        try:
            with atomic_folder(path) as temporary:
                for i, one in enumerate(maps, start=first):
                    PIL.Image.fromarray(one).save(temporary / f"{i:08d}.png", compress_level=1)
                if state is not None:
                    np.savez(temporary / _STATE, **state)  # type: ignore[arg-type]
        except OSError as error:
            if isinstance(error, InputError):
                raise
            raise _unwritable(self.folder, error) from error
        if self._batches:
            (self._batches[-1].folder / _STATE).unlink(missing_ok=True)
        self._batches.append(_Batch(folder=path, first=first, n=len(maps)))

    def state(self) -> dict[str, np.ndarray] | None:
        """Return what was kept with the last batch; None if nothing was, or it is damaged."""
        path = self._batches[-1].folder / _STATE if self._batches else None
        if path is None or not path.is_file():
            return None
        try:
            # numpy does not close a file it opened itself and cannot read.
            with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
                return {name: file[name] for name in file.files}
        except (OSError, ValueError, EOFError, BadZipFile, zlib.error):
            # The power went before all of it was on the disk.
            return None

    def labels(self, start: int = 0) -> Iterator[UInt16[np.ndarray, "h w"]]:
        """Yield the labels of all frames done, in order, one at a time.

        Args:
            start: Index of the first frame wanted.
        """
        for i in range(start, self.n_frames):
            batch = next(one for one in reversed(self._batches) if one.first <= i < one.end)
            with PIL.Image.open(batch.folder / f"{i:08d}.png") as picture:
                yield np.asarray(picture).astype(np.uint16)

    def discard(self) -> None:
        """Remove the folder: the output is written, or the run is not wanted any more."""
        self._batches = []
        if self.folder.is_dir():
            # Without its key a folder half removed belongs to no run.
            (self.folder / _ABOUT).unlink(missing_ok=True)
            shutil.rmtree(self.folder, ignore_errors=True)


def source_stamp(source: str | os.PathLike[str]) -> str:
    """Return a short key that changes when a video file or folder of pictures does.

    Example:
        >>> source_stamp("no-such-file") == source_stamp("no-such-file")
        True
    """
    path = Path(source)
    files = [path]
    if path.is_dir():
        # Outputs may be written there, and what a run keeps is.
        files = sorted(one for one in path.iterdir() if one.suffix.lower() in SUFFIXES)
        files = [one for one in files if not one.name.startswith(".")]
    rows: list[tuple[str, int, int]] = []
    for file in files:
        with suppress(OSError):
            held = file.stat()
            rows.append((file.name, held.st_size, held.st_mtime_ns))
    return hashlib.sha256(repr((str(source), rows)).encode()).hexdigest()[:16]


def _found_batches(folder: Path) -> list[_Batch]:
    found: list[_Batch] = []
    end = 0
    for path in sorted(folder.iterdir()):
        match = _BATCH.fullmatch(path.name)
        if match is None:
            continue
        number, first, n = (int(part) for part in match.groups())
        if number != len(found) or first > end:
            break  # somebody removed a batch: what follows it cannot be trusted
        found.append(_Batch(folder=path, first=first, n=n))
        end = max(end, first + n)
    for path in sorted(folder.iterdir()):
        if _BATCH.fullmatch(path.name) and path not in [batch.folder for batch in found]:
            shutil.rmtree(path, ignore_errors=True)
    return found


def _read_key(folder: Path) -> object:
    try:
        held = json.loads((folder / _ABOUT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return held.get("key") if isinstance(held, dict) else None


def _checked(labels: Integer[np.ndarray, "h w"]) -> UInt16[np.ndarray, "h w"]:
    held = integer_map(labels)
    if held.min() < 0 or held.max() > 65535:
        raise InputError(
            "labels must be 0 to 65535",
            got=f"{held.min()} to {held.max()}",
            remedy="mark undecided pixels with 65535",
        )
    return held.astype(np.uint16)


def _unwritable(folder: Path, error: OSError) -> InputError:
    return InputError(
        "the folder beside the output must be writable",
        got=f"{folder}: {error.strerror or error}",
        remedy="free some space, or choose another output folder",
    )
