"""Published video data sets, each read from the folders it comes in."""

import json
import os
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
from jaxtyping import Integer, UInt8

from diffuseg.errors import InputError
from diffuseg.eval.label_sets import read_labels
from diffuseg.eval.video_datasets import VOID, Labels
from diffuseg.eval.video_files import (
    ClipFiles,
    FileSet,
    find_pictures,
    matched_clip,
    missing,
    need_clips,
    need_file,
    need_folder,
    read_lines,
    recorded_clips,
    recording_of,
)


class CamVid(FileSet):
    """CamVid with 11 classes, as the SegNet release lies: `val/`, `valannot/`, `val.txt`.

    The names of files say to which recording they belong; each is a video. Label 11 is ignored.
    These scores do not compare with those of the 32 original classes (`CamVid32`).

    Args:
        root: The folder.
        split: "train", "val" or "test".

    Raises:
        InputError: Something is missing.

    Example:
        >>> CamVid("CamVid", split="val")[0].fps  # doctest: +SKIP
        Fraction(15, 1)
    """

    name = "camvid11"
    classes = read_labels("camvid11").classes
    ignore = 11
    note = (
        "11 classes, unlabelled pixels left out: does not compare with scores of CamVid's 32 "
        "original classes, VidSeg's among them"
    )

    def __init__(self, root: str | os.PathLike[str], *, split: str = "val") -> None:
        layout = f"{split}/NAME.png, {split}annot/NAME.png and {split}.txt"
        folder = need_folder(Path(root), "CamVid in SegNet's release", layout)
        pictures = need_folder(folder / split, "CamVid in SegNet's release", layout)
        masks = need_folder(folder / f"{split}annot", "CamVid in SegNet's release", layout)
        listed = folder / f"{split}.txt"
        # The release lists pairs of paths; only their names are the same everywhere.
        names = (
            [Path(line.split()[0]).name for line in read_lines(listed)]
            if listed.is_file()
            else [file.name for file in find_pictures(pictures)]
        )
        self.split = split
        self._clips = recorded_clips(pictures, masks, {name: name for name in names})


class CamVid32(FileSet):
    """CamVid with its 32 original classes: `701_StillsRaw_full`, `LabeledApproved_full`.

    Labels are the colours of `label_colors.txt` in its order; "Void" is ignored.

    Args:
        root: The folder that has all three.
        split: Name of the list `SPLIT.txt` of frames, one name a line; "all": every frame.
        clips: Only recordings with these names, for instance ("0016E5",).

    Raises:
        InputError: Something is missing.

    Example:
        >>> CamVid32("CamVid", clips=("0016E5",)).classes[:2]  # doctest: +SKIP
        ('Animal', 'Archway')
    """

    name = "camvid32"
    note = (
        "the original classes but Void, as VidSeg's authors say they scored: does not compare with "
        "scores of the 11 classes"
    )

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        split: str = "all",
        clips: Sequence[str] | None = None,
    ) -> None:
        layout = "701_StillsRaw_full/, LabeledApproved_full/*_L.png and label_colors.txt"
        folder = need_folder(Path(root), "CamVid", layout)
        pictures = need_folder(folder / "701_StillsRaw_full", "CamVid", layout)
        masks = need_folder(folder / "LabeledApproved_full", "CamVid", layout)
        rows = [
            line.split(maxsplit=3) for line in read_lines(need_file(folder, "label_colors.txt"))
        ]
        named = [(row[3].strip(), tuple(int(part) for part in row[:3])) for row in rows]
        self.classes = tuple(name for name, _ in named if name != "Void")
        codes = _color_codes(np.array([color for _, color in named]))
        self._table = {
            int(code): VOID if name == "Void" else self.classes.index(name)
            for code, (name, _) in zip(codes, named, strict=True)
        }
        if split == "all":
            names = [file.name for file in find_pictures(pictures)]
        else:
            names = [
                Path(one).stem + ".png" for one in read_lines(need_file(folder, f"{split}.txt"))
            ]
        if clips is not None:
            names = [name for name in names if recording_of(name) in clips]
        self.split = split
        pairs = {name: f"{Path(name).stem}_L.png" for name in names}
        self._clips = recorded_clips(pictures, masks, pairs)

    def _labels(self, values: UInt8[np.ndarray, "h w *c"]) -> Labels:
        codes, places = np.unique(_color_codes(values), return_inverse=True)
        table = np.array([self._table.get(int(code), VOID) for code in codes], dtype=np.uint8)
        return table[places].reshape(values.shape[:2])


class Vspw(FileSet):
    """VSPW, 124 classes: `SPLIT.txt`, `data/VIDEO/origin/*.jpg`, `data/VIDEO/mask/*.png`.

    Values 1 to 124 become 0 to 123; 0 and 255 are ignored. Videos stand in the order of the list,
    by which "the first 30" are the published ones.

    Args:
        root: The folder, for instance `VSPW_480p`.
        split: "train", "val" or "test".

    Raises:
        InputError: Something is missing.

    Example:
        >>> Vspw("VSPW_480p")[0].fps  # doctest: +SKIP
        Fraction(15, 1)
    """

    name = "vspw124"

    def __init__(self, root: str | os.PathLike[str], *, split: str = "val") -> None:
        layout = "data/VIDEO/origin/*.jpg, data/VIDEO/mask/*.png and val.txt"
        folder = need_folder(Path(root), "VSPW", layout)
        data = need_folder(folder / "data", "VSPW", layout)
        self.split = split
        self.classes = _vspw_names(folder / "label_num_dic_final.json")
        self._clips = []
        for video in read_lines(need_file(folder, f"{split}.txt")):
            if video.startswith("."):
                continue
            pictures = need_folder(data / video / "origin", "VSPW", layout)
            masks = need_folder(data / video / "mask", "VSPW", layout)
            self._clips.append(matched_clip(video, pictures, masks, fps=Fraction(15), every=True))

    def _labels(self, values: UInt8[np.ndarray, "h w *c"]) -> Labels:
        # 0 - 1 is 255 in 8 bits: both kinds of void at once.
        return np.where(values == VOID, np.uint8(VOID), values - np.uint8(1))


class Davis(FileSet):
    """DAVIS 2016 or 2017: `JPEGImages/480p/SEQ`, `Annotations/480p/SEQ`, `ImageSets/YEAR/*.txt`.

    Labels are objects. In 2016 all of them are one.

    Args:
        root: The folder.
        year: 2016 or 2017.
        split: Which list.
        resolution: The folder's name.

    Raises:
        InputError: Something is missing, or another year.

    Example:
        >>> len(Davis("DAVIS"))  # doctest: +SKIP
        30
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        year: int = 2017,
        split: str = "val",
        resolution: str = "480p",
    ) -> None:
        if year not in (2016, 2017):
            raise InputError("DAVIS is of 2016 or 2017", got=year, remedy="use 2017")
        layout = (
            f"JPEGImages/{resolution}/, Annotations/{resolution}/, ImageSets/{year}/{split}.txt"
        )
        folder = need_folder(Path(root), "DAVIS", layout)
        pictures = need_folder(folder / "JPEGImages" / resolution, "DAVIS", layout)
        masks = need_folder(folder / "Annotations" / resolution, "DAVIS", layout)
        listed = folder / "ImageSets" / str(year) / f"{split}.txt"
        if year == 2016 and not listed.is_file():
            # The first release lists every picture: /JPEGImages/480p/SEQ/00000.jpg and its mask.
            old = folder / "ImageSets" / resolution / f"{split}.txt"
            if old.is_file():
                paths = [line.split()[0] for line in read_lines(old)]
                sequences = list(dict.fromkeys(Path(path).parent.name for path in paths))
            else:
                sequences = read_lines(need_file(folder, str(listed.relative_to(folder))))
        else:
            sequences = read_lines(need_file(folder, str(listed.relative_to(folder))))
        self.name = f"davis{year}"
        self.split = split
        self._merged = year == 2016
        self._clips = [
            matched_clip(
                one,
                need_folder(pictures / one, "DAVIS", layout),
                need_folder(masks / one, "DAVIS", layout),
                fps=Fraction(24),
                # The masks of test sets are held back but for the first.
                every=False,
            )
            for one in sequences
        ]

    def _labels(self, values: UInt8[np.ndarray, "h w *c"]) -> Labels:
        return (values > 0).astype(np.uint8) if self._merged else values


class Clvos(FileSet):
    """CLVOS23, long videos with few annotated frames: `JPEGImages/VIDEO`, `Annotations/VIDEO`.

    The release does not state a frame rate; 24 a second are assumed.

    Args:
        root: The folder.
        split: "all"; there is no other.

    Raises:
        InputError: Something is missing.

    Example:
        >>> len(Clvos("CLVOS23"))  # doctest: +SKIP
        9
    """

    name = "clvos23"

    def __init__(self, root: str | os.PathLike[str], *, split: str = "all") -> None:
        if split != "all":
            raise InputError('CLVOS has no splits but "all"', got=split, remedy='use "all"')
        self.split = split
        layout = "JPEGImages/VIDEO/*.jpg and Annotations/VIDEO/*.png"
        folder = need_folder(Path(root), "CLVOS", layout)
        pictures = need_folder(folder / "JPEGImages", "CLVOS", layout)
        masks = need_folder(folder / "Annotations", "CLVOS", layout)
        self._clips = [
            matched_clip(
                one.name,
                one,
                need_folder(masks / one.name, "CLVOS", layout),
                fps=Fraction(24),
                every=False,
            )
            for one in sorted(pictures.iterdir())
            if one.is_dir() and not one.name.startswith(".")
        ]
        need_clips(self._clips, folder, layout)


class Cityscapes(FileSet):
    """Cityscapes' sequences of 30 frames, the 20th of them annotated, 19 classes.

    `leftImg8bit_sequence/SPLIT/CITY/CITY_SEQ_FRAME_leftImg8bit.png` and
    `gtFine/SPLIT/CITY/CITY_SEQ_FRAME_gtFine_labelIds.png`. The anchor is the annotated frame.

    Args:
        root: The folder.
        split: "train" or "val".

    Raises:
        InputError: Something is missing.

    Example:
        >>> Cityscapes("cityscapes")[0].anchor  # doctest: +SKIP
        19
    """

    name = "cityscapes19"
    note = "scored is the one annotated frame of a sequence, which is the anchor too"
    classes = read_labels("cityscapes19").classes
    _before, _after = 19, 10

    def __init__(self, root: str | os.PathLike[str], *, split: str = "val") -> None:
        layout = f"leftImg8bit_sequence/{split}/CITY/ and gtFine/{split}/CITY/*_gtFine_labelIds.png"
        folder = need_folder(Path(root), "Cityscapes", layout)
        pictures = need_folder(folder / "leftImg8bit_sequence" / split, "Cityscapes", layout)
        masks = need_folder(folder / "gtFine" / split, "Cityscapes", layout)
        self.split = split
        self._clips = [
            self._clip(pictures, mask) for mask in sorted(masks.glob("*/*_gtFine_labelIds.png"))
        ]
        need_clips(self._clips, folder, layout)

    def _clip(self, pictures: Path, mask: Path) -> ClipFiles:
        name = mask.name.removesuffix("_gtFine_labelIds.png")
        sequence, number = name.rsplit("_", 1)
        files: list[Path] = []
        anchor = -1
        for frame in range(int(number) - self._before, int(number) + self._after + 1):
            file = f"{sequence}_{frame:0{len(number)}d}_leftImg8bit.png"
            path = pictures / mask.parent.name / file
            if path.is_file():
                anchor = len(files) if frame == int(number) else anchor
                files.append(path)
        if anchor < 0:
            raise missing(
                "Cityscapes",
                f"{name}_leftImg8bit.png in {pictures / mask.parent.name}",
                "download leftImg8bit_sequence, which has 30 frames for every annotated one",
            )
        held = tuple(mask if i == anchor else None for i in range(len(files)))
        return ClipFiles(
            id=name, pictures=tuple(files), masks=held, fps=Fraction(17), anchor=anchor
        )

    def _labels(self, values: UInt8[np.ndarray, "h w *c"]) -> Labels:
        table = np.full(256, VOID, dtype=np.uint8)
        known = read_labels(self.name).table
        table[: len(known)] = known
        return table[values]


def _vspw_names(path: Path) -> tuple[str, ...]:
    names = read_labels("vspw124").classes
    if not path.is_file():
        return names
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        by_number = {int(number): str(name) for name, number in held.items()}
    except (ValueError, AttributeError, TypeError) as error:
        raise InputError(
            "label_num_dic_final.json must map class names to numbers",
            got=f"{path}: {error}",
            remedy="take the file of the release, or remove it",
        ) from error
    return tuple(by_number.get(i, name) for i, name in enumerate(names, start=1))


def _color_codes(colors: Integer[np.ndarray, "*shape 3"]) -> Integer[np.ndarray, "*shape"]:
    return colors.astype(np.int64) @ np.array([1 << 16, 1 << 8, 1])
