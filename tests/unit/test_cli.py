"""The command line in this process, with a tiny random model: outputs, errors, exit codes."""

import json

import numpy as np
import PIL.Image
import pytest

import diffuseg as ds
from diffuseg.world import Scenes
from support.commands import call, files, segment, write_picture
from support.folders import write_mini, write_sd15
from support.vits import write_vit


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return write_mini(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    """A model that reads any word."""
    return write_sd15(tmp_path_factory.mktemp("models") / "reader")


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # Wide enough that no message is wrapped.
    monkeypatch.setenv("COLUMNS", "400")
    return tmp_path


# ---- what works


def test_one_image(here, tiny):
    write_picture(here / "a.png")
    done = segment("a.png", "-o", "out", tiny=tiny)
    assert done.exit_code == 0, done.output
    assert files(here / "out") == [
        ".diffuseg.jsonl",
        "a.names.json",
        "a.overlay.png",
        "a.png",
    ]
    assert done.stdout.split() == ["out/a.png", "out/a.overlay.png"]
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"model tiny ({tiny}), float32 on cpu; method attend")
    seg = ds.Segmentation.load(here / "out/a.png")
    assert seg.names == ("cat", "dog")
    assert seg.provenance.model == f"tiny ({tiny})"


def test_same_as_the_library(here, tiny):
    write_picture(here / "a.png")
    options = ["--set", "refine=1", "--set", "levels=1,2", "--seed", "4", "-f", "npz", "--scores"]
    assert segment("a.png", *options, tiny=tiny).exit_code == 0
    written = ds.Segmentation.load(here / "out/a.npz")
    method = ds.Attend(refine=1, levels=(1, 2))
    expected = ds.segment("a.png", "cat, dog", model=tiny, method=method, seed=4, keep_scores=True)
    assert (written.labels == expected.labels).all()
    np.testing.assert_array_equal(written.scores, expected.scores)
    assert written.provenance.parameters == expected.provenance.parameters


def test_a_folder_with_a_bad_file(here, tiny):
    for i, name in enumerate(("a.png", "b.png", "sub/c.png")):
        write_picture(here / "photos" / name, i)
    (here / "photos/b.png").write_bytes(b"no image")
    done = segment("photos", "--no-overlay", tiny=tiny)
    assert done.exit_code == 1
    assert "1 of 3 images failed:" in done.stderr
    assert "error: photos/b.png: the file must be an image" in done.stderr
    assert "2 images in out" in done.stdout
    assert files(here / "out") == [
        ".diffuseg.jsonl",
        "a.names.json",
        "a.png",
        "sub/c.names.json",
        "sub/c.png",
    ]
    write_picture(here / "photos/b.png")
    again = segment("photos", "--no-overlay", "--resume", tiny=tiny)
    assert again.exit_code == 0
    assert "3 images in out, 2 of them done before" in again.stdout


def test_json_and_formats(here, tiny):
    write_picture(here / "a.png")
    done = segment("a.png", "no.png", "--json", "-f", "all", tiny=tiny)
    assert done.exit_code == 1
    held = json.loads(done.stdout)
    assert held["model"] == f"tiny ({tiny})"
    good, bad = held["images"]
    assert [path.rsplit("/")[-1] for path in good["outputs"]] == [
        "a.png",
        "a.npz",
        "a.json",
        "a.geojson",
        "a.masks",
        "a.overlay.png",
    ]
    assert sum(good["areas"].values()) == 64 * 80
    assert "image file must exist" in bad["error"]


def test_preview_on_request(here, tiny):
    write_picture(here / "a.png")
    done = segment("a.png", "--preview", tiny=tiny)
    assert "%" in done.stdout
    assert len(done.stdout.splitlines()) > 10


def test_quiet(here, tiny):
    write_picture(here / "a.png")
    done = segment("a.png", "-q", tiny=tiny)
    assert (done.exit_code, done.output) == (0, "")


def test_record_and_replay(here, tiny):
    write_picture(here / "a.png")
    done = call("record", "a.png", "-o", "a.safetensors", "-c", "cat, dog", "-m", tiny)
    assert done.exit_code == 0, done.output
    assert "AttentionRecord" in done.stdout
    done = call(
        "replay", "a.safetensors", "--set", "refine=2", "--image", "a.png", "-f", "png,coco"
    )
    assert done.exit_code == 0, done.output
    assert files(here / "out") == ["a.json", "a.names.json", "a.overlay.png", "a.png"]
    expected = ds.segment("a.png", "cat, dog", model=tiny, method=ds.Attend(refine=2))
    assert (ds.Segmentation.load(here / "out/a.png").labels == expected.labels).all()
    held = json.loads(call("replay", "a.safetensors", "--json").stdout)
    assert set(held) == {"outputs", "areas"}


def test_evaluate(here, reader):
    done = call(
        "evaluate", "scenes", "--method", "attend", "--model", reader, "--limit", "3",
        "--seed", "1", "--report", "run", "--set", "levels=1", "--split", "val", "--json",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    printed = json.loads(done.stdout)
    written = json.loads((here / "run/report.json").read_text())
    assert printed == written
    assert (written["n_images"], written["split"], written["seed"]) == (3, "val", 1)
    assert written["parameters"]["levels"] == [1]
    assert set(written) >= {"miou", "acc", "per_class"}
    shown = call("evaluate", "scenes", "-m", reader, "--limit", "2", "--set", "levels=1")
    assert "pixel accuracy" in shown.stdout


def test_demo(here, reader):
    done = call("demo", "-o", "shown", "--model", reader, "--index", "2")
    assert done.exit_code == 0, done.output
    assert files(here / "shown") == [
        "demo.png",
        "input.png",
        "labels.names.json",
        "labels.png",
        "overlay.png",
    ]
    assert str(here / "shown" / "demo.png") in done.stdout
    assert "IoU against the truth" in done.stdout
    names = ds.Segmentation.load(here / "shown/labels.png").names
    assert set(names) == set(Scenes("test", seed=3)[2].names)
    with PIL.Image.open(here / "shown/input.png") as picture:
        assert (np.asarray(picture) == Scenes("test", seed=3)[2].image).all()
    held = json.loads(call("demo", "-o", "shown", "--model", reader, "--json").stdout)
    assert set(held) == {"picture", "classes", "iou", "miou"}


def test_models_and_doctor(here):
    assert "mini" in call("models").stdout
    rows = json.loads(call("models", "--json").stdout)
    assert {row["name"] for row in rows} >= {"mini", "sd1.5", "sd2.1-base", "sdxl"}
    found = json.loads(call("doctor", "--json").stdout)
    assert set(found) == {"versions", "devices", "extras", "models", "settings"}
    assert "torch" in call("doctor").stdout


def test_scenes_on_disk(here):
    done = call("scenes", "voc", "--count", "1", "--split", "val", "--seed", "5")
    assert (done.exit_code, done.stdout) == (0, "voc\n")
    assert files(here / "voc/JPEGImages") == ["val_5_000000.jpg"]
    done = call(
        "scenes", "davis", "--layout", "davis", "--count", "1", "--split", "val", "--frames", "2"
    )
    assert done.exit_code == 0, done.output
    assert len(files(here / "davis/JPEGImages")) == 2
    wrong = call("scenes", "x", "--layout", "coco")
    assert wrong.exit_code == 2
    assert "layout must be voc or davis" in wrong.stderr


def test_train_mini_is_there(here):
    done = call("train", "mini", "--help")
    assert done.exit_code == 0
    assert "--stage" in done.stdout


def test_version_and_help():
    assert call("--version").stdout.strip() == ds.__version__
    for command in ("segment", "demo", "record", "replay", "evaluate", "models", "doctor"):
        assert call(command, "--help").exit_code == 0


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "vit"
    write_vit(folder, "vit")
    return folder


def without_classes(*args, model, method):
    return call("segment", *args, "--method", method, "--model", model, "--device", "cpu", "--json")


@pytest.mark.parametrize("method", ["diffseg", "dinoseg", "semantic-diffseg"])
def test_no_classes_for_one_image_several_and_folders(here, tiny, vit, method, monkeypatch):
    monkeypatch.setattr("diffuseg.models.CAPTIONER", "nobody/asks")
    model = vit if method == "dinoseg" else tiny
    words = ["--caption", "a cat on grass"] if method == "semantic-diffseg" else []
    for i, name in enumerate(("one.png", "two.png", "photos/a.png", "photos/sub/b.png")):
        write_picture(here / name, i)
    options = [*words, "--batch-size", "3", "--set", "anchors=2"]
    done = without_classes("one.png", "-o", "first", *options, model=model, method=method)
    assert done.exit_code == 0, done.output
    named = ["one.png", "two.png", "photos"]
    done = without_classes(*named, "-o", "all", *options, model=model, method=method)
    assert done.exit_code == 0, done.output
    rows = json.loads(done.stdout)["images"]
    assert len(rows) == 4
    assert all(row["areas"] for row in rows)
    if words:
        assert all(row["caption"] == "a cat on grass" for row in rows)
        assert all(set(row["areas"]) == {"cat", "grass"} for row in rows)
    found = [file for file in files(here / "all") if file.endswith(".names.json")]
    assert found == ["a.names.json", "one.names.json", "sub/b.names.json", "two.names.json"]
    alone, together = (ds.Segmentation.load(here / part / "one.png") for part in ("first", "all"))
    assert (alone.labels == together.labels).mean() > 0.99
    assert alone.provenance.method == method


def test_another_caption_is_another_run(here, tiny):
    write_picture(here / "a.png")
    common = {"model": tiny, "method": "semantic-diffseg"}
    for text, skipped in (("a cat", False), ("a cat", True), ("a dog", False)):
        done = without_classes("a.png", "--resume", "--caption", text, **common)
        assert json.loads(done.stdout)["images"][0]["skipped"] is skipped


def test_record_and_replay_with_a_caption(here, tiny):
    write_picture(here / "a.png")
    options = ["--caption", "a cat on grass", "--method", "semantic-diffseg", "--model", tiny]
    assert call("record", "a.png", "-o", "a.safetensors", *options).exit_code == 0
    done = call("replay", "a.safetensors", "--method", "semantic-diffseg")
    assert done.exit_code == 0, done.output
    assert ds.Segmentation.load(here / "out/a.png").names == ("cat", "grass")


def test_a_captioner_that_is_not_there(here, tiny):
    write_picture(here / "a.png")
    done = without_classes(
        "a.png", "--captioner", "./nowhere", model=tiny, method="semantic-diffseg"
    )
    assert done.exit_code == 1
    assert "or give a caption, or classes" in done.stderr
    assert not (here / "out").exists()


# ---- images of every kind


# ---- what cannot be
