"""Stable Video Diffusion on tiny random weights: the same as diffusers' own pipeline, and what
cannot be."""

import json
import shutil
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from diffusers.models.unets.unet_spatio_temporal_condition import UNetSpatioTemporalConditionModel
from diffusers.pipelines.stable_video_diffusion.pipeline_stable_video_diffusion import (
    StableVideoDiffusionPipeline,
)
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler

from diffuseg.api import build_segmenter
from diffuseg.attention.layers import layers_of
from diffuseg.backbones import StableVideoDiffusion, VideoDiffusion, catalog, load, weights
from diffuseg.backbones.folder import sees_frames, wanted_files
from diffuseg.backbones.protocols import Diffusion, FrameCondition
from diffuseg.errors import InputError, WeightsError
from diffuseg.methods.vidseg import VidSeg
from diffuseg.methods.vidseg.modulation import attention_of
from diffuseg.methods.vidseg.network import Call
from diffuseg.methods.vidseg.settings import BLOCKS
from diffuseg.models import find_model
from diffuseg.video.seeing import frame_network
from support import folders

HW = (64, 96)
TOLD = {"fps_id": 14, "motion_bucket": 127, "noise_level": 0.02}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return folders.write_svd(tmp_path_factory.mktemp("models") / "svd-tiny")


@pytest.fixture(scope="module")
def model(folder):
    return load(folder, device="cpu")


@pytest.fixture
def copy(folder, tmp_path):
    """A copy, to be spoilt."""
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def picture(seed=0, hw=HW):
    return np.random.default_rng(seed).integers(0, 256, (*hw, 3), dtype=np.uint8)


def pixels(array):
    return torch.tensor(array).permute(2, 0, 1)[None].float() / 255


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# ---- as the pipeline does it


@pytest.fixture(scope="module")
def pipeline(folder, model):
    import transformers

    kind = getattr(transformers, "CLIPImageProcessorPil", transformers.CLIPImageProcessor)
    pipe = StableVideoDiffusionPipeline(
        vae=model.vae,
        image_encoder=model.image_encoder,
        unet=model.unet,
        scheduler=EulerDiscreteScheduler.from_pretrained(folder / "scheduler"),
        feature_extractor=kind.from_pretrained(folder / "feature_extractor"),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def calls_of(unet, work):
    """What a U-Net is called with by some work, and what that returns."""
    seen = []
    hook = unet.register_forward_pre_hook(
        lambda _, given, named: seen.append((given, named)), with_kwargs=True
    )
    try:
        return seen, work()
    finally:
        hook.remove()


@pytest.mark.parametrize("hw", [HW, (32, 288)])
def test_the_network_is_called_as_the_pipeline_calls_it(model, pipeline, hw):
    shown = picture(hw=hw)
    start = draw(1, 3, 4, hw[0] // 4, hw[1] // 4, seed=5)
    outputs = []
    catch = model.unet.register_forward_hook(lambda _m, _i, found: outputs.append(found[0]))
    theirs, _ = calls_of(
        model.unet,
        lambda: pipeline(
            PIL.Image.fromarray(shown), height=hw[0], width=hw[1], num_frames=3, latents=start,
            num_inference_steps=2, fps=15, motion_bucket_id=127, noise_aug_strength=0.02,
            generator=torch.Generator().manual_seed(1), output_type="latent",
        ),
    )  # fmt: skip
    catch.remove()
    # As VidSeg's settings have it: fps_id is what the pipeline makes of its fps.
    network = frame_network(
        model, VidSeg().ready("svd"), pixels(shown), torch.Generator().manual_seed(1)
    )
    for (their_args, their_names), output in zip(theirs, outputs, strict=True):
        sample, time = their_args
        call = Call(index=0, time=float(time), frames=torch.arange(3), clip=3)
        [mine], found = calls_of(model.unet, partial(network, sample[0, :, :4], call))
        assert torch.allclose(mine[0][0], sample, atol=1e-5)
        assert mine[0][1].equal(time)
        assert mine[1]["added_time_ids"].equal(their_names["added_time_ids"])
        vectors = mine[1]["encoder_hidden_states"], their_names["encoder_hidden_states"]
        assert vectors[0].shape == vectors[1].shape == (2, 1, 16)
        assert torch.allclose(*vectors, atol=1e-5)
        assert torch.allclose(found, output.flatten(0, 1), atol=1e-4)
    assert len(theirs) == 2


@pytest.mark.parametrize("chunk", [1, 2])
def test_frames_are_decoded_as_the_pipeline_decodes_them(model, pipeline, chunk):
    latents = draw(3, 4, 8, 8)
    theirs = pipeline.decode_latents(latents[None], 3, chunk)[0].movedim(1, 0)
    mine = model.decode(latents, chunk=chunk)
    assert torch.allclose(mine, (theirs * 0.5 + 0.5).clamp(0, 1), atol=1e-5)
    alone = torch.cat([model.decode(one[None]) for one in latents])
    assert torch.allclose(mine, alone, atol=1e-5) == (chunk == 1)


def test_latents_are_the_scaled_mean_or_a_draw(model):
    images = pixels(picture()).repeat(2, 1, 1, 1)
    posterior = model.vae.encode(images * 2 - 1).latent_dist
    assert torch.allclose(model.encode(images), posterior.mean * 0.18215, atol=1e-6)
    noise = draw(2, 4, 16, 24)
    drawn = model.encode(images, noise=noise, max_batch=1)
    assert torch.allclose(drawn, (posterior.mean + posterior.std * noise) * 0.18215, atol=1e-6)


def test_without_the_frame_both_of_its_embeddings_are_nothing(model):
    found = model.condition(pixels(picture()), **TOLD)
    bare = found.without()
    assert not bare.vectors.any()
    assert not bare.latents.any()
    assert bare.ids.equal(found.ids)
    assert torch.allclose(found.ids, torch.tensor([[14.0, 127.0, 0.02]]))
    noisy = model.condition(pixels(picture()), **TOLD, noise=draw(1, 3, *HW))
    assert noisy.vectors.equal(found.vectors)
    assert not noisy.latents.equal(found.latents)
    assert len(FrameCondition.concat([found, bare, noisy])) == 3


def test_sizes_that_do_not_fit(model):
    with pytest.raises(InputError, match="multiples of 4"):
        model.encode(torch.zeros(1, 3, 63, 64))
    condition = model.condition(torch.zeros(1, 3, 64, 48), **TOLD)
    with pytest.raises(InputError, match="multiples of 32"):
        model.denoise(torch.zeros(1, 2, 4, 16, 12), 0.1, condition)
    with pytest.raises(InputError, match="one condition a clip"):
        model.denoise(torch.zeros(2, 2, 4, 16, 12), 0.1, condition)
    with pytest.raises(InputError, match="chunk must be"):
        model.decode(torch.zeros(1, 4, 8, 8), chunk=0)


def test_the_full_sized_network_has_the_blocks_settings_name():
    # diffusers' defaults are Stable Video Diffusion's own; on "meta" no weights are made.
    with torch.device("meta"):
        unet = UNetSpatioTemporalConditionModel()
    assert round(sum(one.numel() for one in unet.parameters()) / 1e6) == 1525
    layers = layers_of(unet)
    for block in BLOCKS:
        patterns = attention_of([block], ("self", "cross", "temporal"))
        found = [one for one in layers if any(fnmatchcase(one.name, each) for each in patterns)]
        width, factor = {1: (1280, 4), 2: (640, 2), 3: (320, 1)}[block // 3]
        assert [one.kind for one in found] == ["self", "cross", "temporal"]
        assert {(one.heads * one.width, one.factor) for one in found} == {(width, factor)}


# ---- loading


def test_an_ordinary_folder_is_recognised(folder, model):
    assert isinstance(model, StableVideoDiffusion)
    assert isinstance(model, VideoDiffusion)
    assert not isinstance(model, Diffusion)
    assert (model.name, model.source) == ("svd-tiny", str(folder))
    assert (model.scale, model.coarsest, model.size) == (4, 32, 64)
    assert (model.prediction, model.dtype, model.device.type) == (
        "v_prediction",
        torch.float32,
        "cpu",
    )
    assert "svd-tiny from" in repr(model)
    assert not any(one.requires_grad for one in model.unet.parameters())


def test_a_folder_without_an_index_and_with_facts(copy):
    (copy / "model_index.json").unlink()
    (copy / "diffuseg.json").write_text(json.dumps({"size": 32, "preset": {"vidseg": {"jump": 2}}}))
    assert sees_frames(copy)
    found = load(copy, device="cpu", dtype="bf16")
    assert (found.size, found.preset) == (32, {"vidseg": {"jump": 2}})
    assert found.dtype == torch.bfloat16
    frames = torch.rand(2, 3, 32, 32)
    condition = found.condition(frames[:1], **TOLD)
    latents = found.encode(frames)
    assert latents.dtype == torch.bfloat16
    assert found.denoise(latents[None], 0.1, condition).shape == (1, 2, 4, 8, 8)
    assert found.decode(latents).dtype == torch.float32


def test_an_autoencoder_of_images_will_do(copy, tmp_path):
    shutil.rmtree(copy / "vae")
    shutil.copytree(folders.write_sd15(tmp_path / "sd15") / "vae", copy / "vae")
    edit(copy / "model_index.json", vae=["diffusers", "AutoencoderKL"])
    found = load(copy, device="cpu")
    latents = found.encode(torch.rand(3, 3, 64, 64))
    assert (found.scale, found.coarsest, latents.shape) == (8, 64, (3, 4, 8, 8))
    assert torch.allclose(found.decode(latents, chunk=3), found.decode(latents), atol=1e-5)


def test_half_precision_keeps_the_autoencoder_whole(folder):
    found = load(folder, device="cpu", dtype="fp16")
    assert (found.dtype, found.vae.dtype) == (torch.float16, torch.float32)


def test_only_what_is_needed_is_fetched(folder):
    names = [one.relative_to(folder).as_posix() for one in folder.rglob("*") if one.is_file()]
    extra = ["svd.safetensors", "unet/diffusion_pytorch_model.fp16.safetensors"]
    assert set(wanted_files([*names, *extra], None, False)) == set(names)
    text = ["text_encoder/config.json", "text_encoder/model.safetensors"]
    kept = wanted_files([*names, *text], None, False)
    assert not any(one.startswith(("image_encoder", "feature_extractor")) for one in kept)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda one: (one / "feature_extractor/preprocessor_config.json").unlink(), "is missing"),
        (
            lambda one: edit(one / "feature_extractor/preprocessor_config.json", image_std=None),
            "image_std None; it must be three numbers",
        ),
        (lambda one: shutil.rmtree(one / "image_encoder"), "image_encoder/config.json is missing"),
        (
            lambda one: edit(one / "vae/config.json", _class_name="VQModel"),
            "it must be AutoencoderKL or AutoencoderKLTemporalDecoder",
        ),
        (
            lambda one: edit(one / "scheduler/scheduler_config.json", prediction_type="epsilon"),
            "of videos it must be v_prediction",
        ),
        (
            lambda one: edit(one / "image_encoder/config.json", projection_dim=8),
            "cannot be loaded|attends to vectors 16 wide",
        ),
        (lambda one: edit(one / "checksums.json"), "damaged"),
    ],
)
def test_a_spoilt_folder_names_the_file(copy, spoil, message):
    (copy / "checksums.json").write_text(
        "{}" if message != "damaged" else json.dumps({"unet/config.json": "0"})
    )
    spoil(copy)
    with pytest.raises(WeightsError, match=message):
        load(copy, device="cpu")


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        *(("svd", "svd"), ("SVD", "svd"), ("stable-video-diffusion", "svd")),
        *(("stable-video-diffusion-img2vid", "svd"), ("mini-svd", "mini-svd")),
    ],
)
def test_its_names(spelling, name):
    found = catalog.lookup(spelling)
    assert found is not None
    assert (found.name, found.video) == (name, True)


def test_the_embedded_one_is_found_or_said_to_be_missing(copy, tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "embedded_folder", lambda name: tmp_path / name)
    with pytest.raises(WeightsError, match="must be part of the package") as caught:
        load("mini-svd", device="cpu")
    assert "diffuseg train mini-svd" in caught.value.remedy
    rows = {row.model.name: row.here for row in catalog.list_models()}
    assert rows["mini-svd"] == "absent"
    copy.rename(tmp_path / "mini-svd")
    found = load("mini-svd", device="cpu")
    assert (found.name, found.source) == ("mini-svd", "embedded")
    rows = {row.model.name: row.here for row in catalog.list_models()}
    assert rows["mini-svd"] == "embedded"


# ---- the wrong model


@pytest.mark.parametrize("method", ["attend", "diffseg", "iseg"])
def test_methods_of_images_refuse_it(model, folder, method):
    for given in (model, str(folder), "svd", "mini-svd"):
        with pytest.raises(InputError, match="one of images, which reads words"):
            build_segmenter(given, method)


def test_methods_of_vision_transformers_refuse_it(model, folder):
    for given in (model, str(folder), "svd"):
        with pytest.raises(InputError, match="runs on a vision transformer"):
            build_segmenter(given, "dinoseg")


def test_videos_take_both_kinds(model, folder):
    assert find_model(model, backbone="video") is model
    assert find_model(str(folder), backbone="video", device="cpu").name == "svd-tiny"
    assert find_model("mini", backbone="video", device="cpu").name == "mini"
