"""The table of things and stuff, as printed, corrected, overridden, and where it has no entry."""

import json
from importlib import resources

import pytest
import torch

from diffuseg.errors import InputError
from diffuseg.ovdiff import is_stuff, prompt_name
from diffuseg.ovdiff.things_stuff import read_table
from diffuseg.prompts import parse_classes
from diffuseg.world import CLASSES, STUFF


def test_the_table_is_the_papers():
    table = read_table()
    assert len(table.paper) == 171
    assert sum(sort == "stuff" for sort in table.paper.values()) == 25
    assert len(table.fixes) == 12
    held = json.loads(
        resources.files("diffuseg.ovdiff").joinpath("things_stuff.json").read_text("utf-8")
    )
    assert "2306.09316" in held["source"]
    assert not set(held["stuff"]) & set(held["things"])
    assert all(name in table.corrected for name in held["synonyms"].values())
    assert not set(held["synonyms"]) & set(table.corrected)


def test_the_worlds_stuff_is_stuff_and_its_things_are_things():
    sorts = dict(zip(CLASSES, is_stuff(CLASSES), strict=True))
    assert sorts == {name: name in STUFF for name in CLASSES}


def test_as_printed_sand_is_a_thing():
    assert is_stuff(["sand", "glass", "brick", "snow"]) == (True, False, True, True)
    assert is_stuff(["sand", "glass", "brick", "snow"], corrected=False) == (
        *(False, True, False, True),
    )


@pytest.mark.parametrize(
    "name",
    ["Grass", "WALLS", " rocks ", "lakes", "side_walk", "mountains", "Skies", "lawn", "streets"],
)
def test_case_plurals_and_synonyms_do_not_matter(name):
    assert is_stuff([name]) == (name != "side_walk",)


def test_things_in_plural_are_things():
    assert is_stuff(["buses", "bookshelves", "glasses", "people", "zebra"]) == (False,) * 5


def test_a_synonym_the_user_names_decides():
    assert is_stuff(parse_classes("meadow|grass, hound|dog")) == (True, False)


def test_the_user_has_the_first_word():
    names = ["grass", "river", "dog"]
    assert is_stuff(names, overrides={"Grass": "thing", "river": "stuff"}) == (False, True, False)
    assert is_stuff(names, overrides=lambda name: "stuff" if name == "dog" else None) == (
        *(True, False, True),
    )
    with pytest.raises(InputError, match="'river': 'liquid'"):
        is_stuff(names, overrides={"river": "liquid"})


def embed(names):
    """Two directions: what is like grass, and all else."""
    rows = [[1.0, 0.0] if name in ("grass", "meadow") else [0.0, 1.0] for name in names]
    return torch.tensor(rows)


def test_a_name_that_is_not_there_is_as_what_is_nearest():
    assert is_stuff(["meadow", "zebra"]) == (False, False)
    assert is_stuff(["meadow", "zebra", "sky"], embed=embed) == (True, False, True)


def test_a_text_tower_that_does_not_know_a_word_decides_nothing():
    def only_short(names):
        if any(len(name) > 20 for name in names):
            raise InputError("names must be short", got=names, remedy="shorten them")
        return embed(names)

    def none(names):
        raise InputError("no name can be known", got=names, remedy="give it up")

    assert is_stuff(["meadow", "a name of a great length"], embed=only_short) == (True, False)
    assert is_stuff(["meadow"], embed=none) == (False,)


def test_names_for_prompts():
    fixed = {"pottedplant": "potted plant", "aeroplane": "airplane", "TVmonitor": "monitor"}
    assert {name: prompt_name(name) for name in fixed} == fixed
    assert prompt_name("plant") == "plant"
    assert all(prompt_name(name) == name for name in CLASSES)
