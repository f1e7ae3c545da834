"""Runs side by side, beside what papers print, and in what their protocols differ."""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffuseg.errors import InputError
from diffuseg.eval.dataset_facts import find_facts
from diffuseg.eval.metrics import AVERAGES
from diffuseg.eval.protocols import chosen_words, find_given, find_oracles
from diffuseg.eval.published_rows import FIGURES, PublishedRow, published_rows
from diffuseg.eval.report import percent, table_lines, weights_line

_SHOWN = {
    **{ours: theirs for theirs, ours in FIGURES.items()},
    "fwiou": "IoU by frequency",
    "covering": "covering",
    "rand": "Rand index",
    "voi": "variation of information, bits",
    "ods": "F of boundaries, ODS",
    "ois": "F of boundaries, OIS",
}
_NO_SHARES = ("voi",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Something of the protocol in which runs are unlike, and what it is in each."""

    what: str
    values: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Beside:
    """A row that papers print, its figures, and in what its protocol differs from the runs'."""

    method: str
    backbone: str
    values: Mapping[str, float]
    source: str
    differs: tuple[str, ...]
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Runs side by side.

    Attributes:
        runs: What the runs are, one heading each.
        figures: Shares of 1 by name, `voi` in bits, one value a run; None where a run has no such
            figure.
        intervals: Lower and upper end by name, the same way.
        models: Which weights each run is of.
        differences: In what protocols are unlike.
        published: What papers print of the same data set, split and figures.
    """

    runs: tuple[str, ...]
    figures: Mapping[str, tuple[float | None, ...]]
    intervals: Mapping[str, tuple[tuple[float, float] | None, ...]]
    models: tuple[str, ...]
    differences: tuple[Difference, ...]
    published: tuple[Beside, ...]

    def to_json(self) -> str:
        """Return everything as JSON text."""
        held = {
            "runs": self.runs,
            "figures": self.figures,
            "intervals": self.intervals,
            "models": self.models,
            "differences": {one.what: one.values for one in self.differences},
            "published": [
                {
                    "method": one.method, "backbone": one.backbone, "values": one.values,
                    "source": one.source, "differs": one.differs, "note": one.note,
                }
                for one in self.published
            ],
        }  # fmt: skip
        return json.dumps(held, indent=2, ensure_ascii=False) + "\n"

    def to_markdown(self) -> str:
        """Return the comparison as a page to read; what is unlike comes first."""
        lines = []
        if self.differences:
            rows = [(one.what, *one.values) for one in self.differences]
            lines += [
                "**Unlike protocols: these figures do not compare.** The runs differ in",
                "",
                *table_lines(("what", *self.runs), rows),
                "",
            ]
        rows = [
            (_SHOWN[name], *(f"{one:.2f}" if one is not None else "-" for one in values))
            if name in _NO_SHARES
            else (_SHOWN[name], *map(_with_interval, values, self.intervals[name]))
            for name, values in self.figures.items()
        ]
        lines += [*table_lines(("figure", *self.runs), rows), ""]
        lines += [f"- {run}: {told}." for run, told in zip(self.runs, self.models, strict=True)]
        if self.published:
            names = [
                name for name in self.figures if any(name in one.values for one in self.published)
            ]
            rows = [
                (
                    one.method,
                    one.backbone or "-",
                    *(f"{one.values[name]:g}" if name in one.values else "" for name in names),
                    one.source + (f" ({one.note})" if one.note else ""),
                    "; ".join(one.differs) or "nothing known",
                )
                for one in self.published
            ]
            lines += ["", "What papers print, in per cent, and in what their protocol differs:"]
            head = ("published", "on", *(_SHOWN[name] for name in names), "source", "differs in")
            lines += ["", *table_lines(head, rows)]
        return "\n".join([*lines, ""])


Source = str | os.PathLike[str] | Mapping[str, Any]


def compare_reports(
    reports: Sequence[Source],
    *,
    average: str | None = None,
    anyway: bool = False,
    published: bool = True,
    papers: Sequence[str] = (),
) -> Comparison:
    """Set runs side by side, and beside what papers print of the same data, split and figures.

    Args:
        reports: Files `report.json`, folders that hold one, or what such a file holds.
        average: The rule by which all mean IoU are taken; None: of each run its own, which have to
            be the same.
        anyway: Whether runs with unlike protocols are compared, and the page says so; else that is
            an error.
        published: Whether printed rows stand beside.
        papers: Only of these, by short name, such as "iSeg"; () for all.

    Raises:
        InputError: A file is no report, the rule is unknown, or protocols are unlike.

    Example:
        >>> compare_reports(["a/report.json", "b/report.json"]).differences  # doctest: +SKIP
        ()
    """
    if not reports:
        raise InputError("there must be reports to compare", got="none", remedy="name some")
    if average not in (None, *AVERAGES):
        raise InputError(
            f"average must be one of {', '.join(AVERAGES)}", got=average, remedy="leave it out"
        )
    held = [_read(one) for one in reports]
    differences = find_differences(held, average=average)
    if differences and not anyway:
        told = "; ".join(f"{one.what}: {' | '.join(one.values)}" for one in differences)
        raise InputError(
            "runs that are compared must have one protocol",
            got=told,
            remedy="run them alike, or compare them anyway (anyway=True, --anyway): the page then "
            "says in what they differ",
        )
    names = [
        name for name in _SHOWN if any(_figure(one, name, average) is not None for one in held)
    ]
    beside = _beside(held, names, average, papers) if published else ()
    return Comparison(
        runs=_headings(held),
        figures={name: tuple(_figure(one, name, average) for one in held) for name in names},
        intervals={name: tuple(_interval(one, name, average) for one in held) for name in names},
        models=tuple(weights_line(one["model"]) for one in held),
        differences=differences,
        published=beside,
    )


def find_differences(
    reports: Sequence[Mapping[str, Any]], *, average: str | None = None
) -> tuple[Difference, ...]:
    """Return in what the protocols of reports are unlike.

    Example:
        >>> held = {"dataset": "scenes", "split": "test", "n_images": 4}
        >>> [one.what for one in find_differences([held, {**held, "n_images": 8}])]
        ['images']
    """
    told = [_protocol(one, average) for one in reports]
    found = []
    for what in told[0]:
        values = tuple(one[what] for one in told)
        if len(set(values)) > 1:
            found.append(Difference(what=what, values=values))
    return tuple(found)


def _protocol(report: Mapping[str, Any], average: str | None) -> dict[str, str]:
    threshold = report.get("threshold") or {}
    words = chosen_words(report.get("chosen_on"), str(report.get("split")))
    classes = report.get("per_class") or {}
    part = report.get("shard")
    return {
        "data set": str(report["dataset"]),
        "split": str(report["split"]),
        "stream": str(report.get("seed", "-")),
        "images": str(report.get("n_images", report.get("n_videos"))),
        "frames": str(report.get("n_frames", "-")),
        "pixels scored": str(report.get("pixels_scored", "-")),
        "part": "all" if not part else "{} of {}".format(*part),
        "classes": f"{len(classes)}: {', '.join(list(classes)[:3])}, …" if classes else "-",
        "given": find_given(report) or "not stated",
        "oracle": ", ".join(find_oracles(report)) or "none",
        "averaging rule": average or str(report.get("average", "gt_present")),
        "scored at": str(report.get("geometry", "-")),
        "boundaries": f"off by {report['tolerance']}, {report.get('boundaries') or 'not stated'}"
        if "tolerance" in report
        else "-",
        "labels": str(report.get("label_source", "the data set's own labels")),
        "settings chosen on": str(threshold.get("chosen_on") or words),
    }


def _read(source: Source) -> Mapping[str, Any]:
    if isinstance(source, Mapping):
        held: Any = source
    else:
        path = Path(source)
        path = path / "report.json" if path.is_dir() else path
        try:
            held = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(
                "a report is a JSON file evaluate wrote, or a folder that holds report.json",
                got=f"{path}: {error}",
                remedy="evaluate with --report FOLDER",
            ) from error
    needed = ("dataset", "split", "metrics", "protocol", "method", "model")
    missing = [one for one in needed if not isinstance(held, Mapping) or one not in held]
    if missing:
        raise InputError(
            "a report must have what evaluate writes",
            got=f"no {', '.join(missing)} in {source if not isinstance(source, Mapping) else 'it'}",
            remedy="evaluate again with --report FOLDER",
        )
    return held


def _figure(report: Mapping[str, Any], name: str, average: str | None) -> float | None:
    by_rule = f"miou_{average}" if name == "miou" and average else name
    return report["metrics"].get(by_rule)


def _interval(
    report: Mapping[str, Any], name: str, average: str | None
) -> tuple[float, float] | None:
    # It was drawn for the run's own rule.
    if name == "miou" and average not in (None, report.get("average")):
        return None
    held = (report.get("intervals") or {}).get(name)
    return None if held is None else (held[0], held[1])


def _headings(reports: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    names = [f"{one['method']}, {one['model'].get('name')}" for one in reports]
    return tuple(
        f"{name} ({number})" if names.count(name) > 1 else name
        for number, name in enumerate(names, 1)
    )


def _beside(
    reports: Sequence[Mapping[str, Any]],
    names: Iterable[str],
    average: str | None,
    papers: Sequence[str],
) -> tuple[Beside, ...]:
    wanted = {theirs: ours for theirs, ours in FIGURES.items() if ours in set(names)}
    places = dict.fromkeys((str(one["dataset"]), str(one["split"])) for one in reports)
    groups: dict[tuple[str, ...], list[PublishedRow]] = {}
    for place in places:
        for row in published_rows(*place):
            if row.metric in wanted and (not papers or row.paper in papers):
                key = (*place, row.method, row.backbone or "", row.paper, row.table, row.subset)
                groups.setdefault(key, []).append(row)
    found = []
    for rows in groups.values():
        told = {
            number: _unlike(one, rows[0], average)
            for number, one in enumerate(reports, 1)
            if (one["dataset"], one["split"]) == (rows[0].dataset, rows[0].split)
        }
        found.append(
            Beside(
                method=rows[0].method,
                backbone=rows[0].backbone or "",
                values={wanted[one.metric]: one.value for one in rows},
                source=rows[0].source,
                differs=_joined(told),
                note=rows[0].note,
            )
        )
    return tuple(found)


def _unlike(report: Mapping[str, Any], row: PublishedRow, average: str | None) -> list[str]:
    flags = [f"of {row.subset}"] if row.subset else []
    n, whole = report.get("n_images", report.get("n_videos")), _complete(report)
    if whole is not None and n != whole and not row.subset:
        flags.append(f"the run is of {n} of {whole}")
    if row.training:
        flags.append("counted as trained")
    if row.protocol is None:
        return [*flags, "protocol not stated"]
    told = find_given(report)
    if told != row.protocol.given:
        flags.append(f"given: {row.protocol.given}, the run {told or 'not stated'}")
    mine, theirs = find_oracles(report), row.protocol.oracles
    if set(mine) != set(theirs):
        flags.append(f"oracle: {', '.join(theirs) or 'none'}, the run {', '.join(mine) or 'none'}")
    rule = average or report.get("average", "gt_present")
    if row.metric == "mIoU" and rule != row.protocol.average:
        flags.append(f"averaging rule: {row.protocol.average}, the run {rule}")
    return flags


def _joined(told: Mapping[int, Sequence[str]]) -> tuple[str, ...]:
    """What a row differs in, and from which of the runs, if not from all."""
    found = []
    for flag in dict.fromkeys(flag for flags in told.values() for flag in flags):
        where = [str(number) for number, flags in told.items() if flag in flags]
        found.append(flag if len(where) == len(told) else f"{flag} (run {', '.join(where)})")
    return tuple(found)


def _complete(report: Mapping[str, Any]) -> int | None:
    kind = "videos" if "n_videos" in report else "images"
    try:
        return find_facts(str(report["dataset"]), kind).splits.get(str(report["split"]))
    except InputError:  # a data set of one's own
        return None


def _with_interval(value: float | None, interval: tuple[float, float] | None) -> str:
    if interval is None:
        return percent(value)
    return f"{percent(value)} ({percent(interval[0])} to {percent(interval[1])})"
