"""COCO-Stuff-27 and Cityscapes-27 as DiffSeg is scored on them: classes, images, geometry.

The label sets and the list of images are those of IIC and PiCIE (MIT), which published figures of
unsupervised segmentation share.
"""

from importlib import resources

import numpy as np
import torch
from jaxtyping import Float, Int, Integer, UInt8
from torch import Tensor

COCO_STUFF27 = (
    "electronic-things",
    "appliance-things",
    "food-things",
    "furniture-things",
    "indoor-things",
    "kitchen-things",
    "accessory-things",
    "animal-things",
    "outdoor-things",
    "person-things",
    "sports-things",
    "vehicle-things",
    "ceiling-stuff",
    "floor-stuff",
    "food-stuff",
    "furniture-stuff",
    "rawmaterial-stuff",
    "textile-stuff",
    "wall-stuff",
    "window-stuff",
    "building-stuff",
    "ground-stuff",
    "plant-stuff",
    "sky-stuff",
    "solid-stuff",
    "structural-stuff",
    "water-stuff",
)
"""The coarse classes of COCO-Stuff in the order of their labels."""

# fmt: off
_FINE_TO_COARSE = (
    9, 11, 11, 11, 11, 11, 11, 11, 11, 8, 8, 8, 8, 8, 8, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 6, 6,
    6, 6, 6, 6, 6, 6, 10, 10, 10, 10, 10, 10, 10, 10, 10, 10, 5, 5, 5, 5, 5, 5, 5, 5, 2, 2, 2,
    2, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 4,
    4, 4, 4, 4, 4, 4, 4, 17, 17, 22, 20, 20, 22, 15, 25, 16, 13, 12, 12, 17, 17, 23, 15, 15,
    17, 15, 21, 15, 25, 13, 13, 13, 13, 13, 22, 26, 14, 14, 15, 22, 21, 21, 24, 20, 22, 15,
    17, 16, 15, 22, 24, 21, 17, 25, 16, 21, 17, 22, 16, 21, 21, 25, 21, 26, 21, 24, 20, 17,
    14, 21, 26, 15, 23, 20, 21, 24, 15, 24, 22, 25, 15, 20, 17, 17, 22, 14, 18, 18, 18, 18,
    18, 18, 18, 26, 26, 19, 19, 24,
)
# fmt: on
_CITYSCAPES_FIRST, _CITYSCAPES_LAST = 7, 33


def coco_stuff27_labels(fine: Integer[np.ndarray, "*s"]) -> Int[np.ndarray, "*s"]:
    """Map pixel values of `stuffthingmaps` (0 to 181) to coarse classes, all others to -1.

    Example:
        >>> coco_stuff27_labels(np.array([0, 181, 255])).tolist()
        [9, 24, -1]
    """
    known = (fine >= 0) & (fine < len(_FINE_TO_COARSE))
    table = np.array(_FINE_TO_COARSE, dtype=np.int32)
    return np.where(known, table[np.where(known, fine, 0)], np.int32(-1))


def cityscapes27_labels(ids: Integer[np.ndarray, "*s"]) -> Int[np.ndarray, "*s"]:
    """Map `gtFine_labelIds` 7 to 33 to 0 to 26, all others to -1.

    Not the usual 19 classes.

    Example:
        >>> cityscapes27_labels(np.array([-1, 6, 7, 33])).tolist()
        [-1, -1, 0, 26]
    """
    known = (ids >= _CITYSCAPES_FIRST) & (ids <= _CITYSCAPES_LAST)
    return np.where(known, ids.astype(np.int32) - np.int32(_CITYSCAPES_FIRST), np.int32(-1))


def coco_stuff27_images() -> tuple[int, ...]:
    """Return the numbers of the 2175 images of val2017 that are scored, ascending.

    Example:
        >>> coco_stuff27_images()[:2], len(coco_stuff27_images())
        ((139, 724), 2175)
    """
    text = resources.files("diffuseg.eval").joinpath("coco_stuff27_val.txt").read_text("ascii")
    return tuple(map(int, text.split()))


def centre_square(hw: tuple[int, int]) -> tuple[slice, slice]:
    """Return the rows and columns of the largest square in the middle.

    Example:
        >>> centre_square((4, 7))
        (slice(0, 4, None), slice(1, 5, None))
    """
    side = min(hw)
    top, left = ((length - side) // 2 for length in hw)
    return slice(top, top + side), slice(left, left + side)


def square_pixels(pixels: UInt8[np.ndarray, "h w 3"], size: int) -> Float[np.ndarray, "s s 3"]:
    """Cut the centre square out of an image and resize it: bilinear, no antialias, not rounded.

    Args:
        pixels: The image, 0 to 255.
        size: Side of the result; 512 in published figures.

    Example:
        >>> square_pixels(np.full((4, 7, 3), 9, dtype=np.uint8), 8).shape
        (8, 8, 3)
    """
    cut = torch.from_numpy(pixels[centre_square((pixels.shape[0], pixels.shape[1]))].copy())
    return _resized(cut.permute(2, 0, 1).float(), size, "bilinear").permute(1, 2, 0).numpy()


def square_labels(labels: Integer[np.ndarray, "h w"], size: int) -> Integer[np.ndarray, "s s"]:
    """Cut the centre square out of a label map and resize it, each pixel from the nearest centre.

    Example:
        >>> square_labels(np.array([[5, 1, 2, 6], [5, 3, 4, 6]]), 4)[0].tolist()
        [1, 1, 2, 2]
    """
    cut = torch.from_numpy(labels[centre_square((labels.shape[0], labels.shape[1]))].copy())
    # float64 holds every label exactly.
    return _resized(cut.double()[None], size, "nearest-exact")[0].numpy().astype(labels.dtype)


def _resized(maps: Float[Tensor, "c s s"], size: int, mode: str) -> Float[Tensor, "c t t"]:
    corners = False if mode == "bilinear" else None
    return torch.nn.functional.interpolate(
        maps[None], size=(size, size), mode=mode, align_corners=corners
    )[0]
