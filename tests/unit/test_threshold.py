"""The threshold found from an image: where it must lie, and what it must not depend on."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffuseg.methods import merging
from diffuseg.methods.threshold import LEAST_TAU, automatic_tau

SIDE = 16


def planted(k, *, sharp, noise, seed=0):
    """Cells of k stripes that look at their own stripe, through noise; and their owners."""
    generator = torch.Generator().manual_seed(seed)
    owner = torch.arange(SIDE * SIDE) * k // (SIDE * SIDE)
    scores = sharp * (owner[:, None] == owner).float()
    scores += noise * torch.randn(scores.shape, generator=generator)
    return scores.softmax(-1)[None], owner


def by_definition(values):
    """The split of least variance within, every one tried, in the roots."""
    roots = values.clamp_min(0).double().pow(1 / 2).sort().values
    within = [
        float(roots[:at].var(correction=0) * at + roots[at:].var(correction=0) * (len(roots) - at))
        for at in range(1, len(roots))
    ]
    at = min(range(len(within)), key=within.__getitem__)
    return float((roots[at] + roots[at + 1]) / 2) ** 2


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), n=st.integers(2, 60))
def test_it_is_the_split_of_least_variance(seed, n):
    values = torch.rand(n, generator=torch.Generator().manual_seed(seed)) * 3 + 0.1
    assert automatic_tau(values) == pytest.approx(by_definition(values), rel=1e-6)


@given(scale=st.floats(0.2, 1000))
def test_it_scales_with_the_divergences(scale):
    values = torch.tensor([0.1, 0.12, 0.2, 0.15, 2.0, 2.5, 3.0])
    assert automatic_tau(values * scale) == pytest.approx(scale * automatic_tau(values), rel=1e-4)


@pytest.mark.parametrize(
    "values",
    [
        [],
        [3.0],
        [0.0] * 9,
        [-1e-6, 2e-6, 1e-6, 0.0],
        [2.0] * 9,
        [float("nan"), float("nan"), 0.3],
        [0.001, 0.0012, 0.004],
    ],
)
def test_without_two_kinds_of_pairs_only_equal_maps_are_near(values):
    assert automatic_tau(torch.tensor(values)) == LEAST_TAU


def test_lost_maps_do_not_count():
    values = torch.tensor([0.1, 0.2, 3.0, 4.0])
    assert automatic_tau(torch.cat([values, torch.full((3,), torch.nan)])) == automatic_tau(values)


@pytest.mark.parametrize("sharp", [1.5, 5.0])
@pytest.mark.parametrize("noise", [0.05, 0.25])
@pytest.mark.parametrize("k", [2, 3, 5, 8])
def test_planted_segments_come_back_whatever_the_scale(k, noise, sharp):
    # Divergences inside a segment go from 0.003 to 0.06, across from 0.3 to 5.
    fused, owner = planted(k, sharp=sharp, noise=noise)
    [found] = merging.merge(fused, torch.arange(0, SIDE * SIDE, 3), ["auto"] * 3)
    assert found.counts[-1] == k
    members = [owner[found.maps.argmax(0) == i].unique() for i in range(k)]
    assert sorted(int(one) for [one] in members) == list(range(k))
    assert found.taus == (found.taus[0],) * 3


def test_every_image_of_a_batch_has_its_own():
    anchors = torch.arange(0, SIDE * SIDE, 3)
    images = [planted(k, sharp=sharp, noise=0.1)[0] for k, sharp in ((2, 5.0), (6, 1.0))]
    together = merging.merge(torch.cat(images), anchors, ["auto", "auto", 0.01])
    for image, found in zip(images, together, strict=True):
        [alone] = merging.merge(image, anchors, ["auto", "auto", 0.01])
        assert (alone.taus, alone.counts) == (found.taus, found.counts)
        assert torch.allclose(alone.maps, found.maps, atol=1e-8)
        assert found.taus[2] == 0.01
    assert together[0].taus[0] != together[1].taus[0]


def test_one_anchor_compares_itself_with_all_cells():
    fused, owner = planted(2, sharp=5.0, noise=0.1)
    [found] = merging.merge(fused, torch.tensor([0]), ["auto"])
    assert torch.allclose(found.maps[0], fused[0, owner == 0].mean(0), atol=1e-7)


def test_constant_maps_become_one():
    n = SIDE * SIDE
    [found] = merging.merge(torch.full((1, n, n), 1 / n), torch.arange(0, n, 5), ["auto"] * 2)
    assert (found.counts[-1], found.taus) == (1, (LEAST_TAU,) * 2)


def test_maps_that_are_all_equally_far_stay_apart():
    [found] = merging.merge(torch.eye(9)[None], torch.arange(9), ["auto"] * 3)
    assert found.counts == (9, 9, 9)
