"""From a folder as published through a method to the report, and the command on data sets."""

import json
import os
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from typer.testing import CliRunner

import diffuseg as ds
from diffuseg.cli import app
from diffuseg.eval.datasets import open_dataset
from diffuseg.eval.image_checks import check_dataset
from diffuseg.palettes import voc_palette
from diffuseg.world import CLASSES, Scenes
from diffuseg.world.layouts import write_voc
from support.folders import write_sd15
from support.image_folders import (
    write_bsds,
    write_cityscapes,
    write_lines,
    write_own,
    write_picture,
)
from support.image_folders import write_voc as write_tiny_voc

SHARED = Path(__file__).resolve().parents[2] / ".." / "shared"
BSDS = Path(os.environ.get("DIFFUSEG_BSDS500", SHARED / "bsds500"))
CAMVID = Path(os.environ.get("DIFFUSEG_CAMVID", SHARED / "camvid"))


@pytest.fixture
def run(monkeypatch, tmp_path):
    monkeypatch.setenv("COLUMNS", "400")
    monkeypatch.chdir(tmp_path)

    def called(words):
        return CliRunner().invoke(app, words.split())

    return called


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return write_sd15(tmp_path_factory.mktemp("models") / "tiny")


def write_voc_of_cars(root, n):
    """Scenes with cars as VOC has them: the car is class 7, everything else background."""
    car = CLASSES.index("car")
    made = 0
    for scene in (Scenes("val", seed=3, hw=(128, 128))[i] for i in range(400)):
        if not (scene.labels == car).any():
            continue
        folder, name = root / "VOCdevkit/VOC2012", f"2007_{made:06d}"
        for kind, pixels in (
            ("JPEGImages", PIL.Image.fromarray(scene.image)),
            ("SegmentationClass", PIL.Image.fromarray(np.uint8(7) * (scene.labels == car))),
        ):
            path = folder / kind / f"{name}.{'jpg' if kind == 'JPEGImages' else 'png'}"
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.suffix == ".png":
                pixels.putpalette(voc_palette(256).tobytes())
            pixels.save(path)
        made += 1
        if made == n:
            break
    names = [f"2007_{i:06d}" for i in range(n)]
    write_lines(root / "VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt", *names)


def test_voc_from_layout_to_report(run, tmp_path):
    write_voc_of_cars(tmp_path / "data", 2)
    done = run(
        "evaluate voc12 --root data --method attend --model mini --report out --json --quiet"
    )
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told == json.loads((tmp_path / "out/report.json").read_text())
    assert (told["dataset"], told["split"], told["seed"], told["n_images"]) == (
        *("voc21", "val"),
        *(None, 2),
    )
    assert told["geometry"] == "scored at the size of the image"
    assert len(told["per_class"]) == 21
    assert {name for name, iou in told["per_class"].items() if iou} <= {"background", "car"}
    assert told["pixels_scored"] == 2 * 128 * 128
    assert "miou_foreground" in told["metrics"]
    assert (tmp_path / "out/worst.png").is_file()


def test_cityscapes_in_the_square_of_diffseg(run, tmp_path, tiny):
    write_cityscapes(tmp_path / "data")
    words = f"evaluate cityscapes27 --root data --method kmeans --set k=3 --model {tiny} --limit 1"
    done = run(f"{words} --size 64 --json --quiet")
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert "512x512" in told["geometry"]
    assert told["uses_gt_assignment"]


def test_a_folder_of_scenes_scores_as_scenes(tmp_path):
    scenes = Scenes("test", seed=1, hw=(128, 128))
    root = write_voc(scenes, tmp_path / "voc", 2)
    for i in range(2):
        # Without the loss of JPEG, so that nothing else can differ.
        (root / f"JPEGImages/test_1_{i:06d}.jpg").unlink()
        path = root / f"JPEGImages/test_1_{i:06d}.png"
        PIL.Image.fromarray(scenes[i].image).save(path)
    data = open_dataset("folder", root=root, split="test")
    found = check_dataset(data)
    assert found.images[0] == 0
    assert sum(found.images) == sum(len(set(scenes[i].labels.ravel())) for i in range(2))
    for i in range(2):
        assert np.array_equal(data[i].truth, scenes[i].labels + 1)
        assert np.array_equal(data[i].image.pixels, scenes[i].image)
    report = ds.evaluate(data, model="mini", limit=2)
    assert report.per_class["background"] is None
    assert 0 < report.miou <= 1


def test_another_folder_does_not_go_on_with_the_run_of_the_first(tmp_path, tiny):
    settings = {"model": str(tiny), "size": 64, "limit": 1, "report": tmp_path / "out"}
    scores = []
    for seed in (1, 2):
        root = write_voc(Scenes("val", seed=seed, hw=(64, 64)), tmp_path / str(seed), 1)
        scores.append(ds.evaluate("folder", root=root, **settings).to_dict()["per_class"])
    assert scores[0] != scores[1]


def test_the_command_lists_and_describes(run):
    done = run("datasets")
    assert done.exit_code == 0
    for name in ("voc21", "ade150", "davis2017", "folder", "bsds500"):
        assert name in done.stdout
    rows = json.loads(run("datasets --json").stdout)
    assert {"name", "kind", "classes", "split", "splits", "tree"} <= set(rows[0])
    assert [one["kind"] for one in rows] == sorted(one["kind"] for one in rows)
    told = run("datasets voc12").stdout
    assert "VOCdevkit/VOC2012/SegmentationClass/*.png" in told
    assert "val (1449 images)" in told
    assert json.loads(run("datasets camvid11 --videos --json").stdout)["kind"] == "videos"
    assert "scenes" in run("datasets scenes").stdout


def test_the_command_checks_a_folder(run, tmp_path):
    write_own(tmp_path / "own")
    done = run("datasets folder --root own")
    assert (done.exit_code, done.stdout) == (0, "folder, split all, 2 images: complete\n")
    held = json.loads(run("datasets folder --root own --json").stdout)
    assert (held["complete"], held["missing"], held["found"]) == (True, [], 2)
    assert held["per_class"] == {"background": 1, "car": 2, "tree": 2}

    (tmp_path / "own/masks/two.png").unlink()
    done = run("datasets folder --root own")
    assert done.exit_code == 1
    assert "1 of 2 masks missing, the first" in done.stdout
    assert "two.png" in done.stdout

    write_picture(tmp_path / "own/masks/two.png")
    held = run("datasets folder --root own --json")
    assert held.exit_code == 1
    assert "1 of 2 are not right" in json.loads(held.stdout)["missing"][0]


def test_the_command_counts_what_the_release_has(run, tmp_path):
    write_tiny_voc(tmp_path / "data")
    done = run("datasets voc12 --root data")
    assert done.exit_code == 1
    assert "voc21, split val, 2 of 1449 images: not complete" in done.stdout
    assert "1447 of the 1449 images of the release" in done.stdout
    assert "classes in no image: " in done.stdout
    assert json.loads(run("datasets davis2017 --root data --json").stdout)["found"] is None


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ("datasets voc2021", "did you mean"),
        ("datasets --root .", "checked for one data set"),
        ("datasets scenes --root .", "drawn, not read"),
        ("datasets voc21 --videos", "known one of videos"),
        ("evaluate voc12 --model mini", "is read from its folder"),
        ("evaluate bsds500 --root . --model mini", "evaluate-regions"),
        ("evaluate-regions voc21 --root . --model mini", "regions is asked for"),
        ("evaluate-regions bsds500 --root . --model mini --method attend", "no folder"),
    ],
)
def test_the_command_used_wrongly(run, words, why):
    done = run(words)
    assert done.exit_code == 2
    assert why in done.stderr


@pytest.mark.skipif(not (CAMVID / "val").is_dir(), reason=f"no CamVid in {CAMVID}")
def test_real_frames_from_layout_to_report(run):
    held = json.loads(run(f"datasets camvid11 --root {CAMVID} --json").stdout)
    assert (held["complete"], held["found"]) == (True, 101)
    assert min(held["per_class"].values()) > 0
    words = f"evaluate camvid11 --root {CAMVID} --model mini --method diffseg --limit 2"
    done = run(f"{words} --json --quiet")
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert (told["dataset"], told["n_images"], len(told["per_class"])) == ("camvid11", 2, 11)
    assert told["uses_gt_assignment"]
    assert 0.2 < told["acc"] < 1
    assert 0.95 < told["pixels_scored"] / (2 * 360 * 480) < 1
    assert "32" in told["note"]


def same_but_for_time(path):
    held = json.loads(path.read_text())
    measured = ("seconds_per_image", "peak_memory_mb")
    return {name: value for name, value in held.items() if name not in measured}


def test_regions_from_layout_to_report_and_on_after_a_stop(run, tmp_path, tiny):
    write_bsds(tmp_path / "data")
    for i in range(8, 13):
        for path in list((tmp_path / "data").rglob("100007.*")):
            path.with_stem(f"1000{i:02d}").write_bytes(path.read_bytes())
    words = f"evaluate-regions bsds500 --root data --model {tiny} --size 64 --batch-size 2 --quiet"
    whole = run(f"{words} --report whole --method kmeans --set k=3")
    assert whole.exit_code == 0, whole.output
    expected = same_but_for_time(tmp_path / "whole/report.json")
    assert expected["n_images"] == 6
    assert 0 < expected["metrics"]["covering"] < 1
    assert 0 < expected["metrics"]["segments"] <= 3
    assert "one to one" in (tmp_path / "whole/report.md").read_text()

    state = tmp_path / "whole/regions.jsonl"
    lines = state.read_text().splitlines(keepends=True)
    state.write_text("".join(lines[:4]) + lines[4][:40])  # three images, and half of the fourth
    assert run(f"{words} --report whole --method kmeans --set k=3").exit_code == 0
    assert same_but_for_time(tmp_path / "whole/report.json") == expected
    assert [json.loads(one)["id"] for one in state.read_text().splitlines()[1:]] == [
        f"1000{i:02d}" for i in range(7, 13)
    ]
    short = json.loads(run(f"{words} --limit 3 --method kmeans --set k=3 --json").stdout)
    again = f"{words} --report whole --limit 3 --method kmeans --set k=3 --json"
    assert json.loads(run(again).stdout)["metrics"] == short["metrics"]
    refused = run(f"{words} --method attend")
    assert refused.exit_code == 2
    assert "regions have no names" in refused.stderr


def test_regions_at_several_scales(run, tmp_path, tiny):
    write_bsds(tmp_path / "data")
    words = f"evaluate-regions bsds500 --root data --model {tiny} --size 64 --quiet --method kmeans"
    scales = run(f"{words} --scales k=2,5 --report scales --json")
    assert scales.exit_code == 0, scales.output
    told = json.loads(scales.stdout)
    assert told["boundaries"] == "the release's own"
    assert [one["settings"] for one in told["scales"]] == [{"k": "2"}, {"k": "5"}]
    assert (told["oracles"], told["uses_gt_scale"]) == (["best-scale"], True)
    # Each scale is what a run of its own finds, and the best of them is the data set's.
    alone = [json.loads(run(f"{words} --set k={k} --json").stdout) for k in (2, 5)]
    found = [one["metrics"] for one in told["scales"]]
    for mine, own in zip(found, alone, strict=True):
        assert own["metrics"] == mine | {"ods": mine["f"], "ois": mine["f"]}
        assert own["oracles"] == []
    best = max((0, 1), key=lambda i: found[i]["f"])
    assert told["scale"] == best
    assert told["parameters"]["k"] == (2, 5)[best]
    assert told["metrics"]["ods"] == told["metrics"]["ois"] == found[best]["f"] > 0
    for wrong, why in (("k=2 --scales j=3", "a setting must be a field"), ("k=", "k must be")):
        done = run(f"{words} --scales {wrong}")
        assert done.exit_code == 2
        assert why in done.stderr


@pytest.mark.skipif(not (BSDS / "gt").is_dir(), reason=f"no BSDS500 in {BSDS}")
def test_real_photographs_cut_by_people(run):
    words = f"evaluate-regions bsds500 --root {BSDS} --split val --model mini --limit 2"
    told = json.loads(run(f"{words} --json --quiet").stdout)
    assert (told["dataset"], told["split"], told["method"]) == ("bsds500", "val", "diffseg")
    assert 0.15 < told["metrics"]["covering"] < 1
    assert 0.3 < told["metrics"]["rand"] < 1
