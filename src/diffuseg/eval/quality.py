"""The quality of the miniature and its companions, measured in one go: `quality.json`."""

import json
import logging
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from diffuseg.api import check_number, find_model
from diffuseg.backbones import Diffusion
from diffuseg.errors import InputError, WeightsError
from diffuseg.eval import mini_pictures as pictures
from diffuseg.eval.curves import draw_curves
from diffuseg.eval.runner import identify, versions
from diffuseg.files import atomic_path
from diffuseg.world.scenes import Scenes

FILE = "quality.json"

_REST = 600.0  # seconds without a line after which a training counts as having been stopped

Meter = Callable[[str], AbstractContextManager[Callable[[int, int], None]]]
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """What the parts of the measurement are given."""

    model: Diffusion
    folder: Path
    number: int
    seed: int
    steps: int
    guidance: float
    progress: Callable[[int, int], None]

    @property
    def companions(self) -> str:
        """What to load the companions by: the model's own folder."""
        return "mini" if self.model.source == "embedded" else self.model.source


@dataclass(frozen=True, slots=True, kw_only=True)
class Aim:
    """One figure of the report: what it is called, where it is found, what it should be."""

    label: str
    path: str
    least: float | None = None
    unit: str = "%"


POINTS, RATIO = "points", "times that of one"

AIMS: tuple[Aim, ...] = (
    Aim(label="autoencoder, PSNR", path="vae.psnr", least=24.0, unit="dB"),
    Aim(label="autoencoder, PSNR at borders", path="vae.edges", unit="dB"),
    Aim(label="attend, mIoU of all 18 classes", path="attend.preset.miou", least=0.74),
    Aim(label="attend, mIoU of the 12 things", path="attend.preset.miou_things", least=0.65),
    Aim(label="attend, pixel accuracy", path="attend.preset.acc"),
    Aim(label="attend without completion, mIoU", path="attend.plain.miou"),
    Aim(label="gain by completion, mIoU", path="attend.gain", least=0.05, unit=POINTS),
    Aim(label="attend with DiffSegmenter's levels, mIoU", path="attend.paper_plain.miou"),
    Aim(label="gain by completion there, mIoU", path="attend.paper_gain", least=0.05, unit=POINTS),
    Aim(label="divergence of pixels of two objects", path="sharpness.ratio", unit=RATIO),
    Aim(label="pairs of pixels told apart by it", path="sharpness.separated"),
    Aim(label="probe of U-Net queries, mIoU", path="unet_probe.miou", least=0.60),
    Aim(label="probe of ViT keys, mIoU", path="vit_probe.miou", least=0.60),
    Aim(label="CLIP, things", path="clip.zero_shot.things", least=0.95),
    Aim(label="CLIP, stuff", path="clip.zero_shot.stuff", least=0.95),
    Aim(label="CLIP, colours", path="clip.zero_shot.colors", least=0.90),
    Aim(label="CLIP, the caption among 64", path="clip.retrieval.image_to_text", least=0.80),
    Aim(label="CLIP, the image among 64", path="clip.retrieval.text_to_image", least=0.80),
    Aim(label="drawn from captions: thing recognised", path="sampling.things", least=0.90),
    Aim(label="drawn from captions: colour recognised", path="sampling.colors", least=0.90),
    Aim(label="the same, pairs never trained on: thing", path="sampling.unseen_things"),
    Aim(label="the same, pairs never trained on: colour", path="sampling.unseen_colors"),
    Aim(label="captioner, nouns named that are there", path="captioner.precision", least=0.90),
    Aim(label="captioner, nouns there that are named", path="captioner.recall", least=0.90),
)  # fmt: skip
"""What is told of the miniature, in order, and the least that was asked for."""


def measure_quality(
    model: object = "mini",
    *,
    report: str | os.PathLike[str],
    parts: Sequence[str] | None = None,
    limit: int = 200,
    seed: int = 1,
    steps: int = 30,
    guidance: float = 7.5,
    training_log: str | os.PathLike[str] | None = None,
    meter: Meter,
) -> dict[str, Any]:
    """Measure a miniature on held-out scenes; a call that was stopped goes on.

    Args:
        model: "mini", or a folder that `diffuseg train mini` wrote.
        report: Folder for `quality.json`, `quality.md`, the sheet of samples and the histogram.
            What is measured there already, of the same weights, is not measured again.
        parts: Some of `PARTS`, measured again in any case; None: all that are missing.
        limit: Scenes and captions.
        seed: Which stream of the split "test".
        steps: Of the sampler.
        guidance: Classifier-free guidance of the sampler.
        training_log: `log.jsonl` of the training, for what it cost.
        meter: Opens a progress bar for a title.

    Returns:
        What `quality.json` holds. A part whose companion is not there has "missing", the reason.

    Raises:
        InputError: No such part or model.
        WeightsError: The model's weights are not to be had.
    """
    check_number("limit", limit, least=1)
    for name in parts or ():
        if name not in PARTS:
            raise InputError(
                "a part must be one that is measured",
                got=name,
                remedy=f"use some of {', '.join(PARTS)}",
            )
    loaded = find_model(model)
    folder = Path(report)
    held = {
        "model": identify(loaded),
        "split": "test",
        "seed": seed,
        "limit": limit,
        "versions": versions(),
        "hardware": {
            "device": str(loaded.device),
            "threads": torch.get_num_threads(),
            "processor": platform.processor() or platform.machine(),
        },
    }
    known = _read(folder / FILE)
    same = all(known.get(name) == held[name] for name in ("model", "seed", "limit"))
    found: dict[str, Any] = dict(known.get("parts", {})) if same else {}
    training = known.get("training") if same else None
    if training_log is not None:
        training = training_cost(Path(training_log))
    for name in parts or [one for one in PARTS if "missing" in found.get(one, {"missing": ""})]:
        start = time.perf_counter()
        with meter(f"measuring {name}") as progress:
            bench = Bench(
                model=loaded, folder=folder, number=limit, seed=seed, steps=steps,
                guidance=guidance, progress=progress,
            )  # fmt: skip
            try:
                found[name] = PARTS[name](bench)
            except (ImportError, WeightsError) as error:
                log.warning("%s: %s", name, error)
                found[name] = {"missing": str(error).splitlines()[0]}
        found[name]["seconds"] = round(time.perf_counter() - start, 1)
        _write(folder, held | {"training": training, "parts": found})
    result = held | {"training": training, "parts": found}
    _write(folder, result)
    return result


def training_cost(path: Path) -> dict[str, dict[str, float]]:
    """Steps and hours of every stage of a training, from the lines of its log.

    Raises:
        InputError: There is no such file, or it is no such log.
    """
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        stages = {
            row["stage"]: [one for one in rows if one["stage"] == row["stage"]] for row in rows
        }
        return {
            stage: {
                "steps": float(max(row["step"] for row in mine)),
                "hours": round(_hours(mine), 3),
            }
            for stage, mine in stages.items()
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            "the log must be the log.jsonl of a training",
            got=f"{path}: {type(error).__name__}",
            remedy="it is in the folder given as --work",
        ) from error


def quality_tables(report: Mapping[str, Any]) -> str:
    """Return the figures as Markdown tables: all of them, and by size of the picture.

    Example:
        >>> print(quality_tables({"parts": {"vae": {"psnr": 25.0}}}).splitlines()[2])
        | autoencoder, PSNR | 25.0 dB | 24 dB |
    """
    parts = report["parts"]
    rows = []
    for aim in AIMS:
        value = _look_up(parts, aim.path)
        if value is not None:
            least = "" if aim.least is None else _shown(aim.least, aim.unit, digits=0)
            rows.append((aim.label, _shown(value, aim.unit), least))
    text = _table(("figure", "measured", "asked for"), rows)
    sizes = {name: one for name, one in parts.get("sizes", {}).items() if isinstance(one, Mapping)}
    if sizes:
        lines = [
            (
                name.replace("x", " x "),
                _shown(one["psnr"], "dB"),
                _shown(one["miou"], "%"),
                _shown(one["own_miou"], "%"),
            )
            for name, one in sizes.items()
        ]
        head = ("picture", "PSNR", "attend, seen at the model's size", "seen at its own size")
        text += "\n\n" + _table(head, lines)
    missing = [f"- {name}: {one['missing']}" for name, one in parts.items() if "missing" in one]
    return text + ("\n\nNot measured:\n\n" + "\n".join(missing) if missing else "")


def _reconstruct(bench: Bench) -> dict[str, Any]:
    return dict(
        pictures.measure_reconstruction(
            bench.model, number=bench.number, seed=bench.seed, progress=bench.progress
        )
    )


def _attend(bench: Bench) -> dict[str, Any]:
    return pictures.measure_attend(
        bench.model,
        number=bench.number,
        seed=bench.seed,
        report=bench.folder / "attend",
        progress=bench.progress,
    )


def _sharpness(bench: Bench) -> dict[str, Any]:
    from diffuseg.eval.mini_features import measure_sharpness

    found = measure_sharpness(
        bench.model, number=max(1, bench.number // 2), seed=bench.seed, progress=bench.progress
    )
    bars = found["histogram"]
    at = [(low * high) ** 0.5 for low, high in pairwise(bars["edges"])]
    lines = {
        name: [
            (float(torch.tensor(x).log10()), 100 * y) for x, y in zip(at, bars[key], strict=True)
        ]
        for name, key in (("two pixels of one object", "same"), ("of different ones", "different"))
    }
    plot = draw_curves(
        lines, x_label="log10 of the divergence, nats", y_label="per cent of the pairs", fill=True
    )
    with atomic_path(bench.folder / "divergence.png") as temporary:
        plot.save(temporary)
    return found


def _sizes(bench: Bench) -> dict[str, Any]:
    return dict(
        pictures.measure_sizes(
            bench.model,
            number=max(1, bench.number // 5),
            seed=bench.seed,
            progress=bench.progress,
        )
    )


def _clip(bench: Bench) -> dict[str, Any]:
    from diffuseg.backbones.clip import load_clip
    from diffuseg.eval import mini_language as language

    clip = load_clip(bench.companions, device=str(bench.model.device))
    single = language.single_scenes(bench.number, split="test", seed=bench.seed)
    several = language.distinct_scenes(4 * 64, split="test", seed=bench.seed)
    return {
        "zero_shot": language.zero_shot_accuracy(clip, single),
        "retrieval": language.retrieval_recall(clip, several, candidates=64),
    }


def _captioner(bench: Bench) -> dict[str, Any]:
    from diffuseg.backbones.captioner import load_captioner
    from diffuseg.eval.mini_language import caption_accuracy

    captioner = load_captioner(bench.companions, device=str(bench.model.device))
    scenes = Scenes("test", seed=bench.seed)
    return dict(caption_accuracy(captioner, [scenes[index] for index in range(bench.number)]))


def _unet_probe(bench: Bench) -> dict[str, Any]:
    from diffuseg.eval.mini_features import measure_query_probe

    return measure_query_probe(
        bench.model, number=bench.number, seed=bench.seed, progress=bench.progress
    )


def _vit_probe(bench: Bench) -> dict[str, Any]:
    from diffuseg.backbones.vit import load_vit
    from diffuseg.eval.mini_features import measure_key_probe

    vit = load_vit(bench.companions, device=str(bench.model.device))
    return measure_key_probe(vit, number=bench.number, seed=bench.seed, progress=bench.progress)


def _sampling(bench: Bench) -> dict[str, Any]:
    from diffuseg.backbones.clip import load_clip

    clip = load_clip(bench.companions, device=str(bench.model.device))
    weights = str(identify(bench.model)["unet_sha256"])[:8]
    name = f"samples-{weights}-{bench.seed}-{bench.steps}-{bench.guidance:g}"
    return dict(
        pictures.measure_sampling(
            bench.model,
            clip,
            bench.folder / name,
            number=bench.number,
            seed=bench.seed,
            steps=bench.steps,
            guidance=bench.guidance,
            progress=bench.progress,
        )
    )


PARTS: dict[str, Callable[[Bench], dict[str, Any]]] = {
    "vae": _reconstruct,
    "attend": _attend,
    "sharpness": _sharpness,
    "sizes": _sizes,
    "unet_probe": _unet_probe,
    "vit_probe": _vit_probe,
    "clip": _clip,
    "captioner": _captioner,
    "sampling": _sampling,
}
"""What is measured, by name."""


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _write(folder: Path, result: Mapping[str, Any]) -> None:
    text = {FILE: json.dumps(result, indent=2) + "\n", "quality.md": quality_tables(result) + "\n"}
    for name, content in text.items():
        with atomic_path(folder / name) as temporary:
            temporary.write_text(content, encoding="utf-8")


def _hours(rows: Sequence[Mapping[str, Any]]) -> float:
    times = sorted(row["time"] for row in rows)
    gaps = [later - earlier for earlier, later in pairwise(times)]
    return sum(gap for gap in gaps if gap < _REST) / 3600


def _look_up(parts: Mapping[str, Any], path: str) -> float | None:
    value: Any = parts
    for key in path.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value if isinstance(value, int | float) else None


def _shown(value: float, unit: str, *, digits: int = 1) -> str:
    scaled = 100 * value if unit in ("%", POINTS) else value
    return f"{scaled:.{digits}f} {unit}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(cells)} |" for cells in (head, *rows)]
    return "\n".join([lines[0], f"|{'---|' * len(head)}", *lines[1:]])
