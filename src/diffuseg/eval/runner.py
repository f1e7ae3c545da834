"""A method over a data set: every image segmented and scored, then the report."""

import hashlib
import json
import logging
import os
import platform
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, is_dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from diffuseg.api import Segmenter, build_segmenter, check_number
from diffuseg.backbones import Diffusion, Features, VideoDiffusion
from diffuseg.errors import InputError
from diffuseg.eval.assembling import RunFacts, assemble, usual_facts
from diffuseg.eval.bootstrap import RESAMPLES
from diffuseg.eval.datasets import Dataset, Sample, open_dataset
from diffuseg.eval.report import Report, write_classes, write_report, write_strip
from diffuseg.eval.scoring import (
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

STATE = "images.jsonl"
"""The file of a report's folder that keeps what is done."""

_STRIP = 4  # best and worst images shown

log = logging.getLogger(__name__)


def evaluate(
    dataset: str | Dataset = "scenes",
    *,
    method: object = DEFAULT_METHOD,
    model: object = None,
    root: str | os.PathLike[str] | None = None,
    geometry: str | None = None,
    names: str | None = None,
    split: str | None = None,
    limit: int | None = None,
    seed: int = 1,
    noise_seed: int = 0,
    size: int | None = None,
    batch_size: int = 4,
    given: str | None = None,
    class_filter: object = "clip",
    average: str | None = None,
    chosen_on: str | None = None,
    resamples: int = RESAMPLES,
    shard: tuple[int, int] | None = None,
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
        root: Folder of a data set of files.
        geometry: What of its pictures is scored, and
        names: whose words for its classes are used, as for `open_dataset`.
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
        chosen_on: The split on which settings, a threshold for instance, were chosen by hand or
            by a sweep. If it is the one scored, the report calls its figures an oracle's.
        resamples: Draws of images for the confidence interval; 0: none.
        shard: (i, n): only the i-th of n parts, i from 1. `merge_runs` joins their folders to what
            one run would have written.
        report: A folder for `report.json`, `report.md`, `best.png`, `worst.png`, `classes.png` and
            the state of the run: called again with the same settings, it goes on where it was
            stopped, and ends with the same report (seconds and memory aside).
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
    check_number("resamples", resamples, least=0)
    part = _check_shard(shard)
    where: dict[str, Any] = {"root": root, "geometry": geometry, "names": names}
    data, n_images = find_dataset(dataset, split=split, seed=seed, limit=limit, **where)
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
    facts = RunFacts(
        **usual_facts(data, rules),
        n_images=n_images,
        average=average,
        chosen_on=chosen_on,
        resamples=resamples,
        shard=shard,
        model=identify(segmenter.model),
        method=method_name(segmenter.method),
        config=config,
        versions=versions(),
        hardware=hardware_of(segmenter.model),
    )
    settings = {
        "dataset": [data.name, data.split, data.seed, data.classes, data.ignore, facts.geometry],
        "model": facts.model,
        "preset": dict(segmenter.model.preset),
        "method": [facts.method, plain_fields(segmenter.method)],
        "given": [rules.given, rules.count],
        **config,
        "version": metadata.version("diffuseg"),
    }
    if (files := getattr(data, "fingerprint", None)) is not None:
        settings["files"] = files  # another folder is another run
    folder = None if report is None else Path(report)
    state = RunState(None if folder is None else folder / STATE, settings, empty, facts.to_dict())
    # Always whole batches of the same images, so that a run that was stopped in between, or that
    # is shared among processes, computes what an undisturbed one does, to the last bit.
    every = [range(i, min(i + batch_size, n_images)) for i in range(0, n_images, batch_size)]
    batches = every[part.number - 1 :: part.count]
    mine = {index for batch in batches for index in batch}
    if not mine:
        raise InputError(
            "every part must have images",
            got=f"part {part.number} of {part.count}, of {len(every)} batches of {batch_size}",
            remedy="use fewer parts or smaller batches",
        )
    state.scores = {i: one for i, one in state.scores.items() if i in mine}
    if state.scores:
        log.info("going on after %d of %d images", len(state.scores), len(mine))

    _run(segmenter, data, rules, state, batches, progress)
    found = assemble(facts, state.scores, peak_memory_mb=peak_memory())
    if folder is not None:
        _write_strips(segmenter, data, rules, state, folder)
        write_report(found, folder)
        write_classes(found, folder)
    return found


def find_dataset(
    dataset: str | Dataset,
    *,
    root: str | os.PathLike[str] | None = None,
    geometry: str | None = None,
    names: str | None = None,
    split: str | None,
    seed: int,
    limit: int | None,
) -> tuple[Dataset, int]:
    """Return a data set, opened if it is named, and how many of its images are wanted."""
    data = dataset
    if isinstance(data, str):
        told: dict[str, Any] = {"root": root, "geometry": geometry, "names": names}
        data = open_dataset(data, split=split, seed=seed, limit=limit, **told)
    return data, len(data) if limit is None else min(limit, len(data))


@dataclass(frozen=True, slots=True)
class _Part:
    number: int
    count: int


def _check_shard(shard: tuple[int, int] | None) -> _Part:
    number, count = shard or (1, 1)
    if not 1 <= number <= count:
        raise InputError(
            "a part must be one of how many there are, counted from 1",
            got=f"{number} of {count}",
            remedy="use 1 of 4 to 4 of 4, for instance",
        )
    return _Part(number, count)


def _run(
    segmenter: Segmenter,
    data: Dataset,
    rules: Rules,
    state: RunState,
    batches: Sequence[range],
    progress: Callable[[int, int], None] | None,
) -> None:
    """Score what is not scored yet."""
    first, total = batches[0].start, sum(map(len, batches))
    missing = [one for one in batches if not all(index in state.scores for index in one)]
    starts = {one.start for one in missing}
    read = _read_ahead(data, missing)
    done = 0
    for batch in batches:
        if batch.start in starts:
            samples = next(read)
            results = segment_samples(segmenter, samples, data, rules)
            state.add(
                [
                    ImageScore.of(
                        index,
                        score_sample(sample, result, data, rules),
                        sum(result.provenance.seconds.values()),
                        result.provenance.parameters if index == first else None,
                    )
                    for index, sample, result in zip(batch, samples, results, strict=True)
                ]
            )
        done += len(batch)
        if progress is not None:
            progress(done, total)


def _read_ahead(data: Dataset, batches: Sequence[range]) -> Iterator[list[Sample]]:
    """The images of some batches; while one is worked on, the next is read."""

    def read(batch: range) -> list[Sample]:
        return [data[index] for index in batch]

    with ThreadPoolExecutor(max_workers=1) as reader:
        waiting = [reader.submit(read, batch) for batch in batches[:1]]
        for number in range(len(batches)):
            samples = waiting.pop().result()
            waiting += [reader.submit(read, one) for one in batches[number + 1 : number + 2]]
            yield samples


def _write_strips(
    segmenter: Segmenter, data: Dataset, rules: Rules, state: RunState, folder: Path
) -> None:
    mious = {index: state.counts(index).miou("gt_present") for index in state.scores}
    ranked = sorted((i for i in mious if not np.isnan(mious[i])), key=lambda i: (-mious[i], i))
    for name, chosen in (("best", ranked[:_STRIP]), ("worst", ranked[::-1][:_STRIP])):
        samples = [data[index] for index in chosen]
        if not samples:
            continue
        results = segment_samples(segmenter, samples, data, rules)
        if not rules.named:
            results = [
                name_by_truth(sample, result, data)
                for sample, result in zip(samples, results, strict=True)
            ]
        cases = list(zip(samples, results, [mious[index] for index in chosen], strict=True))
        write_strip(folder / f"{name}.png", cases, data)


def hardware_of(model: Diffusion | VideoDiffusion | Features) -> dict[str, object]:
    """Return what a model runs on, in which precision and with how many threads."""
    device = str(model.device)
    held: dict[str, object] = {
        "device": device,
        "dtype": str(model.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "processor": platform.processor() or platform.machine(),
    }
    if device.startswith("cuda"):
        held["accelerator"] = torch.cuda.get_device_name(model.device)
    return held


def versions() -> dict[str, str]:
    """Return the versions of everything that computes."""
    packages = (
        *("diffuseg", "torch", "diffusers", "transformers", "numpy", "scipy", "scikit-learn"),
        "pillow",
    )
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


def peak_memory() -> dict[str, float]:
    """Return the most memory this process has held, in MB; on an accelerator, of its own too."""
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
