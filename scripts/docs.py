"""Fill in what the documentation repeats: figures of committed reports, the table of known models.

Three marks in README.md and docs/**/*.md, HTML comments that readers do not see:

    <!-- number: scenes-attend.json miou -->60.1<!-- /number -->   one figure of docs/assets/FILE
    <!-- report: scenes-attend.json --> … <!-- /report -->         tables of such a report
    <!-- models --> … <!-- /models -->                             the catalog

The files under docs/assets are `report.json` as `diffuseg evaluate --report` writes it. A figure
whose report is not there reads "not measured yet". Run without arguments to write the pages, with
`--check` to be told (exit code 1) which are out of date; the test suite does the latter.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ASSETS = ROOT / "docs" / "assets"
PENDING = "not measured yet"
_SHARES = ("miou", "acc", "fwiou", "mean_acc")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing")
    options = parser.parse_args()
    stale = []
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        text = page.read_text(encoding="utf-8")
        if (new := filled(text)) != text:
            stale.append(page)
            if not options.check:
                page.write_text(new, encoding="utf-8")
    for page in stale:
        print(f"{'out of date' if options.check else 'wrote'}: {page.relative_to(ROOT)}")
    return 1 if stale and options.check else 0


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
    return _replaced(text, "models", lambda _: f"\n\n{_models()}\n\n")


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


def _table(head: tuple[str, ...], rows: list) -> str:
    lines = [f"| {' | '.join(cells)} |" for cells in (head, *rows)]
    return "\n".join([lines[0], f"|{'---|' * len(head)}", *lines[1:]])


if __name__ == "__main__":
    raise SystemExit(main())
