"""What an evaluation found, with everything needed to repeat and to judge it."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import PIL.Image

from diffuseg import render
from diffuseg.eval.bars import draw_bars
from diffuseg.eval.datasets import Dataset, Sample
from diffuseg.eval.metrics import AVERAGES, ConfusionMatrix
from diffuseg.eval.protocols import PROTOCOLS, oracle_line
from diffuseg.eval.state import Counts
from diffuseg.files import atomic_path
from diffuseg.render.legend import PAPER, draw_legend, legend_entries, text_size
from diffuseg.result import Segmentation

_STRIP_HEIGHT = 256
_OTHER_PROTOCOLS = ("strict", "dataset", "majority")
_OF_CLASSES = {"mean_acc": "mean accuracy of classes", "fwiou": "IoU weighted by frequency"}


@runtime_checkable
class Classes(Protocol):
    """Names of classes, and named sets of them that get an average of their own."""

    @property
    def classes(self) -> tuple[str, ...]: ...
    @property
    def groups(self) -> Mapping[str, Sequence[str]]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The figures of one run and how they came about.

    Attributes:
        dataset: Name of the data set; with `split` and `seed`.
        n_images: Pictures scored.
        pixels_scored: Pixels whose truth is a class.
        miou: Mean intersection over union by the rule `average`, from one confusion matrix.
        acc: Share of pixels that is right.
        average: Which classes the mean is over, see `ConfusionMatrix.miou`.
        metrics: These and other figures by name; `miou_things` is the mean over that group.
        per_class: Intersection over union of every class; None where it occurs nowhere.
        intervals: Lower and upper end of figures if other images like these had been drawn.
        bootstrap: How: draws, level, seed.
        protocol: In words, what the method was told.
        given: The same in one word, see `evaluate`.
        uses_gt_image_labels: Whether it was told which classes are in the image.
        uses_gt_class_count: Whether it was told how many they are.
        uses_gt_assignment: Whether the truth decided which segment is which class.
        oracles: Everything it knew of the truth it was scored on, see `protocols.ORACLES`.
        geometry: At which size was scored.
        label_source: Whose labels they are.
        chosen_on: The split settings were chosen on; None: they were given beforehand.
        threshold: Background threshold and what it was chosen on; None where there is none.
        model: Name, source and checksum of the U-Net.
        method: Name of the method.
        parameters: Its settings, presets of the model filled in.
        config: Settings of the run beside them.
        versions: Of everything that computes.
        hardware: Where it ran.
        seconds_per_image: Median and mean of reading to result, without rendering of scenes.
        peak_memory_mb: Of the whole process; on an accelerator, of its memory too.
        skipped: Pictures that were left out.
        shard: Which part of how many this is; None: the whole run.
        note: What has to be known beside the data set's figures.
    """

    dataset: str
    split: str
    seed: int | None
    n_images: int
    pixels_scored: int
    miou: float
    acc: float
    average: str
    metrics: Mapping[str, float]
    per_class: Mapping[str, float | None]
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    bootstrap: Mapping[str, object] = field(default_factory=dict)
    protocol: str = PROTOCOLS[True, "classes"]
    given: str = "classes"
    uses_gt_image_labels: bool = True
    uses_gt_class_count: bool = False
    uses_gt_assignment: bool = False
    uses_gt_first_frame: bool = False
    oracles: tuple[str, ...] = ()
    geometry: str = "scored at the size of the image"
    label_source: str = "the data set's own labels"
    chosen_on: str | None = None
    threshold: Mapping[str, object] | None = None
    model: Mapping[str, object] = field(default_factory=dict)
    method: str = ""
    parameters: Mapping[str, object] = field(default_factory=dict)
    config: Mapping[str, object] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    hardware: Mapping[str, object] = field(default_factory=dict)
    seconds_per_image: Mapping[str, float] = field(default_factory=dict)
    peak_memory_mb: Mapping[str, float] = field(default_factory=dict)
    skipped: Sequence[str] = ()
    shard: tuple[int, int] | None = None
    note: str = ""

    def _interval(self, name: str) -> str:
        if name not in self.intervals:
            return ""
        low, high = self.intervals[name]
        level = f"{100 * float(self.bootstrap['level']):g} %"  # type: ignore[arg-type]
        return f" ({level} of draws of images: {percent(low)} to {percent(high)})"

    def to_dict(self) -> dict[str, object]:
        """Return plain JSON values; a figure without a value is None."""
        return plain_values(asdict(self))  # type: ignore[return-value]

    def to_json(self) -> str:
        """Return the report as JSON text."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n"

    def to_markdown(self) -> str:
        """Return the report as a page to read."""
        seed = "" if self.seed is None else f", seed {self.seed}"
        rows = [
            ("mIoU", percent(self.miou) + self._interval("miou")),
            *(
                (f"mIoU, {name.removeprefix('miou_')}", percent(value))
                for name, value in self.metrics.items()
                if name.startswith("miou_")
                and name.removeprefix("miou_") not in (*AVERAGES, *_OTHER_PROTOCOLS)
            ),
            ("pixel accuracy", percent(self.acc) + self._interval("acc")),
            *(
                (label, percent(self.metrics[name]))
                for name, label in (
                    ("mean_acc", "mean accuracy of classes"),
                    ("fwiou", "IoU weighted by frequency"),
                )
                if name in self.metrics
            ),
            *_matched_rows(self.metrics),
            ("seconds an image (median)", f"{self.seconds_per_image.get('median', math.nan):.3f}"),
            *((f"peak memory, {k}", f"{v:.0f} MB") for k, v in self.peak_memory_mb.items()),
        ]
        notes = [
            f"Protocol: {self.protocol}"
            + (" (image-level labels are used)" if self.uses_gt_image_labels else "")
            + (" (an assignment by the truth is used)" if self.uses_gt_assignment else "")
            + f"; {self.geometry}; {self.label_source}.",
            oracle_line(self.oracles),
            *([f"Note: {self.note}."] if self.note else []),
            *(["Part {} of {} of the run.".format(*self.shard)] if self.shard else []),
            *(
                [f"Threshold: {self.threshold['value']}, {self.threshold['chosen_on']}."]
                if self.threshold
                else []
            ),
            f"mIoU: counts of all images together, averaging rule `{self.average}`. "
            + "By the other rules: "
            + ", ".join(
                f"`{rule}` {percent(self.metrics[f'miou_{rule}'])}"
                for rule in AVERAGES
                if rule != self.average
            )
            + ".",
            f"Model: {weights_line(self.model)}.",
            "Settings: " + ", ".join(f"{k}={v!r}" for k, v in self.parameters.items()) + ".",
            "Run: " + ", ".join(f"{k}={v!r}" for k, v in self.config.items()) + ".",
            "Versions: " + ", ".join(f"{k} {v}" for k, v in self.versions.items()) + ".",
            "Hardware: " + ", ".join(f"{k} {v}" for k, v in self.hardware.items()) + ".",
        ]
        classes = sorted(self.per_class.items(), key=lambda item: -(item[1] or 0.0))
        return "\n".join(
            [
                f"# {self.method} with {self.model.get('name')} on {self.dataset}, {self.split}"
                f"{seed}: {self.n_images} images",
                "",
                *table_lines(("figure", "value"), rows),
                "",
                *(f"- {note}" for note in notes),
                "",
                *table_lines(("class", "IoU"), [(name, percent(iou)) for name, iou in classes]),
                "",
            ]
        )


def weights_line(model: Mapping[str, object]) -> str:
    """Return in words which weights were scored, from `identify`.

    Example:
        >>> weights_line({"name": "mini", "source": "embedded", "unet_sha256": 64 * "0"})
        'mini from embedded, U-Net SHA-256 `0000000000000000…`'
    """
    kind = "ViT" if "vit_sha256" in model else "U-Net"
    digest = str(model.get("vit_sha256") or model.get("unet_sha256"))[:16]
    return f"{model.get('name')} from {model.get('source')}, {kind} SHA-256 `{digest}…`"


def score(matrix: Counts, dataset: Classes, average: str) -> dict[str, float]:
    """Return every figure of some counts by name.

    Of segments without names: `miou` and `acc` are matched in each image, as published, and
    `miou_strict` among the classes present only; `_dataset` is one assignment for all images;
    `_majority` takes every segment for its commonest class; `segments` is their mean number.

    Example:
        >>> from diffuseg.eval.datasets import SceneSet
        >>> matrix = ConfusionMatrix(18)
        >>> matrix.update(np.array([0, 12]), np.array([0, 13]))
        >>> score(matrix, SceneSet(n=1), "gt_present")["miou_things"]
        1.0
    """
    figures = {"miou": matrix.miou(average), "acc": matrix.accuracy()}
    for group, names in dataset.groups.items():
        indices = [dataset.classes.index(name) for name in names]
        figures[f"miou_{group}"] = matrix.miou(average, classes=indices)
    figures |= {f"miou_{rule}": matrix.miou(rule) for rule in AVERAGES}
    if isinstance(matrix, ConfusionMatrix):
        return figures | {"mean_acc": matrix.mean_accuracy(), "fwiou": matrix.fwiou()}
    return figures | {
        "miou_strict": matrix.strict.miou(),
        "miou_dataset": matrix.dataset.miou(),
        "acc_dataset": matrix.dataset.accuracy(),
        "miou_majority": matrix.majority.miou("gt_present"),
        "acc_majority": matrix.majority.accuracy(),
        "segments": matrix.n_segments / matrix.n_images if matrix.n_images else math.nan,
    }


@runtime_checkable
class Page(Protocol):
    """What is told twice: to machines and to people."""

    def to_json(self) -> str: ...
    def to_markdown(self) -> str: ...


def write_report(report: Page, folder: Path) -> None:
    """Write `report.json` and `report.md` into a folder."""
    for name, text in (("report.json", report.to_json()), ("report.md", report.to_markdown())):
        with atomic_path(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")


def write_classes(report: Report, folder: Path) -> None:
    """Write `classes.png`, a bar for the IoU of each class, into a folder."""
    with atomic_path(folder / "classes.png") as temporary:
        draw_bars(report.per_class, title="IoU, per cent").save(temporary)


def write_strip(
    path: Path,
    cases: Sequence[tuple[Sample, Segmentation, float]],
    dataset: Dataset,
) -> None:
    """Write pictures in rows: the image, what was found, what is true, and the colours.

    Args:
        path: Of the PNG.
        cases: Image, result and its mean intersection over union.
        dataset: Where they come from.
    """
    panels: list[object] = []
    titles: list[str] = []
    for sample, found, miou in cases:
        true = truth_segmentation(sample, dataset)
        panels += [
            sample.image,
            render.overlay(sample.image, found, legend=False),
            render.overlay(sample.image, true, legend=False),
            _legend(true),
        ]
        titles += [f"{sample.id}: mIoU {miou:.2f}", "found", "true", "shares of the truth"]
    with atomic_path(path) as temporary:
        render.strip(panels, titles, columns=4, height=_STRIP_HEIGHT).save(temporary)


def _legend(seg: Segmentation) -> PIL.Image.Image:
    drawn = draw_legend(legend_entries(seg), size=text_size(_STRIP_HEIGHT), height=_STRIP_HEIGHT)
    paper = PIL.Image.new("RGB", (max(drawn.width, _STRIP_HEIGHT // 2), _STRIP_HEIGHT), PAPER)
    paper.paste(drawn)
    return paper


def truth_segmentation(sample: Sample, dataset: Dataset) -> Segmentation:
    """Return the truth of an image as a segmentation into the classes it shows."""
    present = sample.present(len(dataset.classes))
    position = np.full(len(dataset.classes), 65535, dtype=np.int32)
    position[list(present)] = np.arange(len(present))
    inside = (sample.truth >= 0) & (sample.truth < len(dataset.classes))
    labels = np.where(inside, position[np.where(inside, sample.truth, 0)], 65535)
    return Segmentation(labels=labels, names=tuple(dataset.classes[i] for i in present))


def _matched_rows(metrics: Mapping[str, float]) -> list[tuple[str, str]]:
    if "segments" not in metrics:
        return []
    shares = {
        "mIoU, matched among the classes of the image": "miou_strict",
        "mIoU, matched once for the data set": "miou_dataset",
        "accuracy, matched once for the data set": "acc_dataset",
        "mIoU, each segment as its commonest class": "miou_majority",
        "accuracy, each segment as its commonest class": "acc_majority",
    }
    rows = [(label, percent(metrics[name])) for label, name in shares.items()]
    return [*rows, ("segments an image (mean)", f"{metrics['segments']:.1f}")]


def table_lines(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a Markdown table.

    Example:
        >>> table_lines(("figure", "value"), [("mIoU", "60.1")])
        ['| figure | value |', '|---|---|', '| mIoU | 60.1 |']
    """
    lines = [f"| {' | '.join(cells)} |" for cells in (head, *rows)]
    return [lines[0], f"|{'---|' * len(head)}", *lines[1:]]


def percent(value: float | None) -> str:
    """Return a share as shown in tables; "-" where there is none.

    Example:
        >>> percent(0.6012), percent(None)
        ('60.1', '-')
    """
    return "-" if value is None or math.isnan(value) else f"{100 * value:.1f}"


def plain_values(value: object) -> Any:
    """Return nested values as JSON has them: lists for tuples, None for NaN.

    Example:
        >>> plain_values({"iou": (0.5, float("nan"))})
        {'iou': [0.5, None]}
    """
    if isinstance(value, Mapping):
        return {str(key): plain_values(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain_values(one) for one in value]
    if isinstance(value, float) and math.isnan(value):
        return None
    return value
