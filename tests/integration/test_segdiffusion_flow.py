"""Seg-diffusion by the command line, with an adapter of the miniature that has learned nothing."""

import json
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from typer.testing import CliRunner

import diffuseg as ds
from diffuseg.backbones import load
from diffuseg.backbones.weights import embedded_folder
from diffuseg.cli import app
from diffuseg.methods import SegDiffusion
from diffuseg.result import Segmentation
from support import adapters

PICTURE = np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)
QUICK = ("--set", "steps=1", "--set", "side=64")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return adapters.write_adapter(
        tmp_path_factory.mktemp("masks") / "untaught",
        load("mini").unet,
        base="mini",
        scheduler=embedded_folder("mini"),
        preset={"segdiffusion": {"background": "none"}},
    )


def run(*arguments: object, code: int = 0) -> str:
    done = CliRunner().invoke(app, [str(one) for one in arguments])
    assert done.exit_code == code, done.output
    return done.output


def test_what_an_adapter_takes_over_from_the_miniature(folder):
    model = load(folder)
    assert model.vocabulary == load("mini").vocabulary
    assert model.size == 256
    assert model.base == "embedded"
    # CLIP comes with the base, and so does what it was found to be sure of.
    seg = ds.segment(
        PICTURE, "ball, grass, sky", model=model, class_filter="clip",
        method=SegDiffusion(steps=1, side=64),
    )  # fmt: skip
    assert 1 <= len(seg.names) <= 3
    with pytest.raises(ds.InputError, match="knows only these words"):
        ds.segment(PICTURE, "aeroplane", model=model, method="segdiffusion")


def test_segment_by_the_command_line(folder, tmp_path):
    PIL.Image.fromarray(PICTURE).save(tmp_path / "a.png")
    how = ("--method", "segdiffusion", "--model", folder, *QUICK, "--set", "runs=2", "--seed", "3")
    where = ("--format", "npz", "-o", tmp_path / "out")
    run("segment", tmp_path / "a.png", *how, "--classes", "ball, sky|water", *where)
    [written] = (tmp_path / "out").rglob("*.npz")
    seg = Segmentation.load(written)
    assert seg.names == ("ball", "sky")
    assert seg.hw == (48, 64)
    assert seg.uncertainty is not None
    assert seg.provenance.seed == 3
    assert seg.provenance.parameters["runs"] == 2
    settings = SegDiffusion(steps=1, side=64, runs=2, seed=3)
    alone = ds.segment(tmp_path / "a.png", "ball, sky", model=load(folder), method=settings)
    assert np.array_equal(alone.labels, seg.labels)


def test_evaluated_with_all_names_given(folder, tmp_path):
    report = tmp_path / "report"
    how = ("--method", "segdiffusion", "--model", folder, *QUICK, "--limit", "1")
    run("evaluate", "scenes", *how, "--report", report)
    found = json.loads(next(report.glob("*.json")).read_text())
    assert found["method"] == "segdiffusion"
    assert found["parameters"]["steps"] == 1
    assert not found["uses_gt_image_labels"]
    assert 0 <= found["miou"] <= 1


def test_models_of_the_other_kind_are_refused_at_once(folder, tmp_path):
    PIL.Image.fromarray(PICTURE).save(tmp_path / "a.png")
    told = run("segment", tmp_path / "a.png", "--classes", "ball", "--model", folder, code=2)
    assert "must be one that draws pictures" in told
    how = ("--method", "segdiffusion", "--model", "sd1.5")
    told = run("segment", tmp_path / "a.png", "--classes", "ball", *how, code=2)
    assert "made to denoise masks" in told
