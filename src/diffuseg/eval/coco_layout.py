"""COCO, read from the folders it comes in: COCO-Object of four sources, COCO-Stuff."""

from pathlib import Path

import numpy as np
from jaxtyping import Integer

from diffuseg.errors import InputError
from diffuseg.eval.coarse27 import coco_stuff27_images
from diffuseg.eval.coco_instances import Annotated, read_instances
from diffuseg.eval.dataset_facts import find_facts
from diffuseg.eval.image_files import ImageFiles, ImageSet
from diffuseg.eval.image_lists import PathLike, by_stem, first_folder, first_items, inside
from diffuseg.eval.label_sets import LabelSet, read_facts, read_labels
from diffuseg.eval.video_files import missing


class Coco(ImageSet):
    """COCO's pictures with one of three sets of labels: COCO-Object, COCO-Stuff 171 or 27.

    Pictures lie in `images/SPLIT` or `SPLIT`, maps in `annotations/SPLIT` or
    `stuffthingmaps/SPLIT`. COCO-Object is read from `*_instanceTrainIds.png` (GroupViT's
    conversion), else from the stuffthingmaps by the same rule (all stuff and what is not labelled
    is background), else from `coco_seg_anno` (255 is not scored), else from the release's own
    `annotations/instances_SPLIT.json` (smaller objects over larger ones, crowds are not scored);
    `label_source` says which.

    Args:
        root: The folder, or the one above `coco`.
        name: "coco_object81", "coco_stuff171" or "coco_stuff27", whose images are those of the
            published list.
        split: "val2017" or "train2017"; of instances also others, such as "val2014".
        limit: Only the first so many images.
        geometry: What of a picture is scored; "diffseg" for the 27 classes, else "whole", unless
            you say otherwise.
        names: Of whose prompts, see `LabelSet.renamed`.

    Raises:
        InputError: Something is missing, the instances are not COCO's, or the 27 classes are asked
            for of another split.

    Example:
        >>> len(Coco("coco", name="coco_stuff27"))  # doctest: +SKIP
        2175
    """

    def __init__(
        self,
        root: PathLike,
        *,
        name: str = "coco_object81",
        split: str = "val2017",
        limit: int | None = None,
        geometry: str | None = None,
        names: str | None = None,
    ) -> None:
        facts = find_facts(name, "images")
        split = {"val": "val2017", "train": "train2017"}.get(split, split)
        nested = ("coco", "COCO")
        folder = inside(inside(Path(root), nested, ("images",)), nested, ("annotations",))
        pictures = first_folder(folder, (f"images/{split}", split), facts.title, facts.layout)
        labels, source, ending = read_labels(name), "", ".png"
        self._painted: dict[str, Annotated] = {}
        if name == "coco_object81":
            masks = _object_masks(folder, split)
            labels, source, ending = _object_source(masks, labels)
            if ending == ".json":
                held = read_instances(masks, labels.classes)
                self._painted = {Path(one.name).stem: one for one in held}
        else:
            maps = (f"annotations/{split}", f"stuffthingmaps/{split}")
            masks = first_folder(folder, maps, facts.title, facts.layout)
        if name == "coco_stuff27":
            if split != "val2017":
                raise InputError(
                    "the images of coco_stuff27 are part of val2017", got=split, remedy="leave it"
                )
            stems = [f"{number:012d}" for number in coco_stuff27_images()]
        else:
            stems = list(self._painted) or list(by_stem(pictures))
        files = [
            ImageFiles(
                id=one,
                picture=pictures / f"{one}.jpg",
                mask=masks if one in self._painted else masks / f"{one}{ending}",
            )
            for one in first_items(stems, limit)
        ]
        usual = "diffseg" if name == "coco_stuff27" else "whole"
        super().__init__(
            name,
            split=split,
            labels=labels if names is None else labels.renamed(names),
            files=files,
            geometry=geometry or usual,
            label_source=source,
        )

    def read_values(self, held: ImageFiles) -> Integer[np.ndarray, "h w"]:
        if held.id not in self._painted:
            return super().read_values(held)
        try:
            return self._painted[held.id].paint()
        except InputError as error:
            got = f"{held.mask}, {held.picture.name}: {error.got}"
            raise InputError(error.expected, got=got, remedy=error.remedy) from error


def _object_masks(folder: Path, split: str) -> Path:
    """The folder of maps of COCO-Object, else the file of instances."""
    names = (f"annotations/{split}", f"stuffthingmaps/{split}", "coco_seg_anno")
    instances = folder / f"annotations/instances_{split}.json"
    for path in (*(folder / one for one in names), instances):
        if path.exists():
            return path
    raise missing(
        "COCO's maps or instances",
        f"no folder {folder / names[0]}, nor {', nor '.join(names[1:])}, nor the file {instances}",
        "extract the annotations there",
    )


def _object_source(masks: Path, labels: LabelSet) -> tuple[LabelSet, str, str]:
    """How the values of maps are read, whose maps they are, and how their names end."""
    if masks.suffix == ".json":
        source = f"{masks.name}, small instances over large ones; crowds are not scored"
        return labels, source, ".json"
    if masks.name == "coco_seg_anno":
        source = "coco_seg_anno, where 255 is not scored; not those of GroupViT"
        return labels, source, ".png"
    if next(masks.glob("*_instanceTrainIds.png"), None) is not None:
        return labels, "*_instanceTrainIds.png of GroupViT", "_instanceTrainIds.png"
    # 255 is what nobody labelled: background there.
    held = labels.with_values(read_facts("coco_object81")["stuffthingmaps"], {255: 0})
    return held, "stuffthingmaps by GroupViT's rule, nothing is left out", ".png"
