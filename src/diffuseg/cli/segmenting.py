"""Commands that segment: files, a saved record, the demo."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from diffuseg.cli.options import (
    BatchOption,
    CaptionerOption,
    CaptionOption,
    ClassesOption,
    DeviceOption,
    FilterOption,
    FilterSetOption,
    FormatOption,
    JsonOption,
    MethodOption,
    ModelOption,
    OfflineOption,
    QuietOption,
    SeedOption,
    SetOption,
    SizeOption,
    VerboseOption,
    build_method,
    given,
    read_formats,
    ready_segmenter,
)
from diffuseg.cli.terminal import (
    FAILED,
    print_json,
    progress_bar,
    show_error,
    show_logs,
    show_preview,
    stderr,
    stdout,
)
from diffuseg.errors import DiffusegError

if TYPE_CHECKING:
    from diffuseg.folders import Outcome


def segment(
    images: Annotated[
        list[str], typer.Argument(metavar="IMAGE…", help="Files, folders, patterns.")
    ],
    classes: ClassesOption = None,
    caption: CaptionOption = None,
    captioner: CaptionerOption = None,
    class_filter: FilterOption = None,
    filter_settings: FilterSetOption = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Output folder.")] = Path("out"),
    model: ModelOption = None,
    method: MethodOption = None,
    settings: SetOption = None,
    formats: FormatOption = None,
    overlay: Annotated[bool, typer.Option(help="Also write NAME.overlay.png.")] = True,
    scores: Annotated[bool, typer.Option(help="Keep the score maps (npz).")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Skip what is done already.")] = False,
    preview: Annotated[
        bool | None, typer.Option(help="Show a single result; else on a terminal only.")
    ] = None,
    seed: SeedOption = None,
    size: SizeOption = None,
    batch_size: BatchOption = None,
    device: DeviceOption = None,
    offline: OfflineOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Segment images, by text or into parts: a folder in, a folder out."""
    show_logs(quiet=quiet, verbose=verbose)
    from diffuseg.api import model_name
    from diffuseg.folders import check_formats, find_images, segment_files

    inputs = find_images(images, output)
    wanted = read_formats(formats)
    check_formats(wanted)
    segmenter = ready_segmenter(
        model, method, settings, device, offline, quiet, classes=classes, caption=caption,
        captioner=captioner, class_filter=class_filter, filter_settings=filter_settings, seed=seed,
        size=size, keep_scores=scores,
    )  # fmt: skip
    options = given(batch_size=batch_size)
    run = segment_files(
        inputs, output, segmenter, formats=wanted, overlay=overlay, resume=resume, **options
    )
    wanted_view = stdout().is_terminal if preview is None else preview
    looked_at = len(inputs) == 1 and wanted_view and not (quiet or as_json)
    rows: list[dict[str, object]] = []
    failed: list[tuple[Path, DiffusegError]] = []
    with progress_bar("segmenting", quiet=quiet or len(inputs) == 1) as advance:
        for outcome in run:
            rows.append(_row(outcome))
            if outcome.error is not None:
                failed.append((outcome.path, outcome.error))
            if looked_at and outcome.segmentation is not None:
                show_preview(outcome.segmentation, outcome.path)
            advance(len(rows), len(inputs))
    if as_json:
        print_json({"model": model_name(segmenter.model), "images": rows})
    elif not quiet:
        _print_outputs(rows, output)
    if failed:
        if len(rows) > 1:
            stderr().print(f"{len(failed)} of {len(rows)} images failed:", style="bold red")
        for path, error in failed:
            show_error(error, f"{path}: ")
        raise typer.Exit(FAILED)


def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Output folder.")] = Path("demo"),
    index: Annotated[int, typer.Option(help="Which scene of the stream.")] = 3,
    seed: Annotated[int, typer.Option(help="Which stream of held-out scenes.")] = 3,
    model: ModelOption = "mini",
    method: MethodOption = None,
    settings: SetOption = None,
    device: DeviceOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Segment a picture of the embedded world, offline, and compare with the truth."""
    show_logs(quiet=quiet, verbose=verbose)
    import PIL.Image

    from diffuseg import render
    from diffuseg.eval.datasets import SceneSet
    from diffuseg.eval.scoring import find_rules, name_by_truth, score_sample, segment_samples
    from diffuseg.files import atomic_path
    from diffuseg.folders import write_result
    from diffuseg.image import read_image

    data = SceneSet(seed=seed, n=index + 1)
    sample = data[index]
    segmenter = ready_segmenter(model, method, settings, device, True, quiet)
    rules = find_rules(segmenter.method, segmenter.model, data, n_images=1)
    [result] = segment_samples(segmenter, [sample], data, rules)
    counts = score_sample(sample, result, data, rules)
    image = read_image(sample.image)
    pictures = {
        "demo.png": render.side_by_side(image, result),
        "input.png": PIL.Image.fromarray(image.pixels),
        "overlay.png": render.overlay(image, result),
    }
    for name, picture in pictures.items():
        with atomic_path(output / name) as temporary:
            picture.save(temporary)
    write_result(result, output / "labels", ("png",))
    iou, true = counts.iou(), sample.present(len(data.classes))
    figures = {data.classes[one]: round(float(iou[one]), 4) for one in true}
    mean = round(counts.miou("gt_present"), 4)
    path = str((output / "demo.png").resolve())
    told = "IoU against the truth"
    names = {name: name for name in figures}
    if not rules.named:
        told += f", {len(result)} segments matched to it"
        matched = name_by_truth(sample, result, data).names
        found = dict(zip(matched, result.names, strict=True))
        names = {name: f"{name} ({found.get(name, 'none')})" for name in figures}
    if as_json:
        print_json({"picture": path, "classes": list(result.names), "iou": figures, "miou": mean})
    else:
        if not quiet and stdout().is_terminal:
            show_preview(result, image)
        shown = ", ".join(f"{names[name]} {value:.2f}" for name, value in figures.items())
        stdout().print(f"{path}\n{told}: {shown}; mean {mean:.2f}", markup=False)


def record(
    image: Annotated[str, typer.Argument(help="An image file.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="A .safetensors file.")],
    classes: ClassesOption = None,
    caption: CaptionOption = None,
    captioner: CaptionerOption = None,
    model: ModelOption = None,
    method: MethodOption = None,
    settings: SetOption = None,
    everything: Annotated[
        bool, typer.Option(help="All self- and cross-attention, or only what the method reads.")
    ] = True,
    seed: SeedOption = None,
    size: SizeOption = None,
    device: DeviceOption = None,
    offline: OfflineOption = None,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Save the attention of an image, to be segmented later without the model."""
    show_logs(quiet=quiet, verbose=verbose)
    from diffuseg.image import read_image

    held = read_image(image)
    segmenter = ready_segmenter(
        model, method, settings, device, offline, quiet, classes=classes, caption=caption,
        captioner=captioner, seed=seed, size=size,
    )  # fmt: skip
    kept = segmenter.capture(held, everything=everything)
    kept.save(output)
    stdout().print(f"{output}\n{kept!r}", markup=False)


def replay(
    recorded: Annotated[Path, typer.Argument(metavar="RECORD", help="From diffuseg record.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Output folder.")] = Path("out"),
    method: MethodOption = None,
    settings: SetOption = None,
    image: Annotated[str | None, typer.Option(help="The image, for an overlay.")] = None,
    formats: FormatOption = None,
    scores: Annotated[bool, typer.Option(help="Keep the score maps (npz).")] = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Segment from a saved record, without a model: settings can be tried in no time."""
    show_logs(quiet=quiet, verbose=verbose)
    from diffuseg.attention import AttentionRecord
    from diffuseg.folders import check_formats, write_result
    from diffuseg.image import read_image

    wanted = read_formats(formats)
    check_formats(wanted)
    chosen = build_method(method, settings)
    held = None if image is None else read_image(image)
    result = chosen(AttentionRecord.load(recorded), scores=scores)
    outputs = write_result(result, output / recorded.stem, wanted, held, held is not None)
    if as_json:
        print_json({"outputs": [str(one) for one in outputs], "areas": result.areas})
    elif not quiet:
        if stdout().is_terminal:
            show_preview(result, held)
        stdout().print("\n".join(str(one) for one in outputs), markup=False)


def _row(outcome: "Outcome") -> dict[str, object]:
    """What became of an image, as plain values; the arrays of a large folder would fill memory."""
    row: dict[str, object] = {"image": str(outcome.path)}
    if outcome.error is not None:
        return row | {"error": str(outcome.error)}
    row |= {"outputs": [str(path) for path in outcome.outputs], "skipped": outcome.skipped}
    if outcome.segmentation is not None:
        row["areas"] = outcome.segmentation.areas
        if outcome.segmentation.provenance.caption:
            row["caption"] = outcome.segmentation.provenance.caption
        row["seconds"] = dict(outcome.segmentation.provenance.seconds)
    return row


def _print_outputs(rows: "Sequence[dict[str, Any]]", output: Path) -> None:
    written = [row for row in rows if "outputs" in row]
    if len(rows) == 1:
        for path in written[0]["outputs"] if written else ():
            stdout().print(path, markup=False)
        return
    skipped = sum(row["skipped"] for row in written)
    note = f", {skipped} of them done before" if skipped else ""
    stdout().print(f"{len(written)} images in {output}{note}", markup=False)
