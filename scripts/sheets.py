"""Draw the sheets of docs/guides/scenes.md: scenes, and clips with their masks.

Run without arguments; writes docs/assets/scenes.jpg and clips.jpg.
"""

from itertools import islice
from pathlib import Path

import numpy as np
import PIL.Image

from diffuseg.palettes import name_palette
from diffuseg.world import Clips, Scenes

ASSETS = Path(__file__).resolve().parent.parent / "docs" / "assets"


def main() -> None:
    scenes = list(islice(Scenes("val", seed=3, hw=(128, 128)), 24))
    write("scenes.jpg", [[scene.image for scene in scenes[row : row + 8]] for row in (0, 8, 16)])
    colors = name_palette(["background", *(f"object {number}" for number in range(1, 9))])
    rows = []
    for clip in islice(Clips("test", seed=1, hw=(96, 96)), 4):
        rows.append(list(clip.frames[::7]))
        rows.append([colors[mask] for mask in clip.instances[::7]])
    write("clips.jpg", rows)


def write(name: str, rows: list[list[np.ndarray]]) -> None:
    sheet = np.concatenate([np.concatenate(row, axis=1) for row in rows])
    PIL.Image.fromarray(sheet).save(ASSETS / name, quality=88, optimize=True)


if __name__ == "__main__":
    main()
