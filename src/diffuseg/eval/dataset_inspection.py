"""A folder compared with what a data set needs: what is there, and exactly what is missing."""

import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field

from diffuseg.errors import InputError
from diffuseg.eval.dataset_facts import DatasetFacts, Kind, find_facts
from diffuseg.eval.datasets import IMAGE_DATASETS, open_dataset
from diffuseg.eval.image_checks import check_dataset


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """What was found in the folder of a data set.

    Attributes:
        name: The data set.
        kind: "images" or "videos", which are counted.
        root: The folder.
        split: Which part was looked at.
        found: How many there are; None where the folder could not be opened at all.
        published: How many the release has; None: not fixed.
        missing: What is missing or wrong, one thing a text.
        per_class: In how many images every class is; {} where that was not counted.
        note: What has to be known beside a score.
    """

    name: str
    kind: Kind
    root: str
    split: str
    found: int | None
    published: int | None
    missing: tuple[str, ...] = ()
    per_class: Mapping[str, int] = field(default_factory=dict)
    note: str = ""

    @property
    def complete(self) -> bool:
        """Whether nothing is missing."""
        return not self.missing

    def to_dict(self) -> dict[str, object]:
        """Return plain JSON values."""
        return {"complete": self.complete, **asdict(self), "missing": list(self.missing)}


def inspect_folder(
    name: str,
    root: str | os.PathLike[str],
    *,
    split: str | None = None,
    kind: Kind | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Inspection:
    """Look whether a folder has what a data set needs: every file, sizes and labels.

    Args:
        name: The data set, see `find_facts`.
        root: The folder.
        split: Which part; None: the one usually scored.
        kind: "images" or "videos", where there are both; None: images.
        progress: Called with (done, all).

    Raises:
        InputError: No such data set, or one that is drawn and needs no folder.

    Example:
        >>> inspect_folder("voc21", "nowhere").missing[0].split(" nowhere")[0]
        'no folder'
    """
    facts = find_facts(name, kind)
    if not facts.tree:
        raise InputError(
            f"{facts.name} is drawn, not read", got=str(root), remedy="it needs no folder"
        )
    chosen = split or facts.split
    try:
        found, per_class, note, chosen = _opened(facts, root, chosen, progress)
        missing: tuple[str, ...] = ()
    except _Wrong as error:
        found, per_class, note, missing = error.found, {}, "", (error.what,)
        chosen = error.split
    published = facts.splits.get(chosen)
    if found is not None and published is not None and found < published:
        lacking = f"{published - found} of the {published} {facts.kind} of the release"
        missing = (*missing, f"{lacking} are not there, or not listed")
    return Inspection(
        name=facts.name,
        kind=facts.kind,
        root=str(root),
        split=chosen,
        found=found,
        published=published,
        missing=missing,
        per_class=per_class,
        note=note,
    )


class _Wrong(Exception):
    """What an error says, and how far the opening had come."""

    def __init__(self, error: InputError, found: int | None, split: str) -> None:
        super().__init__(str(error))
        self.what = str(error.got)
        self.found = found
        self.split = split


def _opened(
    facts: DatasetFacts,
    root: str | os.PathLike[str],
    split: str,
    progress: Callable[[int, int], None] | None,
) -> tuple[int, Mapping[str, int], str, str]:
    found: int | None = None
    try:
        if facts.kind == "videos":
            from diffuseg.eval.video_datasets import open_video_dataset

            return len(open_video_dataset(facts.name, root, split=split)), {}, "", split
        if facts.name not in IMAGE_DATASETS:
            from diffuseg.eval.region_sets import check_regions, open_regions

            regions = open_regions(facts.name, root, split=split)
            found = len(regions)
            check_regions(regions, progress=progress)
            return found, {}, "", split
        data = open_dataset(facts.name, root=root, split=split)
        found, split = len(data), data.split
        checked = check_dataset(data, progress=progress)
    except InputError as error:
        raise _Wrong(error, found, split) from error
    counts = dict(zip(data.classes, checked.images, strict=True))
    return found, counts, getattr(data, "note", ""), split
