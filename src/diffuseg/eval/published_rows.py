"""What papers print, row by row: `data/published.json`, figures in per cent with their source."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources

FIGURES: Mapping[str, str] = {
    "mIoU": "miou",
    "ACC": "acc",
    "mVC8": "mvc8",
    "mVC16": "mvc16",
    "J": "j",
    "F": "f",
    "J&F": "j_and_f",
}
"""Figures of tables, by what they are called there, and in our reports."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Protocol:
    """How a printed figure came about, where that is known.

    Attributes:
        given: What the method was told, as `evaluate` calls it.
        average: The rule of the mean IoU.
        oracles: What it knew of the truth it was scored on, see `protocols.ORACLES`.
    """

    given: str
    average: str
    oracles: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedRow:
    """One number of one table.

    Attributes:
        method: As the table calls it.
        backbone: What it runs on; None: the table does not say.
        dataset: As `open_dataset` calls it; None for figures that are of none.
        split: The same.
        metric: As the table calls it, see `FIGURES`.
        value: The number; shares are per cent.
        paper: Short name of where it stands; `source` has it in full.
        table: Which table there.
        std: Standard deviation over seeds.
        training: Whether the table counts the method among those that were trained.
        subset: Which part of the split it is of; "": all.
        note: What has to be known beside it.
        protocol: How it came about; None: not known.
    """

    method: str
    backbone: str | None
    dataset: str | None
    split: str | None
    metric: str
    value: float
    paper: str
    table: str
    std: float | None = None
    training: bool | None = None
    subset: str = ""
    note: str = ""
    protocol: Protocol | None = None

    @property
    def source(self) -> str:
        """Paper and table in words."""
        return f"{_read()[0][self.paper]}, {self.table}"


def published_rows(
    dataset: str | None = None, split: str | None = None, metric: str | None = None
) -> tuple[PublishedRow, ...]:
    """Return what is printed of a data set; None stands for all.

    Example:
        >>> found = published_rows("cityscapes27", "val", "mIoU")
        >>> [(one.method, one.value) for one in found if one.method == "iSeg"]
        [('iSeg', 25.0)]
    """
    return tuple(
        one
        for one in _read()[1]
        if dataset in (None, one.dataset)
        and split in (None, one.split)
        and metric in (None, one.metric)
    )


@cache
def _read() -> tuple[Mapping[str, str], tuple[PublishedRow, ...]]:
    file = resources.files("diffuseg.eval").joinpath("data", "published.json")
    held = json.loads(file.read_text("utf-8"))
    known = {
        name: Protocol(given=one["given"], average=one["average"], oracles=tuple(one["oracles"]))
        for name, one in held["protocols"].items()
    }
    rows = tuple(
        PublishedRow(
            **{**row, "value": float(row["value"]), "protocol": known.get(row.get("protocol"))}
        )
        for row in held["rows"]
    )
    return held["papers"], rows
