"""Fill in what the documentation repeats: figures of committed reports, the table of known models.

Marks in README.md, docs/**/*.md and the miniature's card, HTML comments that readers do not see:

    <!-- number: scenes-attend.json miou -->60.1<!-- /number -->   one figure of docs/assets/FILE
    <!-- report: scenes-attend.json --> … <!-- /report -->         tables of such a report
    <!-- models --> … <!-- /models -->                             the catalog
    <!-- quality --> … <!-- /quality -->     the miniature's figures, from its quality.json
    <!-- measured --> … <!-- /measured -->   with what these were measured
    <!-- cost --> … <!-- /cost -->           steps and hours of its training, from the same file
    <!-- recipe --> … <!-- /recipe -->       every number of `diffuseg.train.recipe`
    <!-- words --> … <!-- /words -->         its vocabulary
    <!-- preset --> … <!-- /preset -->       its presets
    <!-- bundle --> … <!-- /bundle -->       what lies in its folder
    <!-- picture: samples.jpg TEXT --> … <!-- /picture -->   a picture of docs/assets
    <!-- ablations: rows --> … <!-- /ablations -->   of `scripts/ablations.py`: the methods
    <!-- ablations: tau --> … <!-- /ablations -->    the same: a setting varied
    <!-- ablations: runs --> … <!-- /ablations -->   the same: with what, on what
    <!-- ablation: iseg n --> … <!-- /ablation -->   the same: a table of a method's paper
    <!-- video: crf --> … <!-- /video -->    of `scripts/video_tables.py`: a table of VidSeg's paper
    <!-- video: runs --> … <!-- /video -->   the same: with what
    <!-- leaderboard --> … <!-- /leaderboard -->   all stored reports of Scenes, a table a protocol

The files under docs/assets are `report.json` as `diffuseg evaluate --report` writes it; the
miniature's `quality.json` is what `diffuseg quality --report` writes. A figure whose report is not
there reads "not measured yet". Run without arguments to write the pages, with `--check` to be told
(exit code 1) which are out of date; the test suite does the latter. `--quality FOLDER` first takes
over what `diffuseg quality` wrote there, `--videos FOLDER ...` what `scripts/video_tables.py` did.
"""

import argparse
import hashlib
import json
import re
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ASSETS = ROOT / "docs" / "assets"
MINI = ROOT / "src" / "diffuseg" / "world" / "mini"
CARD = MINI / "README.md"
PENDING = "not measured yet"
_SHARES = ("miou", "acc", "fwiou", "mean_acc", "j", "f", "j_and_f", "mvc8", "mvc16")


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing")
    parser.add_argument("--quality", type=Path, help="folder of `diffuseg quality --report`")
    parser.add_argument("--videos", type=Path, nargs="+", help="of `scripts/video_tables.py`")
    options = parser.parse_args(words)
    if options.videos is not None and not options.check:
        take_tables(options.videos)
    if options.quality is not None and not options.check:
        take_over(options.quality)
    stale = []
    for page in pages():
        text = page.read_text(encoding="utf-8")
        if (new := filled(text)) != text:
            stale.append(page)
            if not options.check:
                page.write_text(new, encoding="utf-8")
    if not options.check:
        refresh_checksums()
    for page in stale:
        print(f"{'out of date' if options.check else 'wrote'}: {page.relative_to(ROOT)}")
    return 1 if stale and options.check else 0


def pages() -> list[Path]:
    """Every page with marks."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), CARD]


def take_over(folder: Path) -> None:
    """Copy what `diffuseg quality` wrote to where the pages look for it."""
    shutil.copyfile(folder / "quality.json", MINI / "quality.json")
    for name in ("samples.jpg", "divergence.png"):
        if (folder / name).is_file():
            shutil.copyfile(folder / name, ASSETS / name)


def take_tables(folders: list[Path], asset: Path = ASSETS / "video" / "tables.json") -> None:
    """Put tables of videos, each from the last folder that has it, to where the pages look."""
    held = dict(_load(asset) or {})
    for folder in folders:
        held |= json.loads((folder / "tables.json").read_text(encoding="utf-8"))
    asset.parent.mkdir(parents=True, exist_ok=True)
    asset.write_text(json.dumps(held, indent=1) + "\n", encoding="utf-8")


def refresh_checksums() -> None:
    """Bring the card's and the report's checksums up to date, where the folder lists them."""
    path = MINI / "checksums.json"
    if not path.is_file():
        return
    sums = json.loads(path.read_text(encoding="utf-8"))
    for name in ("README.md", "quality.json"):
        if name in sums:
            sums[name] = hashlib.sha256((MINI / name).read_bytes()).hexdigest()
    path.write_text(json.dumps(sums, indent=2) + "\n", encoding="utf-8")


def filled(text: str, *, assets: Path = ASSETS) -> str:
    """Return a page with every generated part as it should be."""

    def number(given: str) -> str:
        name, path = given.split()
        report = _load(assets / name)
        return PENDING if report is None else _number(report, path)

    def tables(given: str) -> str:
        report = _load(assets / given)
        return f"\n\n{PENDING if report is None else _tables(report)}\n\n"

    text = _replaced(text, "number", number)
    text = _replaced(text, "report", tables)
    text = _replaced(text, "models", lambda _: f"\n\n{_models()}\n\n")
    text = _replaced(text, "ablations", lambda given: f"\n\n{_ablations(given, assets)}\n\n")
    text = _replaced(text, "ablation", lambda given: f"\n\n{_paper(given, assets)}\n\n")
    text = _replaced(text, "video", lambda given: f"\n\n{_video(given, assets)}\n\n")
    text = _replaced(text, "leaderboard", lambda _: f"\n\n{_leaderboard(assets)}\n\n")
    text = _replaced(text, "masks", lambda given: f"\n\n{_masks(given, assets)}\n\n")
    text = _replaced(text, "picture", lambda given: f"\n\n{_picture(given, assets)}\n\n")
    for name, make in _CARD.items():
        text = _replaced(text, name, lambda _, make=make: f"\n\n{make()}\n\n")
    return text


def _replaced(text: str, name: str, make: Callable[[str], str]) -> str:
    marks = rf"(<!-- {name}(?:: (?P<given>[^>]*?))? -->).*?(<!-- /{name} -->)"
    return re.sub(marks, lambda m: m[1] + make(m["given"] or "") + m[3], text, flags=re.DOTALL)


def _load(path: Path) -> Mapping | None:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _number(report: Mapping, path: str) -> str:
    value: object = report
    for key in path.split("."):
        assert isinstance(value, Mapping), path
        value = value[key]
    last = path.split(".")[-1]
    is_share = last in _SHARES or last.startswith("miou_") or path.startswith("per_class.")
    if isinstance(value, float):
        return f"{100 * value:.1f}" if is_share else f"{value:.2f}"
    return str(value)


def _tables(report: Mapping) -> str:
    seed = "" if report["seed"] is None else f", stream {report['seed']}"
    settings = [f"{k}={v}" for k, v in report["parameters"].items() if v not in (None, [])]
    rows = [
        ("mIoU, all classes", _number(report, "miou")),
        ("mIoU, things", _number(report, "metrics.miou_things")),
        ("mIoU, stuff", _number(report, "metrics.miou_stuff")),
        ("pixel accuracy", _number(report, "acc")),
        ("images", f"{report['n_images']} of {report['dataset']}, {report['split']}{seed}"),
        ("protocol", f"{report['protocol']}; {report['geometry']}"),
        ("averaging rule", f"`{report['average']}`, one confusion matrix"),
        ("model", f"{report['model']['name']}, U-Net `{report['model']['unet_sha256'][:16]}`"),
        ("settings", ", ".join(settings)),
        ("seconds an image", _number(report, "seconds_per_image.median") + ", median"),
        ("hardware", ", ".join(f"{k} {v}" for k, v in report["hardware"].items())),
        ("versions", ", ".join(f"{k} {v}" for k, v in report["versions"].items())),
    ]
    known = sorted((v, k) for k, v in report["per_class"].items() if v is not None)
    classes = [(name, f"{100 * value:.1f}") for value, name in reversed(known)]
    return "\n\n".join((_table(("figure", "value"), rows), _table(("class", "IoU"), classes)))


def _models() -> str:
    sys.path.insert(0, str(ROOT / "src"))
    from diffuseg.backbones.catalog import KNOWN

    rows = [
        (
            f"`{row.name}`",
            "<br>".join(f"`{one}`" for one in row.ids) or "in the package",
            str(row.size),
            "{:.1f} / {:.1f}".format(*row.gigabytes) if row.ids else "-",
            row.licence,
        )
        for row in KNOWN.values()
    ]
    return _table(("name", "tried in this order", "pixels", "GB in fp32 / fp16", "licence"), rows)


def _picture(given: str, assets: Path) -> str:
    name, text = given.split(maxsplit=1)
    return f"![{text}](../assets/{name})" if (assets / name).is_file() else PENDING


def _ablations(given: str, assets: Path) -> str:
    rows = _load(assets / "ablations" / "rows.json")
    curves = _load(assets / "ablations" / "curves.json")
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


def _paper(given: str, assets: Path) -> str:
    """A table of `diffuseg ablate`, its plot, or with what all tables of a method were measured."""
    method, name = given.split()
    held = _load(assets / "ablations" / f"{method}.json")
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


def _video(given: str, assets: Path) -> str:
    """A table of `scripts/video_tables.py`, or with what all of them were measured."""
    held = _load(assets / "video" / "tables.json") or {}
    if given != "runs":
        sys.path.insert(0, str(ROOT / "src"))
        from diffuseg.eval.video_published import compared

        return compared(given, held.get(given, {}))
    if not held:
        return PENDING
    now = (_load(MINI / "quality.json") or {}).get("model", {}).get("unet_sha256")
    lines = []
    for name, one in held.items():
        digest = one["model"]["unet_sha256"]
        old = "" if digest == now else ", since trained anew"
        lines.append((name, f"{one['model']['name']}, U-Net `{digest[:16]}`{old}"))
    versions = next(iter(held.values()))["versions"]
    lines.append(("versions", ", ".join(f"{k} {v}" for k, v in versions.items())))
    return _table(("table", "measured with"), lines)


def _leaderboard(assets: Path) -> str:
    """Tables of every stored report of Scenes."""
    files = [
        *sorted(assets.glob("scenes-*.json")),
        *sorted((assets / "leaderboard").glob("*.json")),
        *sorted((assets / "video").glob("scenes-*.json")),
    ]
    reports = {one.relative_to(assets).as_posix(): _load(one) or {} for one in files}
    if not reports:
        return PENDING
    sys.path.insert(0, str(ROOT / "src"))
    from diffuseg.eval.leaderboard import board_text

    now = (_load(MINI / "quality.json") or {}).get("model", {}).get("unet_sha256")
    return board_text(reports, unet=now)


def _masks(given: str, assets: Path) -> str:
    """A table of `scripts/mask_curves.py`: what is measured, by model and group of classes."""
    name, kind = given.split()
    held = _load(assets / "masks" / f"{name}.json")
    if held is None:
        return PENDING
    sys.path.insert(0, str(ROOT / "src"))
    from diffuseg.eval.mask_curves import mask_table

    groups = {"miou": "all", "seen": "seen", "unseen": "never seen", "accuracy": "pixels right"}
    first = next(iter(held.values()))
    asked = [group for group in groups if group in next(iter(first["rows"].values()))]
    label = (lambda one: f"{one}: ") if len(held) > 1 else (lambda _: "")
    head = (kind, *(f"{label(model)}{groups[group]}" for model in held for group in asked))
    return _table(head, mask_table(held, kind))


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
    return _table(head, cells)


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
    parts = [_table(head, cells)] if cells else []
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
    return "\n\n".join((_table(head, cells), note, picture))


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
    return _table(("what", "which"), lines)


def _quality() -> str:
    report = _load(MINI / "quality.json")
    if report is None:
        return PENDING
    sys.path.insert(0, str(ROOT / "src"))
    from diffuseg.eval.quality import quality_tables

    return quality_tables(report)


def _measured() -> str:
    report = _load(MINI / "quality.json")
    if report is None:
        return PENDING
    rows = [
        ("U-Net", f"SHA-256 `{report['model']['unet_sha256'][:16]}`"),
        ("scenes", f"{report['limit']} of the split {report['split']}, stream {report['seed']}"),
        ("hardware", ", ".join(f"{k} {v}" for k, v in report["hardware"].items())),
        ("versions", ", ".join(f"{k} {v}" for k, v in report["versions"].items())),
    ]
    return _table(("what", "which"), rows)


def _cost() -> str:
    costs = (_load(MINI / "quality.json") or {}).get("training")
    if not costs:
        return PENDING
    rows = [(k, f"{one['steps']:.0f}", f"{one['hours']:.1f}") for k, one in costs.items()]
    return _table(("stage", "steps", "hours"), rows)


def _recipe() -> str:
    sys.path.insert(0, str(ROOT / "src"))
    from diffuseg.train.recipe import MiniRecipe

    recipe = MiniRecipe()
    rows = []
    for field in fields(recipe):
        value = getattr(recipe, field.name)
        if not is_dataclass(value):
            rows.append((field.name, f"`{value!r}`"))
            continue
        for inner in fields(value):
            held = getattr(value, inner.name)
            held = held if isinstance(held, tuple) and is_dataclass(held[0]) else [held]
            rows += [(f"{field.name}, {inner.name}", f"`{one!r}`") for one in held]
    return _table(("number", "value"), rows)


def _words() -> str:
    facts = _load(MINI / "diffuseg.json")
    return PENDING if facts is None else ", ".join(facts["vocabulary"])


def _preset() -> str:
    facts = _load(MINI / "diffuseg.json")
    if facts is None:
        return PENDING
    rows = [
        (method, f"`{name}`", ", ".join(map(str, value)) if isinstance(value, list) else value)
        for method, settings in facts["preset"].items()
        for name, value in settings.items()
    ]
    return _table(("method", "setting", "value"), [tuple(map(str, row)) for row in rows])


def _bundle() -> str:
    import struct

    rows = []
    for path in sorted(MINI.rglob("*.safetensors")):
        data = path.read_bytes()
        header = json.loads(data[8 : 8 + struct.unpack("<Q", data[:8])[0]])
        header.pop("__metadata__", None)
        count = 0
        for one in header.values():
            size = 1
            for side in one["shape"]:
                size *= side
            count += size
        rows.append((f"`{path.parent.name}`", f"{count / 1e6:.2f} M", f"{len(data) / 1e6:.1f} MB"))
    return _table(("part", "parameters", "file"), rows)


_CARD: dict[str, Callable[[], str]] = {
    "quality": _quality,
    "measured": _measured,
    "cost": _cost,
    "recipe": _recipe,
    "words": _words,
    "preset": _preset,
    "bundle": _bundle,
}


def _table(head: tuple[str, ...], rows: list) -> str:
    lines = [f"| {' | '.join(cells)} |" for cells in (head, *rows)]
    return "\n".join([lines[0], f"|{'---|' * len(head)}", *lines[1:]])


if __name__ == "__main__":
    raise SystemExit(main())
