"""Commands that fine-tune models on data of one's own."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar, cast

import typer

from diffuseg.cli.options import (
    DeviceOption,
    OfflineOption,
    QuietOption,
    VerboseOption,
    given,
)
from diffuseg.cli.terminal import progress_bar, show_logs, stderr, stdout
from diffuseg.errors import InputError

if TYPE_CHECKING:
    from diffuseg.train.segdiffusion.mixing import Mixture

T = TypeVar("T")

_CROP = 512  # the most that is cut from pictures if nothing is said


def train_segdiffusion(
    out: Annotated[Path, typer.Option("--out", "-o", help="Model folder to write.")],
    work: Annotated[Path, typer.Option(help="States and logs; a run that is there goes on.")],
    base: Annotated[str, typer.Option(help="Model to fine-tune: name, hub id or folder.")] = "mini",
    data: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[:WEIGHT]",
            help="Data set, else scenes; see `diffuseg datasets`. Repeatable: they are mixed.",
        ),
    ] = None,
    root: Annotated[
        list[Path] | None, typer.Option(help="Folder of the data set; one for each that has any.")
    ] = None,
    split: Annotated[
        list[str] | None,
        typer.Option(help="Part to learn from, else train; all: of a folder. Once, or for each."),
    ] = None,
    limit: Annotated[
        list[int] | None, typer.Option(help="Only the first so many pictures. Once, or for each.")
    ] = None,
    data_seed: Annotated[int | None, typer.Option(help="Stream of data that is drawn.")] = None,
    without: Annotated[
        str | None, typer.Option(help='Classes never learned, nor their pictures: "fish,tent".')
    ] = None,
    related: Annotated[
        Path | None,
        typer.Option(help="File of names for the same pixels: a = b, a: b, c or a ~ b a line."),
    ] = None,
    validation: Annotated[
        int, typer.Option(help="Pictures of each set looked at now and then; 0: none.")
    ] = 16,
    validation_split: Annotated[
        list[str] | None, typer.Option(help="The part they are of, else val. Once, or for each.")
    ] = None,
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
    from diffuseg.methods.settings import parse_settings, with_settings
    from diffuseg.train.segdiffusion.recipe import SegRecipe
    from diffuseg.train.segdiffusion.relations import read_lines
    from diffuseg.train.segdiffusion.running import Running
    from diffuseg.train.segdiffusion.trainer import fine_tune

    told: dict[str, object] = {**parse_settings(settings or []), **given(objective=objective)}
    if without:
        told["without"] = without
    if related is not None:
        told["related"] = read_lines(related)
    running = with_settings(
        Running(cpu=device == "cpu", merge=merge),
        given(
            minutes=minutes, per_device=per_device, save_every=save_every, keep_every=keep_every,
            validate_every=validate_every, export=export,
        ),
    )  # fmt: skip
    with_settings(SegRecipe(), told)  # before anything is loaded
    opened = partial(_open_sets, data or ["scenes"], root or [], seed=data_seed)
    pictures = opened("--split", split or ["train"], limit or [None])
    looked = validation_split or ["val"]
    checks = opened("--validation-split", looked, [validation]).sets if validation else None
    # A model of videos is refused by what is called next.
    model = cast(StableDiffusion, load(base, device="cpu", dtype="fp32", offline=offline))
    told.setdefault("crop", min(_CROP, model.size))
    recipe = with_settings(SegRecipe(), told)
    if not quiet:
        learned = "all weights" if recipe.weights == "full" else "low-rank updates"
        told_of = [f"{len(one)} pictures of {one.name}" for one in pictures.sets]
        line = f"{base}, {learned}, on {' and '.join(told_of)}"
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


def _open_sets(
    data: Sequence[str],
    roots: Sequence[Path],
    option: str,
    splits: Sequence[str],
    limits: Sequence[int | None],
    *,
    seed: int | None,
) -> "Mixture":
    """Data sets as they are named on the command line: NAME or NAME:WEIGHT each."""
    from diffuseg.eval.dataset_facts import find_facts
    from diffuseg.eval.datasets import open_dataset
    from diffuseg.train.segdiffusion.mixing import Mixture

    parts = [one.partition(":") for one in data]
    names, weights = [one[0] for one in parts], [_weight(*one) for one in parts if one[1]]
    if weights and len(weights) < len(names):
        raise InputError(
            "every data set must have a weight, or none",
            got=" ".join(f"--data {one}" for one in data),
            remedy="give all of them as NAME:WEIGHT; without weights sizes count",
        )
    read = [bool(find_facts(name, "images").tree) for name in names]
    if len(names) == 1 and len(roots) < 2:
        folders = [roots[0] if roots else None]  # what is missing is said when it is opened
    elif len(roots) == sum(read):
        held = iter(roots)
        folders = [next(held) if one else None for one in read]
    else:
        missing = ", ".join(name for name, one in zip(names, read, strict=True) if one) or "none"
        raise InputError(
            "there must be a --root for every data set that is read from a folder, in their order",
            got=f"{len(roots)} for {missing}",
            remedy="for example --data ade150 --root ADE --data voc21 --root VOC",
        )
    split, limit = _each(option, splits, names), _each("--limit", limits, names)
    sets = [
        open_dataset(name, root=folder, split=one, limit=most, **given(seed=seed))
        for name, folder, one, most in zip(names, folders, split, limit, strict=True)
    ]
    return Mixture(sets=tuple(sets), weights=tuple(weights) or None)


def _weight(name: str, sign: str, value: str) -> float:
    try:
        return float(value)
    except ValueError as error:
        raise InputError(
            "a data set is given as NAME or NAME:WEIGHT, the weight a number",
            got=name + sign + value,
            remedy="for example --data ade150:2",
        ) from error


def _each(option: str, values: Sequence[T], names: Sequence[str]) -> Sequence[T]:
    """One value for each data set, where one may be for all."""
    if len(values) == len(names):
        return values
    if len(values) != 1:
        raise InputError(
            f"{option} must be given once, or once for each data set",
            got=f"{len(values)} for {', '.join(names)}",
            remedy="leave it out, or give as many",
        )
    return [values[0]] * len(names)


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
