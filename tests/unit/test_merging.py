"""The merging of attention maps against its definition written out, and what must always hold."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffuseg.errors import InputError
from diffuseg.methods import merging

HW = (6, 8)
N = HW[0] * HW[1]


def random_maps(*shape, seed=0, sharpness=2.0):
    generator = torch.Generator().manual_seed(seed)
    return torch.softmax(sharpness * torch.randn(*shape, generator=generator), dim=-1)


def planted(blocks=3, batch=1, seed=0):
    """Maps of cells that fall in so many blocks, alike inside and unlike across."""
    owner = torch.arange(N) * blocks // N
    noise = torch.rand(batch, N, N, generator=torch.Generator().manual_seed(seed))
    maps = (owner[:, None] == owner).float() + 0.01 + 0.01 * noise
    return maps / maps.sum(-1, keepdim=True), owner


def direct(p, q):
    """Every pair by the definition, in float64."""
    p, q = p.double(), q.double()
    kl = (p[:, None] * (p[:, None].log() - q[None].log())).sum(-1)
    back = (q[None] * (q[None].log() - p[:, None].log())).sum(-1)
    return (kl + back) / 2


def direct_merge(fused, anchors, taus, reuse=True):
    """The algorithm as a loop over anchors, as it is published."""
    near = direct(fused[anchors], fused) < taus[0]
    maps = [fused[row].mean(0) for row in near]
    counts = [len(maps)]
    for tau in taus[1:]:
        apart = direct(torch.stack(maps), torch.stack(maps))
        used, found = set(), []
        for i in range(len(maps)):
            if i in used:
                continue
            close = {v for v in range(len(maps)) if apart[i, v] < tau and (reuse or v not in used)}
            used |= close
            found.append(torch.stack([maps[v] for v in sorted(close)]).mean(0))
        maps = found
        counts.append(len(maps))
    return torch.stack(maps), tuple(counts)


# ---- distances


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), sharpness=st.floats(0.0, 6.0))
def test_distances_are_the_definition(seed, sharpness):
    p = random_maps(5, 40, seed=seed, sharpness=sharpness)
    q = random_maps(9, 40, seed=seed + 1, sharpness=sharpness)
    assert torch.allclose(merging.distances(p, q).double(), direct(p, q), rtol=1e-5, atol=1e-5)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_distances_are_symmetric_not_negative_and_zero_for_equals(seed):
    p, q = random_maps(4, 30, seed=seed), random_maps(6, 30, seed=seed + 1)
    apart = merging.distances(p, q)
    assert torch.allclose(apart, merging.distances(q, p).T, atol=1e-5)
    assert apart.min() > -1e-5
    assert merging.distances(p, p).diagonal().abs().max() < 1e-5


def test_zeros_are_far_not_undefined():
    p = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    apart = merging.distances(p, p)
    assert apart.isfinite().all()
    assert apart[0, 1] > 50


@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_chunks_change_nothing(chunk):
    fused, _ = planted(batch=2)
    anchors = torch.arange(0, N, 5)
    expected = merging.anchor_distances(fused, anchors)
    found = merging.anchor_distances(fused, anchors, chunk=chunk)
    assert torch.allclose(found, expected, atol=2e-6)
    whole, parts = (merging.merge(fused, anchors, [0.5] * 3, chunk=c)[1] for c in (None, chunk))
    assert whole.counts == parts.counts
    assert torch.equal(whole.maps, parts.maps)


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_products_stay_exact_and_the_users_precision_comes_back(precision):
    p = random_maps(8, 200)
    expected = merging.distances(p, p)
    torch.set_float32_matmul_precision(precision)
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(merging.distances(p, p), expected)
        assert torch.get_float32_matmul_precision() == precision
    finally:
        torch.set_float32_matmul_precision("highest")


# ---- fusing


def test_fused_maps_sum_to_one_and_are_tiled_not_blended():
    grids = [(6, 8), (3, 4)]
    parts = [random_maps(2, h * w, h * w, seed=h) for h, w in grids]
    fused = merging.aggregate(parts, grids)
    assert torch.allclose(fused.sum(-1), torch.ones(2, N), atol=1e-6)
    coarse = merging.aggregate(parts, grids, (0.0, 1.0)).view(2, 3, 2, 4, 2, N)
    assert torch.equal(coarse, coarse[:, :, :1, :, :1].expand_as(coarse))
    up = torch.nn.functional.interpolate(parts[1].view(2, 12, 3, 4), size=HW, mode="bilinear")
    want = (up / up.sum((-2, -1), keepdim=True)).view(2, 3, 4, N)
    assert torch.allclose(coarse[:, :, 0, :, 0], want, atol=1e-7)


@pytest.mark.parametrize("chunk", [1, 8, 20, 1000])
def test_fusing_in_chunks_and_in_batches(chunk):
    grids = [(6, 8), (3, 4)]
    parts = [random_maps(3, h * w, h * w, seed=h) for h, w in grids]
    fused = merging.aggregate(iter(parts), grids, chunk=chunk)
    assert torch.allclose(fused, merging.aggregate(parts, grids), atol=1e-8)
    for row in range(3):
        alone = merging.aggregate([one[row : row + 1] for one in parts], grids)
        assert torch.allclose(fused[row], alone[0], atol=1e-8)


def test_given_weights_are_not_normalised():
    parts = [random_maps(1, 16, 16), random_maps(1, 4, 4)]
    fused = merging.aggregate(parts, [(4, 4), (2, 2)], (1.0, 0.3))
    assert torch.allclose(fused.sum(-1), torch.full((1, 16), 1.3), atol=1e-6)


def test_weights_of_resolutions():
    grids = [(64, 64), (32, 32), (16, 16), (8, 8)]
    assert merging.resolution_weights(grids) == pytest.approx([8 / 15, 4 / 15, 2 / 15, 1 / 15])
    paper = merging.resolution_weights(grids, "per_map", layers=[5, 5, 5, 1])
    assert paper[3] == pytest.approx(8 / (5 * (64 + 32 + 16) + 8))
    assert merging.resolution_weights(grids, "equal") == (0.25,) * 4


def test_grids_that_do_not_fit():
    parts = [random_maps(1, 16, 16), random_maps(1, 9, 9)]
    with pytest.raises(InputError, match="divide the finest"):
        merging.aggregate(parts, [(4, 4), (3, 3)])
    with pytest.raises(InputError, match="one weight a resolution"):
        merging.aggregate(parts[:1], [(4, 4)], (0.5, 0.5))
    with pytest.raises(InputError, match="maps to fuse"):
        merging.aggregate([], [])


# ---- anchors


@given(side=st.integers(1, 128), n=st.integers(1, 64))
def test_even_anchors_lie_apart_and_reach_both_ends(side, n):
    points = merging.anchor_points(side, n, "even")
    assert len(set(points)) == len(points) == min(n, side)
    assert min(points) >= 0
    assert max(points) < side
    if n > 1:
        assert abs(min(points) - (side - 1 - max(points))) <= 1


def test_auto_is_the_reference_on_its_own_grid_only():
    assert merging.anchor_grid((64, 64), 16)[:, 1].max() == 61
    assert np.array_equal(
        merging.anchor_grid((32, 32), 8), merging.anchor_grid((32, 32), 8, "even")
    )


@pytest.mark.parametrize(("n", "grid"), [(0, "auto"), (9, "reference")])
def test_anchors_that_cannot_be(n, grid):
    with pytest.raises(InputError, match="at least one anchor"):
        merging.anchor_grid((8, 64), n, grid)


# ---- merging


@pytest.mark.parametrize("reuse", [True, False])
@pytest.mark.parametrize("taus", [(0.3, 0.3, 0.3), (0.5, 0.2), (0.4,)])
@pytest.mark.parametrize("seed", range(4))
def test_merging_is_the_published_loop(seed, taus, reuse):
    centres = random_maps(5, N, seed=seed, sharpness=1.0)
    mix = random_maps(N, 5, seed=seed + 9, sharpness=3.0)
    fused = mix @ centres
    anchors = torch.arange(0, N, 3)
    maps, counts = direct_merge(fused, anchors, taus, reuse)
    [found] = merging.merge(fused[None], anchors, taus, reuse=reuse)
    assert found.counts == counts
    assert torch.allclose(found.maps, maps, atol=1e-7)


@pytest.mark.parametrize("blocks", [1, 2, 3, 6])
def test_planted_blocks_come_back(blocks):
    fused, owner = planted(blocks)
    [found] = merging.merge(fused, torch.arange(N), [1.0] * 3)
    assert found.counts == (N, blocks, blocks)
    assert torch.equal(found.maps.argmax(0), owner)


def test_thresholds_at_both_ends():
    fused, _ = planted()
    anchors = torch.arange(0, N, 7)
    [all_one] = merging.merge(fused, anchors, [torch.inf] * 2)
    assert all_one.counts == (7, 1)
    assert torch.allclose(all_one.maps[0], fused[0].mean(0), atol=1e-7)
    [apart] = merging.merge(random_maps(1, N, N), anchors, [1e-30] * 3)
    assert apart.counts == (7, 7, 7)
    assert torch.equal(apart.maps, random_maps(1, N, N)[0, anchors])


def test_a_batch_gives_what_its_images_give_alone():
    fused = torch.cat([planted(blocks)[0] for blocks in (2, 3, 6)])
    anchors = torch.arange(0, N, 2)
    together = merging.merge(fused, anchors, [1.0] * 3)
    for row, found in enumerate(together):
        [alone] = merging.merge(fused[row : row + 1], anchors, [1.0] * 3)
        assert found.counts == alone.counts
        assert torch.allclose(found.maps, alone.maps, atol=1e-8)


def test_where_groups_do_not_overlap_the_order_of_anchors_changes_only_numbers():
    fused, _ = planted(4)
    shuffled = torch.randperm(N, generator=torch.Generator().manual_seed(1))
    [straight] = merging.merge(fused, torch.arange(N), [1.0] * 3)
    [other] = merging.merge(fused, shuffled, [1.0] * 3)
    assert straight.counts == other.counts
    match = merging.distances(straight.maps, other.maps).argmin(1)
    assert sorted(match.tolist()) == list(range(4))
    assert torch.allclose(straight.maps, other.maps[match], atol=1e-7)


def test_half_precision_loses_maps_with_small_entries():
    fused = random_maps(1, N, N)
    fused[0, 3, 5] = 1e-9
    anchors = torch.tensor([3, 10])
    assert merging.anchor_distances(fused, anchors).isfinite().all()
    half = merging.anchor_distances(fused, anchors, precision="float16")
    assert half[0, 0].isnan().all()
    assert half[0, 1].isnan().sum() == 1
    [found] = merging.merge(fused, anchors, [1.0, 1.0], precision="float16")
    assert found.counts == (2, 1)
    [found] = merging.merge(fused, anchors, [1.0], precision="float16")
    assert found.counts == (2,)
    assert len(found.maps) == 1


# ---- refining


@pytest.mark.parametrize("how", ["kmeans", "kl"])
def test_refining_planted_blocks_finds_them(how):
    fused, owner = planted(3)
    index, maps = merging.refine_maps(fused[0], fused[0, [0, N // 2, N - 1]], how)
    assert torch.equal(index, owner)
    means = torch.stack([fused[0, owner == i].mean(0) for i in range(3)])
    assert torch.allclose(maps, means, atol=1e-7)


@pytest.mark.parametrize("how", ["kmeans", "kl"])
def test_refining_an_image_of_one_colour_keeps_the_proposals(how):
    fused = torch.full((N, N), 1 / N)
    start = random_maps(2, N)
    index, maps = merging.refine_maps(fused, start, how)
    assert len(index.unique()) == 1
    assert maps.isfinite().all()
    assert maps.shape == (2, N)
