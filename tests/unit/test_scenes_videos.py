"""Clips: stable identities, motion, occlusion, exact masks, any number of frames."""

from dataclasses import replace
from itertools import islice

import numpy as np
import pytest

from diffuseg.errors import InputError
from diffuseg.world import CLASSES, HELD_OUT_PAIRS, Scenes
from diffuseg.world.painting import paint_layout
from diffuseg.world.textures import Grid
from diffuseg.world.videos import Clips


@pytest.fixture(scope="module")
def clips():
    return list(islice(Clips("val", seed=2, hw=(64, 64), frames=12), 12))


def test_shapes_and_types(clips):
    for clip in clips:
        assert clip.frames.shape == (12, 64, 64, 3)
        assert clip.labels.shape == clip.instances.shape == (12, 64, 64)
        assert clip.frames.dtype == clip.labels.dtype == clip.instances.dtype == np.uint8
        assert clip.fps == 12


def test_identities_hold_through_the_clip(clips):
    for clip in clips:
        for i, track in enumerate(clip.things, start=1):
            mask = clip.instances == i
            assert (clip.labels[mask] == CLASSES.index(track.kind)).all()
            assert track.areas == tuple(mask.sum(axis=(1, 2)))
            for box, frame in zip(track.bboxes, mask, strict=True):
                if box is None:
                    assert not frame.any()
                else:
                    top, left, bottom, right = box
                    assert frame[top:bottom, left:right].sum() == frame.sum() > 0
        stuff = clip.labels[clip.instances == 0]
        assert {CLASSES[i] for i in np.unique(stuff)} <= set(clip.stuff)


def test_things_move_and_pictures_follow(clips):
    for clip in clips:
        assert all((a != b).any() for a, b in zip(clip.frames, clip.frames[1:], strict=False))
        assert (clip.instances[0] != clip.instances[-1]).any()


def test_neighbouring_frames_are_alike():
    clip = Clips("train", seed=0, hw=(64, 64), frames=64)[1]
    assert len(clip.frames) == len(clip.instances) == 64
    same = [(a == b).mean() for a, b in zip(clip.instances, clip.instances[1:], strict=False)]
    assert min(same) > 0.93


def test_things_hide_each_other_enter_and_leave():
    clips = Clips("train", seed=3, hw=(64, 64), frames=5)
    hidden = entered = left = panned = 0
    for i in range(40):
        layout = clips.layout(i)
        panned += layout.pan != (0.0, 0.0)
        if i < 20:
            for track in clips[i].things:
                entered += not track.areas[0]
                left += bool(track.areas[0]) and not track.areas[-1]
                hidden += 0.0 < min(track.visible_fractions) < 0.6
    assert hidden >= 5
    assert entered >= 1
    assert left >= 1
    assert 10 < panned < 40


def test_a_clip_has_64_frames_unless_told_otherwise():
    assert Clips().frames == 64


def test_things_grow_turn_and_come_back_under_a_moving_camera():
    layouts = [Clips("val", seed=4).layout(i) for i in range(60)]
    motions = [motion for layout in layouts for motion in layout.motions]
    factors = [motion.grow[1] / motion.grow[0] for motion in motions]
    assert max(factors) > 1.3
    assert min(factors) < 0.77
    assert sum(abs(motion.turn) > 0.25 for motion in motions) >= 10
    assert any(motion.returns for motion in motions)
    assert {layout.pan[1] > 0 for layout in layouts if layout.pan != (0.0, 0.0)} == {True, False}


def test_a_turn_and_a_growth_are_seen_in_the_masks():
    clips = Clips("val", seed=4, hw=(64, 64), frames=3)
    found = next(
        (index, number)
        for index in range(60)
        for number, motion in enumerate(clips.layout(index).motions)
        if motion.grow[1] > 1.25 * motion.grow[0] and not motion.returns
    )
    track = clips[found[0]].things[found[1]]
    whole = [
        area / share
        for area, share in zip(track.areas, track.visible_fractions, strict=True)
        if share > 0.9
    ]
    assert whole == sorted(whole)
    sprite = clips.layout(found[0]).scene.sprites[found[1]]
    motion = clips.layout(found[0]).motions[found[1]]
    assert motion.apply(sprite, 1.0).size > 1.25 * motion.apply(sprite, 0.0).size


def test_motion_does_not_depend_on_the_number_of_frames():
    few, many = Clips(hw=(64, 64), frames=3)[4], Clips(hw=(64, 64), frames=5)[4]
    assert (few.frames == many.frames[::2]).all()
    assert (few.instances == many.instances[::2]).all()
    assert few.captions == many.captions


def test_same_index_same_clip_and_splits_differ():
    one, two = (Clips("val", hw=(64, 64), frames=2)[0] for _ in range(2))
    assert (one.frames == two.frames).all()
    layouts = [repr(Clips(split).layout(i)) for split in ("train", "val", "test") for i in range(8)]
    assert len(set(layouts)) == len(layouts)
    assert Clips("train").layout(0).scene != Scenes("train").layout(0)


def test_held_out_pairs_never_occur_in_train(clips):
    stream = Clips("train", seed=1)
    sprites = [sprite for i in range(60) for sprite in stream.layout(i).scene.sprites]
    assert not HELD_OUT_PAIRS & {(s.color, s.kind) for s in sprites}
    flags = {track.held_out for clip in clips for track in clip.things}
    assert flags == {True, False}


def test_camera_pan_moves_the_ground_exactly():
    layout = replace(Clips("train").layout(0).scene, sprites=())
    grid = Grid.of((64, 64))
    still, labels, _, _ = paint_layout(layout, grid)
    panned, moved, _, _ = paint_layout(layout, grid.moved(0.0, 6 * grid.step))
    assert (labels[:, 6:] == moved[:, :-6]).all()
    assert (still[:, 7:-1] == panned[:, 1:-7]).all()


def test_clip_names_and_caption(clips):
    for clip in clips:
        kinds = {track.kind for track in clip.things}
        assert kinds <= set(clip.names) <= kinds | set(clip.stuff)
        assert set(clip.caption.split()) & set(CLASSES) == kinds | set(clip.stuff)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"frames": 1}, "a clip has 2 to 4096 frames"),
        ({"frames": 5000}, "a clip has 2 to 4096 frames"),
        ({"fps": 0}, "at least 1 frame a second"),
        ({"split": "all"}, "split must be"),
        ({"hw": (16, 16)}, "hw must be"),
        ({"seed": -2}, "seed must be"),
    ],
)
def test_bad_streams_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        Clips(**options)


def test_negative_index_is_refused():
    with pytest.raises(InputError, match="index must be"):
        Clips(hw=(64, 64))[-1]
