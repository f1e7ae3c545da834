"""Measure the ablations of VidSeg's paper on clips of Scenes, for docs/guides/video-ablations.md.

    python scripts/video_tables.py --report out/video     hours on one core
    python scripts/docs.py --videos out/video             fills the page from what was measured

Rows are `diffuseg.methods.vidseg.settings.ABLATIONS`, what else holds
`diffuseg.eval.video_published.base_settings`. Clip by clip: all rows of all tables are measured on
the first clip, then on the second. Stopped runs go on where they were; more --clips go on from
fewer. tables.json has what is measured, of every table on as many clips as all of its rows have.

Tables that modulate cost two passes a label; --frames 14 are one batch. Other --frames need another
--report.
"""

import argparse
import hashlib
import json
import logging
import math
import sys
import time
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "src"))

METRICS = ("miou", "mvc8", "mvc16", "j", "f")

COARSE = (
    *("clusters", "starts", "classifier", "neighbours", "memory", "batch", "naming"),
    *("drop_void", "void", "aux", "jump", "signed", "crf"),
)
"""Settings that are about what is made of features, not about what the model sees."""

SAVED = [0.0]
"""Seconds of the processor that rows have not spent because others had."""


def main() -> None:
    from diffuseg.eval.video_published import TABLES

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--report", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--model", default="mini")
    parser.add_argument("--clips", type=int, default=2, help="of the split val")
    parser.add_argument("--frames", type=int, default=14, help="of each; mVC16 needs 17")
    parser.add_argument("--only", nargs="+", choices=list(TABLES), help="tables; else all")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    names = options.only or list(TABLES)
    share_looks()
    for count in range(1, options.clips + 1):
        for name in names:
            measure(name, count, options)


def measure(name: str, count: int, options: argparse.Namespace) -> None:
    """Measure all rows of a table on some clips, and write them down."""
    from diffuseg.eval.video_published import TABLES, base_settings

    rows: dict[str, Any] = {}
    for row in TABLES[name].rows:
        [label] = row.cells
        settings = {**base_settings(name), **row.settings}
        rows[label] = measure_row(name, label, settings, count, options)
        # The first clip at once; later ones when all rows have them.
        if count == 1 or len(rows) == len(TABLES[name].rows):
            write(name, rows, count, options)


def measure_row(
    table: str, label: str, settings: dict[str, object], count: int, options: argparse.Namespace
) -> dict[str, Any]:
    """Score one row, on the clips it was not scored on yet."""
    from diffuseg.api import find_model
    from diffuseg.eval.video_datasets import SceneClips
    from diffuseg.eval.video_runner import evaluate_video
    from diffuseg.methods.vidseg import VidSeg

    folder = options.report / table.replace(" ", "-") / label.replace(" ", "-").replace("/", "")
    clips = SceneClips(split="val", seed=1, n=options.clips, frames=options.frames)
    start = time.process_time() + SAVED[0]
    found = evaluate_video(
        clips,
        settings=VidSeg(**settings),  # type: ignore[arg-type]
        model=find_model(options.model, backbone="video"),
        limit=count,
        frames=options.frames,
        report=folder,
    )
    spent = time.process_time() + SAVED[0] - start
    seconds = processor_seconds(folder / "seconds.json", count, spent)
    logging.info("%s, %s: %d clips, %.0f s of the processor", table, label, count, spent)
    return {
        "metrics": {name: _known(found.metrics.get(name, math.nan)) for name in METRICS},
        "n_videos": found.n_videos,
        "n_frames": found.n_frames,
        "seconds_per_frame": round(sum(seconds) / found.n_frames, 3),
        "model": {key: found.model[key] for key in ("name", "unet_sha256")},
        "versions": dict(found.versions),
    }


def share_looks() -> None:
    """Let rows that do not modulate share what the model made of a clip's batches."""
    from diffuseg.video import segmenter

    look, kept = segmenter.look, OrderedDict[str, tuple[Any, float]]()

    def shared(model: Any, settings: Any, frames: Any, **options: Any) -> Any:
        if settings.modulate:
            return look(model, settings, frames, **options)
        seen = replace(settings, **dict.fromkeys(COARSE))
        pixels = hashlib.sha256(b"".join(one.tobytes() for one in frames)).hexdigest()
        key = f"{model.name} {seen} {len(frames)} {pixels}"
        if key in kept:
            SAVED[0] += kept[key][1]
            return kept[key][0]
        start = time.process_time()
        found = look(model, settings, frames, **options)
        kept[key] = found, time.process_time() - start
        if len(kept) > 20:
            kept.popitem(last=False)
        return found

    segmenter.look = shared


def processor_seconds(path: Path, count: int, spent: float) -> list[float]:
    """What every clip has cost, this one added unless it was there before."""
    held = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    if len(held) < count:
        held = [*held, *[spent / (count - len(held))] * (count - len(held))]
        path.write_text(json.dumps(held), encoding="utf-8")
    return held[:count]


def write(name: str, rows: dict[str, Any], count: int, options: argparse.Namespace) -> None:
    """Put a table into the file of all tables, unless it has more clips already."""
    path = options.report / "tables.json"
    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    before = known.get(name, {})
    same = before.get("frames") == options.frames and before.get("complete")
    if same and before["clips"] >= count and before["rows"].keys() >= rows.keys():
        return
    from diffuseg.eval.video_published import TABLES

    shared = next(iter(rows.values()))
    known[name] = {
        "clips": count,
        "frames": options.frames,
        "complete": len(rows) == len(TABLES[name].rows),
        "model": shared["model"],
        "versions": shared["versions"],
        "rows": {
            label: {key: one[key] for key in ("metrics", "seconds_per_frame")}
            for label, one in rows.items()
        },
    }
    path.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")


def _known(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 5)


if __name__ == "__main__":
    main()
