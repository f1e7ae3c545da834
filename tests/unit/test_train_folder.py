"""Folders of trained models: swapped whole, cards kept, and where they cannot be written."""

import json

import pytest

from diffuseg.errors import InputError
from diffuseg.train.folder import CARD, check_output, model_folder, write_json
from diffuseg.train.segdiffusion.relations import spoken


def write(out, value, *, card=None):
    with model_folder(out) as folder:
        write_json(folder / "unet" / "config.json", {"value": value})
        if card:
            (folder / CARD).write_text(card)


def test_a_folder_is_replaced_whole_and_its_card_stays(tmp_path):
    out = tmp_path / "model"
    write(out, 1, card="first")
    (out / "old.bin").write_text("of before")
    write(out, 2)
    assert json.loads((out / "unet" / "config.json").read_text()) == {"value": 2}
    assert not (out / "old.bin").exists()
    assert (out / CARD).read_text() == "first"
    assert list(json.loads((out / "checksums.json").read_text())) == ["unet/config.json"]
    write(out, 3, card="second")
    assert (out / CARD).read_text() == "second"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_what_goes_wrong_leaves_the_folder_as_it_was(tmp_path):
    out = tmp_path / "model"
    write(out, 1)
    with pytest.raises(TypeError):
        write(out, object())  # no JSON
    assert json.loads((out / "unet" / "config.json").read_text()) == {"value": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_file_is_no_folder_to_write(tmp_path):
    (tmp_path / "note").write_text("mine")
    for out in (tmp_path / "note", tmp_path / "note" / "model"):
        with pytest.raises(InputError, match="makeable"):
            check_output(out)
    check_output(tmp_path / "deep" / "down" / "model")


@pytest.mark.parametrize(
    ("name", "said"), [("wall-other-merged", "wall"), ("sofa|couch", "sofa"), ("-other", "-other")]
)
def test_names_of_data_sets_are_said_as_one_would(name, said):
    assert spoken(name) == said
