"""Makers of pictures and label maps: ordinary ones, odd ones, and broken ones."""

import io
import struct
import zlib

import numpy as np
import PIL.Image

# The picture of `corners`: each quarter has its own colour, so that every turn of it shows.
TOP_LEFT, TOP_RIGHT, BOTTOM_LEFT, BOTTOM_RIGHT = (
    (255, 0, 0),
    (0, 255, 0),
    (0, 0, 255),
    (255, 255, 0),
)


def corners(hw: tuple[int, int] = (32, 48)) -> np.ndarray:
    """An RGB picture whose four quarters are red, green, blue and yellow."""
    height, width = hw
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    pixels[: height // 2, : width // 2] = TOP_LEFT
    pixels[: height // 2, width // 2 :] = TOP_RIGHT
    pixels[height // 2 :, : width // 2] = BOTTOM_LEFT
    pixels[height // 2 :, width // 2 :] = BOTTOM_RIGHT
    return pixels


def noise(hw: tuple[int, int] = (32, 48), *, seed: int = 0) -> np.ndarray:
    """An RGB picture of random pixels, which compresses badly."""
    return np.random.default_rng(seed).integers(0, 256, (*hw, 3), dtype=np.uint8)


def encoded(picture: PIL.Image.Image | np.ndarray, kind: str = "PNG", **options: object) -> bytes:
    """The bytes of an image file."""
    if isinstance(picture, np.ndarray):
        picture = PIL.Image.fromarray(picture)
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def turned(orientation: int, kind: str = "JPEG") -> bytes:
    """`corners` stored turned, with the EXIF orientation that turns it upright."""
    undo = {
        1: None,
        2: PIL.Image.Transpose.FLIP_LEFT_RIGHT,
        3: PIL.Image.Transpose.ROTATE_180,
        4: PIL.Image.Transpose.FLIP_TOP_BOTTOM,
        5: PIL.Image.Transpose.TRANSPOSE,
        6: PIL.Image.Transpose.ROTATE_90,
        7: PIL.Image.Transpose.TRANSVERSE,
        8: PIL.Image.Transpose.ROTATE_270,
    }[orientation]
    picture = PIL.Image.fromarray(corners())
    stored = picture if undo is None else picture.transpose(undo)
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    return encoded(stored, kind, exif=exif, **({"quality": 95} if kind == "JPEG" else {}))


def see_through() -> PIL.Image.Image:
    """Red: the left half opaque, the right half transparent."""
    pixels = np.zeros((32, 48, 4), dtype=np.uint8)
    pixels[..., 0] = 255
    pixels[:, :24, 3] = 255
    return PIL.Image.fromarray(pixels)


def see_through_palette() -> bytes:
    """As `see_through`, as a PNG with a palette of which one entry is transparent."""
    picture = PIL.Image.new("P", (48, 32), 0)
    picture.putpalette([255, 0, 0, 0, 0, 0])
    picture.paste(1, (24, 0, 48, 32))
    return encoded(picture, transparency=1)


def huge_png(hw: tuple[int, int]) -> bytes:
    """A PNG whose header promises `hw` pixels, with almost no data behind it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + check

    header = struct.pack(">IIBBBBB", hw[1], hw[0], 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 100))
        + chunk(b"IEND", b"")
    )


def animation() -> bytes:
    """A GIF whose first frame is red and whose second is blue."""
    frames = [PIL.Image.new("RGB", (48, 32), color) for color in ("red", "blue")]
    return encoded(frames[0], "GIF", save_all=True, append_images=frames[1:], duration=100)


def blobs(hw: tuple[int, int] = (40, 56), k: int = 4, *, seed: int = 0) -> np.ndarray:
    """Labels 0 to k - 1 in smooth patches."""
    from scipy import ndimage

    fields = np.random.default_rng(seed).standard_normal((k, *hw))
    return ndimage.gaussian_filter(fields, (0, 4, 4)).argmax(axis=0)
