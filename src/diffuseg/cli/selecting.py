"""The commands of interactive selection."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from diffuseg.cli.options import (
    ClassesOption,
    DeviceOption,
    FormatOption,
    JsonOption,
    ModelOption,
    OfflineOption,
    QuietOption,
    SeedOption,
    SetOption,
    SizeOption,
    VerboseOption,
    given,
    read_formats,
    say_model,
)
from diffuseg.cli.terminal import (
    print_json,
    print_markdown,
    progress_bar,
    show_logs,
    show_preview,
    stdout,
)

if TYPE_CHECKING:
    import numpy as np

    from diffuseg.methods.interactive import Interactive

PointOption = Annotated[
    list[str] | None, typer.Option("--point", metavar="X,Y", help="A pixel wanted; repeatable.")
]
NotPointOption = Annotated[
    list[str] | None, typer.Option("--not-point", metavar="X,Y", help="One not wanted; repeatable.")
]
BoxOption = Annotated[
    list[str] | None,
    typer.Option("--box", metavar="X0,Y0,X1,Y1", help="A box around what is wanted; repeatable."),
]
NotBoxOption = Annotated[
    list[str] | None, typer.Option("--not-box", metavar="X0,Y0,X1,Y1", help="One not wanted.")
]
LineOption = Annotated[
    list[str] | None,
    typer.Option("--line", metavar="X,Y:X,Y:…", help="A stroke over what is wanted; repeatable."),
]
NotLineOption = Annotated[
    list[str] | None, typer.Option("--not-line", metavar="X,Y:X,Y:…", help="One not wanted.")
]
MaskOption = Annotated[
    list[Path] | None, typer.Option("--mask", help="A picture, not black where it is wanted.")
]
NotMaskOption = Annotated[
    list[Path] | None, typer.Option("--not-mask", help="A picture, not black where not wanted.")
]


def select(
    image: Annotated[str, typer.Argument(help="An image file.")],
    point: PointOption = None,
    not_point: NotPointOption = None,
    box: BoxOption = None,
    not_box: NotBoxOption = None,
    line: LineOption = None,
    not_line: NotLineOption = None,
    mask: MaskOption = None,
    not_mask: NotMaskOption = None,
    classes: ClassesOption = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Output folder.")] = Path("out"),
    model: ModelOption = None,
    settings: SetOption = None,
    formats: FormatOption = None,
    overlay: Annotated[bool, typer.Option(help="Also write NAME.overlay.png.")] = True,
    cutout: Annotated[
        bool, typer.Option(help="Also write NAME.cutout.png, the rest transparent.")
    ] = True,
    scores: Annotated[bool, typer.Option(help="Keep the score maps (npz).")] = False,
    preview: Annotated[bool | None, typer.Option(help="Show it; else on a terminal only.")] = None,
    seed: SeedOption = None,
    size: SizeOption = None,
    device: DeviceOption = None,
    offline: OfflineOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Select what belongs to points, boxes, lines or masks of an image."""
    show_logs(quiet=quiet, verbose=verbose)
    from diffuseg import render
    from diffuseg.api import find_model
    from diffuseg.files import atomic_path
    from diffuseg.folders import check_formats, write_result
    from diffuseg.image import read_image
    from diffuseg.interaction import interact
    from diffuseg.methods.clicks import Clicks, parse_line, parse_place
    from diffuseg.methods.interactive import SELECTED

    wanted = read_formats(formats)
    check_formats(wanted)
    held = read_image(image)
    clicks = Clicks.read(
        points=[parse_place(one) for one in point or ()],
        boxes=[parse_place(one) for one in box or ()],
        lines=[parse_line(one) for one in line or ()],
        masks=_read_masks(mask),
        negative_points=[parse_place(one) for one in not_point or ()],
        negative_boxes=[parse_place(one) for one in not_box or ()],
        negative_lines=[parse_line(one) for one in not_line or ()],
        negative_masks=_read_masks(not_mask),
    )
    # Before the model is loaded, which takes far longer.
    clicks.check(held.hw, needs_wanted=classes is None)
    chosen = _build_interactive(settings)
    loaded = find_model(model, device=device, offline=offline)
    say_model(loaded, chosen, quiet)
    options = given(classes=classes, seed=seed, size=size)
    found = interact(held, loaded, method=chosen, **options).select(clicks, keep_scores=scores)
    stem = output / Path(image).stem
    outputs = [*write_result(found, stem, wanted, held, overlay)]
    if cutout:
        outputs.append(stem.with_name(stem.name + ".cutout.png"))
        with atomic_path(outputs[-1]) as temporary:
            render.cutout(held, found, SELECTED).save(temporary)
    if as_json:
        region = next((one for one in found if one.name == SELECTED), None)
        print_json(
            {
                "outputs": [str(one) for one in outputs],
                "area": 0 if region is None else region.area,
                "bbox": None if region is None else list(region.bbox),
                "seconds": dict(found.provenance.seconds),
            }
        )
    elif not quiet:
        if stdout().is_terminal if preview is None else preview:
            show_preview(found, held)
        stdout().print("\n".join(str(one) for one in outputs), markup=False)


def evaluate_clicks(
    dataset: Annotated[str, typer.Argument(help="Data set, such as scenes.")] = "scenes",
    clicks: Annotated[int | None, typer.Option(help="On each thing.")] = None,
    model: ModelOption = None,
    settings: SetOption = None,
    split: Annotated[str | None, typer.Option(help="Else the one usually scored.")] = None,
    limit: Annotated[int | None, typer.Option(help="Only the first images.")] = None,
    seed: Annotated[int | None, typer.Option(help="Which stream of scenes.")] = None,
    noise_seed: Annotated[int | None, typer.Option(help="Seed of the noise.")] = None,
    report: Annotated[Path | None, typer.Option(help="Folder for clicks.json, state.")] = None,
    size: SizeOption = None,
    device: DeviceOption = None,
    offline: OfflineOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Score interactive selection: simulated clicks on every thing; stopped runs go on."""
    show_logs(quiet=quiet, verbose=verbose)
    from diffuseg.api import find_model
    from diffuseg.eval.clicking import evaluate_clicks as run

    chosen = _build_interactive(settings)
    loaded = find_model(model, device=device, offline=offline)
    say_model(loaded, chosen, quiet)
    options = given(
        clicks=clicks, split=split, limit=limit, seed=seed, noise_seed=noise_seed, size=size,
        report=report,
    )  # fmt: skip
    with progress_bar("clicking", quiet=quiet) as advance:
        found = run(dataset, method=chosen, model=loaded, progress=advance, **options)
    if as_json:
        stdout().print(found.to_json(), markup=False, end="")
    elif not quiet:
        print_markdown(found.to_markdown())
        if report is not None:
            stdout().print(str(report / "clicks.json"), markup=False)


def _build_interactive(settings: Sequence[str] | None) -> "Interactive":
    from diffuseg.methods import parse_settings, with_settings
    from diffuseg.methods.interactive import Interactive

    return with_settings(Interactive(), parse_settings(settings or []))


def _read_masks(paths: Sequence[Path] | None) -> "list[np.ndarray]":
    from diffuseg.image import read_image

    return [read_image(path).pixels.max(axis=2) for path in paths or ()]
