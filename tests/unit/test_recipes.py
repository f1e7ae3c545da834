"""Every row the papers print of their own methods has a recipe, and every recipe holds together."""

import json
from dataclasses import replace

import numpy as np
import PIL.Image
import pytest
from typer.testing import CliRunner

import diffuseg as ds
from diffuseg.cli import app
from diffuseg.errors import InputError
from diffuseg.eval.published_rows import FIGURES, published_rows
from diffuseg.eval.recipe import NO_NUMBER, NOT_RUN
from diffuseg.eval.recipes import find_recipe, list_recipes
from diffuseg.eval.reproducing import Reproduction, check_recipe, printed_rows, reproduce
from support.folders import write_sd15

OWN = ("diffseg", "iseg", "ovdiff", "vidseg", "emerdiff", "avg", "instance", "part")


@pytest.mark.parametrize("name", list_recipes())
def test_dry_run(name):
    recipe = find_recipe(name)
    check_recipe(recipe)
    assert recipe.tolerance is not None or recipe.differs
    assert ("image-labels" in recipe.oracles) == (recipe.given == "classes")
    assert ("first-frame" in recipe.oracles) == (recipe.task == "video")
    assert ("tuned-on-split" in recipe.oracles) == (recipe.task == "sweep")


def test_every_printed_row_of_the_methods_here_has_a_recipe_or_a_reason():
    made = {
        (one.dataset, one.split, figure, value)
        for one in list_recipes().values()
        for figure, value in one.expected.items()
    }
    without = []
    for row in published_rows():
        name = row.method.lower()
        if row.metric not in FIGURES or not name.startswith(OWN):
            continue
        if (row.dataset, row.split, FIGURES[row.metric], row.value) in made:
            continue
        without.append((row.method, row.table))
    assert set(without) <= set(NOT_RUN)
    assert len(made) > 150


def test_reasons_are_of_rows_that_are_printed():
    printed = {(row.method, row.table) for row in published_rows()}
    assert set(NOT_RUN) <= printed


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "sd9"}, "model must be known"),
        ({"method": "best"}, "methods are"),
        ({"settings": {"tua": 1}}, "setting must be a field"),
        ({"settings": {"iterations": "many"}}, "iterations must be"),
        ({"dataset": "voc99"}, "data set"),
        ({"split": "dev"}, "has the splits"),
        ({"expected": {"miou": 68.3}}, "must be printed where it says"),
        ({"expected": {"dice": 68.2}}, "figure must be known"),
        ({"table": "Table 9"}, "must be printed where it says"),
        ({"average": "mean"}, "rule of averaging must be known"),
        ({"oracles": ("luck",)}, "oracle must be known"),
        ({"given": "everything"}, "given must be known"),
        ({"grid": {"threshold": ("high",)}}, "threshold must be"),
    ],
)
def test_a_recipe_that_is_wrong_is_noticed(changes, message):
    with pytest.raises(InputError, match=message):
        check_recipe(replace(find_recipe("iseg-voc-val"), **changes))


def test_video_settings_are_checked_too():
    with pytest.raises(InputError):
        check_recipe(replace(find_recipe("vidseg-davis2017"), settings={"neighbours": 0}))
    with pytest.raises(InputError, match="methods of videos"):
        check_recipe(replace(find_recipe("vidseg-davis2017"), method="iseg"))


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({}, "reproduced"),
        ({"measured": {"miou": 68.71}}, "off"),
        ({"model": "mini"}, "not comparable: another model"),
        ({"limit": 10}, "not comparable: not all images"),
    ],
)
def test_verdicts(changes, verdict):
    held = {"recipe": find_recipe("iseg-voc-val"), "model": "sd2.1-base"}
    found = Reproduction(**{**held, "measured": {"miou": 67.7}, **changes})
    assert found.verdict == verdict
    assert json.loads(found.to_json())["verdict"] == verdict
    assert "68.2" in found.to_markdown()


def test_nothing_is_claimed_without_a_tolerance():
    recipe = find_recipe("semantic-diffseg-voc-val")
    found = Reproduction(recipe=recipe, model="sd1.4", measured={"miou": 39.4})
    assert found.verdict == "nothing is claimed"


def test_names():
    with pytest.raises(InputError) as caught:
        find_recipe("iseg-voc-va")
    assert "did you mean iseg-voc-val" in caught.value.remedy
    for name in NO_NUMBER:
        with pytest.raises(InputError, match="of a printed number"):
            find_recipe(name)


def test_sources_are_named():
    assert printed_rows(find_recipe("vidseg-davis2017"))[0].paper == "VidSeg"


@pytest.fixture
def voc(tmp_path):
    """PASCAL VOC as it lies, with two images."""
    folder = tmp_path / "VOCdevkit" / "VOC2012"
    for one in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (folder / one).mkdir(parents=True)
    random = np.random.default_rng(0)
    for name in ("2007_000001", "2007_000002"):
        pixels = random.integers(0, 256, (48, 64, 3), dtype=np.uint8)
        PIL.Image.fromarray(pixels).save(folder / "JPEGImages" / f"{name}.jpg")
        labels = np.zeros((48, 64), dtype=np.uint8)
        labels[10:30, 10:30], labels[:5] = 8, 255
        mask = PIL.Image.fromarray(labels, mode="P")
        mask.putpalette([i for c in range(256) for i in (c, c, c)])
        mask.save(folder / "SegmentationClass" / f"{name}.png")
    for split in ("train", "val"):
        listed = folder / "ImageSets" / "Segmentation" / f"{split}.txt"
        listed.write_text("2007_000001\n2007_000002\n")
    return tmp_path / "VOCdevkit"


def test_a_recipe_runs_from_its_folder_to_its_verdict(voc, tmp_path):
    model = ds.load(write_sd15(tmp_path / "tiny"), device="cpu")
    found = reproduce(
        "diffsegmenter-voc-train", root=voc, model="tiny", loaded=model, report=tmp_path / "run"
    )
    assert set(found.measured) == {"miou"}
    assert 0 <= found.measured["miou"] <= 100
    assert found.verdict == "not comparable: another model"
    held = json.loads((tmp_path / "run" / "reproduction.json").read_text())
    assert held["expected"] == {"miou": 70.5}
    swept = json.loads((tmp_path / "run" / "sweep.json").read_text())
    assert len(swept["rows"]) == 45
    assert (tmp_path / "run" / "reproduction.md").read_text().startswith("# diffsegmenter-voc")


def test_command(voc, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")

    def call(*args):
        return CliRunner().invoke(app, [str(one) for one in args])

    listed = call("reproduce")
    assert listed.exit_code == 0
    assert "iseg-voc-val" in listed.output
    assert "prints no number" in listed.output
    every = call("reproduce", "--dry-run", "--json")
    assert len(json.loads(every.stdout)["recipes"]) == len(list_recipes())
    one = call("reproduce", "iseg-voc-val", "--dry-run", "--root", voc)
    assert one.exit_code == 0
    assert "Tolerance: 0.5 points" in one.output
    assert "checked" in one.output
    missing = call("reproduce", "iseg-voc-val", "--dry-run", "--root", tmp_path / "nothing")
    assert missing.exit_code == 2
    assert call("reproduce", "iseg-voc-val").exit_code == 2
    assert call("reproduce", "nothing-at-all").exit_code == 2
