"""The run over a data set: counts, the report, stopping and going on."""

import json

import numpy as np
import PIL.Image
import pytest

import diffuseg as ds
from diffuseg.errors import InputError
from diffuseg.eval.datasets import Dataset, Sample, SceneSet, open_dataset
from diffuseg.eval.metrics import ConfusionMatrix
from diffuseg.eval.report import truth_segmentation
from diffuseg.eval.scoring import Rules, class_labels, segment_samples
from diffuseg.image import Image
from diffuseg.result import Segmentation
from support.folders import write_sd15

VOLATILE = ("seconds_per_image", "peak_memory_mb")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return ds.load(write_sd15(tmp_path_factory.mktemp("models") / "tiny"), device="cpu")


def stable(path):
    held = json.loads((path / "report.json").read_text())
    return {name: value for name, value in held.items() if name not in VOLATILE}


def test_report(model, tmp_path):
    steps = []
    method = ds.Attend(refine=1)
    report = ds.evaluate(
        "scenes",
        model=model,
        method=method,
        limit=5,
        seed=7,
        batch_size=2,
        report=tmp_path / "run",
        progress=lambda done, total: steps.append((done, total)),
    )
    assert steps == [(2, 5), (4, 5), (5, 5)]
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        "best.png",
        "classes.png",
        "images.jsonl",
        "report.json",
        "report.md",
        "worst.png",
    ]
    data = SceneSet(split="test", seed=7, n=5)
    matrix = ConfusionMatrix(18, undecided=65535)
    told = Rules(given="classes", named=True)
    for i in range(5):
        [seg] = segment_samples(ds.build_segmenter(model, method), [data[i]], data, told)
        matrix.update(data[i].truth, class_labels(seg, data))
    held = json.loads((tmp_path / "run" / "report.json").read_text())
    assert held["miou"] == pytest.approx(matrix.miou(), abs=0.002)
    assert held["acc"] == pytest.approx(matrix.accuracy(), abs=0.002)
    assert held["miou"] == held["metrics"]["miou_gt_present"] == report.miou
    assert set(held["metrics"]) >= {"miou_things", "miou_stuff", "mean_acc", "fwiou"}
    assert set(held["per_class"]) == set(data.classes)
    absent = [name for name, iou in held["per_class"].items() if iou is None]
    assert len(absent) == int(np.isnan(matrix.iou()).sum())
    assert (held["n_images"], held["seed"], held["split"]) == (5, 7, "test")
    assert held["pixels_scored"] == 5 * 256 * 256
    assert held["uses_gt_image_labels"] is True
    assert held["average"] == "gt_present"
    assert held["parameters"]["refine"] == 1
    assert held["parameters"]["timestep"] == 100
    assert len(held["model"]["unet_sha256"]) == 64
    assert held["versions"]["diffuseg"] == ds.__version__
    assert held["seconds_per_image"]["median"] > 0
    text = (tmp_path / "run" / "report.md").read_text()
    assert "labels are used" in text
    assert f"{100 * report.miou:.1f}" in text
    with PIL.Image.open(tmp_path / "run" / "best.png") as strip:
        assert strip.width > strip.height / 2


def test_a_stopped_run_goes_on_to_the_identical_report(model, tmp_path):
    def run(folder, limit=6, **options):
        ds.evaluate(model=model, limit=limit, batch_size=2, report=folder, **options)
        return stable(folder)

    class Stop(Exception):
        pass

    def stop(done, total):
        if done == 4:
            raise Stop

    expected = run(tmp_path / "whole")
    with pytest.raises(Stop):
        run(tmp_path / "cut", progress=stop)
    state = tmp_path / "cut" / "images.jsonl"
    assert len(state.read_text().splitlines()) == 5
    state.write_text(state.read_text()[:-20])  # in the middle of the last line
    assert run(tmp_path / "cut") == expected

    lines = state.read_text().splitlines()
    done = state.stat().st_mtime_ns
    assert run(tmp_path / "cut") == expected
    assert state.read_text().splitlines() == lines
    assert state.stat().st_mtime_ns >= done
    assert run(tmp_path / "cut", limit=2) == run(tmp_path / "short", limit=2)
    assert run(tmp_path / "cut") == expected
    other = run(tmp_path / "cut", seed=2)
    assert other == run(tmp_path / "second", seed=2)
    assert other["miou"] != expected["miou"]


def test_every_seed_and_split_is_a_stream_of_its_own():
    def first(**options):
        return open_dataset("scenes", limit=1, **options)[0].image.pixels

    assert not np.array_equal(first(seed=1), first(seed=2))
    assert not np.array_equal(first(split="val"), first(split="test"))
    assert np.array_equal(first(), first(split="test", seed=1))
    assert len(open_dataset("scenes")) == 200


class Two:
    """A data set of the test's own: two pictures, one of them not labelled at all."""

    name, split, seed, ignore = "two", "all", None, 99
    classes = ("sky", "grass", "car")

    def __init__(self):
        self.groups = {}

    def __len__(self):
        return 2

    def __getitem__(self, index):
        pixels = np.random.default_rng(index).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        truth = np.full((64, 64), 99)
        if index == 0:
            truth[:32], truth[32:60] = 0, 2
        return Sample(id=str(index), image=Image(pixels=pixels), truth=truth)


def test_a_data_set_of_ones_own(model, tmp_path):
    assert isinstance(Two(), Dataset)
    report = ds.evaluate(Two(), model=model, report=tmp_path)
    assert report.n_images == 2
    assert report.pixels_scored == 60 * 64
    assert report.per_class["grass"] is None
    assert json.loads((tmp_path / "report.json").read_text())["seed"] is None
    assert ds.evaluate(Two(), model=model, limit=1).n_images == 1


def test_background_pixels_are_of_no_class(model):
    method = ds.Attend(background="threshold", threshold=2.0)
    report = ds.evaluate(Two(), model=model, method=method)
    assert (report.miou, report.acc) == (0.0, 0.0)
    assert report.threshold == {"value": 2.0, "chosen_on": "given beforehand"}


def test_labels_by_name():
    seg = Segmentation(labels=np.array([[0, 1, 2, 65535]]), names=("car", "background", "sky"))
    assert class_labels(seg, Two()).tolist() == [[2, 65535, 0, 65535]]


def test_truth_as_a_segmentation():
    sample = Sample(
        id="a",
        image=Image(pixels=np.zeros((1, 4, 3), np.uint8)),
        truth=np.array([[2, 0, 99, 2]]),
    )
    seg = truth_segmentation(sample, Two())
    assert seg.names == ("sky", "car")
    assert seg.labels.tolist() == [[1, 0, 65535, 1]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dataset": "scened"}, "data set"),
        ({"split": "dev"}, "split must be"),
        ({"limit": 0}, "number of scenes must be at least 1"),
        ({"seed": -1}, "seed must be"),
        ({"batch_size": 0}, "batch_size must be"),
        ({"average": "mean"}, "average must be one of"),
        ({"noise_seed": -1}, "seed must be"),
        ({"method": "best"}, "method must be a known name"),
    ],
)
def test_errors(model, options, message):
    with pytest.raises(InputError, match=message):
        ds.evaluate(**{"model": model, "limit": 1, **options})


def test_a_report_folder_that_cannot_be(model, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="folder of the output must"):
        ds.evaluate(model=model, limit=1, report=tmp_path / "file")


def test_a_near_name_is_offered():
    with pytest.raises(InputError) as caught:
        open_dataset("scene")
    assert "did you mean scenes?" in caught.value.remedy
