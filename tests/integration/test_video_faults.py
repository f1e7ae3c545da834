"""Bad videos, anchors and outputs through files and the command: an error that says what is wrong,
or the right result; and what is done is not done again."""

import errno
import os
import signal
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import PIL.Image
import pytest
from typer.testing import CliRunner

from diffuseg.cli import app
from diffuseg.errors import InputError
from diffuseg.methods.vidseg import VidSeg
from diffuseg.video import encoding
from diffuseg.video.journal import VideoRun, source_stamp
from diffuseg.video.reading import open_video
from diffuseg.video.running import read_outputs, segment_file
from diffuseg.video.segmenter import open_video_segmenter
from support.linear import LinearDiffusion, shapes
from support.videos import pictures, read_back, write_clip, write_sound

HAND = LinearDiffusion(scale=2)
SETTINGS = VidSeg(clusters=4, starts=1, batch=4, modulate=False)
SIDE = 32
TESTS = Path(__file__).resolve().parents[1]

KILLED = """
import sys, time
sys.path.insert(0, sys.argv[1])
from diffuseg.methods.vidseg import VidSeg
from diffuseg.video import encoding
from diffuseg.video.journal import VideoRun
from diffuseg.video.running import read_outputs, segment_file
from diffuseg.video.segmenter import open_video_segmenter
from support.linear import LinearDiffusion, shapes

keep = VideoRun.keep
def slow(run, *rest):
    keep(run, *rest)
    time.sleep(60 * (run.n_batches > 1))
VideoRun.keep = slow
find = open_video_segmenter(
    LinearDiffusion(scale=2), VidSeg(clusters=4, starts=1, batch=4, modulate=False),
    anchor=shapes(1, side=32)[1][0],
)
segment_file(sys.argv[2], read_outputs(sys.argv[3:]), find)
"""


@pytest.fixture(scope="module")
def moving():
    return shapes(14, side=SIDE)


@pytest.fixture
def find(moving):
    return open_video_segmenter(HAND, SETTINGS, anchor=moving[1][0])


def outputs_of(folder):
    names = ("out.mkv", "masks", "tracks.json")
    return [folder / name for name in names]


def masks_of(folder):
    return [np.array(PIL.Image.open(one)) for one in sorted((folder / "masks").iterdir())]


def noisy(n):
    """Frames that do not compress, so that half of a file has about half of them."""
    return np.random.default_rng(0).integers(0, 255, (n, SIDE, SIDE, 3), dtype=np.uint8)


# ---- videos


def test_of_a_truncated_file_the_good_frames_are_written(tmp_path, find):
    path = write_clip(tmp_path / "in.mp4", noisy(24), movflags="faststart")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    done: list[int] = []

    def segment():
        outputs = read_outputs(outputs_of(tmp_path))
        segment_file(path, outputs, find, progress=lambda n, _: done.append(n))

    with pytest.raises(
        InputError, match=r"(?s)complete and undamaged.*frames could be read"
    ) as told:
        segment()
    written = len(read_back(tmp_path / "out.mkv"))
    assert 3 < written < 20
    assert f"{written} frames" in str(told.value)
    assert len(masks_of(tmp_path)) == written
    before = [one.tobytes() for one in masks_of(tmp_path)]
    assert done[0] == 0
    # Again: nothing that is done is done again, and the same is written.
    for one in (tmp_path / "masks").iterdir():
        one.unlink()
    done.clear()
    with pytest.raises(InputError, match="complete and undamaged"):
        segment()
    assert done == [written]
    assert [one.tobytes() for one in masks_of(tmp_path)] == before


def test_a_rate_that_varies_is_kept(tmp_path, find, moving):
    times = [Fraction(t, 100) for t in (0, 4, 8, 50, 54, 154)]
    path = write_clip(tmp_path / "in.mp4", moving[0][:6], times=times)
    segment_file(path, read_outputs([tmp_path / "out.mp4"]), find)
    assert [one.time for one in open_video(tmp_path / "out.mp4").frames()] == times


def changed_folder(folder):
    (folder / "in").mkdir()
    for i, side in enumerate((48, 48, 48, 32)):
        PIL.Image.new("RGB", (64, side)).save(folder / "in" / f"{i}.png")
    return folder / "in"


def changed_stream(folder, suffix, codec):
    parts = [
        write_clip(folder / f"{side}{suffix}", pictures(3, (side, 64)), codec=codec)
        for side in (48, 32)
    ]
    path = folder / f"in{suffix}"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    return path


@pytest.mark.parametrize(
    "make",
    [
        changed_folder,
        lambda folder: changed_stream(folder, ".mjpeg", "mjpeg"),
        lambda folder: changed_stream(folder, ".ts", "libx264"),
        lambda folder: changed_stream(folder, ".h264", "libx264"),
    ],
    ids=["folder", "mjpeg", "ts", "h264"],
)
def test_up_to_a_change_of_size_all_is_written(tmp_path, make):
    path = make(tmp_path)
    find = open_video_segmenter(HAND, SETTINGS, clusters=4)
    with pytest.raises(InputError, match=r"(?s)one size.*32x64 at frame 3, 48x64 before"):
        segment_file(path, read_outputs(outputs_of(tmp_path)), find)
    assert [one.shape for one in masks_of(tmp_path)] == [(48, 64)] * 3
    assert len(read_back(tmp_path / "out.mkv")) == 3


def no_frames(path):
    with av.open(path, "w") as container:
        stream = container.add_stream("ffv1", rate=30)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "bgr0"
        container.start_encoding()
    return path


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda folder: folder / "none.mp4", "must exist"),
        (lambda folder: no_frames(folder / "in.mkv"), "frame|complete"),
        (lambda folder: write_sound(folder / "in.m4a"), "only audio"),
        (lambda folder: Path(__file__), "complete video"),
        (lambda folder: folder, "no pictures"),
    ],
    ids=["missing", "no frames", "only sound", "no video", "empty folder"],
)
def test_the_command_says_what_is_wrong_and_leaves_nothing(tmp_path, make, why):
    (tmp_path / "given").mkdir()
    source = make(tmp_path / "given")
    words = ["video", source, "-o", tmp_path / "out.mkv", "--clusters", "4", "--quiet"]
    done = CliRunner().invoke(app, [*map(str, words)])
    assert done.exit_code == 2
    assert isinstance(done.exception, SystemExit)
    assert any(one in " ".join(done.output.split()) for one in why.split("|"))
    assert [one.name for one in tmp_path.iterdir()] == ["given"]


def test_what_may_not_be_read(tmp_path, monkeypatch):
    path = write_clip(tmp_path / "in.mp4", pictures(1))
    denied = PermissionError(errno.EACCES, "Permission denied")

    def refuse(*_, **__):
        raise denied

    monkeypatch.setattr(av, "open", refuse)
    with pytest.raises(InputError, match="Permission denied"):
        open_video(path)
    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(InputError, match=r"(?s)readable.*Permission denied"):
        open_video(tmp_path)


# ---- anchors


def test_an_anchor_may_have_another_size(tmp_path, moving):
    frames, truth = moving
    path = write_clip(tmp_path / "in.mkv", frames[:3], codec="ffv1")
    found = []
    for name, anchor in (("same", truth[0]), ("larger", truth[0].repeat(3, 0).repeat(3, 1))):
        find = open_video_segmenter(HAND, SETTINGS, anchor=anchor)
        segment_file(path, read_outputs([tmp_path / name / "masks"]), find)
        found.append(masks_of(tmp_path / name))
    assert np.array_equal(*found)
    assert found[0][0].shape == (SIDE, SIDE)


def test_an_anchor_of_other_proportions_is_noticed_before_anything_is_done(tmp_path, moving):
    frames, truth = moving
    path = write_clip(tmp_path / "in.mkv", frames, codec="ffv1")
    find = open_video_segmenter(HAND, SETTINGS, anchor=truth[0][:20], anchor_frame=13)
    with pytest.raises(InputError, match="20x32 for frames of 32x32"):
        segment_file(path, read_outputs([tmp_path / "out.mkv"]), find)
    assert [one.name for one in tmp_path.iterdir()] == ["in.mkv"]


# ---- outputs


@pytest.mark.parametrize(
    ("names", "why"),
    [
        (["file/out.mkv"], "must be writable"),
        (["out.mkv", "file/below/tracks.json"], "must be writable"),
        (["out.mkv", "file/masks"], "must be writable"),
        (["folder.mkv"], "must be a file name"),
        (["in.mkv"], "must not be the video itself"),
        (["out.mkv", "full"], "must not exist yet"),
        (["file"], "must not exist yet"),
    ],
)
def test_outputs_that_cannot_be_are_noticed_before_anything_is_done(tmp_path, find, names, why):
    path = write_clip(tmp_path / "in.mkv", pictures(2, (SIDE, SIDE)), codec="ffv1")
    (tmp_path / "file").touch()
    (tmp_path / "folder.mkv").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "0.png").touch()
    before = {one: one.stat().st_mtime_ns for one in tmp_path.rglob("*")}
    with pytest.raises(InputError, match=why):
        segment_file(path, read_outputs([tmp_path / one for one in names]), find)
    assert {one: one.stat().st_mtime_ns for one in tmp_path.rglob("*")} == before


def test_a_folder_that_may_not_be_written_to(tmp_path, find, monkeypatch):
    path = write_clip(tmp_path / "in.mkv", pictures(2, (SIDE, SIDE)), codec="ffv1")
    monkeypatch.setattr(os, "access", lambda where, mode: False)
    with pytest.raises(InputError, match="must be writable"):
        segment_file(path, read_outputs([tmp_path / "new" / "out.mkv"]), find)


def test_a_full_disk_loses_no_labels(tmp_path, find, moving, monkeypatch):
    path = write_clip(tmp_path / "in.mkv", moving[0], codec="ffv1")
    outputs = read_outputs([tmp_path / "masks"])
    save = PIL.Image.Image.save

    def full(picture, name, *rest, **more):
        if picture.mode == "P":
            raise OSError(errno.ENOSPC, "No space left on device")
        save(picture, name, *rest, **more)

    monkeypatch.setattr(PIL.Image.Image, "save", full)
    with pytest.raises(InputError, match="No space left"):
        segment_file(path, outputs, find)
    monkeypatch.setattr(PIL.Image.Image, "save", save)
    assert not (tmp_path / "masks").exists()
    done: list[int] = []
    segment_file(path, outputs, find, progress=lambda n, _: done.append(n))
    assert done == [14]
    assert len(masks_of(tmp_path)) == 14


# ---- runs that were stopped


def test_a_run_that_was_killed_goes_on_and_gives_the_same(tmp_path, find, moving, monkeypatch):
    # x264 gives other bytes for the same small frames from run to run; FFV1 keeps each pixel.
    monkeypatch.setattr(encoding, "_PLAYABLE", encoding._EXACT)
    path = write_clip(tmp_path / "in.mkv", moving[0], codec="ffv1")
    segment_file(path, read_outputs(outputs_of(tmp_path / "whole")), find)
    outputs = outputs_of(tmp_path / "parts")
    process = subprocess.Popen([sys.executable, "-c", KILLED, TESTS, path, *outputs])
    held, deadline = tmp_path / "parts" / ".out.mkv.diffuseg-run", time.monotonic() + 120
    while time.monotonic() < deadline and len(list(held.glob("0*"))) < 2:
        assert process.poll() is None
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert {one.name for one in (tmp_path / "parts").iterdir()} == {held.name}
    done: list[int] = []
    segment_file(path, read_outputs(outputs), find, progress=lambda n, _: done.append(n))
    assert done == [8, 12, 14]
    tracks = [(tmp_path / one / "tracks.json").read_bytes() for one in ("whole", "parts")]
    assert tracks[0] == tracks[1]
    assert np.array_equal(*(masks_of(tmp_path / one) for one in ("whole", "parts")))
    assert np.array_equal(*(read_back(tmp_path / one / "out.mkv") for one in ("whole", "parts")))
    assert not held.exists()


def test_a_damaged_state_starts_anew(tmp_path, find, moving):
    path = write_clip(tmp_path / "in.mkv", moving[0], codec="ffv1")
    segment_file(path, read_outputs([tmp_path / "whole" / "masks"]), find)
    keep, output = VideoRun.keep, tmp_path / "parts" / "masks"

    def stopped(run, first, *rest):
        if first:
            raise KeyboardInterrupt
        keep(run, first, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(VideoRun, "keep", stopped)
        with pytest.raises(KeyboardInterrupt):
            segment_file(path, read_outputs([output]), find)
    [state] = (tmp_path / "parts").rglob("state.npz")
    state.write_bytes(state.read_bytes()[:200])
    done: list[int] = []
    segment_file(path, read_outputs([output]), find, progress=lambda n, _: done.append(n))
    assert done[0] == 0
    assert np.array_equal(*(masks_of(tmp_path / one) for one in ("whole", "parts")))


def test_outputs_beside_the_pictures_do_not_make_them_another_video(tmp_path):
    PIL.Image.new("RGB", (32, 24)).save(tmp_path / "1.png")
    before = source_stamp(tmp_path)
    VideoRun(tmp_path / "out.mp4", key="k").keep(0, [np.zeros((24, 32), int)])
    (tmp_path / "tracks.json").touch()
    assert source_stamp(tmp_path) == before
    PIL.Image.new("RGB", (32, 24)).save(tmp_path / "2.png")
    assert source_stamp(tmp_path) != before
