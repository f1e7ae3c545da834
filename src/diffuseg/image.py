"""What goes in: any picture a user may have, as upright 8-bit RGB pixels."""

import io
import math
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import PIL.Image
import torch
from jaxtyping import Float, UInt8
from PIL import ExifTags
from torch import Tensor

from diffuseg.errors import InputError

MIN_SIDE = 16
MAX_PIXELS = 100_000_000

SUFFIXES = (".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpeg", ".jpg", ".pbm", ".pgm")
SUFFIXES += (".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp")
"""Of the files that are taken for pictures where a folder is searched."""

_CHANNELS = (1, 2, 3, 4)

_UPRIGHT = {
    2: PIL.Image.Transpose.FLIP_LEFT_RIGHT,
    3: PIL.Image.Transpose.ROTATE_180,
    4: PIL.Image.Transpose.FLIP_TOP_BOTTOM,
    5: PIL.Image.Transpose.TRANSPOSE,
    6: PIL.Image.Transpose.ROTATE_270,
    7: PIL.Image.Transpose.TRANSVERSE,
    8: PIL.Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Image:
    """An upright RGB picture.

    Attributes:
        pixels: Red, green and blue, 0 to 255.
        source: The name of the file it came from, or "array".
    """

    pixels: UInt8[np.ndarray, "h w 3"]
    source: str = "array"

    @property
    def hw(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.pixels.shape[0], self.pixels.shape[1]

    def __repr__(self) -> str:
        return f"Image {self.hw[0]}x{self.hw[1]} ({self.source})"


def read_image(source: object) -> Image:
    """Read a picture from whatever holds it.

    Args:
        source: A path, the bytes of a file, a Pillow image, a NumPy array (`h w`, or `h w c` with 1
            to 4 channels: grey, grey + alpha, RGB, RGBA), a torch tensor (`h w`, `c h w` or
            `h w c`), or an `Image`, which is returned as it is.

    The EXIF orientation of files and Pillow images is applied. Transparent pixels are laid over
    white. 16-bit values are divided by 257, the exact ratio of the two ranges; floating point
    values must lie in [0, 1]; False and True become black and white. Of an animation the first
    frame is taken. The caller's data is copied, never changed.

    Raises:
        InputError: The file is missing, not an image, or damaged; a side is shorter than 16 pixels;
            there are more than 100 million pixels (seen in the header, before decoding); or an
            array has a shape, type or range that is not listed above.

    Example:
        >>> read_image(np.zeros((32, 48), dtype=bool))
        Image 32x48 (array)
    """
    match source:
        case Image():
            return source
        case PIL.Image.Image():
            _check_size((source.height, source.width))
            name = Path(str(getattr(source, "filename", "") or "array")).name
            return Image(pixels=_decode(source, name), source=name)
        case bytes() | bytearray() | memoryview():
            return Image(pixels=_decode_file(io.BytesIO(source), "the bytes given"), source="bytes")
        case str() | os.PathLike():
            return _read_file(Path(os.fsdecode(source)))
        case Tensor():
            return Image(pixels=_from_tensor(source))
        case np.ndarray():
            return Image(pixels=_from_array(source))
    raise InputError(
        "an image must be a path, bytes, a Pillow image, a NumPy array or a torch tensor",
        got=f"{type(source).__name__}",
        remedy="pass one of those; numpy.asarray() reads most other containers",
    )


def working_hw(
    hw: tuple[int, int],
    *,
    size: int,
    multiple: int = 64,
    fit: Literal["aspect", "square"] = "aspect",
) -> tuple[int, int]:
    """Return the height and width at which a model should see an image of size `hw`.

    Args:
        hw: Height and width of the image.
        size: The model's native side; the working area is about `size` x `size`.
        multiple: What both sides are rounded to, at least one of it. 64 is 8 pixels a latent cell
            times the three halvings of the U-Net.
        fit: "aspect" keeps the proportions; "square" gives `(size, size)`.

    Raises:
        InputError: A number is not positive, `fit` is unknown, or a square of `size` is no multiple
            of `multiple`.

    Example:
        >>> working_hw((480, 640), size=512), working_hw((480, 640), size=512, fit="square")
        ((448, 576), (512, 512))
    """
    if min(*hw, size, multiple) < 1:
        raise InputError(
            "image sides, size and multiple must be positive",
            got=f"hw={hw}, size={size}, multiple={multiple}",
            remedy="use a size like 512",
        )
    if fit == "square":
        if size % multiple:
            raise InputError(
                f"a square working size must be a multiple of {multiple}",
                got=size,
                remedy=f"use {max(1, round(size / multiple)) * multiple}",
            )
        return size, size
    if fit != "aspect":
        raise InputError(
            'fit must be "aspect" or "square"', got=repr(fit), remedy="use one of the two"
        )
    ratio = math.sqrt(hw[0] / hw[1])
    height, width = (
        max(1, round(side / multiple)) * multiple for side in (size * ratio, size / ratio)
    )
    return height, width


def to_tensor(image: Image, hw: tuple[int, int]) -> Float[Tensor, "1 3 h w"]:
    """Return the image at height and width `hw` as float32 in [0, 1].

    Bilinear; where a side shrinks, with the antialiasing of `torch.nn.functional.interpolate`.

    Example:
        >>> image = read_image(np.full((32, 48, 3), 255, dtype=np.uint8))
        >>> to_tensor(image, (16, 24)).shape
        torch.Size([1, 3, 16, 24])
    """
    shrinks = hw[0] < image.hw[0] or hw[1] < image.hw[1]
    planes: list[Tensor] = []
    # One channel at a time: a 100-megapixel photo would take 1.2 GB as one float32 tensor.
    for channel in range(3):
        plane = torch.tensor(image.pixels[None, None, :, :, channel]).float().div_(255)
        if hw != image.hw:
            plane = torch.nn.functional.interpolate(
                plane, size=hw, mode="bilinear", align_corners=False, antialias=shrinks
            )
        planes.append(plane)
    return torch.cat(planes, dim=1)


def _read_file(path: Path) -> Image:
    if path.is_dir():
        raise InputError(
            "an image must be a file", got=f"the folder {path}", remedy="name a file inside it"
        )
    try:
        stream = path.open("rb")
    except FileNotFoundError as error:
        raise InputError(
            "the image file must exist",
            got=f"no file at {path}",
            remedy="check the path; addresses on the web are not fetched, download the file first",
        ) from error
    except (OSError, ValueError) as error:
        raise InputError(
            "the image file must be readable",
            got=f"{str(path)!r}: {error}",
            remedy="check the path and its permissions",
        ) from error
    with stream:
        return Image(pixels=_decode_file(stream, str(path)), source=path.name)


def _decode_file(stream: io.BytesIO | io.BufferedReader, name: str) -> UInt8[np.ndarray, "h w 3"]:
    try:
        with warnings.catch_warnings():
            # Of sizes over 89 megapixels, where the limit below is exact, and of broken metadata,
            # which does not make the pixels unreadable.
            warnings.simplefilter("ignore")
            opened = PIL.Image.open(stream)
    except PIL.Image.DecompressionBombError as error:
        raise _too_large(f"{name}: {error}") from error
    # A damaged header can raise almost anything from the format plugins.
    except Exception as error:
        empty = stream.seek(0, io.SEEK_END) == 0
        raise InputError(
            "the file must be an image in a format Pillow reads (JPEG, PNG, WebP, TIFF, …)",
            got=f"{name}: {'an empty file' if empty else 'not recognised as an image'}",
            remedy="open it in a viewer; save it as PNG or JPEG",
        ) from error
    with opened:
        _check_size((opened.height, opened.width))
        return _decode(opened, name)


def _decode(picture: PIL.Image.Image, name: str) -> UInt8[np.ndarray, "h w 3"]:
    try:
        picture.load()
    except Exception as error:
        raise InputError(
            "the image must be complete and undamaged",
            got=f"{name}: {error}",
            remedy="copy or download the file again, or save it anew from a viewer",
        ) from error
    turn = _UPRIGHT.get(_orientation(picture))
    upright = picture if turn is None else picture.transpose(turn)
    if upright.mode.startswith(("I", "F")):
        # Pillow's own conversion clips these at 255 instead of scaling them.
        return _from_wide(upright)
    try:
        if upright.has_transparency_data:
            return _over_white(np.asarray(upright.convert("RGBA")))
        return np.array(upright.convert("RGB"))
    except ValueError as error:
        raise InputError(
            "the colours of the image must be convertible to RGB",
            got=f"{name}: mode {upright.mode}",
            remedy="save it as an RGB PNG or JPEG from a viewer",
        ) from error


def _orientation(picture: PIL.Image.Image) -> int:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return picture.getexif().get(ExifTags.Base.Orientation, 1)
    # Viewers show images with broken metadata as they are stored.
    except Exception:
        return 1


def _from_wide(picture: PIL.Image.Image) -> UInt8[np.ndarray, "h w 3"]:
    values = np.asarray(picture)
    if values.dtype == np.int32:
        if values.min() < 0 or values.max() > 65535:
            raise InputError(
                "a 32-bit integer image must hold 16-bit values, 0 to 65535",
                got=f"values from {values.min()} to {values.max()}",
                remedy="scale it to 8 or 16 bits first",
            )
        values = values.astype(np.uint16)
    return _from_array(values)


def _from_tensor(tensor: Tensor) -> UInt8[np.ndarray, "h w 3"]:
    held = tensor.detach().cpu()
    if held.dtype == torch.bfloat16:
        held = held.float()
    if held.ndim == 3 and held.shape[0] in _CHANNELS and held.shape[-1] not in _CHANNELS:
        held = held.permute(1, 2, 0)
    return _from_array(held.numpy())


def _from_array(array: np.ndarray) -> UInt8[np.ndarray, "h w 3"]:
    channels = {2: 1, 3: array.shape[-1] if array.ndim else 0}.get(array.ndim, 0)
    if channels not in _CHANNELS:
        remedy = "pass one image of shape (h, w) or (h, w, c) with c = 1, 2, 3 or 4"
        if array.ndim == 3 and array.shape[0] in (1, 3, 4):
            remedy = "move the channels last: image.transpose(1, 2, 0)"
        if array.ndim == 4:
            remedy = "pass the images of a batch one by one: batch[0]"
        raise InputError(
            "an image array has 1 to 4 channels", got=f"shape {array.shape}", remedy=remedy
        )
    _check_size((array.shape[0], array.shape[1]))
    values = _to_bytes(array).reshape(array.shape[0], array.shape[1], channels)
    if channels in (1, 2):
        values = np.concatenate([values[..., :1]] * 3 + [values[..., 1:]], axis=-1)
    if values.shape[-1] == 4:
        return _over_white(values)
    return np.array(values)


def _to_bytes(array: np.ndarray) -> UInt8[np.ndarray, "..."]:
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * np.uint8(255)
    if array.dtype.kind == "u" and array.dtype.itemsize == 2:
        return ((array.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if array.dtype.kind == "f":
        low, high = float(array.min()), float(array.max())
        # Written so that NaN fails too.
        if not (low >= 0 and high <= 1):
            raise InputError(
                "floating point images must lie in [0, 1]",
                got=f"values from {low:g} to {high:g}",
                remedy="divide by 255, or convert to uint8",
            )
        return np.rint(array * 255).astype(np.uint8)
    raise InputError(
        "an image array must be uint8, uint16, bool or floating point",
        got=f"dtype {array.dtype}",
        remedy="convert it: image.astype('uint8') if its values are 0 to 255",
    )


def _over_white(rgba: UInt8[np.ndarray, "h w 4"]) -> UInt8[np.ndarray, "h w 3"]:
    # 16 bits suffice: the sum is at most 255 * 255 + 127.
    alpha = rgba[..., 3:].astype(np.uint16)
    mixed = rgba[..., :3] * alpha + 255 * (255 - alpha)
    return ((mixed + 127) // 255).astype(np.uint8)


def _check_size(hw: tuple[int, int]) -> None:
    if min(hw) < MIN_SIDE:
        raise InputError(
            f"both sides of an image must have at least {MIN_SIDE} pixels",
            got=f"{hw[0]} high, {hw[1]} wide",
            remedy="use a larger image",
        )
    if hw[0] * hw[1] > MAX_PIXELS:
        raise _too_large(f"{hw[0]} high, {hw[1]} wide")


def _too_large(got: str) -> InputError:
    return InputError(
        f"an image may have at most {MAX_PIXELS // 1_000_000} million pixels",
        got=got,
        remedy="scale it down, or cut it into tiles",
    )
