"""The recipes of the CLIP pair and the captioner, end to end at toy size, stopped and resumed."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from diffuseg.backbones.captioner import load_captioner
from diffuseg.backbones.clip import load_clip
from diffuseg.errors import InputError
from diffuseg.train import loop
from diffuseg.train.captioned import (
    COLOR_OF_PAIR,
    PAIRS,
    draw_views,
    fullest_nouns,
    load_captioned,
    noun_table,
    read_nouns,
    recolor,
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
from diffuseg.train.muon import Muon, orthogonalize
from diffuseg.train.priming import (
    NOUNS,
    Primer,
    best_patches,
    noun_loss,
    noun_targets,
    train_priming,
    window_states,
)
from diffuseg.train.recipe import CaptionerRecipe, ClipRecipe, MiniRecipe, PrimingRecipe
from diffuseg.world.captions import VOCABULARY
from diffuseg.world.scenes import COLORS, HELD_OUT_PAIRS, THINGS
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
        priming=PrimingRecipe(steps=4, batch=4, warmup=1),
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
    return load_captioned(rendered, TOY.crop_size)


@pytest.fixture(scope="module")
def windows(rendered) -> Pictures:
    return load_captioned(rendered, TOY.crop_size, kinds=("windows",))


@pytest.fixture(scope="module")
def work(tmp_path_factory, pictures, windows) -> Path:
    work = tmp_path_factory.mktemp("work")
    log = TrainLog(work / "log.jsonl", every=2)
    primer = train_priming(TOY, windows, work, device=CPU, log=log)
    clip = train_clip(TOY, pictures, work, device=CPU, log=log, primer=primer)
    train_captioner(TOY, pictures, work, device=CPU, log=log, clip=clip)
    return work


class Stopped(Exception):
    """Stands for whatever ends a run."""


def stop_at(step: int):
    def progress(done: int, total: int) -> None:
        if done == step:
            raise Stopped

    return progress


@pytest.mark.parametrize("train", [train_priming, train_clip, train_captioner])
def test_a_stopped_run_goes_on_as_if_it_had_not_been(train, pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "_SAVE_EVERY", 1)
    log = TrainLog(tmp_path / "log.jsonl")
    whole = train(TOY, pictures, tmp_path / "whole", device=CPU, log=log)
    parts = tmp_path / "parts"
    with pytest.raises(Stopped):
        train(TOY, pictures, parts, device=CPU, log=log, progress=stop_at(3))
    seen = []
    resumed = train(
        TOY, pictures, parts, device=CPU, log=log, progress=lambda done, _: seen.append(done)
    )
    assert seen == [3, 4]
    states = whole.state_dict(), resumed.state_dict()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_the_losses_are_in_the_log(work):
    text = (work / "log.jsonl").read_text()
    for name in ("first", "patches", "kinds", "pairs", "colors", "stuff", "captions", "words"):
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


def test_pictures_must_suit(pictures, tmp_path):
    log = TrainLog(tmp_path / "log.jsonl")
    crowded = Pictures(images=pictures.images[:1], captions=[("a red car and a blue fish",) * 3])
    with pytest.raises(InputError, match="single thing"):
        train_clip(TOY, crowded, tmp_path, device=CPU, log=log)
    plain = Pictures(images=pictures.images[:1], captions=[("a car on grass",) * 3])
    with pytest.raises(InputError, match="all colours"):
        train_captioner(TOY, plain, tmp_path, device=CPU, log=log)
    with pytest.raises(InputError, match=r"without scenes(.|\n)*--stage render"):
        load_captioned(tmp_path, 64)


def test_a_window_takes_places_of_a_whole_picture(pictures):
    torch.manual_seed(0)
    tower = Primer(TOY.clip).tower.eval()
    pixels = to_pixels(shrink(pictures.images[:2], TOY.clip.size))
    with torch.no_grad():
        whole = window_states(tower, pixels, (0, 0))
        theirs = tower(pixel_values=pixels)
        corner = window_states(tower, pixels[..., 32:, 32:], (4, 4))
        elsewhere = window_states(tower, pixels[..., 32:, 32:], (0, 0))
    states = tower.post_layernorm(theirs.last_hidden_state)
    assert torch.allclose(whole, states, atol=1e-5)
    assert torch.allclose(whole[:, 0], theirs.pooler_output, atol=1e-5)
    assert corner.shape == (2, 17, TOY.clip.width)
    assert not torch.allclose(corner, elsewhere, atol=1e-3)


def test_the_nouns_of_captions_are_what_is_learned():
    told = [("a red car on grass",), ("a house under a sky",)]
    images = np.zeros((2, 8, 8, 3), np.uint8)
    named, colored = noun_targets(Pictures(images=images, captions=told))
    words = [{NOUNS[i] for i in row.nonzero().flatten()} for row in named]
    assert words == [{"red", "car", "grass"}, {"house", "sky"}]
    assert colored.tolist() == [True, False]
    right = noun_loss(40 * named - 20, named, colored)
    assert right < 1e-6
    blue = named.clone()
    blue[1, NOUNS.index("blue")] = 1
    assert noun_loss(40 * blue - 20, named, colored) < 1e-6  # its colour is not known
    blue[0, NOUNS.index("blue")] = 1
    assert noun_loss(40 * blue - 20, named, colored) > 1
    scores = torch.tensor([[[-9.0, -9.0], [5.0, -9.0]]])
    assert best_patches(scores).argmax() == 0
    assert best_patches(scores)[0, 0] == pytest.approx(5, abs=0.01)


def test_the_pair_begins_with_the_primed_tower(pictures, tmp_path):
    recipe = replace(TOY, clip=replace(TOY.clip, steps=0))
    torch.manual_seed(1)
    primer = Primer(TOY.clip)
    log = TrainLog(tmp_path / "log.jsonl")
    clip = train_clip(recipe, pictures, tmp_path, device=CPU, log=log, primer=primer)
    theirs = clip.vision_model.state_dict()
    assert all(torch.equal(v, theirs[k]) for k, v in primer.tower.state_dict().items())


def test_muon():
    generator = torch.Generator().manual_seed(0)
    for shape in ((12, 4), (4, 12)):
        values = torch.linalg.svdvals(orthogonalize(torch.randn(shape, generator=generator)))
        assert values.min() > 0.5
        assert values.max() < 1.3
    weights = [torch.nn.Parameter(torch.randn(4, 4, generator=generator)) for _ in range(2)]
    slope = torch.randn(4, 4, generator=generator)
    group = {"lr": 0.1, "weight_decay": 0.5, "orthogonal": False}
    ours, theirs = (
        Muon([{"params": weights[:1], **group}]),
        torch.optim.AdamW(weights[1:], lr=0.1, weight_decay=0.5, betas=(0.9, 0.98)),
    )
    weights[1].data.copy_(weights[0].data)
    for step in range(3):
        for weight in weights:
            weight.grad = slope * (step + 1)
        ours.step()
        theirs.step()
    assert torch.allclose(weights[0], weights[1], atol=1e-6)


def test_nouns_are_read_off_captions():
    found = fullest_nouns(("car and house on grass", "grass with a red car and a house", "a car"))
    assert found.things == (("red", "car"), (None, "house"))
    assert found.stuff == ("grass",)
    assert not found.colored
    kinds, stuff, pairs = noun_table([found, read_nouns("sky above water")])
    assert kinds.sum(1).tolist() == [2, 0]
    assert stuff.sum(1).tolist() == [1, 2]
    assert [PAIRS[i] for i in pairs[0].nonzero().flatten()] == [("red", "car")]
    assert COLOR_OF_PAIR.sum(1).tolist() == [1] * len(PAIRS)
    assert COLORS[int(COLOR_OF_PAIR[PAIRS.index(("red", "car"))].argmax())] == "red"
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
    assert torch.allclose(ours, theirs, atol=1e-5)  # they multiply in other orders


def test_the_captioner_ends_on_whole_scenes(pictures, rendered, tmp_path):
    scenes = load_captioned(rendered, TOY.crop_size, kinds=("scenes",))
    recipe = replace(TOY, captioner=replace(TOY.captioner, steps=2, mixed=0))
    log = TrainLog(tmp_path / "log.jsonl")
    both = train_captioner(recipe, pictures, tmp_path / "a", device=CPU, log=log, scenes=scenes)
    alone = train_captioner(recipe, scenes, tmp_path / "b", device=CPU, log=log)
    theirs = alone.state_dict()
    assert all(torch.equal(value, theirs[key]) for key, value in both.state_dict().items())


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


def test_views():
    images = np.arange(2 * 8 * 8 * 3, dtype=np.uint8).reshape(2, 8, 8, 3)
    seen = draw_views(images, np.random.default_rng(0), side=8, least=1.0)
    assert all((s == i).all() or (s == i[:, ::-1]).all() for s, i in zip(seen, images, strict=True))
    assert draw_views(images, np.random.default_rng(0), side=4, least=0.5).shape == (2, 4, 4, 3)
    ramp = np.broadcast_to(np.arange(64, dtype=np.uint8)[None, None, :, None], (9, 64, 64, 3))
    closer = draw_views(np.ascontiguousarray(ramp), np.random.default_rng(0), side=64, least=0.5)
    spans = np.ptp(closer.astype(int), axis=(1, 2, 3))
    assert 30 <= spans.min() < spans.max() <= 63
    halved = shrink(np.full((1, 8, 8, 3), 7, np.uint8), 4)
    assert halved.shape == (1, 4, 4, 3)
    assert (halved == 7).all()


def test_recoloured_pictures():
    pixels = torch.rand(200, 3, 2, 2)
    turned, plain = recolor(pixels, np.random.default_rng(0), share=0.3)
    assert torch.allclose(turned[plain], pixels[plain])
    assert not torch.isclose(turned[~plain], pixels[~plain]).all(dim=(1, 2, 3)).any()
    assert plain.float().mean().item() == pytest.approx(0.7, abs=0.1)
    grey = pixels[:, :1].expand(-1, 3, -1, -1)
    again, _ = recolor(grey, np.random.default_rng(0), share=1.0)
    assert torch.allclose(again, grey, atol=1e-5)  # shading stays shading


def test_the_learning_rate_rises_and_falls():
    settings = ClipRecipe(steps=20, warmup=5, learning_rate=1.0)
    rates = [learning_rate(settings, step) for step in range(20)]
    assert rates[:5] == sorted(rates[:5])
    assert rates[5:] == sorted(rates[5:], reverse=True)
    assert max(rates) == 1.0
    assert rates[-1] < 0.05
