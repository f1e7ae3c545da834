"""Pictures on their way to a model that denoises masks: their size, and what tells them apart."""

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from diffuseg.image import Image, to_tensor
from diffuseg.prompts import ClassName


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class View:
    """A picture and what is asked of it.

    Attributes:
        image: As the user gave it.
        key: What tells its pixels from those of others.
        hw: The size it is brought to.
        padded: The size the model sees, in whole latent cells.
        classes: What is asked for.
        prompts: The texts, those of a class after each other.
        owners: The class of every text.
    """

    image: Image
    key: str
    hw: tuple[int, int]
    padded: tuple[int, int]
    classes: tuple[ClassName, ...]
    prompts: tuple[str, ...]
    owners: tuple[int, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Of the classes."""
        return tuple(one.name for one in self.classes)


def fitted_hw(hw: tuple[int, int], side: int) -> tuple[int, int]:
    """Height and width with the longer of them `side`, proportions kept.

    Example:
        >>> fitted_hw((300, 500), 256), fitted_hw((16, 5000), 256)
        ((153, 256), (1, 256))
    """
    longer = max(hw)
    return max(1, hw[0] * side // longer), max(1, hw[1] * side // longer)


def picture_key(image: Image) -> str:
    """What tells a picture's pixels from others': the noise of its masks depends on nothing else.

    Example:
        >>> one = read_image(np.zeros((16, 32), dtype=np.uint8))
        >>> picture_key(one) == picture_key(read_image(np.zeros((32, 16), dtype=np.uint8)))
        False
    """
    digest = hashlib.sha256(f"{image.pixels.shape}".encode())
    digest.update(np.ascontiguousarray(image.pixels).data)
    return digest.hexdigest()


def padded_pixels(
    image: Image, hw: tuple[int, int], padded: tuple[int, int]
) -> Float[Tensor, "1 3 H W"]:
    """A picture brought to a size, and reflected at its right and lower edge up to another.

    Args:
        image: The picture.
        hw: Its height and width then.
        padded: Those of the result.

    Example:
        >>> image = read_image(np.arange(256, dtype=np.uint8).reshape(16, 16))
        >>> (padded_pixels(image, (16, 16), (24, 16))[0, 0, 14:18, 0] * 255).tolist()
        [224.0, 240.0, 224.0, 208.0]
    """
    pixels = to_tensor(image, hw)
    # NumPy's reflection takes any number of pixels, torch's fewer than there are.
    rows, columns = (
        torch.from_numpy(np.pad(np.arange(old), (0, new - old), mode="reflect"))
        for old, new in zip(hw, padded, strict=True)
    )
    return pixels[:, :, rows][:, :, :, columns]
