"""Counts against independent implementations, on whatever hypothesis can think of."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import confusion_matrix

from diffuseg.errors import InputError
from diffuseg.eval.hungarian import ImageMatching, SegmentCounts
from diffuseg.eval.metrics import ConfusionMatrix

K = 5
SHAPE = (4, 6)
kinds = st.sampled_from([np.uint8, np.int16, np.uint16, np.int32, np.int64])


def maps(values, dtype=np.int32):
    return hnp.arrays(dtype, SHAPE, elements=st.sampled_from(values))


# Truth of any kind: classes that do not occur, nothing but ignored pixels, numbers of no class.
truths = st.one_of(maps([0, 1, 2, 3, 4, 255]), maps([255]), maps([3]), maps([0, 4, 7, 254, 255]))
signed = st.one_of(truths, maps([-1, 0, 2]), maps([-1]), maps([-7, 1, 300, 70000]))


@settings(deadline=None, max_examples=60)
@given(truth=signed, prediction=maps(range(K)), kind=kinds)
def test_confusion_counts_are_scikit_learns(truth, prediction, kind):
    matrix = ConfusionMatrix(K)
    matrix.update(truth, prediction.astype(kind))
    scored = (truth >= 0) & (truth < K)
    expected = np.zeros((K, K), dtype=np.int64)
    if scored.any():
        expected = confusion_matrix(truth[scored], prediction[scored], labels=range(K))
    assert matrix.counts.tolist() == expected.tolist()
    assert matrix.n_pixels == np.count_nonzero(scored)
    if not scored.any():
        assert np.isnan(matrix.miou())
        assert matrix.miou("all_zero") == 0.0


@settings(deadline=None, max_examples=60)
@given(
    truth=signed,
    prediction=st.one_of(maps([*range(K), 65535]), maps([65535]), maps([0, 65535], np.uint16)),
    ignore=st.sampled_from([255, 2, -1]),
)
def test_undecided_pixels_are_a_column_of_their_own(truth, prediction, ignore):
    matrix = ConfusionMatrix(K, ignore=ignore, undecided=65535)
    matrix.update(truth, prediction)
    scored = (truth >= 0) & (truth < K) & (truth != ignore)
    columns = np.where(prediction == 65535, K, prediction)[scored]
    expected = np.zeros((K + 1, K + 1), dtype=np.int64)
    if scored.any():
        expected = confusion_matrix(truth[scored], columns, labels=range(K + 1))
    assert matrix.counts.tolist() == expected[:K, :K].tolist()
    assert matrix.missed.tolist() == expected[:K, K].tolist()


@settings(deadline=None, max_examples=40)
@given(
    prediction=maps([0, 1, 2, 253, 254, 255, 65535]),
    kind=st.sampled_from([np.uint16, np.int32, np.int64]),
    undecided=st.sampled_from([None, 200, 254, 255, 65535]),
    k=st.sampled_from([3, 253, 254, 255, 300]),
)
def test_numbers_out_of_range_are_errors_or_undecided_and_never_folded(
    prediction, kind, undecided, k
):
    if undecided is not None and undecided < k:
        undecided = 65535
    matrix = ConfusionMatrix(k, ignore=70000, undecided=undecided)
    truth = np.zeros(SHAPE, dtype=np.int64)
    wrong = (prediction >= k) & (prediction != undecided)
    if wrong.any():
        with pytest.raises(InputError, match="class indices") as caught:
            matrix.update(truth, prediction.astype(kind))
        assert str(np.unique(prediction[wrong])[0]) in str(caught.value.got)
        assert not matrix.counts.any()
        return
    matrix.update(truth, prediction.astype(kind))
    assert matrix.missed[0] == np.count_nonzero(prediction == undecided)
    inside = prediction[prediction < k]
    assert matrix.counts[0].tolist() == np.bincount(inside, minlength=k).tolist()


@settings(deadline=None, max_examples=60)
@given(truth=signed, prediction=maps([0, 1, 2, 3, 6, 9]))
def test_per_image_matching_is_scipys_assignment(truth, prediction):
    scored = (truth >= 0) & (truth < K)
    width = max(K, prediction.max() + 1)
    table = np.zeros((K, width), dtype=np.int64)
    for g, p in zip(truth[scored], prediction[scored], strict=True):
        table[g, p] += 1
    rows, columns = linear_sum_assignment(table, maximize=True)
    matching = ImageMatching(K)
    matching.update(truth, prediction)
    assert matching.tp[rows].tolist() == table[rows, columns].tolist()
    assert matching.n_pixels == table.sum()
    assert (matching.tp + matching.fn).tolist() == table.sum(axis=1).tolist()
    assert (matching.tp + matching.fp)[rows].tolist() == table[:, columns].sum(axis=0).tolist()


@settings(deadline=None, max_examples=40)
@given(
    images=st.lists(st.tuples(truths, maps(range(K))), min_size=1, max_size=3),
)
def test_matching_once_for_a_data_set_is_scipys_assignment_of_all_counts(images):
    whole = SegmentCounts(K)
    table = np.zeros((K, K), dtype=np.int64)
    for truth, prediction in images:
        one = SegmentCounts(K)
        one.update(np.where(truth == 255, -1, truth), prediction)
        whole = whole + one
        scored = truth < K
        np.add.at(table, (truth[scored], prediction[scored]), 1)
    best = linear_sum_assignment(table, maximize=True)
    assert whole.dataset.tp.sum() == table[best].sum()
    # An image by itself can only be matched better.
    assert whole.image.tp.sum() >= whole.dataset.tp.sum()


@settings(deadline=None, max_examples=30)
@given(truth=truths, prediction=maps(range(K)), order=st.permutations(range(K)))
def test_numbers_of_segments_leave_the_accuracy(truth, prediction, order):
    a, b = ImageMatching(K), ImageMatching(K)
    a.update(np.where(truth == 255, -1, truth), prediction)
    b.update(np.where(truth == 255, -1, truth), np.array(order)[prediction])
    assert a.accuracy() == pytest.approx(b.accuracy(), nan_ok=True)
