"""Captions: closed vocabulary, everything named, several phrasings."""

import re
from itertools import islice

import numpy as np
import pytest

from diffuseg.errors import InputError
from diffuseg.world import (
    CLASSES,
    COLORS,
    HELD_OUT_PAIRS,
    STUFF,
    THINGS,
    VOCABULARY,
    Scenes,
    caption_things,
)
from diffuseg.world.captions import caption_scene


def captions(split="train", n=300):
    scenes = Scenes(split, seed=1)
    for i in range(n):
        layout = scenes.layout(i)
        nouns = [(s.color, s.kind) for s in layout.sprites]
        yield nouns, layout.stuff, caption_scene(nouns, layout.stuff, np.random.default_rng(i))


def test_vocabulary_is_small_and_complete():
    assert len(VOCABULARY) == len(set(VOCABULARY)) < 80
    assert all(re.fullmatch("[a-z]+", word) for word in VOCABULARY)
    assert {*CLASSES, *COLORS} <= set(VOCABULARY)
    needed = {"photo", "picture", "good", "photograph", "of", "other", "object", "background"}
    assert needed <= set(VOCABULARY)


def test_captions_use_the_vocabulary_alone():
    for _, _, phrases in captions():
        for phrase in phrases:
            assert phrase == " ".join(phrase.split())
            assert set(phrase.split()) <= set(VOCABULARY)


def test_captions_name_what_is_there_and_nothing_else():
    for nouns, stuff, phrases in captions():
        present = {kind for _, kind in nouns} | set(stuff)
        assert len(phrases) >= 4
        assert len(set(phrases)) == len(phrases)
        named = [set(phrase.split()) & set(CLASSES) for phrase in phrases]
        assert named[0] == present
        assert sum(names == present for names in named) >= len(phrases) // 2
        assert all(names <= present for names in named)
        assert any(names < present for names in named)


def test_colors_stand_before_their_thing():
    for nouns, _, phrases in captions(n=100):
        for phrase in phrases:
            words = phrase.split()
            for before, article, kind in zip(words[1:], words, words[2:], strict=False):
                if kind in THINGS:
                    assert (before, kind) in nouns
                    assert article == ("an" if before == "orange" else "a")


def test_phrasings_vary():
    rng = np.random.default_rng(0)
    things, stuff = [("red", "car"), ("blue", "tree")], ["sky", "grass"]
    phrases = {caption_things(things, stuff, rng) for _ in range(200)}
    assert len(phrases) > 20
    assert "a red car and a blue tree with sky above grass" in phrases


def test_parts_of_a_scene_can_be_captioned():
    rng = np.random.default_rng(0)
    assert set(caption_things([], ["sky", "sand"], rng).split()) >= {"sky", "sand"}
    assert "water" in caption_things([], ["water"], rng)
    assert "sky" in caption_things([], ["sky"], rng)
    assert "a green fish" in caption_things([("green", "fish")], [], rng)


def test_caption_of_nothing_is_refused():
    with pytest.raises(InputError, match="a caption names at least one thing or stuff"):
        caption_things([], [], np.random.default_rng(0))


def test_scene_captions_name_its_stuff_and_things():
    scene = Scenes("val", seed=2, hw=(64, 64))[0]
    assert scene.caption == scene.captions[0]
    assert set(scene.caption.split()) & set(CLASSES) == set(scene.names)
    assert set(scene.names) & set(STUFF) == set(scene.stuff)


def test_no_caption_of_train_names_a_held_out_pair():
    def named(split):
        scenes = islice(Scenes(split, seed=6, hw=(64, 64)), 60)
        return " / ".join(text for scene in scenes for text in scene.captions)

    pairs = [f"{color} {kind}" for color, kind in HELD_OUT_PAIRS]
    train, val = named("train"), named("val")
    assert not any(pair in train for pair in pairs)
    assert sum(pair in val for pair in pairs) >= 3


def test_captions_also_name_only_some():
    scenes = islice(Scenes("train", seed=6, hw=(64, 64)), 20)
    crowded = [scene for scene in scenes if len(scene.things) > 1]
    assert crowded
    for scene in crowded:
        kinds = {thing.kind for thing in scene.things}
        told = [kinds & set(text.split()) for text in scene.captions]
        assert told[0] == kinds
        assert any(0 < len(one) < len(kinds) for one in told)
        assert len(scene.captions) >= 4
