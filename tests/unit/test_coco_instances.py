"""COCO-Object from the release's own file of instances."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from diffuseg.errors import InputError
from diffuseg.eval.coco_instances import fill_outline
from diffuseg.eval.coco_layout import Coco
from diffuseg.eval.dataset_inspection import inspect_folder
from diffuseg.eval.datasets import open_dataset
from diffuseg.eval.image_checks import check_dataset
from diffuseg.export.rle import decode_rle, encode_rle
from support.image_folders import CURATED, HW, write_coco_instances, write_coco_objects, write_mask

PERSON, CHAIR, TOOTHBRUSH = 1, 62, 90  # as the release numbers them


def box(x0, y0, x1, y1):
    return [float(one) for one in (x0, y0, x1, y0, x1, y1, x0, y1)]


def polygons(category, area, *outlines):
    return {"category_id": category, "area": area, "segmentation": list(outlines)}


# Written down from pycocotools 2.0.11, frPyObjects in 16 rows of 20.
OUTLINES = {
    "slanted": ([3.2, 1.7, 17.9, 4.4, 12.1, 15.8, 4.6, 11.3], "b12>7I1O010O1O001O0001M2N2N2N2Nn0"),
    "outside": ([-5.5, 3.0, 12.25, -4.0, 26.0, 9.5, 8.0, 25.75], "1<33NQ70oH1O1NN"),
    "crossing itself": ([1, 1, 15, 13, 15, 1, 1, 13], "a0;6O1N2N2N2N1O1001N2N2N2N2N1_2"),
    "thinner than a pixel": ([2.0, 2.0, 18.0, 2.4, 2.0, 2.3], "P:"),
    "a corner twice": (
        [4.0, 3.0, 4.0, 3.0, 14.6, 3.0, 14.6, 12.2, 4.0, 12.2],
        "S2970000000000000000000]2",
    ),
    "backwards": (
        [14.49, 2.51, 2.51, 2.49, 2.5, 11.5, 14.5, 11.49],
        "b1:60000000001N100000004LY2",
    ),
}


@pytest.mark.parametrize("name", OUTLINES)
def test_outlines_are_filled_as_by_pycocotools(name):
    corners, code = OUTLINES[name]
    filled = fill_outline(np.array(corners, dtype=np.float64).reshape(-1, 2), (16, 20))
    assert np.array_equal(filled, decode_rle({"size": [16, 20], "counts": code}))


def corner_lists(least):
    shapes = st.tuples(st.integers(3, 12), st.just(2))
    return arrays.arrays(np.float64, shapes, elements=st.floats(least, 60, width=32))


@settings(max_examples=60)
@given(corner_lists(-30), st.integers(0, 11))
def test_where_an_outline_starts_and_how_it_runs_do_not_matter(corners, start):
    filled = fill_outline(corners, (24, 30))
    assert np.array_equal(fill_outline(np.roll(corners, start, axis=0), (24, 30)), filled)
    assert np.array_equal(fill_outline(corners[::-1].copy(), (24, 30)), filled)


@settings(max_examples=60)
@given(corner_lists(0))
def test_the_picture_is_a_window_on_what_is_filled(corners):
    # Numbers below 0 are rounded the other way, here as there.
    whole = fill_outline(corners, (70, 70))
    assert np.array_equal(fill_outline(corners, (24, 30)), whole[:24, :30])


def test_small_over_large_and_crowds_left_out(tmp_path):
    crowd = np.zeros(HW, dtype=bool)
    crowd[:10, 30:] = True
    runs = np.zeros(HW, dtype=bool)
    runs[35:, 5:9] = True
    write_coco_instances(
        tmp_path,
        polygons(TOOTHBRUSH, 16.0, box(12, 12, 16, 16)),
        polygons(PERSON, 600.0, box(10, 10, 30, 30), box(40, 30, 50, 40)),
        # Counts in a list, as the release has its crowds.
        {"category_id": PERSON, "area": 200, "iscrowd": 1, "segmentation": counted(crowd)},
        polygons(CHAIR, 25.0, box(28, 5, 33, 10)),
        {"category_id": CHAIR, "area": 20, "segmentation": encode_rle(runs)},
    )
    data = open_dataset("coco-object", root=tmp_path)
    assert [one.id for one in data.files] == list(CURATED)
    truth = np.zeros(HW, dtype=np.int32)
    truth[10:30, 10:30] = truth[30:40, 40:50] = 1
    truth[:10, 30:] = 255
    truth[5:10, 28:33] = 57
    truth[35:, 5:9] = 57
    truth[12:16, 12:16] = 80
    assert np.array_equal(data[0].truth, truth)
    assert not data[1].truth.any()  # nothing is annotated there: all background
    assert "crowds are not scored" in data.label_source
    counts = dict(zip(data.classes, check_dataset(data).images, strict=True))
    assert {name: n for name, n in counts.items() if n} == {
        "background": 2, "person": 1, "chair": 1, "toothbrush": 1,
    }  # fmt: skip
    found = inspect_folder("coco_object81", tmp_path)
    assert found.missing == ("4998 of the 5000 images of the release are not there, or not listed",)


def counted(mask):
    flat = mask.ravel(order="F")
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    counts = np.diff([0, *changes, flat.size]).tolist()
    return {"size": list(mask.shape), "counts": [0, *counts] if flat[0] else counts}


def test_maps_come_before_instances(tmp_path):
    write_coco_instances(tmp_path, polygons(PERSON, 9.0, box(0, 0, 3, 3)))
    (tmp_path / "coco/coco_seg_anno").mkdir()
    for stem in CURATED:
        write_mask(tmp_path / f"coco/coco_seg_anno/{stem}.png", [7])
    assert "coco_seg_anno" in Coco(tmp_path).label_source
    write_coco_objects(tmp_path)
    assert "GroupViT" in Coco(tmp_path).label_source


def test_of_other_years_and_a_part(tmp_path):
    write_coco_instances(tmp_path, polygons(PERSON, 9.0, box(0, 0, 3, 3)))
    (tmp_path / "coco/val2017").rename(tmp_path / "coco/val2014")
    annotations = tmp_path / "coco/annotations"
    (annotations / "instances_val2017.json").rename(annotations / "instances_val2014.json")
    data = open_dataset("coco_object81", root=tmp_path / "coco", split="val2014", limit=1)
    assert (len(data), data[0].truth[:3, :3].tolist()) == (1, [[1] * 3] * 3)


def changed(path, change):
    held = json.loads(path.read_text())
    change(held)
    path.write_text(json.dumps(held))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda held: held.pop("annotations"), "KeyError.*annotations"),
        (lambda held: held["categories"].pop(3), "79, without motorcycle"),
        (lambda held: held["categories"][0].update(name="human"), "80, with human"),
        (lambda held: held["annotations"][0].update(category_id=12), "KeyError.*12"),
        (lambda held: held["annotations"][0].update(image_id=5), "KeyError.*5"),
        (
            lambda held: held["annotations"][0].update(segmentation=[[1, 2, 3, 4, 5, 6, 7]]),
            "annotation 1: a polygon of 7 numbers",
        ),
        (
            lambda held: held["annotations"][0].update(segmentation=[[1, 2, 3, 4, 5, "six"]]),
            "ValueError",
        ),
    ],
)
def test_files_that_are_not_cocos(tmp_path, change, why):
    path = write_coco_instances(tmp_path, polygons(PERSON, 9.0, box(0, 0, 3, 3)))
    changed(path, change)
    with pytest.raises(InputError, match=f"instances_val2017.json.*{why}"):
        open_dataset("coco_object81", root=tmp_path)
    [missing] = inspect_folder("coco_object81", tmp_path).missing
    assert "instances_val2017.json" in missing


def test_damaged_files_and_codes_and_what_is_missing(tmp_path):
    path = write_coco_instances(tmp_path, polygons(PERSON, 9.0, box(0, 0, 3, 3)))
    text = path.read_text()
    wrong = {"size": [3, 4], "counts": [12]}
    changed(path, lambda held: held["annotations"][0].update(segmentation=wrong))
    with pytest.raises(InputError, match=r"000000000139.jpg: annotation 1 of \(3, 4\)"):
        open_dataset("coco_object81", root=tmp_path)[0]
    wrong = {"size": list(HW), "counts": [12]}
    changed(path, lambda held: held["annotations"][0].update(segmentation=wrong))
    with pytest.raises(InputError, match=r"1 of 2 are not right: .*12 pixels for 40 x 50"):
        check_dataset(open_dataset("coco_object81", root=tmp_path))
    path.write_text(text[:-20])
    with pytest.raises(InputError, match="JSONDecodeError"):
        open_dataset("coco_object81", root=tmp_path)
    path.write_text(text)
    picture = tmp_path / f"coco/val2017/{CURATED[1]}.jpg"
    picture.rename(tmp_path / "elsewhere")
    with pytest.raises(InputError, match=r"1 of 2 pictures missing, the first .*000000000724.jpg"):
        open_dataset("coco_object81", root=tmp_path)
    path.rename(tmp_path / "away")
    with pytest.raises(InputError, match=r"nor coco_seg_anno, nor the file .*instances_val2017"):
        open_dataset("coco_object81", root=tmp_path)
