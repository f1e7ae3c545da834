"""The commands that score."""

import json
from pathlib import Path
from typing import Annotated

import typer

from diffuseg.cli.options import (
    BatchOption,
    DeviceOption,
    FilterOption,
    FilterSetOption,
    JsonOption,
    MethodOption,
    ModelOption,
    OfflineOption,
    QuietOption,
    SetOption,
    SizeOption,
    VerboseOption,
    build_method,
    given,
    read_filter,
    say_model,
)
from diffuseg.cli.terminal import print_markdown, progress_bar, show_logs, stdout
from diffuseg.errors import InputError

RootOption = Annotated[Path | None, typer.Option(help="Folder of the data set.")]
GeometryOption = Annotated[
    str | None, typer.Option(help="What of a picture is scored: whole, diffseg, …")
]
NamesOption = Annotated[
    str | None, typer.Option(metavar="SYSTEM", help="Whose words for the classes: ovdiff, …")
]


def evaluate(
    dataset: Annotated[str, typer.Argument(help="Data set, such as scenes.")],
    method: MethodOption = None,
    model: ModelOption = None,
    settings: SetOption = None,
    root: RootOption = None,
    geometry: GeometryOption = None,
    names: NamesOption = None,
    split: Annotated[str | None, typer.Option(help="Else the one usually scored.")] = None,
    limit: Annotated[int | None, typer.Option(help="Only the first images.")] = None,
    seed: Annotated[int | None, typer.Option(help="Which stream of scenes.")] = None,
    noise_seed: Annotated[int | None, typer.Option(help="Seed of the noise.")] = None,
    told: Annotated[
        str | None,
        typer.Option(
            "--given", help="Of the truth: classes, vocabulary, count, mean_count or nothing."
        ),
    ] = None,
    class_filter: FilterOption = None,
    filter_settings: FilterSetOption = None,
    average: Annotated[str | None, typer.Option(help="Rule of the mean IoU.")] = None,
    chosen_on: Annotated[
        str | None,
        typer.Option(metavar="SPLIT", help="Where settings were chosen; the report says so."),
    ] = None,
    resamples: Annotated[
        int | None, typer.Option(help="Draws for the confidence interval; 0: none.")
    ] = None,
    shard: Annotated[
        str | None,
        typer.Option(metavar="I/N", help="Only part I of N; `diffuseg merge` joins them."),
    ] = None,
    report: Annotated[
        Path | None, typer.Option(help="Folder for report.json, pictures, state.")
    ] = None,
    size: SizeOption = None,
    batch_size: BatchOption = None,
    device: DeviceOption = None,
    offline: OfflineOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Score a method on a data set; stopped runs go on where they were."""
    show_logs(quiet=quiet, verbose=verbose)
    from diffuseg.api import find_model
    from diffuseg.eval.runner import evaluate as run
    from diffuseg.methods import backbone_of

    chosen = build_method(method, settings)
    loaded = find_model(model, backbone=backbone_of(chosen), device=device, offline=offline)
    say_model(loaded, chosen, quiet)
    options = given(
        split=split, limit=limit, seed=seed, noise_seed=noise_seed, given=told, average=average,
        size=size, batch_size=batch_size, report=report, chosen_on=chosen_on, resamples=resamples,
        shard=None if shard is None else _shard(shard), root=root, geometry=geometry, names=names,
    )  # fmt: skip
    options |= _filter_options(told, class_filter, filter_settings, loaded)
    with progress_bar("scoring", quiet=quiet) as advance:
        found = run(dataset, method=chosen, model=loaded, progress=advance, **options)
    if as_json:
        stdout().print(found.to_json(), markup=False, end="")
    elif not quiet:
        print_markdown(found.to_markdown())
        if report is not None:
            stdout().print(str(report / "report.json"), markup=False)


def sweep(
    dataset: Annotated[str, typer.Argument(help="Data set, such as scenes.")],
    method: MethodOption = None,
    model: ModelOption = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=A,B,C+D",
            help="Values of a setting; + joins several, each: every one, any:A+B: every choice.",
        ),
    ] = None,
    preset: Annotated[
        bool | None, typer.Option(help="Fill what is left open from the model's preset.")
    ] = None,
    one_by_one: Annotated[
        bool, typer.Option("--one-by-one", help="Vary each setting alone, not all with all.")
    ] = False,
    by: Annotated[str | None, typer.Option(help="Figure that decides: miou, acc, …")] = None,
    root: RootOption = None,
    geometry: GeometryOption = None,
    names: NamesOption = None,
    split: Annotated[str | None, typer.Option(help="Else the one usually scored.")] = None,
    limit: Annotated[int | None, typer.Option(help="Only the first images.")] = None,
    seed: Annotated[int | None, typer.Option(help="Which stream of scenes.")] = None,
    noise_seed: Annotated[int | None, typer.Option(help="Seed of the noise.")] = None,
    told: Annotated[
        str | None,
        typer.Option(
            "--given", help="Of the truth: classes, vocabulary, count, mean_count or nothing."
        ),
    ] = None,
    class_filter: FilterOption = None,
    filter_settings: FilterSetOption = None,
    average: Annotated[str | None, typer.Option(help="Rule of the mean IoU.")] = None,
    report: Annotated[
        Path | None, typer.Option(help="Folder for sweep.json, table, curves, state.")
    ] = None,
    write_preset: Annotated[
        Path | None, typer.Option(help="JSON file for the best settings, as a model's preset.")
    ] = None,
    size: SizeOption = None,
    device: DeviceOption = None,
    offline: OfflineOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Score every combination of settings on a data set; the model sees each image once."""
    show_logs(quiet=quiet, verbose=verbose)
    from diffuseg.api import find_model
    from diffuseg.eval.grid import parse_grid
    from diffuseg.eval.sweep import sweep as run
    from diffuseg.files import atomic_path
    from diffuseg.methods import backbone_of

    grid = parse_grid(settings or [])
    chosen = build_method(method, None)
    loaded = find_model(model, backbone=backbone_of(chosen), device=device, offline=offline)
    say_model(loaded, chosen, quiet)
    options = given(
        use_preset=preset, by=by, split=split, limit=limit, seed=seed, noise_seed=noise_seed,
        one_by_one=one_by_one, given=told, average=average, size=size, report=report, root=root,
        geometry=geometry, names=names,
    )  # fmt: skip
    options |= _filter_options(told, class_filter, filter_settings, loaded)
    with progress_bar("sweeping", quiet=quiet) as advance:
        found = run(dataset, grid, method=chosen, model=loaded, progress=advance, **options)
    if write_preset is not None:
        with atomic_path(write_preset) as temporary:
            temporary.write_text(json.dumps(found.preset, indent=2) + "\n", encoding="utf-8")
    if as_json:
        stdout().print(found.to_json(), markup=False, end="")
    elif not quiet:
        print_markdown(found.to_markdown())
        for path in [report / "sweep.json" if report else None, write_preset]:
            if path is not None:
                stdout().print(str(path), markup=False)


def ablate(
    dataset: Annotated[str, typer.Argument(help="Data set, such as scenes.")],
    method: Annotated[str, typer.Option("--method", help="iseg, diffseg, ovdiff, …")],
    table: Annotated[
        list[str] | None,
        typer.Option(help="components, n, lambda, gamma, …; repeatable. Else all of the method."),
    ] = None,
    model: ModelOption = None,
    settings: SetOption = None,
    preset: Annotated[
        bool | None, typer.Option(help="Fill what is left open from the model's preset.")
    ] = None,
    by: Annotated[str | None, typer.Option(help="Figure shown: miou, acc, …")] = None,
    root: RootOption = None,
    geometry: GeometryOption = None,
    names: NamesOption = None,
    split: Annotated[str | None, typer.Option(help="Else the one usually scored.")] = None,
    limit: Annotated[int | None, typer.Option(help="Only the first images.")] = None,
    seed: Annotated[int | None, typer.Option(help="Which stream of scenes.")] = None,
    noise_seed: Annotated[int | None, typer.Option(help="Seed of the noise.")] = None,
    told: Annotated[
        str | None,
        typer.Option(
            "--given", help="Of the truth: classes, vocabulary, count, mean_count or nothing."
        ),
    ] = None,
    class_filter: FilterOption = None,
    filter_settings: FilterSetOption = None,
    average: Annotated[str | None, typer.Option(help="Rule of the mean IoU.")] = None,
    report: Annotated[
        Path | None, typer.Option(help="Folder for ablation.json, tables, plots, state.")
    ] = None,
    size: SizeOption = None,
    device: DeviceOption = None,
    offline: OfflineOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Measure the ablation tables of a method's paper on a data set."""
    show_logs(quiet=quiet, verbose=verbose)
    from diffuseg.api import find_model
    from diffuseg.eval.ablation import ablate as run
    from diffuseg.eval.ablation import find_tables
    from diffuseg.methods import backbone_of, method_name

    chosen = build_method(method, settings)
    find_tables(method_name(chosen), table)
    loaded = find_model(model, backbone=backbone_of(chosen), device=device, offline=offline)
    say_model(loaded, chosen, quiet)
    options = given(
        tables=table, use_preset=preset, by=by, split=split, limit=limit, seed=seed,
        noise_seed=noise_seed, given=told, average=average, size=size, report=report, root=root,
        geometry=geometry, names=names,
    )  # fmt: skip
    options |= _filter_options(told, class_filter, filter_settings, loaded)
    with progress_bar("measuring", quiet=quiet) as advance:
        found = run(dataset, method=chosen, model=loaded, progress=advance, **options)
    if as_json:
        stdout().print(found.to_json(), markup=False, end="")
    elif not quiet:
        print_markdown(found.to_markdown())
        if report is not None:
            stdout().print(str(report / "ablation.json"), markup=False)


def _shard(text: str) -> tuple[int, int]:
    number, slash, count = text.partition("/")
    if not slash or not number.isdigit() or not count.isdigit():
        raise InputError("a part is I/N", got=text, remedy="write 1/4 for the first of four")
    return int(number), int(count)


def _filter_options(
    told: str | None, class_filter: str | None, settings: list[str] | None, model: object
) -> dict[str, object]:
    if told != "vocabulary":
        if class_filter or settings:
            raise InputError(
                "a filter is for a vocabulary",
                got=f"--filter {class_filter or 'clip'} and --given {told or 'left out'}",
                remedy="add --given vocabulary",
            )
        return {}
    return {"class_filter": read_filter(class_filter or "clip", settings, model)}


def quality(
    report: Annotated[Path, typer.Option(help="Folder for quality.json, tables, pictures.")],
    model: Annotated[str, typer.Option("--model", "-m", help="mini, or its folder.")] = "mini",
    part: Annotated[
        list[str] | None, typer.Option(help="vae, attend, clip, …; repeatable. Else all missing.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Scenes and captions.")] = None,
    seed: Annotated[int | None, typer.Option(help="Which stream of scenes.")] = None,
    steps: Annotated[int | None, typer.Option(help="Of the sampler.")] = None,
    guidance: Annotated[float | None, typer.Option(help="Of the sampler.")] = None,
    training_log: Annotated[
        Path | None, typer.Option("--log", help="log.jsonl of the training, for its cost.")
    ] = None,
    device: DeviceOption = None,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Measure the embedded miniature and its companions on held-out scenes."""
    show_logs(quiet=quiet, verbose=verbose)
    from functools import partial

    from diffuseg.api import find_model
    from diffuseg.eval.quality import measure_quality, quality_tables

    loaded = find_model(model, device=device, offline=True)
    options = given(
        parts=part, limit=limit, seed=seed, steps=steps, guidance=guidance,
        training_log=training_log,
    )  # fmt: skip
    meter = partial(progress_bar, quiet=quiet)
    found = measure_quality(loaded, report=report, meter=meter, **options)
    if not quiet:
        print_markdown(quality_tables(found))
    stdout().print(str(report / "quality.json"), markup=False)
