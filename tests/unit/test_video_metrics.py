"""mIoU and mVC of videos, one pass equal to the definition; J, F and J&F of objects."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from diffuseg.errors import InputError
from diffuseg.eval.metrics import ConfusionMatrix
from diffuseg.eval.video_metrics import Consistency, VideoMetrics, plain_consistency
from diffuseg.eval.video_objects import (
    boundary,
    boundary_f,
    dilate,
    jaccard,
    score_objects,
    score_proposals,
    summarise,
)


def slow_clip(rng, n, size=(9, 12), k=3, change=0.05):
    """Labels of which few change from frame to frame."""
    clip = np.empty((n, *size), dtype=np.uint8)
    clip[0] = rng.integers(0, k, size)
    for i in range(1, n):
        new = rng.integers(0, k, size)
        clip[i] = np.where(rng.random(size) < change, new, clip[i - 1])
    return clip


def windows(truth, prediction, lengths):
    one = Consistency(lengths)
    for pair in zip(truth, prediction, strict=True):
        one.add(*pair)
    return one.windows()


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10_000), st.integers(1, 24), st.floats(0, 0.5))
def test_one_pass_is_the_definition(seed, n, change):
    rng = np.random.default_rng(seed)
    truth, prediction = slow_clip(rng, n, change=change), slow_clip(rng, n, change=change)
    got = windows(truth, prediction, (2, 5, 8, 16))
    for length, values in got.items():
        np.testing.assert_array_equal(values, plain_consistency(truth, prediction, length))
        assert len(values) == max(0, n - length)


def test_still_for_longer_than_a_byte_counts():
    truth = np.zeros((600, 2, 2), dtype=np.uint8)
    truth[300, 0, 0] = 1
    got = windows(truth, truth, (255,))[255]
    np.testing.assert_array_equal(got, plain_consistency(truth, truth, 255))
    assert len(got) == 345


def test_a_constant_prediction_is_steady_and_longer_windows_are_never_steadier():
    rng = np.random.default_rng(0)
    truth, prediction = slow_clip(rng, 30), slow_clip(rng, 30)
    assert (windows(truth, np.zeros_like(truth), (8,))[8] == 1).all()
    still = windows(np.zeros_like(truth), prediction, (8, 16))
    assert (still[8][: len(still[16])] >= still[16]).all()


def test_an_array_that_is_filled_again_and_again():
    truth = np.zeros((4, 6), dtype=int)
    one = Consistency((2,))
    for i in range(4):
        truth[:] = i
        one.add(truth, truth)
    assert np.isnan(one.windows()[2]).all()


def test_a_set_is_scored_over_all_windows_and_pixels():
    rng = np.random.default_rng(1)
    clips = {name: (slow_clip(rng, n), slow_clip(rng, n)) for name, n in (("a", 20), ("b", 12))}
    whole, parts, matrix = VideoMetrics(3), [], ConfusionMatrix(3)
    for name, (truth, prediction) in clips.items():
        whole.update(name, zip(truth, prediction, strict=True))
        part = VideoMetrics(3)
        part.update(name, zip(truth, prediction, strict=True))
        parts.append(part)
        matrix.update(truth, prediction)
    values = np.concatenate([plain_consistency(*pair, 8) for pair in clips.values()])
    assert whole.mvc(8) == pytest.approx(np.nanmean(values), abs=1e-12)
    assert whole.mvc(16) == pytest.approx(np.nanmean(plain_consistency(*clips["a"], 16)), abs=1e-12)
    assert whole.miou() == matrix.miou()
    assert (parts[0] + parts[1]).summary() == whole.summary()
    assert whole.summary()["frames"] == 32


def test_two_rules_for_short_videos():
    frame = np.zeros((2, 2), dtype=int)
    each, longest = VideoMetrics(2), VideoMetrics(2, short="longest")
    for metrics in (each, longest):
        metrics.update("short", [(frame, 1 - frame)] * 12)
        metrics.update("long", [(frame, frame)] * 17)
    assert (each.miou(), longest.miou()) == (pytest.approx(17 / 29), 1.0)
    assert (each.n_videos, longest.n_videos, longest.left_out) == (2, 1, ("short",))
    assert len(each.windows("short", 8)) == 4


def test_void_is_no_class_but_stands_still():
    truth = np.array([[255, 0]])
    metrics = VideoMetrics(1, lengths=(2,), undecided=255)
    metrics.update("a", [(truth, np.array([[i, 255 * (i % 2)]])) for i in (0, 0, 0, 0)])
    assert (metrics.miou(), metrics.mvc(2)) == (1.0, 1.0)


def test_nothing_to_average_is_nan():
    assert np.isnan(VideoMetrics(2).mvc(8))


def test_what_cannot_be_scored():
    frame = np.zeros((2, 2), dtype=int)
    metrics = VideoMetrics(2)
    metrics.update("a", [(frame, frame)])
    with pytest.raises(InputError, match="scored once"):
        metrics.update("a", [])
    with pytest.raises(InputError, match="one size"):
        metrics.update("b", [(frame, frame), (frame[:1], frame[:1])])
    with pytest.raises(InputError, match="were counted"):
        metrics.mvc(4)
    with pytest.raises(InputError, match="2 to 255"):
        VideoMetrics(2, lengths=(1,))
    with pytest.raises(InputError, match="videos are not"):
        metrics.__add__(metrics)
    with pytest.raises(InputError, match="one size"):
        Consistency().add(frame, frame[:1])


# Objects.


def disc(size, y, x, radius):
    rows, columns = np.ogrid[: size[0], : size[1]]
    return (rows - y) ** 2 + (columns - x) ** 2 <= radius**2


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.integers(0, 12), st.floats(0.0, 0.3))
def test_dilation_is_that_by_distances(seed, radius, share):
    rng = np.random.default_rng(seed)
    mask = rng.random(rng.integers(1, 24, 2)) < share
    if mask.any():
        want = ndimage.distance_transform_edt(~mask) <= radius + 1e-9
    else:
        want = np.zeros_like(mask)
    np.testing.assert_array_equal(dilate(mask, radius), want)


def test_a_boundary_is_one_pixel_wide_at_the_upper_left():
    mask = np.zeros((5, 5), dtype=bool)
    mask[2:, 2:] = True
    want = np.zeros((5, 5), dtype=bool)
    want[1, 1:] = want[1:, 1] = True
    np.testing.assert_array_equal(boundary(mask), want)
    assert not boundary(np.ones((3, 3), dtype=bool)).any()


def test_boundaries_near_enough_are_right():
    size = (120, 160)  # radius 2
    one = disc(size, 60, 80, 30)
    assert boundary_f(one, one) == 1
    assert boundary_f(one, np.roll(one, 2, axis=1)) == 1
    far = np.roll(one, 20, axis=1)
    assert 0 < boundary_f(one, far) < 0.5
    assert boundary_f(one, far) == pytest.approx(boundary_f(far, one))
    assert boundary_f(one, far, bound=20) == 1
    assert boundary_f(one, far, bound=300) == 1
    empty = np.zeros_like(one)
    assert (boundary_f(empty, empty), boundary_f(one, empty), jaccard(empty, empty)) == (1, 0, 1)


def clip_of_objects(n=6, size=(40, 60)):
    clip = np.zeros((n, *size), dtype=np.uint8)
    for i in range(n):
        clip[i][disc(size, 12, 10 + 3 * i, 6)] = 1
        clip[i][disc(size, 30, 45 - 3 * i, 5)] = 2
    return clip


def test_the_first_and_last_annotated_frames_are_left_out():
    truth = clip_of_objects()
    got = score_objects(zip(truth, truth, strict=True))
    assert (got.objects, got.frames, got.j_and_f) == ((1, 2), (1, 2, 3, 4), 1.0)
    wrong = truth.copy()
    wrong[[0, -1]] = 0
    assert score_objects(zip(truth, wrong, strict=True)).j_and_f == 1
    every = score_objects(zip(truth, wrong, strict=True), ends="keep")
    assert every.j.mean(axis=1).tolist() == [4 / 6, 4 / 6]
    sparse = [None if i % 2 else one for i, one in enumerate(truth)]
    assert score_objects(zip(sparse, truth, strict=True)).frames == (2,)


def test_void_is_background_and_later_objects_do_not_count():
    truth = clip_of_objects()
    truth[2][0, :] = 255
    truth[3][5, 50:] = 7
    prediction = np.where(truth == 7, 0, truth)
    assert score_objects(zip(truth, prediction, strict=True)).j_and_f == 1


def test_objects_nobody_asked_for():
    truth = clip_of_objects()
    with pytest.raises(InputError, match=r"\[9\] in frame 0"):
        score_objects(zip(truth, np.where(truth == 2, 9, truth), strict=True))
    with pytest.raises(InputError, match="no object in the first"):
        score_objects([(np.zeros((4, 4), int), np.zeros((4, 4), int))] * 3)
    with pytest.raises(InputError, match="no frame is left"):
        score_objects(zip(truth[:2], truth[:2], strict=True))
    with pytest.raises(InputError, match="one size"):
        score_objects([(truth[0], truth[0][:5])])


def test_proposals_find_their_objects():
    truth = clip_of_objects()
    swapped = np.array([0, 7, 3], dtype=np.uint8)[truth]
    got = score_proposals(list(zip(truth, swapped, strict=True)))
    assert (got.j_and_f, got.j.shape) == (1.0, (2, 6))
    fewer = np.where(truth == 2, 0, truth)
    assert score_proposals(list(zip(truth, fewer, strict=True))).j.mean(axis=1).tolist() == [1, 0]


def test_a_set_is_averaged_over_objects_not_videos():
    two = clip_of_objects()
    one = (two == 1).astype(np.uint8)
    nothing = np.zeros_like(one)
    got = summarise(
        {
            "a": score_objects(zip(two, two, strict=True)),
            "b": score_objects(zip(one, nothing, strict=True)),
        }
    )
    assert (got["objects"], got["j_mean"], got["f_mean"]) == (3, pytest.approx(2 / 3), 2 / 3)
    assert got["j_and_f"] == pytest.approx(2 / 3)
    assert (got["j_recall"], got["j_decay"]) == (pytest.approx(2 / 3), 0)
    with pytest.raises(InputError, match="no videos"):
        summarise({})
