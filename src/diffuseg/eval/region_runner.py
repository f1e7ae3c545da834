"""A method that finds segments without names, over pictures that several people cut."""

import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from diffuseg.api import build_segmenter, check_number
from diffuseg.errors import InputError
from diffuseg.eval.region_sets import Bsds500, open_regions
from diffuseg.eval.regions import TOLERANCE, RegionScores, mean_regions, score_regions
from diffuseg.eval.report import plain_values, table_lines, weights_line, write_report
from diffuseg.eval.runner import identify, plain_fields, versions
from diffuseg.journal import extend_journal, read_journal, write_journal
from diffuseg.methods import method_name

_STATE = "regions.jsonl"
_PROTOCOL = (
    "nothing is given; segments are compared with the regions of every person who cut the picture, "
    "figures are means over people, then over pictures; undecided pixels are one segment; "
    "boundaries are not matched one to one, so they do not compare with the benchmark's F"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RegionReport:
    """What a run over regions found, and how.

    Attributes:
        dataset: Name of the data set; with `split`.
        n_images: Pictures scored.
        metrics: See `diffuseg.eval.regions.mean_regions`.
        tolerance: How far a boundary may be off, as a share of the diagonal.
        protocol: In words.
        model: Name, source and checksum of the weights.
        method: Name of the method.
        parameters: Its settings, presets of the model filled in.
        config: Settings of the run beside them.
        versions: Of everything that computes.
        seconds_per_image: Their median.
    """

    dataset: str
    split: str
    n_images: int
    metrics: Mapping[str, float]
    tolerance: float = TOLERANCE
    protocol: str = _PROTOCOL
    model: Mapping[str, object] = field(default_factory=dict)
    method: str = ""
    parameters: Mapping[str, object] = field(default_factory=dict)
    config: Mapping[str, object] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    seconds_per_image: float = math.nan

    def to_json(self) -> str:
        """Return the report as JSON text."""
        return json.dumps(plain_values(asdict(self)), indent=2, allow_nan=False) + "\n"

    def to_markdown(self) -> str:
        """Return the report as a page to read."""
        rows = [(name.replace("_", " "), f"{value:.3f}") for name, value in self.metrics.items()]
        settings = ", ".join(f"{name}={value!r}" for name, value in self.parameters.items())
        return "\n".join(
            [
                f"# {self.method} with {self.model.get('name')} on {self.dataset}, {self.split}: "
                f"{self.n_images} images",
                "",
                *table_lines(("figure", "value"), rows),
                "",
                f"- Protocol: {self.protocol}.",
                f"- Boundaries may be off by {self.tolerance:g} of the diagonal.",
                f"- Model: {weights_line(self.model)}.",
                f"- Settings: {settings}.",
                "- Versions: " + ", ".join(f"{k} {v}" for k, v in self.versions.items()) + ".",
                "",
            ]
        )


def evaluate_regions(
    dataset: str | Bsds500 = "bsds500",
    *,
    root: str | os.PathLike[str] | None = None,
    method: object = "diffseg",
    model: object = None,
    split: str | None = None,
    limit: int | None = None,
    noise_seed: int = 0,
    size: int | None = None,
    batch_size: int = 4,
    report: str | os.PathLike[str] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> RegionReport:
    """Score segments without names against regions people drew.

    Args:
        dataset: "bsds500", or an opened set.
        root: Its folder.
        method: A name, or a method object, of those that are not told what to look for.
        model: As for `segment`.
        split: Which part; by default the one usually scored.
        limit: Only the first so many images.
        noise_seed: Of the noise the images are shown under.
        size: Side of the square whose area the model sees.
        batch_size: Images that go through the model together.
        report: A folder for `report.json`, `report.md` and the state of the run, which goes on
            where it was stopped.
        progress: Called with (done, all) after every batch.

    Raises:
        InputError: The folder is missing or lacks something, or the method looks for classes.
        WeightsError: The model's weights are not to be had.

    Example:
        >>> evaluate_regions(root="BSDS500", model="mini").metrics["covering"]  # doctest: +SKIP
        0.31
    """
    check_number("batch_size", batch_size, least=1)
    if isinstance(dataset, str):
        if root is None:
            raise InputError(f"{dataset} is read from its folder", got="no folder", remedy="root=")
        dataset = open_regions(dataset, root, split=split, limit=limit)
    n = len(dataset) if limit is None else min(limit, len(dataset))
    segmenter = build_segmenter(model, method, seed=noise_seed, size=size)
    name = method_name(segmenter.method)
    if segmenter.method.needs(segmenter.model).prompt != "empty":
        raise InputError(
            "regions have no names: the method must find segments by itself",
            got=name,
            remedy="use diffseg, iseg-unsupervised, kmeans or dbscan",
        )
    config: dict[str, object] = {"noise_seed": noise_seed, "size": size, "batch_size": batch_size}
    identity = identify(segmenter.model)
    key = json.dumps(
        [
            *(dataset.name, dataset.split, name, TOLERANCE, config, identity, versions()),
            *(plain_fields(segmenter.method), dict(segmenter.model.preset)),
        ],
        sort_keys=True,
        default=str,
    )
    folder = None if report is None else Path(report)
    rows = _resumed(folder, key)
    # Whole batches only, so that a run that was stopped computes what an undisturbed one does.
    start = n if len(rows) >= n else len(rows) - len(rows) % batch_size
    if folder is not None and start < len(rows) < n:
        write_journal(folder / _STATE, [{"settings": key}, *rows[:start]])
    del rows[start:]
    for first in range(start, n, batch_size):
        samples = [dataset[i] for i in range(first, min(first + batch_size, n))]
        results = segmenter.many([one.image for one in samples], [None] * len(samples))
        new = [
            {
                "id": sample.id,
                "seconds": sum(result.provenance.seconds.values()),
                "parameters": plain_values(dict(result.provenance.parameters)),
                "scores": score_regions(result.labels, sample.people).to_dict(),
            }
            for sample, result in zip(samples, results, strict=True)
        ]
        rows += json.loads(json.dumps(new, default=str))
        if folder is not None:
            extend_journal(folder / _STATE, rows[first:])
        if progress is not None:
            progress(len(rows), n)
    found = RegionReport(
        dataset=dataset.name,
        split=dataset.split,
        n_images=n,
        metrics=mean_regions(_scores(one["scores"]) for one in rows),
        model=identity,
        method=name,
        parameters=rows[0]["parameters"],
        config=config,
        versions=versions(),
        seconds_per_image=round(median(one["seconds"] for one in rows), 6),
    )
    if folder is not None:
        write_report(found, folder)
    return found


def _resumed(folder: Path | None, key: str) -> list[dict[str, Any]]:
    """The rows of images that are done, of a run with the same settings."""
    if folder is None:
        return []
    path = folder / _STATE
    rows: list[dict[str, Any]] = list(read_journal(path))
    if not rows or rows[0].get("settings") != key:
        rows = [{"settings": key}]
    write_journal(path, rows)
    return rows[1:]


def _scores(values: Mapping[str, Any]) -> RegionScores:
    held: dict[str, Any] = dict(values)
    lists = {name: tuple(one) for name, one in held.items() if isinstance(one, list)}
    return RegionScores(**{**held, **lists})
