"""Pictures with labels for training tests: shapes whose colour says the class."""

from dataclasses import dataclass

import numpy as np

from diffuseg.image import Image

COLOURS = {"car": (220, 30, 30), "house": (30, 30, 220), "grass": (30, 180, 30)}


@dataclass(frozen=True)
class Labelled:
    id: str
    image: Image
    truth: np.ndarray


class Blocks:
    """Grass with a car on one side and a house on the other; every third picture lacks the car.

    With `background` grass is called so.
    """

    ignore = 255

    def __init__(self, count=3, *, side=64, name="blocks", background=False):
        self.count, self.side, self.name = count, side, name
        self.classes = ("background" if background else "grass", "car", "house")
        self.reads = 0

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        if not 0 <= index < self.count:
            raise IndexError(index)
        self.reads += 1
        truth = np.zeros((self.side, self.side), np.uint8)
        half, top = self.side // 2, self.side // 4 + index % 2 * 8
        if index % 3 != 2:
            truth[top : top + half, : half - 8] = 1
        truth[top : top + half, half + 8 :] = 2
        colours = np.array([COLOURS[one] for one in ("grass", "car", "house")], np.uint8)
        image = Image(pixels=colours[truth], source=f"b{index}")
        return Labelled(id=f"b{index}", image=image, truth=truth)
