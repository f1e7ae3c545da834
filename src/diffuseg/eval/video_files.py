"""Finding the files of published video data sets, and saying what is missing."""

import hashlib
import json
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np
import PIL.Image
from jaxtyping import UInt8

from diffuseg.errors import InputError
from diffuseg.eval.video_datasets import VOID, Labels, Lazy, VideoSample
from diffuseg.image import SUFFIXES, read_image
from diffuseg.video.reading import natural_key


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipFiles:
    """The files of one video; a mask of None: the frame has none."""

    id: str
    pictures: tuple[Path, ...]
    masks: tuple[Path | None, ...]
    fps: Fraction
    anchor: int = 0


class FileSet:
    """What all sets of files share: their clips, and the way from a mask's values to labels."""

    name: str
    split: str
    classes: tuple[str, ...] = ()
    ignore = VOID
    note = ""
    """What has to be known beside a score."""
    _clips: list[ClipFiles]

    def __len__(self) -> int:
        return len(self._clips)

    @property
    def clips(self) -> tuple[ClipFiles, ...]:
        """The files of every video."""
        return tuple(self._clips)

    @property
    def fingerprint(self) -> str:
        """Stays the same when the folder is moved, not when it holds other files."""
        digest = hashlib.sha256()
        for clip in self._clips:
            files = [one.stat().st_size for one in (*clip.pictures, *filter(None, clip.masks))]
            places = [number for number, mask in enumerate(clip.masks) if mask is not None]
            digest.update(json.dumps([clip.id, clip.anchor, places, files]).encode())
        return digest.hexdigest()

    def read_truth(self, mask: Path) -> Labels:
        """Return the label of every pixel of a mask."""
        return self._labels(read_mask(mask))

    def __getitem__(self, index: int) -> VideoSample:
        if not 0 <= index < len(self._clips):
            raise IndexError(index)
        clip = self._clips[index]

        def truth(i: int) -> Labels | None:
            mask = clip.masks[i]
            return None if mask is None else self.read_truth(mask)

        return VideoSample(
            id=clip.id,
            frames=Lazy(len(clip.pictures), lambda i: read_image(clip.pictures[i]).pixels),
            truth=Lazy(len(clip.pictures), truth),
            fps=clip.fps,
            anchor=clip.anchor,
        )

    def _labels(self, values: UInt8[np.ndarray, "h w *c"]) -> Labels:
        return values


def matched_clip(
    name: str, pictures: Path, masks: Path, *, fps: Fraction, every: bool
) -> ClipFiles:
    """The frames of two folders, joined by their stems."""
    files = find_pictures(pictures)
    held = {file.stem: file for file in find_pictures(masks)}
    found = tuple(held.get(file.stem) for file in files)
    lacking = [file.stem for file, mask in zip(files, found, strict=True) if mask is None]
    if every and lacking:
        raise missing(
            f"every frame of {name}",
            f"no mask for {len(lacking)} of {len(files)}: {', '.join(lacking[:5])}",
            f"complete {masks}",
        )
    anchor = next((i for i, mask in enumerate(found) if mask is not None), None)
    if anchor is None:
        raise missing(f"a mask for {name}", f"none in {masks}", "extract the annotations there")
    return ClipFiles(id=name, pictures=tuple(files), masks=found, fps=fps, anchor=anchor)


def recorded_clips(pictures: Path, masks: Path, pairs: dict[str, str]) -> list[ClipFiles]:
    """CamVid's frames by recording: what stands before the last number of their names."""
    for folder, names in ((pictures, list(pairs)), (masks, list(pairs.values()))):
        lacking = [name for name in names if not (folder / name).is_file()]
        if lacking:
            raise missing(
                f"{folder.name} with every file listed",
                f"{len(lacking)} of {len(names)} missing: {', '.join(lacking[:5])}",
                f"complete {folder}",
            )
    groups: dict[str, list[str]] = {}
    for name in sorted(pairs, key=natural_key):
        groups.setdefault(recording_of(name), []).append(name)
    clips: list[ClipFiles] = []
    for recording, names in groups.items():
        numbers = [_number(name) for name in names]
        steps = [b - a for a, b in pairwise(numbers) if b > a]
        clips.append(
            ClipFiles(
                id=recording,
                pictures=tuple(pictures / name for name in names),
                masks=tuple(masks / pairs[name] for name in names),
                # The camera took 30 a second; names count them.
                fps=Fraction(30, min(steps, default=30)),
            )
        )
    need_clips(clips, pictures, "NAME_NUMBER.png")
    return clips


def recording_of(name: str) -> str:
    return Path(name).stem.rsplit("_", 1)[0]


def _number(name: str) -> int:
    digits = "".join(one for one in Path(name).stem.rsplit("_", 1)[-1] if one.isdigit())
    return int(digits or 0)


def find_pictures(folder: Path) -> list[Path]:
    files = [
        file
        for file in folder.iterdir()
        if file.suffix.lower() in SUFFIXES and not file.name.startswith(".")
    ]
    return sorted(files, key=lambda file: natural_key(file.stem))


def read_mask(path: Path) -> UInt8[np.ndarray, "h w *c"]:
    # As stored: converting to grey would replace the numbers of a palette by their brightness.
    try:
        with PIL.Image.open(path) as picture:
            values = np.asarray(picture)
    except OSError as error:
        raise InputError(
            "the mask must be a readable PNG", got=f"{path}: {error}", remedy="extract it again"
        ) from error
    return values.astype(np.uint8)


def read_lines(path: Path) -> list[str]:
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if line]


def need_folder(folder: Path, what: str, layout: str) -> Path:
    if not folder.is_dir():
        raise missing(f"{what} as published ({layout})", f"no folder {folder}", "check the path")
    return folder


def need_file(folder: Path, name: str) -> Path:
    if not (folder / name).is_file():
        near = sorted(one.name for one in (folder / name).parent.glob("*.txt"))
        listed = f"; there are {', '.join(near)}" if near else ""
        raise missing(
            f"the file {name} of the release",
            f"no file {folder / name}{listed}",
            "take it from there",
        )
    return folder / name


def need_clips(clips: list[ClipFiles], folder: Path, layout: str) -> None:
    if not clips:
        raise missing(f"videos as {layout}", f"none in {folder}", "check the path and the split")


def missing(expected: str, got: str, remedy: str) -> InputError:
    return InputError(f"the data set must have {expected}", got=got, remedy=remedy)
