"""A method over a data set: every image segmented and scored, then the report."""

import hashlib
import json
import logging
import os
import platform
import statistics
import sys
from collections.abc import Callable
from dataclasses import asdict, is_dataclass, replace
from importlib import metadata
from pathlib import Path

import numpy as np
import torch
from torch import nn

from diffuseg.api import Segmenter, build_segmenter, check_number
from diffuseg.backbones import Diffusion, Features, VideoDiffusion
from diffuseg.eval.datasets import Dataset, open_dataset
from diffuseg.eval.report import PROTOCOLS, Report, score, write_report, write_strip
from diffuseg.eval.scoring import (
    COUNTED,
    Rules,
    chooses,
    find_rules,
    name_by_truth,
    score_sample,
    segment_samples,
)
from diffuseg.eval.state import ImageScore, RunState
from diffuseg.filtering import describe_filter, find_filter
from diffuseg.methods import DEFAULT_METHOD, method_name

_STRIP = 4  # best and worst images shown

log = logging.getLogger(__name__)


def evaluate(
    dataset: str | Dataset = "scenes",
    *,
    method: object = DEFAULT_METHOD,
    model: object = None,
    split: str | None = None,
    limit: int | None = None,
    seed: int = 1,
    noise_seed: int = 0,
    size: int | None = None,
    batch_size: int = 4,
    given: str | None = None,
    class_filter: object = "clip",
    average: str | None = None,
    report: str | os.PathLike[str] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Score a method on a data set.

    Segments without names are matched to the classes of each image by its truth, as DiffSeg is
    published; see `diffuseg.eval.hungarian.SegmentCounts` for the other figures.

    Args:
        dataset: A name, such as "scenes", or a data set of your own.
        method: A name, or a method object with settings of your own.
        model: As for `segment`.
        split: Which part of the data set; by default the one usually scored.
        limit: Only the first so many images; 200 for Scenes.
        seed: Which stream of scenes.
        noise_seed: Of the noise the images are shown under.
        size: Side of the square whose area the model sees.
        batch_size: Images that go through the model together.
        given: What the method is told of each image's truth: "classes", the names of those present;
            "vocabulary", the names of all classes, of which `class_filter` keeps some; "count",
            their number, for a method that makes as many segments; "mean_count", the average of
            that; "nothing". By default the classes if it must know them (all, if it chooses among
            them as OVDiff does), else nothing.
        class_filter: As for `segment`, where the vocabulary is given to a method that does not
            choose.
        average: Which classes the mean is over, see `ConfusionMatrix.miou`; "gt_present" by
            default, "union_present" for segments without names.
        report: A folder for `report.json`, `report.md`, `best.png`, `worst.png` and the state of
            the run: called again with the same settings, it goes on where it was stopped.
        progress: Called with (done, all) after every batch.

    Raises:
        InputError: No such data set, split, model or method; the method cannot be told what is
            given; the folder cannot be written.
        WeightsError: The model's weights are not to be had.

    Example:
        >>> evaluate("scenes", model="mini", limit=8).miou  # doctest: +SKIP
        0.61
    """
    check_number("batch_size", batch_size, least=1)
    data = (
        open_dataset(dataset, split=split, seed=seed, limit=limit)
        if isinstance(dataset, str)
        else dataset
    )
    n_images = len(data) if limit is None else min(limit, len(data))
    segmenter = build_segmenter(model, method, seed=noise_seed, size=size)
    rules = find_rules(segmenter.method, segmenter.model, data, n_images, given)
    if rules.given == "vocabulary" and not chooses(segmenter.method):
        kept = find_filter(class_filter, segmenter.model)
        segmenter = replace(segmenter, class_filter=kept)
    average = average or rules.average
    empty = rules.empty(data)
    empty.miou(average)  # an unknown rule is noticed now, not after hours
    config: dict[str, object] = {"noise_seed": noise_seed, "size": size, "batch_size": batch_size}
    if segmenter.class_filter is not None:
        config["class_filter"] = describe_filter(segmenter.class_filter)
    identity = identify(segmenter.model)
    folder = None if report is None else Path(report)
    settings = {
        "dataset": [data.name, data.split, data.seed, data.classes, data.ignore],
        "model": identity,
        "preset": dict(segmenter.model.preset),
        "method": [method_name(segmenter.method), plain_fields(segmenter.method)],
        "given": [rules.given, rules.count],
        **config,
        "version": metadata.version("diffuseg"),
    }
    state = RunState(None if folder is None else folder / "images.jsonl", settings, empty)
    state.scores = {i: one for i, one in state.scores.items() if i < n_images}
    if state.scores:
        log.info("going on after %d of %d images", len(state.scores), n_images)

    parameters = _run(segmenter, data, rules, state, n_images, batch_size, progress)
    if folder is not None:
        parameters = _write_strips(segmenter, data, rules, state, folder) or parameters
    found = _report(data, rules, state, average, segmenter, parameters, identity, config)
    if folder is not None:
        write_report(found, folder)
    return found


def _run(
    segmenter: Segmenter,
    data: Dataset,
    rules: Rules,
    state: RunState,
    n_images: int,
    batch_size: int,
    progress: Callable[[int, int], None] | None,
) -> dict[str, object]:
    """Score what is not scored yet; return the method's settings as they were used."""
    parameters: dict[str, object] = {}
    for start in range(0, n_images, batch_size):
        # Always whole batches of the same images, so that a run that was stopped in between
        # computes what an undisturbed one does, to the last bit.
        batch = range(start, min(start + batch_size, n_images))
        if not all(index in state.scores for index in batch):
            samples = [data[index] for index in batch]
            results = segment_samples(segmenter, samples, data, rules)
            parameters = dict(results[0].provenance.parameters)
            scores = [
                ImageScore(
                    index=index,
                    counts=score_sample(sample, result, data, rules),
                    seconds=sum(result.provenance.seconds.values()),
                )
                for index, sample, result in zip(batch, samples, results, strict=True)
            ]
            state.add(scores)
        if progress is not None:
            progress(batch.stop, n_images)
    return parameters


def _write_strips(
    segmenter: Segmenter, data: Dataset, rules: Rules, state: RunState, folder: Path
) -> dict[str, object]:
    mious = {index: one.counts.miou("gt_present") for index, one in state.scores.items()}
    ranked = sorted((i for i in mious if not np.isnan(mious[i])), key=lambda i: (-mious[i], i))
    parameters: dict[str, object] = {}
    for name, chosen in (("best", ranked[:_STRIP]), ("worst", ranked[::-1][:_STRIP])):
        samples = [data[index] for index in chosen]
        if not samples:
            continue
        results = segment_samples(segmenter, samples, data, rules)
        parameters = dict(results[0].provenance.parameters)
        if not rules.named:
            results = [
                name_by_truth(sample, result, data)
                for sample, result in zip(samples, results, strict=True)
            ]
        cases = list(zip(samples, results, [mious[index] for index in chosen], strict=True))
        write_strip(folder / f"{name}.png", cases, data)
    return parameters


def _report(
    data: Dataset,
    rules: Rules,
    state: RunState,
    average: str,
    segmenter: Segmenter,
    parameters: dict[str, object],
    identity: dict[str, object],
    config: dict[str, object],
) -> Report:
    counts = state.total()
    figures = score(counts, data, average)
    iou = [None if np.isnan(value) else float(value) for value in counts.iou()]
    seconds = [one.seconds for one in state.scores.values()]
    threshold = None
    if parameters.get("background") == "threshold":
        threshold = {"value": parameters.get("threshold"), "chosen_on": "given beforehand"}
    if rules.given == "count":
        parameters = {**parameters, COUNTED: "the number of classes of the image"}
    return Report(
        dataset=data.name,
        split=data.split,
        seed=data.seed,
        n_images=counts.n_images,
        pixels_scored=counts.n_pixels,
        miou=figures["miou"],
        acc=figures["acc"],
        average=average,
        metrics=figures,
        per_class=dict(zip(data.classes, iou, strict=True)),
        protocol=PROTOCOLS[rules.named, rules.given],
        uses_gt_image_labels=rules.given == "classes",
        uses_gt_class_count=rules.given in ("count", "mean_count"),
        uses_gt_assignment=not rules.named,
        threshold=threshold,
        model=identity,
        method=method_name(segmenter.method),
        parameters=parameters,
        config=config,
        versions=versions(),
        hardware={
            "device": str(segmenter.model.device),
            "dtype": str(segmenter.model.dtype).removeprefix("torch."),
            "threads": torch.get_num_threads(),
            "processor": platform.processor() or platform.machine(),
        },
        seconds_per_image={
            "median": round(statistics.median(seconds), 6),
            "mean": round(statistics.fmean(seconds), 6),
        },
        peak_memory_mb=_peak_memory(),
    )


def versions() -> dict[str, str]:
    """Return the versions of everything that computes."""
    packages = ("diffuseg", "torch", "diffusers", "transformers", "numpy", "pillow")
    return {"python": platform.python_version()} | {one: metadata.version(one) for one in packages}


def identify(model: Diffusion | VideoDiffusion | Features) -> dict[str, object]:
    """Name, source and a checksum of the weights that are really in memory."""
    kind = "unet" if hasattr(model, "unet") else "vit"
    network: nn.Module = getattr(model, "unet", None) or getattr(model, "model")  # noqa: B009
    digest = hashlib.sha256()
    for name, tensor in network.state_dict().items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return {"name": model.name, "source": model.source, f"{kind}_sha256": digest.hexdigest()}


def plain_fields(method: object) -> object:
    """Return the settings of a method as plain JSON values."""
    if is_dataclass(method) and not isinstance(method, type):
        return json.loads(json.dumps(asdict(method), default=str))
    return repr(method)


def _peak_memory() -> dict[str, float]:
    peak: dict[str, float] = {}
    try:
        import resource
    except ImportError:  # Windows
        pass
    else:
        kilobyte = 1 if sys.platform == "darwin" else 1024
        used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * kilobyte
        peak["process"] = round(used / 1e6, 1)
    if torch.cuda.is_available():
        peak["cuda"] = round(torch.cuda.max_memory_allocated() / 1e6, 1)
    return peak
