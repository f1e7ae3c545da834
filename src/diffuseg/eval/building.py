"""Settings scored one after the other, for methods whose segmenter has to be built for each.

A sweep looks at a picture once and replays it with many settings; OVDiff's settings decide what is
in a bank, which is built first. Pictures are drawn once for all of them.
"""

import hashlib
import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from diffuseg.eval.datasets import BACKGROUND, Dataset
from diffuseg.eval.runner import evaluate, find_dataset, identify, versions
from diffuseg.eval.sweep_report import Sweep, data_facts
from diffuseg.methods import OVDiff, method_name, with_settings
from diffuseg.models import find_model
from diffuseg.ovdiff.building import build_bank
from diffuseg.ovdiff.recipe import kept_settings

log = logging.getLogger(__name__)

DRAWINGS = "drawings"
"""Folder of what was drawn, in that of the runs."""


def sweep_banks(
    dataset: str | Dataset,
    rows: Sequence[Mapping[str, object]],
    *,
    method: OVDiff,
    model: object = None,
    report: Path,
    root: str | os.PathLike[str] | None = None,
    geometry: str | None = None,
    names: str | None = None,
    split: str | None = None,
    limit: int | None = None,
    seed: int = 1,
    batch_size: int = 4,
    by: str = "miou",
    progress: Callable[[int, int], None] | None = None,
) -> Sweep:
    """Score settings of OVDiff, each with a bank of its own, the whole vocabulary given.

    Args:
        dataset: A name or a data set.
        rows: Settings by field, one mapping a run.
        method: With the settings that stay.
        model: As for `segment`.
        report: A folder for drawings, banks and runs: called again, it goes on where it was.
        root: Folder of a data set of files,
        geometry: what of its pictures is scored, and
        names: whose words for its classes are used, as for `open_dataset`.
        split: Which part of the data set.
        limit: Only the first so many images.
        seed: Which stream of scenes.
        batch_size: Images that go through the networks together.
        by: The figure that decides which setting is best.
        progress: Called with (done, all) after every batch of images.

    Raises:
        InputError: As `build_bank` and `evaluate`.
        WeightsError: The model's weights are not to be had.
    """
    loaded = find_model(model)
    where: dict[str, Any] = {"root": root, "geometry": geometry, "names": names}
    data, n_images = find_dataset(dataset, split=split, seed=seed, limit=limit, **where)
    classes = [name for name in data.classes if name != BACKGROUND]
    found: list[dict[str, Any]] = []
    protocol = ""
    for number, row in enumerate(rows):
        chosen = with_settings(method, row)
        held = kept_settings(chosen.ready(loaded.preset.get("ovdiff")))
        folder = report / "banks" / _told(held)
        log.info("%d of %d: %s", number + 1, len(rows), dict(row) or "as it is")
        bank = build_bank(
            classes, folder, loaded, chosen, keep_pictures=False, drawings=report / DRAWINGS
        )
        told = None if progress is None else _counted(progress, number, len(rows), n_images)
        scored = evaluate(
            data,
            method=replace(chosen, bank=str(bank.path)),
            model=loaded,
            limit=limit,
            batch_size=batch_size,
            report=report / "runs" / _told(_run_facts(data, chosen)),
            progress=told,
        )
        protocol = scored.protocol
        seconds = scored.seconds_per_image["median"]
        figures = {name: None if v != v else v for name, v in scored.metrics.items()}
        found.append({"settings": _plain(row), **figures, "seconds": seconds})
    return Sweep(
        dataset=data.name,
        split=data.split,
        seed=data.seed,
        n_images=n_images,
        method=method_name(method),
        model=identify(loaded),
        fixed=_fixed(method, loaded),
        fields=tuple(dict.fromkeys(name for row in rows for name in row)),
        by=by,
        protocol=protocol,
        **data_facts(data),
        one_by_one=True,
        rows=tuple(found),
        versions=versions(),
    )


def _fixed(method: OVDiff, model: Any) -> dict[str, object]:
    """What holds where a row says nothing: the preset, and what was set."""
    held = {name: value for name, value in asdict(method).items() if value is not None}
    return _plain({**model.preset.get("ovdiff", {}), **held})


def _run_facts(data: Dataset, method: OVDiff) -> list[object]:
    """What tells one run from another, so that each has its own folder."""
    held: list[object] = [data.name, data.split, data.seed, asdict(method)]
    files = getattr(data, "fingerprint", None)
    return held if files is None else [*held, files, getattr(data, "geometry", "")]


def _told(values: object) -> str:
    text = json.dumps(values, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _counted(
    progress: Callable[[int, int], None], run: int, runs: int, n_images: int
) -> Callable[[int, int], None]:
    return lambda done, _: progress(run * n_images + done, runs * n_images)


def _plain(values: Mapping[str, object]) -> dict[str, Any]:
    return json.loads(json.dumps(dict(values)))
