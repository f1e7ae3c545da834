"""Video data sets read from tiny folders laid out exactly as the releases are."""

import json
import shutil
from fractions import Fraction

import numpy as np
import PIL.Image
import pytest

from diffuseg.errors import InputError
from diffuseg.eval.video_datasets import (
    VIDEO_DATASETS,
    SceneClips,
    VideoDataset,
    open_video_dataset,
)
from diffuseg.eval.video_layouts import CamVid32, Davis
from diffuseg.eval.video_metrics import VideoMetrics
from diffuseg.eval.video_objects import score_objects
from diffuseg.palettes import voc_palette
from diffuseg.world import Clips
from diffuseg.world.layouts import write_davis

SIZE = (20, 30)


def picture(path, value=0, mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.full((*SIZE, 3) if mode == "RGB" else SIZE, value, dtype=np.uint8)
    PIL.Image.fromarray(array).save(path)


def mask(path, values, *, palette=False):
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.zeros(SIZE, dtype=np.uint8)
    array[: len(values)] = np.array(values, dtype=np.uint8)[:, None]
    made = PIL.Image.fromarray(array)
    if palette:
        made.putpalette(voc_palette(256).tobytes())
    made.save(path)


def lines(path, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{row}\n" for row in rows))


def make_camvid(root):
    names = ["0016E5_07961.png", "0016E5_07959.png", "Seq05VD_f00030.png", "Seq05VD_f00000.png"]
    for i, name in enumerate(names):
        picture(root / "val" / name, i)
        mask(root / "valannot" / name, [0, 10, 11])
    lines(root / "val.txt", *(f"/SegNet/CamVid/val/{n} /SegNet/CamVid/valannot/{n}" for n in names))


def make_camvid32(root):
    picture(root / "701_StillsRaw_full" / "0016E5_07959.png")
    colors = np.zeros((*SIZE, 3), dtype=np.uint8)
    colors[0], colors[1] = (64, 128, 64), (192, 0, 128)
    path = root / "LabeledApproved_full" / "0016E5_07959_L.png"
    path.parent.mkdir()
    PIL.Image.fromarray(colors).save(path)
    lines(root / "label_colors.txt", "64 128 64\tAnimal", "192 0 128\tArchway", "0 0 0\t\tVoid")


def make_vspw(root):
    for video in ("b_1", "a_2"):
        for i in range(3):
            picture(root / "data" / video / "origin" / f"{i:08d}.jpg")
            mask(root / "data" / video / "mask" / f"{i:08d}.png", [0, 1, 124, 255])
    lines(root / "val.txt", "b_1", "a_2", ".DS_Store")
    (root / "label_num_dic_final.json").write_text(json.dumps({"others": 0, "wall": 1}))


def make_davis(root):
    for i in range(4):
        picture(root / "JPEGImages/480p/bear" / f"{i:05d}.jpg")
        mask(root / "Annotations/480p/bear" / f"{i:05d}.png", [1, 2, 0], palette=True)
    lines(root / "ImageSets/2017/val.txt", "bear")
    lines(root / "ImageSets/480p/val.txt", "/JPEGImages/480p/bear/00000.jpg /Annotations/…")


def make_cityscapes(root):
    stem = "frankfurt_000000_000294"
    for frame in range(275, 305):
        name = f"frankfurt_000000_{frame:06d}_leftImg8bit.png"
        picture(root / "leftImg8bit_sequence/val/frankfurt" / name, frame % 256)
    mask(root / "gtFine/val/frankfurt" / f"{stem}_gtFine_labelIds.png", [7, 33, 6, 29])


def make_clvos(root):
    for i in range(5):
        picture(root / "JPEGImages/rat" / f"{i:05d}.jpg")
    for i in (1, 4):
        mask(root / "Annotations/rat" / f"{i:05d}.png", [1], palette=True)


MAKERS = {
    "camvid11": make_camvid,
    "camvid32": make_camvid32,
    "vspw124": make_vspw,
    "davis2016": make_davis,
    "davis2017": make_davis,
    "cityscapes19": make_cityscapes,
    "clvos23": make_clvos,
}


@pytest.fixture(params=VIDEO_DATASETS)
def opened(request, tmp_path):
    MAKERS[request.param](tmp_path)
    return open_video_dataset(request.param, tmp_path)


def test_every_set_is_one(opened):
    assert isinstance(opened, VideoDataset)
    for i in range(len(opened)):
        sample = opened[i]
        assert len(sample.frames) == len(sample.truth)
        assert sample.frames[0].shape == (*SIZE, 3)
        assert sample.truth[sample.anchor].shape == SIZE
        assert sample.annotated >= 1
    with pytest.raises(IndexError):
        opened[len(opened)]


@pytest.mark.parametrize("name", VIDEO_DATASETS)
def test_a_fingerprint_is_of_the_files(name, tmp_path):
    first, second = tmp_path / "a", tmp_path / "b"
    MAKERS[name](first)
    held = open_video_dataset(name, first).fingerprint
    shutil.copytree(first, second)
    moved = open_video_dataset(name, second)
    assert moved.fingerprint == held
    changed = moved.clips[0].pictures[-1]
    changed.write_bytes(changed.read_bytes() + b"more")
    assert moved.fingerprint != held


def first_rows(sample, frame=0):
    truth = sample.truth[frame]
    return None if truth is None else truth[:4, 0].tolist()


def test_camvid(tmp_path):
    make_camvid(tmp_path)
    data = open_video_dataset("camvid11", tmp_path)
    assert [one.id for one in data] == ["0016E5", "Seq05VD"]
    assert [one.fps for one in data] == [15, 1]
    assert (len(data.classes), data.ignore) == (11, 11)
    assert [frame[0, 0, 0] for frame in data[0].frames] == [1, 0]
    assert first_rows(data[0]) == [0, 10, 11, 0]
    (tmp_path / "val.txt").unlink()
    assert len(open_video_dataset("camvid11", tmp_path)) == 2


def test_camvid_with_all_its_classes(tmp_path):
    make_camvid32(tmp_path)
    data = open_video_dataset("camvid32", tmp_path)
    assert data.classes == ("Animal", "Archway")
    assert first_rows(data[0]) == [0, 1, 255, 255]
    lines(tmp_path / "val.txt", "0016E5_07959")
    assert len(CamVid32(tmp_path, split="val", clips=("0016E5",))) == 1
    with pytest.raises(InputError, match="none in"):
        CamVid32(tmp_path, clips=("0001TP",))


def test_vspw(tmp_path):
    make_vspw(tmp_path)
    data = open_video_dataset("vspw124", tmp_path)
    assert [one.id for one in data] == ["b_1", "a_2"]
    assert (len(data.classes), data.classes[:2]) == (124, ("wall", "ceiling"))
    assert first_rows(data[0]) == [255, 0, 123, 255]
    (tmp_path / "label_num_dic_final.json").write_text("[1]")
    with pytest.raises(InputError, match="class names to numbers"):
        open_video_dataset("vspw124", tmp_path)


def test_davis(tmp_path):
    make_davis(tmp_path)
    both = {year: open_video_dataset(f"davis{year}", tmp_path) for year in (2016, 2017)}
    assert first_rows(both[2017][0]) == [1, 2, 0, 0]
    assert first_rows(both[2016][0]) == [1, 1, 0, 0]
    assert (both[2017].classes, both[2017][0].fps) == ((), 24)
    lines(tmp_path / "ImageSets/2016/val.txt", "bear")
    assert len(open_video_dataset("davis2016", tmp_path)) == 1


def test_cityscapes(tmp_path):
    make_cityscapes(tmp_path)
    sample = open_video_dataset("cityscapes19", tmp_path)[0]
    assert (sample.anchor, len(sample.frames), sample.annotated) == (19, 30, 1)
    assert sample.truth[0] is None
    assert first_rows(sample, 19) == [0, 18, 255, 255]
    assert sample.frames[19][0, 0, 0] == 294 % 256


def test_clvos(tmp_path):
    make_clvos(tmp_path)
    sample = open_video_dataset("clvos23", tmp_path)[0]
    assert (sample.anchor, sample.annotated) == (1, 2)
    assert [one is None for one in sample.truth] == [True, False, True, True, False]


def test_scenes():
    data = SceneClips(n=2, frames=4, hw=(64, 64))
    clip = Clips("test", 1, (64, 64), frames=4)[1]
    sample = data[1]
    assert isinstance(data, VideoDataset)
    assert np.array_equal(sample.frames[3], clip.frames[3])
    assert np.array_equal(sample.truth[2], clip.labels[2])
    assert sample.instances is not None
    assert np.array_equal(sample.instances[2], clip.instances[2])
    assert (len(data), sample.fps, sample.anchor) == (2, Fraction(clip.fps), 0)
    # How many clips there are changes none of them; anything else does.
    more = SceneClips(n=3, frames=4, hw=(64, 64), seed=2)
    assert (more.seed, more.fingerprint) == (2, data.fingerprint)
    assert SceneClips(frames=5, hw=(64, 64)).fingerprint != data.fingerprint
    assert SceneClips(frames=4, hw=(64, 96)).fingerprint != data.fingerprint
    metrics = VideoMetrics(len(data.classes))
    metrics.update(sample.id, zip(sample.truth, sample.truth, strict=True))
    assert metrics.miou() == 1


def test_clips_written_as_davis_are_read_back(tmp_path):
    clips = Clips("val", hw=(64, 64), frames=4)
    sample = open_video_dataset("davis2017", write_davis(clips, tmp_path / "davis", 1))[0]
    for got, want in zip(sample.truth, clips[0].instances, strict=True):
        assert np.array_equal(got, want)
    n = int(clips[0].instances.max())
    pairs = [(one, one) for one in sample.truth]
    assert score_objects(pairs, objects=range(1, n + 1)).j_and_f == 1


@pytest.mark.parametrize(
    ("name", "gone", "why"),
    [
        ("camvid11", "valannot", "no folder .*valannot"),
        ("camvid11", "valannot/0016E5_07961.png", "1 of 4 missing: 0016E5_07961.png"),
        ("camvid32", "label_colors.txt", "label_colors.txt of the release"),
        ("vspw124", "val.txt", "val.txt of the release"),
        ("vspw124", "data/b_1/mask/00000001.png", "no mask for 1 of 3: 00000001"),
        ("davis2017", "ImageSets/2017/val.txt", "ImageSets/2017/val.txt of the release"),
        ("davis2017", "Annotations/480p/bear", "no folder .*bear"),
        ("cityscapes19", "leftImg8bit_sequence", "no folder .*leftImg8bit_sequence"),
        (
            "cityscapes19",
            "leftImg8bit_sequence/val/frankfurt/frankfurt_000000_000294_leftImg8bit.png",
            "frankfurt_000000_000294_leftImg8bit.png",
        ),
        ("clvos23", "Annotations/rat", "no folder .*rat"),
    ],
)
def test_what_is_missing_is_said(tmp_path, name, gone, why):
    MAKERS[name](tmp_path)
    (tmp_path / gone).rename(tmp_path / "elsewhere")
    with pytest.raises(InputError, match=why):
        open_video_dataset(name, tmp_path)


def test_names_and_folders_that_are_not_there(tmp_path):
    with pytest.raises(InputError, match="did you mean davis2017"):
        open_video_dataset("davis17", tmp_path)
    with pytest.raises(InputError, match="as published"):
        open_video_dataset("vspw124", tmp_path / "no")
    with pytest.raises(InputError, match="2016 or 2017"):
        Davis(tmp_path, year=2018)
    with pytest.raises(InputError, match="at least 1"):
        SceneClips(n=0)


def test_a_damaged_mask(tmp_path):
    make_clvos(tmp_path)
    (tmp_path / "Annotations/rat/00001.png").write_bytes(b"no")
    with pytest.raises(InputError, match="readable PNG"):
        open_video_dataset("clvos23", tmp_path)[0].truth[1]
