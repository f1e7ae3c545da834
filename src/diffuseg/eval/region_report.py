"""What a run over regions found, with everything needed to repeat and to judge it."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from diffuseg.eval.protocols import oracle_line
from diffuseg.eval.regions import TOLERANCE
from diffuseg.eval.report import plain_values, table_lines, weights_line

PROTOCOL = (
    "nothing is given; segments are compared with the regions of every person who cut the picture, "
    "figures are means over people, then over pictures; undecided pixels are one segment"
)
"""What a method over regions is told, in words."""

_FIGURES: Mapping[str, str] = {
    "covering": "covering",
    "rand": "Rand index (PRI)",
    "voi": "variation of information, bits",
    "ods": "F of boundaries, one scale for the data set (ODS)",
    "ois": "F of boundaries, the best scale of each image (OIS)",
    "f_recall": "recall of boundaries, one to one",
    "f_precision": "precision of boundaries, one to one",
    "boundary_recall": "share of people's boundaries near one drawn",
    "boundary_precision": "share of boundaries drawn near one of a person",
    "segments": "segments an image (mean)",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RegionReport:
    """What a run over regions found, and how.

    Attributes:
        dataset: Name of the data set; with `split`.
        n_images: Pictures scored.
        metrics: See `diffuseg.eval.regions.best_regions`.
        scales: The figures at each scale, with its settings; the first is all there is of a run
            with one.
        scale: Which of them `metrics` are of, but for `ois`.
        tolerance: How far a boundary may be off, as a share of the diagonal.
        boundaries: Where people's thin boundaries come from.
        protocol: In words.
        given: What the method was told, in a word.
        uses_gt_scale: Whether the truth chose among several scales.
        oracles: What it knew of the truth it was scored on, see `protocols.ORACLES`.
        average: Regions have no classes: there is no mean IoU, and no rule of it.
        model: Name, source and checksum of the weights.
        method: Name of the method.
        parameters: Its settings at that scale, presets of the model filled in.
        config: Settings of the run beside them.
        versions: Of everything that computes.
        hardware: Where it ran.
        seconds_per_image: Their median, of all scales together.
        peak_memory_mb: Of the whole process.
    """

    dataset: str
    split: str
    n_images: int
    metrics: Mapping[str, float]
    scales: Sequence[Mapping[str, object]] = ()
    scale: int = 0
    tolerance: float = TOLERANCE
    boundaries: str = ""
    protocol: str = PROTOCOL
    given: str = "nothing"
    uses_gt_scale: bool = False
    oracles: tuple[str, ...] = ()
    average: str = "none"
    model: Mapping[str, object] = field(default_factory=dict)
    method: str = ""
    parameters: Mapping[str, object] = field(default_factory=dict)
    config: Mapping[str, object] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    hardware: Mapping[str, object] = field(default_factory=dict)
    seconds_per_image: float = math.nan
    peak_memory_mb: Mapping[str, float] = field(default_factory=dict)

    def to_json(self) -> str:
        """Return the report as JSON text."""
        return json.dumps(plain_values(asdict(self)), indent=2, allow_nan=False) + "\n"

    def to_markdown(self) -> str:
        """Return the report as a page to read."""
        rows = region_rows(self.metrics)
        settings = ", ".join(f"{name}={value!r}" for name, value in self.parameters.items())
        memory = "".join(f"; {v:.0f} MB ({k})" for k, v in self.peak_memory_mb.items())
        return "\n".join(
            [
                f"# {self.method} with {self.model.get('name')} on {self.dataset}, {self.split}: "
                f"{self.n_images} images",
                "",
                *table_lines(("figure", "value"), rows),
                "",
                f"- Protocol: {self.protocol}.",
                f"- {oracle_line(self.oracles)}",
                "- mIoU: none, and no averaging rule; regions have no classes.",
                f"- F: thin boundaries matched one to one within {self.tolerance:g} of the "
                "diagonal, counts of all images together; a pixel drawn is right if any person's "
                f"matches it. People's boundaries: {self.boundaries}.",
                f"- {self._scale_line()}",
                f"- Model: {weights_line(self.model)}.",
                f"- Settings: {settings}.",
                "- Versions: " + ", ".join(f"{k} {v}" for k, v in self.versions.items()) + ".",
                "- Hardware: " + ", ".join(f"{k} {v}" for k, v in self.hardware.items()) + ".",
                f"- {self.seconds_per_image:.3f} seconds an image, median{memory}.",
                "",
                *self._scale_lines(),
            ]
        )

    def _scale_line(self) -> str:
        if len(self.scales) < 2:
            return "One segmentation an image, so one scale: ODS and OIS are the same F."
        held = self.scales[self.scale]["settings"]
        return (
            f"{len(self.scales)} scales; all figures but OIS are of the one with the best F over "
            f"these very images, {_settings(held)}."
        )

    def _scale_lines(self) -> list[str]:
        if len(self.scales) < 2:
            return []
        rows = []
        for one in self.scales:
            figures: Any = one["metrics"]
            shown = ("f", "f_recall", "f_precision", "covering", "segments")
            rows.append((_settings(one["settings"]), *(f"{figures[name]:.3f}" for name in shown)))
        return [
            *table_lines(("scale", "F", "recall", "precision", "covering", "segments"), rows),
            "",
        ]


def region_rows(metrics: Mapping[str, float]) -> list[tuple[str, str]]:
    """Return the figures of regions as rows of a table; "-" where there is none.

    Example:
        >>> region_rows({"covering": 0.5, "ods": 0.25})
        [('covering', '0.500'), ('F of boundaries, one scale for the data set (ODS)', '0.250')]
    """
    return [(label, _shown(metrics[name])) for name, label in _FIGURES.items() if name in metrics]


def _shown(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.3f}"


def _settings(settings: object) -> str:
    held = settings if isinstance(settings, Mapping) else {}
    return ", ".join(f"{name}={value}" for name, value in held.items())
