"""How well things are selected click by click: the next-click protocol of interactive segmentation.

Every thing of an image is selected by itself. The first click falls on its pole of inaccessibility,
the pixel farthest from its border; each next one on that of the wrong pixels, whether the thing's
that are missing (a wanted click) or others (one that is not), as in Xu et al. 2016 and since.
"""

import hashlib
import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool

from diffuseg.api import check_number, find_model
from diffuseg.errors import InputError
from diffuseg.eval.datasets import Dataset, Sample
from diffuseg.eval.runner import find_dataset, identify, plain_fields
from diffuseg.files import atomic_path
from diffuseg.interaction import interact
from diffuseg.journal import extend_journal, read_journal, write_journal
from diffuseg.methods.clicks import Clicks
from diffuseg.methods.interactive import Interactive

GOALS = (0.8, 0.85)
"""The IoUs for which the number of clicks is told (NoC@80, NoC@85)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClickReport:
    """What came of clicking on all things of a data set.

    Attributes:
        dataset: Its name.
        split: Which part.
        seed: Which stream, of generated data.
        n_images: How many images.
        n_things: How many things in them.
        clicks: How many clicks on each.
        mean_iou: After 1, 2, … clicks, the mean over all things.
        clicks_needed: For each goal, as "80": clicks until the IoU is reached, on average; a thing
            that never reaches it counts as `clicks`.
        missed: For each goal, the share of things that never reach it.
        milliseconds: Median time of a selection, the image being known.
        model: Which.
        parameters: The method's settings as they were used.
        config: Seed of the noise and working size.
        versions: Of what computed.
    """

    dataset: str
    split: str
    seed: int | None
    n_images: int
    n_things: int
    clicks: int
    mean_iou: tuple[float, ...]
    clicks_needed: dict[str, float]
    missed: dict[str, float]
    milliseconds: float
    model: dict[str, object]
    parameters: dict[str, object]
    config: dict[str, object]
    versions: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> str:
        """Return all of it as JSON."""
        return json.dumps(asdict(self), indent=2) + "\n"

    def to_markdown(self) -> str:
        """Return the figures as a table."""
        head = "| clicks | " + " | ".join(map(str, range(1, self.clicks + 1))) + " |"
        line = "|---|" + "---|" * self.clicks
        values = " | ".join(f"{100 * one:.1f}" for one in self.mean_iou)
        needed = "; ".join(
            f"NoC@{goal} {one:.2f} ({100 * self.missed[goal]:.0f} % never)"
            for goal, one in self.clicks_needed.items()
        )
        return (
            f"# {self.dataset} {self.split}, {self.n_things} things in {self.n_images} images\n\n"
            f"{head}\n{line}\n| mean IoU | {values} |\n\n"
            f"{needed}. {self.milliseconds:.1f} ms a click (median).\n"
        )


def pole(mask: Bool[np.ndarray, "h w"]) -> tuple[float, tuple[int, int]]:
    """Return the pixel (x, y) of a mask farthest from all others, and how far that is.

    Outside of the image is no part of the mask. The first in reading order counts on ties; a mask
    without a pixel is 0 far from everything.

    Example:
        >>> mask = np.zeros((5, 9), dtype=bool)
        >>> mask[1:4, 3:6] = True
        >>> pole(mask)
        (2.0, (4, 2))
    """
    from scipy.ndimage import distance_transform_edt

    distance = np.asarray(distance_transform_edt(np.pad(mask, 1)))[1:-1, 1:-1]
    place = int(distance.argmax())
    return float(distance.flat[place]), (place % mask.shape[1], place // mask.shape[1])


def click_on(
    truth: Bool[np.ndarray, "h w"],
    select: Callable[[Clicks], Bool[np.ndarray, "h w"]],
    clicks: int,
) -> list[float]:
    """Click on a thing until the clicks are used up; return the IoU after each.

    Args:
        truth: The thing; it has a pixel.
        select: Gives the mask for all clicks so far.
        clicks: How many.

    Example:
        >>> truth = np.eye(4, dtype=bool)
        >>> click_on(truth, lambda clicks: truth, 2)
        [1.0, 1.0]
    """
    found = np.zeros_like(truth)
    clicked = np.zeros_like(truth)
    so_far = Clicks()
    ious: list[float] = []
    for _ in range(clicks):
        missing, there = pole(truth & ~found & ~clicked)
        surplus, here = pole(found & ~truth & ~clicked)
        if missing == surplus == 0:  # nothing is left to say
            ious.append(ious[-1])
            continue
        wanted = missing >= surplus
        x, y = there if wanted else here
        clicked[y, x] = True
        so_far = so_far + Clicks.read(points=(x, y), labels=(int(wanted),))
        found = select(so_far)
        ious.append(float((truth & found).sum() / (truth | found).sum()))
    return ious


def evaluate_clicks(
    dataset: str | Dataset = "scenes",
    *,
    method: Interactive | None = None,
    model: object = None,
    clicks: int = 3,
    split: str | None = None,
    limit: int | None = None,
    seed: int = 1,
    noise_seed: int = 0,
    size: int | None = None,
    report: str | os.PathLike[str] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> ClickReport:
    """Score interactive selection on the things of a data set.

    Args:
        dataset: A name, or a data set of your own whose samples have `instances`.
        method: Settings of your own.
        model: As for `segment`.
        clicks: How many on each thing.
        split: Which part of the data set.
        limit: Only the first so many images.
        seed: Which stream of scenes.
        noise_seed: Of the noise the images are shown under.
        size: Side of the square whose area the model sees.
        report: A folder for `clicks.json`, `clicks.md` and the state of the run: called again with
            the same settings, it goes on where it was stopped.
        progress: Called with (done, all) after every image.

    Raises:
        InputError: No such data set or model, no things in it, or the folder cannot be written.
        WeightsError: The model's weights are not to be had.

    Example:
        >>> evaluate_clicks("scenes", model="mini", limit=8).mean_iou  # doctest: +SKIP
        (0.66, 0.79, 0.83)
    """
    check_number("clicks", clicks, least=1)
    data, n_images = find_dataset(dataset, split=split, seed=seed, limit=limit)
    loaded, chosen = find_model(model), method or Interactive()
    identity = identify(loaded)
    config: dict[str, object] = {"noise_seed": noise_seed, "size": size}
    settings = {
        "dataset": [data.name, data.split, data.seed],
        "model": identity,
        "preset": dict(loaded.preset),
        "method": plain_fields(chosen),
        "clicks": clicks,
        **config,
        "version": metadata.version("diffuseg"),
    }
    folder = None if report is None else Path(report)
    rows = _Rows(None if folder is None else folder / "clicks.jsonl", settings)
    for index in range(n_images):
        if index not in rows.held:
            rows.add(index, _click_on_sample(data[index], loaded, chosen, clicks, noise_seed, size))
        if progress is not None:
            progress(index + 1, n_images)
    kept = [rows.held[index] for index in range(n_images)]
    found = _report(data, kept, clicks, identity, config)
    if folder is not None:
        for name, text in (("clicks.json", found.to_json()), ("clicks.md", found.to_markdown())):
            with atomic_path(folder / name) as temporary:
                temporary.write_text(text, encoding="utf-8")
    return found


def _click_on_sample(
    sample: Sample, model: Any, method: Interactive, clicks: int, seed: int, size: int | None
) -> dict[str, Any]:
    """The IoUs of every thing of an image, as plain values."""
    if sample.instances is None:
        raise InputError(
            "clicks are scored on things that are told apart",
            got=f"{sample.id}, a sample without instances",
            remedy='use the data set "scenes", or give samples their instances',
        )
    picture = interact(sample.image, model, method=method, seed=seed, size=size)
    seconds: list[float] = []

    def select(so_far: Clicks) -> Bool[np.ndarray, "h w"]:
        start = time.perf_counter()
        found = picture.select(so_far)
        seconds.append(time.perf_counter() - start)
        return found["selected"]

    numbers = [int(one) for one in np.unique(sample.instances) if one]
    ious = [click_on(sample.instances == one, select, clicks) for one in numbers]
    return {
        "ious": [[round(one, 6) for one in row] for row in ious],
        "seconds": [round(one, 6) for one in seconds],
        "parameters": plain_fields(picture.prepared.method),
    }


class _Rows:
    """What is known of every image, appended to a file as it comes."""

    def __init__(self, path: Path | None, settings: dict[str, object]) -> None:
        self.path = path
        self.held: dict[int, dict[str, Any]] = {}
        if path is None:
            return
        text = json.dumps(settings, sort_keys=True, default=str)
        key = hashlib.sha256(text.encode()).hexdigest()
        rows: list[dict[str, Any]] = list(read_journal(path))
        if not rows or rows[0].get("settings") != key:
            rows = [{"settings": key}]
        self.held = {row["index"]: row for row in rows[1:]}
        write_journal(path, rows)

    def add(self, index: int, row: dict[str, Any]) -> None:
        self.held[index] = {"index": index, **row}
        if self.path is not None:
            extend_journal(self.path, [self.held[index]])


def _report(
    data: Dataset,
    rows: Sequence[dict[str, Any]],
    clicks: int,
    identity: dict[str, object],
    config: dict[str, object],
) -> ClickReport:
    ious = np.array([one for row in rows for one in row["ious"]]).reshape(-1, clicks)
    if not len(ious):
        raise InputError(
            "the images must show things to click on",
            got=f"none in {len(rows)} images",
            remedy="take more images, or another data set",
        )
    needed: dict[str, float] = {}
    missed: dict[str, float] = {}
    for goal in GOALS:
        reached = ious >= goal
        first = np.where(reached.any(1), reached.argmax(1) + 1, clicks)
        needed[f"{100 * goal:.0f}"] = round(float(first.mean()), 4)
        missed[f"{100 * goal:.0f}"] = round(float((~reached.any(1)).mean()), 4)
    seconds = [one for row in rows for one in row["seconds"]]
    return ClickReport(
        dataset=data.name,
        split=data.split,
        seed=data.seed,
        n_images=len(rows),
        n_things=len(ious),
        clicks=clicks,
        mean_iou=tuple(round(float(one), 4) for one in ious.mean(0)),
        clicks_needed=needed,
        missed=missed,
        milliseconds=round(1e3 * statistics.median(seconds), 2),
        model=identity,
        parameters=dict(rows[0]["parameters"]),
        config=config,
        versions={one: metadata.version(one) for one in ("diffuseg", "torch", "numpy", "scipy")},
    )
