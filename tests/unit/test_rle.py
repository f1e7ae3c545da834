import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from diffuseg.errors import InputError
from diffuseg.export.rle import decode_rle, encode_rle

MASKS = arrays.arrays(bool, arrays.array_shapes(min_dims=2, max_dims=2, max_side=12))


@settings(max_examples=60, deadline=None)
@given(MASKS)
def test_round_trip(mask):
    assert np.array_equal(decode_rle(encode_rle(mask)), mask)


def test_codes_are_those_of_pycocotools():
    # Written down from pycocotools 2.0.11, mask.encode.
    disk = np.hypot(*np.mgrid[-20:20, -30:30]) < 15
    assert (
        encode_rle(disk)["counts"]
        == "_d0;k04M2M4M2O0O2N2O0O2O00000000000000000001N101N2N101N3L3N3L[b0"
    )
    assert encode_rle(np.ones((3, 5), bool))["counts"] == "0?"
    assert encode_rle(np.zeros((3, 5), bool))["counts"] == "?"
    board = np.indices((4, 4)).sum(axis=0) % 2 == 1
    assert encode_rle(board)["counts"] == "11110O10O10O0"


def test_runs_longer_than_a_character():
    mask = np.zeros((300, 400), bool)
    mask[:, 100:200] = True
    assert encode_rle(mask)["counts"] == "`Ym0`Ym0Pcj1"
    assert np.array_equal(decode_rle(encode_rle(mask)), mask)


def test_lists_of_counts_are_read_too():
    mask = np.array([[False, True], [True, True]])
    assert np.array_equal(decode_rle({"size": [2, 2], "counts": [1, 3]}), mask)


@settings(max_examples=60, deadline=None)
@given(st.text(alphabet=[chr(i) for i in range(48, 112)], max_size=12))
def test_damaged_codes_never_pass_for_masks(code):
    try:
        mask = decode_rle({"size": [3, 4], "counts": code})
    except InputError:
        return
    assert mask.shape == (3, 4)


@pytest.mark.parametrize("code", [{}, None, {"size": [2], "counts": ""}, {"size": [2, 2]}, 3])
def test_other_objects_are_refused(code):
    with pytest.raises(InputError, match="a run-length mask has a size and counts"):
        decode_rle(code)


def test_runs_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match="must fill its size\n  got: 5 pixels for 2 x 2\n  fix: "):
        decode_rle({"size": [2, 2], "counts": [2, 3]})
