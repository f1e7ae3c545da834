"""Banks from the command line and in processes that are killed: nothing lost, nothing twice."""

import json
import logging
import re
import subprocess
import sys
import time

import PIL.Image
import pytest
import torch
from typer.testing import CliRunner

from diffuseg.cli import app
from diffuseg.errors import InputError
from diffuseg.methods.ovdiff import OVDiff
from diffuseg.ovdiff import Bank, build_bank, building, contact_sheet

SETTINGS = {"number": 2, "steps": 2, "size": 64, "parts": 2, "proposals": "none"}
METHOD = OVDiff(**SETTINGS, extractors=("sd",))
OPTIONS = ["--model", "mini", "--device", "cpu", "--batch-size", "2", "--on-empty", "skip"]
OPTIONS += [f"--set={name}={value}" for name, value in SETTINGS.items()]
OPTIONS += ["--set=extractors=sd"]
CLASSES = ("ball", "car", "grass", "sky", "house", "star", "tent", "moon")


def call(*args):
    return CliRunner().invoke(app, ["bank", *map(str, args)])


def start(path, classes):
    command = [sys.executable, "-m", "diffuseg", "bank", "build", str(path), "-v", *OPTIONS]
    return subprocess.Popen(
        [*command, "--classes", ", ".join(classes)], stderr=subprocess.PIPE, text=True
    )


def wait_for_class(path, count=1):
    end = time.monotonic() + 90
    while len(list(path.glob("classes/[a-z]*.json"))) < count:
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.fixture(scope="module", autouse=True)
def wide():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "400")
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


@pytest.fixture(scope="module")
def bank(tmp_path_factory):
    """A bank of three classes; what changes it builds its own."""
    path = tmp_path_factory.mktemp("banks") / "bank"
    done = call("build", path, *OPTIONS, "--classes", "ball, sky, grass")
    assert done.exit_code == 0, done.output
    assert "3 classes in" in done.stdout
    return path


def test_a_killed_build_goes_on_where_it_was(tmp_path):
    path = tmp_path / "bank"
    first = start(path, CLASSES)
    wait_for_class(path, 2)
    first.kill()
    first.communicate()
    held = Bank.open(path)
    there = held.names
    assert 2 <= len(there) < len(CLASSES)
    assert held.damaged() == {}
    before = {file: file.stat().st_mtime_ns for file in path.glob("classes/[a-z]*.json")}
    told = []
    held = build_bank(
        CLASSES, path, "mini", METHOD, batch_size=2,
        progress=lambda *args: told.append(args),
    )  # fmt: skip
    assert held.names == tuple(sorted(CLASSES))
    assert held.damaged() == {}
    assert before == {file: file.stat().st_mtime_ns for file in before}
    left = 2 * (len(CLASSES) - len(there))
    assert told[-1] == (left, left)
    assert not (path / "claims").exists()


def test_two_builders_share_the_work_and_one_outlives_the_other(tmp_path):
    path = tmp_path / "bank"
    builders = [start(path, CLASSES), start(path, CLASSES[::-1])]
    wait_for_class(path, 3)
    builders[0].kill()
    texts = [one.communicate(timeout=120)[1] for one in builders]
    assert builders[1].returncode == 0, texts[1]
    held = Bank.open(path)
    assert held.names == tuple(sorted(CLASSES))
    assert held.damaged() == {}
    built = re.findall(r"built '(\w+)'", "".join(texts))
    # The one that was killed may have been about to store a class.
    assert len(built) - len(set(built)) <= 1


def test_a_class_is_the_same_whatever_it_is_built_with(bank, tmp_path):
    alone = build_bank("grass", tmp_path / "alone", "mini", METHOD, batch_size=1)
    one, other = (held.get("grass", pictures=True) for held in (Bank.open(bank), alone))
    assert abs(one.images.astype(int) - other.images).max() <= 1
    vectors = [held.prototypes["sd"].positive.vectors for held in (one, other)]
    torch.testing.assert_close(*vectors, atol=0.05, rtol=0.05)
    assert Bank.open(bank).recipe == alone.recipe


def test_adding_takes_the_banks_model_and_settings(bank, tmp_path):
    path = tmp_path / "bank"
    build_bank("ball", path, "mini", METHOD)
    before = {file: file.read_bytes() for file in (path / "classes").iterdir()}
    done = call("add", path, "--classes", "moon|star", "--on-empty", "skip", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["added"] == ["moon"]
    assert Bank.open(path).get("moon").words == ("moon", "star")
    assert before == {file: file.read_bytes() for file in before}


def test_what_is_there_is_not_drawn_again(bank, monkeypatch):
    def draw(*args, **options):
        yield from ()
        raise AssertionError("nothing is to be drawn")

    monkeypatch.setattr(building, "draw_supports", draw)
    done = call("build", bank, *OPTIONS, "--classes", "sky, ball")
    assert done.exit_code == 0, done.output
    assert "0 new" in done.stdout


def test_other_settings_and_another_model_are_refused(bank):
    done = call("build", bank, *OPTIONS, "--set=seed=3", "--classes", "car")
    assert done.exit_code == 2
    assert "pictures.seed is 42, not 3" in done.stderr
    done = call("build", bank, *OPTIONS, "--dtype", "float16", "--classes", "car")
    assert done.exit_code == 2
    assert "float32, not float16" in done.stderr
    held = Bank.open(bank)
    assert held.names == ("ball", "grass", "sky")
    assert held.damaged() == {}


def test_a_mismatched_network_is_refused(bank, monkeypatch):
    import diffuseg as ds

    model = ds.load("mini", device="cpu")
    with torch.no_grad():
        model.unet.conv_out.bias.add_(1.0)
    with pytest.raises(InputError, match=r"model\.unet is"):
        build_bank("car", bank, model, METHOD)


def test_other_words_for_a_class_that_is_there_are_refused(bank):
    done = call("build", bank, *OPTIONS, "--classes", "sky|moon")
    assert done.exit_code == 2
    assert "of the same words" in done.stderr
    assert "diffuseg bank remove" in done.stderr


def test_an_unknown_word_is_refused_before_anything_is_drawn(tmp_path):
    path = tmp_path / "bank"
    done = call("build", path, *OPTIONS, "--classes", "ball, zeppelin")
    assert done.exit_code == 2
    assert "zeppelin" in done.stderr
    assert not path.exists()


def test_a_class_in_none_of_its_pictures_is_told_when_all_others_are_done(
    tmp_path, monkeypatch, caplog
):
    def blind(supports):
        for one in supports:
            if one.name == "ball":
                one.attribution.zero_()
            yield one

    draw = building.draw_supports
    monkeypatch.setattr(building, "draw_supports", lambda *a, **o: blind(draw(*a, **o)))
    path = tmp_path / "bank"
    with pytest.raises(InputError, match="none with 'ball'"):
        build_bank("ball, sky", path, "mini", METHOD)
    assert Bank.open(path).names == ("sky",)
    with caplog.at_level(logging.WARNING, logger="diffuseg"):
        held = build_bank("ball, sky", path, "mini", METHOD, on_empty="skip")
    assert held.names == ("sky",)
    assert "'ball' is in none of its pictures" in caplog.text


def test_where_nothing_is_proposed_the_attribution_decides(tmp_path, monkeypatch):
    def nothing(pictures):
        return [torch.zeros(0, *one.shape[:2], dtype=torch.bool) for one in pictures]

    monkeypatch.setattr(building, "find_proposer", lambda *args: nothing)
    method = OVDiff(**{**SETTINGS, "proposals": "maskcut"}, extractors=("sd",))
    held = build_bank("sky", tmp_path / "bank", "mini", method)
    assert held.get("sky", pictures=True).fg.any()


def test_list_says_what_is_there(bank):
    done = call("list", bank)
    assert done.stdout.splitlines()[1:] == ["ball", "grass", "sky"]
    assert "model mini, float32" in done.stdout
    held = json.loads(call("list", bank, "--json").stdout)
    assert held["classes"] == ["ball", "grass", "sky"]
    assert held["recipe"]["pictures"]["number"] == 2
    done = call("list", bank / "elsewhere")
    assert done.exit_code == 2
    assert "diffuseg bank build" in done.stderr


def test_inspect_shows_prototypes_and_pictures(bank, tmp_path):
    sheet = tmp_path / "sheet.png"
    done = call("inspect", bank, "-o", sheet)
    assert done.exit_code == 0, done.output
    lines = [line.split() for line in done.stdout.splitlines()]
    shown = [line[:3] + line[4:10] for line in lines]  # without the width of the features
    assert ["sky", "stuff", "sd", "1", "2", "2", "1", "2", "2"] in shown
    with PIL.Image.open(sheet) as picture:
        assert min(picture.size) > 250
    held = json.loads(call("inspect", bank, "ball", "--json").stdout)
    [ball] = held["classes"]
    assert not ball["stuff"]
    assert ball["prototypes"]["sd"]["positive"] == {"class": 1, "instance": 2, "part": 2}
    assert call("inspect", bank, "cat").exit_code == 2


def test_a_bank_without_pictures_has_no_sheet(tmp_path):
    path = tmp_path / "bank"
    done = call("build", path, *OPTIONS, "--no-pictures", "--dtype", "float16", "--classes", "sky")
    assert done.exit_code == 0, done.output
    with pytest.raises(InputError, match="needs pictures"):
        contact_sheet(Bank.open(path))
    assert Bank.open(path).look("sky").pictures == 0
    assert Bank.open(path).stored == "float16"


def test_damage_is_told_and_mended_by_removing_and_adding(tmp_path):
    path = tmp_path / "bank"
    build_bank("ball, sky", path, "mini", METHOD)
    [file] = path.glob("classes/sky-*.safetensors")
    held = bytearray(file.read_bytes())
    held[-100] ^= 1
    file.write_bytes(bytes(held))
    done = call("inspect", path)
    assert done.exit_code == 1
    assert "sky: " in done.stderr
    assert call("remove", path, "sky").exit_code == 0
    assert Bank.open(path).names == ("ball",)
    assert call("add", path, "--classes", "sky", "--quiet").exit_code == 0
    assert Bank.open(path).damaged() == {}
    assert call("remove", path, "zebra").exit_code == 2
