"""Image data sets read from tiny folders laid out exactly as the releases are."""

import numpy as np
import PIL.Image
import pytest

from diffuseg.errors import InputError
from diffuseg.eval.coco_layout import Coco
from diffuseg.eval.dataset_facts import find_facts, list_facts
from diffuseg.eval.dataset_inspection import inspect_folder
from diffuseg.eval.datasets import IMAGE_DATASETS, Dataset, Sample, SceneSet, open_dataset
from diffuseg.eval.image_checks import check_dataset
from diffuseg.eval.image_files import ImageSet, ranges, read_picture
from diffuseg.eval.label_sets import UNKNOWN, read_labels
from diffuseg.eval.metrics import ConfusionMatrix
from diffuseg.eval.region_sets import open_regions
from diffuseg.eval.video_datasets import VIDEO_DATASETS
from diffuseg.image import Image
from support.image_folders import (
    HW,
    MAKERS,
    write_bsds,
    write_coco,
    write_context,
    write_context_release,
    write_lines,
    write_mask,
    write_own,
    write_picture,
)

FILES = [name for name in IMAGE_DATASETS if not name.startswith("scenes")]
# What the first pixels of the first mask are read as.
FIRST = {
    "voc21": [0, 7, 20, 255],
    "voc20": [255, 6, 19, 255],
    "context60": [0, 1, 2, 59],
    "context59": [255, 0, 1, 58],
    "coco_object81": [0, 1, 80],
    "coco_stuff171": [0, 11, 80, 170, 255, 255],
    "cityscapes19": [0, 18, 255, 255, 255],
    "ade150": [255, 0, 149],
    "sunrgbd37": [255, 0, 36],
    "camvid11": [0, 10, 11],
    "camvid32": [0, 1, 255],
    "folder": [0, 1, 2, 255],
}


def opened(name, root, **options):
    MAKERS[name](root)
    if name == "coco_stuff27":
        options.setdefault("limit", 2)  # of the images of the published list
    return open_dataset(name, root=root, **options)


def first_labels(data, n, index=0):
    return data[index].truth.ravel()[:n].tolist()


@pytest.mark.parametrize("name", FILES)
def test_every_set_is_one(name, tmp_path):
    data = opened(name, tmp_path)
    assert isinstance(data, Dataset)
    assert isinstance(data, ImageSet)
    facts = find_facts(name, "images")
    assert (data.name, data.split, data.seed) == (name, facts.split, None)
    if name not in ("folder", "camvid32"):
        assert len(data.classes) == facts.classes == len(data.palette) == len(set(data.classes))
    for i in range(len(data)):
        sample = data[i]
        assert sample.truth.shape == sample.image.hw
        known = set(np.unique(sample.truth).tolist()) - {data.ignore}
        assert known <= set(range(len(data.classes)))
    with pytest.raises(IndexError):
        data[len(data)]
    assert len(open_dataset(name, root=tmp_path, limit=1)) == 1
    assert all(set(names) <= set(data.classes) for names in data.groups.values())


@pytest.mark.parametrize("name", FIRST)
def test_values_become_labels(name, tmp_path):
    data = opened(name, tmp_path)
    assert first_labels(data, len(FIRST[name])) == FIRST[name]


@pytest.mark.parametrize("name", FILES)
def test_a_perfect_prediction_is_perfect_by_every_rule(name, tmp_path):
    options = {"geometry": "whole"} if name.endswith("27") else {}
    data = opened(name, tmp_path, **options)
    matrix = ConfusionMatrix(len(data.classes), ignore=data.ignore)
    for i in range(len(data)):
        truth = data[i].truth
        matrix.update(truth, np.where(truth == data.ignore, 0, truth))
    present = np.flatnonzero(matrix.truth).tolist()
    rules = ("gt_present", "all_eps", "all_zero")
    assert matrix.accuracy() == 1
    assert [matrix.miou(rule, classes=present) for rule in rules] == pytest.approx([1, 1, 1])
    before = matrix.counts.copy()
    matrix.update(np.full(HW, data.ignore), np.zeros(HW, dtype=int))
    assert np.array_equal(matrix.counts, before)


def test_lists_give_the_order_and_the_splits(tmp_path):
    data = opened("voc21", tmp_path)
    assert [data[i].id for i in range(2)] == ["2007_000042", "2007_000033"]
    for root in (tmp_path, tmp_path / "VOCdevkit", tmp_path / "VOCdevkit/VOC2012"):
        assert len(open_dataset("voc12", root=root)) == 2
    more = open_dataset("voc21", root=tmp_path, split="train_aug")
    assert [one.mask.parent.name for one in more.files] == ["SegmentationClassAug"]
    assert first_labels(more, 3) == [0, 1, 15]
    with pytest.raises(InputError, match=r"(?s)test.txt of the.*there are train_aug.txt, val"):
        open_dataset("voc21", root=tmp_path, split="test")


def test_names_of_prompts(tmp_path):
    data = opened("voc21", tmp_path, names="ovdiff")
    assert (data.classes[1], data.classes[11]) == ("airplane", "table")
    assert "airplane" in data.groups["foreground"]
    with pytest.raises(InputError, match="diffsegmenter, ovdiff, plain"):
        open_dataset("voc21", root=tmp_path, names="stego")
    MAKERS["cityscapes19"](tmp_path)
    with pytest.raises(InputError, match="but one choice of names"):
        open_dataset("cityscapes19", root=tmp_path, names="plain")


def test_context_by_name_where_the_order_is_another(tmp_path):
    write_context(tmp_path)
    masks = tmp_path / "VOCdevkit/VOC2010/SegmentationClassContext"
    names = [*read_labels("context60").classes]
    names[1], names[2] = "bag", "airplane"
    names[names.index("bag", 2)] = "bicycle"
    write_lines(masks / "names.txt", *names)
    data = open_dataset("context60", root=tmp_path)
    assert [data.classes[i] for i in first_labels(data, 4)] == [
        *("background", "bag"),
        *("aeroplane", "wood"),
    ]
    assert first_labels(open_dataset("context59", root=tmp_path), 3) == [
        *(255, data.classes.index("bag") - 1),
        0,
    ]
    write_lines(masks / "names.txt", *names[:-1])
    with pytest.raises(InputError, match="without wood"):
        open_dataset("context60", root=tmp_path)
    write_lines(masks / "names.txt", *names, "sofa bed")
    with pytest.raises(InputError, match="with sofa bed"):
        open_dataset("context60", root=tmp_path)


def test_context_as_it_is_released(tmp_path):
    classes = read_labels("context60").classes
    write_context_release(tmp_path, sorted(classes[1:]))
    data = open_dataset("context60", root=tmp_path)
    assert first_labels(data, 4) == [1, 59, 0, 0]
    assert check_dataset(data).images[0] == 1
    (tmp_path / "VOC2010/trainval/2008_000002.mat").write_bytes(b"no")
    with pytest.raises(InputError, match="LabelMap"):
        data[0]


def test_coco_objects_from_three_sources(tmp_path):
    write_coco(tmp_path)
    data = open_dataset("coco-object", root=tmp_path)
    # person, bicycle's number is 2; all stuff, street sign and what nobody labelled: background.
    assert first_labels(data, 6) == [1, 12, 0, 0, 0, 0]
    assert "nothing is left out" in data.label_source
    for path in (tmp_path / "coco/annotations/val2017").iterdir():
        write_mask(tmp_path / "coco/coco_seg_anno" / path.name, [0, 80, 255])
    (tmp_path / "coco/annotations").rename(tmp_path / "elsewhere")
    data = open_dataset("coco_object81", root=tmp_path)
    assert first_labels(data, 3) == [0, 80, 255]
    assert "coco_seg_anno" in data.label_source


def test_the_27_classes_of_coco(tmp_path, monkeypatch):
    write_coco(tmp_path)
    with pytest.raises(InputError, match="2173 of 2175 pictures missing"):
        open_dataset("coco_stuff27", root=tmp_path)
    for split in ("train2017", "train"):
        (tmp_path / "coco/images/train2017").mkdir(exist_ok=True)
        (tmp_path / "coco/annotations/train2017").mkdir(exist_ok=True)
        with pytest.raises(InputError, match="part of val2017"):
            open_dataset("coco_stuff27", root=tmp_path, split=split)
    square = open_dataset("coco_stuff27", root=tmp_path, limit=2)
    assert square[0].truth.shape == square[0].image.hw == (512, 512)
    assert "512x512" in square.geometry
    whole = Coco(tmp_path, name="coco_stuff27", limit=2, geometry="whole")
    assert first_labels(whole, 6) == [9, 8, 17, 24, 8, -1]
    assert whole.ignore == -1


@pytest.mark.parametrize(("geometry", "side"), [("diffseg", 512), ("stego", 320)])
def test_squares_are_cut_alike_out_of_picture_and_labels(tmp_path, geometry, side):
    hw = (160, 321)
    for i in range(2):
        stem = f"munster_00000{i}_000019"
        path = tmp_path / f"leftImg8bit/val/munster/{stem}_leftImg8bit.png"
        write_picture(path, hw)
        drawn = np.zeros((*hw, 3), dtype=np.uint8)
        drawn[:, 200:] = 200
        PIL.Image.fromarray(drawn).save(path)
        labels = np.where(drawn[..., 0] > 0, 8, 7).astype(np.uint8)
        mask = tmp_path / f"gtFine/val/munster/{stem}_gtFine_labelIds.png"
        mask.parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(labels).save(mask)
    sample = open_dataset("cityscapes27", root=tmp_path, geometry=geometry)[0]
    assert sample.truth.shape == sample.image.hw == (side, side)
    # The centre square is columns 80 to 240: the right quarter of it is class 1.
    assert np.mean(sample.truth == 1) == pytest.approx(0.25, abs=0.01)
    agree = (sample.image.pixels[..., 0] > 100) == (sample.truth == 1)
    assert agree.mean() > 0.995
    with pytest.raises(InputError, match="whole, diffseg, stego"):
        open_dataset("cityscapes27", root=tmp_path, geometry="square")


def test_cityscapes_with_27_classes_keeps_what_19_drop(tmp_path):
    data = opened("cityscapes27", tmp_path, geometry="whole")
    assert first_labels(data, 5) == [0, 26, -1, 2, -1]
    assert [data[i].id for i in range(2)] == ["frankfurt_000000_000294", "munster_000000_000019"]


def test_a_folder_with_splits(tmp_path):
    write_own(tmp_path)
    write_lines(tmp_path / "val.txt", "two.jpg")
    assert [one.id for one in open_dataset("folder", root=tmp_path, split="val").files] == ["two"]
    for kind in ("images", "masks"):
        (tmp_path / kind / "train").mkdir()
    write_picture(tmp_path / "images/train/a.png")
    write_mask(tmp_path / "masks/train/a.png", [1])
    assert len(open_dataset("folder", root=tmp_path, split="train")) == 1
    with pytest.raises(InputError, match=r"test\.txt"):
        open_dataset("folder", root=tmp_path, split="test")


def test_a_folder_with_more_than_255_classes(tmp_path):
    write_picture(tmp_path / "images/a.jpg")
    write_mask(tmp_path / "masks/a.png", [0, 255, 299, 65535])
    write_lines(tmp_path / "names.txt", *(f"class {i}" for i in range(300)))
    data = open_dataset("folder", root=tmp_path)
    assert (first_labels(data, 4), data.ignore) == ([0, 255, 299, 65535], 65535)


@pytest.mark.parametrize(
    ("rows", "why"),
    [
        (["sky", "", "sea"], "line 2 is 'empty'"),
        (["sky", "sea", "sky"], "line 3 is 'sky'"),
        ([], "no names"),
    ],
)
def test_names_that_are_none(tmp_path, rows, why):
    write_own(tmp_path)
    write_lines(tmp_path / "names.txt", *rows)
    with pytest.raises(InputError, match=why):
        open_dataset("folder", root=tmp_path)


def test_names_in_another_encoding(tmp_path):
    write_own(tmp_path)
    (tmp_path / "names.txt").write_bytes("Bäume\n".encode("latin-1"))
    with pytest.raises(InputError, match="UTF-8"):
        open_dataset("folder", root=tmp_path)


@pytest.mark.parametrize(
    ("name", "gone", "why"),
    [
        ("voc21", "VOCdevkit/VOC2012/SegmentationClass", "no folder .*SegmentationClass"),
        (
            "voc21",
            "VOCdevkit/VOC2012/JPEGImages/2007_000033.jpg",
            "1 of 2 pictures missing, the first .*2007_000033.jpg",
        ),
        ("voc21", "VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt", "val.txt of the release"),
        (
            "context60",
            "VOCdevkit/VOC2010/SegmentationClassContext",
            "no folder .*SegmentationClassContext, nor trainval",
        ),
        ("coco_stuff171", "coco/annotations/val2017", "no folder .*nor stuffthingmaps/val2017"),
        (
            "coco_stuff171",
            "coco/annotations/val2017/000000000139.png",
            "1 of 2 masks missing, the first .*000000000139.png",
        ),
        (
            "cityscapes19",
            "leftImg8bit/val/munster/munster_000000_000019_leftImg8bit.png",
            "1 of 2 pictures missing, the first .*munster_000000_000019_leftImg8bit.png",
        ),
        ("ade150", "ADEChallengeData2016/images/validation", "no folder .*images/validation"),
        (
            "ade150",
            "ADEChallengeData2016/annotations/validation/ADE_val_00000002.png",
            "1 of 2 masks missing, the first .*ADE_val_00000002.png",
        ),
        ("sunrgbd37", "label37/test", "no folder .*label37/test"),
        ("camvid11", "valannot", "no folder .*valannot"),
        ("folder", "names.txt", "names.txt"),
        ("folder", "masks", "no folder .*masks, nor SegmentationClass"),
        ("folder", "masks/one.png", "1 of 2 masks missing, the first .*one.png"),
        ("folder", "images/one.jpg", "1 of 2 pictures missing, the first .*one.jpg"),
        ("bsds500", "BSDS500/data/groundTruth/test/100007.mat", "none for 1 of 1, the first 1000"),
    ],
)
def test_what_is_missing_is_said(tmp_path, name, gone, why):
    MAKERS[name](tmp_path)
    (tmp_path / gone).rename(tmp_path / "elsewhere")
    open_set = open_regions if name == "bsds500" else open_dataset
    with pytest.raises(InputError, match=why):
        open_set(name, root=tmp_path)
    assert not inspect_folder(name, tmp_path).complete


@pytest.mark.parametrize(
    ("name", "mask", "values", "why"),
    [
        ("voc21", "VOCdevkit/VOC2012/SegmentationClass/2007_000042.png", [21, 22, 0], "21, 22"),
        ("context60", "VOCdevkit/VOC2010/SegmentationClassContext/2008_000002.png", [255], "255"),
        ("coco_stuff171", "coco/annotations/val2017/000000000139.png", [182], "182"),
        (
            "cityscapes19",
            "gtFine/val/frankfurt/frankfurt_000000_000294_gtFine_labelIds.png",
            [34],
            "34",
        ),
        # Already reduced by other tools: 255 is what they leave out.
        (
            "ade150",
            "ADEChallengeData2016/annotations/validation/ADE_val_00000001.png",
            [255],
            "255",
        ),
        ("camvid11", "valannot/0016E5_07959.png", [12], "12"),
        ("folder", "masks/one.png", [3, 4, 5, 6, 7, 8], "3, 4, 5, 6, 7 and 1 more"),
    ],
)
def test_unknown_values_are_named(tmp_path, name, mask, values, why):
    MAKERS[name](tmp_path)
    write_mask(tmp_path / mask, values)
    data = open_dataset(name, root=tmp_path)
    with pytest.raises(InputError, match=f"{mask.rpartition('/')[2]}: unknown values {why}"):
        data[0]
    with pytest.raises(InputError, match=f"1 of {len(data)} are not right: .*unknown values {why}"):
        check_dataset(data)


def test_sizes_that_differ(tmp_path):
    write_own(tmp_path)
    write_mask(tmp_path / "masks/two.png", [1], hw=(50, 40))
    data = open_dataset("folder", root=tmp_path)
    with pytest.raises(InputError, match=r"two.jpg is 40x50, .*two.png is 50x40"):
        data[1]
    with pytest.raises(InputError, match=r"1 of 2 are not right: .*two.png is 50x40"):
        check_dataset(data)


def test_masks_in_colours_and_damaged_files(tmp_path):
    write_own(tmp_path)
    write_picture(tmp_path / "masks/one.png")
    (tmp_path / "masks/two.png").write_bytes(b"no")
    data = open_dataset("folder", root=tmp_path)
    with pytest.raises(InputError, match=r"one.png: mode RGB"):
        data[0]
    with pytest.raises(InputError, match="mask must be a readable image"):
        data[1]
    (tmp_path / "images/two.jpg").write_bytes(b"no")
    with pytest.raises(InputError, match=r"2 of 2 are not right: .*mode RGB; .*two.png"):
        check_dataset(data)
    write_mask(tmp_path / "masks/two.png", [1])
    with pytest.raises(InputError, match="picture must be a readable image"):
        data[1]


def test_two_pictures_of_one_name(tmp_path):
    write_own(tmp_path)
    write_picture(tmp_path / "images/one.png")
    with pytest.raises(InputError, match=r"one.jpg and one.png|one.png and one.jpg"):
        open_dataset("folder", root=tmp_path)


def test_the_stored_grid_counts_not_the_rotation_noted_beside_it(tmp_path):
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    drawn = np.zeros((20, 30, 3), dtype=np.uint8)
    PIL.Image.fromarray(drawn).save(tmp_path / "turned.jpg", exif=exif)
    assert read_picture(tmp_path / "turned.jpg").shape == (20, 30, 3)
    PIL.Image.fromarray(drawn[..., 0]).save(tmp_path / "grey.jpg")
    PIL.Image.new("CMYK", (30, 20)).save(tmp_path / "print.jpg")
    for name in ("grey.jpg", "print.jpg"):
        assert read_picture(tmp_path / name).shape == (20, 30, 3)


def test_checking_counts_images_by_class(tmp_path):
    steps = []
    data = opened("folder", tmp_path)
    found = check_dataset(data, progress=lambda done, n: steps.append((done, n)))
    assert (found.n_images, found.images) == (2, (1, 2, 2))
    assert steps == [(1, 2), (2, 2)]
    assert check_dataset(SceneSet(n=5)).n_images == 5


def test_a_moved_folder_is_the_same_and_another_is_not(tmp_path):
    write_own(tmp_path / "a")
    first = open_dataset("folder", root=tmp_path / "a").fingerprint
    (tmp_path / "a").rename(tmp_path / "b")
    assert open_dataset("folder", root=tmp_path / "b").fingerprint == first
    assert open_dataset("folder", root=tmp_path / "b", limit=1).fingerprint != first
    write_mask(tmp_path / "b/masks/two.png", [0, 1, 2, 1, 0, 2, 2, 1, 1, 0])
    assert open_dataset("folder", root=tmp_path / "b").fingerprint != first


class Own:
    """A data set that is not one of files."""

    name, split, seed, ignore, groups = "own", "all", None, 255, {}
    classes = ("sky", "sea")

    def __init__(self, *truths):
        self.truths = truths

    def __len__(self):
        return len(self.truths)

    def __getitem__(self, index):
        picture = Image(pixels=np.zeros((20, 30, 3), dtype=np.uint8))
        return Sample(id=str(index), image=picture, truth=self.truths[index])


def test_checking_any_data_set():
    good = np.zeros((20, 30), dtype=int)
    assert check_dataset(Own(good, good + 1, good + 255)).images == (1, 1)
    with pytest.raises(InputError, match="1 has unknown labels"):
        check_dataset(Own(good, good + 2))
    with pytest.raises(InputError, match=r"1 of 1 are not right: 0 is \(20, 30\)"):
        check_dataset(Own(good.T))
    with pytest.raises(InputError, match="must have pictures"):
        check_dataset(Own())


@pytest.mark.parametrize("matlab", [True, False])
def test_regions_by_several_people(tmp_path, matlab):
    write_bsds(tmp_path, matlab=matlab)
    regions = open_regions("bsds", tmp_path)
    sample = regions[0]
    assert (len(regions), sample.id, len(sample.people)) == (1, "100007", 2)
    assert sample.image.hw == HW
    assert [one[0, [0, -1]].tolist() for one in sample.people] == [[1, 2], [1, 1]]
    assert inspect_folder("bsds500", tmp_path).found == 1
    write_picture(next(tmp_path.rglob("100007.jpg")), (30, 30))
    with pytest.raises(InputError, match="is 30x30"):
        regions[0]
    with pytest.raises(InputError, match="must have classes"):
        open_dataset("bsds500", root=tmp_path)
    with pytest.raises(InputError, match="regions is asked for"):
        open_regions("voc21", tmp_path)


def test_facts_agree_with_what_is_read(tmp_path):
    known = {(one.kind, one.name) for one in list_facts()}
    assert {name for kind, name in known if kind == "images"} == {*IMAGE_DATASETS, "bsds500"}
    assert {name for kind, name in known if kind == "videos"} == {*VIDEO_DATASETS, "scenes"}
    for name, (_, _, split) in VIDEO_DATASETS.items():
        assert find_facts(name, "videos").split == split
    for one in list_facts():
        assert one.split in one.splits
        if one.name.startswith("scenes") and one.kind == "images":
            assert one.classes == len(open_dataset(one.name, limit=1).classes)


def test_names_folders_and_choices_that_are_wrong(tmp_path):
    with pytest.raises(InputError, match="did you mean voc2012"):
        open_dataset("voc2021", root=tmp_path)
    with pytest.raises(InputError, match="is read from its folder"):
        open_dataset("ade150")
    with pytest.raises(InputError, match="drawn, not read"):
        open_dataset("scenes", root=tmp_path)
    with pytest.raises(InputError, match="as published"):
        open_dataset("voc21", root=tmp_path / "no")
    write_own(tmp_path)
    with pytest.raises(InputError, match="at least 1"):
        open_dataset("folder", root=tmp_path, limit=0)
    with pytest.raises(InputError, match="but one choice of geometry"):
        open_dataset("folder", root=tmp_path, geometry="diffseg")
    with pytest.raises(InputError, match="known one"):
        read_labels("voc22")


def test_labels_of_values():
    held = read_labels("coco_stuff171")
    assert held.labels(np.array([[0, 11, 182], [-1, 255, 65535]])).tolist() == [
        [0, 255, UNKNOWN],
        [UNKNOWN, 255, UNKNOWN],
    ]
    assert (ranges([]), ranges([3]), ranges([1, 2, 4])) == ("", "3", "1 to 2, 4")
