"""The command line as users start it: a process of its own, its two streams, its exit code."""

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial

import PIL.Image
import pytest

import diffuseg as ds
from diffuseg.world import Scenes
from support.folders import write_sd15

COMMAND = [sys.executable, "-m", "diffuseg"]
PATIENCE = 240  # seconds; far more than needed, only to end a hanging process


def environment():
    # No network is needed, and none is used where none is wanted.
    return {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "COLUMNS": "200"}


def start(*args, cwd):
    return subprocess.Popen(
        [*COMMAND, *map(str, args)],
        cwd=cwd,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Tests that run in the background of a shell inherit that Ctrl-C is ignored.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )


def call(*args, cwd):
    with start(*args, cwd=cwd) as process:
        out, err = process.communicate(timeout=PATIENCE)
    return process.returncode, out, err


def test_a_folder_in_a_folder_out(tmp_path):
    """The main job with the embedded model, offline; standard output is for machines only."""
    for i in range(2):
        path = tmp_path / "photos" / "sub" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(Scenes("test")[i].image).save(path)
    (tmp_path / "photos" / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    code, out, err = call(
        "segment", "photos", "--classes", "ball, tree, car, grass, sky", "-o", "masks", "--json",
        cwd=tmp_path,
    )  # fmt: skip
    assert code == 1, err
    held = json.loads(out)
    assert held["model"] == "mini (embedded)"
    assert sorted(row["image"] for row in held["images"] if "error" not in row) == [
        "photos/sub/0.png",
        "photos/sub/1.png",
    ]
    assert "model mini (embedded)" in err
    assert "1 of 3 images failed:" in err
    assert "Traceback" not in err
    seg = ds.Segmentation.load(tmp_path / "masks/sub/1.png")
    assert seg.names == ("ball", "tree", "car", "grass", "sky")
    assert not (tmp_path / "masks/broken.png").exists()


def test_demo(tmp_path):
    code, out, err = call("demo", "--output", "shown", cwd=tmp_path)
    assert code == 0, err
    path, figures = out.splitlines()
    assert path == str(tmp_path / "shown/demo.png")
    assert figures.startswith("IoU against the truth: ")
    with PIL.Image.open(path) as picture:
        assert picture.width > 3 * 256


@pytest.mark.skipif(os.name == "nt", reason="signals are another matter on Windows")
def test_interrupted_with_control_c(tmp_path):
    model = write_sd15(tmp_path / "model")
    report = tmp_path / "report"
    args = ("evaluate", "scenes", "-m", model, "--limit", "5000", "--report", report)
    with start(*args, "--batch-size", "1", cwd=tmp_path) as process:
        state = report / "images.jsonl"
        ending = time.monotonic() + PATIENCE
        while time.monotonic() < ending and process.poll() is None:
            if state.exists() and state.read_text().count("\n") > 2:
                break
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130, err
    assert "stopped" in err
    assert "Traceback" not in err
    assert sorted(path.name for path in report.iterdir()) == ["images.jsonl"]
