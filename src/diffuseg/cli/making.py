"""Commands that make things: masks to train on, pictures of the world, the embedded model."""

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
    SeedOption,
    SetOption,
    SizeOption,
    VerboseOption,
    given,
    ready_segmenter,
)
from diffuseg.cli.terminal import (
    FAILED,
    print_json,
    progress_bar,
    show_error,
    show_logs,
    stderr,
    stdout,
)
from diffuseg.errors import DiffusegError, InputError


def pseudo_masks(
    images: Annotated[
        list[str], typer.Argument(metavar="IMAGE…", help="Files, folders, patterns.")
    ],
    labels: Annotated[
        Path, typer.Option(help="Classes of each image: a folder of VOC XML, JSON, or CSV.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Output folder.")],
    classes: Annotated[
        str | None,
        typer.Option(
            "--classes", "-c", help='In the order of their numbers: "plane|aeroplane, …".'
        ),
    ] = None,
    model: ModelOption = None,
    method: MethodOption = "diffsegmenter",
    settings: SetOption = None,
    threshold: Annotated[
        float | None, typer.Option(help="Confidence below which a pixel becomes 255.")
    ] = None,
    confidence: Annotated[str | None, typer.Option(help="margin or score.")] = None,
    pictures: Annotated[str | None, typer.Option(help="In JPEGImages: link, copy or none.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Skip what is done already.")] = False,
    seed: SeedOption = None,
    size: SizeOption = None,
    batch_size: BatchOption = None,
    device: DeviceOption = None,
    offline: OfflineOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Make masks from image-level labels, in PASCAL VOC's layout, to train a segmenter on."""
    show_logs(quiet=quiet, verbose=verbose)
    from diffuseg.folders import find_images
    from diffuseg.image_labels import read_image_labels
    from diffuseg.pseudo_masks import make_pseudo_masks

    inputs = find_images(images, output)
    held = read_image_labels(labels)
    segmenter = ready_segmenter(
        model, method, settings, device, offline, quiet, seed=seed, size=size
    )
    options = given(
        classes=classes, threshold=threshold, confidence=confidence, pictures=pictures,
        batch_size=batch_size,
    )  # fmt: skip
    run = make_pseudo_masks(inputs, output, segmenter, held, resume=resume, **options)
    done = skipped = 0
    failed: list[tuple[Path, DiffusegError]] = []
    with progress_bar("making masks", quiet=quiet) as advance:
        for number, outcome in enumerate(run, start=1):
            if outcome.error is not None:
                failed.append((outcome.path, outcome.error))
            done += outcome.error is None
            skipped += outcome.skipped
            advance(number, len(inputs))
    if as_json:
        errors = [{"image": str(path), "error": str(error)} for path, error in failed]
        print_json({"masks": done, "skipped": skipped, "errors": errors})
    elif not quiet:
        note = f", {skipped} of them done before" if skipped else ""
        stdout().print(f"{done} masks in {output}{note}", markup=False)
    if failed:
        stderr().print(f"{len(failed)} of {len(inputs)} images failed:", style="bold red")
        for path, error in failed:
            show_error(error, f"{path}: ")
        raise typer.Exit(FAILED)


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


def train_mini_svd(
    out: Annotated[Path, typer.Option("--out", "-o", help="Model folder to write.")],
    work: Annotated[Path, typer.Option(help="Clips and checkpoints (about 1 GB).")],
    stage: Annotated[str | None, typer.Option(help="One stage; else all of them.")] = None,
    device: DeviceOption = None,
    workers: Annotated[int | None, typer.Option(help="Processes that render.")] = None,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Train the embedded video miniature beside the image one, or go on with it."""
    show_logs(quiet=quiet, verbose=verbose or not quiet)
    from functools import partial

    from diffuseg.train.video import train_video_mini as run

    options = given(stage=stage, device=device, workers=workers)
    run(out, work, meter=partial(progress_bar, quiet=quiet), **options)
    stdout().print(str(out), markup=False)
