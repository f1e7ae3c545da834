"""A run that is killed anywhere, or shared among processes, ends with the report of one run."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

import diffuseg as ds
from diffuseg.errors import InputError
from diffuseg.eval.datasets import SceneSet
from diffuseg.eval.merging import merge_runs
from support.folders import write_sd15

# What a report says of this very process; everything else has to be the same to the last bit.
VOLATILE = ("seconds_per_image", "peak_memory_mb")
PICTURES = ("best.png", "worst.png", "classes.png")
LIMIT = 5

CHILD = """
import sys
import torch
torch.set_num_threads(1)
import diffuseg as ds
from diffuseg.eval.datasets import SceneSet
data = SceneSet(n=int(sys.argv[3]), hw=(64, 64))
ds.evaluate(data, model=sys.argv[1], batch_size=2, report=sys.argv[2])
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_sd15(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def model(folder):
    return ds.load(folder, device="cpu")


@pytest.fixture(scope="module")
def whole(model, tmp_path_factory):
    where = tmp_path_factory.mktemp("runs") / "whole"
    evaluate(model, where)
    return where


@pytest.fixture(scope="module")
def parts(model, tmp_path_factory):
    folders = [tmp_path_factory.mktemp("parts") / str(number) for number in (1, 2)]
    for number, where in enumerate(folders, 1):
        report = evaluate(model, where, shard=(number, 2))
        assert report.shard == (number, 2)
        assert report.n_images == (3, 2)[number - 1]
    return folders


def evaluate(model, where, **options):
    data = SceneSet(n=LIMIT, hw=(64, 64))
    return ds.evaluate(data, model=model, batch_size=2, report=where, **options)


def stable(where):
    held = json.loads((where / "report.json").read_text())
    return {name: value for name, value in held.items() if name not in VOLATILE}


def same_pictures(a, b, names=PICTURES):
    return all((a / name).read_bytes() == (b / name).read_bytes() for name in names)


def test_a_killed_run_goes_on_to_the_identical_report(folder, model, whole, tmp_path):
    where = tmp_path / "killed"
    state = where / "images.jsonl"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(folder), str(where), str(LIMIT)], env=environment
    )
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and child.poll() is None:
        if state.is_file() and state.read_bytes().count(b"\n") >= 3:
            break
        time.sleep(0.002)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL, "it was to be killed in the middle"
    assert not (where / "report.json").exists()
    evaluate(model, where)
    assert stable(where) == stable(whole)
    assert same_pictures(where, whole)


@pytest.mark.parametrize("share", [0.3, 0.95])
def test_a_state_cut_off_at_any_byte_is_taken_up(model, whole, tmp_path, share):
    text = (whole / "images.jsonl").read_bytes()
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "images.jsonl").write_bytes(text[: int(share * len(text))])
    evaluate(model, tmp_path / "cut")
    assert stable(tmp_path / "cut") == stable(whole)
    assert len((tmp_path / "cut" / "images.jsonl").read_text().splitlines()) == LIMIT + 1


def test_parts_merged_equal_one_run(model, whole, parts, tmp_path):
    merged = merge_runs(parts[::-1], tmp_path / "merged")
    assert merged.n_images == LIMIT
    assert stable(tmp_path / "merged") == stable(whole)
    assert same_pictures(tmp_path / "merged", whole, ("classes.png",))
    # The seconds are those of the parts.
    seconds = [
        json.loads(line)["seconds"]
        for part in parts
        for line in (part / "images.jsonl").read_text().splitlines()[1:]
    ]
    assert merged.seconds_per_image["mean"] == pytest.approx(sum(seconds) / LIMIT, abs=1e-6)
    # Pictures need the model; nothing is scored anew for them.
    before = (tmp_path / "merged" / "images.jsonl").read_text().splitlines()[1:]
    evaluate(model, tmp_path / "merged")
    assert (tmp_path / "merged" / "images.jsonl").read_text().splitlines()[1:] == before
    assert stable(tmp_path / "merged") == stable(whole)
    assert same_pictures(tmp_path / "merged", whole)


def test_parts_of_segments_without_names_merged_equal_one_run(model, tmp_path):
    method = ds.METHODS["kmeans"](k=3)
    data, options = SceneSet(n=3, hw=(64, 64)), {"model": model, "method": method}
    ds.evaluate(data, batch_size=1, report=tmp_path / "whole", **options)
    for number in (1, 2, 3):
        ds.evaluate(data, batch_size=1, report=tmp_path / str(number), shard=(number, 3), **options)
    merge_runs([tmp_path / str(number) for number in (2, 3, 1)], tmp_path / "merged")
    assert stable(tmp_path / "merged") == stable(tmp_path / "whole")


def test_parts_that_do_not_go_together(model, parts, tmp_path):
    a, b = parts[0], tmp_path / "b"
    evaluate(model, b, shard=(2, 2), noise_seed=5)
    with pytest.raises(InputError, match="parts must be of one run"):
        merge_runs([a, b])
    with pytest.raises(InputError, match="all images of the run") as caught:
        merge_runs([a])
    assert "2 of 5 missing, image 2 the first" in str(caught.value.got)
    assert merge_runs([a], partial=True).n_images == 3
    with pytest.raises(InputError, match="a part is a folder"):
        merge_runs([tmp_path / "nothing"])
    with pytest.raises(InputError, match="there must be parts"):
        merge_runs([])
    lines = (a / "images.jsonl").read_text().splitlines()
    row = json.loads(lines[1])
    row["missed"] = [[0, 1]]
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "images.jsonl").write_text("\n".join([lines[0], json.dumps(row), ""]))
    with pytest.raises(InputError, match="same counts in all"):
        merge_runs([a, tmp_path / "c"])


@pytest.mark.parametrize("shard", [(0, 2), (3, 2), (9, 9)])
def test_parts_that_cannot_be(model, shard):
    with pytest.raises(InputError, match="part"):
        ds.evaluate(model=model, limit=4, batch_size=1, shard=shard)
