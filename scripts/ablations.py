"""Measure the papers' ablations, and DiffSeg beside its relatives, for docs/guides/ablations.md.

    python scripts/ablations.py --report out/ablations     about a quarter of an hour on one core
    python scripts/docs.py                                 fills the page from what was measured

Four parts. The curves of DiffSeg's Fig. 11: one setting at a time, on scenes of the split "val".
The rows of its table: DiffSeg, k-means, DBSCAN and DinoSeg, and names by Semantic DiffSeg, on
scenes of the split "test", on which nothing was chosen: the `quantile` of DBSCAN and the
fixed threshold of DiffSeg are the best on "val". The tables of iSeg, DiffSegmenter and OVDiff, on
"val".

Stopped runs go on where they were. What the page shows is copied to docs/assets/ablations. A method
that cannot be run, because a companion of the model is missing, is left out and named.
"""

import argparse
import json
import logging
import shutil
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
ASSETS = ROOT / "docs" / "assets" / "ablations"
sys.path.insert(0, str(ROOT / "src"))

PAPERS = ("iseg", "diffsegmenter")
"""Methods whose own tables are measured."""

BANKED = ("components", "kinds", "parts")
"""OVDiff's tables that need no more pictures than the preset draws."""

TABLE: list[tuple[str, str, str, str | None]] = [
    ("diffseg", "DiffSeg", "diffseg", None),
    ("diffseg-auto", "DiffSeg, the threshold from the image", "diffseg", None),
    ("diffseg-fixed", "DiffSeg, the best fixed threshold", "diffseg", None),
    ("diffseg-highest", "DiffSeg, pixels to the highest map (paper)", "diffseg", None),
    ("kmeans-c", "k-means, k the average number of classes", "kmeans", "mean_count"),
    ("kmeans-s", "k-means, k the number of classes of the image", "kmeans", "count"),
    ("dbscan", "DBSCAN, the best neighbourhood", "dbscan", None),
    ("dinoseg", "DinoSeg", "dinoseg", None),
    ("semantic", "Semantic DiffSeg, words of the captioner", "semantic-diffseg", "nothing"),
    ("semantic-given", "Semantic DiffSeg, classes given", "semantic-diffseg", "classes"),
]
"""Name, label, method and what is given, of every row."""

QUANTILES = [0.01, 0.02, 0.05, 0.1, 0.2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--report", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--model", default="mini")
    parser.add_argument("--limit", type=int, default=200, help="scenes of a row")
    parser.add_argument("--curves", type=int, default=60, help="scenes of the curves")
    parser.add_argument("--papers", type=int, default=60, help="scenes of the papers' tables")
    parser.add_argument("--tau", type=float, help="where it stays in the curves; else the preset's")
    parser.add_argument("--only", nargs="*", help="rows to measure, by name; else all")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    measure_curves(options)
    measure_rows(options)
    measure_papers(options)
    measure_banks(options)


def measure_curves(options: argparse.Namespace) -> None:
    """Vary t, M, N and tau of DiffSeg one by one."""
    from diffuseg.api import find_model
    from diffuseg.eval.ablation import ablate
    from diffuseg.methods import DiffSeg

    model = find_model(options.model)
    held = model.preset.get("diffseg", {}).get("tau")
    tau = options.tau or (held if isinstance(held, int | float) else 0.02)
    folder = options.report / "curves"
    found = timed(
        "curves",
        ablate,
        "scenes",
        method=DiffSeg(tau=tau),
        model=model,
        split="val",
        limit=options.curves,
        report=folder,
    )
    ASSETS.mkdir(parents=True, exist_ok=True)
    (ASSETS / "curves.json").write_text(found.sweep.to_json(), encoding="utf-8")
    for name in found.sweep.fields:
        shutil.copyfile(folder / "sweep" / f"{name}.png", ASSETS / f"{name}.png")


def measure_papers(options: argparse.Namespace) -> None:
    """Measure the tables of methods that look for classes; every pixel of a scene has one.

    Without the guided filter, which is not the papers' and hides what they vary.
    """
    from diffuseg.eval.ablation import ablate
    from diffuseg.methods import METHODS

    for name in PAPERS:
        folder = options.report / name
        found = timed(
            name,
            ablate,
            "scenes",
            method=METHODS[name](background="none", edges=0),  # type: ignore[call-arg]
            model=options.model,
            split="val",
            limit=options.papers,
            report=folder,
        )
        for table in found.tables:
            if (folder / f"{table}.png").is_file():
                shutil.copyfile(folder / f"{table}.png", ASSETS / f"{name}-{table}.png")
        shutil.copyfile(folder / "ablation.json", ASSETS / f"{name}.json")


def measure_banks(options: argparse.Namespace) -> None:
    """Measure OVDiff's tables: all classes, as on Context, and things alone, as on VOC.

    With the paper's background and proposals, and windows of two sizes, whatever the preset has.
    """
    from diffuseg.eval.ablation import ablate
    from diffuseg.methods import OVDiff

    method = OVDiff(
        background="prototypes", proposals="maskcut", crops=(256, 192), stride=64, pamr=0
    )
    for data, name, tables in (
        ("scenes", "ovdiff", BANKED),
        ("scenes-things", "ovdiff-things", BANKED[:1]),
    ):
        folder = options.report / name
        timed(
            name,
            ablate,
            data,
            method=method,
            tables=tables,
            model=options.model,
            split="val",
            limit=options.papers,
            report=folder,
        )
        shutil.copyfile(folder / "ablation.json", ASSETS / f"{name}.json")


def measure_rows(options: argparse.Namespace) -> None:
    """Score every method of the table."""
    from diffuseg.errors import DiffusegError
    from diffuseg.eval.runner import evaluate
    from diffuseg.methods import METHODS

    path = ASSETS / "rows.json"
    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    rows: dict[str, Any] = {}
    for name, label, method, given in TABLE:
        if options.only is not None and name not in options.only:
            rows |= {name: known[name]} if name in known else {}
            continue
        rows[name] = {"label": label}
        try:
            settings = settings_of(name, method, options)
            if settings is None:
                del rows[name]
                continue
            found = timed(
                name,
                evaluate,
                "scenes",
                method=METHODS[method](**settings),  # type: ignore[arg-type]
                model=options.model,
                limit=options.limit,
                given=given,
                report=options.report / name,
            )
        except (DiffusegError, ImportError) as error:
            rows[name] |= {"missing": str(error).splitlines()[0]}
        else:
            rows[name] |= {"named": not found.uses_gt_assignment, **found.to_dict()}
            for unneeded in ("per_class", "versions", "peak_memory_mb", "skipped"):
                rows[name].pop(unneeded)
        _write(path, rows)  # at once: the next row may be stopped
    _write(path, rows)


def _write(path: Path, rows: dict[str, Any]) -> None:
    path.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def settings_of(name: str, method: str, options: argparse.Namespace) -> dict[str, Any] | None:
    """The settings of a row, what the model has no preset for found on other scenes.

    None if the row would be another one over again, or of a threshold made for other models.
    """
    from diffuseg.api import find_model
    from diffuseg.methods import METHODS, backbone_of

    model = find_model(options.model, backbone=backbone_of(METHODS[method]))
    preset = model.preset.get(method, {}).get("tau")
    curves = json.loads((ASSETS / "curves.json").read_text(encoding="utf-8"))
    tried = [one for one in curves["rows"] if "tau" in one["settings"]]
    best = max(tried, key=lambda one: one["miou"])["settings"]["tau"]
    match name:
        case "diffseg":
            return None if preset is None else {}
        case "diffseg-auto":
            return None if preset == "auto" else {"tau": "auto"}
        case "diffseg-fixed":
            return None if preset == best else {"tau": best}
        case "diffseg-highest":
            return {"assign": "highest"}
        case "dbscan":
            return {"quantile": best_quantile(options)}
        case "dinoseg":
            return {} if preset is not None else {"tau": "auto"}
    return {}


def best_quantile(options: argparse.Namespace) -> float:
    """The neighbourhood with which DBSCAN is best on other scenes."""
    from diffuseg.eval.sweep import sweep

    folder = options.report / "quantile"
    found = timed(
        "quantile",
        sweep,
        "scenes",
        {"quantile": QUANTILES},
        method="dbscan",
        model=options.model,
        split="val",
        limit=max(1, options.curves // 3),
        by="miou",
        report=folder,
    )
    return found.best["settings"]["quantile"]


def timed(name: str, run: Any, *args: Any, **options: Any) -> Any:
    start, cpu = time.time(), time.process_time()
    found = run(*args, **options)
    spent, used = time.time() - start, time.process_time() - cpu
    logging.info("%s: %.0f s, %.0f s of the processor", name, spent, used)
    return found


if __name__ == "__main__":
    main()
