"""Segment a picture by names and write what came out: labels, overlay, one mask a class.

    python examples/first_mask.py [IMAGE "class, class"] [MODEL]

Without arguments: a picture of the embedded world, and the embedded model.
"""

import sys
from pathlib import Path

import diffuseg as ds
from diffuseg.export import save_masks
from diffuseg.world import Scenes


def main() -> None:
    scene = Scenes("test", seed=3)[3]
    image, classes = sys.argv[1:3] if len(sys.argv) > 2 else (scene.image, scene.names)
    model = sys.argv[3] if len(sys.argv) > 3 else None
    seg = ds.segment(image, classes, model=model, keep_scores=True)
    print(seg)
    for region in seg:
        print(region)
    folder = Path("first-mask")
    folder.mkdir(exist_ok=True)
    seg.save(folder / "labels.png")
    seg.overlay(image).save(folder / "overlay.png")
    save_masks(seg, folder / "masks")


if __name__ == "__main__":
    main()
