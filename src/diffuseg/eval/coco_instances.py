"""COCO's instances as one map of classes: what `instances_SPLIT.json` says, painted."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Int64, UInt8

from diffuseg.errors import InputError
from diffuseg.export.rle import decode_rle

CROWD = 255
"""What is painted where objects were not told apart (`iscrowd`); it is not scored."""

# Outlines are drawn on a grid so many times finer, and pixels taken by the middle cell of theirs.
_FINER = 5
_MIDDLE = _FINER // 2


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Instance:
    """One annotation.

    Attributes:
        id: Its number in the file.
        value: The label of its class, or `CROWD`.
        area: In pixels, as the file says.
        outlines: Polygons, for each the corners' x, y; () where there is a code.
        code: A run-length mask, see `diffuseg.export.rle`.
    """

    id: int
    value: int
    area: float
    outlines: tuple[Float64[np.ndarray, "_ 2"], ...] = ()
    code: Mapping[str, object] | None = None

    def mask(self, hw: tuple[int, int]) -> Bool[np.ndarray, "h w"]:
        """Return its pixels.

        Raises:
            InputError: The code is damaged, or of another size.
        """
        if self.code is None:
            held = np.zeros(hw, dtype=bool)
            for outline in self.outlines:
                held |= fill_outline(outline, hw)
            return held
        held = decode_rle(self.code)
        if held.shape != hw:
            raise InputError(
                "a mask must have the size of its picture",
                got=f"annotation {self.id} of {held.shape}, a picture of {hw} (height, width)",
                remedy="take both from one release",
            )
        return held


@dataclass(frozen=True, slots=True, kw_only=True)
class Annotated:
    """One picture of the file.

    Attributes:
        name: Of its file.
        hw: Height and width.
        instances: Those painted first come first: by decreasing area, so that what is small stays
            on top of what is behind it.
    """

    name: str
    hw: tuple[int, int]
    instances: tuple[Instance, ...]

    def paint(self) -> UInt8[np.ndarray, "h w"]:
        """Return the class of every pixel, 0 where there is no instance.

        Raises:
            InputError: An annotation is damaged.
        """
        values = np.zeros(self.hw, dtype=np.uint8)
        for one in self.instances:
            values[one.mask(self.hw)] = one.value
        return values


def fill_outline(
    corners: Float64[np.ndarray, "n 2"], hw: tuple[int, int]
) -> Bool[np.ndarray, "h w"]:
    """Return the pixels of a polygon, to the pixel those that COCO's own tools give.

    The outline is walked on a grid five times finer. Where it passes the middle of a column of
    pixels, everything below changes between outside and inside.

    Args:
        corners: x, y; the last is joined to the first. They may lie outside of the picture.
        hw: Height and width of the picture.

    Example:
        >>> square = np.array([[1.0, 0.0], [3.0, 0.0], [3.0, 2.0], [1.0, 2.0]])
        >>> fill_outline(square, (2, 4)).astype(int).tolist()
        [[0, 1, 1, 0], [0, 1, 1, 0]]
    """
    h, w = hw
    x, y = _walk(_toward_zero(_FINER * corners + 0.5))
    passed = np.flatnonzero(x[1:] != x[:-1])
    column, row = (np.minimum(one[passed], one[passed + 1]) for one in (x, y))
    # The first row whose middle is not above the outline.
    row = np.clip((row + _MIDDLE) // _FINER, 0, h)
    seen = (column % _FINER == _MIDDLE) & (column >= 0) & (column < _FINER * w)
    held = np.zeros((w, h), dtype=bool)
    if not seen.any():
        return held.T
    column, row = column[seen] // _FINER, row[seen]
    first, last = int(column.min()), int(column.max()) + 1
    # A closed outline passes every column an even number of times: none reaches into the next.
    size = (last - first) * h
    changes = np.bincount((column - first) * h + row, minlength=size)[:size] % 2 == 1
    held[first:last] = np.logical_xor.accumulate(changes).reshape(-1, h)
    return held.T


def read_instances(path: Path, classes: Sequence[str]) -> list[Annotated]:
    """Return the pictures of a file of instances, by their numbers.

    Args:
        path: `instances_SPLIT.json`.
        classes: Names by label; the categories of the file are found among them by name.

    Raises:
        InputError: The file is damaged, or has other categories.
    """
    try:
        held = json.loads(path.read_bytes())
        labels = _labels_of(held["categories"], classes, path)
        found: dict[int, list[Instance]] = {one["id"]: [] for one in held["images"]}
        for one in held["annotations"]:
            found[one["image_id"]].append(_instance(one, labels))
        return [
            Annotated(
                name=one["file_name"],
                hw=(one["height"], one["width"]),
                # Ties stay in the order of the file.
                instances=tuple(sorted(found[one["id"]], key=lambda mine: -mine.area)),
            )
            for one in sorted(held["images"], key=lambda image: image["id"])
        ]
    except InputError:
        raise
    # What is missing in a damaged file shows as almost anything.
    except (KeyError, TypeError, ValueError, AttributeError, OSError) as error:
        raise InputError(
            "the instances must be COCO's JSON: images, annotations, categories",
            got=f"{path}: {error!r}"[:300],
            remedy="extract it again",
        ) from error


def _labels_of(
    categories: Sequence[Mapping[str, Any]], classes: Sequence[str], path: Path
) -> dict[int, int]:
    """Label by number of the category, of which some between 1 and 90 are not used."""
    names = [one["name"] for one in categories]
    strange = [one for one in names if one not in classes[1:]]
    lacking = [one for one in classes[1:] if one not in names]
    if strange or lacking:
        which = f"with {', '.join(strange[:3])}" if strange else f"without {', '.join(lacking[:3])}"
        raise InputError(
            f"the categories must be COCO's {len(classes) - 1} things",
            got=f"{path}: {len(names)}, {which}",
            remedy="use instances_val2017.json as it is published",
        )
    return {one["id"]: classes.index(one["name"]) for one in categories}


def _instance(held: Mapping[str, Any], labels: Mapping[int, int]) -> Instance:
    shape, number = held["segmentation"], held["id"]
    outlines: list[Float64[np.ndarray, "_ 2"]] = []
    if not isinstance(shape, dict):
        for one in shape:
            if len(one) < 6 or len(one) % 2:
                raise ValueError(f"annotation {number}: a polygon of {len(one)} numbers")
            outlines.append(np.array(one, dtype=np.float64).reshape(-1, 2))
    return Instance(
        id=number,
        value=CROWD if held.get("iscrowd") else labels[held["category_id"]],
        area=float(held["area"]),
        outlines=tuple(outlines),
        code=shape if isinstance(shape, dict) else None,
    )


def _walk(
    corners: Int64[np.ndarray, "n 2"],
) -> tuple[Int64[np.ndarray, " m"], Int64[np.ndarray, " m"]]:
    """The points of a closed outline, x and y: one a step along the longer side of every edge.

    A point between is rounded as seen from the lower end, whichever way the edge is walked.
    """
    ends = np.roll(corners, -1, axis=0)
    spans = np.abs(ends - corners)
    edges = np.arange(len(corners))
    along = np.where(spans[:, 0] >= spans[:, 1], 0, 1)
    steps = spans[edges, along]
    back = corners[edges, along] > ends[edges, along]
    low = np.where(back[:, None], ends, corners)
    high = np.where(back[:, None], corners, ends)
    # An edge without length is its one point.
    slope = (high - low)[edges, 1 - along] / np.maximum(steps, 1)
    which = np.repeat(edges, steps + 1)
    place = np.arange(len(which)) - np.repeat(np.cumsum(steps + 1) - (steps + 1), steps + 1)
    place = np.where(back[which], steps[which] - place, place)
    major = low[which, along[which]] + place
    minor = _toward_zero(low[which, 1 - along[which]] + slope[which] * place + 0.5)
    flat = along[which] == 0
    return np.where(flat, major, minor), np.where(flat, minor, major)


def _toward_zero(values: Float64[np.ndarray, "*s"]) -> Int64[np.ndarray, "*s"]:
    return values.astype(np.int64)
