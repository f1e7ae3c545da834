"""What several files of tests run on: tiny models of every kind, and folders to be spoilt."""

import shutil
from pathlib import Path

import pytest

from diffuseg.backbones import load
from support import folders
from support.pipelines import KINDS, pipelines_of, write_homes


@pytest.fixture(scope="module")
def homes(tmp_path_factory):
    """One folder of each kind."""
    return write_homes(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def models(homes):
    """Each of them loaded."""
    return {kind: load(home, device="cpu") for kind, home in homes.items()}


@pytest.fixture(scope="module")
def pipes(homes, models):
    return pipelines_of(homes, models)


@pytest.fixture(params=KINDS)
def kind(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    root = tmp_path_factory.mktemp("originals")
    return {
        "sd15": folders.write_sd15(root / "sd15"),
        "sdxl": folders.write_sdxl(root / "sdxl"),
        "mini": folders.write_mini(root / "mini"),
    }


@pytest.fixture
def copy(originals, tmp_path):
    """Copies one of the folders, to be spoilt."""
    return lambda kind="sd15": Path(shutil.copytree(originals[kind], tmp_path / kind))
