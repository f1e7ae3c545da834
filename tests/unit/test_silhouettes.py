"""Regions of pictures: found by rare colours, told by shape alone, and clustered."""

import numpy as np
import pytest
from scipy import ndimage

from diffuseg.errors import InputError
from diffuseg.train.silhouettes import (
    UNKNOWN,
    describe_cells,
    describe_shape,
    name_regions,
    standing_out,
)
from diffuseg.world.scenes import THINGS, Scenes


def blank(side: int = 96) -> np.ndarray:
    return np.full((side, side, 3), (0.5, 0.1, -0.1), np.float32)


def tee(side: int = 96) -> np.ndarray:
    """A mask that turning and mirroring change."""
    mask = np.zeros((side, side), bool)
    mask[30:42, 24:70] = True
    mask[42:72, 52:64] = True
    return mask


def test_what_is_rare_along_the_border_stands_out_and_its_shadow_does_not() -> None:
    planes = blank()
    planes[tee()] = (0.6, -0.3, 0.2)
    planes[76:84, 20:70] *= 0.75
    found = standing_out(planes)
    near = ndimage.binary_dilation(tee(), iterations=2)
    assert np.logical_and(found, np.logical_not(near)).sum() == 0
    assert (found & tee()).sum() > 0.9 * tee().sum()


def test_a_shape_is_told_whatever_its_place_turn_size_and_hue() -> None:
    planes = blank()
    own = describe_shape(planes, tee())
    turned = describe_shape(planes, np.rot90(tee()))
    mirrored = describe_shape(planes, tee()[:, ::-1])
    moved = describe_shape(planes + 0.2, np.roll(tee(), (8, -6), (0, 1)))
    larger = describe_shape(blank(192), tee().repeat(2, 0).repeat(2, 1))
    disc = np.hypot(*(np.indices((96, 96)) - 48)) < 22
    other = np.abs(describe_shape(planes, disc) - own).sum()
    for same in (turned, mirrored, moved, larger):
        assert np.abs(same - own).sum() < 0.15 * other


def test_cells_tell_stripes_from_their_turned_selves() -> None:
    planes = blank(64)
    planes[::2, :, 0] = 0.2
    upright = describe_cells(planes)
    turned = describe_cells(planes.transpose(1, 0, 2))
    assert upright.shape == (8, 8, 9)
    assert np.abs(upright - turned).max() > 0.2


def test_names_of_scenes_are_of_things_or_of_the_rest() -> None:
    scenes = [Scenes("train", hw=(128, 128))[i] for i in range(16)]
    images = np.stack([scene.image for scene in scenes])
    maps = name_regions(images, shapes=3, textures=4, typical=1.0, seed=0)
    again = name_regions(images, shapes=3, textures=4, typical=1.0, seed=0)
    np.testing.assert_array_equal(maps, again)
    assert maps.shape == (16, 64, 64)
    assert set(np.unique(maps)) <= {*range(7), UNKNOWN}
    things = np.stack([scene.labels[::2, ::2] < len(THINGS) for scene in scenes])
    assert things[maps < 3].mean() > 0.8
    assert things[(maps >= 3) & (maps < UNKNOWN)].mean() < 0.1


def test_only_typical_silhouettes_are_named() -> None:
    images = np.stack([Scenes("train", hw=(128, 128))[i].image for i in range(16)])
    every, some = (
        name_regions(images, shapes=2, textures=2, typical=share, seed=0) for share in (1.0, 0.5)
    )
    assert 0 < (some < 2).sum() < (every < 2).sum()


def test_odd_sides_and_too_few_regions_are_refused() -> None:
    with pytest.raises(InputError, match=r"multiples of 16\n  got: 40x40"):
        name_regions(np.zeros((1, 40, 40, 3), np.uint8), shapes=2, textures=2, typical=1.0, seed=0)
    with pytest.raises(InputError, match="2 silhouettes and 2 cells of texture"):
        name_regions(np.zeros((1, 64, 64, 3), np.uint8), shapes=2, textures=2, typical=1.0, seed=0)
