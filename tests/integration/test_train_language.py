"""The recipes of the CLIP pair and the captioner, end to end at toy size, stopped and resumed."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from diffuseg.backbones.captioner import load_captioner
from diffuseg.backbones.clip import load_clip
from diffuseg.errors import InputError
from diffuseg.train import loop
from diffuseg.train.captioned import (
    PAIRS,
    fullest_nouns,
    jitter,
    load_captioned,
    noun_table,
    read_nouns,
    shrink,
    to_pixels,
)
from diffuseg.train.captioner import (
    build_captioner,
    caption_labels,
    export_captioner,
    plain_caption,
    train_captioner,
)
from diffuseg.train.clip import build_clip, embed_tokens, export_clip, train_clip
from diffuseg.train.data import Pictures, render_shard
from diffuseg.train.log import TrainLog
from diffuseg.train.loop import learning_rate
from diffuseg.train.priming import prime_tower, principal_patches, sine_positions
from diffuseg.train.recipe import CaptionerRecipe, ClipRecipe, MiniRecipe, TeacherRecipe
from diffuseg.train.teacher import Teacher, train_teacher
from diffuseg.train.windows import Framed, cut_windows, load_framed
from diffuseg.world.captions import VOCABULARY
from diffuseg.world.scenes import COLORS, HELD_OUT_PAIRS, THINGS, Scenes
from diffuseg.world.tokenizer import END, START, build_tokenizer

TOY = MiniRecipe(
    size=128,
    scenes=8,
    shard=8,
    crops=1,
    crop_size=64,
    clip=ClipRecipe(
        size=64,
        width=16,
        layers=2,
        heads=2,
        text_width=16,
        text_layers=1,
        text_heads=2,
        projection=8,
        steps=4,
        batch=4,
        warmup=2,
        teacher=TeacherRecipe(channels=(4, 4, 4, 8), window=32, steps=4, batch=4, warmup=1),
    ),
    captioner=CaptionerRecipe(width=16, layers=1, heads=2, steps=4, batch=4, warmup=2),
)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def rendered(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    render_shard(TOY, folder, 0)
    return folder


@pytest.fixture(scope="module")
def pictures(rendered) -> Pictures:
    return load_captioned(rendered, TOY.clip.size)


@pytest.fixture(scope="module")
def framed(rendered) -> Framed:
    return load_framed(TOY, rendered)


@pytest.fixture(scope="module")
def work(tmp_path_factory, pictures, framed) -> Path:
    work = tmp_path_factory.mktemp("work")
    log = TrainLog(work / "log.jsonl", every=2)
    teacher = train_teacher(TOY, framed, work, device=CPU, log=log)
    clip = train_clip(TOY, pictures, work, device=CPU, log=log, teacher=teacher)
    train_captioner(TOY, pictures, work, device=CPU, log=log, clip=clip)
    return work


class Stopped(Exception):
    """Stands for whatever ends a run."""


def stop_at(step: int):
    def progress(done: int, total: int) -> None:
        if done == step:
            raise Stopped

    return progress


@pytest.mark.parametrize("stage", ["teacher", "clip", "captioner"])
def test_a_stopped_run_goes_on_as_if_it_had_not_been(
    stage, pictures, framed, tmp_path, monkeypatch
):
    monkeypatch.setattr(loop, "_SAVE_EVERY", 1)
    log = TrainLog(tmp_path / "log.jsonl")
    train = {"teacher": train_teacher, "clip": train_clip, "captioner": train_captioner}[stage]
    shown = framed if stage == "teacher" else pictures
    whole = train(TOY, shown, tmp_path / "whole", device=CPU, log=log)
    parts = tmp_path / "parts"
    with pytest.raises(Stopped):
        train(TOY, shown, parts, device=CPU, log=log, progress=stop_at(3))
    seen = []
    resumed = train(
        TOY, shown, parts, device=CPU, log=log, progress=lambda done, _: seen.append(done)
    )
    assert seen == [3, 4]
    states = whole.state_dict(), resumed.state_dict()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_the_losses_are_in_the_log(work):
    text = (work / "log.jsonl").read_text()
    for name in ("kinds", "pairs", "colors", "stuff", "teacher", "captions", "words"):
        assert f'"{name}": ' in text


def test_the_exported_pair_is_an_ordinary_folder(work, tmp_path, pictures):
    from transformers import AutoImageProcessor, CLIPModel, CLIPTokenizer

    export_clip(TOY, work, tmp_path)
    assert all(v.dtype == torch.float16 for v in load_file(tmp_path / "model.safetensors").values())
    model = CLIPModel.from_pretrained(tmp_path, dtype=torch.float32).eval()
    ids = CLIPTokenizer.from_pretrained(tmp_path)("a red car", return_tensors="pt")
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    pixels = processor(list(pictures.images[:2]), return_tensors="pt").pixel_values
    assert torch.allclose(pixels, to_pixels(pictures.images[:2]), atol=1e-5)
    with torch.no_grad():
        likeness = model(**ids, pixel_values=pixels).logits_per_image
    clip = load_clip(tmp_path, device="cpu")
    ours = clip.embed_images(pictures.images[:2]) @ clip.embed_texts("a red car").T
    scale = model.logit_scale.exp()
    assert torch.allclose(scale * ours, likeness, atol=1e-4)
    assert clip.vocabulary == tuple(sorted(VOCABULARY))


def test_the_exported_captioner_speaks(work, tmp_path, pictures):
    export_captioner(TOY, work, tmp_path)
    captioner = load_captioner(tmp_path, device="cpu")
    captions = captioner.caption(pictures.images[:3], max_tokens=5)
    assert len(captions) == 3
    assert not any(special in text for text in captions for special in (START, END))


@pytest.mark.parametrize(("export", "name"), [(export_clip, "clip"), (export_captioner, "caption")])
def test_nothing_is_exported_before_it_is_trained(export, name, tmp_path):
    with pytest.raises(InputError, match=rf"must have been trained(.|\n)*--stage {name}"):
        export(TOY, tmp_path, tmp_path / "out")


def test_pictures_of_another_size_are_refused(pictures, tmp_path):
    recipe = replace(TOY, clip=replace(TOY.clip, size=96))
    log = TrainLog(tmp_path / "log.jsonl")
    for train in (train_clip, train_captioner):
        with pytest.raises(InputError, match="96 pixels square"):
            train(recipe, pictures, tmp_path, device=CPU, log=log)


def test_pictures_must_suit(pictures, tmp_path):
    log = TrainLog(tmp_path / "log.jsonl")
    crowded = Pictures(images=pictures.images[:1], captions=[("a red car and a blue fish",) * 3])
    with pytest.raises(InputError, match="single thing"):
        train_clip(TOY, crowded, tmp_path, device=CPU, log=log)
    plain = Pictures(images=pictures.images[:1], captions=[("a car on grass",) * 3])
    with pytest.raises(InputError, match="all colours"):
        train_captioner(TOY, plain, tmp_path, device=CPU, log=log)
    with pytest.raises(InputError, match="render"):
        load_captioned(tmp_path, 64)


def test_windows_frame_one_thing(framed):
    world = Scenes("train", hw=(128, 128))
    for scene, center, kind, color in zip(
        framed.scenes, framed.centers, framed.kinds, framed.colors, strict=True
    ):
        shown = world[int(scene)]
        things = [t for t in shown.things if t.kind == THINGS[int(kind)]]
        assert [t.color for t in things] == [COLORS[int(color)]]
        assert np.allclose(center, (things[0].sprite.y / 4, things[0].sprite.x / 4))
        for other in shown.things:
            apart = np.abs(np.array([other.sprite.y, other.sprite.x]) / 4 - center).max()
            assert other is things[0] or apart > TOY.clip.teacher.window / 2
    rows = np.array([0, 0, 0, 0])
    windows = cut_windows(framed, rows, np.random.default_rng(0), side=32, reach=0)
    assert windows.shape == (4, 32, 32, 3)
    assert len({w.tobytes() for w in windows}) == 2  # mirrored or not


def test_windows_need_scenes(tmp_path):
    with pytest.raises(InputError, match=r"without scenes(.|\n)*--stage render"):
        load_framed(TOY, tmp_path)


def test_the_teacher_has_a_feature_a_patch(pictures):
    torch.manual_seed(0)
    teacher = Teacher(TOY.clip.teacher).eval()
    features = teacher.features(to_pixels(pictures.images[:3]))
    assert features.shape == (3, 16, 8)
    assert torch.allclose(features.mean((0, 1)), torch.zeros(8), atol=1e-4)


def test_averages_follow_running_statistics(framed, tmp_path):
    log = TrainLog(tmp_path / "log.jsonl")
    teacher = train_teacher(TOY, framed, tmp_path, device=CPU, log=log)
    counts = [v for k, v in teacher.state_dict().items() if k.endswith("num_batches_tracked")]
    assert all(count == TOY.clip.teacher.steps for count in counts)


def test_nouns_are_read_off_captions():
    found = fullest_nouns(("car and house on grass", "grass with a red car and a house", "a car"))
    assert found.things == (("red", "car"), (None, "house"))
    assert found.stuff == ("grass",)
    assert not found.colored
    kinds, stuff, pairs = noun_table([found, read_nouns("sky above water")])
    assert kinds.sum(1).tolist() == [2, 0]
    assert stuff.sum(1).tolist() == [1, 2]
    assert [PAIRS[i] for i in pairs[0].nonzero().flatten()] == [("red", "car")]
    assert len(PAIRS) == len(THINGS) * len(COLORS) - len(HELD_OUT_PAIRS)


@pytest.mark.parametrize(
    ("told", "caption"),
    [
        (
            "the sky with a white moon and an orange box",
            "an orange box and a white moon in the sky",
        ),
        ("sand and grass with a red car", "a red car on grass and sand"),
        ("sky above grass", "grass under a sky"),
        ("the sky", "a sky"),
        ("there is grass", "grass"),
        ("there is a car and a red fish", "a car and a red fish"),
    ],
)
def test_the_captioner_says_things_one_way(told, caption):
    nouns = read_nouns(told)
    assert plain_caption(nouns) == caption
    assert sorted(read_nouns(caption).things, key=str) == sorted(nouns.things, key=str)
    assert set(read_nouns(caption).stuff) == set(nouns.stuff)


def test_labels_end_with_the_end_and_skip_untold_colours(pictures):
    tokenizer = build_tokenizer(VOCABULARY)
    told = [("a car",), ("a red car on grass",), ("grass",)]
    rows, labels = caption_labels(Pictures(images=pictures.images[:3], captions=told), tokenizer)
    assert rows.tolist() == [1, 2]
    end = tokenizer.eos_token_id
    assert labels.shape == (2, 6)
    assert labels[0, -1] == end
    assert labels[1, 1:].tolist() == [end, -100, -100, -100, -100]


def test_the_captioner_can_begin_with_the_pairs_tower(pictures, tmp_path):
    recipe = replace(TOY, captioner=replace(TOY.captioner, steps=0))
    tokenizer = build_tokenizer(VOCABULARY)
    clip = build_clip(TOY.clip, tokenizer)
    log = TrainLog(tmp_path / "log.jsonl")
    model = train_captioner(recipe, pictures, tmp_path, device=CPU, log=log, clip=clip)
    pixels = to_pixels(pictures.images[:1])
    with torch.no_grad():
        assert model.encoder is not None
        ours = model.encoder(pixel_values=pixels).last_hidden_state
        theirs = clip.vision_model(pixel_values=pixels).last_hidden_state
    assert torch.equal(ours, theirs)


def test_the_decoder_sees_only_the_words_before(pictures):
    tokenizer = build_tokenizer(VOCABULARY)
    torch.manual_seed(0)
    model = build_captioner(TOY.captioner, TOY.clip, tokenizer).eval()
    ids = tokenizer(["a red car", "a red box"], return_tensors="pt").input_ids
    pixels = to_pixels(pictures.images[:1]).expand(2, -1, -1, -1)
    with torch.no_grad():
        logits = model(pixel_values=pixels, decoder_input_ids=ids).logits
    assert torch.allclose(logits[0, :3], logits[1, :3], atol=1e-6)
    assert not torch.allclose(logits[0, 3], logits[1, 3], atol=1e-3)


def test_text_embeddings_do_not_depend_on_padding():
    tokenizer = build_tokenizer(VOCABULARY)
    torch.manual_seed(0)
    model = build_clip(TOY.clip, tokenizer).eval()
    texts = ["a red car", "a photo of a red car and a blue tree"]
    padded = tokenizer(texts, padding="max_length", return_tensors="pt").input_ids
    with torch.no_grad():
        together = embed_tokens(model, padded)
        alone = torch.cat([embed_tokens(model, padded[i : i + 1]) for i in range(2)])
    assert torch.allclose(together, alone, atol=1e-6)


def test_priming(pictures):
    generator = torch.Generator().manual_seed(0)
    kernels = principal_patches(pictures.images, 16, 16, generator)
    pixels = to_pixels(pictures.images)
    seen = torch.nn.functional.conv2d(pixels, kernels, stride=16)
    assert seen.std().item() == pytest.approx(1, rel=0.2)
    positions = sine_positions(8, 128)
    likeness = positions @ positions.T
    assert (likeness.argmax(1) == torch.arange(64)).all()
    assert likeness[8, 9] > likeness[8, 10] > likeness[8, 12]
    torch.manual_seed(0)
    clip = build_clip(TOY.clip, build_tokenizer(VOCABULARY))
    prime_tower(clip.vision_model, pictures.images, generator)
    attention: Any = clip.vision_model.encoder.layers[0].self_attn
    product = attention.v_proj.weight.T @ attention.out_proj.weight.T
    assert product.diagonal().mean() < -0.2


def test_jitter_and_shrink():
    images = np.arange(2 * 8 * 8 * 3, dtype=np.uint8).reshape(2, 8, 8, 3)
    moved = jitter(images, np.random.default_rng(0), reach=0)
    assert all(
        (m == i).all() or (m == i[:, ::-1]).all() for m, i in zip(moved, images, strict=True)
    )
    assert jitter(images, np.random.default_rng(0), reach=2).shape == images.shape
    halved = shrink(np.full((1, 8, 8, 3), 7, np.uint8), 4)
    assert halved.shape == (1, 4, 4, 3)
    assert (halved == 7).all()


def test_the_learning_rate_rises_and_falls():
    settings = ClipRecipe(steps=20, warmup=5, learning_rate=1.0)
    rates = [learning_rate(settings, step) for step in range(20)]
    assert rates[:5] == sorted(rates[:5])
    assert rates[5:] == sorted(rates[5:], reverse=True)
    assert max(rates) == 1.0
    assert rates[-1] < 0.05
