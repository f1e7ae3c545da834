"""Published image data sets, each read from the folders it comes in."""

from pathlib import Path

import numpy as np
from jaxtyping import Integer

from diffuseg.errors import InputError
from diffuseg.eval.dataset_facts import find_facts
from diffuseg.eval.image_files import ImageFiles, ImageSet, read_values
from diffuseg.eval.image_lists import (
    PathLike,
    first_folder,
    first_items,
    inside,
    listed_names,
    paired_files,
    values_by_name,
)
from diffuseg.eval.label_sets import LabelSet, numbered_labels, read_labels
from diffuseg.eval.video_files import FileSet, need_file, need_folder


class Voc(ImageSet):
    """PASCAL VOC 2012: `JPEGImages`, `SegmentationClass`, `ImageSets/Segmentation/SPLIT.txt`.

    Splits with "aug" in their name have their masks in `SegmentationClassAug`; a line of a list may
    also be a pair of paths.

    Args:
        root: The folder, or one above it: `VOCdevkit/VOC2012`.
        name: "voc21", or "voc20" without background.
        split: Which list.
        limit: Only the first so many images.
        names: Of whose prompts, see `LabelSet.renamed`.

    Raises:
        InputError: Something is missing.

    Example:
        >>> len(Voc("VOCdevkit"))  # doctest: +SKIP
        1449
    """

    def __init__(
        self,
        root: PathLike,
        *,
        name: str = "voc21",
        split: str = "val",
        limit: int | None = None,
        names: str | None = None,
    ) -> None:
        facts = find_facts(name, "images")
        folder = inside(Path(root), ("VOCdevkit/VOC2012", "VOC2012"), ("JPEGImages",))
        pictures = need_folder(folder / "JPEGImages", facts.title, facts.layout)
        kind = "SegmentationClassAug" if "aug" in split else "SegmentationClass"
        masks = need_folder(folder / kind, facts.title, facts.layout)
        stems = listed_names(folder, f"ImageSets/Segmentation/{split}.txt")
        files = [
            ImageFiles(id=one, picture=pictures / f"{one}.jpg", mask=masks / f"{one}.png")
            for one in first_items(stems, limit)
        ]
        super().__init__(name, split=split, labels=_labels(name, names), files=files)


class PascalContext(ImageSet):
    """PASCAL Context: VOC 2010's pictures with labels of (nearly) every pixel.

    Masks are PNG in `SegmentationClassContext`, or the release's own `trainval/*.mat`, whose 459
    labels are taken by the names in its `labels.txt`; all but 59 are background. Numbers in PNG are
    in VOC's order, or in that of `SegmentationClassContext/names.txt`: tools exist that write them
    in alphabetical order.

    Args:
        root: The folder, or one above it: `VOCdevkit/VOC2010`.
        name: "context60", or "context59" without background.
        split: "train" or "val".
        limit: Only the first so many images.
        names: Of whose prompts, see `LabelSet.renamed`.

    Raises:
        InputError: Something is missing, or a list of names lacks one of the classes.

    Example:
        >>> len(PascalContext("VOCdevkit"))  # doctest: +SKIP
        5105
    """

    def __init__(
        self,
        root: PathLike,
        *,
        name: str = "context60",
        split: str = "val",
        limit: int | None = None,
        names: str | None = None,
    ) -> None:
        facts = find_facts(name, "images")
        folder = inside(Path(root), ("VOCdevkit/VOC2010", "VOC2010"), ("JPEGImages",))
        pictures = need_folder(folder / "JPEGImages", facts.title, facts.layout)
        masks = first_folder(
            folder, ("SegmentationClassContext", "trainval"), facts.title, facts.layout
        )
        lists = [f"ImageSets/{kind}/{split}.txt" for kind in ("SegmentationContext", "Main")]
        chosen = next((one for one in lists if (folder / one).is_file()), lists[0])
        released = next(masks.glob("*.mat"), None) is not None
        suffix = ".mat" if released else ".png"
        files = [
            ImageFiles(id=one, picture=pictures / f"{one}.jpg", mask=masks / f"{one}{suffix}")
            for one in first_items(listed_names(folder, chosen), limit)
        ]
        labels = read_labels("context60")
        if released:
            beside = (masks / "labels.txt").is_file()
            listed = need_file(masks if beside else folder, "labels.txt")
            labels = labels.with_values(*values_by_name(listed, labels.classes, others=0))
        elif (masks / "names.txt").is_file():
            labels = labels.with_values(*values_by_name(masks / "names.txt", labels.classes))
        labels = labels.foreground() if name == "context59" else labels
        labels = labels if names is None else labels.renamed(names)
        super().__init__(name, split=split, labels=labels, files=files)

    def read_values(self, held: ImageFiles) -> Integer[np.ndarray, "h w"]:
        return read_values(held.mask) if held.mask.suffix != ".mat" else _read_matlab(held.mask)


class Cityscapes(ImageSet):
    """Cityscapes: `leftImg8bit/SPLIT/CITY`, `gtFine/SPLIT/CITY`, in 19 or 27 classes.

    Args:
        root: The folder, or the one above `cityscapes`.
        name: "cityscapes19" or "cityscapes27".
        split: "train" or "val".
        limit: Only the first so many images.
        geometry: What of a picture is scored; "diffseg" for the 27 classes, else "whole", unless
            you say otherwise.

    Raises:
        InputError: Something is missing.

    Example:
        >>> len(Cityscapes("cityscapes"))  # doctest: +SKIP
        500
    """

    def __init__(
        self,
        root: PathLike,
        *,
        name: str = "cityscapes19",
        split: str = "val",
        limit: int | None = None,
        geometry: str | None = None,
    ) -> None:
        facts = find_facts(name, "images")
        folder = inside(Path(root), ("cityscapes", "Cityscapes"), ("leftImg8bit",))
        pictures = need_folder(folder / "leftImg8bit" / split, facts.title, facts.layout)
        masks = need_folder(folder / "gtFine" / split, facts.title, facts.layout)
        ends = "_leftImg8bit.png", "_gtFine_labelIds.png"
        found = {
            path.relative_to(parent).as_posix().removesuffix(end)
            for parent, end in zip((pictures, masks), ends, strict=True)
            for path in parent.glob(f"*/*{end}")
        }
        files = [
            ImageFiles(
                id=one.rpartition("/")[2],
                picture=pictures / f"{one}{ends[0]}",
                mask=masks / f"{one}{ends[1]}",
            )
            for one in first_items(sorted(found), limit)
        ]
        usual = "diffseg" if name == "cityscapes27" else "whole"
        super().__init__(
            name, split=split, labels=read_labels(name), files=files, geometry=geometry or usual
        )


class Ade20k(ImageSet):
    """ADE20K: `images/SPLIT`, and masks with the same names in `annotations/SPLIT`.

    Args:
        root: The folder, or the one above `ADEChallengeData2016`.
        name: "ade150".
        split: "training" or "validation".
        limit: Only the first so many images.
        names: Of whose prompts, see `LabelSet.renamed`.

    Raises:
        InputError: Something is missing.

    Example:
        >>> len(Ade20k("ADEChallengeData2016"))  # doctest: +SKIP
        2000
    """

    def __init__(
        self,
        root: PathLike,
        *,
        name: str = "ade150",
        split: str = "validation",
        limit: int | None = None,
        names: str | None = None,
    ) -> None:
        facts = find_facts(name, "images")
        split = {"val": "validation", "train": "training"}.get(split, split)
        folder = inside(Path(root), ("ADEChallengeData2016",), ("images",))
        pictures, masks = (
            need_folder(folder / one / split, facts.title, facts.layout)
            for one in ("images", "annotations")
        )
        files = first_items(paired_files(pictures, masks), limit)
        super().__init__(name, split=split, labels=_labels(name, names), files=files)


class Frames(ImageSet):
    """The annotated frames of videos as images by themselves.

    Args:
        videos: The videos.
        labels: Their classes, and the labels frames may have.
        limit: Only the first so many frames.

    Raises:
        InputError: Files are missing.

    Example:
        >>> from diffuseg.eval.video_layouts import CamVid
        >>> Frames(CamVid("CamVid"), read_labels("camvid11")).ignore  # doctest: +SKIP
        11
    """

    def __init__(self, videos: FileSet, labels: LabelSet, *, limit: int | None = None) -> None:
        self._videos = videos
        files = [
            ImageFiles(id=picture.stem, picture=picture, mask=mask)
            for clip in videos.clips
            for picture, mask in zip(clip.pictures, clip.masks, strict=True)
            if mask is not None
        ]
        files = first_items(files, limit)
        super().__init__(
            videos.name, split=videos.split, labels=labels, files=files, note=videos.note
        )

    def read_values(self, held: ImageFiles) -> Integer[np.ndarray, "h w"]:
        return self._videos.read_truth(held.mask)


def camvid(
    root: PathLike, *, name: str = "camvid11", split: str = "val", limit: int | None = None
) -> Frames:
    """Return CamVid's frames as images, with 11 or all classes.

    Raises:
        InputError: Something is missing.

    Example:
        >>> len(camvid("CamVid"))  # doctest: +SKIP
        101
    """
    from diffuseg.eval.video_layouts import CamVid, CamVid32

    if name == "camvid11":
        return Frames(CamVid(root, split=split), read_labels(name), limit=limit)
    videos = CamVid32(root, split=split)
    return Frames(videos, numbered_labels(videos.classes, videos.ignore), limit=limit)


def _labels(name: str, names: str | None) -> LabelSet:
    labels = read_labels(name)
    return labels if names is None else labels.renamed(names)


def _read_matlab(path: Path) -> Integer[np.ndarray, "h w"]:
    from scipy.io import loadmat

    try:
        return loadmat(path, variable_names=["LabelMap"])["LabelMap"].astype(np.int32)
    # A damaged file can raise almost anything.
    except Exception as error:
        raise InputError(
            "the mask must be a MATLAB file with a LabelMap",
            got=f"{path}: {error!r}",
            remedy="extract it again",
        ) from error
