"""DinoSeg on tiny random vision transformers: the record, the method, what is refused."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import diffuseg as ds
from diffuseg.attention import AttentionRecord
from diffuseg.backbones import load_vit
from diffuseg.errors import InputError
from diffuseg.image import read_image, to_tensor
from diffuseg.methods import DiffSeg, DinoSeg, Needs, backbone_of, find_method, method_name
from diffuseg.methods.merging import merge
from support.folders import write_mini
from support.vits import KINDS, write_vit

FINE = DinoSeg(tau=1e-9, rounds=1, anchors=2)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("vits")
    for kind in KINDS:
        write_vit(root / kind, kind)
    write_mini(root / "unet")
    return root


@pytest.fixture(scope="module")
def vit(folders):
    return load_vit(folders / "vit", device="cpu")


@pytest.fixture(scope="module")
def diffusion(folders):
    return ds.load(folders / "unet", device="cpu")


def picture(seed=0, hw=(40, 48)):
    return np.random.default_rng(seed).integers(0, 256, (*hw, 3), dtype=np.uint8)


# ---- the record


@pytest.mark.parametrize("kind", KINDS)
def test_the_record_is_the_mean_among_patches(folders, kind):
    vit = load_vit(folders / kind, device="cpu")
    record = ds.capture(picture(), vit, DinoSeg().needs(vit))
    pixels = to_tensor(read_image(picture()), record.header.input_hw)
    (height, width), n = record.grids("self")[0], record.self_attention().shape[1]
    assert (height * 8, width * 8) == record.header.input_hw
    assert n == height * width
    maps = torch.stack(list(vit.attentions(pixels)))  # [layers, 1, heads, n, n]
    torch.testing.assert_close(record.self_attention(), maps.mean((0, 2)))
    whole = torch.stack(list(vit.attentions(pixels, specials=True)))
    torch.testing.assert_close(maps, whole[..., -n:, -n:])
    assert (record.self_attention().sum(-1) < 1).all()
    assert record.header.image_hw == (40, 48)
    assert [one.heads for one in record.layers] == [2, 2]


def test_the_method_is_diffsegs_merging_of_rows_that_sum_to_one(vit):
    record = ds.capture(picture(), vit, DinoSeg().needs(vit))
    height, width = record.grids("self")[0]
    fused = record.self_attention()
    fused = fused / fused.sum(-1, keepdim=True)
    apart = DinoSeg(anchors=3, tau=0.01)(record, scores=True)
    rows, columns = (
        [round((i + 0.5) * side / 3 - 0.5) for i in range(3)] for side in (height, width)
    )
    anchors = torch.tensor([row * width + column for row in rows for column in columns])
    [found] = merge(fused, anchors, [0.01] * 3)
    assert len(found.maps) == len(apart.names)
    up = torch.nn.functional.interpolate(
        found.maps.view(1, -1, height, width), size=(40, 48), mode="bilinear"
    )[0]
    np.testing.assert_allclose(apart.scores, up.numpy(), atol=1e-6)


def test_a_saved_record_gives_the_same(vit, tmp_path):
    segmenter = ds.build_segmenter(vit, FINE)
    kept = segmenter.capture(picture(), everything=True)
    kept.save(tmp_path / "a.safetensors")
    again = FINE(AttentionRecord.load(tmp_path / "a.safetensors"))
    assert np.array_equal(again.labels, segmenter(picture()).labels)
    assert repr(kept).startswith("AttentionRecord(vit (")


def test_attention_that_is_not_finite(vit):
    record = ds.capture(picture(), vit, DinoSeg().needs(vit))
    record.reduced[0].values[0, 3, 3] = float("nan")
    with pytest.raises(InputError, match="attention must be finite"):
        DinoSeg()(record)


def test_the_record_of_a_unet_is_refused(diffusion):
    record = ds.capture(picture(), diffusion, DiffSeg().needs(diffusion))
    with pytest.raises(InputError, match="dinoseg works on the record of a vision transformer"):
        DinoSeg()(record)


# ---- the method


def test_found_by_name():
    assert find_method("dinoseg") == DinoSeg()
    assert method_name(DinoSeg()) == "dinoseg"
    assert (backbone_of(DinoSeg()), backbone_of(DiffSeg())) == ("vit", "diffusion")
    assert isinstance(DinoSeg().needs(None), Needs)


def test_defaults_and_presets(vit):
    used = ds.segment(picture(), model=vit, method="dinoseg").provenance
    assert used.method == "dinoseg"
    assert used.seed is None
    assert {name: used.parameters[name] for name in ("anchors", "grid", "rounds", "tau")} == {
        "anchors": 14,
        "grid": "even",
        "rounds": 3,
        "tau": 1.0,
    }
    assert "timestep" not in used.parameters
    other = replace(vit, preset={"dinoseg": {"tau": 0.25, "anchors": 3}})
    used = ds.segment(picture(), model=other, method=DinoSeg(anchors=5)).provenance.parameters
    assert (used["tau"], used["anchors"]) == (0.25, 5)


def test_many_images_give_what_each_gives_alone(vit):
    find = ds.build_segmenter(vit, FINE, keep_scores=True)
    images = [picture(0), picture(1, (120, 60)), picture(2), picture(3, (60, 120))]
    for image, seg in zip(images, find.many(images), strict=True):
        alone = find(image)
        assert seg.hw == image.shape[:2]
        np.testing.assert_allclose(seg.scores, alone.scores, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    "image",
    [
        np.full((64, 64, 3), 127, dtype=np.uint8),
        np.full((64, 64, 3), (255, 0, 0), dtype=np.uint8),
        np.zeros((16, 300, 3), dtype=np.uint8),
        np.random.default_rng(0).integers(0, 256, (1200, 1600, 3), dtype=np.uint8),
    ],
    ids=["grey", "red", "narrow", "large"],
)
def test_odd_images(vit, image):
    for method in (FINE, DinoSeg(), DinoSeg(tau="auto")):
        seg = ds.segment(image, model=vit, method=method)
        assert seg.hw == image.shape[:2]
        assert (seg.labels != seg.ignore).all()


def test_working_sizes(vit):
    assert ds.segment(picture(hw=(60, 120)), model=vit, method=FINE).provenance.working_hw == (
        24,
        48,
    )
    square = ds.segment(picture(hw=(60, 120)), model=vit, method=FINE, fit="square", size=64)
    assert square.provenance.working_hw == (64, 64)


# ---- which model


def test_loaded_by_name_once(folders):
    from diffuseg.models import find_model, loaded

    loaded.clear()
    name = str(folders / "dinov2")
    seg = ds.segment(picture(), model=name, method="dinoseg")
    assert seg.provenance.model == f"dinov2 ({name})"
    assert find_model(name, backbone="vit") is find_model(name, backbone="vit")
    ds.segment(picture(), model=folders / "unet", method="diffseg")
    assert len(loaded) == 2  # one of each kind
    loaded.clear()


def test_the_variable_names_diffusion_models_only(folders, monkeypatch):
    from diffuseg.models import find_model

    monkeypatch.setenv("DIFFUSEG_MODEL", "sd1.5")
    assert find_model(backbone="vit").name == "mini"


def test_each_kind_of_method_refuses_the_other_kind_of_model(folders, vit, diffusion):
    for model in (vit, folders / "vit", str(folders / "registers")):
        with pytest.raises(InputError, match="the method runs on a diffusion model") as caught:
            ds.segment(picture(), model=model, method="diffseg")
        assert "dinoseg" in caught.value.remedy
    for model in (diffusion, folders / "unet", "sd1.5"):
        with pytest.raises(InputError, match="the method runs on a vision transformer") as caught:
            ds.segment(picture(), model=model, method="dinoseg")
        assert "diffseg" in caught.value.remedy


@pytest.mark.parametrize(
    "settings",
    [{"timestep": 300}, {"weighting": "equal"}, {"weights": (1.0,)}, {"normalise": True}],
)
def test_settings_a_vit_has_no_use_for(settings):
    with pytest.raises(InputError, match="neither noise levels nor several resolutions"):
        DinoSeg(**settings)
    with pytest.raises(InputError, match="tau must be positive"):
        DinoSeg(tau=-1.0)


@pytest.mark.parametrize("words", [{"classes": "cat"}, {"caption": "a cat"}])
def test_words_are_refused(vit, words):
    with pytest.raises(InputError, match="for dinoseg, which finds segments without names"):
        ds.segment(picture(), model=vit, method="dinoseg", **words)


def test_a_vit_reads_no_prompt(vit):
    needs = Needs(timesteps=(), kinds=("self",), prompt="joint")
    with pytest.raises(InputError, match="need a model that reads text"):
        ds.capture(picture(), vit, needs, "cat")
