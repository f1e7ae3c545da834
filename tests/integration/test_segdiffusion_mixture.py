"""Seg-diffusion's training on two data sets in several wordings: resumed, measured, written."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from diffuseg.backbones import load
from diffuseg.errors import InputError
from diffuseg.train.segdiffusion.mixing import Mixture
from diffuseg.train.segdiffusion.recipe import SegRecipe
from diffuseg.train.segdiffusion.running import Running
from diffuseg.train.segdiffusion.state import LATEST
from diffuseg.train.segdiffusion.trainer import fine_tune
from support.folders import write_sd15
from support.labelled import Blocks

RECIPE = SegRecipe(
    steps=6, images=2, queries=2, crop=32, warmup=1, precision="fp32", weights="lora", rank=2,
    templates=("a photo of a {}", "a {}", "{}"), zoom=(0.5, 1.0),
)  # fmt: skip
RUNNING = Running(cpu=True, per_device=1, validate_every=3, validation_steps=1)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_sd15(tmp_path_factory.mktemp("models") / "base")


def sets():
    """Two data sets, of which the second calls the grass background."""
    return Blocks(3), Blocks(4, name="others", background=True)


def train(base, folder, recipe=RECIPE, running=RUNNING, *, weights=(1.0, 1.0), validation=None):
    return fine_tune(
        load(base, device="cpu"), Mixture(sets=sets(), weights=weights), folder / "out",
        folder / "work", recipe, running=running, validation=validation,
    )  # fmt: skip


def rows(folder, stage):
    lines = (folder / "work" / "log.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["stage"] == stage]


def test_a_mixture_goes_on_to_the_last_bit_and_is_measured_set_by_set(base, tmp_path, monkeypatch):
    whole = train(base, tmp_path / "a", validation=sets())
    from diffuseg.train.segdiffusion import trainer

    def limit(accelerator, minutes):
        count = iter(range(1, 100))
        return lambda: minutes is not None and next(count) >= 3

    monkeypatch.setattr(trainer, "time_limit", limit)
    half = train(base, tmp_path / "b", running=replace(RUNNING, minutes=1.0), validation=sets())
    assert half.step == 3
    done = train(base, tmp_path / "b", validation=sets())
    assert (done.step, done.validation) == (6, whole.validation)
    ours, theirs = (load_file(tmp_path / one / "work" / LATEST) for one in "ab")
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    losses = [[row["loss"] for row in rows(tmp_path / one, "train")] for one in "ab"]
    assert losses[0] == losses[1]
    found = rows(tmp_path / "a", "validation")[-1]
    means = [found["blocks/miou"], found["others/miou"]]
    assert found["miou"] == pytest.approx(sum(means) / 2)
    assert "blocks/iou/grass" in found
    assert "others/iou/background" in found
    facts = json.loads((tmp_path / "a" / "out" / "diffuseg.json").read_text())
    preset = facts["preset"]["segdiffusion"]
    assert preset["template"] == "a photo of a {}"
    assert preset["learned"] == ["grass", "car", "house"]
    card = (tmp_path / "a" / "out" / "README.md").read_text()
    assert "blocks, 3 pictures of 3 classes; others, 4 pictures of 3 classes" in card
    assert load(tmp_path / "a" / "out", device="cpu").denoises_masks
    with pytest.raises(InputError, match="data: "):
        train(base, tmp_path / "a", weights=(1.0, 2.0))
    with pytest.raises(InputError, match="templates: "):
        train(base, tmp_path / "a", replace(RECIPE, templates=("{}",)))


def test_pictures_to_validate_on_are_of_every_set(base, tmp_path):
    with pytest.raises(InputError, match="of every data set"):
        train(base, tmp_path, validation=Blocks(2))
    with pytest.raises(InputError, match="of those that are learned from") as error:
        train(base, tmp_path, validation=(Blocks(2), Blocks(2)))
    assert "of others" in str(error.value)
