import dataclasses
import pickle

import numpy as np
import pytest
import torch

from diffuseg.errors import InputError
from diffuseg.provenance import Provenance
from diffuseg.result import IGNORE, Region, Segmentation
from support import images

NAMES = ("car", "tree", "sky", "dog")


def make(*, hw: tuple[int, int] = (6, 8), seed: int = 0, scores: bool = True) -> Segmentation:
    """Four names of which "dog" is not there, and a few undecided pixels."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, hw)
    labels[0, :2] = IGNORE
    maps = rng.random((4, *hw), dtype=np.float32) if scores else None
    origin = Provenance(model="mini", method="attend", seed=seed)
    return Segmentation(labels=labels, names=NAMES, scores=maps, provenance=origin)


def maps_of(seg: Segmentation) -> np.ndarray:
    assert seg.scores is not None
    return seg.scores


def refused(call, *, expected: str, got: str, remedy: str) -> None:
    with pytest.raises(InputError) as caught:
        call()
    error = caught.value
    assert expected in error.expected
    shown = error.got if isinstance(error.got, str) else repr(error.got)
    assert got in shown
    assert remedy in error.remedy


def test_masks_by_name():
    seg = make()
    assert np.array_equal(seg["tree"], seg.labels == 1)
    assert seg["tree"].dtype == bool
    assert not seg["dog"].any()


def test_what_is_present():
    seg = make()
    assert seg.present == ("car", "tree", "sky")
    assert len(seg) == 3
    assert "car" in seg
    assert "dog" not in seg
    assert "cow" not in seg
    assert seg.hw == (6, 8)
    assert sum(seg.areas.values()) == 6 * 8 - 2
    assert seg.areas["dog"] == 0


def test_regions():
    labels = np.zeros((5, 7), np.int32)
    labels[1:3, 2:6] = 1
    scores = np.zeros((2, 5, 7), np.float32)
    scores[1, 1, 2:6], scores[1, 2, 2:6] = 0.25, 0.75
    seg = Segmentation(labels=labels, names=("sky", "kite"), scores=scores)
    sky, kite = seg
    assert (kite.name, kite.area, kite.bbox, kite.score) == ("kite", 8, (1, 2, 3, 6), 0.5)
    assert (sky.bbox, sky.area, sky.score) == ((0, 0, 5, 7), 27, 0.0)
    assert np.array_equal(kite.mask, labels == 1)
    assert repr(kite) == "Region 'kite': 8 px, bbox (1, 2, 3, 6), score 0.500"
    assert isinstance(kite, Region)


def test_regions_without_scores():
    region = next(iter(make(scores=False)))
    assert region.score is None
    assert "score" not in repr(region)


def test_a_region_of_one_pixel():
    labels = np.zeros((4, 4), np.int32)
    labels[3, 2] = 1
    _, dot = Segmentation(labels=labels, names=("a", "b"))
    assert (dot.area, dot.bbox) == (1, (3, 2, 4, 3))


def test_all_undecided():
    seg = Segmentation(labels=np.full((4, 4), IGNORE), names=("a",))
    assert len(seg) == 0
    assert list(seg) == []
    assert repr(seg) == "Segmentation 4x4: undecided 100.0 %"


def test_repr_says_what_is_where():
    labels = np.array([[0, 0, 1, 1], [0, 0, 1, IGNORE]])
    origin = Provenance(model="mini", method="attend")
    seg = Segmentation(labels=labels, names=("car", "tree"), provenance=origin)
    assert repr(seg) == (
        "Segmentation 2x4: car 50.0 %, tree 37.5 %, undecided 12.5 % (mini, attend)"
    )
    assert "… 12 more" in repr(Segmentation.from_labels(np.arange(20).reshape(4, 5)))


def test_unknown_name_suggests_near_ones():
    seg = make()
    refused(
        lambda: seg["tre"],
        expected="one of the segmentation's names",
        got="'tre'",
        remedy="did you mean 'tree'? use one of: car, tree, sky, dog",
    )
    refused(lambda: seg["zebra"], expected="one of", got="'zebra'", remedy="use one of: car")


def test_it_is_read_only_and_leaves_the_callers_arrays_alone():
    labels, scores = np.zeros((3, 3), np.int32), np.zeros((1, 3, 3), np.float32)
    seg = Segmentation(labels=labels, names=("a",), scores=scores)
    labels[0, 0] = IGNORE
    assert seg.labels[0, 0] == 0
    with pytest.raises(ValueError, match="read-only"):
        seg.labels[0, 0] = 0
    with pytest.raises(ValueError, match="read-only"):
        maps_of(seg)[0, 0, 0] = 0
    with pytest.raises(dataclasses.FrozenInstanceError):
        seg.names = ("b",)


def test_scores_are_not_copied():
    scores = np.zeros((1, 3, 3), np.float32)
    seg = Segmentation(labels=np.zeros((3, 3), int), names=("a",), scores=scores)
    assert np.shares_memory(seg.scores, scores)
    assert scores.flags.writeable


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int64])
def test_any_integers_become_int32(dtype):
    labels = np.array([[0, 1]], dtype)
    assert Segmentation(labels=labels, names=("a", "b")).labels.dtype == np.int32


def test_equality():
    assert make() == make()
    assert make() != make(seed=1)
    assert make() != make(scores=False)
    assert make(scores=False) != make()
    assert make() != make().rename({"car": "bus"})
    assert make() != dataclasses.replace(make(), provenance=Provenance())
    assert make() != 3
    with pytest.raises(TypeError, match="unhashable"):
        hash(make())


def test_pickle():
    assert pickle.loads(pickle.dumps(make())) == make()


@pytest.mark.parametrize(
    ("labels", "got"),
    [
        (np.zeros((2, 3, 4), int), "shape (2, 3, 4)"),
        (np.zeros((0, 4), int), "shape (0, 4)"),
        (np.zeros((3, 4)), "float64"),
        (np.zeros((3, 4), bool), "bool"),
        ("abc", "shape ()"),
    ],
)
def test_wrong_labels(labels, got):
    for names in (("a",), None):
        refused(
            lambda names=names: Segmentation.from_labels(labels, names),
            expected="labels must be integers of shape (h, w)",
            got=got,
            remedy="one class index for every pixel",
        )


@pytest.mark.parametrize("wrong", [2, -1, 255])
def test_labels_out_of_range(wrong):
    refused(
        lambda: Segmentation(labels=np.array([[0, 1, wrong]]), names=("a", "b")),
        expected="labels must be 0 to 1, or 65535 where undecided",
        got=f"[{wrong}]",
        remedy="from_labels()",
    )


@pytest.mark.parametrize("names", [(), ("a", ""), ("a", "  "), ("a", 3), "ab", 5])
def test_wrong_names(names):
    refused(
        lambda: Segmentation.from_labels(np.array([[0]]), names),
        expected="non-empty strings",
        got=repr(names),
        remedy='("car", "tree")',
    )


def test_double_names():
    refused(
        lambda: Segmentation(labels=np.array([[0]]), names=("a", "b", "a")),
        expected="names must differ",
        got="['a'] more than once",
        remedy="name every class once",
    )


def test_too_many_names():
    refused(
        lambda: Segmentation.from_labels(np.array([[0]]), [str(i) for i in range(65536)]),
        expected="at most 65535 names",
        got="65536",
        remedy="merge",
    )


@pytest.mark.parametrize(
    ("scores", "got"),
    [
        (np.zeros((2, 4, 4), np.float32), "shape (2, 4, 4)"),
        (np.zeros((1, 3, 3), np.float32), "shape (1, 3, 3)"),
        (np.zeros((2, 3, 3), int), "int64"),
        (0.5, "shape ()"),
    ],
)
def test_wrong_scores(scores, got):
    refused(
        lambda: Segmentation.from_labels(np.zeros((3, 3), int), ("a", "b"), scores=scores),
        expected="scores must be floating point of shape (2, 3, 3)",
        got=got,
        remedy="in the order of the names",
    )


def test_ignore_must_not_be_a_class():
    refused(
        lambda: Segmentation(labels=np.array([[0]]), names=("a",), ignore=0),
        expected="must not be the index of a name",
        got="ignore=0 with 1 names",
        remedy="65535",
    )
    assert Segmentation(labels=np.array([[0, -1]]), names=("a",), ignore=-1).areas == {"a": 1}


def test_unnamed_segments_are_ordered_by_area():
    labels = np.array([[9, 9, 4], [9, 4, -1], [7, 7, 7]])
    scores = np.random.default_rng(0).random((10, 3, 3))
    seg = Segmentation.from_labels(labels, scores=scores, ignore=-1)
    # 7 and 9 have one size; the smaller label comes first.
    assert seg.names == ("segment 0", "segment 1", "segment 2")
    assert seg.labels.tolist() == [[1, 1, 2], [1, 2, IGNORE], [0, 0, 0]]
    assert seg.ignore == IGNORE
    assert np.array_equal(seg.scores, scores[[7, 9, 4]])


def test_unnamed_segments_do_not_depend_on_their_numbers():
    labels = images.blobs()
    renumbered = np.array([30, 10, 40, 20])[labels]
    assert Segmentation.from_labels(labels) == Segmentation.from_labels(renumbered)


def test_named_labels():
    seg = Segmentation.from_labels([[0, 255]], ["a", "b"], ignore=255)
    assert (seg.names, seg.ignore, seg.present) == (("a", "b"), 255, ("a",))


def test_unnamed_labels_refused():
    refused(
        lambda: Segmentation.from_labels(np.full((3, 3), -1), ignore=-1),
        expected="at least one pixel must be decided",
        got="every pixel is -1",
        remedy="pass the names",
    )
    for label in (2, -1):
        refused(
            lambda label=label: Segmentation.from_labels([[0, label]], scores=np.zeros((2, 1, 2))),
            expected="every label needs its row of scores",
            got="2 score maps",
            remedy="one map for every label",
        )


def test_rename():
    seg = make().rename({"car": "bus", "dog": "car"})
    assert seg.names == ("bus", "tree", "sky", "car")
    assert np.array_equal(seg.labels, make().labels)
    assert seg.rename({"bus": "tree", "tree": "bus"}).names == ("tree", "bus", "sky", "car")


def test_rename_refuses():
    refused(
        lambda: make().rename({"car": "tree"}),
        expected="all names must differ",
        got="['tree', 'tree', 'sky', 'dog']",
        remedy="merge",
    )
    refused(lambda: make().rename({"cat": "x"}), expected="one of", got="'cat'", remedy="car")


def test_relabel_reorders_and_leaves_out():
    seg, names = make(), ("dog", "sky", "car")
    other = seg.relabel(names)
    assert other.names == names
    for name in names:
        assert np.array_equal(other[name], seg[name])
        assert np.array_equal(
            maps_of(other)[names.index(name)], maps_of(seg)[seg.names.index(name)]
        )
    assert np.array_equal(other.labels == IGNORE, seg["tree"] | (seg.labels == IGNORE))
    assert seg.relabel(seg.names) == seg


def test_relabel_refuses():
    refused(lambda: make().relabel(("cat",)), expected="one of", got="'cat'", remedy="'car'")
    refused(
        lambda: make().relabel(("car", "car")), expected="must differ", got="car", remedy="once"
    )


def test_merge():
    seg = make()
    merged = seg.merge({"plant": ("tree",), "vehicle": ("car", "dog")})
    assert merged.names == ("vehicle", "plant", "sky")
    assert np.array_equal(merged["vehicle"], seg["car"] | seg["dog"])
    assert np.array_equal(merged["plant"], seg["tree"])
    assert np.array_equal(merged.labels == IGNORE, seg.labels == IGNORE)
    assert np.array_equal(maps_of(merged)[0], np.maximum(maps_of(seg)[0], maps_of(seg)[3]))
    assert np.array_equal(maps_of(merged)[2], maps_of(seg)[2])
    assert seg.merge({"car": ("car", "tree")}).names == ("car", "sky", "dog")
    assert seg.merge({"bus": "car"}).names == ("bus", "tree", "sky", "dog")
    assert make(scores=False).merge({"x": NAMES}).scores is None


def test_merged_scores_keep_their_argmax():
    seg = make()
    best = Segmentation(labels=seg.scores.argmax(0), names=NAMES, scores=seg.scores)
    merged = best.merge({"vehicle": ("car", "dog")})
    assert np.array_equal(merged.scores.argmax(0), merged.labels)


def test_merge_refuses():
    seg = make()
    refused(lambda: seg.merge({"x": ("cat",)}), expected="one of", got="'cat'", remedy="'car'")
    refused(
        lambda: seg.merge({"x": ("car",), "y": ("car",)}),
        expected="one group only",
        got="'car' in 'x' and in 'y'",
        remedy="leave it",
    )
    refused(
        lambda: seg.merge({"sky": ("car", "tree")}),
        expected="must be new, or that of one of its members",
        got="'sky', which is another class",
        remedy="add 'sky' to the group",
    )


@pytest.mark.parametrize("hw", [(3, 4), (12, 16), (7, 5), (1, 1), (6, 8)])
def test_resize_is_that_of_torch(hw):
    seg = make()
    resized = seg.resize(hw)
    labels = torch.tensor(seg.labels)[None, None].float()
    expected = torch.nn.functional.interpolate(labels, size=hw, mode="nearest-exact")[0, 0]
    assert np.array_equal(resized.labels, expected.numpy())
    shrinks = hw[0] < 6 or hw[1] < 8
    maps = torch.nn.functional.interpolate(
        torch.tensor(seg.scores)[None],
        size=hw,
        mode="bilinear",
        align_corners=False,
        antialias=shrinks,
    )[0]
    assert np.allclose(resized.scores, maps.numpy(), atol=1e-6)
    assert resized.scores.dtype == np.float32


def test_resize_of_half_precision_scores():
    seg = dataclasses.replace(make(), scores=make().scores.astype(np.float16))
    assert seg.resize((12, 16)).scores.dtype == np.float16


@pytest.mark.parametrize("hw", [(0, 5), (5, -1)])
def test_resize_refuses(hw):
    refused(
        lambda: make().resize(hw),
        expected="positive height and width",
        got=str(hw),
        remedy="(480, 640)",
    )


def test_permuting_the_names_permutes_the_result():
    seg = make()
    order = ("sky", "dog", "car", "tree")
    assert {region.name: region.area for region in seg.relabel(order)} == {
        region.name: region.area for region in seg
    }


def test_overlay_draws():
    seg = make(hw=(32, 48))
    assert seg.overlay(images.corners()).mode == "RGB"
