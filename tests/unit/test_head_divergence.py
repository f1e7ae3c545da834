"""How far heads are apart, against every pair of them written out."""

from itertools import combinations

import pytest
import torch

from diffuseg import ops
from diffuseg.attention import AttentionRecord, head_divergence, record
from diffuseg.attention.captured import Contents
from diffuseg.errors import InputError
from support.models import CROSS_DIM, TOKENS, sd15


def by_pairs(maps):
    """[b, h, n, m] to [b, n]: the mean over pairs of heads of half both divergences, in float64."""
    maps = maps.double()
    found = [
        ((p - q) * (p.log() - q.log())).sum(-1) / 2 for p, q in combinations(maps.unbind(1), 2)
    ]
    return torch.stack(found).mean(0)


@pytest.fixture(scope="module")
def held() -> AttentionRecord:
    latents = torch.randn(2, 4, 16, 24, generator=torch.Generator().manual_seed(0))
    unet = sd15()
    with torch.no_grad(), record(unet, kinds=("self",)) as held:
        for step in (300, 100):
            unet(latents, step, torch.zeros(2, TOKENS, CROSS_DIM))
    return held


@pytest.mark.parametrize("chunk", [None, 3])
@pytest.mark.parametrize("heads", [2, 5])
def test_every_query_is_the_mean_over_pairs(heads, chunk):
    generator = torch.Generator().manual_seed(heads)
    q = 4 * torch.randn(2, heads, 11, 6, generator=generator)
    k = torch.randn(2, heads, 17, 6, generator=generator)
    bias = torch.randn(2, 1, 17, generator=generator)
    for added in (None, bias):
        found = ops.head_divergence(q, k, scale=0.4, bias=added, chunk=chunk)
        expected = by_pairs(ops.head_maps(q, k, scale=0.4, bias=added))
        torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)


def test_heads_that_agree_are_no_distance_apart():
    q, k = (torch.randn(1, 1, 5, 4).expand(1, 3, 5, 4) for _ in range(2))
    assert ops.head_divergence(q, k, scale=1.0).abs().max() < 1e-5


def test_a_record_by_layer_by_grid_and_in_all(held):
    found = head_divergence(held, 100)
    assert list(found.layers) == [one.name for one in held.layers]
    for layer in held.layers:
        expected = float(by_pairs(held.head_maps(layer, 100)).mean())
        assert found.layers[layer.name] == pytest.approx(expected, rel=1e-3, abs=1e-6)
    for hw, value in found.grids.items():
        of = [found.layers[one.name] for one in held.layers if held.grid(one) == hw]
        assert value == pytest.approx(sum(of) / len(of))
    assert tuple(found.grids) == held.grids("self")
    assert found.mean == pytest.approx(sum(found.layers.values()) / len(found.layers))


def test_steps_are_averaged_unless_one_is_named(held):
    a, b, both = (head_divergence(held, step).mean for step in (300, 100, None))
    assert both == pytest.approx((a + b) / 2)
    assert a != b


def test_a_step_that_was_not_recorded(held):
    with pytest.raises(InputError, match="recorded timestep"):
        head_divergence(held, 7)


def test_nothing_to_compare():
    with pytest.raises(InputError, match="recorded timestep"):
        head_divergence(AttentionRecord(Contents()))


def test_one_head_has_none_to_be_compared_with():
    unet = sd15()
    with torch.no_grad(), record(unet, kinds=("self",), heads=(0,)) as held:
        unet(torch.randn(1, 4, 16, 16), 1, torch.zeros(1, TOKENS, CROSS_DIM))
    with pytest.raises(InputError, match="two or more"):
        head_divergence(held)
