"""What is damaged, cut short, stale or another's in a bank: said, and no other class is harmed."""

import json

import pytest

from diffuseg.errors import InputError
from diffuseg.ovdiff import Bank, Recipe
from diffuseg.ovdiff.recipe import digest_tensor
from support.banks import RECIPE, entry, files, grow_old, json_of, same, tensors_of


@pytest.fixture
def bank(tmp_path):
    return Bank.create(tmp_path / "bank", RECIPE)


def truncate(bank):
    file = tensors_of(bank, "dog")
    file.write_bytes(file.read_bytes()[:-50])


def flip(bank):
    file = tensors_of(bank, "dog")
    held = bytearray(file.read_bytes())
    held[-1] ^= 1
    file.write_bytes(bytes(held))


def empty(bank):
    tensors_of(bank, "dog").write_bytes(b"")


def lose_tensors(bank):
    tensors_of(bank, "dog").unlink()


def garble_json(bank):
    json_of(bank, "dog").write_text("{")


def shorten_json(bank):
    file = json_of(bank, "dog")
    held = json.loads(file.read_text())
    del held["prompt"]
    file.write_text(json.dumps(held))


def other_recipe(bank):
    file = json_of(bank, "dog")
    held = json.loads(file.read_text())
    file.write_text(json.dumps(held | {"recipe": "0" * 64}))


def wrong_shapes(bank):
    from safetensors.torch import load_file, save_file

    file, held = tensors_of(bank, "dog"), json.loads(json_of(bank, "dog").read_text())
    tensors = load_file(file)
    tensors["sd/positive/kinds"] = tensors["sd/positive/kinds"][:-1].clone()
    save_file(tensors, file)
    pictures = ("pictures", "picture_ends", "fg", "bg")
    kept = [tensors[name] for name in sorted(tensors) if name not in pictures]
    held["digests"]["prototypes"] = digest_tensor(*kept)
    json_of(bank, "dog").write_text(json.dumps(held))


@pytest.mark.parametrize(
    "harm",
    [truncate, flip, empty, lose_tensors, garble_json, shorten_json, other_recipe, wrong_shapes],
)
def test_a_damaged_class_says_so_and_harms_no_other(bank, harm, caplog):
    for name in ("cat", "dog"):
        bank.add(entry(name))
    harm(bank)
    before = {file: file.read_bytes() for file in files(bank)}
    with pytest.raises(InputError, match="the class 'dog' of the bank") as caught:
        bank.get("dog", pictures=True)
    assert "diffuseg bank remove" in caught.value.remedy
    assert "diffuseg bank add" in caught.value.remedy
    assert same(bank.get("cat", pictures=True), entry("cat"))
    assert len(bank.damaged()) == 1
    bank.tidy()
    assert before == {file: file.read_bytes() for file in files(bank)}
    bank.remove("dog")
    bank.add(entry("dog"))
    assert bank.damaged() == {}


def test_a_damaged_picture_is_no_matter_to_who_reads_prototypes(bank):
    bank.add(entry())
    from safetensors.torch import load_file, save_file

    file = tensors_of(bank, "dog")
    tensors = load_file(file)
    tensors["pictures"][40] ^= 1
    save_file(tensors, file)
    assert same(bank.get("dog"), entry())
    with pytest.raises(InputError, match="pictures in"):
        bank.get("dog", pictures=True)


def test_what_is_cut_short_counts_as_missing_and_can_be_added_again(bank):
    bank.add(entry())
    truncate(bank)
    assert bank.missing(["dog"]) == ("dog",)
    bank.add(entry())
    assert same(bank.get("dog"), entry())


def test_half_a_class_and_stale_files_are_as_if_absent(bank):
    bank.add(entry("cat"))
    bank.add(entry("dog"))
    json_of(bank, "dog").unlink()
    stale = bank.path / "classes" / ".diffuseg-0123.json"
    stale.write_text("{")
    assert bank.names == ("cat",)
    assert bank.missing(["dog"]) == ("dog",)
    with pytest.raises(InputError, match="only tensors are there"):
        bank.get("dog")
    bank.tidy()
    assert stale.exists()  # Somebody may be at it.
    grow_old(bank)
    bank.tidy()
    assert [file.name.partition("-")[0] for file in files(bank)] == ["cat", "cat"]
    assert same(bank.get("cat"), entry("cat"))


def test_a_bank_of_another_recipe_is_refused_with_what_differs(bank):
    other = Recipe(values=json.loads(json.dumps(RECIPE.values)))
    other.values["pictures"]["number"] = 8
    other.values["model"]["unet"] = "def"
    for attempt in (Bank.open, Bank.create):
        with pytest.raises(InputError) as caught:
            attempt(bank.path, other)
        assert "pictures.number is 2, not 8" in str(caught.value)
        assert 'model.unet is "abc", not "def"' in str(caught.value)
        assert "new folder" in caught.value.remedy


def test_who_reads_may_ask_for_less_and_who_builds_may_not(bank):
    less = Recipe(values={**RECIPE.values, "features": {"sd": {"timestep": 200}}})
    assert Bank.open(bank.path, less).recipe == RECIPE
    with pytest.raises(InputError, match="dino"):
        Bank.create(bank.path, less)
    more = Recipe(values={**RECIPE.values, "features": {"mae": {"layer": -1}}})
    with pytest.raises(InputError, match=r"features\.mae\.layer is left out"):
        Bank.open(bank.path, more)


def test_a_bank_that_is_none_or_is_broken_is_refused(tmp_path, bank):
    with pytest.raises(InputError, match="diffuseg bank build"):
        Bank.open(tmp_path)
    manifest = bank.path / "manifest.json"
    held = json.loads(manifest.read_text())
    for text in ("{", "[]", "{}", json.dumps(held | {"digest": "0"})):
        manifest.write_text(text)
        with pytest.raises(InputError, match="manifest of a bank must be as it was written"):
            Bank.open(bank.path)
    manifest.write_text(json.dumps(held | {"format": 99}))
    with pytest.raises(InputError, match="format 99"):
        Bank.open(bank.path)
    with pytest.raises(InputError, match="manifest"):
        Bank.open(manifest)
