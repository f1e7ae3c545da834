"""Many settings of a method over a data set, at hardly more than the cost of one.

An image goes through the model once for every timestep and prompt; all settings that can work from
that record are run on it, without the model.
"""

import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

from diffuseg.api import capture, check_number, find_model
from diffuseg.asking import takes_captions, write_captions
from diffuseg.attention import AttentionRecord
from diffuseg.errors import InputError
from diffuseg.eval.datasets import Dataset, Sample
from diffuseg.eval.grid import Bare, Key, Setting, joint_needs, plan, plan_rows, shown
from diffuseg.eval.protocols import PROTOCOLS
from diffuseg.eval.report import score
from diffuseg.eval.runner import find_dataset, identify, plain_fields, versions
from diffuseg.eval.scoring import Rules, find_rules, informed, named_classes, score_sample
from diffuseg.eval.state import Counts, ImageScore, RunState, add_up
from diffuseg.eval.sweep_report import Sweep, data_facts, write_sweep
from diffuseg.filtering import ClassFilter, describe_filter, find_filter, run_filter
from diffuseg.methods import DEFAULT_METHOD, backbone_of, find_method, method_name
from diffuseg.prompts import parse_classes

log = logging.getLogger(__name__)


def sweep(
    dataset: str | Dataset,
    grid: Mapping[str, object] | Sequence[Mapping[str, object]],
    *,
    method: object = DEFAULT_METHOD,
    model: object = None,
    use_preset: bool = True,
    root: str | os.PathLike[str] | None = None,
    geometry: str | None = None,
    names: str | None = None,
    split: str | None = None,
    limit: int | None = None,
    seed: int = 1,
    noise_seed: int = 0,
    size: int | None = None,
    one_by_one: bool = False,
    given: str | None = None,
    class_filter: object = "clip",
    average: str | None = None,
    by: str = "miou",
    report: str | os.PathLike[str] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Sweep:
    """Score every combination of some settings of a method on a data set.

    Args:
        dataset: A name, such as "scenes", or a data set of your own.
        grid: Values by field of the method: a list, or one value for a field that stays. Text is
            read as on the command line; "each" stands for every single layer, head or level. Or
            the settings one by one, a list of values by field each.
        method: A name, or a method object with the settings that do not vary.
        model: As for `segment`.
        use_preset: Whether fields left open take the model's preset, as they do elsewhere.
        root: Folder of a data set of files,
        geometry: what of its pictures is scored, and
        names: whose words for its classes are used, as for `open_dataset`.
        split: Which part of the data set; choose settings on "val" and report on "test".
        limit: Only the first so many images; 200 for Scenes.
        seed: Which stream of scenes.
        noise_seed: Of the noise the images are shown under.
        size: Side of the square whose area the model sees.
        one_by_one: Whether each field varies alone, the others as the method has them (the paper's
            Fig. 11 of DiffSeg), instead of all with all.
        given: What the method is told of the truth, and
        class_filter: what keeps some of a vocabulary, as for `evaluate`.
        average: Which classes the mean is over, as for `evaluate`.
        by: The figure that decides which setting is best, such as "miou", "acc", "miou_things".
        report: A folder for `sweep.json`, `sweep.md`, curves of numeric fields and the state of the
            run: called again with the same settings, it goes on where it was stopped.
        progress: Called with (done, all) after every image.

    Raises:
        InputError: No such data set, split, model, method, field or figure, or impossible values.
        WeightsError: The model's weights are not to be had.

    Example:
        >>> found = sweep("scenes", {"timestep": [50, 100]}, limit=8)  # doctest: +SKIP
        >>> found.best["settings"]  # doctest: +SKIP
        {'timestep': 100}
    """
    where: dict[str, Any] = {"root": root, "geometry": geometry, "names": names}
    data, n_images = find_dataset(dataset, split=split, seed=seed, limit=limit, **where)
    check_number("seed", noise_seed, least=0)
    chosen = find_method(method)
    loaded = find_model(model, backbone=backbone_of(chosen))
    seen = loaded if use_preset else Bare(unet=getattr(loaded, "unet", None))
    if isinstance(grid, Mapping):
        settings, left_out = plan(chosen, seen, grid, one_by_one=one_by_one)
    else:
        settings, left_out = plan_rows(chosen, seen, grid)
    rules = find_rules(settings[0].method, seen, data, n_images, given)
    kept = find_filter(class_filter, loaded) if rules.given == "vocabulary" else None
    average = average or rules.average
    empty = rules.empty(data)
    _check_figure(by, score(empty, data, average))
    identity = identify(loaded)
    preset = dict(seen.preset.get(method_name(chosen), {}))
    held = {
        "dataset": [data.name, data.split, data.seed, data.classes, data.ignore],
        "model": identity,
        "preset": preset,
        "method": [method_name(chosen), plain_fields(chosen)],
        "settings": [
            {name: shown(value) for name, value in one.values.items()} for one in settings
        ],
        "given": [rules.given, rules.count, *([describe_filter(kept)] if kept else [])],
        "noise_seed": noise_seed,
        "size": size,
        "version": metadata.version("diffuseg"),
    }
    if (files := getattr(data, "fingerprint", None)) is not None:
        # Another folder is another run, and so is another part of its pictures.
        held |= {"files": files, "geometry": getattr(data, "geometry", "")}
    folder = None if report is None else Path(report)
    state = RunState(None if folder is None else folder / "images.jsonl", held, empty)
    known = n_images * len(settings)
    state.scores = {i: one for i, one in state.scores.items() if i < known}
    if state.scores:
        log.info("going on after %d of %d images", len(state.scores) // len(settings), n_images)

    for index in range(n_images):
        missing = [k for k in range(len(settings)) if index * len(settings) + k not in state.scores]
        if missing:
            sample = data[index]
            found = _score_image(
                sample,
                data,
                rules,
                loaded,
                {k: settings[k] for k in missing},
                noise_seed,
                size,
                use_preset,
                kept,
            )
            first = index * len(settings)
            state.add([replace(one, index=first + one.index) for one in found])
        if progress is not None:
            progress(index + 1, n_images)

    one_by_one = one_by_one or not isinstance(grid, Mapping)
    varying = _varying(grid, settings)
    fixed = {**preset, **_set_fields(chosen)}
    fixed |= {name: one for name, one in settings[0].values.items() if name not in varying}
    result = Sweep(
        dataset=data.name,
        split=data.split,
        seed=data.seed,
        n_images=n_images,
        method=method_name(chosen),
        model=identity,
        # One by one, what is set of a field is where it stays while others vary.
        fixed={k: _plain(v) for k, v in fixed.items() if one_by_one or k not in varying},
        fields=tuple(varying),
        by=by,
        protocol=PROTOCOLS[rules.named, rules.given],
        **data_facts(data),
        one_by_one=one_by_one,
        rows=tuple(
            _row(one, number, len(settings), state, data, empty, average, varying)
            for number, one in enumerate(settings)
        ),
        left_out=tuple(
            {"settings": {k: _plain(v) for k, v in values.items()}, "reason": reason}
            for values, reason in left_out
        ),
        versions=versions(),
    )
    if folder is not None:
        write_sweep(result, folder)
    return result


def _score_image(
    sample: Sample,
    data: Dataset,
    rules: Rules,
    model: Any,
    settings: Mapping[int, Setting],
    noise_seed: int,
    size: int | None,
    use_preset: bool,
    class_filter: ClassFilter | None,
) -> list[ImageScore]:
    names: object = named_classes(sample, data, rules)
    if class_filter is not None:
        [names] = run_filter(class_filter, [sample.image], [parse_classes(names)])
    caption = None
    groups: dict[Key, list[int]] = {}
    for number, one in settings.items():
        groups.setdefault(one.key, []).append(number)
    scores = []
    for numbers in groups.values():
        needs = joint_needs([settings[k] for k in numbers])
        if names is None and takes_captions(needs) and caption is None:
            [words] = write_captions([sample.image], None, model)
            caption = words.caption
        record = capture(
            sample.image, model, needs, names, caption=caption, seed=noise_seed, size=size
        )
        if not use_preset:
            origin = {**record.header.provenance, "preset": "{}"}
            record = record.with_header(replace(record.header, provenance=origin))
        parts: dict[object, AttentionRecord] = {}
        for number in numbers:
            start = time.perf_counter()
            mine = settings[number].needs
            part = (mine.layers, mine.timesteps)
            if part not in parts:
                # A network without timesteps is recorded as means, from which nothing is taken.
                whole = not mine.timesteps
                only = record if whole else record.only(mine.layers or "*", steps=mine.timesteps)
                parts[part] = only
            method = informed(settings[number].method, sample, data, rules)
            result = method(parts[part])
            spent = time.perf_counter() - start
            counts = score_sample(sample, result, data, rules)
            scores.append(ImageScore.of(number, counts, spent))
    return scores


def _row(
    setting: Setting,
    number: int,
    count: int,
    state: RunState,
    data: Dataset,
    empty: Counts,
    average: str,
    fields: Sequence[str],
) -> dict[str, Any]:
    mine = [one for index, one in state.scores.items() if index % count == number]
    counts = add_up(mine, empty)
    figures = {k: None if v != v else v for k, v in score(counts, data, average).items()}
    values = setting.values
    return {
        "settings": {name: _plain(values[name]) for name in fields if name in values},
        **figures,
        "seconds": round(sum(one.seconds for one in mine) / max(1, len(mine)), 6),
    }


def _varying(
    grid: Mapping[str, object] | Sequence[Mapping[str, object]], settings: Sequence[Setting]
) -> list[str]:
    """The fields that differ between settings; all if none does."""
    if not isinstance(grid, Mapping):
        return list(dict.fromkeys(name for row in grid for name in row))
    values = {
        name: {shown(one.values[name]) for one in settings if name in one.values} for name in grid
    }
    return [name for name, some in values.items() if len(some) > 1] or list(grid)


def _check_figure(by: str, figures: Mapping[str, float]) -> None:
    if by not in figures:
        raise InputError(
            "settings are compared by a figure of the report",
            got=by,
            remedy=f"use one of {', '.join(figures)}",
        )


def _set_fields(method: object) -> dict[str, object]:
    """The fields of a method that are not what they are by default."""
    usual = type(method)()
    names = getattr(method, "__dataclass_fields__", {})
    return {k: getattr(method, k) for k in names if getattr(method, k) != getattr(usual, k)}


def _plain(value: object) -> object:
    return [_plain(one) for one in value] if isinstance(value, list | tuple) else value
