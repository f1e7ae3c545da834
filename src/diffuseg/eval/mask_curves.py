"""Seg-diffusion by the number of steps and of runs, measured together on the same pictures.

One picture is denoised once for every number of steps, and as often as the most runs ask for; all
smaller ensembles are made of the first of them, as a segmenter would draw them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import PIL.Image
import torch
from jaxtyping import Float
from torch import Tensor

from diffuseg.backbones import StableDiffusion
from diffuseg.eval.curves import draw_abreast, draw_curves
from diffuseg.eval.datasets import Dataset, Sample
from diffuseg.eval.metrics import ConfusionMatrix
from diffuseg.methods.segdiffusion.codec import mask_shares
from diffuseg.methods.segdiffusion.ensemble import Moments, label_classes
from diffuseg.methods.segdiffusion.noise import PyramidNoise, start_noise
from diffuseg.methods.segdiffusion.sampling import denoise_masks
from diffuseg.methods.segdiffusion.schedule import ddim_schedule
from diffuseg.segdiffusion.autoencoder import decode_channel, encode_pixels
from diffuseg.segdiffusion.levels import noise_levels
from diffuseg.segdiffusion.pictures import fitted_hw, padded_pixels, picture_key


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskCurves:
    """What is measured.

    Attributes:
        steps: Numbers of steps, each with a single run.
        runs: The largest ensemble; smaller ones are its first runs.
        pooled: Steps of the runs that are pooled.
        start: "white", as masks are sampled; "pyramid": one run from the noise of training instead.
        template: The prompt of a class.
        batch: Masks denoised at once.
    """

    steps: tuple[int, ...] = (1, 2, 4, 10, 50)
    runs: int = 10
    pooled: int = 4
    start: str = "white"
    template: str = "a photo of a {}"
    batch: int = 8

    def labels(self) -> tuple[str, ...]:
        """The names of what is measured: `steps 4`, `runs 10`, and `run 3`, the third alone."""
        return (
            *(f"steps {count}" for count in self.steps),
            *(f"runs {count}" for count in range(1, self.runs + 1)),
            *(f"run {number}" for number in range(1, self.runs + 1)),
        )


@torch.no_grad()
def measure_picture(
    model: StableDiffusion, data: Dataset, sample: Sample, curves: MaskCurves
) -> dict[str, dict[str, object]]:
    """Return the counts of a picture, asked for the classes it shows, by what is measured.

    Every pixel gets one of these classes. How far runs of one pixel lie apart on average is under
    `spread`.

    Example:
        >>> model = load("mini-seg")  # doctest: +SKIP
        >>> data = open_dataset("scenes", limit=1)  # doctest: +SKIP
        >>> list(measure_picture(model, data, data[0], MaskCurves(runs=1)))  # doctest: +SKIP
        ['steps 1', 'steps 2', 'steps 4', 'steps 10', 'steps 50', 'runs 1', 'run 1', 'spread']
    """
    present = sample.present(len(data.classes))
    shares = _Denoised(model, sample, [data.classes[one] for one in present], curves)
    found: dict[str, dict[str, object]] = {}

    def score(label: str, planes: Float[Tensor, "k h w"]) -> None:
        labels, _ = label_classes(planes, sample.truth.shape, background="none")
        matrix = ConfusionMatrix(len(data.classes), ignore=data.ignore)
        matrix.update(sample.truth, np.asarray(present)[labels])
        found[label] = matrix.row()

    for count in curves.steps:
        score(f"steps {count}", shares.run(count, 0))
    moments, single = Moments(), {}
    for number in range(curves.runs):
        single[f"run {number + 1}"] = one = shares.run(curves.pooled, number)
        moments.add(one)
        score(f"runs {number + 1}", moments.pooled().share)
    for label, one in single.items():
        score(label, one)
    spread = moments.pooled().uncertainty
    found["spread"] = {"mean": 0.0 if spread is None else round(float(spread.mean()), 6)}
    return found


class _Denoised:
    """The masks of a picture's classes, by steps and run; the last ones are kept."""

    def __init__(
        self, model: StableDiffusion, sample: Sample, names: Sequence[str], curves: MaskCurves
    ) -> None:
        self.model, self.curves = model, curves
        self.hw = fitted_hw(sample.image.hw, model.size)
        height, width = (-(-side // model.scale) * model.scale for side in self.hw)
        pixels = padded_pixels(sample.image, self.hw, (height, width))
        self.picture = encode_pixels(model.vae, pixels * 2 - 1)
        self.text = model.embed([curves.template.format(name) for name in names])
        channels, rows, columns = self.picture.shape[1:]
        self.levels = noise_levels(model.scheduler)
        key = picture_key(sample.image)
        if curves.start == "white":
            self.noise = start_noise(
                (channels, rows, columns), seed=0, picture=key, runs=max(1, curves.runs)
            )
        else:
            generator = torch.Generator().manual_seed(int(key[:12], 16))
            count = max(1, curves.runs)
            last = torch.full((count,), len(self.levels) - 1)
            shape = (count, channels, rows, columns)
            self.noise = PyramidNoise().draw(shape, last, generator=generator)
        self.kept: dict[tuple[int, int], Float[Tensor, "k h w"]] = {}

    def run(self, steps: int, number: int) -> Float[Tensor, "k h w"]:
        if (steps, number) not in self.kept:
            self.kept[steps, number] = self._run(steps, number)
        return self.kept[steps, number]

    def _run(self, steps: int, number: int) -> Float[Tensor, "k h w"]:
        schedule, parts = ddim_schedule(self.levels, steps), []
        for first in range(0, len(self.text), self.curves.batch):
            text = self.text[first : first + self.curves.batch]
            start = self.noise[number].expand(len(text), -1, -1, -1)

            def network(x: Tensor, time: int, text: Any = text) -> Tensor:
                return self.model.denoise(x, time, text)

            done = denoise_masks(network, self.picture, start.to(self.picture), schedule)
            parts.append(mask_shares(decode_channel(self.model.vae, done)))
        return torch.cat(parts)[:, : self.hw[0], : self.hw[1]]


def summarise(
    rows: Sequence[Mapping[str, Any]], classes: Sequence[str], unseen: Sequence[str] = ()
) -> dict[str, dict[str, float]]:
    """Return the mIoU of everything measured, of all classes and of two groups.

    Args:
        rows: Of `measure_picture`.
        classes: Of the data set.
        unseen: Those the model was never shown masks of.

    Example:
        >>> row = {"runs 1": {"counts": [[0, 0, 3], [1, 0, 1]], "missed": []}, "spread": {}}
        >>> summarise([row], ["car", "fish"], ["fish"])["runs 1"]
        {'miou': 0.375, 'seen': 0.75, 'unseen': 0.0, 'accuracy': 0.75}
    """
    groups = {
        "seen": [number for number, name in enumerate(classes) if name not in unseen],
        "unseen": [number for number, name in enumerate(classes) if name in unseen],
    }
    found: dict[str, dict[str, float]] = {}
    for label in (one for one in rows[0] if one != "spread"):
        total = ConfusionMatrix(len(classes))
        for row in rows:
            total = total.with_row(row[label])
        values = {"miou": total.miou()}
        values |= {name: total.miou(classes=some) for name, some in groups.items() if some}
        values["accuracy"] = total.accuracy()
        found[label] = {name: round(value, 4) for name, value in values.items()}
    return found


def draw_mask_curves(found: Mapping[str, Mapping[str, Any]]) -> PIL.Image.Image:
    """Draw mIoU over steps and, beside it, over runs; one line a model and group of classes.

    Args:
        found: What `scripts/mask_curves.py` has of every model.
    """
    plots = []
    for kind, label in (("steps", "steps of one run"), ("runs", "runs pooled")):
        lines = {
            f"{name}, {group} classes": [
                (float(row.split()[1]), 100 * values[group])
                for row, values in one["rows"].items()
                if row.startswith(f"{kind} ")
            ]
            for name, one in found.items()
            for group in ("seen", "unseen")
            if group in next(iter(one["rows"].values()))
        }
        plots.append(draw_curves(lines, x_label=label, y_label="mIoU, per cent"))
    return draw_abreast(plots)


def mask_table(found: Mapping[str, Mapping[str, Any]], kind: str) -> list[tuple[str, ...]]:
    """Return the rows of a table: what is measured, and of every model mIoU by group.

    Args:
        found: What `scripts/mask_curves.py` has of every model.
        kind: "steps", "runs" or "run".

    Example:
        >>> rows = {"steps 4": {"miou": 0.5, "seen": 0.75, "unseen": 0.25, "accuracy": 0.9}}
        >>> mask_table({"a": {"rows": rows}}, "steps")
        [('4', '50.0', '75.0', '25.0', '90.0')]
    """
    first = next(iter(found.values()))["rows"]
    return [
        (
            label.split()[1],
            *(
                f"{100 * one['rows'][label][group]:.1f}"
                for one in found.values()
                for group in first[label]
            ),
        )
        for label in first
        if label.split()[0] == kind
    ]
