"""Data sets to score on: pictures, their true labels and the names of the classes."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from inspect import signature
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Integer

from diffuseg.errors import InputError
from diffuseg.image import Image

BACKGROUND = "background"
"""The class of what is none of the others; no method is told to look for it."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sample:
    """One picture with its truth.

    Attributes:
        id: Names it within the data set.
        image: The picture.
        truth: Class index of every pixel, or the data set's `ignore`.
        instances: 0 where there is no thing to count, else its number from 1; None: not known.
    """

    id: str
    image: Image
    truth: Integer[np.ndarray, "h w"]
    instances: Integer[np.ndarray, "h w"] | None = None

    def present(self, n_classes: int) -> tuple[int, ...]:
        """The classes that have pixels, in order.

        Example:
            >>> picture = Image(pixels=np.zeros((1, 3, 3), dtype=np.uint8))
            >>> Sample(id="a", image=picture, truth=np.array([[2, 0, 255]])).present(3)
            (0, 2)
        """
        return tuple(int(label) for label in np.unique(self.truth) if 0 <= label < n_classes)


@runtime_checkable
class Dataset(Protocol):
    """Pictures in a fixed order. Structural: a data set has these, it does not inherit them.

    Attributes:
        name: As users type it.
        split: Which part.
        seed: Of a generated data set; None where the pictures are given.
        classes: Names in the order of the labels.
        ignore: Label of pixels that are not scored.
        groups: Named sets of classes that get an average of their own.
    """

    @property
    def name(self) -> str: ...
    @property
    def split(self) -> str: ...
    @property
    def seed(self) -> int | None: ...
    @property
    def classes(self) -> tuple[str, ...]: ...
    @property
    def ignore(self) -> int: ...
    @property
    def groups(self) -> Mapping[str, tuple[str, ...]]: ...
    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Sample: ...


class SceneSet:
    """The first `n` scenes of a stream of the procedural world.

    Args:
        split: "train", "val" or "test".
        seed: Which stream; all streams of val and test are held out from training.
        n: Number of scenes.
        hw: Height and width of the pictures.
        things: Whether only things are classes and all stuff is background, as in PASCAL VOC.

    Raises:
        InputError: Another split, or a number that is negative or a size out of range.

    Example:
        >>> scenes = SceneSet(split="test", seed=1, n=3)
        >>> len(scenes), scenes[0].id, len(scenes.classes)
        (3, 'test-1-0', 18)
        >>> SceneSet(n=1, things=True).classes[:3]
        ('background', 'ball', 'box')
    """

    ignore = 255

    def __init__(
        self,
        *,
        split: str = "test",
        seed: int = 1,
        n: int = 200,
        hw: tuple[int, int] = (256, 256),
        things: bool = False,
    ) -> None:
        from diffuseg.world import CLASSES, STUFF, THINGS, Scenes

        if isinstance(n, bool) or not isinstance(n, int) or n < 1:
            raise InputError(
                "the number of scenes must be at least 1", got=n, remedy="use --limit 200"
            )
        self._scenes = Scenes(split=split, seed=seed, hw=hw)
        self._n = n
        self.split = split
        self.seed: int | None = seed
        self.name = "scenes-things" if things else "scenes"
        self.classes: tuple[str, ...] = (BACKGROUND, *THINGS) if things else CLASSES
        self.groups: Mapping[str, tuple[str, ...]] = {"things": THINGS}
        if not things:
            self.groups = {**self.groups, "stuff": STUFF}
        # From the world's labels to these.
        places = [self.classes.index(one) if one in self.classes else 0 for one in CLASSES]
        self._labels = np.array(places, dtype=np.uint8)

    def __len__(self) -> int:
        return self._n

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < self._n:
            raise IndexError(index)
        scene = self._scenes[index]
        name = f"{self.split}-{self.seed}-{index}"
        image = Image(pixels=scene.image, source=name)
        truth = self._labels[scene.labels]
        return Sample(id=name, image=image, truth=truth, instances=scene.instances)


IMAGE_DATASETS: Mapping[str, tuple[str, str]] = {
    "scenes": ("datasets", "SceneSet"),
    "scenes-things": ("datasets", "SceneSet"),
    "voc21": ("image_layouts", "Voc"),
    "voc20": ("image_layouts", "Voc"),
    "context60": ("image_layouts", "PascalContext"),
    "context59": ("image_layouts", "PascalContext"),
    "coco_object81": ("coco_layout", "Coco"),
    "coco_stuff171": ("coco_layout", "Coco"),
    "coco_stuff27": ("coco_layout", "Coco"),
    "cityscapes19": ("image_layouts", "Cityscapes"),
    "cityscapes27": ("image_layouts", "Cityscapes"),
    "ade150": ("image_layouts", "Ade20k"),
    "sunrgbd37": ("sun_layout", "SunRgbd"),
    "camvid11": ("image_layouts", "camvid"),
    "camvid32": ("image_layouts", "camvid"),
    "folder": ("image_folder", "Folder"),
}
"""Every data set of images by name: the module of this room and what there opens it."""


def open_dataset(
    name: str,
    *,
    root: str | os.PathLike[str] | None = None,
    split: str | None = None,
    seed: int = 1,
    limit: int | None = None,
    geometry: str | None = None,
    names: str | None = None,
) -> Dataset:
    """Return a data set by name.

    Args:
        name: One of `IMAGE_DATASETS`, or another name it goes by, such as "voc12".
        root: Its folder, as published; None for data that is drawn.
        split: Which part; None: the one the data set is usually scored on.
        seed: Which stream, for data that is drawn.
        limit: Only the first so many pictures.
        geometry: What of a picture is shown and scored, see `diffuseg.eval.image_files.GEOMETRIES`;
            None: what published figures of the data set usually mean.
        names: Whose words for the classes, such as "ovdiff"; None: the data set's own.

    Raises:
        InputError: No such data set, split or stream; a folder is needed, not needed, or lacks
            something; the data set has only one geometry, or no names of that system.

    Example:
        >>> len(open_dataset("scenes", limit=2))
        2
    """
    from diffuseg.eval.dataset_facts import find_facts

    facts = find_facts(name, "images")
    if facts.name not in IMAGE_DATASETS:
        raise InputError(
            "the data set must have classes",
            got=f"{facts.name}: {facts.title}",
            remedy="use `diffuseg evaluate-regions`, or diffuseg.eval.region_sets.open_regions",
        )
    choices = {"geometry": geometry, "names": names}
    chosen = {key: value for key, value in choices.items() if value is not None}
    if not facts.tree:
        if root is not None or chosen:
            raise InputError(
                f"{facts.name} is drawn, not read",
                got=f"root={root}" if root is not None else repr(chosen),
                remedy="leave it out",
            )
        things = facts.name == "scenes-things"
        n = 200 if limit is None else limit
        return SceneSet(split=split or facts.split, seed=seed, n=n, things=things)
    if root is None:
        raise InputError(
            f"{facts.name} is read from its folder",
            got="no folder",
            remedy=f"name the one that holds {facts.layout}: root=..., --root on the command line",
        )
    module, layout = IMAGE_DATASETS[facts.name]
    build = getattr(import_module(f"diffuseg.eval.{module}"), layout)
    takes = signature(build).parameters
    if "name" in takes:
        chosen["name"] = facts.name
    for key in choices:
        if key in chosen and key not in takes:
            raise InputError(
                f"{facts.name} has but one choice of {key}", got=chosen[key], remedy="leave it out"
            )
    return build(root, split=split or facts.split, limit=limit, **chosen)
