"""Tiny folders laid out exactly as the releases of image data sets are.

Every picture is 40 high and 50 wide; the first pixels of a mask hold the values given, the rest the
last of them.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import PIL.Image

from diffuseg.palettes import voc_palette

HW = (40, 50)
CURATED = ("000000000139", "000000000724")


def write_picture(path: Path, hw: tuple[int, int] = HW) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn = np.random.default_rng(len(path.name)).integers(0, 256, (*hw, 3), dtype=np.uint8)
    PIL.Image.fromarray(drawn).save(path)


def write_mask(
    path: Path, values: Sequence[int], *, palette: bool = False, hw: tuple[int, int] = HW
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = np.uint16 if max(values) > 255 else np.uint8
    held = np.full(hw, values[-1], dtype=kind)
    held.ravel()[: len(values)] = values
    made = PIL.Image.fromarray(held)
    if palette:
        made.putpalette(voc_palette(256).tobytes())
    made.save(path)


def write_lines(path: Path, *rows: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{row}\n" for row in rows))


def write_voc(root: Path, nested: str = "VOCdevkit/VOC2012") -> None:
    folder = root / nested
    for name in ("2007_000033", "2007_000042"):
        write_picture(folder / f"JPEGImages/{name}.jpg")
        write_mask(folder / f"SegmentationClass/{name}.png", [0, 7, 20, 255], palette=True)
    write_picture(folder / "JPEGImages/2007_000032.jpg")
    write_mask(folder / "SegmentationClassAug/2007_000032.png", [0, 1, 15])
    lists = folder / "ImageSets/Segmentation"
    write_lines(lists / "val.txt", "2007_000042", "2007_000033")
    write_lines(
        lists / "train_aug.txt", "/JPEGImages/2007_000032.jpg /SegmentationClassAug/2007_000032.png"
    )


def write_context(root: Path) -> None:
    folder = root / "VOCdevkit/VOC2010"
    write_picture(folder / "JPEGImages/2008_000002.jpg")
    write_mask(folder / "SegmentationClassContext/2008_000002.png", [0, 1, 2, 59])
    write_lines(folder / "ImageSets/SegmentationContext/val.txt", "2008_000002")


def write_context_release(root: Path, names: Sequence[str]) -> None:
    """The release's own files: 459 labels by name, of which `names` is a part."""
    from scipy.io import savemat

    folder = root / "VOC2010"
    write_picture(folder / "JPEGImages/2008_000002.jpg")
    rows = ["accordion", *names, *(f"other {i}" for i in range(458 - len(names)))]
    values = np.full(HW, 1, dtype=np.uint16)
    values.ravel()[:3] = [rows.index("aeroplane") + 1, rows.index("wood") + 1, 459]
    (folder / "trainval").mkdir()
    savemat(folder / "trainval/2008_000002.mat", {"LabelMap": values})
    write_lines(folder / "labels.txt", *(f"{i}: {one}" for i, one in enumerate(rows, start=1)))
    write_lines(folder / "ImageSets/Main/val.txt", "2008_000002")


def write_coco(root: Path) -> None:
    for stem in CURATED:
        write_picture(root / f"coco/images/val2017/{stem}.jpg")
        write_mask(root / f"coco/annotations/val2017/{stem}.png", [0, 12, 91, 181, 11, 255])


def write_coco_objects(root: Path) -> None:
    write_coco(root)
    for stem in CURATED:
        path = root / f"coco/annotations/val2017/{stem}_instanceTrainIds.png"
        write_mask(path, [0, 1, 80])


def write_cityscapes(root: Path) -> None:
    for stem in ("frankfurt_000000_000294", "munster_000000_000019"):
        city = stem.partition("_")[0]
        write_picture(root / f"leftImg8bit/val/{city}/{stem}_leftImg8bit.png")
        path = root / f"gtFine/val/{city}/{stem}_gtFine_labelIds.png"
        write_mask(path, [7, 33, 6, 9, 0])


def write_ade(root: Path) -> None:
    for i in (1, 2):
        stem = f"ADE_val_{i:08d}"
        write_picture(root / f"ADEChallengeData2016/images/validation/{stem}.jpg")
        write_mask(root / f"ADEChallengeData2016/annotations/validation/{stem}.png", [0, 1, 150])


def write_sun(root: Path) -> None:
    write_picture(root / "image/test/img-000001.jpg")
    write_mask(root / "label37/test/img-000001.png", [0, 1, 37])


def write_camvid(root: Path) -> None:
    names = ("0016E5_07959.png", "0016E5_07961.png")
    for name in names:
        write_picture(root / "val" / name)
        write_mask(root / "valannot" / name, [0, 10, 11])
    write_lines(root / "val.txt", *(f"/SegNet/CamVid/val/{one} /SegNet/x/{one}" for one in names))


def write_camvid32(root: Path) -> None:
    write_picture(root / "701_StillsRaw_full/0016E5_07959.png")
    colors = np.zeros((*HW, 3), dtype=np.uint8)
    colors[0, 0], colors[0, 1] = (64, 128, 64), (192, 0, 128)
    path = root / "LabeledApproved_full/0016E5_07959_L.png"
    path.parent.mkdir()
    PIL.Image.fromarray(colors).save(path)
    write_lines(
        root / "label_colors.txt", "64 128 64\tAnimal", "192 0 128\tArchway", "0 0 0\t\tVoid"
    )


def write_own(root: Path) -> None:
    for stem, values in (("one", [0, 1, 2, 255]), ("two", [2, 1])):
        write_picture(root / f"images/{stem}.jpg")
        write_mask(root / f"masks/{stem}.png", values, palette=True)
    write_lines(root / "names.txt", "background", "car", "tree")


def write_bsds(root: Path, *, matlab: bool = True) -> None:
    from scipy.io import savemat

    first, second = np.ones(HW, dtype=np.uint16), np.ones(HW, dtype=np.uint16)
    first[:, 25:] = 2
    second[20:, :] = 2
    if matlab:
        folder = root / "BSDS500/data"
        write_picture(folder / "images/test/100007.jpg")
        (folder / "groundTruth/test").mkdir(parents=True)
        cells = np.empty((1, 2), dtype=object)
        for i, one in enumerate((first, second)):
            cells[0, i] = {"Segmentation": one, "Boundaries": np.zeros(HW, dtype=np.uint8)}
        savemat(folder / "groundTruth/test/100007.mat", {"groundTruth": cells})
        return
    write_picture(root / "images/test/100007.jpg")
    (root / "gt/test").mkdir(parents=True)
    for i, one in enumerate((first, second)):
        PIL.Image.fromarray(one).save(root / f"gt/test/100007_{i}.png")


MAKERS = {
    "voc21": write_voc,
    "voc20": write_voc,
    "context60": write_context,
    "context59": write_context,
    "coco_object81": write_coco_objects,
    "coco_stuff171": write_coco,
    "coco_stuff27": write_coco,
    "cityscapes19": write_cityscapes,
    "cityscapes27": write_cityscapes,
    "ade150": write_ade,
    "sunrgbd37": write_sun,
    "camvid11": write_camvid,
    "camvid32": write_camvid32,
    "folder": write_own,
    "bsds500": write_bsds,
}
