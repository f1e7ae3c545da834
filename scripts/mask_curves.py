"""Measure Seg-diffusion by steps and runs, or by the noise masks were trained with.

    python scripts/mask_curves.py --work out/curves --model mini-seg      half an hour on one core
    python scripts/mask_curves.py --work out/noise --steps 1 4 --runs 3 \\
        --model annealed=DIR --model multires=DIR --model white=DIR       what trained alike

Writes docs/assets/masks/NAME.json and plots; `python scripts/docs.py` sets the tables. Pictures are
scenes of the split test; each is asked for the classes it shows. A stopped run goes on.
"""

import argparse
import json
import logging
import sys
from dataclasses import asdict
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "src"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--model", action="append", required=True, help="a model, or label=model")
    parser.add_argument("--name", default="curves", help="of what is written")
    parser.add_argument("--images", type=int, default=40)
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 2, 4, 10, 50])
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--start", choices=["white", "pyramid"], default="white")
    parser.add_argument("--unseen", nargs="*", default=["car", "fish"])
    parser.add_argument("--assets", type=Path, default=ROOT / "docs" / "assets" / "masks")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    found = {}
    for one in options.model:
        label, _, given = one.rpartition("=")
        found[label or given] = measure(label or given, given, options)
    write(found, options)


def measure(label: str, given: str, options: argparse.Namespace) -> dict[str, object]:
    """Measure a model on the pictures it was not measured on yet."""
    from diffuseg.api import find_model
    from diffuseg.eval.datasets import open_dataset
    from diffuseg.eval.mask_curves import MaskCurves, measure_picture, summarise
    from diffuseg.eval.runner import identify
    from diffuseg.journal import extend_journal, read_journal, write_journal

    curves = MaskCurves(steps=tuple(options.steps), runs=options.runs, start=options.start)
    model = find_model(given, backbone="masks")
    data = open_dataset("scenes", split="test", limit=options.images)
    told = {"curves": json.loads(json.dumps(asdict(curves))), "model": identify(model)}
    path = options.work / f"{label}.jsonl"
    rows = read_journal(path)
    if not rows or rows[0] != told:
        rows = [told]
    write_journal(path, rows)
    for number in range(len(rows) - 1, len(data)):
        rows.append(measure_picture(model, data, data[number], curves))
        extend_journal(path, rows[-1:])
        logging.info("%s: picture %d of %d", label, number + 1, len(data))
    done = rows[1 : 1 + len(data)]
    return {
        **told,
        "n_images": len(done),
        "rows": summarise(done, data.classes, options.unseen),
        "spread": round(sum(one["spread"]["mean"] for one in done) / len(done), 4),
    }


def write(found: dict[str, dict[str, object]], options: argparse.Namespace) -> None:
    """Write what was found, and draw it."""
    from diffuseg.eval.mask_curves import draw_mask_curves

    options.assets.mkdir(parents=True, exist_ok=True)
    path = options.assets / f"{options.name}.json"
    path.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    draw_mask_curves(found).save(options.assets / f"{options.name}.png")


if __name__ == "__main__":
    main()
