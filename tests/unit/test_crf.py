"""The dense CRF against a form with loops, the lattice against all pairs, and what users meet."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from diffuseg.errors import InputError
from diffuseg.methods.crf import (
    DenseCrf,
    crf_labels,
    crf_probabilities,
    label_energies,
    mean_field,
)
from diffuseg.methods.permutohedral import AllPairs, Lattice
from diffuseg.methods.vidseg import EMERDIFF, VidSeg
from diffuseg.world import Scenes


def plainly(image, energies, settings):
    """Mean field pixel by pixel, in double precision."""
    count, height, width = energies.shape
    places = [(y, x) for y in range(height) for x in range(width)]
    total = np.zeros((len(places), len(places)))
    for weight, near, alike in ((*settings.spatial, None), settings.bilateral):
        kernel = np.zeros_like(total)
        for i, (y, x) in enumerate(places):
            for j, (v, u) in enumerate(places):
                apart = ((y - v) ** 2 + (x - u) ** 2) / near**2
                if alike is not None:
                    colours = image[y, x].astype(float) - image[v, u]
                    apart += (colours**2).sum() / alike**2
                kernel[i, j] = np.exp(-apart / 2)
        root = np.sqrt(kernel.sum(1))
        total += weight * kernel / root[:, None] / root
    unary = energies.reshape(count, -1)

    def beliefs(wanted):
        powers = np.exp(wanted - wanted.max(0))
        return powers / powers.sum(0)

    found = beliefs(-unary)
    for _ in range(settings.iterations):
        found = beliefs(-unary + found @ total)
    return found.reshape(energies.shape)


def scene(side, number=0):
    """A picture, its labels, and those with boundaries that wander."""
    one = Scenes("test", seed=1, hw=(side, side))[number]
    labels = np.asarray(one.labels).astype(np.int32)
    rng = np.random.default_rng(number)
    shifts = [gaussian_filter(rng.standard_normal(labels.shape), side / 40) for _ in range(2)]
    places = np.indices(labels.shape) + [side / 32 * one / one.std() for one in shifts]
    rows, columns = np.clip(places.round().astype(int), 0, side - 1)
    return np.asarray(one.image), labels, labels[rows, columns]


# ---- exactness


@pytest.mark.parametrize("hw", [(7, 9), (1, 12), (11, 1), (1, 1)])
def test_mean_field_is_its_definition(hw):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (*hw, 3), dtype=np.uint8)
    energies = -np.log(rng.dirichlet(np.ones(4), hw).transpose(2, 0, 1))
    for settings in (
        DenseCrf(filter="exact", bilateral=(4.0, 6.0, 60.0)),
        DenseCrf(filter="exact", iterations=1, spatial=(2.0, 3.0)),
        DenseCrf(filter="exact", iterations=3, spatial=(0.0, 1.0), bilateral=(9.0, 2.5, 90.0)),
    ):
        found = mean_field(image, energies, settings)
        np.testing.assert_allclose(found, plainly(image, energies, settings), atol=2e-5)


@pytest.mark.parametrize("number", range(4))
@pytest.mark.parametrize("bilateral", [(4.0, 67.0, 3.0), (5.0, 20.0, 13.0)])
def test_the_lattice_labels_as_all_pairs_do(number, bilateral):
    image, _, given = scene(64, number)
    settings = DenseCrf(bilateral=bilateral)
    found = crf_labels(image, given, settings)
    exact = crf_labels(image, given, replace(settings, filter="exact"))
    assert (found == exact).mean() >= 0.99


@pytest.mark.parametrize("number", range(4))
def test_the_lattice_filters_about_as_all_pairs_do(number):
    image, _, given = scene(64, number)
    places = np.indices((64, 64)).reshape(2, -1).T
    points = np.concatenate([places / 67, image.reshape(-1, 3) / 3], 1)
    values = (given.reshape(-1, 1) == np.unique(given)).astype(np.float32)
    found = []
    for kernel in (Lattice.around(points), AllPairs.around(points)):
        root = 1 / np.sqrt(kernel(np.ones((len(points), 1), np.float32)))
        found.append(root * kernel(root * values))
    apart = found[0] - found[1]
    assert np.sqrt((apart**2).mean()) < 0.04
    assert np.quantile(np.abs(apart), 0.99) < 0.12


def test_energies_are_logarithms_of_what_is_said():
    labels = np.array([[3, 5, 9]])
    energies = label_energies(labels, np.array([3, 5, 7]), 0.8)
    chances = np.exp(-energies)[:, 0]
    np.testing.assert_allclose(chances.sum(0), 1, atol=1e-6)
    np.testing.assert_allclose(chances[:, 0], [0.8, 0.1, 0.1], atol=1e-6)
    np.testing.assert_allclose(chances[:, 2], 1 / 3, atol=1e-6)


# ---- what it is for


@pytest.mark.parametrize("number", range(4))
def test_wandering_boundaries_come_nearer_to_the_truth(number):
    image, truth, given = scene(128, number)
    found = crf_labels(image, given)
    assert (found != truth).mean() < 0.75 * (given != truth).mean()


def test_undecided_pixels_get_the_labels_of_their_like():
    image = np.zeros((12, 16, 3), np.uint8)
    image[:, 8:] = 120
    truth = np.where(image[..., 0] > 0, 40, 7).astype(np.uint8)
    given = truth.copy()
    given[2:10, 3:14] = 255
    found = crf_labels(image, given, undecided=[255])
    assert found.dtype == np.uint8
    assert (found == truth).all()
    # Without a word about it, 255 is a label like others.
    assert 255 in crf_labels(image, given)


def test_one_label_spreads_to_all_undecided_pixels_and_none_comes_from_nowhere():
    image = np.zeros((3, 4, 3), np.uint8)
    given = np.full((3, 4), -1)
    assert (crf_labels(image, given, undecided=[-1]) == -1).all()
    given[1, 1] = 6
    assert (crf_labels(image, given, undecided=[-1]) == 6).all()
    assert (crf_labels(image, np.full((3, 4), 6)) == 6).all()


def test_nothing_is_written_to_and_no_iterations_change_nothing():
    image, _, given = scene(64)
    before = given.copy()
    found = crf_labels(image, given, DenseCrf(iterations=0))
    assert found is not given
    assert (found == given).all()
    crf_labels(image, given, DenseCrf(iterations=1))
    assert (given == before).all()


def test_without_weights_labels_stay():
    image, _, given = scene(64)
    alone = DenseCrf(spatial=(0.0, 1.0), bilateral=(0.0, 1.0, 1.0))
    assert (crf_labels(image, given, alone) == given).all()


def test_probabilities_follow_the_picture_and_stay_probabilities():
    image, truth, given = scene(128, 2)
    values = np.unique(given)
    chances = np.where(given == values[:, None, None], 0.8, 0.1)
    chances[:, 5:9, 5:9] = 0  # undecided
    found = crf_probabilities(image, 3 * chances)
    np.testing.assert_allclose(found.sum(0), 1, atol=1e-5)
    labels = values[found.argmax(0)]
    assert (labels != truth).mean() < 0.75 * (given != truth).mean()
    assert (labels[5:9, 5:9] == truth[5:9, 5:9]).all()
    certain = crf_probabilities(image, (given == values[:, None, None]).astype(float))
    assert np.isfinite(certain).all()


# ---- what is refused


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"iterations": -1}, "iterations must be 0"),
        ({"spatial": (3.0,)}, "a weight of 0 or more and a positive deviation"),
        ({"spatial": (3.0, 0.0)}, "positive deviation"),
        ({"bilateral": (-1.0, 60.0, 3.0)}, "weight of 0 or more"),
        ({"bilateral": (4.0, 60.0, float("nan"))}, "two positive deviations"),
        ({"certainty": 1.0}, "between 0 and 1"),
    ],
)
def test_settings_out_of_range_are_refused(changes, said):
    with pytest.raises(InputError, match=said):
        DenseCrf(**changes)


def test_an_image_of_another_size_is_refused():
    with pytest.raises(InputError, match="labels' size, 4x5"):
        crf_labels(np.zeros((5, 4, 3), np.uint8), np.zeros((4, 5), int))
    with pytest.raises(InputError, match="labels' size, 4x5"):
        crf_probabilities(np.zeros((4, 4, 3), np.uint8), np.zeros((2, 4, 5)))


@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf")])
def test_what_are_no_probabilities_is_refused(value):
    with pytest.raises(InputError, match="finite, 0 or more"):
        crf_probabilities(np.zeros((4, 5, 3), np.uint8), np.full((2, 4, 5), value))


# ---- of videos


def test_vidseg_hands_its_settings_on():
    assert VidSeg().ready("sd").dense_crf == DenseCrf()
    chosen = VidSeg(crf=True, crf_spatial=(2.0, 2.0), crf_iterations=4).ready("sd", EMERDIFF)
    assert chosen.crf
    assert chosen.dense_crf == DenseCrf(spatial=(2.0, 2.0), iterations=4)
    with pytest.raises(InputError, match="positive deviation"):
        VidSeg(crf_spatial=(2.0, 0.0))
