"""The tables of `scripts/docs.py` that are made of stored reports alone."""

import json
from collections.abc import Mapping
from pathlib import Path

PENDING = "not measured yet"
_SHARES = ("miou", "acc", "fwiou", "mean_acc", "j", "f", "j_and_f", "mvc8", "mvc16")


def load(path: Path) -> Mapping | None:
    """What a file holds, if it is there."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def table(head: tuple[str, ...], rows: list) -> str:
    """A table in Markdown."""
    lines = [f"| {' | '.join(cells)} |" for cells in (head, *rows)]
    return "\n".join([lines[0], f"|{'---|' * len(head)}", *lines[1:]])


def number(report: Mapping, path: str) -> str:
    """A figure of a report by its dotted path; shares in percent."""
    value: object = report
    for key in path.split("."):
        assert isinstance(value, Mapping), path
        value = value[key]
    last = path.split(".")[-1]
    is_share = last in _SHARES or last.startswith("miou_") or path.startswith("per_class.")
    if isinstance(value, float):
        return f"{100 * value:.1f}" if is_share else f"{value:.2f}"
    return str(value)


def report_tables(report: Mapping) -> str:
    """The figures of a report, and its classes."""
    seed = "" if report["seed"] is None else f", stream {report['seed']}"
    settings = [f"{k}={v}" for k, v in report["parameters"].items() if v not in (None, [])]
    rows = [
        ("mIoU, all classes", number(report, "miou")),
        ("mIoU, things", number(report, "metrics.miou_things")),
        ("mIoU, stuff", number(report, "metrics.miou_stuff")),
        ("pixel accuracy", number(report, "acc")),
        ("images", f"{report['n_images']} of {report['dataset']}, {report['split']}{seed}"),
        ("protocol", f"{report['protocol']}; {report['geometry']}"),
        ("averaging rule", f"`{report['average']}`, one confusion matrix"),
        ("model", f"{report['model']['name']}, U-Net `{report['model']['unet_sha256'][:16]}`"),
        ("settings", ", ".join(settings)),
        ("seconds an image", number(report, "seconds_per_image.median") + ", median"),
        ("hardware", ", ".join(f"{k} {v}" for k, v in report["hardware"].items())),
        ("versions", ", ".join(f"{k} {v}" for k, v in report["versions"].items())),
    ]
    known = sorted((v, k) for k, v in report["per_class"].items() if v is not None)
    classes = [(name, f"{100 * value:.1f}") for value, name in reversed(known)]
    return "\n\n".join((table(("figure", "value"), rows), table(("class", "IoU"), classes)))


def ablations(given: str, assets: Path) -> str:
    """A table of `scripts/ablations.py`: of the methods, of a setting varied, or with what."""
    rows = load(assets / "ablations" / "rows.json")
    curves = load(assets / "ablations" / "curves.json")
    if rows is None or curves is None:
        return PENDING
    match given:
        case "rows":
            return _compared(rows)
        case "names":
            return _named(rows)
        case "runs":
            return _runs(rows, curves)
    return _varied(curves, given)


def paper_table(given: str, assets: Path) -> str:
    """A table of `diffuseg ablate`, its plot, or with what all tables of a method were measured."""
    method, name = given.split()
    held = load(assets / "ablations" / f"{method}.json")
    if held is None:
        return PENDING
    if name == "runs":
        fixed = ", ".join(f"{k}={v}" for k, v in held["fixed"].items()) or "none"
        return (
            f"{held['n_images']} of {held['dataset']}, {held['split']}, stream {held['seed']}; "
            f"U-Net `{held['model']['unet_sha256'][:16]}`; {held['protocol']}. Settings that stay: "
            f"{fixed}."
        )
    table = held["tables"][name]
    plot = f"{method}-{name}.png"
    parts = [table["text"]]
    if (assets / "ablations" / plot).is_file():
        parts.append(f"![{table['title']}: here and as published](../assets/ablations/{plot})")
    return "\n\n".join(parts)


def _compared(rows: Mapping) -> str:
    cells = [
        (
            one["label"],
            *(f"{100 * one['metrics'][name]:.1f}" for name in ("acc", "miou", "miou_strict")),
            f"{100 * one['metrics']['acc_majority']:.1f}",
            f"{one['metrics']['segments']:.1f}",
            f"{one['seconds_per_image']['median']:.2f}",
            _set_fields(one),
        )
        for one in rows.values()
        if "missing" not in one and not one["named"]
    ]
    head = (
        "method", "ACC", "mIoU", "mIoU, classes of the image", "ACC, commonest class",
        "segments", "seconds", "settings",
    )  # fmt: skip
    return table(head, cells)


def _named(rows: Mapping) -> str:
    cells = [
        (
            one["label"],
            f"{100 * one['acc']:.1f}",
            f"{100 * one['miou']:.1f}",
            f"{one['seconds_per_image']['median']:.2f}",
            _set_fields(one),
        )
        for one in rows.values()
        if "missing" not in one and one["named"]
    ]
    head = ("method", "pixels named right", "mIoU", "seconds", "settings")
    missing = [f"{k}: {one['missing']}" for k, one in rows.items() if "missing" in one]
    parts = [table(head, cells)] if cells else []
    return "\n\n".join(parts + ([f"Not measured: {'; '.join(missing)}."] if missing else []))


def _set_fields(row: Mapping) -> str:
    shown = ("timestep", "tau", "anchors", "rounds", "k", "quantile", "masks_from")
    given = row["parameters"]
    return ", ".join(f"{name}={given[name]}" for name in shown if given.get(name) is not None)


def _varied(curves: Mapping, name: str) -> str:
    rows = [one for one in curves["rows"] if name in one["settings"]]
    cells = [
        (
            str(one["settings"][name]),
            *(f"{100 * one[figure]:.1f}" for figure in ("acc", "miou", "miou_strict")),
            f"{one['segments']:.1f}",
            f"{one['seconds']:.2f}",
        )
        for one in rows
    ]
    head = (f"`{name}`", "ACC", "mIoU", "mIoU, classes of the image", "segments", "seconds")
    best = max(rows, key=lambda one: one["acc"])
    worst = min(rows, key=lambda one: one["acc"])
    note = (
        f"Most accurate at {best['settings'][name]}; between the best and the worst value lie "
        f"{100 * (best['acc'] - worst['acc']):.1f} points of ACC."
    )
    picture = f"![ACC, mIoU and number of segments over {name}](../assets/ablations/{name}.png)"
    return "\n\n".join((table(head, cells), note, picture))


def _runs(rows: Mapping, curves: Mapping) -> str:
    measured = [one for one in rows.values() if "missing" not in one]
    weights = {
        one["model"].get("unet_sha256") or one["model"].get("vit_sha256"): one["model"]["name"]
        for one in [*measured, curves]
    }
    images = sorted({one["n_images"] for one in measured})
    lines = [
        (
            "curves",
            f"{curves['n_images']} of {curves['dataset']}, {curves['split']}, "
            f"stream {curves['seed']}; other settings: "
            + ", ".join(f"{k}={v}" for k, v in curves["fixed"].items()),
        ),
        (
            "methods",
            f"{' or '.join(map(str, images))} of {curves['dataset']}, "
            f"{measured[0]['split']}, stream {measured[0]['seed']}"
            if measured
            else "none",
        ),
        ("weights", ", ".join(f"{name} `{digest[:16]}`" for digest, name in weights.items())),
        ("versions", ", ".join(f"{k} {v}" for k, v in curves["versions"].items())),
    ]
    return table(("what", "which"), lines)
