"""SUN RGB-D from its folders by sensor, with the labels of the toolbox or of every scene."""

import importlib.util
import re

import numpy as np
import pytest

from diffuseg.errors import InputError, MissingExtra
from diffuseg.eval.dataset_inspection import inspect_folder
from diffuseg.eval.datasets import open_dataset
from diffuseg.eval.image_checks import check_dataset
from diffuseg.eval.label_sets import read_labels
from support.image_folders import HW, SUN_SCENES, as_cells, write_sun, write_sun_release

METADATA = "SUNRGBDtoolbox/Metadata"
SPLITS = "SUNRGBDtoolbox/traintestSUNRGBD/allsplit.mat"
CLASSES = read_labels("sunrgbd37").classes


def test_labels_of_the_toolbox(tmp_path):
    pytest.importorskip("h5py")
    write_sun_release(tmp_path)
    data = open_dataset("sun-rgbd", root=tmp_path)
    # In the order of the toolbox, not of the list of the split.
    assert [one.id for one in data.files] == list(SUN_SCENES[:2])
    for i, sample in enumerate(data[k] for k in range(2)):
        assert sample.truth.shape == sample.image.hw == HW
        assert sample.truth.ravel()[:4].tolist() == [255, 0, 36, i]
        assert (sample.truth[1:] == i).all()
    assert "SUNRGBD2Dseg.mat" in data.label_source
    train = open_dataset("sunrgbd37", root=tmp_path / "SUNRGBD", split="train")
    assert (len(train), train[0].truth[-1, -1]) == (1, 2)
    counts = dict(zip(data.classes, check_dataset(data).images, strict=True))
    assert (counts["wall"], counts["floor"], counts["bag"]) == (2, 1, 2)
    [missing] = inspect_folder("sunrgbd37", tmp_path).missing
    assert missing.startswith("5048 of the 5050 images")


def test_labels_of_the_scenes(tmp_path):
    write_sun_release(tmp_path, toolbox=False)
    data = open_dataset("sunrgbd37", root=tmp_path)
    assert [one.id for one in data.files] == [SUN_SCENES[1], SUN_SCENES[0]]  # as the list has them
    wall, mat, cabinet = (CLASSES.index(one) for one in ("wall", "floor mat", "cabinet"))
    assert data[0].truth.ravel()[:5].tolist() == [255, mat, cabinet, wall, wall]
    # A plant is none of the classes.
    assert data[1].truth.ravel()[:5].tolist() == [255, mat, 255, wall, wall]
    assert "not SUNRGBD2Dseg.mat" in data.label_source


def test_the_flat_export_comes_where_there_are_no_sensors(tmp_path):
    write_sun(tmp_path)
    data = open_dataset("sunrgbd37", root=tmp_path)
    assert (data.label_source, data[0].truth.ravel()[:3].tolist()) == (
        "label37, the flat export",
        [255, 0, 36],
    )


def test_without_h5py_the_toolbox_is_not_read_another_way(tmp_path, monkeypatch):
    write_sun_release(tmp_path, toolbox=False)
    (tmp_path / METADATA).mkdir()
    (tmp_path / METADATA / "SUNRGBD2Dseg.mat").write_bytes(b"MATLAB 7.3 MAT-file")
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "h5py" else find(name, *a)
    )
    with pytest.raises(MissingExtra, match=r"needs the package 'h5py'[\s\S]*diffuseg\[sunrgbd\]"):
        open_dataset("sunrgbd37", root=tmp_path)


@pytest.mark.parametrize(
    ("gone", "why"),
    [
        ("SUNRGBDtoolbox", "no folder .*SUNRGBDtoolbox"),
        (SPLITS, "no file .*allsplit.mat"),
        (f"{METADATA}/SUNRGBDMeta.mat", "no file .*SUNRGBDMeta.mat"),
        (f"SUNRGBD/{SUN_SCENES[1]}/image", "1 of 2 pictures missing, the first .*NYU0001/image/"),
        ("SUNRGBD", "no folder .*image/test, nor .*SUNRGBD with kv1"),
    ],
)
def test_what_is_missing_is_said(tmp_path, gone, why):
    pytest.importorskip("h5py")
    write_sun_release(tmp_path)
    (tmp_path / gone).rename(tmp_path / "elsewhere")
    with pytest.raises(InputError, match=why):
        open_dataset("sunrgbd37", root=tmp_path)
    [missing] = inspect_folder("sunrgbd37", tmp_path).missing
    assert re.search(why, missing)


@pytest.mark.parametrize(
    ("gone", "why"),
    [
        ("image", "1 of 2 pictures missing, the first .*NYU0001/image/"),
        ("seg.mat", "1 of 2 masks missing, the first .*NYU0001/seg.mat"),
    ],
)
def test_what_scenes_lack_is_said(tmp_path, gone, why):
    write_sun_release(tmp_path, toolbox=False)
    (tmp_path / f"SUNRGBD/{SUN_SCENES[1]}/{gone}").rename(tmp_path / "elsewhere")
    with pytest.raises(InputError, match=why):
        open_dataset("sunrgbd37", root=tmp_path)


def test_files_that_are_damaged_or_of_another_release(tmp_path):
    pytest.importorskip("h5py")
    from scipy.io import savemat

    write_sun_release(tmp_path)
    with pytest.raises(InputError, match="train and test"):
        open_dataset("sunrgbd37", root=tmp_path, split="val")
    labels = tmp_path / METADATA / "SUNRGBD2Dseg.mat"
    labels.write_bytes(b"MATLAB 7.3 MAT-file")
    with pytest.raises(InputError, match=r"SUNRGBD2Dseg.mat, kv2.*OSError"):
        open_dataset("sunrgbd37", root=tmp_path)[0]
    other = "/n/fs/sun3d/data/SUNRGBD/kv1/NYUdata/NYU0002"
    savemat(tmp_path / SPLITS, {"alltest": as_cells([other])})
    with pytest.raises(InputError, match=r"SUNRGBDMeta.mat without 1 of 1, .*NYU0002"):
        open_dataset("sunrgbd37", root=tmp_path)
    with pytest.raises(InputError, match=r"with alltrain[\s\S]*KeyError"):
        open_dataset("sunrgbd37", root=tmp_path, split="train")
    labels.unlink()
    savemat(tmp_path / SPLITS, {"alltest": as_cells([f"/n/SUNRGBD/{SUN_SCENES[1]}/"])})
    held = {"seglabel": np.full(HW, 4), "names": as_cells(["wall", "floor"])}
    savemat(tmp_path / f"SUNRGBD/{SUN_SCENES[1]}/seg.mat", held)
    with pytest.raises(InputError, match=r"1 of 1 are not right: .*NYU0001/seg.mat.*IndexError"):
        check_dataset(open_dataset("sunrgbd37", root=tmp_path))
