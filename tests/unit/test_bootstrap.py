"""Intervals over images: what they must be, on counts whose answer is known."""

import numpy as np
import pytest

from diffuseg.errors import InputError
from diffuseg.eval.bars import draw_bars
from diffuseg.eval.bootstrap import ImageCounts, draw_intervals
from diffuseg.eval.hungarian import SegmentCounts
from diffuseg.eval.metrics import AVERAGES, ConfusionMatrix
from diffuseg.eval.state import ImageScore, add_up


def matrices(n=12, k=4, seed=0):
    random = np.random.default_rng(seed)
    out = []
    for _ in range(n):
        matrix = ConfusionMatrix(k, undecided=65535)
        truth = random.integers(0, k, 50)
        guess = np.where(random.random(50) < random.random(), truth, random.integers(0, k, 50))
        matrix.update(truth, np.where(random.random(50) < 0.1, 65535, guess))
        out.append(matrix)
    return out


@pytest.mark.parametrize("average", AVERAGES)
def test_a_draw_is_the_sum_of_whole_matrices(average):
    held = matrices()
    found = draw_intervals(ImageCounts.of(held), average, resamples=40, seed=3)
    random = np.random.default_rng(3)
    places = random.integers(0, len(held), (40, len(held)))
    values = []
    for row in places:
        total = held[row[0]]
        for place in row[1:]:
            total = total + held[place]
        values.append((total.miou(average), total.accuracy()))
    low, high = np.quantile(values, [0.025, 0.975], axis=0)
    assert found["miou"] == pytest.approx((low[0], high[0]), abs=1e-12)
    assert found["acc"] == pytest.approx((low[1], high[1]), abs=1e-12)


def test_the_same_seed_gives_the_same_numbers_whatever_is_held_at_once(monkeypatch):
    counts = ImageCounts.of(matrices())
    first = draw_intervals(counts, "gt_present", resamples=100)
    assert draw_intervals(counts, "gt_present", resamples=100) == first
    monkeypatch.setattr("diffuseg.eval.bootstrap._AT_ONCE", 50)
    assert draw_intervals(counts, "gt_present", resamples=100) == first
    assert draw_intervals(counts, "gt_present", resamples=100, seed=1) != first


def test_more_images_and_lower_levels_make_it_narrower():
    def width(images, level=0.95):
        low, high = draw_intervals(images, "gt_present", level=level, resamples=300)["miou"]
        return high - low

    few, many = ImageCounts.of(matrices(8)), ImageCounts.of(matrices(200))
    assert width(many) < width(few)
    assert width(few, level=0.5) < width(few)


def test_it_holds_the_figure_of_all_images():
    held = matrices(30)
    total = add_up(
        [ImageScore.of(i, one, 0.0) for i, one in enumerate(held)],
        ConfusionMatrix(4, undecided=65535),
    )
    low, high = draw_intervals(ImageCounts.of(held), "gt_present")["miou"]
    assert low < total.miou() < high


def test_images_without_anything_to_score():
    empty = ConfusionMatrix(3)
    empty.update(np.array([255]), np.array([0]))
    assert draw_intervals(ImageCounts.of([empty, empty]), "gt_present", resamples=5) == {}


def test_segments_without_names():
    counts = SegmentCounts(3, undecided=9)
    counts.update(np.array([0, 0, 1, 1, 2]), np.array([4, 4, 1, 9, 0]))
    found = ImageCounts.of([counts])
    assert found.hit.tolist() == [[2, 1, 1]]
    assert found.truth.tolist() == [[2, 2, 1]]
    assert draw_intervals(found, "union_present", resamples=5)["acc"] == (0.8, 0.8)


@pytest.mark.parametrize("options", [{"resamples": 0}, {"level": 1.0}, {"level": 0.0}])
def test_errors(options):
    with pytest.raises(InputError, match="an interval needs draws"):
        draw_intervals(ImageCounts.of(matrices(2)), "gt_present", **options)
    with pytest.raises(InputError, match="images to draw from"):
        ImageCounts.of([])


def test_bars_are_as_long_as_their_values():
    plot = np.asarray(draw_bars({"a": 1.0, "b": 0.5, "c": None}, title="IoU").convert("RGB"))
    blue = (plot == (31, 95, 191)).all(axis=2)
    lengths = sorted({int(n) for n in blue.sum(axis=1)})
    assert lengths == [0, 201, 401]
    with pytest.raises(InputError, match="needs values"):
        draw_bars({}, title="IoU")
