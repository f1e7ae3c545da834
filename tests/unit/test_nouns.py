"""Nouns of captions: all phrasings of the world, odd texts, other taggers."""

import numpy as np
import pytest

from diffuseg.errors import InputError
from diffuseg.methods.nouns import PICTURE_WORDS, Caption, fold_plurals, read_caption
from diffuseg.prompts import CharSpan
from diffuseg.world.captions import caption_scene, caption_things
from diffuseg.world.shapes import THINGS
from diffuseg.world.sprites import COLORS
from diffuseg.world.textures import STUFF


def nouns(text):
    return [noun.name for noun in read_caption(text).nouns]


def wanted(text):
    return [word for word in text.split() if word in THINGS or word in STUFF]


def kept(text):
    return [name for name in nouns(text) if name not in PICTURE_WORDS]


def test_every_phrasing_of_the_world():
    rng = np.random.default_rng(0)
    kinds, colors = list(THINGS), list(COLORS)
    texts = set()
    for _ in range(3000):
        n_things = int(rng.integers(0, 5))
        things = [(str(rng.choice(colors)), str(rng.choice(kinds))) for _ in range(n_things)]
        n_stuff = int(rng.integers(0 if things else 1, 4))
        stuff = [str(one) for one in rng.permutation(list(STUFF))[:n_stuff]]
        texts.add(caption_things(things, stuff, rng))
        if things and stuff:
            texts.update(caption_scene(things, stuff, rng))
    assert len(texts) > 5000
    assert not [text for text in texts if kept(text) != wanted(text)]


@pytest.mark.parametrize("name", [*THINGS, *STUFF])
@pytest.mark.parametrize("phrase", ["{}", "a photo of {}", "the {}", "a good {}", "a {} and a {}"])
def test_every_word_of_the_world_alone(name, phrase):
    assert set(kept(phrase.format(name, name))) == {name}


@pytest.mark.parametrize("color", COLORS)
def test_colours_are_no_nouns(color):
    assert kept(f"a photo of a {color} car") == ["car"]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("A group of cars racing down a track", ["group", "cars", "track"]),
        ("A red car parked in front of a building", ["car", "front", "building"]),
        ("a man riding a wave on top of a surfboard", ["man", "wave", "surfboard"]),
        ("a herd of sheep grazing on a lush green hillside", ["herd", "sheep", "hillside"]),
        ("a cat, a dog; a cat.", ["cat", "dog", "cat"]),
        ("green and blue", []),
    ],
)
def test_captions_of_photographs(text, names):
    assert nouns(text) == names


def test_where_nouns_stand():
    caption = read_caption("  The  Dog's ball,\non GRASS! ")
    assert caption.text == "The Dog's ball, on GRASS!"
    assert [caption.text[one.start : one.stop] for one in caption.nouns][-2:] == ["ball", "GRASS"]
    assert caption.nouns[-1] == CharSpan(name="grass", row=0, start=19, stop=24)


@pytest.mark.parametrize(
    "text", ["a / b", "x|y <b>car</b>", "50% of 3.5 e-mails", "été, çé, 猫 car", "_ car"]
)
def test_odd_texts_are_read(text):
    caption = read_caption(text)
    for noun in caption.nouns:
        assert caption.text[noun.start : noun.stop].lower() == noun.name


def test_another_tagger():
    seen = []

    def tagger(words):
        seen.extend(words)
        return ["NNP" if word[0].isupper() else "X" for word in words]

    found = read_caption("das rote Auto, am Haus", tagger=tagger)
    assert seen == ["das", "rote", "Auto", ",", "am", "Haus"]
    assert [noun.name for noun in found.nouns] == ["auto", "haus"]
    assert read_caption(found) is found


@pytest.mark.parametrize("bad", ["", "  ", "!?", 3, b"a car", ["a car"]])
def test_what_is_no_caption(bad):
    with pytest.raises(InputError, match="a caption must be text with words"):
        read_caption(bad)


def test_a_tagger_that_loses_words():
    with pytest.raises(InputError, match="1 tags for 2 words"):
        read_caption("a car", tagger=lambda words: ["NN"])


def test_singular_and_plural():
    assert fold_plurals(["car", "buses", "cars", "grass", "bus"]) == {
        "car": "car",
        "buses": "buses",
        "cars": "car",
        "grass": "grass",
        "bus": "buses",
    }
    assert fold_plurals([]) == {}
    assert Caption(text="", nouns=()).nouns == ()
