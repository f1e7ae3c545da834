"""Masks, overlays, pictures and tracks out: exact where they say so, there whole or not at all."""

import json
from fractions import Fraction

import av
import numpy as np
import PIL.Image
import pytest

from diffuseg.errors import InputError
from diffuseg.palettes import color_of, voc_palette
from diffuseg.render import overlay
from diffuseg.result import Segmentation
from diffuseg.video.encoding import encode_video
from diffuseg.video.reading import Frame, open_video
from diffuseg.video.writing import (
    label_boxes,
    mask_video,
    overlay_video,
    png_sequence,
    together,
    track_file,
)
from support.videos import pictures, read_back, write_clip

NAMES = ("background", "car", "tree")


def labels_of(n, size=(48, 64)):
    labels = np.zeros((n, *size), dtype=np.int32)
    for i in range(n):
        labels[i, 4:20, 2 * i : 2 * i + 10] = 1
        labels[i, 30:, 40:] = 65535
    if n > 2:
        labels[2, 40:44, 5:9] = 2
    return labels


@pytest.fixture
def video(tmp_path):
    return open_video(write_clip(tmp_path / "in.mp4", pictures(6)))


def fill(output, video, labels):
    with output as add:
        for frame in video.frames():
            add(frame, labels[frame.index])


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.mov", "a.webm"])
def test_a_lossless_mask_video_has_exactly_its_colours(tmp_path, video, name):
    labels = labels_of(6)
    fill(mask_video(tmp_path / name, video, lossless=True), video, labels)
    palette = voc_palette(256)
    got = read_back(tmp_path / name)
    for pixels, one in zip(got, labels, strict=True):
        assert np.array_equal(pixels[one < 3], palette[one[one < 3]])
        assert (pixels[one == 65535] == 128).all()


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.mov", "a.webm"])
def test_a_mask_video_that_plays_everywhere(tmp_path, video, name):
    labels = np.repeat(labels_of(1), 6, axis=0)
    palette = np.array([[0, 0, 0], [200, 200, 200], [90, 90, 90]], dtype=np.uint8)
    fill(mask_video(tmp_path / name, video, palette=palette), video, labels)
    got = open_video(tmp_path / name)
    assert (got.size, got.fps) == (video.size, video.fps)
    one = list(got.frames())[3].pixels
    assert abs(one[8:16, 2:8].astype(int) - 200).mean() < 12
    with av.open(tmp_path / name) as container:
        assert container.streams.video[0].pix_fmt == "yuv420p"


@pytest.mark.parametrize("rate", [Fraction(30000, 1001), Fraction(25), Fraction(12)])
def test_rate_and_time_base_are_kept(tmp_path, rate):
    video = open_video(write_clip(tmp_path / "in.mp4", pictures(5), rate=rate))
    fill(mask_video(tmp_path / "out.mp4", video), video, labels_of(5))
    got = open_video(tmp_path / "out.mp4")
    assert (got.fps, got.time_base, got.length) == (video.fps, video.time_base, 5)
    assert [one.time for one in got.frames()] == [one.time for one in video.frames()]


def test_times_that_vary_are_kept(tmp_path):
    times = [Fraction(t, 100) for t in (0, 4, 8, 50, 54, 154)]
    video = open_video(write_clip(tmp_path / "in.mp4", pictures(6), times=times))
    fill(overlay_video(tmp_path / "out.mp4", video, NAMES), video, labels_of(6))
    assert [one.time for one in open_video(tmp_path / "out.mp4").frames()] == times
    fill(overlay_video(tmp_path / "out.mkv", video, NAMES), video, labels_of(6))
    assert [one.time for one in open_video(tmp_path / "out.mkv").frames()] == times


def test_odd_sizes_stay_odd(tmp_path):
    video = open_video(write_clip(tmp_path / "in.mp4", pictures(3, (49, 63))))
    for name in ("out.mp4", "out.webm"):
        fill(mask_video(tmp_path / name, video), video, labels_of(3, (49, 63)))
        assert open_video(tmp_path / name).size == (49, 63)


def test_without_h264_mpeg4_is_written(tmp_path, video, monkeypatch):
    monkeypatch.setattr(av, "codecs_available", {"mpeg4"})
    fill(mask_video(tmp_path / "out.mp4", video), video, labels_of(6))
    got = open_video(tmp_path / "out.mp4")
    assert len(list(got.frames())) == 6
    with pytest.raises(InputError, match="libx264rgb"):
        fill(mask_video(tmp_path / "b.mp4", video, lossless=True), video, labels_of(6))


def test_an_overlay_is_that_of_render(tmp_path, video):
    labels = labels_of(6)
    fill(overlay_video(tmp_path / "out.mkv", video, NAMES, lossless=True), video, labels)
    got = read_back(tmp_path / "out.mkv")
    for frame in video.frames():
        seg = Segmentation(labels=labels[frame.index], names=NAMES)
        want = np.asarray(overlay(frame.pixels, seg, legend=False))
        assert np.array_equal(got[frame.index], want)
    assert color_of("car") != color_of("tree")


def test_pictures_as_davis_takes_them(tmp_path, video):
    labels = labels_of(6)
    fill(png_sequence(tmp_path / "masks"), video, labels)
    files = sorted((tmp_path / "masks").iterdir())
    assert [file.name for file in files] == [f"0000{i}.png" for i in range(6)]
    for file, one in zip(files, labels, strict=True):
        with PIL.Image.open(file) as picture:
            assert picture.mode == "P"
            assert np.array_equal(np.asarray(picture), np.where(one == 65535, 255, one))
            assert list(picture.getpalette() or [])[:9] == voc_palette(3).reshape(-1).tolist()
    with pytest.raises(InputError, match="must not exist yet"):
        fill(png_sequence(tmp_path / "masks"), video, labels)
    with pytest.raises(InputError, match="0 to 255"):
        fill(png_sequence(tmp_path / "more"), video, labels + 256)


def test_tracks(tmp_path, video):
    fill(track_file(tmp_path / "tracks.json", video, NAMES), video, labels_of(6))
    held = json.loads((tmp_path / "tracks.json").read_text())
    assert held["video"] == {
        "source": "in.mp4",
        "size": [48, 64],
        "fps": "30/1",
        "time_base": "1/15360",
    }
    assert held["times"][:3] == [0.0, 0.033333, 0.066667]
    ground, car, tree = held["objects"]
    assert (ground["name"], car["name"], tree["name"]) == NAMES
    assert car["frames"] == list(range(6))
    assert car["boxes"] == [[4, 2 * i, 20, 2 * i + 10] for i in range(6)]
    assert car["areas"] == [160] * 6
    assert (tree["frames"], tree["boxes"], tree["areas"]) == ([2], [[40, 5, 44, 9]], [16])


def test_boxes_are_those_of_the_masks():
    labels = np.random.default_rng(0).integers(-1, 5, (9, 7)) * (np.arange(7) > 3)
    for label, box, area in label_boxes(labels, 4):
        rows, columns = np.nonzero(labels == label)
        assert box == (rows.min(), columns.min(), rows.max() + 1, columns.max() + 1)
        assert area == len(rows)
    assert [one[0] for one in label_boxes(labels, 4)] == [0, 1, 2, 3]


def test_outputs_together_and_nothing_half_written(tmp_path, video):
    out = tmp_path / "out"

    def outputs():
        return [
            mask_video(out / "mask.mkv", video, lossless=True),
            overlay_video(out / "overlay.mp4", video, NAMES),
            png_sequence(out / "masks"),
            track_file(out / "tracks.json", video, NAMES),
        ]

    with pytest.raises(IndexError):
        fill(together(outputs()), video, labels_of(4))
    assert list(out.iterdir()) == []
    fill(together(outputs()), video, labels_of(6))
    assert sorted(file.name for file in out.iterdir()) == [
        *("mask.mkv", "masks", "overlay.mp4", "tracks.json"),
    ]


def test_what_cannot_be_written(tmp_path, video):
    with pytest.raises(InputError, match=r"written as \.mp4"), mask_video("a.txt", video):
        pass
    with (
        pytest.raises(InputError, match="at least one frame"),
        mask_video(tmp_path / "a.mp4", video),
    ):
        pass
    with (
        pytest.raises(InputError, match="size of the video"),
        encode_video(tmp_path / "a.mp4", video) as draw,
    ):
        draw(Fraction(0), np.zeros((8, 8, 3), dtype=np.uint8))
    assert not list(tmp_path.glob(".diffuseg*"))
    assert not (tmp_path / "a.mp4").exists()


def test_frames_in_one_unit_of_time_do_not_fall_together(tmp_path):
    video = open_video(write_clip(tmp_path / "in.avi", pictures(3), codec="mjpeg", rate=10))
    with mask_video(tmp_path / "out.mp4", video) as add:
        for i in range(3):
            add(Frame(i, Fraction(i, 1000), pictures(1)[0]), labels_of(1)[0])
    assert len(list(open_video(tmp_path / "out.mp4").frames())) == 3
