"""The lattice against its textbook form, point by point, and against the Gaussian it stands for."""

import itertools

import numpy as np
import pytest

from diffuseg.errors import InputError
from diffuseg.methods.permutohedral import AllPairs, Lattice


def scattered(n, d, wide=3.0, seed=0):
    return wide * np.random.default_rng(seed).standard_normal((n, d))


def enclosing(point):
    """Vertices around a point and its shares of them: the simplex is searched, not sorted for."""
    d = len(point)
    basis = np.zeros((d + 1, d))
    for i in range(1, d + 1):
        basis[:i, i - 1], basis[i, i - 1] = 1, -i
    # Every lattice has d + 1 basis vectors' directions of one length: columns are scaled to that.
    basis /= np.linalg.norm(basis, axis=0)
    place = basis @ point * np.sqrt(2 / 3) * (d + 1)
    # The lattice is that of all integer points, all alike modulo d + 1, in the plane.
    steps = [np.full(d + 1, -1) + (d + 1) * np.eye(d + 1, dtype=int)[j] for j in range(d + 1)]
    start = np.rint(place / (d + 1)).astype(int) * (d + 1)
    start[np.argmax(np.abs(place - start))] -= start.sum()
    for walk in itertools.product((0, 1, -1), repeat=d):
        origin = start + sum((k * step for k, step in zip(walk, steps, strict=False)), 0 * start)
        for order in itertools.permutations(range(d + 1)):
            corners = [origin]
            for j in order[:d]:
                corners.append(corners[-1] + steps[j])
            system = np.vstack([np.array(corners).T, np.ones(d + 1)])
            shares = np.linalg.lstsq(system, np.append(place, 1), rcond=None)[0]
            if shares.min() > -1e-9:
                return [tuple(int(one) for one in corner) for corner in corners], shares
    raise AssertionError("no simplex")


def plainly(points, values):
    d = points.shape[1]
    around = [enclosing(point) for point in points]
    held = {}
    for (corners, shares), value in zip(around, values, strict=True):
        for corner, share in zip(corners, shares, strict=True):
            if share > 1e-9:
                held[corner] = held.get(corner, 0) + share * value
            else:
                held.setdefault(corner, 0 * value)
    for j in range(d + 1):
        step = -np.ones(d + 1, int)
        step[j] = d
        held = {
            corner: value / 2
            + sum(held.get(tuple(np.add(corner, s * step).tolist()), 0 * value) for s in (1, -1))
            / 4
            for corner, value in held.items()
        }
    return np.array(
        [
            sum(share * held[corner] for corner, share in zip(corners, shares, strict=True))
            for corners, shares in around
        ]
    )


@pytest.mark.parametrize("d", [1, 2, 3])
def test_the_lattice_is_its_definition(d):
    points = scattered(60, d)
    values = np.random.default_rng(1).random((60, 2))
    np.testing.assert_allclose(Lattice.around(points)(values), plainly(points, values), atol=2e-6)


@pytest.mark.parametrize("d", [1, 2, 3, 5])
def test_shares_of_a_point_are_a_partition(d):
    slicing = Lattice.around(scattered(500, d, wide=20)).slicing
    assert slicing.nnz == 500 * (d + 1)
    np.testing.assert_allclose(slicing.sum(1), 1, atol=1e-6)
    assert slicing.data.min() >= -1e-6


@pytest.mark.parametrize(("d", "tolerance"), [(1, 0.03), (2, 0.03), (3, 0.03), (5, 0.06)])
def test_the_lattice_is_about_a_gaussian(d, tolerance):
    points = 4 * np.random.default_rng(0).random((3000, d))
    values = np.stack([points[:, 0], np.cos(points[:, -1])], 1)
    near, exact, ones = Lattice.around(points), AllPairs.around(points), np.ones((3000, 1))
    ratio = near(ones) / exact(ones)
    assert ratio.std() < tolerance * ratio.mean()
    apart = near(values) / near(ones) - exact(values) / exact(ones)
    assert np.sqrt((apart**2).mean()) < tolerance * values.std()


def test_all_pairs_are_the_formula():
    points = scattered(300, 4, wide=1.0) + 100
    values = np.random.default_rng(1).random((300, 3))
    squares = ((points[:, None] - points) ** 2).sum(2)
    wanted = np.exp(-squares / 2) @ values
    np.testing.assert_allclose(AllPairs.around(points)(values), wanted, rtol=1e-5)


def test_pairs_are_the_same_in_small_pieces(monkeypatch):
    points, values = scattered(50, 3, wide=1.0), np.eye(50)
    whole = AllPairs.around(points)(values)
    monkeypatch.setattr("diffuseg.methods.permutohedral._PAIRS", 120)
    np.testing.assert_allclose(AllPairs.around(points)(values), whole, atol=1e-7)


def test_the_order_of_points_does_not_matter():
    points, values = scattered(200, 5), np.random.default_rng(1).random((200, 2))
    mixed = np.random.default_rng(2).permutation(200)
    found = Lattice.around(points)(values)
    np.testing.assert_allclose(
        Lattice.around(points[mixed])(values[mixed]), found[mixed], atol=1e-6
    )


def test_points_far_apart_do_not_meet():
    points = np.repeat(np.diag([40.0, 40.0, 40.0]), 4, axis=0)
    found = Lattice.around(points)(np.repeat(np.eye(3), 4, axis=0))
    assert (found[np.repeat(~np.eye(3, dtype=bool), 4, axis=0)] == 0).all()
    assert (found.reshape(3, 4, 3) == found.reshape(3, 4, 3)[:, :1]).all()


@pytest.mark.parametrize("around", [Lattice.around, AllPairs.around])
@pytest.mark.parametrize("points", [np.zeros((0, 2)), np.array([[np.nan]]), np.zeros((3, 0))])
def test_what_are_no_points_is_refused(around, points):
    with pytest.raises(InputError, match="points must be finite"):
        around(points)


def test_points_beyond_numbering_are_refused():
    with pytest.raises(InputError, match="larger deviations"):
        Lattice.around(scattered(10, 5, wide=1e6))
