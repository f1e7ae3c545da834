"""Scores of segments without names, by hand."""

import numpy as np
import pytest

from diffuseg.errors import InputError
from diffuseg.eval import coarse27
from diffuseg.eval.hungarian import ImageMatching


def matched(truth, prediction, k=3, **options):
    matching = ImageMatching(k, **options)
    matching.update(np.array(truth), np.array(prediction))
    return matching


def test_numbers_of_segments_do_not_matter_where_all_are_assigned():
    for prediction in ([0, 0, 1, 2], [2, 2, 9, 0]):
        found = matched([0, 0, 1, 2], prediction)
        assert found.tp.tolist() == [2, 1, 1]
        assert (found.accuracy(), found.miou()) == (1.0, 1.0)


def test_unscored_pixels_count_for_nothing():
    found = matched([0, 0, -1, 7, 255], [4, 4, 4, 0, 1])
    assert (found.n_pixels, found.tp[0], found.fp.sum()) == (2, 2, 0)


def test_segments_left_over_are_charged_to_absent_classes_unless_strict():
    truth, prediction = [0, 0, 0, 1], [0, 0, 1, 2]
    published, strict = (matched(truth, prediction, strict=on) for on in (False, True))
    assert published.accuracy() == strict.accuracy() == 0.75
    assert (published.fp.tolist(), strict.fp.tolist()) == ([0, 0, 1], [0, 0, 0])
    assert published.miou() == pytest.approx((2 / 3 + 1 + 0) / 3)
    assert strict.miou() == pytest.approx((2 / 3 + 1) / 2)


def test_nothing_to_score():
    found = matched([-1, -1], [0, 1])
    assert np.isnan(found.accuracy())
    assert np.isnan(found.miou())
    assert np.isnan(found.iou()).all()


def test_parts_add_up():
    a, b = matched([0, 1], [5, 5]), matched([2, 2], [0, 1])
    whole = ImageMatching(3)
    whole.update(np.array([0, 1]), np.array([5, 5]))
    whole.update(np.array([2, 2]), np.array([0, 1]))
    total = a + b
    assert (total.tp == whole.tp).all()
    assert (total.fp == whole.fp).all()
    assert (total.fn == whole.fn).all()
    assert (total.n_images, total.n_pixels) == (2, 4)


def test_what_cannot_be():
    with pytest.raises(InputError, match="at least one class"):
        ImageMatching(0)
    with pytest.raises(InputError, match="one shape"):
        matched([0, 1], [0])
    with pytest.raises(InputError, match="numbered from 0"):
        matched([0, 1], [0, -1])
    with pytest.raises(InputError, match="protocol are the same"):
        _ = ImageMatching(2) + ImageMatching(2, strict=True)
    assert ImageMatching(2).__add__(1) is NotImplemented


@pytest.mark.parametrize("hw", [(5, 9), (9, 5), (4, 4)])
def test_squares_lie_in_the_middle(hw):
    rows, columns = coarse27.centre_square(hw)
    assert rows.stop - rows.start == columns.stop - columns.start == min(hw)
    labels = np.arange(hw[0] * hw[1]).reshape(hw)
    same = coarse27.square_labels(labels, min(hw))
    assert np.array_equal(same, labels[rows, columns])
    pixels = np.repeat(labels.astype(np.uint8)[..., None], 3, axis=2)
    assert np.array_equal(coarse27.square_pixels(pixels, min(hw)), pixels[rows, columns])
