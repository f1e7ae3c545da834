"""Videos from frames to labels: by a model made by hand whose labels are known, and by the
miniature, whose are not."""

from dataclasses import replace

import numpy as np
import pytest

from diffuseg.errors import InputError
from diffuseg.eval.metrics import ConfusionMatrix
from diffuseg.methods.crf import DenseCrf, crf_labels
from diffuseg.methods.vidseg import VidSeg
from diffuseg.video.segmenter import open_video_segmenter, segment_video
from support.linear import LinearDiffusion, shapes

COARSE = VidSeg(clusters=4, starts=1, modulate=False)
HAND = LinearDiffusion(scale=2)


def labels_of(found):
    return np.stack([one.labels for one in found])


def miou(truth, found):
    matrix = ConfusionMatrix(10)
    for true, mine in zip(truth, found, strict=True):
        matrix.update(true, mine)
    return matrix.miou()


# ---- what is known beforehand


def test_moving_shapes_are_followed():
    frames, truth = shapes(4)
    settings = VidSeg(clusters=4, starts=1, batch=3, steps=8)
    found = list(segment_video(frames, HAND, settings=settings, anchor=truth[0]))
    assert [one.index for one in found] == list(range(4))
    assert miou(truth, labels_of(found)) > 0.8
    assert set(np.unique(labels_of(found))) == {2, 5, 9}


def test_emerdiff_takes_every_frame_by_itself():
    frames, truth = shapes(2)
    settings = VidSeg(clusters=8, starts=1, steps=8)
    found = segment_video(frames, HAND, settings=settings, method="emerdiff", anchor=truth[0])
    assert miou(truth, labels_of(found)) > 0.6


@pytest.mark.parametrize("method", ["vidseg", "emerdiff"])
def test_a_crf_comes_after_everything_else(method):
    frames, truth = shapes(3, side=32)
    settings = replace(COARSE, batch=2, crf_bilateral=(4.0, 10.0, 20.0))
    plain = segment_video(frames, HAND, settings=settings, method=method, anchor=truth[0])
    after = segment_video(
        frames, HAND, settings=replace(settings, crf=True), method=method, anchor=truth[0]
    )
    crf = DenseCrf(bilateral=(4.0, 10.0, 20.0))
    wanted = [crf_labels(one.pixels, one.labels, crf) for one in plain]
    found = list(after)
    assert all(one.labels.dtype == np.int32 for one in found)
    assert np.array_equal(labels_of(found), np.stack(wanted))


def test_shapes_are_followed_without_modulation_and_from_another_frame():
    frames, truth = shapes(10)
    settings = replace(COARSE, batch=4)
    found = segment_video(frames, HAND, settings=settings, anchor=truth[6], anchor_frame=6)
    assert miou(truth, labels_of(found)) > 0.8


@pytest.mark.parametrize("n", [1, 5, 14, 15])
def test_every_frame_comes_once(n):
    frames, truth = shapes(n, side=32)
    found = list(segment_video(iter(frames), HAND, settings=COARSE, anchor=truth[0]))
    assert [one.index for one in found] == list(range(n))
    assert all(one.labels.shape == (32, 32) for one in found)
    assert all((one.pixels == frame).all() for one, frame in zip(found, frames, strict=True))


@pytest.mark.parametrize("n", [9, 12])
@pytest.mark.parametrize("anchor", [0, 6, 8])
def test_what_is_done_need_not_be_done_again(n, anchor):
    frames, truth = shapes(n, side=32)
    settings = replace(COARSE, batch=4)
    find = open_video_segmenter(HAND, settings, anchor=truth[anchor], anchor_frame=anchor)
    whole = list(find.pieces(frames))
    for place, piece in enumerate(whole):
        done = piece.first + len(piece.labels)
        rest = list(find.pieces(frames, done=done, chain=piece.chain))
        assert [one.first for one in rest] == [one.first for one in whole[place + 1 :]]
        for one, same in zip(rest, whole[place + 1 :], strict=True):
            assert np.array_equal(one.labels, same.labels)


def test_a_clip_that_stands_still_has_the_same_labels_throughout():
    frames, truth = shapes(1, side=32)
    still = [frames[0]] * 5
    settings = VidSeg(clusters=4, starts=1, batch=3, noise="shared", steps=8)
    found = labels_of(segment_video(still, HAND, settings=settings, anchor=truth[0]))
    assert (found == found[0]).all()


def test_the_seed_decides():
    frames, truth = shapes(2, side=32)
    settings = VidSeg(clusters=4, starts=1, steps=8)
    run = [
        labels_of(segment_video(frames, HAND, settings=settings, anchor=truth[0])) for _ in range(2)
    ]
    assert np.array_equal(*run)


# ---- what cannot be


def test_arguments_that_do_not_fit():
    frames, truth = shapes(2, side=32)
    with pytest.raises(InputError, match="from a mask, from words, or from clusters"):
        open_video_segmenter(HAND, anchor=truth[0], clusters=3)
    with pytest.raises(InputError, match="a frame of the video"):
        list(segment_video(frames, HAND, anchor=truth[0], anchor_frame=2))
    with pytest.raises(InputError, match="proportions"):
        list(segment_video(frames, HAND, anchor=truth[0][:20]))
    with pytest.raises(InputError, match="a video has frames"):
        list(segment_video([], HAND, clusters=3))
    with pytest.raises(InputError, match="naming must be"):
        open_video_segmenter(HAND, VidSeg(naming="anchor"), clusters=3)


def test_good_frames_come_before_the_error():
    frames, truth = shapes(7, side=32)
    mixed = [*frames[:6], frames[6][:24]]
    found = segment_video(mixed, HAND, settings=replace(COARSE, batch=4), anchor=truth[0])
    assert [next(found).index for _ in range(6)] == list(range(6))
    with pytest.raises(InputError, match="one size"):
        next(found)
