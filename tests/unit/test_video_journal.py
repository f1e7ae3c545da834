"""A run over a video that is killed goes on where it was."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from diffuseg.errors import InputError
from diffuseg.video.journal import VideoRun, source_stamp

SLOW_RUN = """
import sys, time
import numpy as np
import PIL.Image
from diffuseg.video.journal import VideoRun

save = PIL.Image.Image.save
def slow(self, *rest, **more):
    save(self, *rest, **more)
    time.sleep(0.02)
PIL.Image.Image.save = slow

run = VideoRun(sys.argv[1], key="k")
for batch in range(run.n_batches, 50):
    carried = run.state()
    assert (carried is None) == (batch == 0)
    value = 0 if carried is None else int(carried["value"]) + 1
    labels = [np.full((6, 8), 10 * batch + i) for i in range(5)]
    run.keep(5 * batch, labels, {"value": np.array(value)})
"""


def numbered(first, n, add=0):
    return [np.full((6, 8), i + add) for i in range(first, first + n)]


def values(run):
    return [int(one[0, 0]) for one in run.labels()]


def test_batches_come_back_in_order_and_the_later_one_counts(tmp_path):
    run = VideoRun(tmp_path / "out.mp4", key="k")
    assert (run.n_frames, run.n_batches, run.state(), values(run)) == (0, 0, None, [])
    run.keep(0, numbered(0, 4))
    run.keep(4, numbered(4, 4), {"bank": np.eye(3)})
    run.keep(5, numbered(5, 4, add=65000))
    again = VideoRun(tmp_path / "out.mp4", key="k")
    for one in (run, again):
        assert (one.n_frames, one.n_batches) == (9, 3)
        assert values(one) == [0, 1, 2, 3, 4, 65005, 65006, 65007, 65008]
        assert one.state() is None
    assert [int(one[0, 0]) for one in again.labels(7)] == [65007, 65008]
    again.discard()
    assert list(tmp_path.iterdir()) == []


def test_only_the_last_state_is_kept(tmp_path):
    run = VideoRun(tmp_path / "out.mp4", key="k")
    for i in range(3):
        run.keep(i, numbered(i, 1), {"bank": np.full((2, 2), i)})
    state = VideoRun(tmp_path / "out.mp4", key="k").state()
    assert state is not None
    assert int(state["bank"][0, 0]) == 2
    assert len(list(run.folder.glob("*/state.npz"))) == 1


def test_another_key_or_no_wish_to_resume_starts_anew(tmp_path):
    for more in ({"key": "other"}, {"key": "k", "resume": False}):
        VideoRun(tmp_path / "out.mp4", key="k").keep(0, numbered(0, 2))
        assert VideoRun(tmp_path / "out.mp4", key="k").n_frames == 2
        assert VideoRun(tmp_path / "out.mp4", **more).n_frames == 0
        VideoRun(tmp_path / "out.mp4", key="k", resume=False)


def test_a_batch_that_was_removed_takes_those_after_it_along(tmp_path):
    run = VideoRun(tmp_path / "out.mp4", key="k")
    for i in range(3):
        run.keep(2 * i, numbered(2 * i, 2))
    for file in (run.folder / "000001-00000002-000002").iterdir():
        file.unlink()
    (run.folder / "000001-00000002-000002").rmdir()
    again = VideoRun(tmp_path / "out.mp4", key="k")
    assert (again.n_frames, again.n_batches) == (2, 1)
    again.keep(2, numbered(2, 3))
    assert values(VideoRun(tmp_path / "out.mp4", key="k")) == [0, 1, 2, 3, 4]


def test_a_damaged_record_starts_anew(tmp_path):
    run = VideoRun(tmp_path / "out.mp4", key="k")
    run.keep(0, numbered(0, 2))
    (run.folder / "run.json").write_text("[")
    assert VideoRun(tmp_path / "out.mp4", key="k").n_frames == 0


@pytest.mark.parametrize(
    ("first", "labels", "why"),
    [
        (1, [np.zeros((2, 2), int)], "first of them 0"),
        (0, [], "must have frames"),
        (0, [np.full((2, 2), 65536)], "0 to 65535"),
        (0, [np.full((2, 2), -1)], "0 to 65535"),
    ],
)
def test_what_cannot_be_kept(tmp_path, first, labels, why):
    run = VideoRun(tmp_path / "out.mp4", key="k")
    with pytest.raises(InputError, match=why):
        run.keep(first, labels)
    assert run.n_frames == 0


def test_a_run_killed_in_the_middle_of_a_batch_goes_on(tmp_path):
    output = tmp_path / "out.mp4"
    folder = tmp_path / ".out.mp4.diffuseg-run"
    for least in (2, 5):
        process = subprocess.Popen([sys.executable, "-c", SLOW_RUN, str(output)])
        deadline = time.monotonic() + 60
        # Killed while a batch is half written: its folder has a temporary name and some pictures.
        while time.monotonic() < deadline and not (
            len(list(folder.glob("0*"))) >= least
            and any(len(list(one.glob("*.png"))) >= 2 for one in folder.glob(".diffuseg-*"))
        ):
            time.sleep(0.002)
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        assert list(folder.glob(".diffuseg-*"))
        done = VideoRun(output, key="k")
        n = done.n_batches
        assert least <= n < 50
        assert values(done) == [10 * batch + i for batch in range(n) for i in range(5)]
        state = done.state()
        assert state is not None
        assert int(state["value"]) == n - 1
        assert not list(folder.glob(".diffuseg-*"))


def test_the_stamp_follows_the_source(tmp_path):
    (tmp_path / "a").mkdir()
    file = tmp_path / "a" / "0.png"
    file.write_bytes(b"1")
    stamps = {source_stamp(file), source_stamp(tmp_path / "a")}
    file.write_bytes(b"12")
    stamps |= {source_stamp(file), source_stamp(tmp_path / "a")}
    assert len(stamps) == 4
