import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from diffuseg.errors import InputError
from diffuseg.export.polygons import fill_polygons, trace_polygons
from support import images

MASKS = arrays.arrays(bool, arrays.array_shapes(min_dims=2, max_dims=2, max_side=9))


def area(ring: np.ndarray) -> float:
    x, y = ring.T
    return float(np.sum(x[:-1] * y[1:] - x[1:] * y[:-1])) / 2


@settings(max_examples=80, deadline=None)
@given(MASKS)
def test_filling_the_outlines_gives_the_mask_again(mask):
    assert np.array_equal(fill_polygons(trace_polygons(mask), mask.shape), mask)


@settings(max_examples=80, deadline=None)
@given(MASKS)
def test_rings_are_valid(mask):
    polygons = trace_polygons(mask)
    for outline, *holes in polygons:
        assert area(outline) > 0
        assert all(area(hole) < 0 for hole in holes)
        for ring in (outline, *holes):
            assert (ring[0] == ring[-1]).all()
            assert len(np.unique(ring[:-1], axis=0)) == len(ring) - 1
            steps = np.diff(ring, axis=0)
            assert ((steps == 0).sum(axis=1) == 1).all()
            # Two steps in one direction would be one corner too many.
            turns = (steps * np.roll(steps, 1, axis=0)).sum(axis=1)
            assert (turns == 0).all()
    assert sum(area(ring) for polygon in polygons for ring in polygon) == mask.sum()


def test_rows_of_pixels_become_rectangles():
    mask = np.zeros((5, 7), bool)
    mask[1:3, 2:6] = True
    assert [[ring.tolist() for ring in rings] for rings in trace_polygons(mask)] == [
        [[[2, 1], [6, 1], [6, 3], [2, 3], [2, 1]]]
    ]


def test_a_hole_with_an_island():
    mask = np.ones((7, 7), bool)
    mask[1:6, 1:6] = False
    mask[3, 3] = True
    frame, island = trace_polygons(mask)
    assert (len(frame), len(island)) == (2, 1)
    assert [area(ring) for ring in frame] == [49, -25]
    assert area(island[0]) == 1


def test_parts_that_meet_at_a_corner_are_two():
    assert len(trace_polygons(np.eye(2, dtype=bool))) == 2
    assert len(trace_polygons(np.eye(2, dtype=bool)[::-1])) == 2


def test_a_hole_that_touches_the_outline_at_a_corner_is_a_hole():
    mask = np.ones((4, 4), bool)
    mask[0, 0] = mask[1, 1] = False
    (polygon,) = trace_polygons(mask)
    assert [area(ring) for ring in polygon] == [15, -1]


def test_nothing_and_everything():
    assert trace_polygons(np.zeros((3, 4), bool)) == []
    assert not fill_polygons([], (3, 4)).any()
    ((outline,),) = trace_polygons(np.ones((3, 4), bool))
    assert area(outline) == 12


def test_real_shapes():
    labels = images.blobs((60, 90), 3)
    for label in range(3):
        mask = labels == label
        assert np.array_equal(fill_polygons(trace_polygons(mask), mask.shape), mask)


@pytest.mark.parametrize(
    "ring",
    [
        [(0, 0), (2, 1), (0, 2), (0, 0)],
        [(0, 0), (1, 0), (1, 1), (0, 1)],
        [(0, 0), (9, 0), (9, 1), (0, 1), (0, 0)],
        [(0, 0), (1.5, 0), (1.5, 1), (0, 1), (0, 0)],
        [(-1, 0), (1, 0), (1, 1), (-1, 1), (-1, 0)],
    ],
)
def test_other_polygons_are_refused(ring):
    with pytest.raises(InputError, match=r"along the edges of pixels\n  got: .* 4 wide\n  fix: "):
        fill_polygons([[ring]], (3, 4))


@settings(max_examples=20, deadline=None)
@given(MASKS, st.integers(1, 3))
def test_the_image_may_be_larger_than_the_mask(mask, more):
    hw = (mask.shape[0] + more, mask.shape[1] + more)
    filled = fill_polygons(trace_polygons(mask), hw)
    assert np.array_equal(filled[: mask.shape[0], : mask.shape[1]], mask)
    assert filled.sum() == mask.sum()
