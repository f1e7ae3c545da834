"""One image shown once, selected in many times: in Python, on the command line, and scored."""

import io
import json

import numpy as np
import PIL.Image
import pytest
from typer.testing import CliRunner

import diffuseg as ds
from diffuseg.cli import app
from diffuseg.errors import InputError
from diffuseg.eval import clicking
from diffuseg.eval.datasets import Sample, SceneSet
from diffuseg.methods.clicks import Clicks
from diffuseg.methods.interactive import Interactive
from support.folders import write_mini
from support.refusal import refused

HW = (64, 80)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return write_mini(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "400")
    PIL.Image.fromarray(pixels()).save(tmp_path / "a.png")
    return tmp_path


@pytest.fixture(scope="module")
def picture(tiny):
    return ds.interact(pixels(), str(tiny))


def pixels(seed=0):
    return np.random.default_rng(seed).integers(0, 256, (*HW, 3), dtype=np.uint8)


# ---- in Python


def test_segment(picture):
    found = picture.segment(points=[(10, 20)], negative_points=[(70, 50)], keep_scores=True)
    assert found.hw == HW
    assert found.names == ("rest", "selected")
    assert found.scores.shape == (2, *HW)
    assert found.provenance.method == "interactive"
    assert {"encode", "denoise", "prepare", "select"} <= set(found.provenance.seconds)
    mask = np.zeros(HW)
    mask[10:20, 10:20] = 1
    for given in (
        {"boxes": (0, 0, 40, 40), "negative_boxes": [(50, 0, 80, 64)]},
        {"lines": [(0, 0), (20, 20)], "negative_lines": [[(60, 60), (79, 60)]]},
        {"mask": mask, "negative_mask": 1 - mask},
        {"points": [(1, 1), (70, 60)], "labels": [1, 0]},
    ):
        assert picture.segment(**given).hw == HW


def test_labels_are_those_of_two_lists(picture):
    by_labels = picture.segment(points=[(10, 20), (70, 50)], labels=[1, 0])
    by_lists = picture.segment(points=(10, 20), negative_points=(70, 50))
    assert np.array_equal(by_labels.labels, by_lists.labels)


def test_click_by_click(picture):
    picture.reset()
    with pytest.raises(InputError, match="at least one mark"):
        _ = picture.result
    first = picture.add_point(10, 20)
    picture.add_point(70, 50, positive=False)
    assert len(picture.clicks) == 2
    at_once = picture.segment(points=(10, 20), negative_points=(70, 50))
    assert np.array_equal(picture.result.labels, at_once.labels)
    picture.undo()
    assert np.array_equal(picture.result.labels, first.labels)
    with pytest.raises(InputError, match="must lie in the image"):
        picture.add_point(80, 0)
    assert len(picture.clicks) == 1  # what cannot be used is not kept
    picture.add_box(0, 0, 9, 9)
    picture.add_line([(1, 1), (5, 5)], positive=False)
    picture.add_mask(np.ones(HW), positive=False)
    assert [one.shape for one in picture.clicks.marks] == ["point", "box", "line", "mask"]
    picture.reset()
    picture.undo()
    assert len(picture.clicks) == 0


def test_words_and_clicks(tiny):
    method = Interactive(template="a {}")
    picture = ds.interact(pixels(), str(tiny), classes="cat", method=method)
    assert picture.result.hw == HW
    assert picture.segment(negative_points=(3, 3)).hw == HW
    assert picture.segment(points=(3, 3), boxes=(0, 0, 9, 9)).hw == HW


def test_another_method_is_refused(tiny):
    with refused("selected by the interactive method"):
        ds.interact(pixels(), str(tiny), method=ds.Attend())


# ---- on the command line


def call(*args):
    return CliRunner().invoke(app, [str(one) for one in args])


def test_select_writes_files(here, tiny):
    PIL.Image.fromarray(np.eye(64, 80, dtype=np.uint8) * 255).save(here / "m.png")
    done = call(
        "select", "a.png", "--point", "10,20", "--not-point", "70,50", "--box", "0,0,40,40",
        "--not-box", "60,0,80,9", "--line", "1,1:20,20", "--not-line", "70,9:79,40",
        "--mask", "m.png", "--not-mask", "m.png", "-o", "out", "-m", tiny, "--json",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    names = ["a.png", "a.overlay.png", "a.cutout.png"]
    assert [one.rpartition("/")[2] for one in told["outputs"]] == names
    seg = ds.Segmentation.load(here / "out" / "a.png")
    assert seg.areas["selected"] == told["area"]
    cut = np.asarray(PIL.Image.open(here / "out" / "a.cutout.png"))
    assert np.array_equal(cut[..., 3] == 255, seg["selected"])
    assert np.array_equal(cut[..., :3], pixels())


def test_select_prints_its_files(here, tiny):
    done = call(
        "select", "a.png", "--point", "10,20", "-m", tiny, "--no-overlay", "--no-cutout",
        "--set", "spread=likeness", "--set", "cells=16",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert done.stdout.split() == ["out/a.png"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "at least one mark must show what is wanted"),
        (("--not-point", "1,1"), "at least one mark must show what is wanted"),
        (("--point", "1;2"), "numbers with commas between"),
        (("--point", "1,2,3"), "a point is (x, y)"),
        (("--point", "80,2"), "a point must lie in the image, 80 wide and 64 high"),
        (("--box", "1,2"), "a box is (x0, y0, x1, y1)"),
        (("--line", "1,2:3"), "a line is two points"),
        (("--mask", "none.png"), "the image file must exist"),
        (("--point", "1,1", "--set", "tau=1"), "a setting must be a field of Interactive"),
        (("--point", "1,1", "--format", "bmp"), "format"),
    ],
)
def test_select_refuses_with_one_message(here, tiny, options, message):
    done = call("select", "a.png", *options, "-m", tiny, "-o", "out")
    assert done.exit_code == 2
    assert message in done.stderr
    assert done.stderr.count("error:") == 1
    assert not (here / "out").exists()


# ---- scored


def test_the_first_click_is_in_the_middle_and_the_next_on_the_largest_error():
    truth = np.zeros((40, 40), dtype=bool)
    truth[10:21, 10:21] = True
    seen: list[Clicks] = []

    def select(clicks):
        seen.append(clicks)
        found = truth.copy()
        if len(clicks) == 1:
            found[:, 25:36] = True  # far more than is missing
        if len(clicks) == 2:
            found[10:13] = False
        return found

    ious = clicking.click_on(truth, select, 4)
    marks = [(one.marks[-1].at[0], one.marks[-1].positive) for one in seen]
    assert marks[:3] == [((15, 15), True), ((30, 5), False), ((11, 11), True)]
    assert ious[2:] == [1.0, 1.0]
    assert len(seen) == 3  # nothing is left to say
    assert 0 < ious[0] < ious[1] < 1


def test_a_thing_at_the_border_is_clicked_inside():
    mask = np.zeros((20, 30), dtype=bool)
    mask[:9, :9] = True
    assert clicking.pole(mask) == (5.0, (4, 4))


def test_report_and_resume(tiny, tmp_path, monkeypatch):
    data = SceneSet(split="val", seed=3, n=2, hw=(64, 64))
    model = ds.load(str(tiny), device="cpu")
    seen: list[tuple[int, int]] = []
    first = clicking.evaluate_clicks(
        data, model=model, clicks=2, limit=1, report=tmp_path, progress=lambda *at: seen.append(at)
    )
    assert seen == [(1, 1)]
    whole = clicking.evaluate_clicks(data, model=model, clicks=2, report=tmp_path)
    assert (first.n_images, whole.n_images) == (1, 2)
    assert whole.n_things == sum(len(np.unique(data[i].instances)) - 1 for i in range(2))
    assert len(whole.mean_iou) == 2
    assert set(whole.clicks_needed) == set(whole.missed) == {"80", "85"}
    assert whole.model["name"]

    def none(*_):
        raise AssertionError("nothing is left to do")

    monkeypatch.setattr(clicking, "interact", none)
    again = clicking.evaluate_clicks(data, model=model, clicks=2, report=tmp_path)
    assert again == whole
    assert json.loads((tmp_path / "clicks.json").read_text())["mean_iou"] == list(whole.mean_iou)
    assert "NoC@80" in (tmp_path / "clicks.md").read_text()


def test_samples_must_tell_things_apart(tiny):
    class Plain(SceneSet):
        def __getitem__(self, index):
            held = super().__getitem__(index)
            return Sample(id=held.id, image=held.image, truth=held.truth)

    with pytest.raises(InputError, match="things that are told apart"):
        clicking.evaluate_clicks(Plain(n=1, hw=(64, 64)), model=str(tiny))


def test_evaluate_clicks_command(here, tiny):
    done = call(
        "evaluate-clicks", "scenes", "--clicks", "1", "--limit", "1", "-m", tiny,
        "--set", "iterations=2", "--report", "r", "--json",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["parameters"]["iterations"] == 2
    assert len(told["mean_iou"]) == 1
    assert io.StringIO((here / "r" / "clicks.md").read_text()).readline().startswith("# scenes")
