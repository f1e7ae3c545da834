"""COCO's run-length code of masks, in plain NumPy."""

import numpy as np
from jaxtyping import Bool

from diffuseg.errors import InputError

# Each character carries five bits of a number and one that says whether more follow; 48 is "0".
_BITS, _MORE, _FIRST = 5, 0x20, 48


def encode_rle(mask: Bool[np.ndarray, "h w"]) -> dict[str, object]:
    """Return a mask as a COCO run-length object, `{"size": [h, w], "counts": "…"}`.

    Runs go down the columns and start with False. From the third on each is stored as its
    difference to the one two before, in the compressed form `pycocotools` reads.

    Example:
        >>> encode_rle(np.array([[False, True], [False, True]]))
        {'size': [2, 2], 'counts': '22'}
    """
    flat = mask.ravel(order="F")
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    counts = np.diff(np.concatenate([[0], changes, [flat.size]]))
    if flat.size and flat[0]:
        counts = np.concatenate([[0], counts])
    return {"size": list(mask.shape), "counts": _pack(counts.tolist())}


def decode_rle(code: object) -> Bool[np.ndarray, "h w"]:
    """Return the mask of a COCO run-length object, compressed or as a list of counts.

    Raises:
        InputError: It is no such object, or its runs do not fill its size.

    Example:
        >>> decode_rle({"size": [1, 3], "counts": [1, 1, 1]}).tolist()
        [[False, True, False]]
    """
    try:
        height, width = (int(side) for side in code["size"])  # type: ignore[index]
        counts = code["counts"]  # type: ignore[index]
        held = np.array(_unpack(counts) if isinstance(counts, str) else counts, dtype=np.int64)
        fits = held.ndim == 1 and held.sum() == height * width and (held >= 0).all()
    except (KeyError, IndexError, TypeError, ValueError, OverflowError) as error:
        raise InputError(
            "a run-length mask has a size and counts",
            got=f"{str(code)[:80]}: {error}",
            remedy="export the file again",
        ) from error
    if not fits:
        raise InputError(
            "the runs of a mask must fill its size",
            got=f"{held.sum()} pixels for {height} x {width}",
            remedy="export the file again",
        )
    values = np.arange(len(held)) % 2 == 1
    return np.repeat(values, held).reshape((height, width), order="F")


def _pack(counts: list[int]) -> str:
    characters: list[str] = []
    for i, count in enumerate(counts):
        rest = count - counts[i - 2] if i > 2 else count
        more = True
        while more:
            bits = rest & (_MORE - 1)
            rest >>= _BITS
            # Done when what is left only repeats the sign bit just written.
            more = rest != (-1 if bits & (_MORE >> 1) else 0)
            characters.append(chr(_FIRST + (bits | _MORE if more else bits)))
    return "".join(characters)


def _unpack(code: str) -> list[int]:
    counts: list[int] = []
    value = shift = 0
    for character in code:
        bits = ord(character) - _FIRST
        value |= (bits & (_MORE - 1)) << shift
        shift += _BITS
        if bits & _MORE:
            continue
        if bits & (_MORE >> 1):
            value -= 1 << shift
        counts.append(value + counts[-2] if len(counts) > 2 else value)
        value = shift = 0
    return counts
