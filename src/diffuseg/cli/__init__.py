"""The command line. Thin: options in, one call of the library, results out.

A default that is not written here is the library's own: an option left out is not passed on. What
imports torch is imported inside the commands, so that `--help` answers at once.
"""

from typing import Annotated

import typer

from diffuseg.cli import (
    bank,
    comparing,
    datasets,
    evaluating,
    learning,
    machine,
    making,
    segmenting,
    selecting,
    video,
)
from diffuseg.cli.terminal import Commands, stdout

app = typer.Typer(
    name="diffuseg",
    cls=Commands,
    help="Masks for any image, for the words you name, from text-to-image diffusion models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
train = typer.Typer(help="Train models.", no_args_is_help=True)

app.command()(segmenting.segment)
app.command()(video.video)
app.command()(selecting.select)
app.command()(segmenting.demo)
app.command()(segmenting.record)
app.command()(segmenting.replay)
app.command()(evaluating.evaluate)
app.command()(comparing.merge)
app.command()(comparing.compare)
app.command()(comparing.reproduce)
app.command()(evaluating.sweep)
app.command()(evaluating.ablate)
app.command()(selecting.evaluate_clicks)
app.command()(video.evaluate_video)
app.command()(datasets.evaluate_regions)
app.command()(evaluating.quality)
app.command()(datasets.datasets)
app.command()(machine.models)
app.command()(machine.doctor)
app.command()(making.pseudo_masks)
app.command()(making.scenes)
app.add_typer(bank.app, name="bank")
app.add_typer(train, name="train")
train.command("mini")(making.train_mini)
train.command("mini-svd")(making.train_mini_svd)
train.command("mini-seg")(learning.train_mini_seg)
train.command("segdiffusion")(learning.train_segdiffusion)


def main() -> None:
    """Run the command line."""
    app()


def _print_version(wanted: bool) -> bool:
    if wanted:
        from importlib.metadata import version

        stdout().print(version("diffuseg"))
        raise typer.Exit
    return wanted


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    pass
