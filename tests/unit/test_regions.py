"""Covering, Rand index, information and boundaries of regions without classes."""

import json
import os
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from diffuseg.errors import InputError
from diffuseg.eval.region_sets import open_regions
from diffuseg.eval.regions import (
    RegionScores,
    mean_regions,
    region_boundary,
    score_regions,
    variation_of_information,
)

SHARED = Path(__file__).resolve().parents[2] / ".." / "shared"
BSDS = Path(os.environ.get("DIFFUSEG_BSDS500", SHARED / "bsds500"))
MAPS = arrays(np.int64, (5, 6), elements=st.integers(-1, 3))


def slow_rand(a, b):
    pairs = list(combinations(range(a.size), 2))
    a, b = a.ravel(), b.ravel()
    return sum((a[i] == a[j]) == (b[i] == b[j]) for i, j in pairs) / len(pairs)


def slow_covering(truth, prediction):
    total = 0.0
    for i in np.unique(truth):
        ious = [
            ((truth == i) & (prediction == j)).sum() / ((truth == i) | (prediction == j)).sum()
            for j in np.unique(prediction)
        ]
        total += (truth == i).sum() * max(ious)
    return total / truth.size


@given(MAPS, MAPS)
@settings(max_examples=40, deadline=None)
def test_figures_are_those_of_their_definitions(truth, prediction):
    found = score_regions(prediction, [truth])
    assert found.rand[0] == pytest.approx(slow_rand(truth, prediction), abs=1e-12)
    assert found.covering[0] == pytest.approx(slow_covering(truth, prediction), abs=1e-12)
    back = score_regions(truth, [prediction])
    assert found.rand == back.rand
    assert found.voi[0] == pytest.approx(back.voi[0], abs=1e-9)
    assert found.boundary_found == back.boundary_right


@given(MAPS)
@settings(max_examples=20, deadline=None)
def test_numbers_of_regions_mean_nothing(truth):
    same = score_regions(50 - 7 * truth, [truth, truth])
    assert same.covering == pytest.approx((1, 1), abs=1e-12)
    assert same.rand == (1.0, 1.0)
    assert same.voi == pytest.approx((0, 0), abs=1e-12)
    assert same.boundary_found == same.boundary_truth == (same.boundary_drawn,) * 2


def test_boundaries_are_counted_in_whole_pixels():
    truth = np.zeros((10, 10), dtype=int)
    truth[:, 5:] = 1
    for shift, found in ((0, 10), (2, 10), (3, 0)):
        moved = np.zeros_like(truth)
        moved[:, 5 + shift :] = 1
        scores = score_regions(moved, [truth], tolerance=2)
        assert np.flatnonzero(region_boundary(moved)[0]).tolist() == [4 + shift]
        assert (scores.boundary_found, scores.boundary_right) == ((found,), (found,))
        assert (scores.boundary_truth, scores.boundary_drawn) == ((10,), 10)
    nothing = score_regions(np.zeros_like(truth), [truth])
    assert (nothing.boundary_found, nothing.boundary_drawn) == ((0,), 0)
    assert mean_regions([nothing])["boundary_recall"] == 0
    assert np.isnan(mean_regions([nothing])["boundary_precision"])
    assert all(np.isnan(value) for value in mean_regions([]).values())


def test_large_pictures_do_not_overflow():
    whole = np.zeros((1500, 3000), dtype=np.uint8)
    found = score_regions(whole, [whole])
    assert found.rand == (1.0,)
    assert variation_of_information(np.array([[2**40, 2**40]])) == 1


def test_the_order_of_images_and_the_way_through_json_make_no_difference():
    draw = np.random.default_rng(0)
    scores = [
        score_regions(draw.integers(0, 4, (9, 11)), list(draw.integers(0, 3, (n, 9, 11))))
        for n in (1, 3, 2, 4)
    ]
    whole = mean_regions(scores)
    assert mean_regions(scores[::-1]) == whole
    rows = json.loads(json.dumps([one.to_dict() for one in scores]))
    again = [
        RegionScores(**{k: tuple(v) if isinstance(v, list) else v for k, v in one.items()})
        for one in rows
    ]
    assert again == scores


def test_what_cannot_be_compared():
    with pytest.raises(InputError, match="none"):
        score_regions(np.zeros((3, 3), int), [])
    with pytest.raises(InputError, match=r"\(3, 4\) and \(3, 3\)"):
        score_regions(np.zeros((3, 3), int), [np.zeros((3, 4), int)])


@pytest.mark.skipif(not (BSDS / "gt").is_dir(), reason=f"no BSDS500 in {BSDS}")
def test_people_agree_more_than_with_one_segment_or_with_one_a_pixel():
    regions = open_regions("bsds500", BSDS, split="val", limit=4)
    index = json.loads((BSDS / "index.json").read_text())
    people, whole, pixels = [], [], []
    for i in range(len(regions)):
        sample = regions[i]
        facts = index[f"val/{sample.id}"]
        assert [len(np.unique(one)) for one in sample.people] == facts["segments"]
        assert list(sample.image.hw) == facts["size_hw"]
        first, others = sample.people[0], list(sample.people[1:])
        people.append(score_regions(first, others))
        whole.append(score_regions(np.zeros_like(first), others))
        each = np.arange(first.size, dtype=np.int32).reshape(first.shape)
        pixels.append(score_regions(each, others[:1]))
    best, one, many = (mean_regions(rows) for rows in (people, whole, pixels))
    assert best["covering"] > one["covering"] > many["covering"]
    assert best["rand"] > max(one["rand"], many["rand"])
    assert best["voi"] < min(one["voi"], many["voi"])
    assert best["boundary_recall"] > best["f_recall"] > 0.5
    assert best["f"] > 0.5 > many["f"] >= one["f"] == 0
    assert (one["boundary_recall"], many["boundary_recall"]) == (0, 1)
    assert many["boundary_precision"] < 0.5 < best["boundary_precision"]
