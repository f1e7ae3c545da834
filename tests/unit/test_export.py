import json
import os
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffuseg import export
from diffuseg.errors import InputError, MissingExtra
from diffuseg.export.rle import decode_rle
from diffuseg.palettes import UNDECIDED, color_of
from diffuseg.provenance import Provenance
from diffuseg.result import IGNORE, Segmentation
from support import images

SUFFIXES = (".png", ".npz", ".json", ".geojson")
ORIGIN = Provenance(
    model="mini",
    method="attend",
    parameters={"power": 2.0, "levels": [8, 16]},
    seed=7,
    seconds={"denoise": 0.25},
    image="straße.jpg",
    image_hw=(20, 30),
    working_hw=(64, 64),
)


def make(k: int = 4, *, scores: bool = False, hw: tuple[int, int] = (20, 30)) -> Segmentation:
    labels = images.blobs(hw, k)
    labels[0, :3] = IGNORE
    maps = np.random.default_rng(0).random((k, *hw), dtype=np.float32) if scores else None
    names = ("sky", "tree/bush", "köpek", 'a "quoted" name', *map(str, range(k)))[:k]
    return Segmentation(labels=labels, names=names, scores=maps, provenance=ORIGIN)


def refused(call, *, expected: str, got: str, remedy: str) -> None:
    with pytest.raises(InputError) as caught:
        call()
    assert expected in caught.value.expected
    assert got in str(caught.value.got)
    assert remedy in caught.value.remedy


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_round_trip(tmp_path, suffix):
    path = tmp_path / f"street{suffix}"
    assert make().save(path) == path
    assert Segmentation.load(path) == make()
    assert Segmentation.load(str(path)) == make()


@st.composite
def segmentations(draw) -> dict[str, object]:
    """The fields of a segmentation; made in the test, where types may be checked."""
    k = draw(st.integers(1, 5))
    hw = draw(st.tuples(st.integers(1, 7), st.integers(1, 7)))
    ignore = draw(st.sampled_from([IGNORE, 255, -1, 99]))
    cells = st.sampled_from([*range(k), ignore])
    flat = draw(st.lists(cells, min_size=hw[0] * hw[1], max_size=hw[0] * hw[1]))
    words = st.text(min_size=1, max_size=6).filter(str.strip)
    names = draw(st.lists(words, min_size=k, max_size=k, unique=True))
    scores = np.random.default_rng(k).random((k, *hw)) if draw(st.booleans()) else None
    labels = np.array(flat).reshape(hw)
    return {"labels": labels, "names": tuple(names), "scores": scores, "ignore": ignore}


@settings(max_examples=25, deadline=None)
@given(segmentations(), st.sampled_from(SUFFIXES))
def test_any_segmentation_survives(tmp_path_factory, fields, suffix):
    seg = Segmentation(**fields)
    path = tmp_path_factory.mktemp("any") / f"seg{suffix}"
    loaded = Segmentation.load(seg.save(path))
    assert loaded.names == seg.names
    assert loaded.ignore == seg.ignore
    assert loaded.provenance == seg.provenance
    assert np.array_equal(loaded.labels, seg.labels)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_npz_keeps_the_scores(tmp_path, dtype):
    seg = make(scores=True)
    seg = Segmentation.from_labels(seg.labels, seg.names, scores=seg.scores.astype(dtype))
    loaded = Segmentation.load(seg.save(tmp_path / "a.npz"))
    assert loaded == seg
    assert loaded.scores.dtype == dtype


def test_npz_opens_without_us(tmp_path):
    make(scores=True).save(tmp_path / "a.npz")
    with np.load(tmp_path / "a.npz", allow_pickle=False) as held:
        assert held["names"].tolist() == list(make().names)
        assert np.array_equal(held["labels"], make().labels)
        assert held["scores"].shape == (4, 20, 30)


def test_png_is_indexed_and_coloured(tmp_path):
    seg = make()
    seg.save(tmp_path / "a.b.png")
    assert sorted(os.listdir(tmp_path)) == ["a.b.names.json", "a.b.png"]
    with PIL.Image.open(tmp_path / "a.b.png") as picture:
        assert picture.mode == "P"
        pixels, colors = np.asarray(picture), np.asarray(picture.convert("RGB"))
    assert np.array_equal(pixels == 255, seg.labels == IGNORE)
    assert np.array_equal(pixels[1:], seg.labels[1:])
    assert tuple(colors[0, 0].tolist()) == UNDECIDED
    assert (colors[seg["sky"]] == color_of("sky")).all()
    sidecar = json.loads((tmp_path / "a.b.names.json").read_text())
    assert sidecar["names"] == list(seg.names)
    assert tuple(sidecar["colors"]["sky"]) == color_of("sky")
    assert sidecar["provenance"]["model"] == "mini"


@pytest.mark.parametrize(("k", "mode"), [(255, "P"), (256, "I;16"), (300, "I;16")])
def test_many_names_do_not_wrap(tmp_path, k, mode):
    labels = np.arange(400).reshape(20, 20) % k
    labels[5, 5] = IGNORE
    seg = Segmentation(labels=labels, names=tuple(f"class {i}" for i in range(k)))
    path = seg.save(tmp_path / "many.png")
    with PIL.Image.open(path) as picture:
        assert picture.mode == mode
    assert Segmentation.load(path) == seg


def test_one_mask_a_name(tmp_path):
    labels = np.zeros((4, 6), int)
    labels[1, 2] = 1
    seg = Segmentation(labels=labels, names=("Car", "car", "a/b:c", "...", "bär"))
    paths = export.save_masks(seg, tmp_path / "masks")
    assert [path.name for path in paths] == [
        "Car.png",
        "car_1.png",
        "a_b_c.png",
        "class.png",
        "bär.png",
    ]
    assert sorted(os.listdir(tmp_path / "masks")) == sorted(path.name for path in paths)
    for path, name in zip(paths, seg.names, strict=True):
        with PIL.Image.open(path) as picture:
            assert picture.mode == "1"
            assert np.array_equal(np.asarray(picture), seg[name])


def test_coco():
    seg = make(scores=True)
    held = json.loads(json.dumps(export.to_coco(seg)))
    assert held["images"] == [{"id": 1, "file_name": "straße.jpg", "height": 20, "width": 30}]
    assert [category["id"] for category in held["categories"]] == [1, 2, 3, 4]
    assert [category["name"] for category in held["categories"]] == list(seg.names)
    for annotation, region in zip(held["annotations"], seg, strict=True):
        assert seg.names[annotation["category_id"] - 1] == region.name
        assert np.array_equal(decode_rle(annotation["segmentation"]), region.mask)
        y0, x0, y1, x1 = region.bbox
        assert annotation["bbox"] == [x0, y0, x1 - x0, y1 - y0]
        assert annotation["area"] == region.area
        assert annotation["score"] == pytest.approx(region.score)
        assert (annotation["image_id"], annotation["iscrowd"]) == (1, 0)
    assert "score" not in export.to_coco(make())["annotations"][0]


def test_geojson():
    held = json.loads(json.dumps(export.to_geojson(make())))
    assert held["type"] == "FeatureCollection"
    assert [feature["properties"]["name"] for feature in held["features"]] == list(make().present)
    for feature, region in zip(held["features"], make(), strict=True):
        assert feature["geometry"]["type"] == "MultiPolygon"
        assert feature["properties"]["area"] == region.area
        red, green, blue = color_of(region.name)
        assert feature["properties"]["color"] == f"#{red:02x}{green:02x}{blue:02x}"
        # The outlines, filled as PIL fills polygons, cover every pixel of the mask.
        for outline, *_ in feature["geometry"]["coordinates"]:
            assert outline[0] == outline[-1]


@pytest.mark.parametrize("name", ["a.jpg", "a", "a.txt"])
def test_other_suffixes(tmp_path, name):
    for call in (lambda: make().save(tmp_path / name), lambda: Segmentation.load(tmp_path / name)):
        refused(call, expected=".png, .npz, .json", got=name, remedy="overlay")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_missing_file(tmp_path, suffix):
    path = tmp_path / f"no{suffix}"
    refused(lambda: Segmentation.load(path), expected="must exist", got="no", remedy="check")


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("keep", [0.0, 0.5, 0.98])
def test_damaged_file(tmp_path, suffix, keep):
    path = make(hw=(60, 80)).save(tmp_path / f"a{suffix}")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * keep)])
    with pytest.raises(InputError) as caught:
        Segmentation.load(path)
    assert "complete segmentation" in caught.value.expected
    assert str(path) in str(caught.value.got)
    assert "save the segmentation again" in caught.value.remedy


@pytest.mark.parametrize("suffix", [".json", ".geojson"])
def test_json_of_others(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    path.write_text('{"type": "FeatureCollection", "features": [], "annotations": []}')
    refused(lambda: Segmentation.load(path), expected="saved by diffuseg", got="a", remedy="again")


def test_png_without_its_names(tmp_path):
    path = make().save(tmp_path / "a.png")
    export.sidecar_path(path).unlink()
    refused(
        lambda: Segmentation.load(path),
        expected="must lie beside it",
        got="a.names.json",
        remedy="save as .npz",
    )


def test_png_with_the_names_of_another(tmp_path):
    path, other = make().save(tmp_path / "a.png"), make(hw=(8, 8)).save(tmp_path / "b.png")
    export.sidecar_path(other).replace(export.sidecar_path(path))
    refused(
        lambda: Segmentation.load(path),
        expected="must belong together",
        got="[20, 30]",
        remedy="its own sidecar",
    )


def test_a_picture_is_no_segmentation(tmp_path):
    path = make().save(tmp_path / "a.png")
    path.write_bytes(images.encoded(images.corners()))
    refused(
        lambda: Segmentation.load(path),
        expected="one class index a pixel",
        got="mode RGB",
        remedy="not an overlay",
    )


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_failed_write_leaves_what_was_there(tmp_path, monkeypatch, suffix):
    path = make().save(tmp_path / f"a{suffix}")
    before = {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)}

    def full(*_: object, **__: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(np, "savez_compressed", full)
    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="no space"):
        make(3).save(path)
    assert {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)} == before


def test_masks_are_written_all_or_none(tmp_path, monkeypatch):
    saved = PIL.Image.Image.save

    def full(self: PIL.Image.Image, fp: Path) -> None:
        if len(os.listdir(tmp_path)) == 2:
            raise OSError("no space left on device")
        saved(self, fp)

    monkeypatch.setattr(PIL.Image.Image, "save", full)
    with pytest.raises(OSError, match="no space"):
        export.save_masks(make(), tmp_path)
    assert os.listdir(tmp_path) == []


def test_an_unwritable_folder(tmp_path):
    (tmp_path / "file").write_text("")
    refused(
        lambda: make().save(tmp_path / "file" / "a.png"),
        expected="folder of the output",
        got="file",
        remedy="choose an output folder",
    )


@pytest.mark.filterwarnings("ignore::UserWarning:supervision")
def test_supervision():
    pytest.importorskip("supervision", exc_type=ImportError)
    seg = make(scores=True)
    detections = export.to_supervision(seg)
    assert detections.data["class_name"].tolist() == list(seg.present)
    assert [seg.names[i] for i in detections.class_id] == list(seg.present)
    for mask, confidence, box, region in zip(
        detections.mask, detections.confidence, detections.xyxy, seg, strict=True
    ):
        assert np.array_equal(mask, region.mask)
        assert confidence == pytest.approx(region.score)
        y0, x0, y1, x1 = region.bbox
        assert box.tolist() == [x0, y0, x1 - 1, y1 - 1]
    assert export.to_supervision(make()).confidence is None


def test_supervision_is_an_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "supervision", None)
    with pytest.raises(MissingExtra, match=r"pip install 'diffuseg\[supervision\]'") as caught:
        export.to_supervision(make())
    assert "to_supervision() needs the package 'supervision'" in caught.value.expected
