"""A folder compared with what a data set needs: what is there, and exactly what is missing."""

import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace

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
        label_source: Whose labels they are, where there are several.
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
    label_source: str = ""
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
    held = _Held(split=split or facts.split)
    try:
        held = _look(facts, root, held, progress)
    except _Wrong as error:
        held, missing = error.held, [error.what]
    else:
        missing = []
    published = facts.splits.get(held.split)
    if held.found is not None and published is not None and held.found < published:
        lacking = f"{published - held.found} of the {published} {facts.kind} of the release"
        missing.append(f"{lacking} are not there, or not listed")
    return Inspection(
        name=facts.name,
        kind=facts.kind,
        root=str(root),
        split=held.split,
        found=held.found,
        published=published,
        missing=tuple(missing),
        per_class=held.per_class,
        label_source=held.label_source,
        note=held.note,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Held:
    """What is known of a folder so far."""

    split: str
    found: int | None = None
    per_class: Mapping[str, int] = field(default_factory=dict)
    label_source: str = ""
    note: str = ""


class _Wrong(Exception):
    """What an error says, and how far the looking had come."""

    def __init__(self, error: InputError, held: _Held) -> None:
        super().__init__(str(error))
        self.what = str(error.got)
        self.held = held


def _look(
    facts: DatasetFacts,
    root: str | os.PathLike[str],
    held: _Held,
    progress: Callable[[int, int], None] | None,
) -> _Held:
    try:
        if facts.kind == "videos":
            from diffuseg.eval.video_datasets import open_video_dataset

            videos = open_video_dataset(facts.name, root, split=held.split)
            return replace(held, found=len(videos), note=getattr(videos, "note", ""))
        if facts.name not in IMAGE_DATASETS:
            from diffuseg.eval.region_sets import check_regions, open_regions

            regions = open_regions(facts.name, root, split=held.split)
            held = replace(held, found=len(regions))
            check_regions(regions, progress=progress)
            return held
        data = open_dataset(facts.name, root=root, split=held.split)
        told = {one: getattr(data, one, "") for one in ("label_source", "note")}
        held = replace(held, split=data.split, found=len(data), **told)
        counts = check_dataset(data, progress=progress).images
        return replace(held, per_class=dict(zip(data.classes, counts, strict=True)))
    except InputError as error:
        raise _Wrong(error, held) from error
