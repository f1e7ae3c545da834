"""Labels and backgrounds from planes of scores, and planes from coarse maps."""

import numpy as np
import pytest
import torch

from diffuseg.methods.labelling import enlarged, label_planes, stretch
from diffuseg.methods.refinement import reduce_entropy, refine


def labels_of(*planes, **options):
    return label_planes((torch.tensor([one]) for one in planes), **options)[0][0].tolist()


def test_the_square_of_the_rest_is_a_cut_at_0_382():
    golden = (3 - 5**0.5) / 2
    assert labels_of([golden - 1e-4, golden + 1e-4, 1.0, 0.0]) == [0, 1, 1, 0]


def test_ties():
    assert labels_of([0.5, 0.9], [0.5, 0.8], background="none") == [0, 0]
    assert labels_of([0.5], background="threshold", threshold=0.5) == [1]
    # Nothing at all is background even if nothing is asked for.
    assert labels_of([0.0, 0.1], background="threshold", threshold=0.0) == [0, 1]


def test_scores_are_kept_on_request():
    planes = torch.rand(3, 4, 5)
    for background, number in (("square", 4), ("threshold", 4), ("none", 3)):
        labels, scores = label_planes(iter(planes), background=background, keep=True)
        assert scores is not None
        assert scores.shape == (number, 4, 5)
        assert np.array_equal(scores[number - 3 :], planes.numpy())
        assert np.array_equal(labels, label_planes(iter(planes), background=background)[0])
        if background != "threshold":
            assert np.array_equal(labels, scores.argmax(0))


def test_planes_are_stretched_at_both_sizes():
    maps = torch.rand(3, 4, 6)
    planes = list(enlarged(maps, (16, 24), (10, 20)))
    assert all(plane.shape == (10, 20) for plane in planes)
    for plane in planes:
        assert plane.min() == 0
        assert plane.max() == pytest.approx(1, abs=1e-5)
    [raw] = enlarged(maps[:1], (4, 6), (4, 6), minmax=False)
    assert torch.equal(raw, maps[0])


def test_maps_of_the_caller_stay():
    maps = torch.rand(2, 3, 3)
    before = maps.clone()
    list(enlarged(maps, (3, 3), (3, 3)))
    stretch(maps[0])
    assert torch.equal(maps, before)


def test_regions_that_are_known_come_out():
    """Attention inside known regions, noisy words: what iSeg is made for."""
    generator = torch.Generator().manual_seed(0)
    side = 24
    truth = torch.zeros(side, side, dtype=torch.int64)
    truth[3:14, 4:12] = 1
    truth[12:22, 14:23] = 2
    owner = truth.flatten()
    n = side * side
    links = (owner[:, None] == owner) * 1.0 + 0.03 * torch.rand(n, n, generator=generator)
    attention = reduce_entropy(links / links.sum(1, keepdim=True), ent=0.1)
    words = torch.stack([(owner == one) * 0.4 for one in (1, 2)], dim=1)
    words = words + torch.rand(n, 2, generator=generator)
    maps = refine(words, attention, iterations=10)
    planes = enlarged(maps.T.unflatten(1, (side, side)), (side, side), (side, side))
    labels, _ = label_planes(planes)
    for one in range(3):
        both = ((labels == one) & (truth.numpy() == one)).sum()
        either = ((labels == one) | (truth.numpy() == one)).sum()
        assert both / either > 0.9
