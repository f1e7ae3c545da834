"""What labels of a video mean: a mask of one frame, words found in it, or numbers of clusters."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from jaxtyping import Int64, Integer
from torch import Tensor

from diffuseg.errors import InputError
from diffuseg.image import read_image
from diffuseg.labelmaps import IGNORE, integer_map
from diffuseg.methods.vidseg.context import UNNAMED, Clusters, name_clusters, shrink_labels
from diffuseg.segmenter import Segmenter
from diffuseg.video.seeing import Pixels

# How far the proportions of a mask and of the video may differ: sides are rounded.
_SKEW = 0.03


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Named:
    """What a method is told of a video.

    Attributes:
        names: Of every label; further ones are found on the way where words are looked for.
        mask: Labels of the anchor; `UNNAMED` where it says nothing.
        find: Finds words in a frame.
    """

    names: tuple[str, ...]
    mask: Int64[Tensor, "H W"] | None = None
    find: Segmenter | None = None


def read_anchor(anchor: object, hw: tuple[int, int] | None = None) -> Int64[Tensor, "H W"]:
    """Return the labels of a mask.

    Args:
        anchor: An array or tensor of whole numbers, or a picture file with numbers for pixels:
            indexed, grey or black and white. 65535 is undecided.
        hw: Height and width of the video, whose proportions the mask must have.

    Raises:
        InputError: It has colours or negative numbers, cannot be read, or has other proportions.

    Example:
        >>> read_anchor(np.array([[0, 65535]]))
        tensor([[ 0, -1]])
    """
    if isinstance(anchor, str | os.PathLike):
        labels = _read_mask(Path(anchor))
    else:
        labels = anchor.detach().cpu().numpy() if isinstance(anchor, Tensor) else anchor
        if isinstance(labels, np.ndarray) and labels.dtype == np.bool_:
            labels = labels.astype(np.uint8)
    held = integer_map(labels).astype(np.int64)
    if held.min() < 0 or held.max() > IGNORE:
        raise InputError(
            f"labels of the anchor must be 0 to {IGNORE}",
            got=f"{held.min()} to {held.max()}",
            remedy=f"mark undecided pixels with {IGNORE}",
        )
    if hw is not None:
        check_proportions(held, hw)
    return torch.from_numpy(np.where(held == IGNORE, UNNAMED, held))


def check_proportions(mask: Integer[np.ndarray, "h w"], hw: tuple[int, int]) -> None:
    """Make sure that a mask may be one of a frame; its size may be another.

    Raises:
        InputError: Its proportions differ.
    """
    if abs(mask.shape[0] * hw[1] / (mask.shape[1] * hw[0]) - 1) > _SKEW:
        raise InputError(
            "the anchor's mask must have the proportions of the video",
            got=f"{mask.shape[0]}x{mask.shape[1]} for frames of {hw[0]}x{hw[1]}",
            remedy="give the mask of a whole frame",
        )


def number_names(mask: Integer[Tensor, "H W"]) -> tuple[str, ...]:
    """Return names for the labels of a mask: their numbers.

    Example:
        >>> number_names(torch.tensor([[2, 0]]))
        ('0', '1', '2')
    """
    return tuple(str(one) for one in range(int(mask.max().clamp(min=0)) + 1))


def find_words(
    named: Named, frames: Sequence[Pixels], grid: tuple[int, int]
) -> tuple[Int64[Tensor, "g a b"], tuple[str, ...]]:
    """Look for words in frames; return labels of cells, and the names they are numbers of.

    Names an image method adds by itself, such as a background, come behind the others.

    Raises:
        InputError: Nothing finds words here.
    """
    if named.find is None:
        raise InputError("words need a method that finds them", got="none", remedy="give classes")
    names = list(named.names)
    cells: list[Tensor] = []
    for seg in named.find.many([read_image(one) for one in frames]):
        names += [one for one in seg.names if one not in names]
        table = np.full(IGNORE + 1, UNNAMED, np.int64)
        table[: len(seg.names)] = [names.index(one) for one in seg.names]
        cells.append(shrink_labels(torch.from_numpy(table[seg.labels]), grid))
    return torch.stack(cells), tuple(names)


def words_of_clusters(
    clusters: Clusters, places: Sequence[int], cells: Int64[Tensor, "f h w"]
) -> Int64[Tensor, " k"]:
    """Name clusters by the cells of some of the frames; those that are in none have no name."""
    numbers = clusters.numbers[list(places)].flatten()
    return name_clusters(numbers, cells.flatten().to(numbers.device), len(clusters.centres))


def _read_mask(path: Path) -> np.ndarray:
    try:
        with PIL.Image.open(path) as picture:
            picture.load()
            # As stored: a palette's colours are not its numbers.
            values = np.asarray(picture)
    except OSError as error:
        why = "no such file" if not path.exists() else error
        raise InputError(
            "the anchor must be a mask that can be read",
            got=f"{path}: {why}",
            remedy="give a PNG with a number for every pixel",
        ) from error
    if values.ndim != 2:
        raise InputError(
            "the anchor must have one number for every pixel",
            got=f"{path}: a picture with {values.shape[-1]} channels",
            remedy="save it as an indexed or grey PNG",
        )
    return values.astype(np.uint8) if values.dtype == np.bool_ else values
