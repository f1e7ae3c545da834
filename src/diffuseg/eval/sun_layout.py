"""SUN RGB-D, read from its folders by sensor with MATLAB's labels, or from its flat export."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int32, Integer

from diffuseg.errors import InputError, MissingExtra
from diffuseg.eval.dataset_facts import DatasetFacts, find_facts
from diffuseg.eval.image_files import ImageFiles, ImageSet
from diffuseg.eval.image_lists import PathLike, first_items, inside, paired_files
from diffuseg.eval.label_sets import read_labels
from diffuseg.eval.video_files import missing, need_file, need_folder

SENSORS = ("kv1", "kv2", "realsense", "xtion")
"""The folders of the release, one a camera."""

_SPLITS = "traintestSUNRGBD/allsplit.mat"
_ALL_LABELS, _ALL_FACTS = "Metadata/SUNRGBD2Dseg.mat", "Metadata/SUNRGBDMeta.mat"


class SunRgbd(ImageSet):
    """SUN RGB-D in 37 classes, as it is released or as it is passed on.

    As released: `SUNRGBD/SENSOR/...` with an `image` folder a scene, and `SUNRGBDtoolbox` beside
    it, whose `allsplit.mat` has the splits. Labels are those of the toolbox, `SUNRGBD2Dseg.mat`
    (HDF5, read one image at a time by h5py); where that file is not there, `seg.mat` of every
    scene, of whose names those of the 37 classes are taken. As passed on: `image/SPLIT` and
    `label37/SPLIT`. `label_source` says which.

    Args:
        root: The folder that has `SUNRGBD` or `image`, or `SUNRGBD` itself.
        name: "sunrgbd37".
        split: "train" or "test".
        limit: Only the first so many images.
        names: Of whose prompts, see `LabelSet.renamed`.

    Raises:
        InputError: Something is missing.
        MissingExtra: The toolbox's labels are there, but h5py is not.

    Example:
        >>> len(SunRgbd("sun"))  # doctest: +SKIP
        5050
    """

    def __init__(
        self,
        root: PathLike,
        *,
        name: str = "sunrgbd37",
        split: str = "test",
        limit: int | None = None,
        names: str | None = None,
    ) -> None:
        facts = find_facts(name, "images")
        self._places: dict[str, int] = {}
        labels = read_labels(name)
        self._classes = labels.classes
        given = Path(root)
        scenes = next((one for one in (given / "SUNRGBD", given) if _has_sensors(one)), None)
        if scenes is None:
            files, source = _flat_files(given, split, facts), "label37, the flat export"
        else:
            toolbox = need_folder(scenes.parent / "SUNRGBDtoolbox", facts.title, facts.layout)
            listed = _split_folders(need_file(toolbox, _SPLITS), split)
            if (toolbox / _ALL_LABELS).is_file():
                files = self._toolbox_files(scenes, toolbox, listed)
                source = "SUNRGBD2Dseg.mat of the toolbox"
            else:
                files = [_scene_files(scenes, one) for one in listed]
                source = (
                    "seg.mat of every scene: names that are one of the 37 classes, all others are "
                    "not scored; not SUNRGBD2Dseg.mat of the toolbox"
                )
        super().__init__(
            name,
            split=split,
            labels=labels if names is None else labels.renamed(names),
            files=first_items(files, limit),
            label_source=source,
        )

    def _toolbox_files(
        self, scenes: Path, toolbox: Path, listed: Sequence[str]
    ) -> list[ImageFiles]:
        """The images of a split, in the order of the toolbox, and where their labels are."""
        if importlib.util.find_spec("h5py") is None:
            raise MissingExtra("h5py", extra="sunrgbd", purpose=f"reading {toolbox / _ALL_LABELS}")
        facts = need_file(toolbox, _ALL_FACTS)
        pictures = [_inside_release(one) for one in _texts(facts, "SUNRGBDMeta", "rgbpath")]
        owners = [one.rpartition("/image/")[0] for one in pictures]
        self._places = {owner: i for i, owner in enumerate(owners)}
        unknown = [one for one in listed if one not in self._places]
        if unknown:
            raise missing(
                "every scene of a split in the toolbox",
                f"{facts} without {len(unknown)} of {len(listed)}, the first {unknown[0]}",
                "take all files of one release",
            )
        chosen = set(listed)
        return [
            ImageFiles(id=owner, picture=scenes / picture, mask=toolbox / _ALL_LABELS)
            for owner, picture in zip(owners, pictures, strict=True)
            if owner in chosen
        ]

    def read_values(self, held: ImageFiles) -> Integer[np.ndarray, "h w"]:
        if held.mask.suffix != ".mat":
            return super().read_values(held)
        # A damaged file can raise almost anything.
        try:
            if held.id in self._places:
                return _toolbox_labels(held.mask, self._places[held.id])
            return _scene_labels(held.mask, self._classes)
        except Exception as error:
            raise InputError(
                "the mask must be a MATLAB file with seglabel",
                got=f"{held.mask}, {held.id}: {error!r}",
                remedy="extract it again",
            ) from error


def _has_sensors(folder: Path) -> bool:
    return any((folder / one).is_dir() for one in SENSORS)


def _flat_files(root: Path, split: str, facts: DatasetFacts) -> list[ImageFiles]:
    folder = inside(root, ("SUNRGBD",), ("image",))
    if not (folder / "image").is_dir():
        raise missing(
            f"{facts.title} as published ({facts.layout})",
            f"no folder {folder / 'image' / split}, nor {root / 'SUNRGBD'} with {SENSORS[0]}, …",
            "check the path",
        )
    pictures, masks = (
        need_folder(folder / one / split, facts.title, facts.layout) for one in ("image", "label37")
    )
    return paired_files(pictures, masks)


def _split_folders(path: Path, split: str) -> list[str]:
    """The folders of a split below `SUNRGBD`, in the order of the release."""
    if split not in ("train", "test"):
        raise InputError(
            "the splits of SUN RGB-D are train and test", got=split, remedy="use one of these"
        )
    return [_inside_release(one) for one in _texts(path, f"all{split}")]


def _scene_files(scenes: Path, folder: str) -> ImageFiles:
    """A scene has one picture, whose name only its folder knows."""
    pictures = sorted((scenes / folder / "image").glob("*.jpg"))
    picture = pictures[0] if pictures else scenes / folder / "image/*.jpg"
    return ImageFiles(id=folder, picture=picture, mask=scenes / folder / "seg.mat")


def _inside_release(text: str) -> str:
    """A path of the machine the release was made on, from `SUNRGBD` on."""
    return "/".join(one for one in text.rpartition("SUNRGBD/")[2].split("/") if one)


def _texts(path: Path, variable: str, field: str | None = None) -> list[str]:
    """Texts of a row of cells, or of a field of a row of structs."""
    from scipy.io import loadmat

    try:
        held = loadmat(path, variable_names=[variable])[variable].ravel()
        return [_text(one) for one in (held if field is None else held[field])]
    # A damaged file can raise almost anything.
    except Exception as error:
        raise InputError(
            f"the file must be a MATLAB file with {variable}",
            got=f"{path}: {error!r}",
            remedy="extract it again",
        ) from error


def _text(cell: Any) -> str:
    """The text in a cell, which some of the files have in a cell again."""
    while isinstance(cell, np.ndarray):
        cell = cell.ravel()[0] if cell.size else ""
    return str(cell)


def _toolbox_labels(path: Path, place: int) -> Integer[np.ndarray, "h w"]:
    """One image's labels; the whole file would need 64 GB."""
    import h5py

    with h5py.File(path) as held:
        # A row of structs is stored as one table of references a field, arrays turned over.
        reference = np.ravel(held["SUNRGBD2Dseg"]["seglabel"])[place]  # type: ignore[index]
        return np.asarray(held[reference]).T.astype(np.int32)


def _scene_labels(path: Path, classes: Sequence[str]) -> Int32[np.ndarray, "h w"]:
    """The values of `seg.mat`, numbers of the names beside them, as those of the 37 classes."""
    from scipy.io import loadmat

    held = loadmat(path, variable_names=["seglabel", "names"])
    names = [_text(one).strip().lower().replace("_", " ") for one in held["names"].ravel()]
    known = [classes.index(one) + 1 if one in classes else 0 for one in names]
    values = np.array([0, *known], dtype=np.int32)
    return values[held["seglabel"].astype(np.int64)]
