"""Words that count more: what `Needs.emphasis` does between a prompt and the U-Net."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import diffuseg as ds
from diffuseg.asking import ask, read_words
from diffuseg.batch import _embed, _rows_of
from diffuseg.errors import InputError
from diffuseg.methods import Needs
from support.folders import write_mini

NEEDS = Needs(timesteps=(100,), kinds=("cross",))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return ds.load(write_mini(tmp_path_factory.mktemp("models") / "tiny"), device="cpu")


@pytest.fixture(scope="module")
def picture():
    return np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)


def told(model, classes, **changes):
    """What the U-Net is told, and the tokens of every class."""
    needs = replace(NEEDS, **changes)
    asked = ask(model, needs, read_words(classes))
    return _embed(model, _rows_of(asked, needs), needs), asked.spans


def test_one_changes_no_bit(model, picture):
    plain = ds.capture(picture, model, NEEDS, "cat, dog")
    for on in ("classes", "start"):
        for rule in ("blend", "scale"):
            needs = replace(NEEDS, emphasis=1.0, emphasis_on=on, emphasis_rule=rule)
            record = ds.capture(picture, model, needs, "cat, dog")
            assert record.header == plain.header
            for layer in plain.layers:
                assert torch.equal(record.keys(layer), plain.keys(layer))


@pytest.mark.parametrize("prompt", ["joint", "per_class"])
def test_every_piece_of_every_class_word_moves_and_nothing_else(model, prompt):
    classes = ["fire hydr", ("cat", "dog")]
    plain, spans = told(model, classes, prompt=prompt)
    empty = model.embed("").vectors[0]
    for rule, origin in (("blend", empty), ("scale", torch.zeros_like(empty))):
        stressed, _ = told(model, classes, prompt=prompt, emphasis=1.5, emphasis_rule=rule)
        assert stressed.tokens == plain.tokens
        for row in range(len(plain)):
            at = sorted({token for span in spans if span.row == row for token in span.tokens})
            rest = [token for token in range(plain.vectors.shape[1]) if token not in at]
            expected = origin[at] + 1.5 * (plain.vectors[row, at] - origin[at])
            torch.testing.assert_close(stressed.vectors[row, at], expected)
            assert torch.equal(stressed.vectors[row, rest], plain.vectors[row, rest])
    assert len(spans[0].tokens) > 1


def test_the_blend_is_the_models_own_weighting(model):
    stressed, _ = told(model, "cat, dog", emphasis=1.21)
    own = model.embed("a photo of cat and dog", weights=[{"cat": 1.21, "dog": 1.21}])
    assert torch.equal(stressed.vectors, own.vectors)


def test_the_start_token_alone(model):
    plain, _ = told(model, "cat")
    stressed, _ = told(model, "cat", emphasis=1.6, emphasis_on="start", emphasis_rule="scale")
    assert torch.equal(stressed.vectors[:, 0], 1.6 * plain.vectors[:, 0])
    assert torch.equal(stressed.vectors[:, 1:], plain.vectors[:, 1:])
    # Without words too: the prompt of methods that name nothing.
    bare, _ = told(model, None, prompt="empty")
    bare_stressed, _ = told(
        model, None, prompt="empty", emphasis=1.6, emphasis_on="start", emphasis_rule="scale"
    )
    assert torch.equal(bare_stressed.vectors[:, 0], 1.6 * bare.vectors[:, 0])


def test_a_word_asked_for_in_one_image_is_not_stressed_in_another(model):
    needs = replace(NEEDS, emphasis=1.5)
    one = ask(model, needs, read_words("cat and dog, house"))
    two = ask(model, needs, read_words("cat, dog, house"))
    assert one.prompts.prompts == two.prompts.prompts
    text = _embed(model, [*_rows_of(one, needs), *_rows_of(two, needs)], needs)
    differ = (text.vectors[0] != text.vectors[1]).any(-1).nonzero().flatten().tolist()
    assert differ == sorted(set(one.spans[0].tokens) - {t for s in two.spans for t in s.tokens})


def test_the_record_says_so_and_its_keys_are_other_ones(model, picture):
    plain = ds.capture(picture, model, NEEDS, "cat")
    record = ds.capture(picture, model, replace(NEEDS, emphasis=1.21), "cat")
    origin = record.header.provenance
    assert (origin["emphasis"], origin["emphasis_on"]) == (1.21, "classes")
    assert origin["emphasis_rule"] == "blend"
    [span] = record.header.spans
    for layer in record.layers:
        moved = (record.keys(layer) != plain.keys(layer))[0].any(-1).any(0).nonzero().flatten()
        assert tuple(moved.tolist()) == span.tokens or layer != record.layers[0]


@pytest.mark.parametrize("value", [-0.5, float("nan"), float("inf")])
def test_what_is_no_weight_is_refused(value):
    with pytest.raises(InputError, match="emphasis must be a number of 0 or more"):
        Needs(timesteps=(1,), kinds=("cross",), emphasis=value)
