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
    <!-- masks: curves steps --> … <!-- /masks -->   of `scripts/mask_curves.py`
    <!-- pairs: NAME --> … <!-- /pairs -->   of `scripts/unseen_pairs.py`
    <!-- regions --> … <!-- /regions -->   docs/assets/regions, of `diffuseg evaluate-regions`

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

# Loaded by tests, this folder is not where Python looks.
sys.path.insert(0, str(Path(__file__).resolve().parent))
from docs_tables import PENDING, ablations, load, number, paper_table, report_tables, table

ROOT = Path(__file__).resolve().parent.parent
ASSETS = ROOT / "docs" / "assets"
MINI = ROOT / "src" / "diffuseg" / "world" / "mini"
CARD = MINI / "README.md"


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
    held = dict(load(asset) or {})
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

    def figure(given: str) -> str:
        name, path = given.split()
        report = load(assets / name)
        return PENDING if report is None else number(report, path)

    def tables(given: str) -> str:
        report = load(assets / given)
        return f"\n\n{PENDING if report is None else report_tables(report)}\n\n"

    text = _replaced(text, "number", figure)
    text = _replaced(text, "report", tables)
    text = _replaced(text, "models", lambda _: f"\n\n{_models()}\n\n")
    text = _replaced(text, "ablations", lambda given: f"\n\n{ablations(given, assets)}\n\n")
    text = _replaced(text, "ablation", lambda given: f"\n\n{paper_table(given, assets)}\n\n")
    text = _replaced(text, "video", lambda given: f"\n\n{_video(given, assets)}\n\n")
    text = _replaced(text, "leaderboard", lambda _: f"\n\n{_leaderboard(assets)}\n\n")
    text = _replaced(text, "regions", lambda _: f"\n\n{_regions(assets)}\n\n")
    text = _replaced(text, "masks", lambda given: f"\n\n{_masks(given, assets)}\n\n")
    text = _replaced(text, "pairs", lambda given: f"\n\n{_pairs(given, assets)}\n\n")
    text = _replaced(text, "picture", lambda given: f"\n\n{_picture(given, assets)}\n\n")
    for name, make in _CARD.items():
        text = _replaced(text, name, lambda _, make=make: f"\n\n{make()}\n\n")
    return text


def _replaced(text: str, name: str, make: Callable[[str], str]) -> str:
    marks = rf"(<!-- {name}(?:: (?P<given>[^>]*?))? -->).*?(<!-- /{name} -->)"
    return re.sub(marks, lambda m: m[1] + make(m["given"] or "") + m[3], text, flags=re.DOTALL)


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
    return table(("name", "tried in this order", "pixels", "GB in fp32 / fp16", "licence"), rows)


def _picture(given: str, assets: Path) -> str:
    name, text = given.split(maxsplit=1)
    return f"![{text}](../assets/{name})" if (assets / name).is_file() else PENDING


def _video(given: str, assets: Path) -> str:
    """A table of `scripts/video_tables.py`, or with what all of them were measured."""
    held = load(assets / "video" / "tables.json") or {}
    if given != "runs":
        sys.path.insert(0, str(ROOT / "src"))
        from diffuseg.eval.video_published import compared

        return compared(given, held.get(given, {}))
    if not held:
        return PENDING
    now = (load(MINI / "quality.json") or {}).get("model", {}).get("unet_sha256")
    lines = []
    for name, one in held.items():
        digest = one["model"]["unet_sha256"]
        old = "" if digest == now else ", since trained anew"
        lines.append((name, f"{one['model']['name']}, U-Net `{digest[:16]}`{old}"))
    versions = next(iter(held.values()))["versions"]
    lines.append(("versions", ", ".join(f"{k} {v}" for k, v in versions.items())))
    return table(("table", "measured with"), lines)


def _leaderboard(assets: Path) -> str:
    """Tables of every stored report of Scenes."""
    files = [
        *sorted(assets.glob("scenes-*.json")),
        *sorted((assets / "leaderboard").glob("*.json")),
        *sorted((assets / "video").glob("scenes-*.json")),
    ]
    reports = {one.relative_to(assets).as_posix(): load(one) or {} for one in files}
    if not reports:
        return PENDING
    sys.path.insert(0, str(ROOT / "src"))
    from diffuseg.eval.leaderboard import board_text

    now = (load(MINI / "quality.json") or {}).get("model", {}).get("unet_sha256")
    return board_text(reports, unet=now)


def _regions(assets: Path) -> str:
    """A table of the stored runs over BSDS500, and with what they were made."""
    reports = [load(one) or {} for one in sorted((assets / "regions").glob("*.json"))]
    if not reports:
        return PENDING
    shown = ("ods", "ois", "f_recall", "f_precision", "covering", "rand", "voi", "segments")
    rows = [
        (
            f"{one['method']}, {_scales(one)}",
            str(one["n_images"]),
            *(f"{one['metrics'][name]:.2f}" for name in shown),
        )
        for one in reports
    ]
    head = (
        "method", "images", "F (ODS)", "F (OIS)", "recall", "precision", "covering", "PRI",
        "VOI", "segments",
    )  # fmt: skip
    first = reports[0]
    digests = {str(one["model"]["unet_sha256"])[:16]: one["model"]["name"] for one in reports}
    told = [
        f"{first['dataset']}, {first['split']}, the first images of the folder",
        ", ".join(f"{name}, U-Net `{digest}`" for digest, name in digests.items()),
        f"people's boundaries {first['boundaries']}",
        ", ".join(f"{k} {v}" for k, v in first["hardware"].items()),
        ", ".join(f"{k} {first['versions'][k]}" for k in ("diffuseg", "torch", "scipy")),
    ]
    return "\n\n".join((table(head, rows), "; ".join(told) + "."))


def _scales(report: Mapping) -> str:
    """Which of its scales a run's figures are of."""
    held = [one["settings"] for one in report["scales"]]
    if len(held) < 2:
        given = report["parameters"]
        shown = ", ".join(f"{name}={given[name]}" for name in ("k", "tau") if name in given)
        return f"{shown}, one scale"
    name = next(iter(held[0]))
    values = ", ".join(str(one[name]) for one in held)
    return f"{name}={held[report['scale']][name]} of {values}"


def _masks(given: str, assets: Path) -> str:
    """A table of `scripts/mask_curves.py`: what is measured, by model and group of classes."""
    name, kind = given.split()
    held = load(assets / "masks" / f"{name}.json")
    if held is None:
        return PENDING
    sys.path.insert(0, str(ROOT / "src"))
    from diffuseg.eval.mask_curves import mask_table

    groups = {"miou": "all", "seen": "seen", "unseen": "never seen", "accuracy": "pixels right"}
    first = next(iter(held.values()))
    asked = [group for group in groups if group in next(iter(first["rows"].values()))]
    label = (lambda one: f"{one}: ") if len(held) > 1 else (lambda _: "")
    head = (kind, *(f"{label(model)}{groups[group]}" for model in held for group in asked))
    return table(head, mask_table(held, kind))


def _pairs(given: str, assets: Path) -> str:
    """A table of `scripts/unseen_pairs.py`: things by what of them was trained on."""
    held = load(assets / "masks" / f"{given}.json")
    if held is None:
        return PENDING
    rows = [(label, f"{100 * row['iou']:.1f}", str(row["things"])) for label, row in held.items()]
    return table(("of the thing", "mean IoU", "things"), rows)


def _quality() -> str:
    report = load(MINI / "quality.json")
    if report is None:
        return PENDING
    sys.path.insert(0, str(ROOT / "src"))
    from diffuseg.eval.quality import quality_tables

    return quality_tables(report)


def _measured() -> str:
    report = load(MINI / "quality.json")
    if report is None:
        return PENDING
    rows = [
        ("U-Net", f"SHA-256 `{report['model']['unet_sha256'][:16]}`"),
        ("scenes", f"{report['limit']} of the split {report['split']}, stream {report['seed']}"),
        ("hardware", ", ".join(f"{k} {v}" for k, v in report["hardware"].items())),
        ("versions", ", ".join(f"{k} {v}" for k, v in report["versions"].items())),
    ]
    return table(("what", "which"), rows)


def _cost() -> str:
    costs = (load(MINI / "quality.json") or {}).get("training")
    if not costs:
        return PENDING
    rows = [(k, f"{one['steps']:.0f}", f"{one['hours']:.1f}") for k, one in costs.items()]
    return table(("stage", "steps", "hours"), rows)


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
    return table(("number", "value"), rows)


def _words() -> str:
    facts = load(MINI / "diffuseg.json")
    return PENDING if facts is None else ", ".join(facts["vocabulary"])


def _preset() -> str:
    facts = load(MINI / "diffuseg.json")
    if facts is None:
        return PENDING
    rows = [
        (method, f"`{name}`", ", ".join(map(str, value)) if isinstance(value, list) else value)
        for method, settings in facts["preset"].items()
        for name, value in settings.items()
    ]
    return table(("method", "setting", "value"), [tuple(map(str, row)) for row in rows])


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
    return table(("part", "parameters", "file"), rows)


_CARD: dict[str, Callable[[], str]] = {
    "quality": _quality,
    "measured": _measured,
    "cost": _cost,
    "recipe": _recipe,
    "words": _words,
    "preset": _preset,
    "bundle": _bundle,
}


if __name__ == "__main__":
    raise SystemExit(main())
