"""Reports made of what a run keeps on disk: its facts and the counts of its images, no model."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from diffuseg.errors import InputError
from diffuseg.eval.bootstrap import LEVEL, SEED, ImageCounts, draw_intervals
from diffuseg.eval.protocols import PROTOCOLS, chosen_words, find_oracles
from diffuseg.eval.report import Report, score
from diffuseg.eval.scoring import COUNTED, Rules, empty_counts
from diffuseg.eval.state import Counts, ImageScore, add_up


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFacts:
    """All a report says that is not counted; plain values, kept in the first line of a run's file.

    Attributes:
        dataset: Name of the data set; with `split`, `seed`, `classes`, `ignore`, `groups`.
        geometry: At which size is scored.
        label_source: Whose labels they are.
        note: What has to be known beside the data set's figures.
        n_images: Pictures of the whole run, all shards together.
        named: Whether segments have names.
        given: What the method is told.
        average: The rule of the mean IoU.
        chosen_on: The split settings were chosen on; None: they were given beforehand.
        resamples: Draws of the confidence interval.
        shard: Which part of how many this run is; None: all.
        model: Name, source and checksum.
        method: Its name.
        config: Settings of the run.
        versions: Of everything that computes.
        hardware: Where it runs.
    """

    dataset: str
    split: str
    seed: int | None
    classes: tuple[str, ...]
    ignore: int
    groups: Mapping[str, Sequence[str]]
    geometry: str
    label_source: str
    note: str
    n_images: int
    named: bool
    given: str
    average: str
    chosen_on: str | None
    resamples: int
    shard: tuple[int, int] | None
    model: Mapping[str, object]
    method: str
    config: Mapping[str, object]
    versions: Mapping[str, str]
    hardware: Mapping[str, object]

    def to_dict(self) -> dict[str, object]:
        """Return plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "RunFacts":
        """Return the facts `to_dict` wrote.

        Raises:
            InputError: Some are missing, as in files of earlier versions.
        """
        known = [one.name for one in fields(cls)]
        missing = [name for name in known if name not in values]
        if missing:
            raise InputError(
                "the file of a run must say what the run was",
                got=f"no {', '.join(missing)}",
                remedy="run it again with this version of diffuseg; what is done is kept",
            )
        held = {name: values[name] for name in known}
        held["classes"] = tuple(held["classes"])
        held["shard"] = None if held["shard"] is None else tuple(held["shard"])
        return cls(**held)

    def empty(self) -> Counts:
        """Return counts of nothing yet."""
        return empty_counts(self.named, len(self.classes), self.ignore)


def usual_facts(data: Any, rules: Rules) -> dict[str, Any]:
    """Return the facts a data set and the rules of scoring say.

    Geometry, label source and note are those of data sets that have them.
    """
    return {
        "dataset": data.name,
        "split": data.split,
        "seed": data.seed,
        "classes": tuple(data.classes),
        "ignore": data.ignore,
        "groups": dict(data.groups),
        "geometry": getattr(data, "geometry", "") or "scored at the size of the image",
        "label_source": getattr(data, "label_source", "") or "the data set's own labels",
        "note": getattr(data, "note", ""),
        "named": rules.named,
        "given": rules.given,
    }


def assemble(
    facts: RunFacts,
    scores: Mapping[int, ImageScore],
    *,
    peak_memory_mb: Mapping[str, float] | None = None,
) -> Report:
    """Return the report of a run; the order in which images were scored makes no difference.

    Args:
        facts: Of the run.
        scores: By index of the image.
        peak_memory_mb: Of the process that computed.

    Raises:
        InputError: No image was scored, or the rule of averaging is unknown.
    """
    if not scores:
        raise InputError("there must be something to score", got="no images", remedy="take more")
    ordered = [scores[index] for index in sorted(scores)]
    empty = facts.empty()
    counts = add_up(ordered, empty)
    figures = score(counts, facts, facts.average)
    iou = [None if np.isnan(value) else float(value) for value in counts.iou()]
    seconds = [one.seconds for one in ordered]
    parameters = dict(next((one.parameters for one in ordered if one.parameters), {}))
    if facts.given == "count":
        parameters[COUNTED] = "the number of classes of the image"
    threshold = None
    if parameters.get("background") == "threshold":
        chosen = chosen_words(facts.chosen_on, facts.split)
        threshold = {"value": parameters.get("threshold"), "chosen_on": chosen}
    told: dict[str, Any] = {
        "uses_gt_image_labels": facts.given == "classes",
        "uses_gt_class_count": facts.given in ("count", "mean_count"),
        "uses_gt_assignment": not facts.named,
    }
    known = {**told, "chosen_on": facts.chosen_on, "split": facts.split}
    return Report(
        dataset=facts.dataset,
        split=facts.split,
        seed=facts.seed,
        n_images=counts.n_images,
        pixels_scored=counts.n_pixels,
        miou=figures["miou"],
        acc=figures["acc"],
        average=facts.average,
        metrics=figures,
        intervals=_intervals(ordered, facts, empty),
        bootstrap={"resamples": facts.resamples, "level": LEVEL, "seed": SEED},
        per_class=dict(zip(facts.classes, iou, strict=True)),
        protocol=PROTOCOLS[facts.named, facts.given],
        given=facts.given,
        **told,
        oracles=find_oracles(known),
        geometry=facts.geometry,
        label_source=facts.label_source,
        chosen_on=facts.chosen_on,
        threshold=threshold,
        shard=facts.shard,
        note=facts.note,
        model=facts.model,
        method=facts.method,
        parameters=parameters,
        config=facts.config,
        versions=facts.versions,
        hardware=facts.hardware,
        seconds_per_image={
            "median": round(statistics.median(seconds), 6),
            "mean": round(statistics.fmean(seconds), 6),
        },
        peak_memory_mb=peak_memory_mb or {},
    )


def _intervals(
    scores: Sequence[ImageScore], facts: RunFacts, empty: Counts
) -> dict[str, tuple[float, float]]:
    if len(scores) < 2 or facts.resamples < 1:
        return {}
    images = ImageCounts.of(empty.with_row(one.row) for one in scores)
    return draw_intervals(images, facts.average, resamples=facts.resamples)
