"""MaskCut: scenes whose cuts are known, the plain eigenproblem, and poor input."""

import numpy as np
import pytest
import torch
from scipy.linalg import eigh

from diffuseg.errors import InputError
from diffuseg.methods.ovdiff.maskcut import affinity, cut_cells, mask_cut, second_vector

D = 16


def scene(boxes, hw=(20, 24), noise=0.0, seed=0):
    """Features with one direction a box, and one for what is around them."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.zeros(hw, dtype=torch.long)
    for number, (y0, x0, y1, x1) in enumerate(boxes):
        labels[y0:y1, x0:x1] = number + 1
    directions = torch.linalg.qr(torch.randn(D, D, generator=generator))[0]
    return directions[labels] + noise * torch.randn(*hw, D, generator=generator), labels


TWO = [(3, 3, 10, 9), (9, 14, 17, 21)]


@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_objects_are_found_one_after_another(noise):
    features, labels = scene(TWO, noise=noise)
    masks = cut_cells(features, threshold=0.15, number=3)
    held = {tuple(one.flatten().tolist()) for one in masks}
    assert all(tuple((labels == number).flatten().tolist()) in held for number in (1, 2))
    assert (masks.sum(0) <= 1).all()


def test_masks_are_enlarged_and_none_is_empty():
    features, labels = scene(TWO[:1])
    masks = mask_cut(features, size=(40, 48))
    assert masks.shape[1:] == (40, 48)
    assert masks.flatten(1).any(1).all()
    assert torch.equal(masks[0][::2, ::2], labels == 1)


@pytest.mark.parametrize("noise", [0.1, 0.3, 0.6])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_lanczos_gives_the_partition_of_the_plain_problem(noise, seed):
    features, _ = scene(TWO, noise=noise, seed=seed)
    weights = affinity(features, 0.15)
    degrees = np.diag(weights.sum(1))
    plain = eigh(degrees - weights, degrees, subset_by_index=[1, 1])[1][:, 0]
    found = second_vector(weights)
    cosine = found @ plain / np.linalg.norm(found) / np.linalg.norm(plain)
    assert abs(cosine) == pytest.approx(1, abs=1e-9)
    found *= np.sign(cosine)
    assert np.array_equal(found > found.mean(), plain > plain.mean())


def test_the_same_masks_every_time_and_at_any_scale():
    features, _ = scene(TWO, noise=0.4)
    first = cut_cells(features, threshold=0.15, number=3)
    np.random.default_rng().standard_normal(3)
    assert torch.equal(first, cut_cells(features, threshold=0.15, number=3))
    assert torch.equal(first, cut_cells(8 * features, threshold=0.15, number=3))


def test_small_grids_are_solved_directly():
    features, labels = scene([(1, 1, 3, 3)], hw=(5, 5))
    masks = mask_cut(features, number=1, size=(5, 5))
    assert torch.equal(masks[0], labels == 1)


@pytest.mark.parametrize("hw", [(1, 1), (1, 2), (4, 4), (20, 20)])
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_features_all_alike_have_no_mask(hw, value):
    features = torch.full((*hw, D), value)
    assert mask_cut(features, size=(32, 48)).shape == (0, 32, 48)
    assert not cut_cells(features, threshold=0.15, number=2).any()


def test_an_object_too_small_is_none_after_the_first():
    features, _ = scene([TWO[0], (15, 20, 17, 22)])  # 4 of 480 cells
    masks = cut_cells(features, threshold=0.15, number=2)
    sizes = masks.flatten(1).sum(1).tolist()
    assert 0 not in sizes[:1]
    assert all(size == 0 or size > 4.8 for size in sizes[1:])


def test_poor_input_is_refused():
    features, _ = scene(TWO)
    with pytest.raises(InputError, match="number=0"):
        mask_cut(features, number=0, size=(8, 8))
    features[2, 3, 4] = float("nan")
    with pytest.raises(InputError, match="NaN"):
        mask_cut(features, size=(8, 8))
