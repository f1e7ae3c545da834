"""Commands that fine-tune models on data of one's own."""

import os
from pathlib import Path
from typing import Annotated, cast

import typer

from diffuseg.cli.options import (
    DeviceOption,
    OfflineOption,
    QuietOption,
    VerboseOption,
    given,
)
from diffuseg.cli.terminal import progress_bar, show_logs, stderr, stdout

_CROP = 512  # the most that is cut from pictures if nothing is said


def train_segdiffusion(
    out: Annotated[Path, typer.Option("--out", "-o", help="Model folder to write.")],
    work: Annotated[Path, typer.Option(help="States and logs; a run that is there goes on.")],
    base: Annotated[str, typer.Option(help="Model to fine-tune: name, hub id or folder.")] = "mini",
    data: Annotated[str, typer.Option(help="Data set; see `diffuseg datasets`.")] = "scenes",
    root: Annotated[Path | None, typer.Option(help="Folder of the data set.")] = None,
    split: Annotated[str, typer.Option(help="Part to learn from; all: of a folder.")] = "train",
    limit: Annotated[int | None, typer.Option(help="Only the first so many pictures.")] = None,
    data_seed: Annotated[int | None, typer.Option(help="Stream of data that is drawn.")] = None,
    without: Annotated[
        str | None, typer.Option(help='Classes never learned, nor their pictures: "fish,tent".')
    ] = None,
    validation: Annotated[int, typer.Option(help="Pictures looked at now and then; 0: none.")] = 16,
    validation_split: Annotated[str, typer.Option(help="The part they are of.")] = "val",
    objective: Annotated[str | None, typer.Option(help="denoise or one-step.")] = None,
    start: Annotated[
        Path | None, typer.Option(help="Begin from another run's --work, or the model it wrote.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="A number of the recipe; repeatable."),
    ] = None,
    minutes: Annotated[float | None, typer.Option(help="Save and end after so many.")] = None,
    per_device: Annotated[int | None, typer.Option(help="Pictures a process at once.")] = None,
    save_every: Annotated[int | None, typer.Option(help="Steps between states.")] = None,
    keep_every: Annotated[int | None, typer.Option(help="Steps between states kept.")] = None,
    validate_every: Annotated[int | None, typer.Option(help="Steps between validations.")] = None,
    export: Annotated[str | None, typer.Option(help="Weights to write: last or best.")] = None,
    merge: Annotated[bool, typer.Option("--merge", help="Write no adapter.")] = False,
    device: DeviceOption = None,
    offline: OfflineOption = None,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Fine-tune a text-to-image model to denoise masks (Seg-diffusion), or go on with it.

    The same command takes up a run that was stopped or killed. On several GPUs:
    `accelerate launch -m diffuseg train segdiffusion ...`.
    """
    quiet = quiet or int(os.environ.get("LOCAL_RANK", "0")) > 0  # the first process speaks
    show_logs(quiet=quiet, verbose=verbose)
    from functools import partial

    from diffuseg.backbones import StableDiffusion, load
    from diffuseg.eval.datasets import open_dataset
    from diffuseg.methods.settings import parse_settings, with_settings
    from diffuseg.train.segdiffusion.recipe import SegRecipe
    from diffuseg.train.segdiffusion.running import Running
    from diffuseg.train.segdiffusion.trainer import fine_tune

    told: dict[str, object] = {**parse_settings(settings or []), **given(objective=objective)}
    if without:
        told["without"] = without
    running = with_settings(
        Running(cpu=device == "cpu", merge=merge),
        given(
            minutes=minutes, per_device=per_device, save_every=save_every, keep_every=keep_every,
            validate_every=validate_every, export=export,
        ),
    )  # fmt: skip
    with_settings(SegRecipe(), told)  # before anything is loaded
    opened = partial(open_dataset, data, root=root, **given(seed=data_seed))
    pictures = opened(split=split, limit=limit)
    checks = opened(split=validation_split, limit=validation) if validation else None
    # A model of videos is refused by what is called next.
    model = cast(StableDiffusion, load(base, device="cpu", dtype="fp32", offline=offline))
    told.setdefault("crop", min(_CROP, model.size))
    recipe = with_settings(SegRecipe(), told)
    if not quiet:
        learned = "all weights" if recipe.weights == "full" else "low-rank updates"
        line = f"{base}, {learned}, on {len(pictures)} pictures of {pictures.name}"
        stderr().print(f"{line}; {recipe.steps} steps", style="dim", markup=False)
    facts = fine_tune(
        model,
        pictures,
        out,
        work,
        recipe,
        validation=checks,
        start=start,
        running=running,
        meter=partial(progress_bar, quiet=quiet),
    )
    if facts.step < recipe.steps:
        stderr().print(
            f"time is up at step {facts.step} of {recipe.steps}; the same command goes on",
            style="yellow",
            markup=False,
        )
    elif not quiet:
        stdout().print(str(out), markup=False)


def train_mini_seg(
    out: Annotated[Path, typer.Option("--out", "-o", help="Model folder to write.")],
    work: Annotated[Path, typer.Option(help="States and logs; a run that is there goes on.")],
    minutes: Annotated[float | None, typer.Option(help="Save and end after so many.")] = None,
    device: DeviceOption = None,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Fine-tune the embedded miniature to denoise masks of Scenes, or go on with it."""
    show_logs(quiet=quiet, verbose=verbose)
    from functools import partial

    from diffuseg.backbones import StableDiffusion, load
    from diffuseg.eval.datasets import open_dataset
    from diffuseg.train.segdiffusion import mini
    from diffuseg.train.segdiffusion.running import Running

    mini.train_mini_seg(
        lambda: cast(StableDiffusion, load(mini.BASE, device="cpu", dtype="fp32")),
        open_dataset("scenes", split="train", seed=mini.STREAM, limit=mini.SCENES),
        out,
        work,
        running=Running(cpu=device == "cpu", minutes=minutes),
        meter=partial(progress_bar, quiet=quiet),
    )
    stdout().print(str(out), markup=False)
