"""A data set looked through before hours are spent on it: every file there, every label known."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL.Image
from jaxtyping import Integer

from diffuseg.errors import InputError
from diffuseg.eval.datasets import Dataset, Sample
from diffuseg.eval.image_files import ImageFiles, ImageSet, check_sizes
from diffuseg.eval.label_sets import UNKNOWN

_THREADS = 8  # decoding happens outside of Python's lock
_AT_ONCE = 256  # files handed to them together, so that progress is seen and memory stays small
_SHOWN = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetCheck:
    """What is in a data set that is all right.

    Attributes:
        n_images: Pictures.
        images: Number of pictures every class has pixels in, in the order of the classes; () of
            data that is drawn, which is right by construction and was not looked at.
    """

    n_images: int
    images: tuple[int, ...] = ()


def check_dataset(
    dataset: Dataset, *, progress: Callable[[int, int], None] | None = None
) -> DatasetCheck:
    """Look through a data set: pictures by their headers, masks by their labels.

    Pictures are not decoded; an image of 480x360 takes about a millisecond of one core. A data set
    that is not one of files is read as it is scored, but for one that is drawn (it has a seed).

    Args:
        dataset: Of this library, or of your own.
        progress: Called with (done, all).

    Raises:
        InputError: It is empty, or some files are damaged, of different sizes or have labels no
            class has; how many, and the first of them.

    Example:
        >>> from diffuseg.eval.datasets import SceneSet
        >>> check_dataset(SceneSet(n=3))
        DatasetCheck(n_images=3, images=())
    """
    n = len(dataset)
    if not n:
        raise InputError(
            "a data set must have pictures", got=f"none in {dataset.name}", remedy="add some"
        )
    if dataset.seed is not None:
        return DatasetCheck(n_images=n)
    seen = np.zeros(len(dataset.classes), dtype=np.int64)
    bad: list[str] = []
    for done, one in enumerate(_looked_at(dataset), start=1):
        if isinstance(one, str):
            bad.append(one)
        else:
            seen[[label for label in one if 0 <= label < len(seen)]] += 1
        if progress is not None:
            progress(done, n)
    if bad:
        more = f"; and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else ""
        raise InputError(
            f"every picture of {dataset.name} must have a mask of its size with known labels",
            got=f"{len(bad)} of {n} are not right: {'; '.join(bad[:_SHOWN])}{more}",
            remedy="mend these files, or take them out of the data set",
        )
    return DatasetCheck(n_images=n, images=tuple(seen.tolist()))


def _looked_at(dataset: Dataset) -> Iterator[tuple[int, ...] | str]:
    """Of every picture the labels it has, or what is wrong with it."""
    if not isinstance(dataset, ImageSet):
        yield from (_sample_labels(dataset, i) for i in range(len(dataset)))
        return
    with ThreadPoolExecutor(_THREADS) as pool:
        for start in range(0, len(dataset), _AT_ONCE):
            part = dataset.files[start : start + _AT_ONCE]
            yield from pool.map(lambda held: _file_labels(dataset, held), part)


def _file_labels(dataset: ImageSet, held: ImageFiles) -> tuple[int, ...] | str:
    try:
        values = dataset.read_values(held)
        check_sizes(held, _picture_hw(held.picture), (values.shape[0], values.shape[1]))
        known = _present(values)
        labels = dataset.labels.labels(known)
    except InputError as error:
        return str(error.got)
    if (labels == UNKNOWN).any():
        return f"{held.mask} has {dataset.unknown(known[labels == UNKNOWN])}, {dataset.says()}"
    return tuple(np.unique(labels).tolist())


def _present(values: Integer[np.ndarray, "h w"]) -> Integer[np.ndarray, " n"]:
    """The values that occur; counting is many times faster than sorting."""
    if values.dtype.kind == "u" and values.dtype.itemsize <= 2:
        return np.flatnonzero(np.bincount(values.reshape(-1)))
    return np.unique(values)


def _picture_hw(path: Path) -> tuple[int, int]:
    try:
        with PIL.Image.open(path) as picture:
            return picture.height, picture.width
    # A damaged header can raise almost anything from the format plugins.
    except Exception as error:
        raise InputError(
            "the picture must be a readable image",
            got=f"{path}: {error}",
            remedy="extract it again",
        ) from error


def _sample_labels(dataset: Dataset, index: int) -> tuple[int, ...] | str:
    try:
        sample = dataset[index]
    except InputError as error:
        return str(error.got)
    return _truth_labels(sample, len(dataset.classes), dataset.ignore)


def _truth_labels(sample: Sample, k: int, ignore: int) -> tuple[int, ...] | str:
    if sample.truth.shape != sample.image.hw:
        return f"{sample.id} is {sample.image.hw}, its labels {sample.truth.shape}"
    labels = np.unique(sample.truth).tolist()
    wrong = [one for one in labels if one != ignore and not 0 <= one < k]
    return f"{sample.id} has unknown labels {wrong[:_SHOWN]}" if wrong else tuple(labels)
