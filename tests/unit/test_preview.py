import io

import numpy as np
import pytest
from rich.console import Console

from diffuseg.errors import InputError
from diffuseg.palettes import color_of
from diffuseg.render.terminal import preview
from diffuseg.result import IGNORE, Segmentation
from support import images


def halves(hw: tuple[int, int] = (40, 40)) -> Segmentation:
    labels = np.zeros(hw, np.int32)
    labels[:, hw[1] // 2 :] = 1
    return Segmentation(labels=labels, names=("sky", "sea"))


def shown(seg: Segmentation, console: Console, image: object = None) -> list[str]:
    assert isinstance(console.file, io.StringIO)
    console.print(preview(seg, image, console=console))
    return console.file.getvalue().splitlines()


def terminal(width: int = 20) -> Console:
    return Console(
        file=io.StringIO(),
        force_terminal=True,
        color_system="truecolor",
        width=width,
        no_color=False,
        legacy_windows=False,
    )


def test_colours_in_a_terminal():
    lines = shown(halves(), terminal())
    red, green, blue = color_of("sky")
    assert f"38;2;{red};{green};{blue}" in lines[0]
    assert lines[0].count("▀") == 20
    assert sum("▀" in line for line in lines) == 10
    assert "sky 50.0 %" in "".join(lines[10:]).replace("\x1b[0m", "").replace("\x1b[2m", "")


def test_the_image_shows_through():
    seg = halves()
    lines = shown(seg, terminal(), np.full((40, 40, 3), 255, np.uint8))
    red = (255 + color_of("sky")[0] + 1) // 2
    assert f"38;2;{red};" in lines[0]


def test_plain_letters_where_there_is_no_terminal():
    lines = shown(halves(), Console(file=io.StringIO(), width=20))
    assert lines[:10] == ["s" * 10 + "e" * 10] * 10
    assert lines[10].split() == ["s", "sky", "50.0", "%"]
    assert all(line.isascii() for line in lines)


@pytest.mark.parametrize("value", ["1", "true"])
def test_no_color_is_respected(monkeypatch, value):
    monkeypatch.setenv("NO_COLOR", value)
    console = Console(file=io.StringIO(), force_terminal=True, color_system="truecolor", width=20)
    lines = shown(halves(), console)
    assert lines[0] == "s" * 10 + "e" * 10
    assert not any("\x1b" in line for line in lines)


def test_terminals_without_unicode_get_letters():
    class Latin(io.StringIO):
        encoding = "latin-1"

    console = Console(file=Latin(), force_terminal=True, color_system="truecolor", width=20)
    assert shown(halves(), console)[0] == "s" * 10 + "e" * 10


def test_undecided_pixels_and_the_rest_of_many_names():
    labels = np.arange(64 * 64).reshape(64, 64) // 64
    labels[60:] = IGNORE
    lines = shown(Segmentation.from_labels(labels), Console(file=io.StringIO(), width=72))
    text = "\n".join(lines)
    assert "." * 56 in text
    assert ". undecided 6.2 %" in text
    assert "+ 12 more" in text


@pytest.mark.parametrize("hw", [(16, 400), (400, 16), (1, 1)])
def test_extreme_shapes_stay_small(hw):
    labels = np.zeros(hw, np.int32)
    seg = Segmentation(labels=labels, names=("a",))
    for console in (terminal(80), Console(file=io.StringIO(), width=80)):
        lines = shown(seg, console)
        assert 2 <= len(lines) <= 32


def test_the_image_must_fit():
    with pytest.raises(InputError, match="same size"):
        preview(halves(), images.corners(), console=terminal())
