"""Seg-diffusion's training with tiny random models: resumed, killed, stopped, exported, refused."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from diffuseg.backbones import load
from diffuseg.errors import InputError
from diffuseg.train.segdiffusion.recipe import SegRecipe
from diffuseg.train.segdiffusion.running import Running, count_parts
from diffuseg.train.segdiffusion.state import LATEST, read_facts
from diffuseg.train.segdiffusion.trainer import PATIENCE, fine_tune
from support.folders import write_sd15, write_sd21
from support.labelled import Blocks

TINY = SegRecipe(
    steps=6, images=2, queries=2, crop=32, warmup=1, precision="fp32", ema=0.9, rank=2,
    templates=("a photo of a {}",), zoom=(0.5, 1.0), learning_rate=1e-3, prediction="v_prediction",
)  # fmt: skip
OFTEN = Running(save_every=1, cpu=True)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_sd15(tmp_path_factory.mktemp("models") / "base")


def train(base, folder, recipe=TINY, running=OFTEN, **options):
    pictures = options.pop("pictures") if "pictures" in options else Blocks()
    model = load(base, device="cpu")
    return fine_tune(model, pictures, folder / "out", folder / "work", recipe,
                     running=running, **options)  # fmt: skip


def lines(folder, stage="train"):
    path = folder / "work" / "log.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [row for row in rows if row["stage"] == stage]


def curve(folder):
    return [(row["step"], row["loss"], row["gradient"], row["rate"]) for row in lines(folder)]


def state(folder):
    return load_file(folder / "work" / LATEST)


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


def stop_after(monkeypatch, steps):
    """Time is up after so many steps."""
    from diffuseg.train.segdiffusion import trainer

    def limit(accelerator, minutes):
        count = iter(range(1, 1000))
        return lambda: minutes is not None and next(count) >= steps

    monkeypatch.setattr(trainer, "time_limit", limit)


@pytest.mark.parametrize("weights", ["full", "lora"])
def test_three_steps_and_three_more_are_six_to_the_last_bit(base, tmp_path, monkeypatch, weights):
    recipe = replace(TINY, weights=weights)
    validation = Blocks(2, name="others")
    running = replace(OFTEN, validate_every=2, validation_steps=1)
    whole = train(base, tmp_path / "a", recipe, running, validation=validation)
    stop_after(monkeypatch, 3)
    timed = replace(running, minutes=1.0)
    half = train(base, tmp_path / "b", recipe, timed, validation=validation)
    assert (half.step, whole.step) == (3, 6)
    assert not (tmp_path / "b" / "out").exists()
    done = train(base, tmp_path / "b", recipe, running, validation=validation)
    assert done.step == 6
    assert same(state(tmp_path / "a"), state(tmp_path / "b"))
    assert curve(tmp_path / "a") == curve(tmp_path / "b")
    assert (done.best, done.validation) == (whole.best, whole.validation)
    ours, theirs = (sorted((tmp_path / one / "out").rglob("*")) for one in "ab")
    assert [one.name for one in ours] == [one.name for one in theirs]
    for one, other in zip(ours, theirs, strict=True):
        if one.suffix == ".safetensors":
            assert one.read_bytes() == other.read_bytes()


SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import torch
torch.set_num_threads(1)
from integration.test_segdiffusion_resume import TINY, train, replace, Running
train(Path({base!r}), Path({folder!r}), replace(TINY, steps=24),
      Running(save_every=4, cpu=True))
"""


def test_a_training_that_is_killed_goes_on_as_if_nothing_had_been(base, tmp_path):
    tests = str(Path(__file__).parents[1])
    recipe, running = replace(TINY, steps=24), Running(save_every=4, cpu=True)
    train(base, tmp_path / "a", recipe, running)
    code = SCRIPT.format(tests=tests, base=str(base), folder=str(tmp_path / "b"))
    log = tmp_path / "b" / "work" / "log.jsonl"
    process = subprocess.Popen([sys.executable, "-c", code], env={**os.environ})
    try:
        deadline = time.monotonic() + 120
        while not (log.is_file() and log.read_text().count("\n") >= 7):
            assert process.poll() is None, "it ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.005)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    seen, saved = len(lines(tmp_path / "b")), read_facts(tmp_path / "b" / "work" / LATEST).step
    assert saved <= seen < 24
    assert not (tmp_path / "b" / "out").exists()
    with log.open("a") as file:
        file.write('{"stage": "train", "st')  # killed while it wrote a line
    train(base, tmp_path / "b", recipe, running)
    assert curve(tmp_path / "b") == curve(tmp_path / "a")
    assert [row["step"] for row in lines(tmp_path / "b")] == list(range(1, 25))
    assert same(state(tmp_path / "a"), state(tmp_path / "b"))


def test_another_recipe_in_the_same_folder_is_refused_by_name(base, tmp_path):
    train(base, tmp_path, replace(TINY, steps=2))
    before = (tmp_path / "work" / LATEST).read_bytes()
    with pytest.raises(InputError, match="holds one run") as error:
        train(base, tmp_path, replace(TINY, steps=2, rank=4, noise="white"))
    assert "rank: 2 there, 4 here; noise: 'annealed' there, 'white' here" in str(error.value)
    with pytest.raises(InputError, match="data"):
        train(base, tmp_path, replace(TINY, steps=2), pictures=Blocks(4))
    assert (tmp_path / "work" / LATEST).read_bytes() == before


def test_states_are_kept_and_the_best_one(base, tmp_path):
    running = replace(OFTEN, keep_every=2, validate_every=3, validation_steps=1)
    facts = train(base, tmp_path, TINY, running, validation=Blocks(3))
    names = {path.name for path in (tmp_path / "work").glob("*.safetensors")}
    assert names >= {LATEST, "best.safetensors", "step-0000002.safetensors"}
    assert read_facts(tmp_path / "work" / "step-0000004.safetensors").step == 4
    assert read_facts(tmp_path / "work" / "best.safetensors").step == facts.best_step
    rows = lines(tmp_path, "validation")
    assert [row["step"] for row in rows] == [3, 6]
    assert all(0 <= row["miou"] <= 1 and 0 <= row["negative_area"] <= 1 for row in rows)
    assert {"iou/grass", "iou/car", "iou/house", "positive_iou"} <= rows[0].keys()
    panels = sorted(path.name for path in (tmp_path / "work" / "panels").iterdir())
    assert panels == ["step-0000003.png", "step-0000006.png"]


def test_a_line_says_all_that_has_to_be_known(base, tmp_path):
    train(base, tmp_path, replace(TINY, steps=4, negatives=1.0))
    rows = lines(tmp_path)
    wanted = {"loss", "gradient", "rate", "ema", "present", "absent", "valid", "strength", "empty",
              "skipped", "images_per_second", "gigabytes",
              *(f"t{n}" for n in range(10))}  # fmt: skip
    assert all(wanted <= row.keys() for row in rows)
    assert any(row["absent"] is not None for row in rows)
    assert [row["ema"] for row in rows] == [1 / 10, 2 / 11, 3 / 12, 4 / 13]


def test_gradients_of_parts_are_those_of_all_pictures_at_once(base, tmp_path):
    # Every part sees the same, so that one part and two give the same gradient.
    from diffuseg.train.segdiffusion.batches import BatchSource

    draw = BatchSource.draw

    def same_draw(self, step, *, images, rank=0, part=0):
        return draw(self, step, images=1, rank=rank, part=0)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BatchSource, "draw", same_draw)
        train(base, tmp_path / "a", replace(TINY, images=2), replace(OFTEN, per_device=1))
        train(base, tmp_path / "b", replace(TINY, images=1))
    one, two = (np.array([row["loss"] for row in lines(tmp_path / name)]) for name in "ab")
    assert one == pytest.approx(two, rel=1e-5)
    assert read_facts(tmp_path / "a" / "work" / LATEST).parts == (1, 2, 1)


@pytest.mark.parametrize(("images", "each", "processes"), [(32, 5, 1), (4, 4, 2), (3, None, 2)])
def test_pictures_that_do_not_come_out_even_are_refused(images, each, processes):
    with pytest.raises(InputError, match="multiple"):
        count_parts(images, each, processes)


# --- numbers that are none ------------------------------------------------------------------------


def poisoned(monkeypatch, bad):
    """The loss is no number at some steps."""
    from diffuseg.train.segdiffusion.step import MaskLearner

    call, count = MaskLearner.__call__, iter(range(1000))

    def once(self, batch):
        found = call(self, batch)
        return replace(found, loss=found.loss * float("nan")) if next(count) in bad else found

    monkeypatch.setattr(MaskLearner, "__call__", once)


def test_a_step_without_a_number_is_left_out_and_counted(base, tmp_path, monkeypatch):
    poisoned(monkeypatch, {2, 3})
    facts = train(base, tmp_path, TINY)
    assert (facts.step, facts.skipped, facts.in_a_row) == (6, 2, 0)
    assert all(one.isfinite().all() for one in state(tmp_path).values())
    rows = lines(tmp_path)
    assert [row["loss"] is None for row in rows] == [False, False, True, True, False, False]
    assert "NaN" not in (tmp_path / "work" / "log.jsonl").read_text()


def test_too_many_in_a_row_end_the_training_and_the_last_good_state_stays(
    base, tmp_path, monkeypatch
):
    poisoned(monkeypatch, set(range(3, 100)))
    with pytest.raises(InputError, match="must be numbers") as error:
        train(base, tmp_path, replace(TINY, steps=40), replace(OFTEN, save_every=3))
    assert f"up to step {3 + PATIENCE}" in str(error.value)
    assert LATEST in str(error.value)
    held = state(tmp_path)
    assert all(one.isfinite().all() for one in held.values())
    assert not (tmp_path / "out").exists()


# --- data and models that are no use --------------------------------------------------------------


def test_bad_data_are_found_before_the_first_step(base, tmp_path):
    class Missing(Blocks):
        def __getitem__(self, index):
            if index == 2:
                raise FileNotFoundError("no masks/b2.png")
            return super().__getitem__(index)

    class Empty(Blocks):
        def __getitem__(self, index):
            held = super().__getitem__(index)
            held.truth[:] = 255
            return held

    cases = {
        "readable": (Missing(), "picture 2: no masks/b2.png"),
        "pictures and classes": (Blocks(0), "0 pictures"),
        "must have a class": (Empty(), "only unknown ones"),
    }
    for match, (pictures, told) in cases.items():
        with pytest.raises(InputError, match=match) as error:
            train(base, tmp_path, pictures=pictures)
        assert told in str(error.value)
    assert not (tmp_path / "work" / "log.jsonl").exists()


def test_the_index_is_read_once(base, tmp_path, monkeypatch):
    stop_after(monkeypatch, 1)
    pictures = Blocks(5)
    train(base, tmp_path, TINY, replace(OFTEN, minutes=1.0), pictures=pictures)
    assert pictures.reads == 5
    again = Blocks(5)
    train(base, tmp_path, replace(TINY), replace(OFTEN, minutes=1.0), pictures=again)
    assert again.reads < 5


@pytest.mark.parametrize(
    ("recipe", "match"),
    [
        (replace(TINY, crop=40), "multiple of 32"),
        (replace(TINY, objective="one-step", prediction=None), "predicts velocities"),
        (replace(TINY, without=("dog",)), "data set's"),
    ],
)
def test_what_a_model_cannot_learn_is_refused(base, tmp_path, recipe, match):
    with pytest.raises(InputError, match=match):
        train(base, tmp_path, recipe)


def test_a_damaged_state_says_so(base, tmp_path):
    train(base, tmp_path, replace(TINY, steps=2))
    path = tmp_path / "work" / LATEST
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(InputError, match="whole file"):
        train(base, tmp_path, replace(TINY, steps=2))


# --- second stage, folders ---------------------------------------


@pytest.mark.parametrize("weights", ["full", "lora"])
def test_a_second_stage_begins_where_the_first_ended(base, tmp_path, weights):
    recipe = replace(TINY, steps=2, weights=weights)
    train(base, tmp_path / "a", recipe)
    second = replace(recipe, objective="one-step", prediction=None)
    held = {}
    for name, start in (("b", "work"), ("c", "out")):
        facts = train(base, tmp_path / name, second, start=tmp_path / "a" / start)
        assert facts.scheduler["prediction_type"] == "v_prediction"
        held[name] = [row["loss"] for row in lines(tmp_path / name)]
    # What is exported is half as precise.
    assert held["b"] == pytest.approx(held["c"], rel=2e-2)
    alone = train(base, tmp_path / "d", replace(second, prediction="v_prediction"))
    assert alone.start is None
    assert lines(tmp_path / "d")[0]["loss"] != held["b"][0]
    wrong = replace(second, weights="lora" if weights == "full" else "full")
    with pytest.raises(InputError, match=r"kind that learns|what learned"):
        train(base, tmp_path / "e", wrong, start=tmp_path / "a" / "out")


def test_a_folder_to_start_from_must_be_one(base, tmp_path):
    with pytest.raises(InputError, match="can start from"):
        train(base, tmp_path, start=base)


@pytest.mark.parametrize(
    ("weights", "merge", "write"),
    [("full", False, write_sd21), ("lora", False, write_sd15), ("lora", True, write_sd15)],
)
def test_what_is_written_loads_as_what_was_trained(tmp_path, weights, merge, write):
    base = write(tmp_path / "base")
    recipe = replace(TINY, steps=3, weights=weights, convolutions=True)
    model = load(base, device="cpu")
    fine_tune(model, Blocks(), tmp_path / "out", tmp_path / "work", recipe,
              running=replace(OFTEN, merge=merge))  # fmt: skip
    folder = tmp_path / "out"
    assert (folder / "adapter").is_dir() == (weights == "lora" and not merge)
    facts = json.loads((folder / "diffuseg.json").read_text())
    assert facts["masks"] == "segdiffusion"
    assert "segdiffusion" in facts["preset"]
    assert "checksums.json" in {path.name for path in folder.iterdir()}
    card = (folder / "README.md").read_text()
    assert "3 pictures of 3 classes" in card
    assert "| `rank` | 2 |" in card
    loaded = load(folder, device="cpu")
    assert loaded.denoises_masks
    assert loaded.scheduler["timestep_spacing"] == "trailing"
    assert loaded.prediction == "v_prediction"
    # The averaged weights, by hand, in the network that was trained.
    held = load_file(tmp_path / "work" / LATEST)
    network = model.unet
    from diffuseg.train.segdiffusion.lora import add_updates

    fresh = load(base, device="cpu").unet
    from diffuseg.segdiffusion.surgery import widen_conv_in

    widen_conv_in(fresh)
    inner = fresh
    if weights == "lora":
        inner = add_updates(fresh, rank=2, convolutions=True)
    names = dict(inner.named_parameters())
    with torch.no_grad():
        for full, value in held.items():
            if full.startswith("average|"):
                names[full.removeprefix("average|")].copy_(value)
    x, text = torch.randn(2, 8, 8, 8), torch.randn(2, 7, 16)
    times = torch.tensor([10, 900])
    with torch.no_grad():
        ours = inner(x, times, encoder_hidden_states=text, return_dict=False)[0]
        theirs = loaded.unet(x, times, encoder_hidden_states=text, return_dict=False)[0]
    assert network is not loaded.unet
    assert torch.allclose(ours, theirs, atol=5e-3), (ours - theirs).abs().max()
    assert (ours - theirs).abs().max() < 0.05 * ours.std()
