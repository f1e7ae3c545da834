"""Measure all methods with the miniature on Scenes, and write the page that compares them.

    python scripts/leaderboard.py --report out/leaderboard [--only diffseg dinoseg] [--limit 200]

Runs what `METHODS` below names, one after the other, each in a folder of its own that it goes on in
where it was stopped; stores the reports under docs/assets/leaderboard and fills docs/guides/
leaderboard.md by `scripts/docs.py`. The page also shows the reports of other pages, docs/assets/
scenes-*.json and docs/assets/video/scenes-*.json, so these methods are not run again.
"""

import argparse
import importlib.util
import sys
from pathlib import Path
from typing import Any

from rich.console import Console

ROOT = Path(__file__).resolve().parent.parent
ASSETS = ROOT / "docs" / "assets"

METHODS: dict[str, dict[str, Any]] = {
    "diffseg": {"method": "diffseg"},
    "semantic-diffseg": {"method": "semantic-diffseg"},
    "semantic-diffseg-classes": {"method": "semantic-diffseg", "given": "classes"},
    "dinoseg": {"method": "dinoseg"},
    "kmeans": {"method": "kmeans", "given": "count"},
    "dbscan": {"method": "dbscan"},
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--report", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--only", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--limit", type=int, default=200)
    options = parser.parse_args()
    from diffuseg.eval.runner import evaluate

    console = Console(stderr=True)
    for name in options.only:
        with console.status(name):
            found = evaluate(
                "scenes", model="mini", limit=options.limit, report=options.report / name,
                **METHODS[name],
            )  # fmt: skip
        target = ASSETS / "leaderboard" / f"{name}.json"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(found.to_json(), encoding="utf-8")
        console.print(f"{name}: mIoU {100 * found.miou:.1f}")
    return _docs().main([])


def _docs() -> Any:
    spec = importlib.util.spec_from_file_location("docs", ROOT / "scripts" / "docs.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    sys.exit(main())
