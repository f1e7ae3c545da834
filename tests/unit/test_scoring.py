"""What a method is told of the truth, and what counts of segments that have no names."""

import json
from dataclasses import dataclass, replace

import numpy as np
import pytest
from typer.testing import CliRunner

import diffuseg as ds
from diffuseg.cli import app
from diffuseg.errors import InputError
from diffuseg.eval import sweep as module
from diffuseg.eval.datasets import Sample
from diffuseg.eval.hungarian import SegmentCounts
from diffuseg.eval.scoring import (
    Rules,
    find_rules,
    informed,
    name_by_truth,
    score_sample,
    segment_samples,
)
from diffuseg.eval.sweep_report import curves
from diffuseg.image import Image
from diffuseg.methods import METHODS, DiffSeg
from diffuseg.result import Segmentation
from support.folders import write_sd15

VOLATILE = ("seconds_per_image", "peak_memory_mb")
# Of the tiny model, so that there are several segments.
TAU = 0.001
MATCHED = Rules(given="nothing", named=False)


class Small:
    """Pictures of 48 pixels with 1, 2 or 3 classes and some pixels that are not scored."""

    name, split, seed, ignore = "small", "all", None, 255
    classes = ("sky", "grass", "car")
    groups = {"things": ("car",)}  # noqa: RUF012

    def __len__(self):
        return 3

    def __getitem__(self, index):
        rng = np.random.default_rng(index)
        truth = np.repeat(np.repeat(rng.integers(0, index + 1, (4, 4)), 12, axis=0), 12, axis=1)
        truth[:3] = 255
        pixels = rng.integers(0, 256, (48, 48, 3), dtype=np.uint8)
        return Sample(id=str(index), image=Image(pixels=pixels), truth=truth)


@dataclass(frozen=True, slots=True, kw_only=True)
class Counting(DiffSeg):
    """Merges until it has told how many it was asked for; what it finds does not matter here."""

    k: int | None = 7


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return ds.load(write_sd15(tmp_path_factory.mktemp("models") / "tiny"), device="cpu")


def counted(truth, prediction, k=3, **options):
    counts = SegmentCounts(k, **options)
    counts.update(np.array(truth), np.array(prediction))
    return counts


# ---- counting


def test_figures_of_every_protocol():
    first = counted([0, 0, 0, 1, 1, 255], [5, 5, 0, 1, 0, 2])
    assert first.accuracy() == first.strict.accuracy() == 3 / 5
    assert first.majority.counts.tolist() == [[3, 0, 0], [1, 1, 0], [0, 0, 0]]
    assert first.n_segments == 4
    both = first + counted([0, 0, 1], [1, 1, 5])
    assert (both.n_images, both.n_pixels, both.n_segments) == (2, 8, 6)
    assert both.accuracy() == 6 / 8
    # Segment 5 as class 0 or 1 as class 0: the numbers of two images have nothing in common.
    assert both.dataset.accuracy() == 3 / 8


def test_undecided_pixels_are_missed_and_are_no_segment():
    found = counted([0, 0, 1, 255], [3, 65535, 65535, 65535], undecided=65535)
    assert found.n_segments == 1
    assert found.table.shape == (3, 4)
    for matching in (found.image, found.strict, found.dataset):
        assert (matching.tp.tolist(), matching.fn.tolist()) == ([1, 0, 0], [1, 1, 0])
        assert (matching.fp.sum(), matching.n_pixels) == (0, 3)
    assert found.majority.missed.tolist() == [1, 1, 0]


def test_a_row_holds_all_of_an_image():
    found = counted([0, 0, 1, 2, 255], [7, 3, 3, 9, 65535], undecided=65535)
    empty = SegmentCounts(3, undecided=65535)
    again = empty.with_row(json.loads(json.dumps(found.row())))
    assert again.row() == found.row()
    for name in ("image", "strict", "dataset"):
        mine, theirs = getattr(again, name), getattr(found, name)
        assert (mine.tp == theirs.tp).all()
        assert (mine.fp == theirs.fp).all()
        assert (mine.fn == theirs.fn).all()
    assert again.majority == found.majority
    assert empty.n_images == 0


def test_numbering_moves_the_published_mean_and_nothing_else():
    rng = np.random.default_rng(0)
    order = rng.permutation(6)
    plain, renumbered = SegmentCounts(6), SegmentCounts(6)
    for _ in range(20):
        # Three of six classes, each in two parts, of which the smaller is left over.
        shown = rng.integers(0, 3, (24, 24))
        truth = rng.permutation(6)[shown]
        segments = 2 * shown + (rng.random(shown.shape) < 0.3)
        plain.update(truth, segments)
        renumbered.update(truth, order[segments])
    assert plain.accuracy() == renumbered.accuracy()
    assert plain.strict.miou() == renumbered.strict.miou()
    assert plain.majority == renumbered.majority
    assert plain.miou() != renumbered.miou()
    # Absent classes get the segments left over, which counts against the published mean.
    assert plain.miou() < plain.strict.miou()


def test_counts_of_other_classes_do_not_add_up():
    with pytest.raises(InputError, match="protocol are the same"):
        _ = SegmentCounts(2) + SegmentCounts(3)
    assert SegmentCounts(2).__add__(1) is NotImplemented


def test_scores_leave_the_numbers_as_they_are():
    data = Small()
    sample = replace(data[2], truth=np.array([[0, 0, 1, 2, 255]]))
    result = Segmentation(labels=np.array([[4, 4, 2, 99, 0]]), names=tuple("abcde"), ignore=99)
    found = score_sample(sample, result, data, MATCHED)
    assert found.table.tolist() == [[0, 0, 0, 0, 2], [0, 0, 1, 0, 0], [0, 0, 0, 0, 0]]
    assert found.missed.tolist() == [0, 0, 1]
    assert found.accuracy() == 3 / 4


def test_segments_are_called_after_the_classes_they_match():
    data = Small()
    sample = replace(data[2], truth=np.array([[0, 0, 1, 1, 1, 255]]))
    result = Segmentation(labels=np.array([[2, 0, 1, 1, 0, 0]]), names=("s0", "s1", "s2"))
    assert name_by_truth(sample, result, data).names in (
        ("s0", "grass", "sky"),
        ("sky", "grass", "s2"),
    )


# ---- what is told


def test_what_methods_are_told_unless_one_says(model):
    data = Small()
    expected = {
        "attend": ("classes", True),
        "diffseg": ("nothing", False),
        "semantic-diffseg": ("nothing", True),
    }
    for name, (given, named) in expected.items():
        rules = find_rules(METHODS[name](), model, data, 3)
        assert (rules.given, rules.named) == (given, named)
    assert find_rules(METHODS["semantic-diffseg"](), model, data, 3, "classes").given == "classes"


def test_numbers_of_segments_come_from_the_truth(model):
    data = Small()
    each = find_rules(Counting(), model, data, 3, "count")
    assert [informed(Counting(), data[i], data, each).k for i in range(3)] == [1, 2, 3]
    mean = find_rules(Counting(), model, data, 3, "mean_count")
    assert [informed(Counting(), data[i], data, mean).k for i in range(3)] == [2, 2, 2]
    told = find_rules(Counting(), model, data, 3)
    assert informed(Counting(), data[0], data, told).k == 7


@pytest.mark.parametrize(
    ("method", "given", "message"),
    [
        (DiffSeg(), "everything", "what is given must be one of classes, vocabulary, count"),
        (DiffSeg(), "classes", "classes are given to methods that look for them"),
        (DiffSeg(), "count", "a number of segments is given to methods that make"),
        (Counting(k=None), None, "Counting must be told how many segments there are"),
        (ds.Attend(), "mean_count", "a number of segments is given to methods that make"),
    ],
)
def test_what_cannot_be_told(model, method, given, message):
    with pytest.raises(InputError, match=message):
        ds.evaluate(Small(), method=method, model=model, given=given)


def test_classes_are_not_kept_from_a_method_that_needs_them(model):
    with pytest.raises(InputError, match="needs the names of the classes"):
        ds.evaluate(Small(), model=model, given="nothing", size=64)


# ---- runs


def stable(path):
    held = json.loads((path / "report.json").read_text())
    return {name: value for name, value in held.items() if name not in VOLATILE}


def test_a_report_of_segments_without_names(model, tmp_path):
    class Stop(Exception):
        pass

    def stop(done, total):
        raise Stop

    data, method = Small(), DiffSeg(tau=TAU, anchors=4)

    def run(folder, **options):
        found = ds.evaluate(
            data, method=method, model=model, size=64, batch_size=1, report=folder, **options
        )
        return found, stable(folder)

    report, expected = run(tmp_path / "whole")
    counts = SegmentCounts(3, undecided=65535)
    segmenter = ds.build_segmenter(model, method, size=64)
    for i in range(3):
        [seg] = segment_samples(segmenter, [data[i]], data, MATCHED)
        truth = np.where(data[i].truth == 255, -1, data[i].truth.astype(int))
        counts.update(truth, seg.labels)
    assert (report.miou, report.acc) == (counts.miou(), counts.accuracy())
    assert report.metrics["miou_strict"] == counts.strict.miou()
    assert report.metrics["acc_dataset"] == counts.dataset.accuracy()
    assert report.metrics["acc_majority"] == counts.majority.accuracy() >= report.acc
    assert report.metrics["segments"] == counts.n_segments / 3 > 1
    assert report.pixels_scored == 3 * 45 * 48
    assert (report.average, report.uses_gt_assignment) == ("union_present", True)
    assert report.uses_gt_image_labels is False
    text = (tmp_path / "whole" / "report.md").read_text()
    assert "per-image Hungarian" in text
    assert "segments an image" in text
    assert (tmp_path / "whole" / "best.png").is_file()

    with pytest.raises(Stop):
        run(tmp_path / "cut", progress=stop)
    assert len((tmp_path / "cut" / "images.jsonl").read_text().splitlines()) == 2
    assert run(tmp_path / "cut")[1] == expected


def test_told_numbers_are_told_of_in_the_report(model):
    report = ds.evaluate(
        Small(), method=Counting(tau=TAU), model=model, size=64, limit=2, given="count"
    )
    assert report.uses_gt_class_count
    assert report.parameters["k"] == "the number of classes of the image"
    assert "the number of classes of each image is given" in report.to_markdown()


def test_a_sweep_finds_what_an_evaluation_finds(model, tmp_path, monkeypatch):
    calls = []

    def capture(image, model, needs, *rest, **options):
        calls.append(needs.timesteps)
        return ds.capture(image, model, needs, *rest, **options)

    monkeypatch.setattr(module, "capture", capture)
    data = Small()
    grid = {"timestep": [300, 50], "tau": [TAU, 10 * TAU, 100 * TAU], "anchors": [4]}
    found = ds.sweep(
        data, grid, method=DiffSeg(tau=TAU), model=model, size=64, limit=2, one_by_one=True,
        report=tmp_path,
    )  # fmt: skip
    assert calls == [(300, 50)] * 2
    assert [row["settings"] for row in found.rows] == [
        {"timestep": 300}, {"timestep": 50}, {"tau": TAU}, {"tau": 10 * TAU}, {"tau": 100 * TAU},
    ]  # fmt: skip
    assert found.fixed == {"anchors": 4, "tau": TAU}
    for row in found.rows[1:3]:
        one = DiffSeg(**{"anchors": 4, "tau": TAU, **row["settings"]})
        alone = ds.evaluate(data, method=one, model=model, size=64, limit=2, batch_size=1)
        for name in ("miou", "acc"):
            assert row[name] == getattr(alone, name)
        for name in ("miou_strict", "miou_dataset", "acc_majority", "segments"):
            assert row[name] == alone.metrics[name]
    assert found.rows[2]["segments"] >= found.rows[4]["segments"]
    assert (tmp_path / "tau.png").is_file()
    assert (tmp_path / "timestep.png").is_file()
    assert list(curves(found, "tau")) == ["acc", "miou", "miou_strict"]
    assert len(curves(found, "tau", counts=True)["segments"]) == 3
    table = found.to_markdown()
    assert "| timestep | tau | miou |" in table
    assert "per-image Hungarian" in table


# ---- the command line


def test_commands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = str(write_sd15(tmp_path / "tiny"))

    def call(*args):
        return CliRunner().invoke(app, [*args, "--model", folder, "--device", "cpu"])

    options = ("--method", "diffseg", "--set", "anchors=4")
    done = call(
        "evaluate",
        "scenes",
        *options,
        "--set",
        f"tau={TAU}",
        "--limit",
        "1",
        "--size",
        "64",
        "--json",
    )
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["uses_gt_assignment"] is True
    done = call("evaluate", "scenes", *options, "--limit", "1", "--given", "classes")
    assert done.exit_code != 0
    assert "classes are given to methods" in done.output
    done = call(
        "sweep", "scenes", *options, "--set", "tau=0.001,0.01", "--set", "rounds=2,3",
        "--one-by-one", "--limit", "1", "--size", "64", "--json", "--report", "sweep",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert [sorted(row["settings"]) for row in json.loads(done.stdout)["rows"]] == [
        ["tau"], ["tau"], ["rounds"], ["rounds"],
    ]  # fmt: skip
    assert (tmp_path / "sweep" / "rounds.png").is_file()


def test_demo(tmp_path):
    folder = str(write_sd15(tmp_path / "tiny"))
    args = ["demo", "--method", "diffseg", "--model", folder, "-o", str(tmp_path / "shown")]
    done = CliRunner().invoke(app, [*args, "--device", "cpu", "--set", "anchors=4"])
    assert done.exit_code == 0, done.output
    assert "segments matched to it" in done.output
    assert (tmp_path / "shown" / "demo.png").is_file()
