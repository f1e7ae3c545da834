"""A method over a set of videos: each segmented from its anchor, scored, and reported."""

import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, replace
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import numpy as np

from diffuseg.api import find_model
from diffuseg.errors import InputError
from diffuseg.eval.metrics import AVERAGES, ConfusionMatrix
from diffuseg.eval.protocols import VIDEO_PROTOCOLS
from diffuseg.eval.report import plain_values, write_report
from diffuseg.eval.runner import hardware_of, identify, peak_memory
from diffuseg.eval.video_datasets import VOID, Lazy, SceneClips, VideoDataset, VideoSample
from diffuseg.eval.video_metrics import LENGTHS, Consistency
from diffuseg.eval.video_objects import ObjectScores, score_objects, summarise
from diffuseg.eval.video_report import VideoReport
from diffuseg.journal import extend_journal, read_journal, write_journal
from diffuseg.labelmaps import IGNORE
from diffuseg.methods.vidseg import VidSeg
from diffuseg.video.segmenter import VideoSegmenter, open_video_segmenter

Given = Literal["anchor", "classes"]

_MINIATURE = (
    "the model is a miniature that has seen nothing but drawn scenes: this is what it can do "
    "elsewhere, and says nothing about the method with real weights"
)


def evaluate_video(
    dataset: str | VideoDataset = "scenes",
    *,
    method: str = "vidseg",
    settings: VidSeg | None = None,
    model: object = None,
    limit: int | None = None,
    frames: int | None = None,
    given: Given = "anchor",
    report: str | os.PathLike[str] | None = None,
    progress: Callable[[int, int], None] | None = None,
    **options: Any,
) -> VideoReport:
    """Score a method on videos.

    Args:
        dataset: "scenes", or what `open_video_dataset` gives.
        method: "vidseg" or "emerdiff".
        settings: Of the method.
        model: As for `segment`.
        limit: Only the first so many videos; 20 of Scenes.
        frames: Only the first so many frames of each.
        given: "anchor": the truth of a frame; of Scenes its classes and things apart. "classes":
            their names.
        report: A folder for `report.json`, `report.md` and the state of the run: called again with
            the same settings and data, it goes on with the video it was at; with others it starts
            anew.
        progress: Called with (done, all) after every video.
        options: Further ones of `open_video_segmenter`, such as `namer`.

    Raises:
        InputError: No such data set or method, or there is nothing to score.
        WeightsError: The model's weights are not to be had.

    Example:
        >>> evaluate_video("scenes", model="mini", limit=2).metrics["miou"]  # doctest: +SKIP
        0.7
    """
    data = _open(dataset, limit, frames)
    if given not in VIDEO_PROTOCOLS or (given == "classes" and not data.classes):
        raise InputError(
            "given must be anchor, or classes where there are some",
            got=given,
            remedy='use "anchor"',
        )
    held = find_model(model, backbone="video")
    # Checks settings; every video has its own anchor.
    probe = open_video_segmenter(
        held, settings, method=method, anchor=np.zeros((16, 16), dtype=np.uint8)
    )
    parameters = plain_values(asdict(probe.settings))
    total = len(data) if limit is None else min(limit, len(data))
    identity = identify(held)
    key = _key(data, [frames, given, method, parameters, identity, repr(options)])
    folder = None if report is None else Path(report)
    rows = _resumed(folder, key)
    for number in range(total):
        if number >= len(rows):
            row = _score(data, number, held, settings, method, frames, given, options)
            rows.append(row)
            if folder is not None:
                extend_journal(folder / "videos.jsonl", [row])
        if progress is not None:
            progress(number + 1, total)
    found = replace(
        _report(data, rows[:total], parameters, identity, method, given),
        hardware=hardware_of(held),
        peak_memory_mb=peak_memory(),
    )
    if folder is not None:
        write_report(found, folder)
    return found


def _open(dataset: str | VideoDataset, limit: int | None, frames: int | None) -> VideoDataset:
    if not isinstance(dataset, str):
        return dataset
    if dataset != "scenes":
        raise InputError(
            "data sets of files need their folder",
            got=dataset,
            remedy=f'pass open_video_dataset("{dataset}", FOLDER), or "scenes"',
        )
    return SceneClips(n=limit or 20, frames=frames or 28)


def _key(data: VideoDataset, told: list[object]) -> str:
    """A hash of all that the counts of a video depend on, the data set's pictures among it."""
    files = [getattr(data, name, None) for name in ("seed", "fingerprint")]
    held = [data.name, data.split, data.classes, data.ignore, *files, *told]
    text = json.dumps([*held, metadata.version("diffuseg")], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _resumed(folder: Path | None, key: str) -> list[dict[str, Any]]:
    if folder is None:
        return []
    path = folder / "videos.jsonl"
    rows: list[dict[str, Any]] = list(read_journal(path))
    if not rows or rows[0].get("settings") != key:
        rows = [{"settings": key}]
    write_journal(path, rows)
    return rows[1:]


def _score(
    data: VideoDataset,
    number: int,
    model: Any,
    settings: VidSeg | None,
    method: str,
    frames: int | None,
    given: Given,
    options: Mapping[str, Any],
) -> dict[str, Any]:
    """Segment and score one video; plain values."""
    sample = data[number]
    count = min(len(sample.frames), frames or len(sample.frames))
    truth = sample.truth[sample.anchor]
    if truth is None or sample.anchor >= count:
        raise InputError(
            "the anchor must be one of the frames, and have a truth",
            got=f"frame {sample.anchor} of {sample.id}",
            remedy="take more frames",
        )
    told: dict[str, Any] = {"anchor_frame": sample.anchor}
    start = time.perf_counter()
    if given == "classes":
        # The table says which class, and which object, a label stands for.
        table = [(int(k), 0) for k in np.unique(truth) if k != data.ignore]
        told["classes"] = [data.classes[k] for k, _ in table]
    else:
        things = sample.instances[sample.anchor] if sample.instances else None
        numbers, table = _numbered(truth, things, classes=bool(data.classes))
        told["anchor"] = numbers
    find: VideoSegmenter = open_video_segmenter(model, settings, method=method, **told, **options)
    reading = 0.0

    def frame(i: int) -> np.ndarray:
        nonlocal reading
        begin = time.perf_counter()
        pixels = sample.frames[i]
        reading += time.perf_counter() - begin
        return pixels

    # Frames are read one by one and not kept, labels in two bytes a pixel: 65535 is undecided.
    found = [one.labels.astype(np.uint16) for one in find(Lazy(count, frame))]
    row: dict[str, Any] = {"id": sample.id, "frames": count}
    row["seconds"] = round(time.perf_counter() - start - reading, 3)
    # Names a method adds by itself are of no class.
    codes = np.full((IGNORE + 1, 2), [IGNORE, 0])
    codes[: len(table)] = table
    if data.classes:
        row |= _class_counts(data, sample, (codes[one, 0] for one in found))
    if given == "anchor":
        row |= _object_scores(data, sample, Lazy(count, lambda i: codes[found[i], 1]))
    return row


def _numbered(
    truth: np.ndarray, things: np.ndarray | None, *, classes: bool
) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """Labels for every pair of class and object a frame shows, and those pairs."""
    if not classes:
        things, truth = np.where(truth == VOID, 0, truth), np.zeros_like(truth)
    held = truth.astype(np.int64) << 16
    held += 0 if things is None else things
    pairs, numbers = np.unique(held, return_inverse=True)
    return numbers.reshape(truth.shape), [(int(one) >> 16, int(one) & 65535) for one in pairs]


def _class_counts(data: VideoDataset, sample: VideoSample, found: Iterable[np.ndarray]) -> dict:
    matrix = _empty(data)
    steady = Consistency(LENGTHS)
    complete = True
    for i, mine in enumerate(found):
        true = sample.truth[i]
        if true is None:
            complete = False
            continue
        matrix.update(true, np.where(mine == data.ignore, IGNORE, mine))
        steady.add(true, mine)
    # Windows of frames that do not follow each other say nothing.
    windows = steady.windows() if complete else {}
    return {
        "counts": matrix.row(),
        "windows": {str(n): [_or_none(one) for one in held] for n, held in windows.items()},
    }


def _object_scores(data: VideoDataset, sample: VideoSample, found: Lazy[np.ndarray]) -> dict:
    truths: Any = sample.instances if data.classes else sample.truth
    if truths is None or len(found) < 3:
        return {}
    objects = [int(one) for one in np.unique(truths[sample.anchor]) if one not in (0, VOID)]
    if not objects:
        return {}
    scores = score_objects(((truths[i], mine) for i, mine in enumerate(found)), objects=objects)
    return {"objects": objects, "j": scores.j.tolist(), "f": scores.f.tolist()}


def _empty(data: VideoDataset) -> ConfusionMatrix:
    return ConfusionMatrix(len(data.classes), ignore=data.ignore, undecided=IGNORE)


def _report(
    data: VideoDataset,
    rows: list[dict[str, Any]],
    parameters: Any,
    identity: Mapping[str, object],
    method: str,
    given: Given,
) -> VideoReport:
    metrics: dict[str, float] = {}
    rules: dict[str, float] = {}
    per_class: dict[str, float | None] = {}
    per_video: dict[str, float] = {}
    if data.classes:
        total = _empty(data)
        for row in rows:
            part = _empty(data).with_row(row["counts"])
            per_video[row["id"]] = part.miou()
            total = total + part
        metrics["miou"] = total.miou()
        rules = {f"miou_{rule}": total.miou(rule) for rule in AVERAGES}
        per_class = {
            name: _or_none(one) for name, one in zip(data.classes, total.iou(), strict=True)
        }
        for n in LENGTHS:
            held = [
                one for row in rows for one in row["windows"].get(str(n), ()) if one is not None
            ]
            metrics[f"mvc{n}"] = float(np.mean(held)) if held else math.nan
    scored = {
        row["id"]: ObjectScores(
            objects=tuple(row["objects"]),
            frames=tuple(range(len(row["j"][0]))),
            j=np.array(row["j"]),
            f=np.array(row["f"]),
        )
        for row in rows
        if "objects" in row
    }
    if scored:
        means = summarise(scored)
        metrics |= {"j": means["j_mean"], "f": means["f_mean"], "j_and_f": means["j_and_f"]}
        per_video |= {name: one.j_and_f for name, one in scored.items()}
    metrics |= rules
    if not metrics:
        raise InputError(
            "there must be something to score", got="nothing", remedy="take more frames"
        )
    frames = sum(row["frames"] for row in rows)
    return VideoReport(
        dataset=data.name,
        split=data.split,
        n_videos=len(rows),
        n_frames=frames,
        metrics=metrics,
        per_class=per_class,
        per_video=per_video,
        protocol=VIDEO_PROTOCOLS[given],
        given=given,
        oracles=("first-frame",) if given == "anchor" else ("first-frame-labels",),
        uses_gt_first_frame=given == "anchor",
        notes=_notes(data, identity),
        method=method,
        parameters=parameters,
        model=identity,
        seconds_per_frame=sum(row["seconds"] for row in rows) / max(1, frames),
    )


def _notes(data: VideoDataset, identity: Mapping[str, object]) -> tuple[str, ...]:
    drawn = isinstance(data, SceneClips) or identity.get("source") != "embedded"
    held = (getattr(data, "note", ""), "" if drawn else _MINIATURE)
    return tuple(one for one in held if one)


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
