"""Scenes: determinism, disjoint splits, exact masks, sizes, errors."""

import hashlib
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest

from diffuseg.errors import InputError
from diffuseg.world import CLASSES, COLORS, HELD_OUT_PAIRS, STUFF, THINGS, Scenes
from diffuseg.world.composition import is_held_out
from diffuseg.world.painting import paint_layout
from diffuseg.world.sprites import Sprite, stamp
from diffuseg.world.textures import Grid, Light, paint_stuff

LIGHT = Light(y=-0.5, x=0.3, z=0.75, ambient=0.4)


def sprite(kind, **changes):
    fields = {
        "kind": kind,
        "color": "red",
        "tint": (0.5, 0.5, 0.5),
        "y": 128.0,
        "x": 128.0,
        "size": 120.0,
        "angle": 0.0,
        "mirror": False,
        "stretch": 1.0,
        "look": (0.5, 0.5, 0.5, 0.5),
    }
    return Sprite(**{**fields, **changes})


def test_classes_are_things_then_stuff():
    assert (*THINGS, *STUFF) == CLASSES
    assert (len(THINGS), len(COLORS), len(STUFF), len(set(CLASSES))) == (12, 8, 6, 18)


def test_bytes_are_pinned():
    labels, images = hashlib.sha256(), hashlib.sha256()
    for split in ("train", "val", "test"):
        for scene in islice(Scenes(split, seed=3), 2):
            labels.update(scene.labels.tobytes() + scene.instances.tobytes())
            images.update(scene.image.tobytes())
    assert labels.hexdigest()[:16] == "e6653d4bd940e4b2"
    assert images.hexdigest()[:16] == "92c140f240f5f4bd"


def test_same_index_same_scene():
    once, again = Scenes("val", seed=5, hw=(64, 64))[7], Scenes("val", seed=5, hw=(64, 64))[7]
    assert (once.image == again.image).all()
    assert (once.labels == again.labels).all()
    assert once.captions == again.captions
    assert once.things == again.things
    assert (once.seed, once.split, once.index) == (5, "val", 7)


def test_iteration_follows_the_index():
    scenes = Scenes("train", hw=(64, 64))
    for index, scene in enumerate(islice(scenes, 3)):
        assert scene.index == index
        assert (scene.image == scenes[index].image).all()


def test_layout_does_not_depend_on_the_size():
    small, large = Scenes("test", hw=(64, 64)), Scenes("test", hw=(512, 512))
    assert all(small.layout(i) == large.layout(i) for i in range(20))
    low, high = small[1].labels, Scenes("test", hw=(256, 256))[1].labels
    assert (low == high[2::4, 2::4]).mean() > 0.97


def test_splits_and_seeds_share_no_layout():
    streams = [(split, seed) for split in ("train", "val", "test") for seed in (0, 1)]
    layouts = [repr(Scenes(*stream).layout(i)) for stream in streams for i in range(60)]
    assert len(set(layouts)) == len(layouts)


def test_held_out_pairs_are_spread_over_things_and_colors():
    assert len(HELD_OUT_PAIRS) == 12
    assert {kind for _, kind in HELD_OUT_PAIRS} == set(THINGS)
    assert {color for color, _ in HELD_OUT_PAIRS} == set(COLORS)


def test_held_out_pairs_never_occur_in_train_and_do_elsewhere():
    def pairs(split):
        scenes = Scenes(split, seed=2)
        return [(s.color, s.kind) for i in range(500) for s in scenes.layout(i).sprites]

    train = pairs("train")
    assert not HELD_OUT_PAIRS & set(train)
    assert len(set(train)) == 96 - 12
    for split in ("val", "test"):
        seen = pairs(split)
        assert set(seen) >= HELD_OUT_PAIRS
        assert 0.08 < np.mean([pair in HELD_OUT_PAIRS for pair in seen]) < 0.18


def test_thing_knows_that_it_is_held_out():
    things = [thing for scene in islice(Scenes("val", hw=(64, 64)), 60) for thing in scene.things]
    flags = {thing.held_out for thing in things}
    assert flags == {True, False}
    assert all(t.held_out == is_held_out(t.color, t.kind) for t in things)


def test_every_class_is_well_represented():
    scenes = Scenes("train", seed=4)
    layouts = [scenes.layout(i) for i in range(400)]
    kinds = [s.kind for layout in layouts for s in layout.sprites]
    stuff = [name for layout in layouts for name in layout.stuff]
    assert min(kinds.count(kind) for kind in THINGS) > 0.5 * len(kinds) / 12
    assert min(stuff.count(name) for name in STUFF) > 0.5 * len(stuff) / 6
    assert {len(layout.sprites) for layout in layouts} == {1, 2, 3, 4}
    assert all(len(layout.sprites) == len({s.kind for s in layout.sprites}) for layout in layouts)


@pytest.mark.parametrize("hw", [(256, 256), (64, 64), (96, 160), (200, 128)])
def test_masks_agree_with_each_other(hw):
    for scene in islice(Scenes("val", seed=8, hw=hw), 6):
        assert scene.image.shape == (*hw, 3)
        assert scene.image.dtype == scene.labels.dtype == scene.instances.dtype == np.uint8
        assert set(np.unique(scene.labels[scene.instances == 0])) == {
            CLASSES.index(name) for name in scene.stuff
        }
        assert scene.instances.max() == len(scene.things)
        for i, thing in enumerate(scene.things, start=1):
            mask = scene.instances == i
            assert (scene.labels[mask] == CLASSES.index(thing.kind)).all()
            top, left, bottom, right = thing.bbox
            assert mask[top:bottom, left:right].sum() == mask.sum() == thing.area
            assert mask[top].any()
            assert mask[bottom - 1].any()
            assert mask[:, left].any()
            assert mask[:, right - 1].any()
        present = {thing.kind for thing in scene.things} | set(scene.stuff)
        assert scene.names == tuple(name for name in CLASSES if name in present)


def test_every_thing_can_be_seen():
    things = [thing for scene in islice(Scenes("test", seed=1), 40) for thing in scene.things]
    assert min(thing.visible_fraction for thing in things) >= 0.35
    assert max(thing.visible_fraction for thing in things) <= 1.0
    assert min(thing.visible_fraction for thing in things) < 0.9
    assert min(thing.area for thing in things) >= 250


def test_every_region_can_be_seen():
    for scene in islice(Scenes("train", seed=6, hw=(64, 64)), 40):
        for name in scene.stuff:
            assert (scene.labels == CLASSES.index(name)).mean() > 0.03


def test_the_nearer_thing_wins_and_a_ring_shows_what_is_behind():
    layout = Scenes("train").layout(0)
    ball = sprite("ball", size=60.0)
    ring = sprite("ring", size=140.0, look=(0.0, 0.0, 0.0, 0.0))
    grid = Grid.of((128, 128))
    _, labels, instances, whole = paint_layout(replace(layout, sprites=(ball, ring)), grid)
    assert (labels == CLASSES.index("ball")).sum() == (instances == 1).sum() == whole[0]
    assert (instances == 2).sum() == whole[1]
    assert instances[64, 64] == 1
    _, labels, _, _ = paint_layout(replace(layout, sprites=(ring, ball)), grid)
    assert labels[64, 64] == CLASSES.index("ball")


def test_picture_changes_where_the_mask_says():
    layout = replace(Scenes("val", seed=3).layout(2), shadow=(0.0, 0.0, 0.0))
    grid = Grid.of((128, 128))
    full, _, instances, _ = paint_layout(layout, grid)
    less, _, _, _ = paint_layout(replace(layout, sprites=layout.sprites[:-1]), grid)
    mask = instances == len(layout.sprites)
    padded = np.pad(mask, 1)
    near = np.zeros_like(mask)
    for dy in (0, 1, 2):
        for dx in (0, 1, 2):
            near |= padded[dy : dy + 128, dx : dx + 128]
    changed = (full != less).any(axis=2)
    assert not (changed & ~near).any()
    assert changed[mask].mean() > 0.98


@pytest.mark.parametrize("kind", THINGS)
def test_mask_is_half_coverage(kind):
    rng = np.random.default_rng(THINGS.index(kind))
    for _ in range(4):
        look = tuple(float(value) for value in rng.random(4))
        shape = sprite(kind, angle=float(rng.random()), look=look, mirror=bool(rng.random() < 0.5))
        drawn = stamp(shape, Grid.of((128, 128)), LIGHT)
        assert drawn is not None
        assert ((drawn.cover >= 0.5) == drawn.inside).all()
        assert drawn.inside.sum() > 300
        outline = stamp(shape, Grid.of((128, 128)))
        assert outline is not None
        assert (outline.inside == drawn.inside).all()
        assert 0.0 <= drawn.cover.min() <= drawn.cover.max() <= 1.0


def test_silhouettes_differ_between_kinds():
    masks = []
    for kind in THINGS:
        drawn = stamp(sprite(kind, size=100.0), Grid.of((64, 64)))
        assert drawn is not None
        masks.append(drawn.inside)
    for i, mask in enumerate(masks):
        for other in masks[:i]:
            overlap = (mask & other).sum() / (mask | other).sum()
            assert overlap < 0.9


def test_mirror_and_rotation_move_the_silhouette():
    grid = Grid.of((64, 64))
    plain = stamp(sprite("fish"), grid)
    mirrored = stamp(sprite("fish", mirror=True), grid)
    turned = stamp(sprite("fish", angle=0.5), grid)
    assert (mirrored.inside == plain.inside[:, ::-1]).all()
    assert (turned.inside == plain.inside[::-1, ::-1]).all()


def test_sprite_beyond_the_border_leaves_no_stamp():
    assert stamp(sprite("car", x=900.0), Grid.of((64, 64)), LIGHT) is None


@pytest.mark.parametrize("name", STUFF)
def test_stuff_is_a_function_of_the_place(name):
    grid = Grid.of((64, 64))
    here = paint_stuff(name, np.random.default_rng(1), grid, LIGHT)
    there = paint_stuff(name, np.random.default_rng(1), grid.moved(0.0, 8 * grid.step), LIGHT)
    assert (here[:, 9:-1] == there[:, 1:-9]).all()
    assert here.std() > 0.02


def test_numpy_integers_are_good_indices():
    scenes = Scenes("train", seed=0, hw=(64, 64))
    assert scenes[np.int64(2)].index == 2


@pytest.mark.parametrize(
    ("split", "seed", "hw", "message"),
    [
        ("validation", 0, (64, 64), "split must be 'train', 'val' or 'test'"),
        ("train", -1, (64, 64), "seed must be an integer of at least 0"),
        ("train", 0, (63, 64), "hw must be"),
        ("train", 0, (64, 5000), "hw must be"),
        ("train", 0, (64, 64, 3), "hw must be"),
    ],
)
def test_bad_streams_are_refused(split, seed, hw, message):
    with pytest.raises(InputError, match=message):
        Scenes(split, seed, hw)


def test_negative_index_is_refused():
    with pytest.raises(InputError, match="index must be an integer of at least 0"):
        Scenes("train", hw=(64, 64))[-1]
    with pytest.raises(InputError, match="index must be an integer of at least 0"):
        Scenes("train", hw=(64, 64)).layout(-3)
