"""Commands that make things: pictures of the world, the embedded model."""

from pathlib import Path
from typing import Annotated

import typer

from diffuseg.cli.options import (
    DeviceOption,
    QuietOption,
    VerboseOption,
    given,
)
from diffuseg.cli.terminal import (
    progress_bar,
    show_logs,
    stdout,
)
from diffuseg.errors import InputError


def scenes(
    folder: Annotated[Path, typer.Argument(help="Folder to make.")],
    layout: Annotated[str, typer.Option(help="voc (images) or davis (videos).")] = "voc",
    count: Annotated[int, typer.Option(help="Scenes or clips of each split.")] = 10,
    split: Annotated[list[str] | None, typer.Option(help="train, val or test; repeatable.")] = None,
    seed: Annotated[int | None, typer.Option(help="Which stream.")] = None,
    frames: Annotated[int | None, typer.Option(help="Frames of a clip.")] = None,
    quiet: QuietOption = False,
) -> None:
    """Write scenes or clips with their masks to disk, as PASCAL VOC or DAVIS lie there."""
    from diffuseg.world import Clips, Scenes
    from diffuseg.world.layouts import write_davis, write_voc

    splits = split or ["train", "val", "test"]
    with progress_bar("drawing", quiet=quiet) as advance:
        if layout == "voc":
            streams = [Scenes(one, **given(seed=seed)) for one in splits]
            write_voc(streams, folder, count, progress=advance)
        elif layout == "davis":
            clips = [Clips(one, **given(seed=seed, frames=frames)) for one in splits]
            write_davis(clips, folder, count, progress=advance)
        else:
            raise InputError("the layout must be voc or davis", got=layout, remedy="use voc")
    stdout().print(str(folder), markup=False)


def train_mini(
    out: Annotated[Path, typer.Option("--out", "-o", help="Model folder to write.")],
    work: Annotated[Path, typer.Option(help="Pictures, latents and checkpoints (about 4 GB).")],
    stage: Annotated[str | None, typer.Option(help="One stage; else all of them.")] = None,
    device: DeviceOption = None,
    workers: Annotated[int | None, typer.Option(help="Processes that render.")] = None,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Train the embedded miniature from nothing, or go on with it."""
    show_logs(quiet=quiet, verbose=verbose or not quiet)
    from functools import partial

    from diffuseg.train.mini import train_mini as run

    options = given(stage=stage, device=device, workers=workers)
    run(out, work, meter=partial(progress_bar, quiet=quiet), **options)
    stdout().print(str(out), markup=False)
