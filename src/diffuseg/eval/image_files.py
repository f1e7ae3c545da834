"""Pictures and masks as files: found, read as they are stored, and compared.

What a data set of files lacks is said when it is opened; what is wrong with a file when it is read,
or by `diffuseg.eval.image_checks.check_dataset` beforehand.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL.Image
from jaxtyping import Int32, Integer, UInt8
from PIL import ExifTags

from diffuseg.errors import InputError
from diffuseg.eval.coarse27 import square_labels, square_pixels
from diffuseg.eval.datasets import Sample
from diffuseg.eval.label_sets import UNKNOWN, LabelSet
from diffuseg.eval.video_files import missing
from diffuseg.image import Image, read_image

GEOMETRIES: Mapping[str, str] = {
    "whole": "scored at the size of the image",
    "diffseg": "the centre square of each image, resized to 512x512 (DiffSeg)",
    "stego": "the shorter side resized to 320, nearest, and the centre square cut out (STEGO)",
}
"""What of a picture is shown to a method and scored, in words as reports say it."""

_DIFFSEG_SIDE, _STEGO_SIDE = 512, 320
_ONE_NUMBER = ("1", "L", "P", "I", "I;16", "I;16B", "I;16L")
_COUNTED = 5  # bad things named in a message


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageFiles:
    """The two files of one image; the mask may be read from part of a file."""

    id: str
    picture: Path
    mask: Path


class ImageSet:
    """What all sets of files share: their files, and the way from a mask's values to labels.

    Satisfies `diffuseg.eval.datasets.Dataset`.

    Args:
        name: As users type it.
        split: Which part.
        labels: Classes and stored values.
        files: Pictures with their masks, in order.
        geometry: What of a picture is shown and scored.
        label_source: Whose labels they are, where there are several; "" if not.
        note: What has to be known beside a score.

    Raises:
        InputError: There are no files, files are missing, or no such geometry.
    """

    seed: int | None = None

    def __init__(
        self,
        name: str,
        *,
        split: str,
        labels: LabelSet,
        files: Sequence[ImageFiles],
        geometry: str = "whole",
        label_source: str = "",
        note: str = "",
    ) -> None:
        if geometry not in GEOMETRIES:
            raise InputError(
                f"the geometry must be one of {', '.join(GEOMETRIES)}",
                got=repr(geometry),
                remedy='use "whole" unless a publication says otherwise',
            )
        self.name = name
        self.split = split
        self.labels = labels
        self.files = tuple(files)
        self.label_source = label_source
        self.note = note
        self._shape = geometry
        need_files(name, self.files)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names in the order of the labels."""
        return self.labels.classes

    @property
    def ignore(self) -> int:
        """Label of pixels that are not scored."""
        return self.labels.ignore

    @property
    def groups(self) -> Mapping[str, tuple[str, ...]]:
        """Named sets of classes that get an average of their own."""
        return self.labels.groups

    @property
    def palette(self) -> UInt8[np.ndarray, "k 3"]:
        """The colour of every class."""
        return self.labels.palette

    @property
    def geometry(self) -> str:
        """In words, what of a picture is shown and scored."""
        return GEOMETRIES[self._shape]

    @property
    def fingerprint(self) -> str:
        """Stays the same when the folder is moved, not when it holds other files."""
        digest = hashlib.sha256()
        for one in self.files:
            sizes = one.picture.stat().st_size, one.mask.stat().st_size
            digest.update(json.dumps([one.id, *sizes]).encode())
        return digest.hexdigest()

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Sample:
        """Read an image and its labels.

        Raises:
            IndexError: There is no such image.
            InputError: A file is damaged, their sizes differ, or a label is unknown.
        """
        if not 0 <= index < len(self.files):
            raise IndexError(index)
        held = self.files[index]
        pixels = read_picture(held.picture)
        truth = self.read_labels(held)
        check_sizes(held, (pixels.shape[0], pixels.shape[1]), (truth.shape[0], truth.shape[1]))
        pixels, truth = shaped(pixels, truth, self._shape)
        image = Image(pixels=pixels, source=held.picture.name)
        return Sample(id=held.id, image=image, truth=truth)

    def read_labels(self, held: ImageFiles) -> Int32[np.ndarray, "h w"]:
        """Return the label of every pixel of a mask.

        Raises:
            InputError: The mask is damaged, has several numbers a pixel, or a value no class has.
        """
        values = self.read_values(held)
        labels = self.labels.labels(values)
        if (labels == UNKNOWN).any():
            raise InputError(
                f"masks of {self.name} must hold known labels only",
                got=f"{held.mask}: {self.unknown(values[labels == UNKNOWN])}",
                remedy=f"use the masks as they are published; {self.says()}",
            )
        return labels

    def read_values(self, held: ImageFiles) -> Integer[np.ndarray, "h w"]:
        """Return what a mask holds, as stored."""
        return read_values(held.mask)

    def says(self) -> str:
        """Return in words which values masks hold."""
        known = np.flatnonzero(self.labels.table != UNKNOWN)
        return f"known are {ranges(known.tolist())}"

    def unknown(self, values: Integer[np.ndarray, " n"]) -> str:
        wrong = np.unique(values)
        more = f" and {len(wrong) - _COUNTED} more" if len(wrong) > _COUNTED else ""
        return f"unknown values {', '.join(map(str, wrong[:_COUNTED].tolist()))}{more}"


def shaped(
    pixels: UInt8[np.ndarray, "h w 3"], truth: Int32[np.ndarray, "h w"], geometry: str
) -> tuple[UInt8[np.ndarray, "y x 3"], Int32[np.ndarray, "y x"]]:
    """Cut and resize a picture and its labels as a publication did.

    DiffSeg feeds its model pixels that are not rounded after resizing; here they are 8-bit again.

    Example:
        >>> picture, labels = np.zeros((30, 40, 3), np.uint8), np.zeros((30, 40), np.int32)
        >>> [shaped(picture, labels, one)[1].shape for one in ("whole", "diffseg", "stego")]
        [(30, 40), (512, 512), (320, 320)]
    """
    if geometry == "whole":
        return pixels, truth
    if geometry == "diffseg":
        square = np.rint(square_pixels(pixels, _DIFFSEG_SIDE)).astype(np.uint8)
        return square, square_labels(truth, _DIFFSEG_SIDE)
    h, w = truth.shape
    rows, columns = (_nearest(n, _STEGO_SIDE * n // min(h, w)) for n in (h, w))
    return pixels[np.ix_(rows, columns)], truth[np.ix_(rows, columns)]


def _nearest(n: int, resized: int) -> Integer[np.ndarray, " s"]:
    """Which of `n` pixels are the middle ones of a side resized by the nearest centre."""
    start = round((resized - _STEGO_SIDE) / 2)
    return (2 * np.arange(start, start + _STEGO_SIDE) + 1) * n // (2 * resized)


def read_picture(path: Path) -> UInt8[np.ndarray, "h w 3"]:
    """Return the pixels of a picture as they are stored, as RGB.

    Labels follow the stored grid: a rotation noted in the file's metadata is not applied.

    Raises:
        InputError: The file is missing or damaged.
    """
    try:
        with PIL.Image.open(path) as picture:
            picture.getexif().pop(ExifTags.Base.Orientation, None)
            return read_image(picture).pixels
    except InputError as error:
        raise InputError(error.expected, got=f"{path}: {error.got}", remedy=error.remedy) from error
    # A damaged file can raise almost anything from the format plugins.
    except Exception as error:
        raise _unreadable(path, "picture", error) from error


def read_values(path: Path) -> Integer[np.ndarray, "h w"]:
    """Return what a mask holds, without turning numbers of a palette into colours.

    Raises:
        InputError: The file is missing or damaged, or has several numbers a pixel.
    """
    try:
        with PIL.Image.open(path) as picture:
            mode, values = picture.mode, np.asarray(picture)
    except Exception as error:
        raise _unreadable(path, "mask", error) from error
    if mode not in _ONE_NUMBER:
        raise InputError(
            "a mask must hold one number a pixel",
            got=f"{path}: mode {mode}",
            remedy="save it as a grey or palette PNG; colours are not labels",
        )
    return values.astype(np.uint8) if values.dtype == np.bool_ else values


def check_sizes(held: ImageFiles, picture: tuple[int, int], mask: tuple[int, int]) -> None:
    """Raise an `InputError` if a picture and its mask differ in height or width."""
    if picture != mask:
        raise InputError(
            "a picture and its mask must have one size",
            got=f"{held.picture} is {picture[0]}x{picture[1]}, "
            f"{held.mask} is {mask[0]}x{mask[1]} (height x width)",
            remedy="take both from one release, unscaled",
        )


def need_files(what: str, files: Sequence[ImageFiles]) -> None:
    """Raise an `InputError` that counts and names what is missing, if anything is."""
    if not files:
        raise missing("pictures", f"none for {what}", "check the path and the split")
    told: list[str] = []
    gone: list[Path] = []
    for kind, paths in (
        ("pictures", [one.picture for one in files]),
        ("masks", [one.mask for one in files]),
    ):
        lacking = lacking_files(paths)
        gone += lacking[:1]
        if lacking:
            told.append(f"{len(lacking)} of {len(paths)} {kind} missing, the first {lacking[0]}")
    if told:
        folders = " and ".join(dict.fromkeys(str(one.parent) for one in gone))
        raise missing(f"every file of {what}", "; ".join(told), f"complete {folders}")


def lacking_files(paths: Iterable[Path]) -> list[Path]:
    """Return which files do not exist; every folder is listed once."""
    held: dict[Path, set[str]] = {}
    lacking: list[Path] = []
    for path in paths:
        folder = path.parent
        if folder not in held:
            held[folder] = {one.name for one in folder.iterdir()} if folder.is_dir() else set()
        if path.name not in held[folder]:
            lacking.append(path)
    return lacking


def ranges(numbers: Sequence[int]) -> str:
    """Return ascending numbers as a short text.

    Example:
        >>> ranges([0, 1, 2, 5, 255])
        '0 to 2, 5, 255'
    """
    runs: list[tuple[int, int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1] = runs[-1][0], number
        else:
            runs.append((number, number))
    return ", ".join(str(a) if a == b else f"{a} to {b}" for a, b in runs)


def _unreadable(path: Path, kind: str, error: Exception) -> InputError:
    got = "no such file" if isinstance(error, FileNotFoundError) else str(error)
    return InputError(
        f"the {kind} must be a readable image", got=f"{path}: {got}", remedy="extract it again"
    )
