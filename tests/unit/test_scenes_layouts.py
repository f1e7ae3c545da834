"""Writers of PASCAL VOC and DAVIS folders: read back, and nothing half-written."""

import json

import numpy as np
import pytest
from PIL import Image

from diffuseg.errors import InputError
from diffuseg.palettes import voc_palette
from diffuseg.world import CLASSES, Scenes
from diffuseg.world.layouts import write_davis, write_voc
from diffuseg.world.videos import Clips


def read_mask(path):
    with Image.open(path) as picture:
        assert picture.mode == "P"
        colors = picture.getpalette()
        assert colors is not None
        assert colors[: 3 * 32] == voc_palette(32).ravel().tolist()
        return np.asarray(picture)


def read_picture(path):
    with Image.open(path) as picture:
        return np.asarray(picture).astype(int)


def test_voc_reads_back(tmp_path):
    train, val = Scenes("train", hw=(64, 96)), Scenes("val", seed=4, hw=(64, 64))
    calls = []
    root = write_voc([train, val], tmp_path / "voc", 2, progress=lambda *call: calls.append(call))
    assert root == tmp_path / "voc"
    assert calls == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert (root / "names.txt").read_text().split() == ["background", *CLASSES]
    captions = json.loads((root / "captions.json").read_text())
    for stream in (train, val):
        listed = (root / f"ImageSets/Segmentation/{stream.split}.txt").read_text().split()
        assert len(listed) == 2
        for i, name in enumerate(listed):
            scene = stream[i]
            labels = read_mask(root / f"SegmentationClass/{name}.png")
            assert (labels == scene.labels + 1).all()
            assert (read_mask(root / f"SegmentationObject/{name}.png") == scene.instances).all()
            picture = read_picture(root / f"JPEGImages/{name}.jpg")
            assert np.abs(picture - scene.image).mean() < 4.0
            assert tuple(captions[name]) == scene.captions
    assert [path.name for path in tmp_path.iterdir()] == ["voc"]


def test_davis_reads_back(tmp_path):
    clips = Clips("val", seed=1, hw=(64, 64), frames=3, fps=6)
    calls = []
    root = write_davis(clips, tmp_path / "a/davis", 2, progress=lambda *call: calls.append(call))
    assert calls == [(1, 2), (2, 2)]
    listed = (root / "ImageSets/2017/val.txt").read_text().split()
    objects = json.loads((root / "objects.json").read_text())
    for i, name in enumerate(listed):
        clip = clips[i]
        masks = sorted((root / "Annotations/480p" / name).iterdir())
        pictures = sorted((root / "JPEGImages/480p" / name).iterdir())
        assert [path.name for path in masks] == ["00000.png", "00001.png", "00002.png"]
        assert [path.name for path in pictures] == ["00000.jpg", "00001.jpg", "00002.jpg"]
        for f in range(3):
            assert (read_mask(masks[f]) == clip.instances[f]).all()
            assert np.abs(read_picture(pictures[f]) - clip.frames[f]).mean() < 4.0
        assert objects[name]["fps"] == 6
        assert objects[name]["caption"] == clip.caption
        kinds = [objects[name]["objects"][str(k + 1)]["kind"] for k in range(len(clip.things))]
        assert kinds == [track.kind for track in clip.things]


def test_interruption_leaves_nothing(tmp_path):
    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_voc(Scenes("train", hw=(64, 64)), tmp_path / "voc", 3, progress=stop)
    with pytest.raises(KeyboardInterrupt):
        write_davis(Clips(hw=(64, 64), frames=2), tmp_path / "davis", 3, progress=stop)
    assert list(tmp_path.iterdir()) == []


def test_an_empty_folder_is_filled_and_a_full_one_is_left_alone(tmp_path):
    target = tmp_path / "voc"
    target.mkdir()
    write_voc(Scenes("train", hw=(64, 64)), target, 1)
    before = sorted(target.rglob("*"))
    with pytest.raises(InputError, match="must not exist yet, or be empty"):
        write_voc(Scenes("val", hw=(64, 64)), target, 1)
    assert sorted(target.rglob("*")) == before
    assert [path.name for path in tmp_path.iterdir()] == ["voc"]


def test_a_file_in_the_way_is_refused(tmp_path):
    (tmp_path / "file").write_text("mine")
    clips = Clips(hw=(64, 64), frames=2)
    with pytest.raises(InputError, match="must not exist yet, or be empty"):
        write_davis(clips, tmp_path / "file", 1)
    with pytest.raises(InputError, match="the folder above the output must be writable"):
        write_davis(clips, tmp_path / "file" / "davis", 1)
    assert (tmp_path / "file").read_text() == "mine"


def test_zero_items_are_refused(tmp_path):
    with pytest.raises(InputError, match="at least one of the scenes"):
        write_voc(Scenes(hw=(64, 64)), tmp_path / "voc", 0)
    with pytest.raises(InputError, match="at least one of the clips"):
        write_davis(Clips(hw=(64, 64)), tmp_path / "davis", 0)


def test_streams_of_one_split_twice_are_refused(tmp_path):
    pair = [Scenes("train", 0, (64, 64)), Scenes("train", 1, (64, 64))]
    with pytest.raises(InputError, match="one or more streams of different splits"):
        write_voc(pair, tmp_path / "voc", 1)
    with pytest.raises(InputError, match="one or more streams of different splits"):
        write_voc([], tmp_path / "voc", 1)
