"""Masks from image-level labels: the numbers, the confidence, the layout, and what goes wrong."""

import json
import os

import numpy as np
import PIL.Image
import pytest
from typer.testing import CliRunner

import diffuseg as ds
from diffuseg.cli import app
from diffuseg.errors import InputError
from diffuseg.folders import find_images
from diffuseg.image_labels import read_image_labels
from diffuseg.palettes import voc_palette
from diffuseg.pseudo_masks import confidence_of, make_pseudo_masks, mask_of
from diffuseg.result import IGNORE, Segmentation
from support.folders import write_mini
from support.refusal import refused

LABELS = {"a.png": ["dog", "cat"], "sub/b.png": ["grass"], "c.jpg": []}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return ds.load(write_mini(tmp_path_factory.mktemp("models") / "tiny"), device="cpu")


@pytest.fixture(scope="module")
def segmenter(model):
    return ds.build_segmenter(model, ds.Attend(background="threshold", threshold=0.5))


def write_picture(path, seed=0, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    PIL.Image.fromarray(pixels).save(path, **options)
    return path


@pytest.fixture
def photos(tmp_path):
    for i, name in enumerate(LABELS):
        write_picture(tmp_path / "photos" / name, i)
    return tmp_path / "photos"


def run(photos, out, segmenter, labels=LABELS, **options):
    inputs = find_images([photos], out)
    held = read_image_labels(labels)
    return list(make_pseudo_masks(inputs, out, segmenter, held, **options))


def pixels(path):
    with PIL.Image.open(path) as picture:
        return np.asarray(picture)


# ---- numbers and confidence


def result(scores, labels=None, names=("background", "sky", "car")):
    scores = np.array(scores, dtype=np.float32)
    labels = scores.argmax(0) if labels is None else np.array(labels)
    return Segmentation(labels=labels, names=names, scores=scores)


def test_margin_is_how_far_the_next_best_lies_behind():
    seg = result([[[0.5, 0.0, 0.1]], [[0.25, 0.0, 0.4]], [[0.1, 0.0, 0.4]]])
    assert confidence_of(seg).tolist() == [[0.5, 0.0, 0.0]]
    scaled = result(np.array(seg.scores) * 1e-5)
    assert np.allclose(confidence_of(scaled), confidence_of(seg))


def test_margin_of_negative_scores_and_of_one_name():
    seg = result([[[-1.0, -3.0]], [[-2.0, -1.0]]], names=("sky", "car"))
    assert confidence_of(seg).tolist() == [[0.5, 1.0]]
    assert confidence_of(result([[[0.2, 0.0]]], names=("sky",))).tolist() == [[1.0, 0.0]]


def test_score_is_relative_to_the_best_pixel_of_the_name():
    seg = result([[[0.5, 0.25, 0.0]], [[0.0, 0.0, 0.01]]], names=("sky", "car"))
    assert confidence_of(seg, "score").tolist() == [[1.0, 0.5, 1.0]]


def test_undecided_pixels_are_unsure():
    seg = result([[[0.9, 0.9]], [[0.0, 0.0]]], labels=[[0, IGNORE]], names=("sky", "car"))
    assert confidence_of(seg).tolist() == [[1.0, 0.0]]
    mask = mask_of(seg, ("car", "sky"), confidence_of(seg), 0.0)
    assert mask.tolist() == [[2, 255]]
    assert mask_of(seg, ("car", "sky"), np.zeros((1, 2)), 0.1).tolist() == [[255, 255]]


def test_scores_are_needed():
    seg = Segmentation(labels=np.zeros((2, 2), int), names=("sky",))
    with pytest.raises(InputError, match="comes from scores"):
        confidence_of(seg)


# ---- the folder


def test_layout(photos, tmp_path, segmenter):
    out = tmp_path / "out"
    outcomes = run(photos, out, segmenter, threshold=0.2)
    assert [one.error for one in outcomes] == [None] * 3
    names = sorted(one.relative_to(out).as_posix() for one in out.rglob("*") if one.is_file())
    assert names == [
        ".diffuseg.jsonl",
        *("Confidence/a.png", "Confidence/c.png", "Confidence/sub/b.png"),
        "ImageSets/Segmentation/train.txt",
        *("JPEGImages/a.png", "JPEGImages/c.jpg", "JPEGImages/sub/b.png"),
        *("SegmentationClass/a.png", "SegmentationClass/c.png", "SegmentationClass/sub/b.png"),
        "classes.txt",
        "pseudo-masks.json",
    ]
    assert (out / "classes.txt").read_text().split() == ["background", "cat", "dog", "grass"]
    listed = (out / "ImageSets/Segmentation/train.txt").read_text().split()
    assert sorted(listed) == ["a", "c", "sub/b"]
    with PIL.Image.open(out / "SegmentationClass/a.png") as mask:
        assert mask.mode == "P"
        assert mask.size == (64, 48)
        assert mask.getpalette() == voc_palette(256).flatten().tolist()
    assert set(np.unique(pixels(out / "SegmentationClass/a.png"))) <= {0, 1, 2, 255}
    assert set(np.unique(pixels(out / "SegmentationClass/sub/b.png"))) <= {0, 3, 255}
    sure = pixels(out / "Confidence/a.png")
    assert sure.dtype == np.uint8
    assert ((pixels(out / "SegmentationClass/a.png") == 255) == (sure < 0.2 * 255)).mean() > 0.98
    assert not pixels(out / "SegmentationClass/c.png").any()
    assert (pixels(out / "Confidence/c.png") == 255).all()
    link = out / "JPEGImages/sub/b.png"
    assert link.is_symlink()
    assert link.resolve() == (photos / "sub/b.png").resolve()
    made = json.loads((out / "pseudo-masks.json").read_text())
    assert (made["method"], made["threshold"], made["images"]) == ("attend", 0.2, 3)
    assert made["parameters"]["background"] == "threshold"


def test_masks_are_those_of_the_method(photos, tmp_path, segmenter, model):
    out = tmp_path / "out"
    run(photos, out, segmenter, threshold=0.0, classes="grass, dog, sofa|cat", pictures="none")
    seg = ds.segment(
        photos / "a.png", "dog, sofa|cat", model=model, method=segmenter.method, keep_scores=True
    )
    names = {"background": 0, "dog": 2, "sofa": 3}
    expected = np.vectorize(lambda i: names[seg.names[i]])(seg.labels)
    assert (pixels(out / "SegmentationClass/a.png") == expected).all()
    assert not (out / "JPEGImages").exists()


def test_another_method(photos, tmp_path, model):
    outcomes = run(photos, tmp_path / "out", ds.build_segmenter(model, "diffsegmenter"))
    assert [one.error for one in outcomes] == [None] * 3


def test_turned_pictures_are_copied_upright(tmp_path, segmenter):
    tags = PIL.Image.Exif()
    tags[274] = 6
    write_picture(tmp_path / "photos" / "a.jpg", exif=tags)
    out = tmp_path / "out"
    run(tmp_path / "photos", out, segmenter, {"a": ["dog"]})
    assert not (out / "JPEGImages/a.jpg").is_symlink()
    with PIL.Image.open(out / "JPEGImages/a.jpg") as copy:
        assert copy.size == (48, 64)
        assert copy.getexif().get(274, 1) == 1
    assert pixels(out / "SegmentationClass/a.png").shape == (64, 48)


def test_copies(photos, tmp_path, segmenter):
    run(photos, tmp_path / "out", segmenter, pictures="copy")
    copy = tmp_path / "out/JPEGImages/a.png"
    assert not copy.is_symlink()
    assert copy.read_bytes() == (photos / "a.png").read_bytes()


# ---- again and again


def test_resume(photos, tmp_path, segmenter):
    out = tmp_path / "out"

    def skipped(labels=LABELS, **options):
        return [one.skipped for one in run(photos, out, segmenter, labels, resume=True, **options)]

    assert skipped() == [False] * 3
    assert skipped() == [True] * 3
    assert len((out / "ImageSets/Segmentation/train.txt").read_text().split()) == 3
    changed = {**LABELS, "a.png": ["dog"], "d": ["cat"]}  # the classes stay the same
    assert skipped(changed) == [False, True, True]
    assert skipped(threshold=0.5) == [False] * 3
    (out / "Confidence/sub/b.png").unlink()
    assert skipped(threshold=0.5) == [True, True, False]


def test_a_stopped_run_leaves_lists_of_what_is_there(photos, tmp_path, segmenter):
    out = tmp_path / "out"
    inputs = find_images([photos], out)
    going = make_pseudo_masks(inputs, out, segmenter, read_image_labels(LABELS), batch_size=1)
    next(going)
    going.close()
    assert (out / "ImageSets/Segmentation/train.txt").read_text() == "a\n"


# ---- what goes wrong


def test_images_without_labels_and_labels_without_image(photos, tmp_path, segmenter, caplog):
    labels = {"a.png": ["dog"], "c": ["cat"], "x": ["dog"], "y": []}
    outcomes = run(photos, tmp_path / "out", segmenter, labels)
    failed = [one for one in outcomes if one.error]
    assert [one.path.name for one in failed] == ["b.png"]
    assert "every image must have labels" in str(failed[0].error)
    assert "2 of 4 labelled images are not there: x, y" in caplog.text
    listed = (tmp_path / "out/ImageSets/Segmentation/train.txt").read_text().split()
    assert sorted(listed) == ["a", "c"]


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        ({"x": ["dog"]}, {}, "labels must belong to the images"),
        ({"a": ["dgo"]}, {"classes": "dog, cat"}, "must be among the classes"),
        ({"a": ["background"]}, {}, "number 0 and no class"),
        ({"a": ["dog"]}, {"threshold": 1.5}, r"must lie in \[0, 1\]"),
        ({"a": ["dog"]}, {"confidence": "best"}, "confidence must be one of"),
        ({"a": ["dog"]}, {"pictures": "move"}, "pictures must be one of"),
        ({"a": ["dog"]}, {"batch_size": 0}, "batch_size"),
        ({"a": []}, {}, "at least one class"),
        ({"a": ["dog"]}, {"classes": [f"n{i}" for i in range(255)]}, "room for 254 classes"),
    ],
)
def test_what_is_refused_at_once(photos, tmp_path, segmenter, labels, options, message):
    with refused(message):
        run(photos, tmp_path / "out", segmenter, labels, **options)
    assert not (tmp_path / "out").exists()


def test_methods_without_names_are_refused(photos, tmp_path, model):
    with pytest.raises(InputError, match="a method that looks for classes"):
        run(photos, tmp_path / "out", ds.build_segmenter(model, "diffseg"))


def test_words_the_model_cannot_know(photos, tmp_path):
    segmenter = ds.build_segmenter("mini")
    with pytest.raises(InputError, match="zebra"):
        run(photos, tmp_path / "out", segmenter, {"a": ["zebra"]})


def test_a_full_disk_is_one_clear_error(photos, tmp_path, segmenter, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(PIL.Image.Image, "save", full)
    outcomes = run(photos, tmp_path / "out", segmenter)
    assert all("the masks must be writable" in str(one.error) for one in outcomes)


def test_command_line(photos, tmp_path):
    folder = write_mini(tmp_path / "tiny")
    (tmp_path / "labels.json").write_text(json.dumps(LABELS))
    words = ["pseudo-masks", str(photos), "--labels", str(tmp_path / "labels.json")]
    words += ["-o", str(tmp_path / "out"), "--model", str(folder), "--device", "cpu"]
    words += ["--method", "attend", "--set", "background=threshold", "--resume"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert "3 masks in" in done.output
    os.remove(tmp_path / "out/SegmentationClass/a.png")
    write_picture(photos / "d.png")
    done = CliRunner().invoke(app, [*words, "--json", "--quiet"])
    assert done.exit_code == 1
    held = json.loads(done.stdout)
    assert (held["masks"], held["skipped"]) == (3, 2)
    assert "every image must have labels" in held["errors"][0]["error"]
