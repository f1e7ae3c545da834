"""Labelled pictures and the crops of them that are learned from."""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import PIL.Image
from jaxtyping import Integer, UInt8

from diffuseg.errors import InputError
from diffuseg.image import Image

IGNORE = 255
"""The label of pixels of which nothing is known, in crops."""

_TRIES = 10
_TOO_FULL = 0.75


@runtime_checkable
class LabelledPicture(Protocol):
    """One picture with the class of every pixel."""

    @property
    def id(self) -> str: ...
    @property
    def image(self) -> Image: ...
    @property
    def truth(self) -> Integer[np.ndarray, "h w"]: ...


@runtime_checkable
class LabelledPictures(Protocol):
    """What is learned from; the data sets of the evaluation are such."""

    @property
    def name(self) -> str: ...
    @property
    def classes(self) -> tuple[str, ...]: ...
    @property
    def ignore(self) -> int: ...
    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> LabelledPicture: ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Crop:
    """A square cut from a picture.

    Attributes:
        pixels: Red, green and blue.
        labels: Class of every pixel, or `IGNORE`.
    """

    pixels: UInt8[np.ndarray, "h w 3"]
    labels: UInt8[np.ndarray, "h w"]


class KeptPictures:
    """Pictures as they were read, the last ones kept in memory.

    Labels are those of the data set, with its own label for what is not known turned to `IGNORE`.

    Args:
        pictures: Where they come from.
        gibibytes: Most that is kept.
        name: What they are called where something is wrong; None: the data set's name.

    Raises:
        InputError: By `kept[index]`: a picture and its labels differ in size, or a label is no
            class.

    Example:
        >>> kept = KeptPictures(dataset, gibibytes=1.0)  # doctest: +SKIP
        >>> kept[0].pixels.shape  # doctest: +SKIP
        (256, 256, 3)
    """

    def __init__(
        self, pictures: LabelledPictures, *, gibibytes: float = 1.0, name: str | None = None
    ) -> None:
        self.pictures = pictures
        self.name = pictures.name if name is None else name
        self._room = int(gibibytes * 2**30)
        self._held: OrderedDict[int, Crop] = OrderedDict()
        self._size = 0

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> Crop:
        if index in self._held:
            self._held.move_to_end(index)
            return self._held[index]
        sample = self.pictures[index]
        labels = np.asarray(sample.truth)
        self._check(sample, labels)
        known = (labels != self.pictures.ignore) & (labels != IGNORE)
        whole = Crop(
            pixels=sample.image.pixels,
            labels=np.where(known, labels, IGNORE).astype(np.uint8),
        )
        self._held[index] = whole
        self._size += _bytes(whole)
        while self._size > self._room and len(self._held) > 1:
            self._size -= _bytes(self._held.popitem(last=False)[1])
        return whole

    def _check(self, sample: LabelledPicture, labels: Integer[np.ndarray, "h w"]) -> None:
        shape, size = sample.image.pixels.shape[:2], labels.shape
        if shape != size:
            raise InputError(
                "a picture and its labels must have the same size",
                got=f"{self.name}, {sample.id}: {shape[0]}x{shape[1]} pixels, "
                f"{size[0]}x{size[1]} labels",
                remedy="write the mask anew from the picture, or take both out",
            )
        count, ignore = len(self.pictures.classes), self.pictures.ignore
        odd = np.unique(labels[(labels < 0) | (labels >= count)])
        strange = [int(one) for one in odd if one not in (ignore, IGNORE)]
        if strange:
            raise InputError(
                f"labels must be 0 to {count - 1}, or {ignore} where nothing is known",
                got=f"{self.name}, {sample.id}: {', '.join(map(str, strange[:5]))}",
                remedy="name all classes of the data set, or mend its masks",
            )


def _bytes(crop: Crop) -> int:
    return crop.pixels.nbytes + crop.labels.nbytes


def draw_crop(
    whole: Crop,
    rng: np.random.Generator,
    *,
    side: int,
    zoom: tuple[float, float] = (0.5, 2.0),
    flip: bool = True,
    jitter: float = 0.1,
) -> Crop:
    """Cut a square from a picture, at a size of its own.

    What lies beyond the picture is grey, and not known. A square that one class fills by more than
    three quarters is drawn again, up to ten times. Pixels are enlarged bilinearly, labels by the
    nearest.

    Args:
        whole: The picture.
        rng: Where chance comes from.
        side: Of the square, pixels.
        zoom: Least and greatest factor on the picture's size; drawn evenly in its logarithm.
        flip: Whether half of the squares are mirrored.
        jitter: Most that brightness, contrast and saturation change.

    Example:
        >>> grey = np.full((40, 60, 3), 99, np.uint8)
        >>> whole = Crop(pixels=grey, labels=np.zeros((40, 60), np.uint8))
        >>> draw_crop(whole, np.random.default_rng(0), side=32).pixels.shape
        (32, 32, 3)
    """
    height, width = whole.labels.shape
    low, high = np.log(zoom[0]), np.log(zoom[1])
    tries = 0
    while True:
        factor = float(np.exp(rng.uniform(low, high)))
        span = side / factor  # of the square, in pixels of the picture
        top, left = (_offset(length, span, rng) for length in (height, width))
        box = (left, top, left + span, top + span)
        labels = _cut_labels(whole.labels, box, side)
        tries += 1
        if tries == _TRIES or not _too_full(labels):
            break
    pixels = _cut_pixels(whole.pixels, box, side)
    if flip and rng.random() < 0.5:
        pixels, labels = pixels[:, ::-1], labels[:, ::-1]
    gains = 1 + jitter * rng.uniform(-1, 1, 3)
    if jitter:
        pixels = _jittered(pixels, *gains.tolist())
    return Crop(pixels=np.ascontiguousarray(pixels), labels=np.ascontiguousarray(labels))


def _offset(length: int, span: float, rng: np.random.Generator) -> float:
    """Where the square begins; if it is longer than the picture, that lies anywhere within it."""
    return float(rng.uniform(min(0.0, length - span), max(0.0, length - span)))


_Box = tuple[float, float, float, float]


def _places(start: float, stop: float, side: int) -> np.ndarray:
    step = (stop - start) / side
    return np.floor(start + step * (np.arange(side) + 0.5)).astype(np.int64)


def _cut_labels(labels: UInt8[np.ndarray, "h w"], box: _Box, side: int) -> UInt8[np.ndarray, "s s"]:
    left, top, right, bottom = box
    rows, columns = _places(top, bottom, side), _places(left, right, side)
    height, width = labels.shape
    inside = ((rows >= 0) & (rows < height))[:, None] & ((columns >= 0) & (columns < width))
    found = labels[rows.clip(0, height - 1)[:, None], columns.clip(0, width - 1)]
    return np.where(inside, found, np.uint8(IGNORE))


def _cut_pixels(
    pixels: UInt8[np.ndarray, "h w 3"], box: _Box, side: int
) -> UInt8[np.ndarray, "s s 3"]:
    left, top, right, bottom = box
    height, width = pixels.shape[:2]
    # The part of the box that the picture covers, in whole pixels of the square.
    step = (right - left) / side
    first = [round(max(0.0, -start) / step) for start in (left, top)]
    last = [
        side - round(max(0.0, stop - length) / step)
        for stop, length in ((right, width), (bottom, height))
    ]
    seen = (max(left, 0.0), max(top, 0.0), min(right, width), min(bottom, height))
    size = (max(1, last[0] - first[0]), max(1, last[1] - first[1]))
    part = PIL.Image.fromarray(pixels).resize(
        size, PIL.Image.Resampling.BILINEAR, box=seen, reducing_gap=None
    )
    found = np.full((side, side, 3), 127, np.uint8)
    rows, columns = slice(first[1], first[1] + size[1]), slice(first[0], first[0] + size[0])
    found[rows, columns] = np.asarray(part)[: side - first[1], : side - first[0]]
    return found


def _too_full(labels: UInt8[np.ndarray, "h w"]) -> bool:
    counts = np.bincount(labels.ravel(), minlength=IGNORE + 1)
    return bool(counts[:IGNORE].max() > _TOO_FULL * labels.size or counts[IGNORE] == labels.size)


def _jittered(
    pixels: UInt8[np.ndarray, "h w 3"], bright: float, contrast: float, colour: float
) -> UInt8[np.ndarray, "h w 3"]:
    found = pixels.astype(np.float32) * bright
    grey = found.mean(2, keepdims=True)
    found = grey + (found - grey) * colour
    middle = found.mean()
    return (middle + (found - middle) * contrast).round().clip(0, 255).astype(np.uint8)


def count_labels(labels: UInt8[np.ndarray, "h w"]) -> Mapping[int, int]:
    """Pixels of every class that is there.

    Example:
        >>> count_labels(np.array([[3, 255, 3]], np.uint8))
        {3: 2}
    """
    counts = np.bincount(labels.ravel(), minlength=IGNORE + 1)
    return {int(label): int(counts[label]) for label in np.flatnonzero(counts[:IGNORE])}
