"""What is known of a run over videos: its figures, and how they came about."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from diffuseg.eval.metrics import AVERAGES
from diffuseg.eval.protocols import oracle_line
from diffuseg.eval.report import percent, plain_values, table_lines, weights_line
from diffuseg.eval.runner import versions


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoReport:
    """The figures of one run and how they came about.

    Attributes:
        dataset: Name of the data set, with `split`.
        n_videos: Videos scored, with `n_frames`.
        metrics: miou, and by every rule of averaging; mvc8, mvc16; j, f, j_and_f where there are
            objects.
        per_class: IoU of every class; None where it occurs nowhere.
        per_video: J&F, or else mIoU, of every video.
        protocol: In words, what the method was told.
        given: The same in one word.
        oracles: What it knew of the truth it was scored on, see `protocols.ORACLES`.
        uses_gt_first_frame: Whether it was told the truth of a frame.
        average: Which classes the mean is over, see `ConfusionMatrix.miou`.
        notes: What has to be known beside the figures.
        method: Its name, with `parameters`.
        model: Name, source and checksum.
        versions: Of everything that computes.
        seconds_per_frame: Mean, without reading of frames.
        hardware: Where it ran.
        peak_memory_mb: Of the whole process.
    """

    dataset: str
    split: str
    n_videos: int
    n_frames: int
    metrics: Mapping[str, float]
    per_class: Mapping[str, float | None]
    per_video: Mapping[str, float]
    protocol: str
    method: str
    parameters: Mapping[str, object]
    model: Mapping[str, object]
    given: str = "anchor"
    oracles: tuple[str, ...] = ("first-frame",)
    uses_gt_first_frame: bool = True
    average: str = "gt_present"
    notes: tuple[str, ...] = ()
    versions: Mapping[str, str] = field(default_factory=versions)
    seconds_per_frame: float = math.nan
    hardware: Mapping[str, object] = field(default_factory=dict)
    peak_memory_mb: Mapping[str, float] = field(default_factory=dict)

    def to_json(self) -> str:
        """Return the report as JSON text."""
        return json.dumps(plain_values(asdict(self)), indent=2, allow_nan=False) + "\n"

    def to_markdown(self) -> str:
        """Return the report as a page to read."""
        shown = {"miou": "mIoU", "mvc8": "mVC8", "mvc16": "mVC16", "j": "J", "f": "F"}
        shown["j_and_f"] = "J&F"
        rows = [(shown[k], percent(v)) for k, v in self.metrics.items() if k in shown]
        rules = [
            f"`{one}` {percent(self.metrics[f'miou_{one}'])}"
            for one in AVERAGES
            if f"miou_{one}" in self.metrics
        ]
        told = (
            f"counts of all frames together, averaging rule `{self.average}`. By each rule: "
            + ", ".join(rules)
            if rules
            else "none, and no averaging rule; objects have no classes"
        )
        classes = [(name, percent(one)) for name, one in self.per_class.items() if one is not None]
        videos = [(name, percent(one)) for name, one in self.per_video.items()]
        return "\n".join(
            [
                f"# {self.method} with {self.model.get('name')} on {self.dataset}, {self.split}: "
                f"{self.n_videos} videos, {self.n_frames} frames",
                "",
                *table_lines(("figure", "value"), rows),
                "",
                f"- Protocol: {self.protocol}.",
                f"- {oracle_line(self.oracles)}",
                f"- mIoU: {told}.",
                *(f"- Note: {one}." for one in self.notes),
                f"- Model: {weights_line(self.model)}.",
                "- Settings: " + ", ".join(f"{k}={v!r}" for k, v in self.parameters.items()) + ".",
                "- Versions: " + ", ".join(f"{k} {v}" for k, v in self.versions.items()) + ".",
                "- Hardware: " + ", ".join(f"{k} {v}" for k, v in self.hardware.items()) + ".",
                f"- {self.seconds_per_frame:.3f} seconds a frame"
                + "".join(f"; {v:.0f} MB ({k})" for k, v in self.peak_memory_mb.items())
                + ".",
                "",
                *table_lines(("class", "IoU"), classes),
                "",
                *table_lines(("video", "J&F" if "j" in self.metrics else "mIoU"), videos),
                "",
            ]
        )
