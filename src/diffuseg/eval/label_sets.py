"""Sets of classes as they are published: names, stored values, what is not scored, colours.

The facts lie in `data/labels/NAME.json`: "classes" in the order of their labels; "values", the
label of every value a mask may hold, counted from 0; "unlabelled", further values that are not
scored; "palette", where the set has colours of its own, else VOC's from "first_color" on;
"names", what systems call classes in prompts; "things", how many classes are things and come first.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from importlib import resources
from typing import Any

import numpy as np
from jaxtyping import Int32, Integer, UInt8

from diffuseg.errors import InputError
from diffuseg.eval import coarse27
from diffuseg.eval.datasets import BACKGROUND
from diffuseg.palettes import voc_palette

UNKNOWN = -(1 << 31)
"""In a table: no mask of the data set may hold this value."""

_VOID = 255


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LabelSet:
    """Classes, and the way from the values of a mask to their labels.

    Attributes:
        classes: Names in the order of the labels.
        table: Label by stored value; `ignore` where it is not scored, `UNKNOWN` where there is no
            such value. Values beyond the table are unknown.
        ignore: Label of pixels that are not scored.
        palette: The colour of every class.
        names: What systems call some classes in prompts, by system.
        groups: Named sets of classes that get an average of their own.
    """

    classes: tuple[str, ...]
    table: Int32[np.ndarray, " v"]
    ignore: int
    palette: UInt8[np.ndarray, "k 3"]
    names: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def labels(self, values: Integer[np.ndarray, "*s"]) -> Int32[np.ndarray, "*s"]:
        """Return the labels of stored values, `UNKNOWN` among them.

        Example:
            >>> read_labels("voc20").labels(np.array([0, 1, 20, 255])).tolist()
            [255, 0, 19, 255]
        """
        inside = (values >= 0) & (values < len(self.table))
        return np.where(inside, self.table[np.where(inside, values, 0)], np.int32(UNKNOWN))

    def renamed(self, system: str) -> "LabelSet":
        """Return the set with the names a system asks for in prompts.

        Raises:
            InputError: No names of that system are known for this set.

        Example:
            >>> read_labels("voc21").renamed("plain").classes[11]
            'dining table'
        """
        if system not in self.names:
            raise InputError(
                "the names must be those of a system that has some for this data set",
                got=repr(system),
                remedy=f"use one of {', '.join(sorted(self.names)) or 'none'}, or leave it out",
            )
        known = self.names[system]
        groups = {
            group: tuple(known.get(name, name) for name in names)
            for group, names in self.groups.items()
        }
        classes = tuple(known.get(name, name) for name in self.classes)
        return replace(self, classes=classes, groups=groups)

    def foreground(self) -> "LabelSet":
        """Return the set without its first class, the background, whose pixels are not scored.

        Example:
            >>> len(read_labels("context60").foreground().classes)
            59
        """
        known = (self.table != self.ignore) & (self.table != UNKNOWN)
        moved = np.where(known, self.table - 1, self.table).astype(np.int32)
        moved[known & (self.table == 0)] = self.ignore
        return replace(
            self, classes=self.classes[1:], table=moved, palette=self.palette[1:], groups={}
        )

    def with_values(self, labels: Sequence[int], further: Mapping[int, int]) -> "LabelSet":
        """Return the same classes stored another way, see `make_table`."""
        return replace(self, table=make_table(labels, further))


def make_table(labels: Sequence[int], further: Mapping[int, int]) -> Int32[np.ndarray, " v"]:
    """Return a table of `LabelSet`.

    Args:
        labels: Label of every value from 0.
        further: Labels of values beyond.

    Example:
        >>> make_table([0, 1], {3: 255}).tolist()
        [0, 1, -2147483648, 255]
    """
    table = np.full(max([len(labels), *(v + 1 for v in further)]), UNKNOWN, dtype=np.int32)
    table[: len(labels)] = labels
    for value, label in further.items():
        table[value] = label
    return table


@cache
def read_labels(name: str) -> LabelSet:
    """Return a published set of classes.

    Args:
        name: "voc21", "voc20", "context60", "context59", "coco_object81", "coco_stuff171",
            "coco_stuff27", "cityscapes19", "cityscapes27", "ade150", "sunrgbd37", "camvid11".

    Raises:
        InputError: No such set.

    Example:
        >>> labels = read_labels("ade150")
        >>> labels.classes[:2], labels.table[:2].tolist(), labels.palette[0].tolist()
        (('wall', 'building'), [255, 0], [120, 120, 120])
    """
    match name:
        case "voc20":
            return read_labels("voc21").foreground()
        case "context59":
            return read_labels("context60").foreground()
        case "coco_stuff27":
            return _coarse(coarse27.COCO_STUFF27, coarse27.coco_stuff27_labels(np.arange(182)))
        case "cityscapes27":
            held = read_facts(name)
            made = _coarse(tuple(held["classes"]), coarse27.cityscapes27_labels(np.arange(34)))
            return replace(made, palette=_colors(held["palette"]), groups={})
    held = read_facts(name)
    classes = tuple(held["classes"])
    ignore: int = held.get("ignore", _VOID)
    groups: dict[str, tuple[str, ...]] = {}
    if classes[0] == BACKGROUND:
        groups = {"foreground": classes[1:]}
    elif "things" in held:
        groups = {"things": classes[: held["things"]], "stuff": classes[held["things"] :]}
    return LabelSet(
        classes=classes,
        table=make_table(held["values"], dict.fromkeys(held.get("unlabelled", ()), ignore)),
        ignore=ignore,
        palette=_palette(held),
        names=held.get("names", {}),
        groups=groups,
    )


def numbered_labels(classes: tuple[str, ...], ignore: int) -> LabelSet:
    """Return classes whose labels are what masks hold.

    Example:
        >>> numbered_labels(("sky", "sea"), 255).labels(np.array([1, 255])).tolist()
        [1, 255]
    """
    return LabelSet(
        classes=classes,
        table=make_table(range(len(classes)), {ignore: ignore}),
        ignore=ignore,
        palette=voc_palette(len(classes)),
    )


def read_facts(name: str) -> Mapping[str, Any]:
    """Return what `data/labels/NAME.json` holds.

    Raises:
        InputError: There is no such file.
    """
    folder = resources.files("diffuseg.eval").joinpath("data", "labels")
    file = folder.joinpath(f"{name}.json")
    if not file.is_file():
        known = sorted(one.name.removesuffix(".json") for one in folder.iterdir())
        raise InputError(
            "the set of classes must be a known one", got=name, remedy=f"one of {', '.join(known)}"
        )
    return json.loads(file.read_text("utf-8"))


def _coarse(classes: tuple[str, ...], labels: Integer[np.ndarray, " v"]) -> LabelSet:
    things = tuple(name for name in classes if name.endswith("-things"))
    return LabelSet(
        classes=classes,
        table=make_table(labels.tolist(), {_VOID: -1}),
        ignore=-1,
        palette=voc_palette(len(classes)),
        groups={"things": things, "stuff": classes[len(things) :]},
    )


def _palette(held: Mapping[str, Any]) -> UInt8[np.ndarray, "k 3"]:
    if "palette" in held:
        return _colors(held["palette"])
    first = held.get("first_color", 0)
    return voc_palette(first + len(held["classes"]))[first:]


def _colors(rows: Sequence[Sequence[int]]) -> UInt8[np.ndarray, "k 3"]:
    return np.array(rows, dtype=np.uint8).reshape(-1, 3)
