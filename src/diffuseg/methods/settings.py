"""Settings of a method by name: from a model's preset, from text on a command line."""

import difflib
import json
import types
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from diffuseg.attention import AttentionRecord
from diffuseg.errors import InputError

M = TypeVar("M")
T = TypeVar("T")

Rule = tuple[bool, str, object]
"""Whether it holds, what it says, what there is instead."""


def with_settings(method: M, settings: Mapping[str, object]) -> M:
    """Return the method with fields replaced, each checked against the field's type.

    Args:
        method: A method, a frozen dataclass.
        settings: Values by field name. Text is read as the field's type: "0.5", "true", "none",
            "4,8" for several values. Lists, as JSON has them, become tuples.

    Raises:
        InputError: No field of that name, or a value of another type.

    Example:
        >>> from diffuseg.methods.attend import Attend
        >>> with_settings(Attend(), {"levels": "2,4", "refine": "1"}).levels
        (2, 4)
    """
    hints = get_type_hints(type(method))
    known = [field.name for field in fields(method)]  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for name, value in settings.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=3)
            hint = f"did you mean {' or '.join(near)}? " if near else ""
            raise InputError(
                f"a setting must be a field of {type(method).__name__}",
                got=name,
                remedy=f"{hint}its fields are {', '.join(known)}",
            )
        try:
            values[name] = _converted(value, hints[name])
        except (ValueError, TypeError) as error:
            raise InputError(
                f"{name} must be {_described(hints[name])}",
                got=value,
                remedy=f"for example {name}={_example(hints[name])}",
            ) from error
    return replace(method, **values)  # type: ignore[type-var]


def with_preset(method: M, preset: Mapping[str, object]) -> M:
    """Return the method with the fields that are None filled from a model's preset.

    Raises:
        InputError: As `with_settings`.

    Example:
        >>> from diffuseg.methods.attend import Attend
        >>> filled = with_preset(Attend(refine=2), {"timestep": 50, "refine": 0})
        >>> filled.timestep, filled.refine
        (50, 2)
    """
    known = {field.name for field in fields(method)}  # type: ignore[arg-type]
    open_ = {
        name: value
        for name, value in preset.items()
        if name not in known or getattr(method, name) is None
    }
    return with_settings(method, open_)


def recorded_preset(record: AttentionRecord, name: str) -> dict[str, object]:
    """Return the preset for a method that the recorded model had; empty if it had none.

    Example:
        >>> from diffuseg.attention.captured import Contents
        >>> recorded_preset(AttentionRecord(Contents()), "attend")
        {}
    """
    return json.loads(str(record.header.provenance.get("preset") or "{}")).get(name, {})


def given(value: T | None) -> T:
    """Return a setting that cannot be open any more.

    Raises:
        TypeError: It is None: the method has left something unfilled.

    Example:
        >>> given(300)
        300
    """
    if value is None:
        raise TypeError("a setting was left open")
    return value


def check_settings(*rules: Rule) -> None:
    """Make sure rules hold.

    Raises:
        InputError: For the first that does not.

    Example:
        >>> check_settings((True, "tau must be positive", 1.0))
    """
    for holds, expected, got in rules:
        if not holds:
            raise InputError(
                expected, got=got, remedy="change the setting, or leave it out for the model's own"
            )


def level_rule(levels: Sequence[int] | None) -> Rule:
    """The rule for resolutions, given as side of the latent divided by side of the grid.

    Example:
        >>> level_rule((1, 0))[0]
        False
    """
    return levels is None or min(levels, default=0) > 0, "levels must be 1 or more", levels


def weight_rules(
    weights: Sequence[float] | None, levels: Sequence[int] | None = None
) -> tuple[Rule, Rule]:
    """The rules for what resolutions count, and for one such number a resolution.

    Example:
        >>> [holds for holds, _, _ in weight_rules((1.0, 0.0), (2,))]
        [True, False]
    """
    return (
        (
            weights is None or (min(weights, default=-1) >= 0 and any(weights)),
            "weights must not be negative, nor all zero",
            weights,
        ),
        (
            weights is None or levels is None or len(weights) == len(levels),
            "there must be one weight a level",
            f"levels {levels}, weights {weights}",
        ),
    )


def parse_settings(pairs: Sequence[str]) -> dict[str, str]:
    """Read "name=value" texts.

    Raises:
        InputError: One has no "=" or no name, or a name comes twice.

    Example:
        >>> parse_settings(["timestep=50", "template=a {}"])
        {'timestep': '50', 'template': 'a {}'}
    """
    found: dict[str, str] = {}
    for pair in pairs:
        name, sign, value = pair.partition("=")
        if not sign or not name.strip() or name.strip() in found:
            raise InputError(
                "settings are given as name=value, each name once",
                got=pair,
                remedy="for example --set timestep=50",
            )
        found[name.strip()] = value.strip()
    return found


def _converted(value: Any, hint: Any) -> object:
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return _first_that_fits(value, get_args(hint))
    if origin is Literal:
        if value not in get_args(hint):
            raise ValueError(value)
        return value
    if origin is tuple:
        parts = value.split(",") if isinstance(value, str) else value
        if not isinstance(parts, list | tuple) or not parts:
            raise ValueError(value)
        return tuple(_converted(_stripped(part), get_args(hint)[0]) for part in parts)
    if hint in (None, type(None)):
        if value is None or (isinstance(value, str) and value.lower() == "none"):
            return None
        raise ValueError(value)
    if hint is bool:
        return _truth(value)
    if hint is str:
        if not isinstance(value, str):
            raise ValueError(value)
        return value
    if isinstance(value, bool) or (hint is int and isinstance(value, float)):
        raise ValueError(value)
    return hint(value)


def _first_that_fits(value: object, hints: Sequence[Any]) -> object:
    # "none" must become None where that is allowed, not the text "none"; unless it is a choice.
    named = [one for one in hints if get_origin(one) is Literal and value in get_args(one)]
    for hint in named or sorted(hints, key=lambda one: one is not type(None)):
        try:
            return _converted(value, hint)
        except (ValueError, TypeError):
            continue
    raise ValueError(value)


def _stripped(value: object) -> object:
    return value.strip() if isinstance(value, str) else value


def _truth(value: object) -> bool:
    if isinstance(value, bool):
        return value
    words = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    if not isinstance(value, str) or value.lower() not in words:
        raise ValueError(value)
    return words[value.lower()]


def _described(hint: Any) -> str:
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(_described(one) for one in get_args(hint))
    if origin is Literal:
        return f"one of {', '.join(map(str, get_args(hint)))}"
    if origin is tuple:
        return f"one or more values ({_described(get_args(hint)[0])}), with commas"
    plain = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
    return plain.get(hint, "none")


def _example(hint: Any) -> str:
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return _example(get_args(hint)[0])
    if origin is Literal:
        return str(get_args(hint)[0])
    if origin is tuple:
        one = get_args(hint)[0]
        return {int: "2,4", float: "0.3,0.7"}.get(one, "one,two")
    return {int: "1", float: "0.5", bool: "true"}.get(hint, "text")
