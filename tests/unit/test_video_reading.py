"""Real video files in, and all that can be wrong with them."""

import builtins
import os
import threading
import tracemalloc
from fractions import Fraction

import av
import numpy as np
import PIL.Image
import pytest

from diffuseg.errors import InputError, MissingExtra
from diffuseg.video.reading import natural_key, open_video
from support.videos import pictures, turn, write_clip, write_sound


def near(got, want):
    return float(np.abs(got.astype(float) - want.astype(float)).mean()) < 6


def read_until_error(video):
    got, frames = [], video.frames()
    while True:
        try:
            got.append(next(frames))
        except InputError as error:
            return got, str(error)


@pytest.mark.parametrize(
    ("name", "codec", "base"),
    [
        ("a.mp4", "libx264", Fraction(1, 15360)),
        ("a.mp4", "mpeg4", Fraction(1, 15360)),
        ("a.mkv", "ffv1", Fraction(1, 1000)),
        ("a.webm", "libvpx-vp9", Fraction(1, 1000)),
        ("a.avi", "mjpeg", Fraction(1, 30)),
        ("a.ts", "libx264", Fraction(1, 90000)),
    ],
)
def test_a_file_of_every_common_kind(tmp_path, name, codec, base):
    frames = pictures(7)
    video = open_video(write_clip(tmp_path / name, frames, codec=codec))
    assert (video.size, video.fps, video.time_base) == ((48, 64), 30, base)
    assert video.length in (7, None)
    assert video.expected == 7
    for _ in range(2):
        got = list(video.frames())
        assert [frame.index for frame in got] == list(range(7))
        for i, frame in enumerate(got):
            assert near(frame.pixels, frames[i])
            assert abs(frame.time - Fraction(i, 30)) <= base
    assert [frame.index for frame in video.frames(5)] == [5, 6]
    assert list(video.frames(7)) == []


def test_lossless_frames_come_back_as_they_were(tmp_path):
    frames = pictures(3)
    video = open_video(write_clip(tmp_path / "a.mkv", frames, codec="ffv1"))
    assert all(
        np.array_equal(one.pixels, two) for one, two in zip(video.frames(), frames, strict=True)
    )


def test_the_rate_may_vary(tmp_path):
    times = [Fraction(t, 100) for t in (0, 4, 8, 50, 54, 154)]
    video = open_video(write_clip(tmp_path / "a.mp4", pictures(6), times=times))
    assert [frame.time for frame in video.frames()] == times


def test_odd_sizes(tmp_path):
    video = open_video(write_clip(tmp_path / "a.mp4", pictures(2, (49, 63))))
    assert video.size == (49, 63)
    assert next(video.frames()).pixels.shape == (49, 63, 3)


def test_pictures_stand_upright(tmp_path):
    frames = pictures(3)
    video = open_video(turn(write_clip(tmp_path / "a.mp4", frames)))
    assert video.size == (64, 48)
    for frame, pixels in zip(video.frames(), frames, strict=True):
        assert near(frame.pixels, np.rot90(pixels, -1))


def test_one_frame(tmp_path):
    video = open_video(write_clip(tmp_path / "a.mp4", pictures(1)))
    assert [(one.index, one.time) for one in video.frames()] == [(0, 0)]


def test_sound_does_not_disturb(tmp_path):
    video = open_video(write_clip(tmp_path / "a.mkv", pictures(9), audio=True))
    assert len(list(video.frames())) == 9


def test_an_animation_with_transparent_places(tmp_path):
    faces = [PIL.Image.new("RGBA", (32, 24), color) for color in ("#0000", "red", "lime")]
    faces[0].paste("blue", (16, 0, 32, 24))
    faces[0].save(
        tmp_path / "a.gif", save_all=True, append_images=faces[1:], duration=[40, 40, 200]
    )
    got = list(open_video(tmp_path / "a.gif").frames())
    assert [one.time for one in got] == [0, Fraction(4, 100), Fraction(8, 100)]
    assert [tuple(one.pixels[5, 5]) for one in got] == [(255, 255, 255), (255, 0, 0), (0, 255, 0)]
    assert tuple(got[0].pixels[5, 25]) == (0, 0, 255)


def test_a_still_animation_is_complete(tmp_path):
    PIL.Image.new("RGB", (32, 24)).save(tmp_path / "a.gif", duration=5000)
    assert len(list(open_video(tmp_path / "a.gif").frames())) == 1


def test_a_folder_in_the_order_of_its_numbers(tmp_path):
    for number in (10, 9, 100):
        PIL.Image.new("L", (32, 24), number).save(tmp_path / f"{number}.png")
    (tmp_path / "notes.txt").touch()
    (tmp_path / ".hidden.png").touch()
    video = open_video(tmp_path, fps=Fraction(30000, 1001))
    got = list(video.frames())
    assert [one.pixels[0, 0, 0] for one in got] == [9, 10, 100]
    assert got[2].time == Fraction(2002, 30000)
    assert (video.size, video.length, video.time_base) == ((24, 32), 3, Fraction(1001, 30000))
    assert [one.index for one in video.frames(2)] == [2]
    assert open_video(tmp_path).fps == 25


def test_names_with_numbers_in_them():
    names = ["0016E5_07961", "0016E5_07959", "0001TP_10000", "0001TP_9990"]
    assert sorted(names, key=natural_key) == [names[3], names[2], names[1], names[0]]
    assert sorted(["b", "1", "a2", "a", "²"], key=natural_key)[0] == "1"


def test_a_pipe_of_unknown_length_is_read_once(tmp_path):
    clip = write_clip(tmp_path / "a.ts", pictures(12))
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=lambda: pipe.write_bytes(clip.read_bytes()))
    writer.start()
    video = open_video(pipe)
    assert (video.size, video.length, video.expected) == ((48, 64), None, None)
    assert len(list(video.frames())) == 12
    writer.join()
    with pytest.raises(InputError, match="only once"):
        next(video.frames())


def test_memory_does_not_grow_with_the_length(tmp_path):
    peaks = []
    for n in (20, 100):
        video = open_video(write_clip(tmp_path / f"{n}.mp4", pictures(n)))
        tracemalloc.start()
        for _ in video.frames():
            pass
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.1 * peaks[0] + 10_000


# What cannot be used.


def test_cut_off_without_an_index(tmp_path):
    path = write_clip(tmp_path / "a.mp4", pictures(30))
    path.write_bytes(path.read_bytes()[:900])
    with pytest.raises(InputError, match="complete video"):
        open_video(path)


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.webm"])
def test_cut_off_in_the_middle_the_good_frames_come_first(tmp_path, name):
    frames = np.random.default_rng(0).integers(0, 255, (40, 48, 64, 3), dtype=np.uint8)
    codec = "libvpx-vp9" if name == "a.webm" else "libx264"
    options = {"movflags": "faststart"} if name == "a.mp4" else {}
    path = write_clip(tmp_path / name, frames, codec=codec, **options)
    whole = [one.pixels for one in open_video(path).frames()]
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    got, message = read_until_error(open_video(path))
    assert "complete and undamaged" in message
    assert 5 < len(got) < 35
    assert all(np.array_equal(one.pixels, whole[one.index]) for one in got)


@pytest.mark.parametrize(
    ("content", "why"), [(b"", "empty file"), (b"no video at all" * 100, "Invalid data")]
)
def test_no_video_at_all(tmp_path, content, why):
    (tmp_path / "a.mp4").write_bytes(content)
    with pytest.raises(InputError, match=why):
        open_video(tmp_path / "a.mp4")


def test_only_sound(tmp_path):
    with pytest.raises(InputError, match="only audio"):
        open_video(write_sound(tmp_path / "a.m4a"))


def test_a_song_with_a_cover(tmp_path):
    path = tmp_path / "a.mp3"
    with av.open(path, "w") as container:
        sound = container.add_stream("libmp3lame", rate=16_000)
        cover = container.add_stream("png", rate=1)
        cover.height, cover.width, cover.pix_fmt = 32, 32, "rgb24"
        cover.disposition = av.stream.Disposition.attached_pic
        picture = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")
        container.mux(cover.encode(picture))
        container.mux(cover.encode(None))
        silence = np.zeros((1, 1152), dtype=np.int16)
        frame = av.AudioFrame.from_ndarray(silence, format="s16", layout="mono")
        frame.sample_rate = 16_000
        container.mux(sound.encode(frame))
        container.mux(sound.encode(None))
    with pytest.raises(InputError, match="cover"):
        open_video(path)


def test_a_stream_without_frames(tmp_path):
    path = tmp_path / "a.mkv"
    with av.open(path, "w") as container:
        stream = container.add_stream("ffv1", rate=30)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "bgr0"
        container.start_encoding()
    with pytest.raises(InputError, match=r"at least one frame|complete video"):
        open_video(path)


def test_the_size_changes_on_the_way(tmp_path):
    parts = [
        write_clip(tmp_path / f"{side}.mjpeg", pictures(3, (side, 64)), codec="mjpeg")
        for side in (48, 32)
    ]
    path = tmp_path / "a.mjpeg"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    got, message = read_until_error(open_video(path))
    assert len(got) == 3
    assert "32x64 at frame 3, 48x64 before" in message


def test_folders_that_are_no_video(tmp_path):
    with pytest.raises(InputError, match="no pictures"):
        open_video(tmp_path)
    PIL.Image.new("L", (32, 24)).save(tmp_path / "1.png")
    PIL.Image.new("L", (24, 32)).save(tmp_path / "2.png")
    got, message = read_until_error(open_video(tmp_path))
    assert len(got) == 1
    assert "2.png: 32x24 at frame 1" in message
    PIL.Image.new("L", (32, 24)).save(tmp_path / "01.jpg")
    with pytest.raises(InputError, match="number of its own"):
        open_video(tmp_path)


def test_an_address_may_be_longer_than_a_name(tmp_path):
    with pytest.raises(InputError, match="complete video"):
        open_video(f"nothing://{'a' * 300}")


def test_arguments(tmp_path):
    with pytest.raises(InputError, match="must exist"):
        open_video(tmp_path / "no.mp4")
    with pytest.raises(InputError, match="folders of pictures only"):
        open_video(write_clip(tmp_path / "a.mp4", pictures(1)), fps=3)
    with pytest.raises(InputError, match="must be positive"):
        open_video(tmp_path, fps=0)
    with pytest.raises(InputError, match="sides of 16"):
        open_video(write_clip(tmp_path / "b.mp4", pictures(1, (8, 32))[:, :8]))


def test_without_pyav(tmp_path, monkeypatch):
    path = write_clip(tmp_path / "a.mp4", pictures(1))
    real = builtins.__import__

    def missing(name, *rest):
        if name == "av":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(MissingExtra, match=r"diffuseg\[video\]"):
        open_video(path)
