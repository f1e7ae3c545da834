"""iSeg's prototypes: against every pair written out, and on clusters that are plain to see."""

import pytest
import torch

from diffuseg.methods.prototypes import (
    cluster_pixels,
    half_distances,
    means_of,
    prototype_grid,
)

HW = (12, 16)


def planted(blocks=4, noise=0.05, tokens=9):
    """Pixels of vertical stripes, each attending to the text in a way of its own."""
    generator = torch.Generator().manual_seed(0)
    owner = torch.arange(HW[1]).mul(blocks).div(HW[1], rounding_mode="floor").expand(HW).flatten()
    ways = torch.softmax(2 * torch.randn(blocks, tokens, generator=generator), dim=-1)
    shaken = ways[owner] * (1 + noise * torch.rand(len(owner), tokens, generator=generator))
    return shaken / len(owner), owner


def direct(pixels, count, rounds):
    """Every pair by the definition, in float64, as a loop."""
    known = pixels.double()
    known = known.where(known != 0, 1e-6)
    prototypes = known[prototype_grid(HW, count)]
    labels = torch.zeros(0)
    for _ in range(rounds):
        p, q = prototypes[:, None] + 1e-5, known[None] + 1e-5
        labels = ((p - q) * (p / q).log()).sum(-1).argmin(0).unique(return_inverse=True)[1]
        groups = [known[labels == one].mean(0) for one in range(int(labels.max()) + 1)]
        prototypes = torch.stack(groups)
    return labels


@pytest.mark.parametrize(("count", "rounds"), [(4, 1), (9, 5), (32, 20)])
def test_clusters_are_those_of_the_definition(count, rounds):
    pixels, _ = planted(noise=1.0)
    got = cluster_pixels(pixels, HW, count=count, rounds=rounds)
    assert torch.equal(got, direct(pixels, count, rounds))


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_what_is_plain_is_found(precision):
    pixels, owner = planted()
    labels = cluster_pixels(256 * pixels, HW, count=16, precision=precision)
    assert labels.unique().tolist() == list(range(int(labels.max()) + 1))
    for one in labels.unique():
        assert len(owner[labels == one].unique()) == 1


def test_the_grid_of_prototypes():
    grid = prototype_grid((64, 64), 32)
    assert len(grid) == 36
    assert grid[:7].tolist() == [0, 11, 22, 33, 44, 55, 11 * 64]
    assert len(prototype_grid((2, 3), 1000)) == 6  # no more than there are pixels
    assert prototype_grid((5, 4), 1).tolist() == [0]


def test_means():
    pixels = torch.rand(10, 3)
    labels = torch.tensor([0, 1] * 5)
    torch.testing.assert_close(means_of(pixels, labels)[1], pixels[1::2].mean(0))


def test_zeros_are_no_trouble():
    pixels, _ = planted()
    pixels[:, 2] = 0
    pixels[7] = 0
    labels = cluster_pixels(pixels, HW, count=16)
    assert len(labels) == len(pixels)


def test_equal_maps_are_no_distance_apart():
    pixels, _ = planted()
    assert not half_distances(pixels[:3], pixels[:3]).diagonal().any()


def test_the_callers_pixels_stay():
    pixels, _ = planted()
    before = pixels.clone()
    cluster_pixels(pixels, HW)
    assert torch.equal(pixels, before)
