"""iSeg without classes, and the factor on keys alone, on tiny random models."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import diffuseg as ds
from diffuseg.errors import InputError
from diffuseg.methods import DiffSeg, ISeg, ISegUnsupervised, Needs, find_method
from diffuseg.methods.iseg_unsupervised import at_cells
from support.folders import write_mini


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return ds.load(write_mini(tmp_path_factory.mktemp("models") / "tiny"), device="cpu")


@pytest.fixture(scope="module")
def picture():
    pixels = np.zeros((64, 64, 3), dtype=np.uint8)
    pixels[:, 32:] = (200, 40, 90)
    return pixels + np.random.default_rng(0).integers(0, 30, pixels.shape, dtype=np.uint8)


METHOD = ISegUnsupervised(tau=0.001, anchors=4, self_heads="all")


@pytest.fixture(scope="module")
def held(model, picture):
    return ds.capture(picture, model, METHOD.needs(model))


def test_it_needs_what_diffseg_needs(model):
    assert METHOD.needs(model) == DiffSeg(tau=0.001, anchors=4).needs(model)
    assert find_method("iseg-unsupervised") == ISegUnsupervised()


def test_segments_are_diffsegs_refined(held):
    start = DiffSeg(tau=0.001, anchors=4)(held)
    found = METHOD(held, scores=True)
    assert found.names == start.names
    assert found.labels.shape == start.labels.shape
    assert found.provenance.method == "iseg-unsupervised"
    assert found.provenance.parameters["tau"] == 0.001
    assert found.scores is not None
    assert np.array_equal(found.labels, found.scores.argmax(0))
    assert found.scores.max() <= 1


def test_without_iterations_the_cells_stay(held):
    start = DiffSeg(tau=0.001, anchors=4)(held).labels
    found = replace(METHOD, iterations=0)(held).labels
    grid = held.grids("self")[0]
    kept = [at_cells(one, grid).argmax(1) for one in (start, found)]
    assert (kept[0] == kept[1]).float().mean() > 0.9


def test_relabel(held):
    found = replace(METHOD, relabel=True)(held)
    sizes = np.bincount(found.labels.ravel())
    assert (np.diff(sizes) <= 0).all()
    assert sizes.min() > 0
    assert found.provenance.parameters["relabel"] is True


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        ({"ent": -1.0}, "ent must be 0 or more"),
        ({"iterations": -1}, "iterations must be 0 or more"),
        ({"self_heads": (-1,)}, "self_heads are numbers from 0"),
        ({"tau": 0.0}, "tau must be positive"),
    ],
)
def test_settings_that_cannot_be(settings, part):
    with pytest.raises(InputError, match=part):
        ISegUnsupervised(**settings)


def test_heads_a_model_has_not(held):
    with pytest.raises(InputError, match="self_heads must be there"):
        replace(METHOD, self_heads=(99,))(held)


def test_cells():
    labels = np.repeat(np.arange(3), 4)[None].repeat(6, axis=0)  # [6, 12]
    assert at_cells(labels, (2, 3)).argmax(1).tolist() == [0, 1, 2] * 2


# ---- gamma on the keys alone


def test_keys_alone_are_scaled(model, picture):
    needs = Needs(timesteps=(100,), kinds=("cross",))
    plain = ds.capture(picture, model, needs, "cat, dog")
    key = ds.capture(picture, model, replace(needs, emphasis=1.6, emphasis_rule="key"), "cat, dog")
    both = ds.capture(
        picture, model, replace(needs, emphasis=1.6, emphasis_rule="scale"), "cat, dog"
    )
    tokens = [token for span in plain.header.spans for token in span.tokens]
    weights = torch.ones(plain.keys(plain.layers[0]).shape[2])
    weights[tokens] = 1.6
    for layer in plain.layers:
        torch.testing.assert_close(key.keys(layer), plain.keys(layer) * weights[:, None])
        torch.testing.assert_close(key.keys(layer), both.keys(layer))
    first, last = plain.layers[0], plain.layers[-1]
    assert torch.equal(key.queries(first), both.queries(first))
    assert not torch.allclose(key.queries(last), both.queries(last))
    assert not torch.allclose(key.queries(last), plain.queries(last))
    assert key.header.provenance["emphasis_rule"] == "key"


def test_the_paper_s_formula_runs_with_few_layers(model, picture):
    # Layers behind the last one read never run, and are not waited for.
    levels = ISeg(scale="key", background="none", levels=(4,), template="a photo of {}")
    result = ds.segment(picture, "cat, dog", model=model, method=levels)
    assert result.names == ("cat", "dog")
    method = replace(levels, scale="embedding")
    assert ds.segment(picture, "cat, dog", model=model, method=method).names == ("cat", "dog")
