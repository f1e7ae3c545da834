"""Class names, prompts and the places of words in them."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffuseg.errors import InputError
from diffuseg.prompts import (
    CharSpan,
    ClassName,
    TokenSpan,
    build_prompts,
    find_word,
    locate_tokens,
    parse_classes,
)
from support.refusal import refused

names = st.lists(
    st.text("abcdefgh", min_size=1, max_size=6), min_size=1, max_size=12, unique_by=str.casefold
)


def words_of(classes: object) -> list[tuple[str, ...]]:
    return [item.words for item in parse_classes(classes)]


def offsets_by_word(prompt: str) -> list[tuple[int, int]]:
    """A tokenizer with one token a word or punctuation mark, start and end token around."""
    inner = [match.span() for match in re.finditer(r"\w+|[^\w\s]", prompt)]
    return [(0, 0), *inner, (len(prompt), len(prompt))]


@pytest.mark.parametrize(
    ("classes", "expected"),
    [
        ("car", [("car",)]),
        (" car ,  fire   hydrant", [("car",), ("fire hydrant",)]),
        ("sofa|couch, tree", [("sofa", "couch"), ("tree",)]),
        (["car", ("person", "pedestrian")], [("car",), ("person", "pedestrian")]),
        (["car", ["person", "man|woman"]], [("car",), ("person", "man", "woman")]),
        (("door, double",), [("door, double",)]),
        ((name for name in ("a", "b")), [("a",), ("b",)]),
        ("Eiffel Tower", [("Eiffel Tower",)]),
    ],
)
def test_class_names_are_read_in_every_form(classes, expected):
    assert words_of(classes) == expected


def test_parsed_classes_pass_through():
    parsed = parse_classes("car, sofa|couch")
    assert parse_classes(parsed) == parsed
    assert parse_classes(parsed[1]) == (ClassName(name="sofa", words=("sofa", "couch")),)


@pytest.mark.parametrize("classes", ["", "   ", [], ()])
def test_no_class_is_an_error(classes):
    with pytest.raises(InputError, match="at least one class must be named"):
        parse_classes(classes)


@pytest.mark.parametrize("classes", ["car,,tree", "car,", ",", ["car", " "], ["a|"], [()]])
def test_an_empty_name_is_an_error(classes):
    with pytest.raises(InputError, match="name that is not empty"):
        parse_classes(classes)


@pytest.mark.parametrize(
    "classes",
    [
        "dog, dog",
        "dog, Dog",
        "sofa|couch, couch",
        ["dog", ("cat", "DOG")],
        "dog|dog",
        "straße,STRASSE",
    ],
)
def test_a_word_for_two_classes_is_an_error(classes):
    with pytest.raises(InputError, match="one class, once") as caught:
        parse_classes(classes)
    assert "tuple" in caught.value.remedy


@pytest.mark.parametrize("classes", [["car", 3], [None], [("car", 1.5)], ["car", b"tree"]])
def test_a_name_that_is_no_text_is_an_error(classes):
    with pytest.raises(InputError, match="a class must be a name or a tuple of synonyms"):
        parse_classes(classes)


@pytest.mark.parametrize("classes", [None, 7, {"car", "tree"}, {"car": 1}, b"car"])
def test_a_container_without_order_is_an_error(classes):
    with pytest.raises(InputError, match="text with commas or an ordered list"):
        parse_classes(classes)


def test_a_joint_prompt_names_every_word_once():
    prompts = build_prompts("dog, sofa|couch", "a photo of {}.")
    assert prompts.prompts == ("a photo of dog and sofa and couch.",)
    assert prompts.names == ("dog", "sofa")
    assert prompts.spans == (
        CharSpan(name="dog", row=0, start=11, stop=14),
        CharSpan(name="sofa", row=0, start=19, stop=23),
        CharSpan(name="sofa", row=0, start=28, stop=33),
    )


def test_separate_prompts_have_one_word_each():
    prompts = build_prompts("dog, sofa|couch", joint=False)
    assert prompts.prompts == ("a photo of dog", "a photo of sofa", "a photo of couch")
    assert [(span.name, span.row) for span in prompts.spans] == [
        ("dog", 0),
        ("sofa", 1),
        ("sofa", 2),
    ]


@pytest.mark.parametrize("template", ["a photo", "{} and {}", "a {name}", "", None])
def test_a_template_needs_one_place_for_the_names(template):
    with refused(r"one \{\} where the names go"):
        build_prompts("dog", template)


@given(names, st.booleans(), st.sampled_from(["a photo of {}", "{}", "({})", "my {}s"]))
def test_spans_hold_the_words(classes, joint, template):
    prompts = build_prompts(classes, template, joint=joint)
    found = [prompts.prompts[span.row][span.start : span.stop] for span in prompts.spans]
    assert found == classes
    assert prompts.names == tuple(classes)


@given(names, st.integers(12, 60))
def test_a_joint_prompt_is_dealt_out_in_order_until_all_fit(classes, limit):
    prompts = build_prompts(classes, "{}", fits=lambda prompt: len(prompt) <= limit)
    assert all(len(prompt) <= limit for prompt in prompts.prompts)
    assert [span.name for span in prompts.spans] == classes
    assert sorted({span.row for span in prompts.spans}) == list(range(len(prompts.prompts)))


def test_dealt_prompts_are_of_like_length_and_keep_synonyms_together():
    classes = [f"class{index:03}" for index in range(150)]
    prompts = build_prompts(classes, fits=lambda prompt: prompt.count(" ") < 70)
    counts = [prompt.count(" and ") + 1 for prompt in prompts.prompts]
    assert sum(counts) == 150
    assert max(counts) - min(counts) <= 1
    torn = build_prompts("a, b|c|d", "{}", fits=lambda prompt: len(prompt) <= 13)
    assert torn.prompts == ("a", "b and c and d")


def test_a_class_that_fits_no_prompt_is_an_error():
    with pytest.raises(InputError, match="one class with its synonyms must fit"):
        build_prompts("dog, sofa|couch", fits=lambda prompt: len(prompt) < 20)


def located(classes: object, template: str = "a photo of {}", **options) -> list[tuple]:
    prompts = build_prompts(classes, template, **options)
    offsets = [offsets_by_word(prompt) for prompt in prompts.prompts]
    return [
        (span.name, span.row, span.tokens) for span in locate_tokens(prompts, offsets, context=16)
    ]


def test_tokens_are_found_at_the_word_s_own_place():
    # "photo" and "of" also stand in the template.
    assert located("photo, of, fire hydrant") == [
        ("photo", 0, (4,)),
        ("of", 0, (6,)),
        ("fire hydrant", 0, (8, 9)),
    ]


def test_synonyms_in_one_prompt_make_one_span():
    assert located("dog, sofa|couch") == [("dog", 0, (4,)), ("sofa", 0, (6, 8))]
    assert located("sofa|couch", joint=False) == [("sofa", 0, (4,)), ("sofa", 1, (4,))]


def test_punctuation_beside_a_word_is_not_the_word_s():
    assert located("dog", "a ({}), please") == [("dog", 0, (3,))]


def test_a_token_reaching_over_the_word_s_end_belongs_to_it():
    prompts = build_prompts("dog", "two {}s")
    assert locate_tokens(prompts, [offsets_by_word(prompts.prompts[0])], context=9) == (
        TokenSpan(name="dog", row=0, tokens=(2,)),
    )


def test_a_word_behind_the_end_of_the_context_is_an_error():
    with pytest.raises(InputError, match="within the 14 tokens") as caught:
        located([f"c{index}" for index in range(7)])
    assert "'c6' at tokens 16 to 16 of a prompt of 16 tokens" in str(caught.value)
    assert len(located([f"c{index}" for index in range(6)])) == 6


def test_a_name_without_a_token_is_an_error():
    prompts = build_prompts("dog, \u200b")
    with pytest.raises(InputError, match="something the model's tokenizer can read"):
        locate_tokens(prompts, [[(0, 0), (0, 14), (29, 29)]], context=77)


def test_words_are_found_whole_and_in_any_case():
    assert find_word("A cat, a catalogue, Cat's cat", "cat") == ((2, 5), (20, 23), (26, 29))
    assert find_word("a c++ book", "c++") == ((2, 5),)
    assert find_word("a dog", "cat") == ()
