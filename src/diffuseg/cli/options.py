"""The options commands share, and what is made of them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from diffuseg.cli.terminal import stderr

if TYPE_CHECKING:
    from diffuseg.api import Segmenter
    from diffuseg.methods import Method

ClassesOption = Annotated[
    str | None,
    typer.Option("--classes", "-c", help='What to look for: "car, tree, sofa|couch".'),
]
CaptionOption = Annotated[
    str | None,
    typer.Option("--caption", help="Instead: a text whose nouns name segments (semantic-diffseg)."),
]
CaptionerOption = Annotated[
    str | None,
    typer.Option("--captioner", help="Name, hub id or folder; else the model's own, else BLIP."),
]
FilterOption = Annotated[
    str | None,
    typer.Option(
        "--filter", help="Keep the classes an image shows: clip, or a file of labels (JSON, CSV)."
    ),
]
FilterSetOption = Annotated[
    list[str] | None,
    typer.Option("--filter-set", metavar="NAME=VALUE", help="A setting of CLIP's filter."),
]
ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        help="Name, hub id or folder; see `diffuseg models`. Else $DIFFUSEG_MODEL, else mini.",
    ),
]
MethodOption = Annotated[str | None, typer.Option("--method", help="Segmentation method.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="A setting of the method; repeatable."),
]
SeedOption = Annotated[int | None, typer.Option("--seed", help="Seed of the noise.")]
SizeOption = Annotated[
    int | None, typer.Option("--size", help="Working size in pixels; else the model's own.")
]
BatchOption = Annotated[int | None, typer.Option("--batch-size", help="Images at a time.")]
DeviceOption = Annotated[str | None, typer.Option("--device", help="cpu, cuda, mps, …")]
OfflineOption = Annotated[
    bool | None, typer.Option("--offline/--online", help="Never use the network.")
]
FormatOption = Annotated[
    list[str] | None,
    typer.Option("--format", "-f", help="png, npz, coco, geojson, masks or all; repeatable."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Write JSON to standard output.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Only errors.")]
VerboseOption = Annotated[bool, typer.Option("--verbose", "-v", help="The library's log.")]


def given(**options: object) -> dict[str, Any]:
    """The options that were given; the others keep the default of what is called."""
    return {name: value for name, value in options.items() if value is not None}


def build_method(method: str | None, settings: Sequence[str] | None) -> "Method":
    from diffuseg.methods import DEFAULT_METHOD, find_method, parse_settings, with_settings

    return with_settings(find_method(method or DEFAULT_METHOD), parse_settings(settings or []))


def ready_segmenter(
    model: str | None,
    method: str | None,
    settings: Sequence[str] | None,
    device: str | None,
    offline: bool | None,
    quiet: bool,
    class_filter: str | None = None,
    filter_settings: Sequence[str] | None = None,
    **options: object,
) -> "Segmenter":
    from diffuseg.api import build_segmenter, find_model
    from diffuseg.asking import takes_captions
    from diffuseg.methods import backbone_of
    from diffuseg.models import find_captioner

    chosen = build_method(method, settings)
    backbone = backbone_of(chosen)
    loaded = find_model(model, backbone=backbone, device=device, offline=offline)
    unsaid = not any(options.get(name) for name in ("classes", "caption"))
    if unsaid and takes_captions(chosen.needs(loaded)):
        named = options.get("captioner")
        options["captioner"] = find_captioner(named, loaded, offline=offline)
    options["class_filter"] = read_filter(class_filter, filter_settings, loaded)
    segmenter = build_segmenter(loaded, chosen, **given(**options))
    say_model(loaded, chosen, quiet)
    return segmenter


def read_filter(class_filter: str | None, settings: Sequence[str] | None, model: Any) -> Any:
    from diffuseg.filtering import find_filter
    from diffuseg.methods import parse_settings

    return find_filter(class_filter, model, parse_settings(settings or []))


def say_model(model: Any, method: object, quiet: bool) -> None:
    from diffuseg.api import model_name
    from diffuseg.methods import method_name

    if not quiet:
        precision = str(model.dtype).removeprefix("torch.")
        name = method if isinstance(method, str) else method_name(method)
        line = f"model {model_name(model)}, {precision} on {model.device}"
        stderr().print(f"{line}; method {name}", style="dim", markup=False)


def read_formats(formats: Sequence[str] | None) -> list[str]:
    from diffuseg.folders import FORMATS

    named = [one.strip() for text in formats or ["png"] for one in text.split(",")]
    return list(FORMATS) if "all" in named else named
