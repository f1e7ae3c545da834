"""All methods on one page: accuracy, time and memory of stored reports, one table a protocol."""

from collections.abc import Mapping, Sequence
from typing import Any

from diffuseg.eval.protocols import find_given, find_oracles
from diffuseg.eval.report import percent, table_lines

_GROUPS: Mapping[str, str] = {
    "classes": "The classes of the image are given",
    "vocabulary": "All names are given; which of them the image shows is found",
    "nothing": "Nothing is given, segments have names",
    "matched": "Segments without names, matched to classes by the truth of each image",
    "matched-count": "The same, and the number of classes is given",
    "anchor": "Videos; the truth of one frame is given",
    "anchor-classes": "Videos; the classes of one frame are given",
}


def board_text(reports: Mapping[str, Mapping[str, Any]], *, unet: str | None = None) -> str:
    """Return tables of all reports, the most accurate first, and where every row is from.

    Figures of unlike protocols do not compare, so that each protocol has a table of its own.

    Args:
        reports: What `report.json` holds, by the name of the stored file.
        unet: SHA-256 of the miniature's U-Net as it is now; rows of an older one are marked.

    Example:
        >>> held = {"method": "attend", "given": "classes", "metrics": {"miou": 0.8, "acc": 0.9}}
        >>> held |= {"model": {"name": "mini"}, "dataset": "scenes", "split": "test", "n_images": 4}
        >>> board_text({"a.json": held}).splitlines()[0]
        '### The classes of the image are given'
    """
    groups: dict[str, dict[str, Mapping[str, Any]]] = {}
    for name, one in reports.items():
        groups.setdefault(_group(one), {})[name] = one
    parts = []
    for group, title in _GROUPS.items():
        if held := groups.get(group):
            ranked = sorted(held.items(), key=lambda item: (-_order(item[1]), item[0]))
            lines = _videos(ranked, unet) if group.startswith("anchor") else _images(ranked, unet)
            parts.append("\n".join([f"### {title}", "", *lines]))
    parts.append("\n".join(["### Where the rows are from", "", *_sources(reports)]))
    return "\n\n".join(parts)


def _group(report: Mapping[str, Any]) -> str:
    told = find_given(report)
    if "n_videos" in report:
        return "anchor-classes" if told == "classes" else "anchor"
    if "image-hungarian" in find_oracles(report):
        return "matched-count" if told in ("count", "mean_count") else "matched"
    return told


def _images(rows: Sequence[tuple[str, Mapping[str, Any]]], unet: str | None) -> list[str]:
    cells = [
        (
            _label(name, one, unet),
            percent(one["metrics"]["miou"]) + _interval(one),
            percent(one["metrics"].get("miou_things")),
            percent(one["metrics"]["acc"]),
            _number(one.get("seconds_per_image", {}).get("median"), ".2f"),
            _number(one.get("peak_memory_mb", {}).get("process"), ".0f"),
            str(one["n_images"]),
        )
        for name, one in rows
    ]
    head = ("method", "mIoU", "things", "ACC", "s an image", "MB", "images")
    return table_lines(head, cells)


def _videos(rows: Sequence[tuple[str, Mapping[str, Any]]], unet: str | None) -> list[str]:
    shown = {"miou": "mIoU", "j_and_f": "J&F", "mvc8": "mVC8", "mvc16": "mVC16"}
    cells = [
        (
            _label(name, one, unet),
            *(percent(one["metrics"].get(figure)) for figure in shown),
            _number(one.get("seconds_per_frame"), ".2f"),
            _number(one.get("peak_memory_mb", {}).get("process"), ".0f"),
            f"{one['n_videos']}, {one['n_frames']}",
        )
        for name, one in rows
    ]
    head = ("method", *shown.values(), "s a frame", "MB", "videos, frames")
    return table_lines(head, cells)


def _sources(reports: Mapping[str, Mapping[str, Any]]) -> list[str]:
    cells = []
    for name, one in sorted(reports.items()):
        model = one["model"]
        digest = str(model.get("unet_sha256") or model.get("vit_sha256") or "")
        held = one.get("hardware") or {}
        versions = one.get("versions") or {}
        cells.append(
            (
                f"`{name}`",
                f"{one['dataset']}, {one['split']}",
                f"{model['name']} `{digest[:12]}`",
                ", ".join(f"{k} {v}" for k, v in held.items()) or "not stored",
                ", ".join(
                    f"{k} {versions[k]}" for k in ("diffuseg", "torch", "numpy") if k in versions
                ),
            )
        )
    return table_lines(("report", "data", "model", "hardware", "versions"), cells)


def _label(name: str, report: Mapping[str, Any], unet: str | None) -> str:
    stem = name.rsplit("/", 1)[-1].removesuffix(".json").removeprefix("scenes-")
    method, model = str(report["method"]), report["model"]
    label = f"{method}, {stem.removeprefix(method).strip('-')}" if stem != method else method
    label = label.rstrip(", ")
    other = "" if model["name"] == "mini" else f" ({model['name']})"
    of_mini = model["name"] == "mini" and unet and model.get("unet_sha256")
    old = ", since trained anew" if of_mini and model["unet_sha256"] != unet else ""
    return f"{label}{other}{old}"


def _interval(report: Mapping[str, Any]) -> str:
    held = (report.get("intervals") or {}).get("miou")
    return "" if held is None else f" ({percent(held[0])} to {percent(held[1])})"


def _order(report: Mapping[str, Any]) -> float:
    value = report["metrics"].get("miou")
    return -1.0 if value is None else float(value)


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
