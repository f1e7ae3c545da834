"""Tiny folders laid out exactly as the releases of image data sets are.

Every picture is 40 high and 50 wide; the first pixels of a mask hold the values given, the rest the
last of them.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import PIL.Image

from diffuseg.eval.label_sets import read_labels
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


def write_coco_instances(root: Path, *annotations: dict[str, object]) -> Path:
    """As the release is: no maps, one file of annotations, with categories numbered 1 to 90."""
    unused = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)
    numbers = [one for one in range(1, 91) if one not in unused]
    names = read_labels("coco_object81").classes[1:]
    things = [{"id": i, "name": name} for i, name in zip(numbers, names, strict=True)]
    pictures = [
        {"id": int(stem), "file_name": f"{stem}.jpg", "height": HW[0], "width": HW[1]}
        for stem in reversed(CURATED)  # the release has them in no order
    ]
    for stem in CURATED:
        write_picture(root / f"coco/val2017/{stem}.jpg")
    made = [
        {"id": i, "image_id": int(CURATED[0]), "iscrowd": 0, **one}
        for i, one in enumerate(annotations, start=1)
    ]
    path = root / "coco/annotations/instances_val2017.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    held = {"info": {}, "images": pictures, "annotations": made, "categories": things}
    path.write_text(json.dumps(held))
    return path


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


SUN_SCENES = (
    "kv2/kinect2data/000002_2014-05-26_14-23-37_260595134347_rgbf000103-resize",
    "kv1/NYUdata/NYU0001",
    "xtion/sun3ddata/brown_bm_1/brown_bm_1",
)
"""In the order of the toolbox: two of the test split, one to train on."""


def write_sun_release(root: Path, *, toolbox: bool = True) -> None:
    """Folders by sensor; with `toolbox` its file of all labels, in HDF5 as MATLAB 7.3 writes it."""
    from scipy.io import savemat

    for i, scene in enumerate(SUN_SCENES):
        write_picture(root / f"SUNRGBD/{scene}/image/{i:07d}.jpg")
        values = np.ones(HW, dtype=np.uint16)
        values.ravel()[:4] = [0, 2, 3, 1]
        names = ["wall", "floor_mat", "Cabinet " if i else "a plant"]
        # Cells in a row, or, of two of the sensors, cells of cells in a column.
        cells = np.empty((1, 3) if scene.startswith(("kv2", "xtion")) else (3, 1), dtype=object)
        for k, one in enumerate(names):
            held = np.empty((1, 1), dtype=object)
            held[0, 0] = one
            cells.ravel()[k] = one if cells.shape[0] == 1 else held
        savemat(root / f"SUNRGBD/{scene}/seg.mat", {"seglabel": values, "names": cells})
    folder = root / "SUNRGBDtoolbox"
    (folder / "traintestSUNRGBD").mkdir(parents=True)
    paths = [f"/n/fs/sun3d/data/SUNRGBD/{scene}" for scene in SUN_SCENES]
    splits = {"alltest": as_cells([paths[1], paths[0]]), "alltrain": as_cells(paths[2:])}
    savemat(folder / "traintestSUNRGBD/allsplit.mat", splits)
    if not toolbox:
        return
    import h5py

    (folder / "Metadata").mkdir()
    facts = np.zeros((1, 3), dtype=[("sequenceName", object), ("rgbpath", object)])
    for i, path in enumerate(paths):
        facts[0, i] = (f"SUNRGBD/{SUN_SCENES[i]}", f"{path}//image/{i:07d}.jpg")
    savemat(folder / "Metadata/SUNRGBDMeta.mat", {"SUNRGBDMeta": facts})
    kind = h5py.special_dtype(ref=h5py.Reference)
    path = folder / "Metadata/SUNRGBD2Dseg.mat"
    with h5py.File(path, "w", userblock_size=512) as held:
        struct, places = held.create_group("SUNRGBD2Dseg"), held.create_group("#refs#")
        table = struct.create_dataset("seglabel", (3, 1), dtype=kind)
        for i in range(3):
            values = np.full(HW, i + 1, dtype=np.uint8)
            values.ravel()[:3] = [0, 1, 37]
            # MATLAB goes down the columns.
            table[i, 0] = places.create_dataset(f"place{i}", data=values.T).ref


def as_cells(texts: Sequence[str]) -> np.ndarray:
    cells = np.empty((1, len(texts)), dtype=object)
    cells[0] = list(texts)
    return cells


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
            lines = np.zeros(HW, dtype=np.uint8)
            lines[:, 24] |= np.uint8(i == 0)
            lines[19] |= np.uint8(i == 1)
            cells[0, i] = {"Segmentation": one, "Boundaries": lines}
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
