"""Files in, files out: what is found, where results go, what a second run does again."""

import json
import os
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

import diffuseg as ds
from diffuseg.errors import InputError
from diffuseg.folders import FORMATS, find_images, segment_files, write_result
from diffuseg.journal import extend_journal, read_journal, write_journal
from support.folders import write_mini


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory):
    model = ds.load(write_mini(tmp_path_factory.mktemp("models") / "tiny"), device="cpu")
    return ds.build_segmenter(model, classes="cat, dog")


def write_picture(path, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    PIL.Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    for i, name in enumerate(("a.png", "b.jpg", "sub/a.png", "sub/deep/c.webp")):
        write_picture(folder / name, i)
    write_picture(folder / ".hidden/d.png")
    (folder / "notes.txt").write_text("no picture")
    return folder


def stems(named, out):
    return [one.stem for one in find_images(named, out)]


def test_a_folder_keeps_its_tree(photos, tmp_path):
    assert stems([photos], tmp_path / "out") == ["a", "b", "sub/a", "sub/deep/c"]


def test_an_output_folder_inside_is_left_out(photos):
    write_picture(photos / "out/a.png")
    assert stems([photos], photos / "out") == ["a", "b", "sub/a", "sub/deep/c"]


def test_patterns_keep_the_tree_below_their_fixed_part(photos, tmp_path):
    assert stems([f"{photos}/**/*.png"], tmp_path) == ["a", "sub/a"]
    assert stems([f"{photos}/sub/*/*"], tmp_path) == ["deep/c"]


def test_several_folders_are_kept_apart(photos, tmp_path):
    write_picture(tmp_path / "more/a.png")
    assert stems([photos / "sub", tmp_path / "more"], tmp_path / "out") == [
        "sub/a",
        "sub/deep/c",
        "more/a",
    ]


def test_results_of_one_name_are_told_apart(photos, tmp_path):
    write_picture(photos / "A.JPG")
    named = [photos / "a.png", photos / "A.JPG", photos / "sub/a.png", photos / "b.jpg"]
    assert stems(named, tmp_path) == ["a_png", "A_JPG", "a_png-2", "b"]


def test_a_file_named_twice_is_one(photos, tmp_path):
    assert stems([photos, photos / "a.png"], tmp_path / "out") == [
        "a",
        "b",
        "sub/a",
        "sub/deep/c",
    ]


def test_a_missing_file_stays_in_the_list(tmp_path):
    assert [one.path for one in find_images([tmp_path / "no.png"], tmp_path)] == [
        tmp_path / "no.png"
    ]


@pytest.mark.parametrize(
    ("named", "out", "message"),
    [
        ("photos", "photos", "must not be the folder of the images"),
        ("empty", "out", "the folder must contain images"),
        ("photos/*.gif", "out", "the pattern must match a file"),
    ],
)
def test_inputs_that_cannot_be(photos, tmp_path, named, out, message):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=message):
        find_images([tmp_path / named], tmp_path / out)


def files(folder):
    return sorted(
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()
    )


def test_one_bad_file_does_not_stop_the_others(photos, tmp_path, segmenter):
    whole = (photos / "b.jpg").read_bytes()
    (photos / "b.jpg").write_bytes(whole[: len(whole) // 2])
    out = tmp_path / "out"
    inputs = find_images([photos], out)
    outcomes = list(segment_files(inputs, out, segmenter, overlay=False, batch_size=3))
    assert [one.error is None for one in outcomes] == [True, False, True, True]
    assert "complete and undamaged" in str(outcomes[1].error)
    assert files(out) == [
        ".diffuseg.jsonl",
        "a.names.json",
        "a.png",
        "sub/a.names.json",
        "sub/a.png",
        "sub/deep/c.names.json",
        "sub/deep/c.png",
    ]
    assert ds.Segmentation.load(out / "sub/a.png").labels.shape == (64, 64)


def test_every_format_and_the_overlay(photos, tmp_path, segmenter):
    out = tmp_path / "out"
    inputs = find_images([photos / "a.png"], out)
    [outcome] = segment_files(inputs, out, segmenter, formats=FORMATS)
    assert [path.name for path in outcome.outputs] == [
        "a.png",
        "a.npz",
        "a.json",
        "a.geojson",
        "a.masks",
        "a.overlay.png",
    ]
    assert all(path.exists() for path in outcome.outputs)
    assert files(out / "a.masks") == ["cat.png", "dog.png"]
    for suffix in ("png", "npz", "json", "geojson"):
        again = ds.Segmentation.load(out / f"a.{suffix}")
        assert (again.labels == outcome.segmentation.labels).all()


def run(photos, out, segmenter, **options):
    inputs = find_images([photos], out)
    outcomes = list(segment_files(inputs, out, segmenter, overlay=False, resume=True, **options))
    return [one.skipped for one in outcomes]


def test_resume_does_again_what_is_missing_or_changed(photos, tmp_path, segmenter):
    out = tmp_path / "out"
    assert run(photos, out, segmenter) == [False] * 4
    assert run(photos, out, segmenter) == [True] * 4
    (out / "sub/a.png").unlink()
    assert run(photos, out, segmenter) == [True, True, False, True]
    write_picture(photos / "a.png", 9)
    os.utime(photos / "a.png", ns=(1, 1))
    assert run(photos, out, segmenter) == [False, True, True, True]
    other = ds.build_segmenter(segmenter.model, ds.Attend(refine=1), "cat, dog")
    assert run(photos, out, other) == [False] * 4
    assert run(photos, out, other, formats=("png", "npz")) == [False] * 4
    with (out / ".diffuseg.jsonl").open("a") as file:
        file.write('{"stem": "a", "sett')  # the process was killed here
    assert run(photos, out, other, formats=("png", "npz")) == [True] * 4
    (out / "a.png").unlink()
    assert run(photos, out, other, formats=("png", "npz")) == [False, True, True, True]
    assert run(photos, out, other, formats=("png", "npz")) == [True] * 4


def test_without_resume_everything_is_done(photos, tmp_path, segmenter):
    out = tmp_path / "out"
    run(photos, out, segmenter)
    inputs = find_images([photos], out)
    assert not any(one.skipped for one in segment_files(inputs, out, segmenter, overlay=False))


def test_nothing_is_left_of_an_image_that_cannot_be_written(tmp_path, segmenter):
    source = write_picture(tmp_path / "a.png")
    out = tmp_path / "out"
    (out / "a.json").mkdir(parents=True)  # a folder is in the way of the second format
    inputs = find_images([source], out)
    [outcome] = segment_files(inputs, out, segmenter, formats=("png", "coco"))
    assert "the output must be a file name" in str(outcome.error)
    assert files(out) == []


def test_a_full_disk_is_one_clear_error(tmp_path, segmenter, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    seg = segmenter(np.zeros((64, 64, 3), np.uint8))
    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(InputError, match="the results must be writable"):
        write_result(seg, tmp_path / "a", ("png",))
    assert files(tmp_path) == []


def test_results_never_overwrite_images(photos, segmenter):
    inputs = find_images([photos / "a.png"], photos)
    before = (photos / "a.png").read_bytes()
    with pytest.raises(InputError, match="must not overwrite images"):
        segment_files(inputs, photos, segmenter)
    assert (photos / "a.png").read_bytes() == before


def test_options_are_checked_before_anything_runs(photos, tmp_path, segmenter):
    inputs = find_images([photos], tmp_path / "out")
    with pytest.raises(InputError, match="a format must be a known one"):
        segment_files(inputs, tmp_path / "out", segmenter, formats=("jpg",))
    with pytest.raises(InputError, match="batch_size"):
        segment_files(inputs, tmp_path / "out", segmenter, batch_size=0)
    with pytest.raises(InputError, match="needs the names of the classes"):
        segment_files(inputs, tmp_path / "out", ds.build_segmenter(segmenter.model))


def test_journal(tmp_path):
    path = tmp_path / "new" / "journal.jsonl"
    extend_journal(path, [{"a": 1}])
    extend_journal(path, [{"b": "ä"}, {"c": None}])
    rows = [{"a": 1}, {"b": "ä"}, {"c": None}]
    assert read_journal(path) == rows
    for torn in ('{"d": ', "[1]\n", "nonsense\n"):
        write_journal(path, rows)
        with path.open("a") as file:
            file.write(torn)
        assert read_journal(path) == rows
    assert json.loads(path.read_text().splitlines()[0]) == {"a": 1}
    with pytest.raises(InputError, match="output folder must be writable"):
        extend_journal(path / "x", [{"a": 1}])
    assert read_journal(Path("nowhere")) == []
