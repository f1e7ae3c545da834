"""A method that finds segments without names, over pictures that several people cut."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from diffuseg.api import Segmenter, build_segmenter, check_number, find_model
from diffuseg.errors import InputError
from diffuseg.eval.protocols import find_oracles
from diffuseg.eval.region_report import RegionReport
from diffuseg.eval.region_sets import Bsds500, RegionSample, open_regions
from diffuseg.eval.regions import (
    TOLERANCE,
    RegionScores,
    best_regions,
    mean_regions,
    score_regions,
)
from diffuseg.eval.report import plain_values, write_report
from diffuseg.eval.runner import hardware_of, identify, peak_memory, plain_fields, versions
from diffuseg.journal import extend_journal, read_journal, write_journal
from diffuseg.methods import backbone_of, find_method, method_name, with_settings

_STATE = "regions.jsonl"
_COUNTED = "boundaries one to one"  # files of earlier versions lack these counts


def evaluate_regions(
    dataset: str | Bsds500 = "bsds500",
    *,
    root: str | os.PathLike[str] | None = None,
    method: object = "diffseg",
    model: object = None,
    scales: Mapping[str, Sequence[object]] | None = None,
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
        scales: Values of one setting of the method: each image is cut at every one of them, coarse
            to fine, and the truth says which is best, for the data set (ODS) and in each image
            (OIS).
        split: Which part; by default the one usually scored.
        limit: Only the first so many images.
        noise_seed: Of the noise the images are shown under.
        size: Side of the square whose area the model sees.
        batch_size: Images that go through the model together.
        report: A folder for `report.json`, `report.md` and the state of the run, which goes on
            where it was stopped.
        progress: Called with (done, all) after every batch.

    Raises:
        InputError: The folder is missing or lacks something, the method looks for classes, or
            scales are of no setting of the method, or of more than one.
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
    settings = _read_scales(scales)
    chosen = find_method(method) if isinstance(method, str) else method
    held = find_model(model, backbone=backbone_of(chosen))
    segmenters = [
        build_segmenter(held, with_settings(chosen, one), seed=noise_seed, size=size)
        for one in settings
    ]
    name = method_name(chosen)
    if segmenters[0].method.needs(segmenters[0].model).prompt != "empty":
        raise InputError(
            "regions have no names: the method must find segments by itself",
            got=name,
            remedy="use diffseg, iseg-unsupervised, kmeans or dbscan",
        )
    config: dict[str, object] = {"noise_seed": noise_seed, "size": size, "batch_size": batch_size}
    identity = identify(held)
    key = json.dumps(
        [
            *(_COUNTED, dataset.name, dataset.split, name, TOLERANCE, config, identity, versions()),
            *([plain_fields(one.method) for one in segmenters], dict(segmenters[0].model.preset)),
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
        rows += json.loads(json.dumps(_score(samples, segmenters), default=str))
        if folder is not None:
            extend_journal(folder / _STATE, rows[first:])
        if progress is not None:
            progress(len(rows), n)
    found = replace(
        _report(rows[:n], settings),
        dataset=dataset.name,
        split=dataset.split,
        model=identity,
        method=name,
        config=config,
        versions=versions(),
        hardware=hardware_of(held),
        peak_memory_mb=peak_memory(),
    )
    if folder is not None:
        write_report(found, folder)
    return found


def _read_scales(scales: Mapping[str, Sequence[object]] | None) -> list[dict[str, object]]:
    """The settings of every scale; of one that is as the method is, none."""
    if scales is None:
        return [{}]
    values = [(name, value) for name, held in scales.items() for value in held]
    if len(scales) != 1 or not values:
        raise InputError(
            "scales are values of one setting",
            got=f"{len(values)} values of {', '.join(scales) or 'none'}",
            remedy='name them, for example scales={"tau": [0.3, 0.5, 0.7]}, --scales tau=0.3,0.5',
        )
    return [{name: value} for name, value in values]


def _score(samples: Sequence[RegionSample], segmenters: Sequence[Segmenter]) -> list[Any]:
    """What is kept of images: the scores of every scale; plain values."""
    pictures: list[Any] = [one.image for one in samples]
    cuts = [one.many(pictures, [None] * len(pictures)) for one in segmenters]
    return [
        {
            "id": sample.id,
            "stored": bool(sample.boundaries),
            "seconds": sum(sum(one.provenance.seconds.values()) for one in results),
            "parameters": [plain_values(dict(one.provenance.parameters)) for one in results],
            "scores": [
                score_regions(one.labels, sample.people, boundaries=sample.boundaries).to_dict()
                for one in results
            ],
        }
        for sample, *results in zip(samples, *cuts, strict=True)
    ]


def _report(
    rows: Sequence[Mapping[str, Any]], settings: Sequence[dict[str, object]]
) -> RegionReport:
    """The report of images that are scored, without what is known of the run."""
    scores = [[_scores(one) for one in row["scores"]] for row in rows]
    figures, best = best_regions(scores)
    scales = [
        {"settings": held, "metrics": mean_regions(of_scale)}
        for held, of_scale in zip(settings, zip(*scores, strict=True), strict=True)
    ]
    stored = sum(row["stored"] for row in rows)
    return RegionReport(
        dataset="",
        split="",
        n_images=len(rows),
        metrics=figures,
        scales=scales,
        scale=best,
        boundaries="the release's own"
        if stored == len(rows)
        else "thinned from their regions" + (f", {stored} stored" if stored else ""),
        uses_gt_scale=len(settings) > 1,
        oracles=find_oracles({"uses_gt_scale": len(settings) > 1}),
        parameters=rows[0]["parameters"][best],
        seconds_per_image=round(median(one["seconds"] for one in rows), 6),
    )


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
