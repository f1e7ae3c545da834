"""Score things apart by whether their pair of colour and kind was ever trained on.

    python scripts/unseen_pairs.py --report DIR --without car fish

DIR is the folder of `diffuseg evaluate scenes --report DIR`, which keeps the counts of every scene.
No two things of a kind stand in one scene, so the IoU of a class in a scene is that of one thing.
Writes docs/assets/masks/NAME.json; `python scripts/docs.py` sets the table.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "src"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--report", type=Path, required=True, help="folder of the evaluation")
    parser.add_argument("--name", default="pairs", help="of what is written")
    parser.add_argument("--without", nargs="*", default=[], help="kinds never trained on at all")
    parser.add_argument("--assets", type=Path, default=ROOT / "docs" / "assets" / "masks")
    options = parser.parse_args()
    rows = measure(options.report, tuple(options.without))
    options.assets.mkdir(parents=True, exist_ok=True)
    path = options.assets / f"{options.name}.json"
    path.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    for label, row in rows.items():
        print(f"{label}: IoU {100 * row['iou']:.1f} of {row['things']} things")


def measure(report: Path, without: tuple[str, ...]) -> dict[str, dict[str, float]]:
    """Mean IoU of single things, and how many, by what of them was trained on."""
    from diffuseg.eval.metrics import ConfusionMatrix
    from diffuseg.journal import read_journal
    from diffuseg.world import Scenes

    head, *rows = read_journal(next(report.rglob("images.jsonl")))
    facts = head["facts"]
    scenes = Scenes(facts["split"], seed=facts["seed"])
    found: dict[str, list[float]] = {
        "pair trained on": [], "pair never trained on": [], "kind never trained on": []
    }  # fmt: skip
    for row in rows:
        iou = ConfusionMatrix(len(facts["classes"])).with_row(row).iou()
        for thing in scenes[row["index"]].things:
            label = "pair never trained on" if thing.held_out else "pair trained on"
            label = "kind never trained on" if thing.kind in without else label
            found[label].append(float(iou[facts["classes"].index(thing.kind)]))
    return {
        label: {"iou": round(float(np.mean(values)), 6), "things": len(values)}
        for label, values in found.items()
        if values
    }


if __name__ == "__main__":
    main()
