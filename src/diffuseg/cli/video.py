"""Commands on videos."""

from pathlib import Path
from typing import Annotated

import typer

from diffuseg.cli.options import (
    ClassesOption,
    DeviceOption,
    FilterOption,
    FilterSetOption,
    JsonOption,
    ModelOption,
    OfflineOption,
    QuietOption,
    SetOption,
    VerboseOption,
    given,
    read_filter,
    say_model,
)
from diffuseg.cli.terminal import print_json, print_markdown, progress_bar, show_logs, stdout
from diffuseg.errors import InputError

VideoMethodOption = Annotated[
    str | None, typer.Option("--method", help="vidseg, or emerdiff: every frame by itself.")
]
NamerOption = Annotated[
    str | None, typer.Option(help="Method of images that finds the words: attend, iseg, …")
]
NamerModelOption = Annotated[
    str | None, typer.Option(help="The model it runs on, where --model reads no words.")
]


def video(
    source: Annotated[
        str, typer.Argument(metavar="VIDEO", help="A file, a folder of pictures, an address.")
    ],
    output: Annotated[
        list[Path],
        typer.Option(
            "--output", "-o", help="out.mp4: overlay; a folder: PNG; .json: tracks; repeatable."
        ),
    ],
    masks: Annotated[Path | None, typer.Option(help="Also a video of the labels' colours.")] = None,
    classes: ClassesOption = None,
    anchor: Annotated[
        str | None, typer.Option(metavar="MASK[@FRAME]", help="A frame's labels, a PNG.")
    ] = None,
    anchor_frame: Annotated[
        int | None, typer.Option("--frame", help="Which frame words are looked for in.")
    ] = None,
    clusters: Annotated[int | None, typer.Option(help="Parts without names; so many.")] = None,
    namer: NamerOption = None,
    namer_model: NamerModelOption = None,
    class_filter: FilterOption = None,
    filter_settings: FilterSetOption = None,
    method: VideoMethodOption = None,
    model: ModelOption = None,
    settings: SetOption = None,
    resume: Annotated[
        bool, typer.Option("--resume/--restart", help="Go on where it was stopped.")
    ] = True,
    device: DeviceOption = None,
    offline: OfflineOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Segment a video: by a mask of one frame, by words, or into parts."""
    show_logs(quiet=quiet, verbose=verbose)
    from diffuseg.api import find_model
    from diffuseg.methods import parse_settings, with_settings
    from diffuseg.methods.vidseg import VidSeg
    from diffuseg.video.reading import open_video
    from diffuseg.video.running import read_outputs, segment_file
    from diffuseg.video.segmenter import open_video_segmenter

    outputs = read_outputs(output, masks)
    mask, frame = _anchor(anchor, anchor_frame)
    chosen = with_settings(VidSeg(), parse_settings(settings or []))
    held = open_video(source)
    loaded = find_model(model, backbone="video", device=device, offline=offline)
    reader = _reader(namer_model, device, offline)
    if class_filter is not None and classes is None:
        raise InputError("a class filter is for classes", got=class_filter, remedy="add --classes")
    options = given(
        anchor=mask, anchor_frame=frame, classes=classes, clusters=clusters, namer=namer,
        namer_model=reader, method=method,
        class_filter=read_filter(class_filter, filter_settings, reader or loaded),
    )  # fmt: skip
    segmenter = open_video_segmenter(loaded, chosen, **options)
    say_model(loaded, segmenter.method, quiet)
    with progress_bar("segmenting", quiet=quiet) as advance:
        frames = segment_file(held, outputs, segmenter, resume=resume, progress=advance)
    if as_json:
        print_json({"frames": frames, "outputs": [str(one) for one in outputs.paths]})
    elif not quiet:
        stdout().print("\n".join(map(str, outputs.paths)), markup=False)


def evaluate_video(
    dataset: Annotated[str, typer.Argument(help="scenes, davis2017, camvid11, vspw124, …")],
    root: Annotated[Path | None, typer.Option(help="Folder of the data set.")] = None,
    split: Annotated[str | None, typer.Option(help="Else the one usually scored.")] = None,
    limit: Annotated[int | None, typer.Option(help="Only the first videos.")] = None,
    frames: Annotated[int | None, typer.Option(help="Only the first frames of each.")] = None,
    told: Annotated[
        str | None, typer.Option("--given", help="Of the truth: anchor, or classes.")
    ] = None,
    namer: NamerOption = None,
    namer_model: NamerModelOption = None,
    method: VideoMethodOption = None,
    model: ModelOption = None,
    settings: SetOption = None,
    report: Annotated[
        Path | None, typer.Option(help="Folder for report.json, report.md, state.")
    ] = None,
    device: DeviceOption = None,
    offline: OfflineOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Score a method on videos; stopped runs go on where they were."""
    show_logs(quiet=quiet, verbose=verbose)
    from diffuseg.api import find_model
    from diffuseg.eval.video_datasets import open_video_dataset
    from diffuseg.eval.video_runner import evaluate_video as run
    from diffuseg.methods import parse_settings, with_settings
    from diffuseg.methods.vidseg import VidSeg

    chosen = with_settings(VidSeg(), parse_settings(settings or []))
    data = dataset if root is None else open_video_dataset(dataset, root, split=split)
    loaded = find_model(model, backbone="video", device=device, offline=offline)
    reader = _reader(namer_model, device, offline)
    say_model(loaded, method or "vidseg", quiet)
    options = given(
        method=method, limit=limit, frames=frames, given=told, report=report, namer=namer,
        namer_model=reader,
    )  # fmt: skip
    with progress_bar("scoring", quiet=quiet) as advance:
        found = run(data, settings=chosen, model=loaded, progress=advance, **options)
    if as_json:
        stdout().print(found.to_json(), markup=False, end="")
    elif not quiet:
        print_markdown(found.to_markdown())


def _reader(name: str | None, device: str | None, offline: bool | None) -> object:
    from diffuseg.api import find_model

    return None if name is None else find_model(name, device=device, offline=offline)


def _anchor(text: str | None, frame: int | None) -> tuple[str | None, int | None]:
    """The file and the frame of "mask.png@7"."""
    if text is None:
        return None, frame
    name, sign, number = text.rpartition("@")
    if not sign or not number.isdigit() or Path(text).exists():
        return text, frame
    if frame is not None and frame != int(number):
        raise InputError(
            "the frame must be given once", got=f"{text} and {frame}", remedy="drop one"
        )
    return name, int(number)
