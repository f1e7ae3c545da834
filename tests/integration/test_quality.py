"""The measurement of the miniature, on a tiny random model: its figures, its files, going on."""

import json
import shutil
from contextlib import contextmanager

import numpy as np
import PIL.Image
import pytest
import torch
from typer.testing import CliRunner

import diffuseg as ds
from diffuseg.cli import app
from diffuseg.errors import InputError
from diffuseg.eval import mini_features as features
from diffuseg.eval import mini_pictures as pictures
from diffuseg.eval.probe import nearest_prototype_probe, query_extract
from diffuseg.eval.quality import AIMS, measure_quality, quality_tables, training_cost
from diffuseg.train.clip import build_clip, image_processor
from diffuseg.train.recipe import ClipRecipe
from diffuseg.world.captions import VOCABULARY
from diffuseg.world.scenes import Scenes
from diffuseg.world.tokenizer import build_tokenizer
from support.folders import write_sd15

SMALL = ClipRecipe(
    size=32, width=16, layers=1, heads=2, text_width=16, text_layers=1, text_heads=2, projection=8
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model that reads any word, with a CLIP pair beside it and no captioner."""
    root = write_sd15(tmp_path_factory.mktemp("models") / "tiny")
    tokenizer = build_tokenizer(VOCABULARY)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        build_clip(SMALL, tokenizer).save_pretrained(root / "clip")
    tokenizer.save_pretrained(root / "clip")
    image_processor(SMALL.size).save_pretrained(root / "clip")
    return root


@pytest.fixture(scope="module")
def model(folder):
    return ds.load(folder, device="cpu")


@contextmanager
def silent(title):
    yield lambda done, total: None


def test_reconstruction_counts_decibels(model):
    found = pictures.measure_reconstruction(model, number=2, hw=(64, 128))
    assert found["least"] <= found["psnr"] < 25
    assert found["edges"] > 0
    assert found["scenes"] == 2


def test_sharpness_of_a_random_model_tells_little(model):
    found = features.measure_sharpness(model, number=2)
    assert 0.2 < found["separated"] <= 1
    assert found["ratio"] == pytest.approx(found["different"] / found["same"])
    bars = found["histogram"]
    assert len(bars["edges"]) == len(bars["same"]) + 1
    assert sum(bars["same"]) == pytest.approx(1, abs=0.05)


def test_probe_of_queries_chooses_a_layer(model):
    found = features.measure_query_probe(model, number=2, choose=(2, 1))
    assert found["layer"].startswith("up_blocks")
    assert found["timestep"] in features.TIMESTEPS
    assert (
        max(found["choices"].values())
        == found["choices"][f"{found['layer']} at {found['timestep']}"]
    )
    extract = query_extract(model, found["layer"], found["timestep"], kind="cross")
    scenes = Scenes("train", seed=1), Scenes("test", seed=1)
    alone = nearest_prototype_probe(extract, *([one[0], one[1]] for one in scenes))
    assert found["miou"] == pytest.approx(alone.miou, abs=0.01)


def test_sizes_square_and_not(model):
    found = pictures.measure_sizes(model, number=1, sizes=[(64, 64), (64, 128)])
    assert list(found) == ["64x64", "64x128"]
    assert set(found["64x128"]) == {"psnr", "miou", "own_miou"}


def test_parts_files_and_going_on(folder, tmp_path):
    def run(**options):
        return measure_quality(
            ds.load(folder, device="cpu"),
            report=tmp_path,
            limit=2,
            steps=1,
            meter=silent,
            **options,
        )

    log = tmp_path / "log.jsonl"
    times = enumerate([100.0, 200.0, 9300.0, 9400.0], start=1)
    rows = [{"stage": "vae", "step": 50 * n, "time": time} for n, time in times]
    log.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = run(parts=["vae", "sharpness", "sampling", "captioner"], training_log=log)
    assert found["training"] == {"vae": {"steps": 200.0, "hours": round(200 / 3600, 3)}}
    assert "must be whole" in found["parts"]["captioner"]["missing"]
    assert set(found["parts"]["sampling"]) >= {"things", "colors", "steps", "guidance"}
    drawn = sorted(path.name for path in tmp_path.glob("samples-*/*.png"))
    assert drawn == ["0000.png", "0001.png"]
    for name in ("samples.jpg", "divergence.png"):
        with PIL.Image.open(tmp_path / name) as picture:
            assert picture.width > 200
    held = json.loads((tmp_path / "quality.json").read_text())
    assert held == json.loads(json.dumps(found))
    text = (tmp_path / "quality.md").read_text()
    assert f"{found['parts']['vae']['psnr']:.1f} dB" in text
    assert "Not measured" in text

    again = run(parts=["attend"])
    assert again["parts"]["vae"] == found["parts"]["vae"]
    assert again["training"] == found["training"]
    attend = again["parts"]["attend"]
    assert attend["gain"] == attend["completed"]["miou"] - attend["plain"]["miou"]
    assert attend["preset"] == attend["plain"]


def test_other_weights_are_measured_from_nothing(folder, tmp_path):
    measure_quality(
        ds.load(folder, device="cpu"), report=tmp_path, limit=1, parts=["vae"], meter=silent
    )
    other = measure_quality(
        ds.load(folder, device="cpu"), report=tmp_path, limit=2, parts=["captioner"], meter=silent
    )
    assert list(other["parts"]) == ["captioner"]


def test_tables_tell_what_was_asked_for():
    parts = {"attend": {"preset": {"miou": 0.75}, "gain": -0.02}, "sizes": {
        "128x192": {"psnr": 20.0, "miou": 0.5, "own_miou": 0.25}, "seconds": 3.0}}  # fmt: skip
    text = quality_tables({"parts": parts})
    assert "| attend, mIoU of all 18 classes | 75.0 % | 74 % |" in text
    assert "-2.0 points | 5 points |" in text
    assert "| 128 x 192 | 20.0 dB | 50.0 % | 25.0 % |" in text
    assert len({aim.path for aim in AIMS}) == len(AIMS)


def test_errors(model, tmp_path):
    with pytest.raises(InputError, match="a part must be one that is measured"):
        measure_quality(model, report=tmp_path, parts=["speed"], meter=silent)
    with pytest.raises(InputError, match="limit must be"):
        measure_quality(model, report=tmp_path, limit=0, meter=silent)
    with pytest.raises(InputError, match=r"must be the log\.jsonl"):
        training_cost(tmp_path / "none.jsonl")


def test_command_line(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    done = CliRunner().invoke(
        app,
        [
            *("quality", "--model", str(copy), "--report", str(tmp_path / "out")),
            *("--limit", "1", "--part", "vae", "--device", "cpu"),
        ],
    )
    assert done.exit_code == 0, done.output
    assert "autoencoder, PSNR" in done.stdout
    assert "quality.json" in done.stdout
    held = json.loads((tmp_path / "out" / "quality.json").read_text())
    assert np.isfinite(held["parts"]["vae"]["psnr"])
