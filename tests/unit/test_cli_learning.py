"""`diffuseg train segdiffusion` in this process, with a tiny random model."""

import json

import numpy as np
import PIL.Image
import pytest
from typer.testing import CliRunner

from diffuseg.cli import app
from support.folders import write_sd15
from support.labelled import Blocks

SHORT = ("steps=3", "images=1", "queries=2", "warmup=1", "crop=32", "precision=fp32", "rank=2")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_sd15(tmp_path_factory.mktemp("models") / "base")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Pictures and masks as a user lays them out."""
    root, blocks = tmp_path_factory.mktemp("data"), Blocks(4)
    for part in ("images", "masks"):
        (root / part).mkdir()
    (root / "names.txt").write_text("\n".join(blocks.classes))
    for number in range(4):
        held = blocks[number]
        PIL.Image.fromarray(held.image.pixels).save(root / "images" / f"{held.id}.png")
        PIL.Image.fromarray(held.truth.astype(np.uint8)).save(root / "masks" / f"{held.id}.png")
    return root


def call(folder, base, data, *more, settings=SHORT):
    named = [word for one in settings for word in ("--set", one)]
    return CliRunner(env={"COLUMNS": "400"}).invoke(
        app,
        [str(one) for one in (
            "train", "segdiffusion", "--out", folder / "out", "--work", folder / "work",
            "--base", base, "--data", "folder", "--root", data, "--validation", 0, "--split", "all",
            "--device", "cpu", *named, *more,
        )],
    )  # fmt: skip


def rows(folder):
    text = (folder / "work" / "log.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def test_a_folder_of_pictures_and_masks_becomes_a_model(tmp_path, base, data):
    done = call(tmp_path, base, data, "--set", "weights=lora", "--without", "car")
    assert done.exit_code == 0, done.output
    assert str(tmp_path / "out") in done.stdout
    assert [row["step"] for row in rows(tmp_path)] == [1, 2, 3]
    facts = json.loads((tmp_path / "out" / "diffuseg.json").read_text())
    assert facts["base"] == str(base)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "Never learned: car." in card
    again = call(tmp_path, base, data, "--set", "weights=lora", "--without", "car")
    assert again.exit_code == 0
    assert len(rows(tmp_path)) == 3


def test_time_that_is_up_is_no_error_and_the_same_command_goes_on(tmp_path, base, data):
    done = call(tmp_path, base, data, "--minutes", "0.000001")
    assert done.exit_code == 0, done.output
    assert "time is up at step 1 of 3" in done.stderr
    assert not (tmp_path / "out").exists()
    done = call(tmp_path, base, data)
    assert done.exit_code == 0
    assert [row["step"] for row in rows(tmp_path)] == [1, 2, 3]
    assert (tmp_path / "out" / "unet").is_dir()


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (("--set", "step=3"), "did you mean steps"),
        (("--set", "noise=pink"), "noise must be one of annealed, multires, white"),
        (("--objective", "one-step"), "predicts velocities"),
        (("--per-device", "3"), "multiple of processes"),
        (("--export", "first"), "export must be one of last, best"),
        (("--without", "dog"), "the data set's"),
    ],
)
def test_what_makes_no_sense_is_said_at_once(tmp_path, base, data, more, told):
    failed = call(tmp_path, base, data, *more)
    assert failed.exit_code == 2
    assert told in failed.stderr
    assert not (tmp_path / "work" / "log.jsonl").exists()


def test_masks_that_are_wrong_are_found_before_the_first_step(tmp_path, base, data):
    bad = tmp_path / "bad"
    for part in ("images", "masks"):
        (bad / part).mkdir(parents=True)
        for path in (data / part).iterdir():
            (bad / part / path.name).write_bytes(path.read_bytes())
    (bad / "names.txt").write_text("grass\ncar\nhouse\n")
    PIL.Image.fromarray(np.full((64, 64), 9, np.uint8)).save(bad / "masks" / "b3.png")
    failed = call(tmp_path, base, bad)
    assert failed.exit_code == 2
    assert "b3" in failed.stderr
    assert not (tmp_path / "work" / "log.jsonl").exists()


def mixed(folder, base, data, *more):
    """As `call`, with the data told in `more`."""
    named = [word for one in SHORT for word in ("--set", one)]
    return CliRunner(env={"COLUMNS": "400"}).invoke(
        app,
        [str(one) for one in (
            "train", "segdiffusion", "--out", folder / "out", "--work", folder / "work",
            "--base", base, "--device", "cpu", *named, *more,
        )],
    )  # fmt: skip


def test_two_folders_are_mixed_and_related_names_are_read(tmp_path, base, data):
    (tmp_path / "related.txt").write_text("house ~ car\n")
    more = ("--data", "folder:2", "--root", data, "--data", "folder:1", "--root", data,
            "--split", "all", "--validation-split", "all", "--validation", "1",
            "--set", "templates=a photo of a {},a {}",
            "--related", tmp_path / "related.txt")  # fmt: skip
    done = mixed(tmp_path, base, data, *more)
    assert done.exit_code == 0, done.output
    assert "4 pictures of folder and 4 pictures of folder" in done.stderr
    validation = next(row for row in rows(tmp_path) if row["stage"] == "validation")
    assert {"folder/miou", "folder-2/miou"} <= validation.keys()
    card = (tmp_path / "out" / "README.md").read_text()
    assert '| `related` | ["house ~ car"] |' in card


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (("--data", "folder:2", "--data", "scenes"), "must have a weight, or none"),
        (("--data", "folder:much"), "NAME or NAME:WEIGHT"),
        (("--data", "folder", "--data", "scenes"), "0 for folder"),
        (("--data", "scenes", "--data", "scenes", "--limit", "1", "--limit", "1", "--limit", "1"),
         "--limit must be given once"),
        (("--data", "scenes", "--data", "dogs"), "dogs"),
        (("--related", "none.txt"), "text file"),
    ],
)  # fmt: skip
def test_mixtures_that_make_no_sense_are_refused(tmp_path, base, data, more, told):
    failed = mixed(tmp_path, base, data, *more)
    assert failed.exit_code == 2
    assert told in failed.stderr
