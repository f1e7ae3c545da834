"""The command that scores."""

from pathlib import Path
from typing import Annotated

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
    progress_bar,
    show_logs,
    stdout,
)


def evaluate(
    dataset: Annotated[str, typer.Argument(help="Data set, such as scenes.")],
    method: MethodOption = None,
    model: ModelOption = None,
    settings: SetOption = None,
    split: Annotated[str | None, typer.Option(help="Else the one usually scored.")] = None,
    limit: Annotated[int | None, typer.Option(help="Only the first images.")] = None,
    seed: Annotated[int | None, typer.Option(help="Which stream of scenes.")] = None,
    noise_seed: Annotated[int | None, typer.Option(help="Seed of the noise.")] = None,
    average: Annotated[str | None, typer.Option(help="Rule of the mean IoU.")] = None,
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

    chosen = build_method(method, settings)
    loaded = find_model(model, device=device, offline=offline)
    say_model(loaded, chosen, quiet)
    options = given(
        split=split, limit=limit, seed=seed, noise_seed=noise_seed, average=average, size=size,
        batch_size=batch_size, report=report,
    )  # fmt: skip
    with progress_bar("scoring", quiet=quiet) as advance:
        found = run(dataset, method=chosen, model=loaded, progress=advance, **options)
    if as_json:
        stdout().print(found.to_json(), markup=False, end="")
    elif not quiet:
        from rich.markdown import Markdown

        stdout().print(Markdown(found.to_markdown()))
        if report is not None:
            stdout().print(str(report / "report.json"), markup=False)
