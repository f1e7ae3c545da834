"""Extractors on tiny networks of the real classes: layers, sizes, and no neighbour that matters."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import ViTImageProcessorPil, ViTMAEConfig, ViTMAEForPreTraining

from diffuseg.attention import layers_of
from diffuseg.attention.layers import select_layers
from diffuseg.backbones import load, load_vit
from diffuseg.backbones.clip import Clip
from diffuseg.errors import InputError
from diffuseg.methods.ovdiff import OVDiff
from diffuseg.methods.ovdiff.settings import SD_LAYERS
from diffuseg.ovdiff.extractors import (
    ClipFeatures,
    Extractor,
    VitKeys,
    find_extractors,
    find_proposer,
)
from diffuseg.train.clip import build_clip, image_processor
from diffuseg.train.recipe import ClipRecipe
from diffuseg.world.captions import VOCABULARY
from diffuseg.world.tokenizer import build_tokenizer
from support.folders import write_sd15
from support.images import noise
from support.models import sd15
from support.vits import write_vit

SMALL = ClipRecipe(
    size=32, width=16, layers=3, heads=2, text_width=16, text_layers=1, text_heads=2, projection=8
)
PICTURES = [noise((48, 48), seed=number) for number in range(3)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory):
    return load(write_sd15(tmp_path_factory.mktemp("sd15")), device="cpu")


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vit")
    write_vit(folder, "vit")
    return folder


@pytest.fixture(scope="module")
def clip() -> Clip:
    tokenizer = build_tokenizer(VOCABULARY)
    torch.manual_seed(0)
    built = build_clip(SMALL, tokenizer).eval().requires_grad_(False)
    processor = image_processor(SMALL.size)
    return Clip(name="t", source="t", model=built, tokenizer=tokenizer, processor=processor)


def ready(**settings: object) -> OVDiff:
    return OVDiff(**settings).ready()  # type: ignore[arg-type]


def assert_alone_as_together(extract: Extractor) -> None:
    for support in (False, True):
        together = extract(PICTURES, support=support)
        alone = torch.cat([extract([one], support=support) for one in PICTURES])
        assert together.dtype == torch.float32
        torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)
        assert not torch.equal(together[0], together[1])


def test_nine_layers_of_stable_diffusion_are_features():
    cross = [layer for layer in layers_of(sd15()) if layer.kind == "cross"]
    chosen = select_layers(cross, names=SD_LAYERS, kinds="cross")
    assert len(cross) == 16
    assert [cross.index(layer) for layer in chosen] == [0, *range(6, 13), 15]


def test_queries_lie_side_by_side_on_the_finest_grid(model):
    settings = ready(extractors=("sd",), layers=("*",), size=64)
    extract = find_extractors(model, settings)["sd"]
    chosen = [layer for layer in layers_of(model) if layer.kind == "cross"]
    width = sum(layer.heads * layer.width for layer in chosen)
    side = 64 // model.scale // min(layer.factor for layer in chosen)
    assert extract(PICTURES[:1]).shape == (1, side, side, width)
    assert extract.identity["layers"] == [layer.name for layer in chosen]
    assert_alone_as_together(extract)
    assert torch.equal(extract(PICTURES[:1]), extract(PICTURES[:1]))  # the same noise again


def test_more_noise_is_something_else(model):
    found = [
        find_extractors(model, ready(extractors=("sd",), layers=("*",), size=64, timestep=step))
        for step in (0, 500)
    ]
    assert not torch.allclose(*(one["sd"](PICTURES[:1]) for one in found))
    with pytest.raises(InputError, match="timestep must be one of"):
        find_extractors(model, ready(extractors=("sd",), layers=("*",), timestep=5000))


def test_windows_keep_their_scale_and_pictures_of_a_bank_are_larger(vit):
    extract = VitKeys(name="dino", vit=load_vit(vit, device="cpu"), layer=-1, side=64)
    # Positions were learned at 32 pixels of patches of 8: sides of 64 and of 512 / 224 * 32.
    assert extract([noise((64, 96))]).shape == (1, 8, 12, 16)
    assert extract([noise((48, 48))]).shape == (1, 6, 6, 16)
    assert extract([noise((64, 400))]).shape[2] <= 64 * 800 / 448 / 8
    assert extract(PICTURES, support=True).shape == (3, 9, 9, 16)
    assert_alone_as_together(extract)
    with pytest.raises(InputError, match="of one size"):
        extract([noise((48, 48)), noise((48, 64))])
    with pytest.raises(InputError, match="of one size"):
        extract([])


def test_the_encoder_of_mae_sees_the_whole_picture(tmp_path):
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    decoder = {"decoder_hidden_size": 16, "decoder_num_hidden_layers": 1}
    config = ViTMAEConfig(
        **shape, **decoder, decoder_num_attention_heads=2, decoder_intermediate_size=32,
        intermediate_size=32, image_size=32, patch_size=8, mask_ratio=0.0,
    )  # fmt: skip
    torch.manual_seed(0)
    original = ViTMAEForPreTraining(config).eval()
    original.save_pretrained(tmp_path, safe_serialization=True)
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    loaded = load_vit(tmp_path, device="cpu")
    images = torch.rand(2, 3, 32, 32)
    order = torch.arange(16.0).expand(2, -1)
    with torch.no_grad():
        tokens = original.vit((images - 0.5) / 0.5, noise=order).last_hidden_state[:, 1:]
    found = loaded.features(images, "tokens").flatten(1, 2)
    torch.testing.assert_close(found, tokens, atol=1e-5, rtol=1e-5)
    assert_alone_as_together(VitKeys(name="mae", vit=loaded, layer=-1, side=None))


def test_clip_s_keys_are_the_projection_of_its_patches(clip):
    extract = ClipFeatures(name="clip", clip=clip, what="keys", layer=-2)
    assert_alone_as_together(extract)
    tower = clip.model.vision_model
    images = torch.rand(1, 3, 32, 32)
    mean, std = (torch.tensor(one)[:, None, None] for one in clip.statistics)
    with torch.no_grad():
        states = tower((images - mean) / std, output_hidden_states=True).hidden_states
        block = tower.encoder.layers[-2]
        keys = block.self_attn.k_proj(block.layer_norm1(states[-3]))[:, 1:]
    torch.testing.assert_close(clip.features(images).flatten(1, 2), keys)
    torch.testing.assert_close(clip.features(images, "tokens").flatten(1, 2), states[-2][:, 1:])


@pytest.mark.parametrize(("side", "layer"), [(30, -2), (32, 7), (32, -4)])
def test_clip_says_what_it_does_not_have(clip, side, layer):
    with pytest.raises(InputError):
        clip.features(torch.zeros(1, 3, side, side), layer=layer)


def test_pixels_have_imagenet_s_statistics_where_openai_s_were_taught(clip):
    extract = ClipFeatures(name="clip", clip=clip, what="keys", layer=-2)
    assert extract.identity["statistics"] == [list(one) for one in clip.statistics]
    held = clip.processor.image_mean, clip.processor.image_std
    clip.processor.image_mean = [0.48145466, 0.4578275, 0.40821073]
    clip.processor.image_std = [0.26862954, 0.26130258, 0.27577711]
    try:
        assert extract.identity["statistics"][0] == [0.485, 0.456, 0.406]
    finally:
        clip.processor.image_mean, clip.processor.image_std = held


def test_proposals_are_masks_of_the_picture_s_size(model, vit):
    two = np.zeros((48, 48, 3), np.uint8)
    two[8:32, 8:32] = 255
    cut = find_proposer(model, ready(dino=str(vit), cut_size=64))
    [found, other] = cut([two, PICTURES[0]])
    assert found.dtype == torch.bool
    assert found.shape[1:] == other.shape[1:] == (48, 48)
    [none] = find_proposer(model, ready(proposals="none"))([two])
    assert none.shape == (0, 48, 48)
