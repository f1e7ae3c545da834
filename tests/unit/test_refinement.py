"""iSeg's reduced self-attention against its definition written out, and what must always hold."""

import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from diffuseg.methods.refinement import minsum, reduce_entropy, refine

N = 40
ENTS = [0.0, 0.002, 0.015, 0.1, 0.2, 2.0]


def attention_of(n=N, m=None, seed=0, sharpness=3.0):
    generator = torch.Generator().manual_seed(seed)
    return torch.softmax(sharpness * torch.randn(n, m or n, generator=generator), dim=-1)


def direct(attention, ent, clamp=False):
    """The published steps, in float64; rows without a link as they were."""
    a = attention.double()
    a = a / a.amax(0)
    a = torch.where(a > 0, a + ent * torch.log10(math.e * a), a)
    a = a.clamp(0, 1 if clamp else None)
    sums = a.sum(1, keepdim=True)
    return torch.where(sums > 0, a / sums, attention.double())


def direct_refine(maps, attention, iterations):
    x = maps.double()
    for number in range(iterations + 1):
        x = attention.double() @ x if number else x
        x = x - x.amin(0)
        x = x / x.sum(0)
    return x


# ---- reducing


@pytest.mark.parametrize("clamp", [False, True])
@pytest.mark.parametrize("ent", ENTS)
def test_reduced_attention_is_the_published_one(ent, clamp):
    attention = attention_of()
    got = reduce_entropy(attention, ent=ent, clamp=clamp)
    torch.testing.assert_close(got, direct(attention, ent, clamp).float(), atol=1e-6, rtol=1e-4)


@settings(max_examples=20, deadline=None)
@example(seed=0, sharpness=16.0, ent=1.5e-307)  # nothing in single precision
@given(seed=st.integers(0, 10**6), sharpness=st.floats(0.0, 20.0), ent=st.floats(0.0, 2.0))
def test_rows_sum_to_one_whatever_is_cut(seed, sharpness, ent):
    reduced = reduce_entropy(attention_of(seed=seed, sharpness=sharpness), ent=ent)
    assert reduced.isfinite().all()
    assert (reduced >= 0).all()
    torch.testing.assert_close(reduced.sum(1), torch.ones(N))


@pytest.mark.parametrize(
    ("ent", "cut"),
    [(0.002, 0.0039), (0.015, 0.0192), (0.02, 0.0238), (0.1, 0.0713), (0.2, 0.107)],
)
def test_links_below_the_cut_go(ent, cut):
    links = torch.eye(3)
    links[0, 1], links[0, 2] = 0.99 * cut, 1.03 * cut  # every key's maximum is 1
    assert (reduce_entropy(links, ent=ent)[0] > 0).tolist() == [True, False, True]


def test_a_query_without_a_link_keeps_its_row():
    attention = torch.tensor([[0.98, 0.01, 0.01], [0.01, 0.98, 0.01], [0.01, 0.01, 0.98]])
    attention = torch.cat([attention, torch.full((1, 3), 1 / 300)])
    reduced = reduce_entropy(attention, ent=0.1)
    assert torch.equal(reduced[3], attention[3])
    assert torch.equal(reduced[:3], torch.eye(3))


def test_a_key_nobody_attends_to_stays_so():
    attention = attention_of()
    attention[:, 5] = 0
    reduced = reduce_entropy(attention)
    assert reduced.isfinite().all()
    assert not reduced[:, 5].any()


def test_the_callers_attention_is_overwritten_on_request_only():
    attention = attention_of()
    before = attention.clone()
    reduced = reduce_entropy(attention)
    assert torch.equal(attention, before)
    assert reduce_entropy(attention, inplace=True) is attention
    assert torch.equal(attention, reduced)
    half = reduce_entropy(before.half())
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, reduced, atol=1e-3, rtol=1e-2)


def test_chunks_do_not_show():
    attention = attention_of(1200, 300)  # several chunks of rows, the last one smaller
    got = reduce_entropy(attention)
    torch.testing.assert_close(got, direct(attention, 0.015).float(), atol=1e-6, rtol=1e-4)


# ---- refining


@pytest.mark.parametrize("iterations", [0, 1, 10])
def test_refined_maps_are_the_published_ones(iterations):
    attention, maps = attention_of(), torch.rand(N, 3)
    got = refine(maps, attention, iterations=iterations)
    want = direct_refine(maps, attention, iterations).float()
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-4)


def test_no_iteration_returns_the_first_maps():
    maps = torch.rand(N, 3)
    assert torch.equal(refine(maps, attention_of(), iterations=0), minsum(maps))


def test_nothing_leaks_out_of_a_block():
    owner = torch.arange(N) * 4 // N
    attention = (owner[:, None] == owner) * torch.rand(N, N)
    attention = reduce_entropy(attention / attention.sum(1, keepdim=True))
    maps = torch.zeros(N, 1)
    maps[3] = 1
    found = refine(maps, attention, iterations=50)
    assert (found[owner > 0] == 0).all()
    assert found[owner == 0].sum() == pytest.approx(1)


def test_classes_do_not_touch_each_other():
    attention, maps = reduce_entropy(attention_of()), torch.rand(N, 4)
    found = refine(maps, attention)
    order = [2, 0, 3, 1]
    torch.testing.assert_close(refine(maps[:, order], attention), found[:, order])
    torch.testing.assert_close(refine(maps[:, :1], attention), found[:, :1])


def test_constant_maps_become_zeros():
    maps = torch.rand(N, 2)
    maps[:, 1] = 0.1
    found = refine(maps, attention_of())
    assert found.isfinite().all()
    assert not found[:, 1].any()
    assert found[:, 0].sum() > 0.99


def test_the_callers_maps_stay():
    maps = torch.rand(N, 2)
    before = maps.clone()
    refine(maps, attention_of(), iterations=3)
    minsum(maps)
    assert torch.equal(maps, before)
