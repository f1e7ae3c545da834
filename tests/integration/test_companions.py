"""The CLIP pair and the captioner: loading, what they refuse, and what the shipped weights know."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import constants

from diffuseg.backbones.captioner import load_captioner
from diffuseg.backbones.clip import Clip, load_clip
from diffuseg.backbones.companions import read_images
from diffuseg.errors import InputError, WeightsError
from diffuseg.eval.mini_language import (
    caption_accuracy,
    distinct_scenes,
    noun_accuracy,
    retrieval_recall,
    single_scenes,
    zero_shot_accuracy,
)
from diffuseg.train.captioner import build_captioner
from diffuseg.train.clip import build_clip, image_processor
from diffuseg.train.folder import write_checksums
from diffuseg.train.recipe import CaptionerRecipe, ClipRecipe
from diffuseg.world.captions import VOCABULARY
from diffuseg.world.scenes import Scenes
from diffuseg.world.tokenizer import build_tokenizer
from support.refusal import refused

SMALL = ClipRecipe(
    size=32, width=16, layers=1, heads=2, text_width=16, text_layers=1, text_heads=2, projection=8
)


@pytest.fixture(scope="module")
def originals(tmp_path_factory) -> Path:
    """A folder with clip/ and captioner/, random weights."""
    root = tmp_path_factory.mktemp("companions")
    tokenizer = build_tokenizer(VOCABULARY)
    torch.manual_seed(0)
    build_clip(SMALL, tokenizer).save_pretrained(root / "clip")
    decoder = CaptionerRecipe(width=16, layers=1, heads=2)
    build_captioner(decoder, SMALL, tokenizer).save_pretrained(root / "captioner")
    for part in ("clip", "captioner"):
        tokenizer.save_pretrained(root / part)
        image_processor(SMALL.size).save_pretrained(root / part)
    facts = {"vocabulary": sorted(VOCABULARY)}
    (root / "clip" / "diffuseg.json").write_text(json.dumps(facts))
    return root


@pytest.fixture
def copy(originals, tmp_path) -> Path:
    return Path(shutil.copytree(originals, tmp_path / "copy"))


@pytest.fixture(scope="module")
def clip(originals) -> Clip:
    return load_clip(originals / "clip", device="cpu")


@pytest.fixture(scope="module")
def scene() -> np.ndarray:
    return Scenes("val", hw=(64, 96))[0].image


def test_embeddings_are_unit_vectors_whatever_the_pictures_come_as(clip, scene):
    tensor = torch.from_numpy(scene).permute(2, 0, 1)
    together = clip.embed_images([scene, tensor, scene[:40]])
    assert together.shape == (3, 8)
    assert together.dtype == torch.float32
    assert torch.allclose(together.norm(dim=1), torch.ones(3), atol=1e-5)
    assert torch.equal(together[0], together[1])
    assert torch.equal(clip.embed_images(np.stack([scene, scene]))[1], together[0])
    assert not together.requires_grad


def test_batches_change_nothing(clip, scene):
    many = clip.embed_images([scene] * 35)
    assert torch.allclose(many, many[:1].expand(35, -1), atol=1e-6)


def test_zero_shot_is_a_softmax_over_averaged_prompts(clip, scene):
    names = ["car", ("tree", "flower")]
    told = clip.embed_names(names, templates=["a {}", "there is a {}"])
    by_hand = [clip.embed_texts(["a car", "there is a car"]).mean(0)]
    by_hand.append(
        clip.embed_texts(["a tree", "there is a tree", "a flower", "there is a flower"]).mean(0)
    )
    assert torch.allclose(told, torch.nn.functional.normalize(torch.stack(by_hand)), atol=1e-6)
    shares = clip.zero_shot([scene, scene], names)
    assert shares.shape == (2, 2)
    assert torch.allclose(shares.sum(1), torch.ones(2))
    score = clip.score(scene, names)
    assert list(score) == ["car", "tree"]
    assert list(score.values()) == pytest.approx(shares[0].tolist(), abs=1e-6)


def test_the_article_follows_the_name(clip):
    ours = clip.embed_names(["orange"], templates=["a photo of a {}"])
    assert torch.allclose(ours, clip.embed_texts("a photo of an orange"), atol=1e-6)


def test_what_clip_refuses(clip, scene):
    with refused("one or more strings"):
        clip.embed_texts([])
    with refused("one or more strings"):
        clip.embed_texts(["car", " "])
    with pytest.raises(InputError, match=r"knows only these words(.|\n)*got: zebra"):
        clip.embed_texts("a red zebra")
    with pytest.raises(InputError, match=r"at most 77 tokens(.|\n)*82 tokens"):
        clip.embed_texts("car " * 80)
    with pytest.raises(InputError, match="at least one image"):
        clip.embed_images([])
    with pytest.raises(InputError, match="every template must be text"):
        clip.zero_shot(scene, "car", templates=["a photo"])
    with pytest.raises(InputError, match="score takes one image"):
        clip.score([scene, scene], "car")
    with pytest.raises(InputError, match="at least one class"):
        clip.zero_shot(scene, "")


def test_captions(originals, scene):
    captioner = load_captioner(originals / "captioner", device="cpu")
    captions = captioner.caption([scene] * 17, max_tokens=4)
    assert len(captions) == 17
    assert len(set(captions)) == 1
    with refused("max_tokens must be a positive integer"):
        captioner.caption(scene, max_tokens=0)
    assert "captioner" in repr(captioner)


def test_a_whole_miniature_holds_its_companions(copy, monkeypatch):
    assert load_clip(copy, device="cpu").source == str(copy)
    assert load_captioner(str(copy), device="cpu").dtype == torch.float32
    write_checksums(copy)
    load_clip(copy, device="cpu")
    (copy / "captioner" / "config.json").write_text("{}")
    with pytest.raises(WeightsError, match="was changed"):
        load_clip(copy, device="cpu")


def test_precision(originals):
    half = load_clip(originals, device="cpu", dtype="bf16")
    assert half.dtype == torch.bfloat16
    assert half.embed_texts("a car").dtype == torch.float32


def test_a_blip_is_a_captioner(tmp_path, scene):
    from transformers import (
        BlipConfig,
        BlipForConditionalGeneration,
        BlipImageProcessorPil,
        BlipTextConfig,
        BlipVisionConfig,
    )

    tokenizer = build_tokenizer(VOCABULARY)
    start, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
    vision = BlipVisionConfig(**sizes, num_hidden_layers=1, image_size=32, patch_size=16)
    text = BlipTextConfig(
        **sizes,
        vocab_size=len(tokenizer),
        num_hidden_layers=1,
        encoder_hidden_size=16,
        bos_token_id=start,
        sep_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
    )
    config = BlipConfig(vision_config=vision.to_dict(), text_config=text.to_dict())
    BlipForConditionalGeneration(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    size = {"height": 32, "width": 32}
    BlipImageProcessorPil(size=size).save_pretrained(tmp_path)
    captioner = load_captioner(tmp_path, device="cpu")
    assert len(captioner.caption(scene, max_tokens=3)) == 1
    [alone] = captioner.caption(scene, max_tokens=3)
    begun = captioner.caption([scene] * 3, ["a Photo of car", "", "a red"], max_tokens=3)
    assert begun[0].startswith("a Photo of car")
    assert begun[1:] == [alone, *captioner.caption(scene, ["a red"], max_tokens=3)]


def test_names_that_cannot_be(tmp_path):
    with pytest.raises(InputError, match=r'must be "mini", a hub id(.|\n)*got: dall-e'):
        load_clip("dall-e")
    with refused(r"got: 3 \(int\)"):
        load_clip(3)
    with pytest.raises(WeightsError, match="does not exist"):
        load_clip(tmp_path / "none")
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(WeightsError, match="is a file"):
        load_clip(str(file))
    with pytest.raises(InputError, match="dtype"):
        load_clip("mini", dtype="int8")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda d: (d / "config.json").unlink(), r"config\.json is missing"),
        (lambda d: (d / "config.json").write_text("{"), "cannot be read as JSON"),
        (lambda d: (d / "config.json").write_text("[]"), "must hold a JSON object"),
        (lambda d: (d / "model.safetensors").unlink(), r"model\.safetensors is missing"),
        (lambda d: (d / "model.safetensors").write_bytes(b"x" * 99), "cannot be loaded"),
        (
            lambda d: (d / "model.safetensors").rename(d / "pytorch_model.bin"),
            "never opened(.|\n)*only pytorch_model.bin(.|\n)*CLIPModel as M",
        ),
        (lambda d: (d / "preprocessor_config.json").unlink(), "preprocessor_config.json is miss"),
        (
            lambda d: (d / "preprocessor_config.json").write_text(
                '{"image_processor_type": "CLIPImageProcessor", "size": "big"}'
            ),
            "image processor cannot be loaded",
        ),
        (lambda d: (d / "tokenizer_config.json").unlink(), r"tokenizer_config\.json is missing"),
        (lambda d: (d / "tokenizer.json").write_text("{"), "tokenizer cannot be loaded"),
    ],
)
def test_folders_that_are_not_whole(copy, spoil, message):
    spoil(copy / "clip")
    with pytest.raises(WeightsError, match=message):
        load_clip(copy, device="cpu")


def test_another_kind_of_model(copy):
    with pytest.raises(WeightsError, match="is the configuration of CLIPModel, not of Blip"):
        load_captioner(copy / "clip")


def test_what_is_on_no_hub(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(WeightsError, match=r"not asked \(offline\)(.|\n)*--local-dir"):
        load_clip("someone/clip", offline=True)


def test_a_picture_is_one_picture():
    assert [image.hw for image in read_images(np.zeros((32, 48), np.uint8))] == [(32, 48)]


def test_nouns_are_counted():
    scenes = distinct_scenes(6, split="val", hw=(64, 64))
    captions = [scene.caption for scene in scenes]
    right = noun_accuracy(captions, scenes)
    assert right == dict.fromkeys(("precision", "recall", "f1", "colors", "whole"), 1.0) | {
        "scenes": 6.0
    }
    assert noun_accuracy(captions[1:] + captions[:1], scenes)["f1"] < 0.8
    kinds = [" ".join(thing.kind for thing in scene.things) for scene in scenes]
    things = noun_accuracy(kinds, scenes)
    assert things["precision"] == 1
    assert things["recall"] < 0.8
    assert things["colors"] == things["whole"] == 0
    with pytest.raises(InputError, match="one caption for each"):
        noun_accuracy([], scenes)


def test_figures_need_the_right_scenes(clip):
    scenes = [Scenes("val", hw=(64, 64))[i] for i in range(9)]
    with pytest.raises(InputError, match="single thing are wanted"):
        zero_shot_accuracy(clip, scenes)
    with pytest.raises(InputError, match="at least as many scenes as candidates"):
        retrieval_recall(clip, scenes)


def test_random_towers_know_nothing(clip):
    scenes = single_scenes(8, split="val", hw=(64, 64))
    figures = zero_shot_accuracy(clip, scenes)
    assert figures["scenes"] == 8
    assert figures["things"] < 0.7
    assert figures["unseen"] == sum(scene.things[0].held_out for scene in scenes)
    recall = retrieval_recall(clip, distinct_scenes(9, split="val", hw=(64, 64)), candidates=4)
    assert recall["scenes"] == 8
    assert recall["image_to_text"] < 0.9


@pytest.fixture(scope="module")
def singles():
    return single_scenes(24, split="val", hw=(128, 128))


def test_the_shipped_pair_knows_the_world(singles):
    pair = load_clip("mini", device="cpu")
    figures = zero_shot_accuracy(pair, singles)
    assert figures["things"] >= 0.85
    assert figures["stuff"] >= 0.95
    assert figures["colors"] >= 0.95
    several = distinct_scenes(32, split="val", hw=(128, 128))
    recall = retrieval_recall(pair, several, candidates=32)
    assert recall["image_to_text"] >= 0.9
    assert recall["text_to_image"] >= 0.9


def test_the_shipped_captioner_speaks_of_the_world():
    scenes = distinct_scenes(24, split="val", hw=(128, 128))
    figures = caption_accuracy(load_captioner("mini", device="cpu"), scenes)
    assert figures["f1"] >= 0.83
    assert figures["colors"] >= 0.9
