"""What a user points at: read from any form, refused with a reason, laid on a grid."""

import numpy as np
import pytest
import torch

from diffuseg.errors import InputError
from diffuseg.methods.clicks import Clicks

HW, GRID = (80, 120), (8, 8)


def cells(clicks, hw=HW, grid=GRID):
    """The cells (row, column) of each seed."""
    seeds, _ = clicks.seeds(hw, grid)
    return [[divmod(int(i), grid[1]) for i in one.nonzero()[:, 0]] for one in seeds.T]


@pytest.mark.parametrize(
    "points", [(40, 50), [(40, 50)], [[40.9, 50.2]], np.array([[40, 50]]), torch.tensor([40, 50])]
)
def test_points_in_any_form(points):
    [mark] = Clicks.read(points=points).marks
    assert (mark.shape, mark.at, mark.positive) == ("point", ((40, 50),), True)


def test_labels_say_which_points_are_wanted():
    clicks = Clicks.read(points=[(1, 2), (3, 4)], labels=np.array([0, 1]), negative_points=(5, 6))
    assert [(one.at[0], one.positive) for one in clicks.marks] == [
        ((1, 2), False),
        ((3, 4), True),
        ((5, 6), False),
    ]
    for wrong in ([1], [1, 2], "ab"):
        with pytest.raises(InputError, match="one label, 1 or 0, for each point"):
            Clicks.read(points=[(1, 2), (3, 4)], labels=wrong)


def test_a_point_is_the_cell_it_lies_in():
    assert cells(Clicks.read(points=[(119, 0), (0, 79), (15, 10)])) == [
        [(0, 7)],
        [(7, 0)],
        [(1, 1)],
    ]


def test_a_line_is_a_seed_for_every_cell_it_meets():
    assert cells(Clicks.read(lines=[(0, 0), (119, 0)])) == [[(0, x)] for x in range(8)]
    two = Clicks.read(lines=[[(0, 0), (14, 0)], [(0, 79), (0, 60), (30, 60)]])
    assert [mark.shape for mark in two.marks] == ["line", "line"]
    assert cells(two) == [[(0, 0)], [(7, 0)], [(6, 0)], [(6, 1)], [(6, 2)]]


def test_a_box_has_a_cell_and_its_corners_any_order():
    assert len(cells(Clicks.read(boxes=(120, 0, 0, 80)))[0]) == 64
    assert len(cells(Clicks.read(boxes=(119, 0, 0, 79)))[0]) == 49  # the last cells are outside
    wide = cells(Clicks.read(boxes=[(30, 60, 90, 20)]))[0]
    assert wide == cells(Clicks.read(boxes=(90, 20, 30, 60)))[0]
    assert wide == [(y, x) for y in range(2, 6) for x in range(2, 6)]
    assert cells(Clicks.read(boxes=(31, 20, 31, 20))) == [[(2, 2)]]
    assert cells(Clicks.read(boxes=(119, 79, 119, 79))) == [[(7, 7)]]
    assert cells(Clicks.read(boxes=(120, 80, 120, 80))) == [[(7, 7)]]


def test_a_mask_counts_by_the_share_of_cells_it_covers():
    mask = np.zeros(HW, dtype=bool)
    mask[:10, :15] = True
    mask[10:15, :15] = True
    seeds, wanted = Clicks.read(masks=mask, negative_masks=[mask.astype(np.uint8) * 255]).seeds(
        HW, GRID
    )
    assert wanted.tolist() == [True, False]
    torch.testing.assert_close(seeds[:, 0], seeds[:, 1])
    assert seeds[[0, 8, 1], 0].tolist() == [1.0, 0.5, 0.0]
    # Cells of unequal size, and more cells than pixels.
    for hw, grid in (((7, 11), (3, 4)), ((3, 3), (8, 8))):
        full, _ = Clicks.read(masks=np.ones(hw)).seeds(hw, grid)
        assert set(full.flatten().tolist()) <= {0.0, 1.0}
        assert full.sum() == min(grid[0], hw[0]) * min(grid[1], hw[1])


def test_order_is_kept_and_marks_can_be_added():
    clicks = Clicks.read(points=(1, 1)) + Clicks.read(negative_boxes=(0, 0, 9, 9))
    assert [(one.shape, one.positive) for one in clicks.marks] == [("point", True), ("box", False)]
    assert len(clicks) == 2


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"points": (1, 2, 3)}, "a point is"),
        ({"points": [(1, "a")]}, "a point is"),
        ({"points": [(1, float("nan"))]}, "a point is"),
        ({"boxes": (1, 2)}, "a box is"),
        ({"lines": [[(1, 2, 3)]]}, "a line is|a point is"),
        ({"masks": np.zeros(3)}, "a mask is an array"),
        ({"masks": [["a"]]}, "a mask is an array"),
    ],
)
def test_other_forms_are_refused(given, message):
    with pytest.raises(InputError, match=message):
        Clicks.read(**given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "at least one mark"),
        ({"negative_points": (1, 1)}, "at least one mark"),
        ({"points": (120, 0)}, "a point must lie in the image, 120 wide and 80 high"),
        ({"points": (0, 80)}, "x from 0 to 119 and y from 0 to 79"),
        ({"points": (-0.5, 3)}, "a point must lie in the image"),
        ({"points": (1, 1), "negative_points": (500, 1)}, "a point must lie in the image"),
        ({"lines": [(0, 0), (0, 99)]}, "a line must lie in the image"),
        ({"boxes": (0, 0, 121, 9)}, "a box must lie in the image"),
        ({"masks": np.ones((80, 121))}, "a mask must have the image's size"),
        ({"masks": np.zeros((80, 120))}, "without a pixel"),
    ],
)
def test_marks_outside_and_nothing_wanted_are_refused(given, message):
    with pytest.raises(InputError, match=message):
        Clicks.read(**given).check(HW)
