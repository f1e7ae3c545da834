"""Commands about data sets: what there is, what each needs on disk; regions scored."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from diffuseg.cli.options import (
    BatchOption,
    DeviceOption,
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
    say_model,
)
from diffuseg.cli.terminal import (
    FAILED,
    print_json,
    print_markdown,
    print_table,
    progress_bar,
    show_logs,
    stdout,
)
from diffuseg.errors import InputError

if TYPE_CHECKING:
    from diffuseg.eval.dataset_facts import DatasetFacts
    from diffuseg.eval.dataset_inspection import Inspection


def datasets(
    name: Annotated[str | None, typer.Argument(help="One of them; else all are listed.")] = None,
    root: Annotated[Path | None, typer.Option(help="Folder to check.")] = None,
    split: Annotated[str | None, typer.Option(help="Else the one usually scored.")] = None,
    videos: Annotated[
        bool, typer.Option("--videos", help="Of videos, where there are images of that name, too.")
    ] = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """List the data sets, tell what one needs, or check a folder (1: it lacks something)."""
    from diffuseg.eval.dataset_facts import find_facts, list_facts

    if name is None:
        if root is not None:
            raise InputError(
                "a folder is checked for one data set",
                got=f"--root {root}",
                remedy="name the data set: diffuseg datasets NAME --root FOLDER",
            )
        _list([one for one in list_facts() if not videos or one.kind == "videos"], as_json)
        return
    kind = "videos" if videos else None
    if root is None:
        _describe(find_facts(name, kind), as_json)
        return
    from diffuseg.eval.dataset_inspection import inspect_folder

    with progress_bar("checking", quiet=quiet) as advance:
        found = inspect_folder(name, root, split=split, kind=kind, progress=advance)
    if as_json:
        print_json(found.to_dict())
    elif not quiet:
        _tell(found)
    if not found.complete:
        raise typer.Exit(FAILED)


def evaluate_regions(
    dataset: Annotated[str, typer.Argument(help="bsds500.")],
    root: Annotated[Path, typer.Option(help="Folder of the data set.")],
    method: MethodOption = "diffseg",
    model: ModelOption = None,
    settings: SetOption = None,
    scales: Annotated[
        str | None,
        typer.Option(
            metavar="NAME=VALUE,VALUE", help="A setting to cut each image at several values of."
        ),
    ] = None,
    split: Annotated[str | None, typer.Option(help="Else the one usually scored.")] = None,
    limit: Annotated[int | None, typer.Option(help="Only the first images.")] = None,
    noise_seed: Annotated[int | None, typer.Option(help="Seed of the noise.")] = None,
    report: Annotated[
        Path | None, typer.Option(help="Folder for report.json, report.md, state.")
    ] = None,
    size: SizeOption = None,
    batch_size: BatchOption = None,
    device: DeviceOption = None,
    offline: OfflineOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Score segments without names against regions people drew; stopped runs go on."""
    show_logs(quiet=quiet, verbose=verbose)
    from diffuseg.api import find_model
    from diffuseg.eval.grid import parse_grid
    from diffuseg.eval.region_runner import evaluate_regions as run
    from diffuseg.methods import backbone_of

    chosen = build_method(method, settings)
    loaded = find_model(model, backbone=backbone_of(chosen), device=device, offline=offline)
    say_model(loaded, chosen, quiet)
    options = given(
        split=split, limit=limit, noise_seed=noise_seed, size=size, batch_size=batch_size,
        report=report, scales=parse_grid([scales]) if scales else None,
    )  # fmt: skip
    with progress_bar("scoring", quiet=quiet) as advance:
        found = run(dataset, root=root, method=chosen, model=loaded, progress=advance, **options)
    if as_json:
        stdout().print(found.to_json(), markup=False, end="")
    elif not quiet:
        print_markdown(found.to_markdown())


def _list(facts: "list[DatasetFacts]", as_json: bool) -> None:
    if as_json:
        print_json([one.to_dict() for one in facts])
        return
    rows = [
        (
            one.name,
            one.kind,
            _count(one.classes),
            one.split,
            _count(one.splits[one.split]),
            one.title,
        )
        for one in facts
    ]
    print_table(("name", "scored", "classes", "split", "number", "about"), rows)


def _describe(facts: "DatasetFacts", as_json: bool) -> None:
    if as_json:
        print_json(facts.to_dict())
        return
    splits = ", ".join(
        name if n is None else f"{name} ({n} {facts.kind})" for name, n in facts.splits.items()
    )
    lines = [
        f"{facts.name}: {facts.title}",
        f"  scored: {facts.kind}, split {facts.split}",
        f"  splits: {splits}",
        *([f"  classes: {facts.classes}"] if facts.classes else []),
        *(["  files:", *(f"    {one}" for one in facts.tree)] if facts.tree else []),
        *(f"  note: {one}" for one in facts.notes),
        *([f"  from: {facts.home}"] if facts.home else []),
    ]
    stdout().print("\n".join(lines), markup=False)


def _tell(found: "Inspection") -> None:
    of = "" if found.published is None else f" of {found.published}"
    number = "" if found.found is None else f", {found.found}{of} {found.kind}"
    state = "complete" if found.complete else "not complete"
    lines = [f"{found.name}, split {found.split}{number}: {state}"]
    lines += [f"  missing: {one}" for one in found.missing]
    absent = [name for name, n in found.per_class.items() if not n]
    if absent:
        lines.append(f"  classes in no image: {', '.join(absent)}")
    lines += [f"  labels: {found.label_source}"] if found.label_source else []
    lines += [f"  note: {found.note}"] if found.note else []
    stdout().print("\n".join(lines), markup=False)


def _count(n: int | None) -> str:
    return "-" if n is None else str(n)
