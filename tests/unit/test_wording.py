"""Prompts of one class each: weights written into them, what is stressed, which tokens are read."""

import pytest

from diffuseg.emphasis import read_emphasis
from diffuseg.errors import InputError
from diffuseg.methods.wording import pick_tokens, stressed_prompt, word_prompt
from diffuseg.prompts import CharSpan

PLAIN = "a photograph of dog"


@pytest.mark.parametrize(
    ("prompt", "text", "parts"),
    [
        ("", "", []),
        (PLAIN, PLAIN, []),
        ("a dog+", "a dog", [("dog", 1.1)]),
        ("a dog++ runs", "a dog runs", [("dog", 1.21)]),
        ("potted plant++", "potted plant", [("plant", 1.21)]),
        ("(potted plant)++ here", "potted plant here", [("potted plant", 1.21)]),
        ("(a red) pillow", "a red pillow", []),
        ("(a red)1.5 pillow", "a red pillow", [("a red", 1.5)]),
        ("(a red)0 pillow", "a red pillow", [("a red", 0.0)]),
        ("((red)2 car)1.5", "red car", [("red", 2.0), ("red car", 1.5)]),
        ("(red car++)+", "red car", [("car", 1.21), ("red car", 1.1)]),
        ("dog++, cat", "dog, cat", [("dog", 1.21)]),
        ("t-shirt++ - black-and-white", "t-shirt - black-and-white", [("t-shirt", 1.21)]),
        ("a dog -- running", "a dog -- running", []),
        ("a ++ b", "a ++ b", []),
        ("C++11 a+b", "C++11 a+b", []),
        ("a :( dog++", "a :( dog", [("dog", 1.21)]),
        ("a ) dog", "a ) dog", []),
        (r"\(dog\) \+", "(dog) +", []),
        ("()++ dog", " dog", []),
        ("(dog) 2 cats", "dog 2 cats", []),
    ],
)
def test_weights_in_a_prompt(prompt, text, parts):
    plain, found = read_emphasis(prompt)
    assert plain == text
    assert [(text[start:stop], pytest.approx(weight)) for start, stop, weight in found] == parts


def span(text, word):
    start = text.index(word)
    return CharSpan(name=word, row=0, start=start, stop=start + len(word))


@pytest.mark.parametrize(
    ("text", "following"),
    [
        (PLAIN, None),
        (PLAIN + " running fast", "running"),
        (PLAIN + " that is running", None),
        (PLAIN + ", running", None),
        (PLAIN + "s running", None),
        ("a photograph of dog dog running", None),
    ],
)
def test_the_word_behind_a_class(text, following):
    worded = word_prompt(text, span(text, "dog"), "attributes")
    assert worded.text == text
    assert worded.stressed == worded.named
    behind = worded.following
    assert (text[behind.start : behind.stop] if behind else None) == following


def test_profiles_stress_the_last_word():
    text = "a photography of traffic light hanging on a pole"
    named = span(text, "traffic light")
    for reading in ("coco", "coco-legacy", "voc10"):
        worded = word_prompt(text, named, reading)
        assert worded.text == text
        assert text[worded.stressed.start : worded.stressed.stop] == "light"
        assert worded.following is not None


@pytest.mark.parametrize(
    ("reading", "without", "with_ing"),
    [
        ("words", (4, 5), (4, 5)),
        ("attributes", (4, 5), (4, 5, 6, 7)),
        ("voc12", (4,), (4, 5)),
        ("voc10", (5,), (5, 6)),
        ("coco", (5,), (5, 6)),
        ("coco-legacy", (5,), (5, 7)),
    ],
)
def test_which_tokens_are_read(reading, without, with_ing):
    assert pick_tokens((4, 5), reading) == without
    assert pick_tokens((4, 5), reading, (6, 7)) == with_ing


def test_what_profiles_refuse():
    with pytest.raises(InputError, match="prompts of the profile 'coco' begin with"):
        word_prompt(PLAIN, span(PLAIN, "dog"), "coco")
    bracketed = "a photography of dog (big)"
    with pytest.raises(InputError, match="must be free of weights"):
        word_prompt(bracketed, span(bracketed, "dog (big)"), "coco")
    with pytest.raises(InputError, match="a caption must begin with the words before the class"):
        stressed_prompt("voc10", "dog", "a photography of")
