"""Boundaries matched one to one, thinned, and the best of several scales: the F of BSDS500."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from diffuseg.errors import InputError
from diffuseg.eval.boundaries import (
    BoundaryCounts,
    count_boundaries,
    find_best_scales,
    match_boundaries,
    thin_boundary,
)
from diffuseg.eval.regions import best_regions, mean_regions, region_boundary, score_regions

MASKS = arrays(np.bool_, (6, 7), elements=st.booleans())
RADII = st.sampled_from([0.5, 1.0, 1.5, 2.0, 3.3, 20.0])
DIAGONAL = 2 * 2**0.5


def distances(drawn, truth):
    here, there = np.argwhere(drawn), np.argwhere(truth)
    return np.sqrt(((here[:, None] - there[None]) ** 2).sum(axis=-1))


def most_pairs(drawn, truth, within):
    """The number of pairs by augmenting paths, one pixel after the other."""
    near = distances(drawn, truth) <= within + 1e-9
    partner = {}

    def place(i, seen):
        for j in np.flatnonzero(near[i]):
            if j not in seen:
                seen.add(j)
                if j not in partner or place(partner[j], seen):
                    partner[j] = i
                    return True
        return False

    return sum(place(i, set()) for i in range(len(near)))


def least_distance(drawn, truth, within):
    """Of all assignments with as many pairs as can be, the smallest sum: on a full square table."""
    from scipy.optimize import linear_sum_assignment

    far = distances(drawn, truth)
    n, m = far.shape
    costs = np.full((n + m, n + m), 0.0)
    costs[:n, :m] = np.where(far <= within + 1e-9, far, 1e9)
    costs[:n, m:] = costs[n:, :m] = 1e4
    row, column = linear_sum_assignment(costs)
    pairs = (row < n) & (column < m)
    return int(pairs.sum()), float(costs[row[pairs], column[pairs]].sum())


@given(MASKS, MASKS, RADII)
@settings(max_examples=40, deadline=None)
def test_as_many_pairs_as_two_other_ways_find(drawn, truth, within):
    mine, theirs = match_boundaries(drawn, truth, within)
    assert not (mine & ~drawn).any()
    assert not (theirs & ~truth).any()
    pairs = int(mine.sum())
    assert pairs == theirs.sum() == most_pairs(drawn, truth, within)
    if drawn.any() and truth.any():
        expected, least = least_distance(drawn, truth, within)
        assert pairs == expected
        # Those that have partners can all have them at once, as near as can be.
        again, sum_of_these = least_distance(mine, theirs, within) if pairs else (0, 0.0)
        assert again == pairs
        assert sum_of_these == pytest.approx(least, abs=1e-6)


@given(MASKS, MASKS, RADII)
@settings(max_examples=20, deadline=None)
def test_sides_may_be_swapped_and_a_wider_tolerance_finds_no_less(drawn, truth, within):
    there = match_boundaries(drawn, truth, within)[0].sum()
    assert match_boundaries(truth, drawn, within)[0].sum() == there
    assert match_boundaries(drawn, truth, 2 * within)[0].sum() >= there
    same = match_boundaries(drawn, drawn, within)
    assert (same[0] == drawn).all()
    assert (same[1] == drawn).all()


@pytest.mark.parametrize(("within", "pairs"), [(2.8, 0), (DIAGONAL, 1), (2.9, 1)])
def test_the_tolerance_is_part_of_the_circle(within, pairs):
    one, other = np.zeros((5, 5), dtype=bool), np.zeros((5, 5), dtype=bool)
    one[1, 1] = other[3, 3] = True
    assert match_boundaries(one, other, within)[0].sum() == pairs


def test_one_line_does_not_stand_for_two():
    double, single = np.zeros((9, 9), dtype=bool), np.zeros((9, 9), dtype=bool)
    double[3] = double[6] = single[5] = True
    found = count_boundaries(double, [single], 3)
    assert found == BoundaryCounts(found=9, truth=9, right=9, drawn=18)
    assert (found.recall, found.precision, found.f) == (1.0, 0.5, pytest.approx(2 / 3))
    # Right is what any person drew; recall counts every person's.
    upper = np.zeros_like(single)
    upper[3] = True
    both = count_boundaries(double, [single, upper, np.zeros_like(single)], 1)
    assert both == BoundaryCounts(found=18, truth=18, right=18, drawn=18)


def labels(mask):
    from scipy.ndimage import label

    return label(mask, structure=np.ones((3, 3)))[1]


@given(arrays(np.bool_, (9, 10), elements=st.booleans()))
@settings(max_examples=30, deadline=None)
def test_thin_lines_stay_connected_and_stay_thin(mask):
    thin = thin_boundary(mask)
    assert not (thin & ~mask).any()
    assert labels(thin) == labels(mask)
    assert (thin_boundary(thin) == thin).all()


@pytest.mark.parametrize(
    ("drawn", "thin"),
    [
        (["###", "###", "###"], ["...", ".#.", "..."]),
        # What scikit-image's documentation shows of the same algorithm.
        (
            [".#.....", *["..###.."] * 5, "......."],
            [".#.....", "..#....", *["...#..."] * 3, ".......", "......."],
        ),
        (["......", ".####.", ".####.", "......"], ["......", "......", ".###..", "......"]),
        (["#...#", ".#.#.", "..#..", ".#.#."], ["#...#", ".#.#.", "..#..", ".#.#."]),
        (["#....", "##...", ".##..", "..##."], ["#....", "#....", ".#...", "..##."]),
    ],
)
def test_thinning_of_figures(drawn, thin):
    mask = np.array([[one == "#" for one in row] for row in drawn])
    assert ["".join(".#"[int(one)] for one in row) for row in thin_boundary(mask)] == thin


def test_scales_are_chosen_for_the_set_and_for_each_image():
    good = BoundaryCounts(found=8, truth=10, right=8, drawn=10)
    poor = BoundaryCounts(found=1, truth=10, right=1, drawn=10)
    fair = BoundaryCounts(found=5, truth=10, right=5, drawn=10)
    found = find_best_scales([[good, fair], [poor, fair]])
    assert (found.scale, found.ods, found.ois) == (1, fair + fair, good + fair)
    assert found.ois.f > found.ods.f
    one = find_best_scales([[good], [poor]])
    assert one.ods == one.ois == good + poor
    for wrong in ([], [[]], [[good], [good, poor]]):
        with pytest.raises(InputError, match="scales"):
            find_best_scales(wrong)


def test_figures_of_regions_name_f_once_for_one_scale():
    draw = np.random.default_rng(1)
    truths = [np.repeat(np.repeat(draw.integers(0, 3, (4, 5)), 6, 0), 6, 1) for _ in range(3)]
    coarse = [np.where(one == 2, 1, one) for one in truths]
    rows = [
        [score_regions(cut, [truth]) for cut in (whole, near, truth)]
        for whole, near, truth in zip(np.zeros_like(truths), coarse, truths, strict=True)
    ]
    figures, scale = best_regions(rows)
    assert (scale, figures["ods"], figures["ois"]) == (2, 1.0, 1.0)
    single, first = best_regions([row[1:2] for row in rows])
    assert first == 0
    assert single["ods"] == single["ois"] == single["f"] == mean_regions(r[1] for r in rows)["f"]
    assert 0 < single["f"] < 1
    nothing, _ = best_regions([row[:1] for row in rows])
    assert (nothing["f"], nothing["f_recall"], nothing["f_precision"]) == (0, 0, 0)


def test_stored_boundaries_take_the_place_of_thinned_ones():
    halves = np.repeat([[0, 0, 0, 1, 1, 1]], 6, axis=0)
    lines = thin_boundary(region_boundary(halves))
    usual = score_regions(halves, [halves])
    assert score_regions(halves, [halves], boundaries=[lines]) == usual
    assert score_regions(halves, [halves], boundaries=[~lines]).matched[1] == (~lines).sum()
    with pytest.raises(InputError, match="1 boundaries of 2 people"):
        score_regions(halves, [halves, halves], boundaries=[lines])
    with pytest.raises(InputError, match="size of the segmentation"):
        score_regions(halves, [halves], boundaries=[lines[:3]])
