"""Settings by name: text from a command line, JSON from a preset."""

from dataclasses import dataclass
from typing import Literal

import pytest

from diffuseg.errors import InputError
from diffuseg.methods.settings import parse_settings, with_preset, with_settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Toy:
    steps: int = 10
    rate: float | None = None
    name: str = "x"
    mode: Literal["fast", "exact"] = "fast"
    choice: Literal["none", "some"] | None = None
    levels: tuple[int, ...] | None = None
    words: tuple[str, ...] = ()
    on: bool = False


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("steps", "3", 3),
        ("steps", 3, 3),
        ("rate", "0.5", 0.5),
        ("rate", "1", 1.0),
        ("rate", "none", None),
        ("rate", None, None),
        ("name", "none", "none"),
        ("name", "a photo of {}", "a photo of {}"),
        ("mode", "exact", "exact"),
        ("choice", "none", "none"),
        ("choice", None, None),
        ("levels", "4, 8", (4, 8)),
        ("levels", [4, 8], (4, 8)),
        ("levels", "None", None),
        ("words", "sky,sea", ("sky", "sea")),
        ("on", "true", True),
        ("on", "0", False),
        ("on", True, True),
    ],
)
def test_values(name, text, value):
    got = getattr(with_settings(Toy(), {name: text}), name)
    assert got == value
    assert type(got) is type(value)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("steps", "3.5", "steps must be a whole number"),
        ("steps", 3.5, "steps must be a whole number"),
        ("steps", True, "steps must be a whole number"),
        ("steps", "many", "steps must be a whole number"),
        ("steps", None, "steps must be a whole number"),
        ("rate", "fast", "rate must be a number or none"),
        ("mode", "slow", "mode must be one of fast, exact"),
        ("levels", "4,x", "levels must be one or more values"),
        ("levels", [], "levels must be one or more values"),
        ("on", "maybe", "on must be true or false"),
        ("name", 3, "name must be text"),
        ("stepps", "3", "must be a field of Toy"),
    ],
)
def test_errors(name, value, message):
    with pytest.raises(InputError, match=message):
        with_settings(Toy(), {name: value})


def test_unknown_names_come_with_the_nearest():
    with pytest.raises(InputError) as caught:
        with_settings(Toy(), {"stepps": "3"})
    assert "did you mean steps?" in caught.value.remedy


def test_preset_fills_only_what_is_open():
    preset = {"rate": 0.25, "levels": [2], "steps": 99}
    assert with_preset(Toy(rate=1.0), preset) == Toy(rate=1.0, levels=(2,))
    with pytest.raises(InputError, match="must be a field of Toy"):
        with_preset(Toy(), {"speed": 3})


def test_pairs():
    assert parse_settings([" a = 1", "b=x=y"]) == {"a": "1", "b": "x=y"}
    for wrong in (["a"], ["=1"], ["a=1", "a=2"]):
        with pytest.raises(InputError, match="name=value"):
            parse_settings(wrong)
