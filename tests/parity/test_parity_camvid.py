"""The real CamVid release is read as its facts say."""

import os
from pathlib import Path

import numpy as np
import pytest

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
