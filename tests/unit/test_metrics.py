"""Confusion counts against an independent implementation, and the rules for odd label maps."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import accuracy_score, confusion_matrix, jaccard_score

from diffuseg.errors import InputError
from diffuseg.eval.metrics import AVERAGES, ConfusionMatrix

K = 4
truths = hnp.arrays(np.uint8, (3, 5, 4), elements=st.sampled_from([0, 1, 2, 3, 255]))
predictions = hnp.arrays(np.uint8, (3, 5, 4), elements=st.integers(0, K - 1))


def scored(truth, prediction, **settings):
    matrix = ConfusionMatrix(K, **settings)
    for g, p in zip(truth, prediction, strict=True):
        matrix.update(g, p)
    return matrix


@settings(deadline=None, max_examples=40)
@given(truth=truths, prediction=predictions)
def test_agrees_with_scikit_learn(truth, prediction):
    matrix = scored(truth, prediction)
    g, p = truth[truth != 255], prediction[truth != 255]
    if not g.size:
        assert matrix.n_pixels == 0
        assert np.isnan([matrix.accuracy(), matrix.miou(), matrix.fwiou()]).all()
        return
    expected = confusion_matrix(g, p, labels=range(K))
    assert matrix.counts.tolist() == expected.tolist()
    assert matrix.accuracy() == pytest.approx(accuracy_score(g, p))
    present = np.unique(g)
    iou = jaccard_score(g, p, labels=present, average=None, zero_division=0)
    assert matrix.iou()[present] == pytest.approx(iou)
    assert matrix.miou("gt_present") == pytest.approx(iou.mean())


@settings(deadline=None, max_examples=25)
@given(truth=truths, prediction=predictions, cut=st.integers(0, 3))
def test_parts_add_up_in_any_order(truth, prediction, cut):
    whole = scored(truth, prediction)
    left = scored(truth[:cut], prediction[:cut])
    right = scored(truth[cut:], prediction[cut:])
    assert left + right == right + left == whole
    assert (left + right).n_images == 3


@settings(deadline=None, max_examples=25)
@given(truth=truths, prediction=predictions, order=st.permutations(range(K)))
def test_renaming_the_classes_moves_no_figure(truth, prediction, order):
    lookup = np.full(256, 255, dtype=np.uint8)
    lookup[:K] = order
    a, b = scored(truth, prediction), scored(lookup[truth], lookup[prediction])
    for average in AVERAGES:
        assert a.miou(average) == pytest.approx(b.miou(average), nan_ok=True)


def test_perfect_prediction_is_one_under_every_rule_when_all_classes_occur():
    truth = np.arange(K, dtype=np.uint8).repeat(3).reshape(1, 3, K)
    matrix = scored(truth, truth)
    for average in AVERAGES:
        assert matrix.miou(average) == pytest.approx(1.0)


def test_rules_differ_on_absent_classes():
    # Class 1 is right, class 2 only predicted, class 3 nowhere.
    matrix = scored(np.array([[[0, 0, 1, 1]]]), np.array([[[0, 2, 1, 1]]]))
    assert matrix.iou()[:3].tolist() == [0.5, 1.0, 0.0]
    assert np.isnan(matrix.iou()[3])
    assert matrix.miou("gt_present") == pytest.approx(1.5 / 2)
    assert matrix.miou("union_present") == pytest.approx(1.5 / 3)
    assert matrix.miou("all_zero") == pytest.approx(1.5 / 4)
    assert matrix.miou("all_eps") == pytest.approx(1.5 / 4)
    assert matrix.miou(classes=[1]) == 1.0
    assert np.isnan(matrix.miou(classes=[2, 3]))


def test_undecided_pixels_are_missed_and_charged_to_nobody():
    truth, prediction = np.array([[0, 0, 1, 255]]), np.array([[0, 65535, 1, 65535]])
    matrix = ConfusionMatrix(2, undecided=65535)
    matrix.update(truth, prediction)
    assert matrix.missed.tolist() == [1, 0]
    assert matrix.iou().tolist() == [0.5, 1.0]
    assert matrix.accuracy() == pytest.approx(2 / 3)
    assert matrix.fwiou() == pytest.approx((0.5 * 2 + 1.0) / 3)


def test_products_of_small_integers_do_not_wrap():
    k = 200
    labels = np.arange(k, dtype=np.uint8)
    matrix = ConfusionMatrix(k)
    matrix.update(labels, labels)
    assert np.array_equal(matrix.counts, np.eye(k, dtype=np.int64))


def test_labels_outside_the_classes_are_not_scored():
    matrix = ConfusionMatrix(2, ignore=1)
    matrix.update(np.array([-1, 0, 1, 7], dtype=np.int16), np.zeros(4, dtype=np.int16))
    assert matrix.n_pixels == 1


def test_saved_and_loaded_is_the_same(tmp_path):
    for undecided in (None, 65535):
        matrix = scored(
            np.array([[[0, 1, 3]]]), np.array([[[0, 2, 3]]]), ignore=9, undecided=undecided
        )
        assert ConfusionMatrix.load(matrix.save(tmp_path / "part.npz")) == matrix


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda m: ConfusionMatrix(0), "at least one class"),
        (lambda m: ConfusionMatrix(3, undecided=2), "must not be a class"),
        (lambda m: m.update(np.zeros((2, 2), int), np.zeros((2, 3), int)), "one shape"),
        (lambda m: m.update(np.zeros(2), np.zeros(2)), "integer maps"),
        (lambda m: m.update(np.zeros(2, int), np.array([0, K])), "class indices from 0 to 3"),
        (lambda m: m.update(np.zeros(2, int), np.array([-1, 0])), "class indices"),
        (lambda m: m.miou("mean"), "average must be one of"),
        (lambda m: m + ConfusionMatrix(K, ignore=7), "can be added"),
        (lambda m: m.save("part.txt"), "saved as .npz"),
        (lambda m: ConfusionMatrix.load("no-such-file.npz"), "counts of a confusion matrix"),
    ],
)
def test_errors(act, message):
    with pytest.raises(InputError, match=message):
        act(ConfusionMatrix(K))


def test_damaged_file(tmp_path):
    path = ConfusionMatrix(3).save(tmp_path / "part.npz")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InputError, match="counts of a confusion matrix"):
        ConfusionMatrix.load(path)


def test_not_a_matrix():
    assert ConfusionMatrix(2).__add__(1) is NotImplemented
    assert ConfusionMatrix(2) != 1
