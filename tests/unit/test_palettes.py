import itertools

import numpy as np
import pytest

from diffuseg import palettes
from diffuseg.errors import InputError
from diffuseg.palettes import BACKGROUND, color_of, name_palette, voc_palette

SCENES = [
    *("ball", "box", "tent", "star", "ring", "moon", "house", "tree", "car", "fish", "flower"),
    *("mushroom", "grass", "sand", "water", "brick", "snow", "sky"),
]

# Ottosson's OKLab, and the full-severity simulations of Machado, Oliveira and Fernandes (2009).
LMS = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
LAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)
SIGHT = {
    "normal": np.eye(3),
    "protanopia": np.array(
        [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ]
    ),
    "deuteranopia": np.array(
        [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.011820, 0.042940, 0.968881],
        ]
    ),
    "tritanopia": np.array(
        [
            [1.255528, -0.076749, -0.178779],
            [-0.078411, 0.930809, 0.147602],
            [0.004733, 0.691367, 0.303900],
        ]
    ),
}


def seen(colors: np.ndarray, sight: str) -> np.ndarray:
    share = colors / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    linear = np.clip(linear @ SIGHT[sight].T, 0, 1)
    return np.cbrt(linear @ LMS.T) @ LAB.T


def least_distance(colors: np.ndarray, sight: str) -> float:
    lab = seen(colors, sight)
    return min(float(np.linalg.norm(a - b)) for a, b in itertools.combinations(lab, 2))


def test_voc_colours_are_those_of_the_development_kit():
    known = {0: (0, 0, 0), 1: (128, 0, 0), 2: (0, 128, 0), 15: (192, 128, 128), 20: (0, 64, 128)}
    palette = voc_palette(256)
    assert {index: tuple(palette[index].tolist()) for index in known} == known
    assert tuple(palette[255].tolist()) == (224, 224, 192)
    assert palette.dtype == np.uint8


def test_voc_colours_all_differ():
    assert len(np.unique(voc_palette(1000), axis=0)) == 1000
    assert voc_palette(0).shape == (0, 3)
    assert np.array_equal(voc_palette(300)[:256], voc_palette(256))


@pytest.mark.parametrize("n", [-1, 2**24 + 1])
def test_voc_refuses_impossible_sizes(n):
    with pytest.raises(InputError, match=f"between 0 and 16777216 colours\n  got: {n}\n  fix: ask"):
        voc_palette(n)


def test_a_name_has_one_colour_however_it_is_written():
    colors = {color_of(name) for name in ("traffic light", "Traffic_Light", " traffic  light ")}
    assert len(colors) == 1
    assert color_of("wombat") == color_of("wombat")
    assert color_of("wombat") != color_of("quokka")


def test_colours_do_not_change_between_releases():
    # Folders made with an older release keep matching: change these only with a note.
    assert color_of("sky") == (0x66, 0xAA, 0xFF)
    assert color_of("person") == (0xFF, 0x8E, 0x84)
    assert color_of("segment 0") == (0x22, 0x77, 0xE6)
    assert color_of("wombat") == (0x5E, 0x5E, 0xAA)


def test_background_is_dark_grey():
    assert color_of("background") == color_of("Background") == BACKGROUND


def test_numbered_segments_follow_the_wheel():
    numbered = name_palette([f"segment {i}" for i in range(256)])
    assert len(np.unique(numbered, axis=0)) == 256
    assert color_of("segment 256") == color_of("segment 0")


def test_common_names_have_colours_of_their_own():
    synonyms = 8
    codes = list(palettes._NAMED.values())
    assert len(set(codes)) == len(codes) - synonyms
    assert set(codes) <= set(palettes._WHEEL.split())


def test_name_palette_shapes():
    assert name_palette([]).shape == (0, 3)
    assert name_palette(("car", "tree")).dtype == np.uint8


@pytest.mark.parametrize("sight", SIGHT)
def test_the_colours_of_scenes_stay_apart_for_everybody(sight):
    assert least_distance(name_palette(SCENES), sight) >= 0.08


@pytest.mark.parametrize("sight", SIGHT)
def test_the_first_segments_stay_apart_for_everybody(sight):
    first = name_palette([f"segment {i}" for i in range(8)])
    assert least_distance(first, sight) >= 0.12
