"""The training log: windows, lines, curves."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from diffuseg.train.log import TrainLog


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_line_is_the_mean_of_its_window(tmp_path):
    log = TrainLog(tmp_path / "run" / "log.jsonl", every=2)
    for step, loss in enumerate((1.0, 3.0, 5.0, 6.0, 9.0), start=1):
        log.write("vae", step, loss=loss)
    rows = lines(tmp_path / "run" / "log.jsonl")
    assert [(row["stage"], row["step"], row["loss"]) for row in rows] == [
        ("vae", 2, 2.0),
        ("vae", 4, 5.5),
    ]


def test_a_resumed_run_goes_on_with_the_file(tmp_path):
    for step in (1, 2):
        TrainLog(tmp_path / "log.jsonl", every=1).write("unet-1", step, loss=float(step))
    assert [row["step"] for row in lines(tmp_path / "log.jsonl")] == [1, 2]


def test_curves_for_tensorboard(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = TrainLog(tmp_path / "log.jsonl", every=1)
    for step in (1, 2, 3):
        log.write("vae", step, loss=0.5 * step)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("vae/loss")] == [(1, 0.5), (2, 1.0), (3, 1.5)]


def test_without_tensorboard_the_lines_are_written_all_the_same(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    TrainLog(tmp_path / "log.jsonl", every=1).write("vae", 1, loss=2.0)
    assert lines(tmp_path / "log.jsonl")[0]["loss"] == 2.0
    assert not (tmp_path / "tensorboard").exists()


def test_a_run_taken_up_forgets_what_came_after(tmp_path):
    path = tmp_path / "log.jsonl"
    log = TrainLog(path, every=1, digits=None)
    for step in (1, 2, 3):
        log.write("train", step, loss=step / 3)
    with path.open("a") as file:
        file.write('{"stage": "tra')
    log = TrainLog(path, every=1, digits=None)
    log.rewind(2)
    log.write("train", 3, loss=0.5)
    assert [(row["step"], row["loss"]) for row in lines(path)] == [(1, 1 / 3), (2, 2 / 3), (3, 0.5)]


def test_what_is_no_number_does_not_count(tmp_path):
    log = TrainLog(tmp_path / "log.jsonl", every=2)
    log.write("train", 1, loss=float("nan"), rare=None, zero=0.0)
    log.write("train", 2, loss=3.0, rare=None, zero=0.0)
    row = lines(tmp_path / "log.jsonl")[0]
    assert (row["loss"], row["rare"], row["zero"]) == (3.0, None, 0.0)


def test_pictures_stand_beside_the_curves(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    TrainLog(tmp_path / "log.jsonl").show("validation", 5, np.zeros((8, 6, 3), np.uint8))
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [one.step for one in events.Images("validation")] == [5]
