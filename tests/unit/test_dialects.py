"""iSeg's prompts: what a data set's classes are called, and which tokens are read."""

from dataclasses import replace

import pytest

import diffuseg as ds
from diffuseg.asking import ask, read_words
from diffuseg.methods import ISeg, Needs
from diffuseg.methods.dialects import Dialect, dialect_template
from diffuseg.prompts import build_prompts, parse_classes
from support.folders import write_sd15

NEEDS = Needs(timesteps=(100,), kinds=("cross",), template="a photo of {} and house")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return ds.load(write_sd15(tmp_path_factory.mktemp("models") / "tiny"), device="cpu")


def spoken(name, classes):
    return [one.words for one in Dialect(name=name).speak(parse_classes(classes))]


def test_classes_keep_their_names():
    said = Dialect(name="voc").speak(parse_classes("aeroplane, sofa|couch"))
    assert [one.name for one in said] == ["aeroplane", "sofa"]
    assert [one.words for one in said] == [("plane",), ("sofa", "couch")]
    assert spoken("coco", "person, tv") == [("people",), ("tv monitor",)]
    assert spoken("context", "tvmonitor, computer") == [("monitor",), ("laptop",)]


def test_a_word_is_not_taken_from_another_class():
    assert spoken("context", "computer, laptop") == [("computer",), ("laptop",)]


def test_of_some_names_the_last_word_is_read(model):
    words = read_words("cat, fire hydrant, red dog")
    plain = ask(model, NEEDS, words)
    asked = ask(model, replace(NEEDS, dialect=Dialect(name="coco")), words)
    assert asked.prompts.prompts == plain.prompts.prompts
    for name in ("cat", "red dog"):
        assert [one for one in asked.spans if one.name == name] == [
            one for one in plain.spans if one.name == name
        ]
    [narrow], [wide] = (
        [one.tokens for one in found.spans if one.name == "fire hydrant"]
        for found in (asked, plain)
    )
    assert narrow == wide[-len(narrow) :]
    assert len(narrow) < len(wide)


def test_the_table_counts_fire_hydrant_short():
    prompts = build_prompts("fire hydrant, dog", "a photograph of {}")
    spans = Dialect(name="coco", legacy=True).locate(prompts)
    assert [span.tokens for span in spans] == [(5,), (7,)]  # hydr of three; "and" of "and dog"


def test_the_table_is_used_where_it_is_asked_for(model):
    dialect = Dialect(name="coco", legacy=True)
    asked = ask(model, replace(NEEDS, dialect=dialect), read_words("fire hydrant, dog|cat"))
    assert [span.tokens for span in asked.spans] == [(5,), (7, 9)]


@pytest.mark.parametrize("name", ["voc", "coco"])
def test_a_missing_comma_makes_one_word(name):
    reference = dialect_template(name, "pseudo-mask")
    assert dialect_template(name, "open-vocabulary") == reference.replace(
        "background, ground", "backgroundground"
    )
    intended = dialect_template(name, "open-vocabulary", "intended")
    assert intended == dialect_template(name, "pseudo-mask", "intended")
    assert intended.startswith(reference.removesuffix(", ") + ", railroad")


def test_many_classes_share_prompts(model):
    things = "car cat dog grass house sky sofa tree".split()  # noqa: SIM905
    names = [f"{colour} {thing}" for colour in ("red", "blue", "my") for thing in things]
    needs = ISeg(template=NEEDS.template).needs(model)
    asked = ask(model, needs, read_words(names))
    assert len(asked.prompts.prompts) > 1
    assert {span.name for span in asked.spans} == set(names)
