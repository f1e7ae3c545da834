"""What every data set needs on disk, as data: `data/datasets.json`."""

import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Literal, get_args

from diffuseg.errors import InputError

Kind = Literal["images", "videos"]

ALIASES: Mapping[str, str] = {
    "voc": "voc21",
    "voc12": "voc21",
    "voc2012": "voc21",
    "context": "context60",
    "coco-object": "coco_object81",
    "coco-stuff": "coco_stuff171",
    "coco-stuff-27": "coco_stuff27",
    "cityscapes": "cityscapes19",
    "ade20k": "ade150",
    "sun-rgbd": "sunrgbd37",
    "camvid": "camvid11",
    "vspw": "vspw124",
    "bsds": "bsds500",
    "clvos": "clvos23",
}
"""Other names data sets are asked for by."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetFacts:
    """A data set as published.

    Attributes:
        name: As users type it.
        kind: What is scored one by one.
        title: In words.
        classes: How many; None where labels are regions or objects, or are the user's own.
        split: The one usually scored.
        splits: Number of images, or videos, of every split; None where it is not fixed.
        tree: The files, SPLIT and the like in place of what differs; () where none are needed.
        notes: What else has to be known.
        home: Where it is to be had.
    """

    name: str
    kind: Kind
    title: str
    classes: int | None
    split: str
    splits: Mapping[str, int | None]
    tree: tuple[str, ...]
    notes: tuple[str, ...] = ()
    home: str = ""

    @property
    def layout(self) -> str:
        """The tree in one line."""
        return ", ".join(self.tree)

    def to_dict(self) -> dict[str, object]:
        """Return plain JSON values."""
        return {
            "name": self.name, "kind": self.kind, "title": self.title, "classes": self.classes,
            "split": self.split, "splits": dict(self.splits), "tree": list(self.tree),
            "notes": list(self.notes), "home": self.home,
        }  # fmt: skip


@cache
def list_facts() -> tuple[DatasetFacts, ...]:
    """Return all data sets, images first.

    Example:
        >>> [one.name for one in list_facts()][:3]
        ['scenes', 'scenes-things', 'voc21']
    """
    file = resources.files("diffuseg.eval").joinpath("data", "datasets.json")
    held = json.loads(file.read_text("utf-8"))
    return tuple(
        DatasetFacts(
            name=name,
            kind=kind,
            title=one["title"],
            classes=one["classes"],
            split=one["split"],
            splits=one["splits"],
            tree=tuple(one["tree"]),
            notes=tuple(one.get("notes", ())),
            home=one.get("home", ""),
        )
        for kind in get_args(Kind)
        for name, one in held[kind].items()
    )


def find_facts(name: str, kind: Kind | None = None) -> DatasetFacts:
    """Return what is known of a data set.

    Args:
        name: Its name, or one of `ALIASES`.
        kind: Of images or of videos; None: of images if there are both.

    Raises:
        InputError: No such data set.

    Example:
        >>> find_facts("voc12").splits["val"], find_facts("davis2017").kind
        (1449, 'videos')
    """
    known = [one for one in list_facts() if kind in (None, one.kind)]
    wanted = ALIASES.get(name, name)
    for one in known:
        if one.name == wanted:
            return one
    names = list(dict.fromkeys(one.name for one in known))
    near = difflib.get_close_matches(name, [*names, *ALIASES], n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise InputError(
        "the data set must be a known one" + (f" of {kind}" if kind else ""),
        got=name,
        remedy=f"{hint}use one of {', '.join(names)}",
    )
