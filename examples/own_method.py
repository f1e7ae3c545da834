"""A method of your own: a frozen dataclass that says what it needs and reads a record.

This one takes the cross-attention of one level and smooths it before classes are compared.
"""

from dataclasses import dataclass

import torch

import diffuseg as ds
from diffuseg import ops
from diffuseg.methods.attend import best_class
from diffuseg.world import Scenes


@dataclass(frozen=True, slots=True, kw_only=True)
class Smooth:
    """Cross-attention of one level, smoothed and stretched to [0, 1].

    Attributes:
        timestep: Noise level at which the image is shown.
        level: Latent side over grid side.
    """

    timestep: int = 200
    level: int = 2

    def needs(self, model) -> ds.Needs:
        return ds.Needs(timesteps=(self.timestep,), kinds=("cross",), levels=(self.level,))

    def __call__(self, record: ds.AttentionRecord, *, scores: bool = False) -> ds.Segmentation:
        names = record.header.names
        maps = torch.stack([record.cross(name)[0] for name in names])  # [k, h, w]
        smooth = torch.nn.functional.avg_pool2d(maps, 3, stride=1, padding=1)
        labels, planes = best_class(ops.minmax(smooth), record.header.image_hw, keep=scores)
        return ds.Segmentation(labels=labels, names=names, scores=planes)


def main() -> None:
    scene = Scenes("test", seed=3)[3]
    print(ds.segment(scene.image, scene.names, method=Smooth()))
    print(ds.evaluate("scenes", method=Smooth(), limit=4).miou)


if __name__ == "__main__":
    main()
