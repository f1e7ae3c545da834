"""Commands on runs that were scored: joined, compared."""

from pathlib import Path
from typing import Annotated

import typer

from diffuseg.cli.options import JsonOption, QuietOption
from diffuseg.cli.terminal import stdout


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
        from rich.markdown import Markdown

        stdout().print(Markdown(found.to_markdown()))


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
        from rich.markdown import Markdown

        stdout().print(Markdown(found.to_markdown()))
        stdout().print(str(output / "report.json"), markup=False)
