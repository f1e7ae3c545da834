"""The command line called in this process, and pictures to give it."""

import numpy as np
import PIL.Image
from typer.testing import CliRunner

from diffuseg.cli import app


def call(*args):
    return CliRunner().invoke(app, [str(arg) for arg in args])


def segment(*args, tiny, classes="cat, dog"):
    return call("segment", *args, "--classes", classes, "--model", tiny, "--device", "cpu")


def pixels(hw=(64, 80), seed=0):
    return np.random.default_rng(seed).integers(0, 256, (*hw, 3), dtype=np.uint8)


def write_picture(path, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(pixels(seed=seed)).save(path)
    return path


def files(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
