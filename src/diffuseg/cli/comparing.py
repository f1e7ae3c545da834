"""Commands on runs that were scored: joined, compared; and on what papers printed: made again."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from diffuseg.cli.options import (
    DeviceOption,
    JsonOption,
    ModelOption,
    OfflineOption,
    QuietOption,
    VerboseOption,
    say_model,
)
from diffuseg.cli.terminal import (
    FAILED,
    print_json,
    print_markdown,
    progress_bar,
    show_logs,
    stdout,
)
from diffuseg.errors import InputError

if TYPE_CHECKING:
    from diffuseg.eval.recipe import Recipe


def compare(
    reports: Annotated[
        list[Path], typer.Argument(metavar="REPORT...", help="report.json, or folders with one.")
    ],
    average: Annotated[
        str | None, typer.Option(help="One rule for all mean IoU; else of each run its own.")
    ] = None,
    anyway: Annotated[
        bool, typer.Option("--anyway", help="Also unlike protocols; the page says so.")
    ] = False,
    published: Annotated[
        bool, typer.Option("--published/--no-published", help="Beside what papers print.")
    ] = True,
    paper: Annotated[
        list[str] | None, typer.Option(help="Only of these: iSeg, OVDiff, …; repeatable.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="A page, in Markdown.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Set runs side by side; unlike protocols are refused."""
    from diffuseg.eval.comparing import compare_reports
    from diffuseg.files import atomic_path

    found = compare_reports(
        reports, average=average, anyway=anyway, published=published, papers=paper or ()
    )
    if output is not None:
        with atomic_path(output) as temporary:
            temporary.write_text(found.to_markdown(), encoding="utf-8")
    if as_json:
        stdout().print(found.to_json(), markup=False, end="")
    else:
        print_markdown(found.to_markdown())


def merge(
    parts: Annotated[
        list[Path], typer.Argument(metavar="FOLDER...", help="Of evaluate --shard I/N --report.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the whole run.")],
    partial: Annotated[bool, typer.Option("--partial", help="Images may be missing.")] = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Join the parts of a run that were scored apart; no model is needed."""
    from diffuseg.eval.merging import merge_runs

    found = merge_runs(parts, output, partial=partial)
    if as_json:
        stdout().print(found.to_json(), markup=False, end="")
    elif not quiet:
        print_markdown(found.to_markdown())
        stdout().print(str(output / "report.json"), markup=False)


def reproduce(
    name: Annotated[
        str | None, typer.Argument(help="Of a recipe; left out: they are listed.")
    ] = None,
    root: Annotated[Path | None, typer.Option(help="Folder of the data set.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check all but the weights; without a name: all.")
    ] = False,
    model: ModelOption = None,
    labels: Annotated[
        Path | None, typer.Option(help="Which classes each image shows, in place of CLIP's filter.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Only the first images.")] = None,
    report: Annotated[
        Path | None, typer.Option(help="Folder for the report, pictures, state.")
    ] = None,
    device: DeviceOption = None,
    offline: OfflineOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Run a paper's row: model, settings and data as printed, beside the printed number."""
    show_logs(quiet=quiet, verbose=verbose)
    from diffuseg.eval.recipes import find_recipe, list_recipes
    from diffuseg.eval.reproducing import check_recipe, recipe_lines
    from diffuseg.eval.reproducing import reproduce as run

    if name is None or dry_run:
        chosen = list(list_recipes().values()) if name is None else [find_recipe(name)]
        if dry_run:
            for one in chosen:
                check_recipe(one, root=root)
        if as_json:
            print_json({"checked": dry_run, "recipes": [_plain(one) for one in chosen]})
        elif not quiet:
            _say(chosen, recipe_lines(chosen[0]) if name is not None else [], dry_run)
        return
    recipe = find_recipe(name)
    if root is None:
        raise InputError(
            "a recipe needs the folder of its data set",
            got=f"{name} without one",
            remedy=f"name that of {recipe.dataset}: --root FOLDER; `diffuseg datasets` tells more",
        )
    check_recipe(recipe, root=root)
    from diffuseg.api import find_model

    kind = "video" if recipe.kind == "videos" else "diffusion"
    loaded = find_model(model or recipe.model, backbone=kind, device=device, offline=offline)
    say_model(loaded, recipe.method, quiet)
    with progress_bar("reproducing", quiet=quiet) as advance:
        found = run(
            name, root=root, model=None if model is None else model, loaded=loaded, labels=labels,
            limit=limit, report=report, progress=advance,
        )  # fmt: skip
    if as_json:
        stdout().print(found.to_json(), markup=False, end="")
    elif not quiet:
        print_markdown(found.to_markdown())
    if found.verdict == "off":
        raise typer.Exit(FAILED)


def _plain(recipe: "Recipe") -> dict[str, object]:
    from dataclasses import asdict

    return asdict(recipe)


def _say(recipes: "list[Recipe]", lines: list[str], checked: bool) -> None:
    from diffuseg.eval.recipe import NO_NUMBER
    from diffuseg.eval.report import table_lines

    if lines:
        text = "\n".join([f"# {recipes[0].name}", "", *lines])
    else:
        rows = [
            (
                one.name,
                f"{one.dataset}, {one.split}",
                ", ".join(f"{k} {v:g}" for k, v in one.expected.items()),
                "-" if one.tolerance is None else f"{one.tolerance:g}",
            )
            for one in recipes
        ]
        text = "\n".join(table_lines(("recipe", "data", "printed", "tolerance"), rows))
        text += "\n\n" + "\n".join(f"- {k}: {why}." for k, why in NO_NUMBER.items())
    print_markdown(text)
    if checked:
        count = "recipe" if len(recipes) == 1 else "recipes"
        stdout().print(f"{len(recipes)} {count} checked; only the weights are left", markup=False)
