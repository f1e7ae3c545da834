"""The real CamVid release is read as its facts say, and scored by the command."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from diffuseg.cli import app
from diffuseg.eval.video_layouts import CamVid
from diffuseg.eval.video_metrics import VideoMetrics

REPOSITORY = Path(__file__).resolve().parents[2]
FOLDER = Path(os.environ.get("DIFFUSEG_CAMVID", REPOSITORY / ".." / "shared" / "camvid"))

pytestmark = pytest.mark.skipif(not (FOLDER / "val").is_dir(), reason=f"no CamVid in {FOLDER}")


def test_the_clip_of_the_validation_set():
    data = CamVid(FOLDER, split="val")
    sample = data[0]
    assert (len(data), sample.id, len(sample.frames), sample.fps) == (1, "0016E5", 101, 15)
    assert sample.frames[0].shape == (360, 480, 3)
    metrics = VideoMetrics(len(data.classes), ignore=data.ignore)
    truths = [one for one in sample.truth if one is not None][::5]
    metrics.update(sample.id, ((one, np.minimum(one, 10)) for one in truths))
    assert metrics.miou() == 1
    assert metrics.mvc(8) == 1
    void = np.mean([np.mean(one == 11) for one in truths])
    assert 0.01 < void < 0.025
    assert (metrics.matrix.truth > 0).all()


def test_the_recordings_of_the_test_set():
    data = CamVid(FOLDER, split="test")
    found = {one.id: (len(one.frames), one.fps) for one in (data[i] for i in range(len(data)))}
    assert found == {"0001TP": (62, 1), "Seq05VD": (131, 1)}


def test_the_command_scores_it_and_says_what_the_figure_is(tmp_path):
    words = f"evaluate-video camvid11 --root {FOLDER} --model mini --frames 2 --report {tmp_path}"
    quick = ("modulate=false", "starts=1", "clusters=8", "side=128", "edges=0", "shares=false")
    settings = [word for one in quick for word in ("--set", one)]
    done = CliRunner().invoke(app, [*words.split(), *settings, "--json", "--quiet"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told == json.loads((tmp_path / "report.json").read_text())
    assert (told["dataset"], told["split"], told["n_videos"], told["n_frames"]) == (
        *("camvid11", "val"),
        *(1, 2),
    )
    assert 0.2 < told["metrics"]["miou"] < 1
    assert set(told["metrics"]) >= {"miou", "mvc8", "mvc16"}
    assert len(told["per_class"]) == 11
    assert "truth of one frame is given" in told["protocol"]
    assert ["32" in one for one in told["notes"]] == [True, False]
    assert "miniature" in told["notes"][1]
    page = (tmp_path / "report.md").read_text()
    assert all(f"- Note: {one}." in page for one in told["notes"])
