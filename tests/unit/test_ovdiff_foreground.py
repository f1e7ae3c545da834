"""Attribution into foreground and background: what must always hold, and poor input."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import binary_erosion

from diffuseg.errors import InputError
from diffuseg.methods.ovdiff import OVDiff
from diffuseg.methods.ovdiff.attribution import AttributionSum, normalise_attribution, stretch
from diffuseg.methods.ovdiff.foreground import (
    choose_whole,
    gate_background,
    mean_attribution,
    otsu_thresholds,
    rank_pixels_released,
    split_foreground,
    split_ranks,
    with_complement,
)

SIZE = 32
RULES = [{}, {"mask_rule": "paper"}, {"fallback": "otsu"}, {"profile": "release"}]


def disc(centre=(16, 16), radius=8):
    rows, columns = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    return (rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 < radius**2


def glow(centre=(16, 16)):
    """Attribution that is highest at a place, of a quarter of the size."""
    rows, columns = torch.meshgrid(torch.arange(8), torch.arange(8), indexing="ij")
    apart = (4 * rows + 1.5 - centre[0]) ** 2 + (4 * columns + 1.5 - centre[1]) ** 2
    return torch.exp(-apart / 60)


NONE = torch.zeros(0, SIZE, SIZE, dtype=torch.bool)
EMPTY = torch.zeros(1, SIZE, SIZE, dtype=torch.bool)
WHOLE = ~EMPTY


def split(attribution, proposals, **choice):
    return split_foreground(attribution[None], [proposals], OVDiff(**choice), size=SIZE)


# ---- attribution


def test_sum_is_the_mean_of_enlarged_maps():
    generator = torch.Generator().manual_seed(0)
    sizes = [(8, 8), (4, 4), (2, 2), (8, 8)]
    maps = [torch.rand(2, 3, h * w, 2, generator=generator) for h, w in sizes]
    total, planes = AttributionSum(), []
    for one, hw in zip(maps, sizes, strict=True):
        total.add(one, hw)
        for head in one.unbind(1):
            grids = head.transpose(1, 2).unflatten(2, hw)
            planes.append(
                torch.nn.functional.interpolate(grids, size=(8, 8), mode="bicubic").clamp(min=0)
            )
    torch.testing.assert_close(total.mean(), torch.stack(planes).mean((0, 2)))


def test_columns_that_are_none_do_not_count():
    maps = torch.rand(2, 3, 16, 2)
    maps[0, ..., 1] = 0
    together, alone = AttributionSum(torch.tensor([1, 2])), AttributionSum()
    together.add(maps, (4, 4))
    alone.add(maps[:1, ..., :1], (4, 4))
    torch.testing.assert_close(together.mean()[:1], alone.mean())


def test_half_precision_is_summed_in_single():
    total = AttributionSum()
    for _ in range(5000):
        total.add(torch.full((1, 1, 4, 1), 0.5, dtype=torch.float16), (2, 2))
    assert total.mean().dtype == torch.float32
    torch.testing.assert_close(total.mean(), torch.full((1, 2, 2), 0.5))


def test_maps_must_fit():
    with pytest.raises(InputError, match="made of maps"):
        AttributionSum().mean()
    total = AttributionSum()
    total.add(torch.ones(2, 1, 16, 1), (4, 4))
    for maps, hw in [
        (torch.ones(1, 1, 16, 1), (4, 4)),
        (torch.ones(2, 1, 16, 1), (4, 5)),
        (torch.ones(2, 1, 16, 0), (4, 4)),
    ]:
        with pytest.raises(InputError, match="2 rows"):
            total.add(maps, hw)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), scale=st.floats(1e-3, 1e3), size=st.integers(2, 20))
def test_normalised_attribution_fills_the_unit_range(seed, scale, size):
    maps = scale * torch.rand(2, 4, 4, generator=torch.Generator().manual_seed(seed))
    found = normalise_attribution(maps, size)
    assert found.shape == (2, size, size)
    torch.testing.assert_close(found.amin((1, 2)), torch.zeros(2))
    torch.testing.assert_close(found.amax((1, 2)), torch.ones(2))


@pytest.mark.parametrize("value", [0.0, 3.0])
def test_constant_attribution_is_zero(value):
    assert not normalise_attribution(torch.full((1, 4, 4), value), 8).any()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_attribution_must_be_finite(value):
    maps = torch.rand(2, 8, 8)
    maps[1, 3, 3] = value
    with pytest.raises(InputError, match="attribution must be finite"):
        split_foreground(maps, [NONE, NONE], OVDiff(), size=SIZE)


# ---- proposals


@pytest.mark.parametrize("rule", RULES)
def test_the_proposal_where_the_word_is_seen_is_foreground(rule):
    here, there = disc((10, 10), 5), disc((25, 25), 5)
    found, other = split(glow((10, 10)), torch.stack([there, here]), **rule)
    assert torch.equal(found[0], here)
    assert other.any()
    assert not (found & other).any()


def test_background_of_the_paper_is_taken_whole():
    here, there = disc((10, 10), 5), disc((27, 27), 4)
    _, other = split(glow((10, 10)), torch.stack([there, here]), mask_rule="paper")
    assert torch.equal(other[0], there)  # further away than the rest of the picture


def test_overlap_belongs_to_the_stronger():
    small, large = disc((16, 16), 5), disc((16, 16), 10)
    found, _ = split(glow(), torch.stack([large, small]))
    assert torch.equal(found[0], small)


def test_order_of_proposals_does_not_matter():
    masks = torch.stack([disc((8, 8), 6), disc((20, 20), 9), disc((16, 10), 7)])
    for rule in RULES:
        first = split(glow((12, 12)), masks, **rule)
        for order in ([2, 0, 1], [1, 2, 0]):
            again = split(glow((12, 12)), masks[order], **rule)
            assert all(map(torch.equal, first, again))


def test_pictures_do_not_touch_each_other_with_proposals():
    maps = torch.stack([glow((10, 10)), glow((20, 24))])
    masks = [disc((10, 10), 6)[None], NONE]
    found, other = split_foreground(maps, masks, OVDiff(), size=SIZE)
    for number in range(2):
        alone = split(maps[number], masks[number])
        assert torch.equal(found[number], alone[0][0])
        assert torch.equal(other[number], alone[1][0])


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), count=st.integers(0, 4), rule=st.sampled_from(RULES[:3]))
def test_foreground_and_background_are_apart(seed, count, rule):
    generator = torch.Generator().manual_seed(seed)
    masks = torch.rand(count, SIZE, SIZE, generator=generator) < torch.rand(1, generator=generator)
    found, other = split(torch.rand(8, 8, generator=generator), masks, **rule)
    if rule.get("mask_rule") != "paper":  # its masks are whole, and may overlap
        assert not (found & other).any()
    assert found.dtype == other.dtype == torch.bool


def test_without_defects_the_ranks_are_those_of_the_products():
    generator = torch.Generator().manual_seed(1)
    for _ in range(20):
        masks = with_complement(torch.rand(3, SIZE, SIZE, generator=generator) < 0.4)
        weights = mean_attribution(torch.rand(SIZE, SIZE, generator=generator), masks)
        ranks = rank_pixels_released(masks, weights)
        found, other = split_ranks(masks, weights)
        assert torch.equal(found, ranks == 0)
        assert torch.equal(other, ranks == ranks.max())


# ---- poor input


def test_an_empty_proposal_is_left_out():
    masks = torch.cat([EMPTY, disc()[None]])
    expected = split(glow(), disc()[None])
    assert all(map(torch.equal, split(glow(), masks), expected))
    found, other = split(glow(), masks, profile="release")
    assert found.all()
    assert other.any()
    whole = split(glow(), masks, mask_rule="paper")
    assert all(map(torch.equal, whole, split(glow(), disc()[None], mask_rule="paper")))


@pytest.mark.parametrize("rule", RULES[:3])
def test_one_proposal_over_all_leaves_no_background(rule):
    found, other = split(glow(), WHOLE, **rule)
    assert found.all()
    assert not other.any()


def test_empty_proposals_alone_make_the_picture_one():
    found, other = split(glow(), EMPTY)
    assert found.all()
    assert not other.any()


@pytest.mark.parametrize("value", [0.0, 0.7])
@pytest.mark.parametrize(
    "masks", [NONE, disc()[None], WHOLE, EMPTY], ids=["none", "disc", "all", "empty"]
)
@pytest.mark.parametrize("rule", RULES[:3])
def test_constant_attribution_has_no_foreground(value, masks, rule):
    found, _ = split(torch.full((8, 8), value), masks, **rule)
    assert not found.any()


def test_pixels_without_attribution_go_last():
    masks = torch.tensor([[[True, True, False]], [[False, False, True]]])
    weights = torch.tensor([0.0, 0.5])
    found, other = split_ranks(masks, weights)
    assert found.tolist() == [[False, False, True]]
    assert other.tolist() == [[True, True, False]]
    assert rank_pixels_released(masks, weights).tolist() == [[0, 0, 0]]
    assert not choose_whole(masks, torch.zeros(2))[0].any()


@pytest.mark.parametrize(
    "proposals",
    [
        [torch.zeros(1, SIZE, SIZE + 1, dtype=torch.bool)],
        [torch.zeros(2, SIZE // 2, SIZE // 2, dtype=torch.bool)],
        [torch.zeros(0, 8, 8, dtype=torch.bool)],
        [NONE, NONE],
        [],
    ],
)
def test_proposals_must_fit(proposals):
    with pytest.raises(InputError, match="proposals of 32x32"):
        split_foreground(glow()[None], proposals, OVDiff(), size=SIZE)


# ---- thresholds


def test_without_proposals_fixed_thresholds_hold():
    shown = normalise_attribution(glow()[None], SIZE)
    found, other = split(glow(), NONE)
    assert torch.equal(found, shown > 0.5)
    assert torch.equal(other, shown < 0.2)
    none = split_foreground(glow()[None], [], OVDiff(proposals="none"), size=SIZE)
    assert torch.equal(found, none[0])


def test_otsu_is_of_all_pictures_together():
    maps = torch.stack([glow((8, 8)), glow((20, 20)) ** 3])
    low, high = otsu_thresholds(stretch(maps)) or (0, 0)
    chosen = OVDiff(proposals="none", fallback="otsu")
    found, other = split_foreground(maps, [], chosen, size=SIZE)
    shown = normalise_attribution(maps, SIZE)
    assert torch.equal(found, shown > high)
    assert torch.equal(other, shown < low)


def test_otsu_is_the_split_of_most_variance():
    generator = torch.Generator().manual_seed(2)
    parts = [centre + 0.05 * torch.randn(200, generator=generator) for centre in (0.15, 0.5, 0.85)]
    values = torch.cat(parts)
    low, high = otsu_thresholds(values[None, None]) or (0, 0)
    assert 0.25 < low < 0.4
    assert 0.6 < high < 0.75

    def between(a, b):
        kinds = [values[values <= a], values[(values > a) & (values <= b)], values[values > b]]
        return sum(len(one) * float(one.mean() - values.mean()) ** 2 for one in kinds if len(one))

    best = between(low, high)
    steps = np.linspace(0.02, 0.98, 25)
    assert all(between(a, b) < 1.02 * best for a in steps for b in steps if a < b)


def test_the_lowest_bin_is_no_kind_of_its_own():
    values = torch.tensor([0.0, 1 / 3, 2 / 3, 1.0]).repeat_interleave(torch.tensor([9, 3, 3, 9]))
    found = otsu_thresholds(values[None, None])
    assert found == pytest.approx((1.5 / 256, 170.5 / 256), abs=1e-6)  # scikit-image has the same


@pytest.mark.parametrize("values", [[0.0, 0.0], [0.0, 1.0]])
def test_otsu_needs_three_kinds(values):
    assert otsu_thresholds(torch.tensor([[values]])) is None


def test_otsu_of_constant_maps_falls_back_to_numbers():
    found, other = split(torch.zeros(8, 8), NONE, fallback="otsu")
    assert not found.any()
    assert other.all()


def test_background_is_eroded_but_not_by_the_border():
    generator = torch.Generator().manual_seed(3)
    mask = torch.rand(40, 30, generator=generator) < 0.9
    shown = torch.rand(40, 30, generator=generator) * 0.22
    kept = (mask & (shown < 0.2)).numpy()
    assert np.array_equal(gate_background(mask, shown), binary_erosion(kept, border_value=1))
    assert np.array_equal(gate_background(mask, shown, erode=False), kept)
    assert gate_background(torch.ones(5, 5, dtype=torch.bool), torch.zeros(5, 5)).all()
