"""The settings of a sweep: values of some fields of a method, combined, and what they need."""

import itertools
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from fnmatch import fnmatchcase
from typing import Any, Union, get_args, get_origin, get_type_hints

from diffuseg.attention import LayerId, layers_of
from diffuseg.errors import InputError
from diffuseg.methods import Method, Model, Needs, parse_settings, with_settings

EACH = "each"
"""As a value: every single one the model has, for the fields layers, self_layers,
heads, self_heads, levels."""

ANY = "any:"
"""Before parts joined with "+": every choice of one or more of them."""

_MOST_PARTS = 6

Key = tuple[object, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One combination of a sweep.

    Attributes:
        values: The fields that vary.
        method: The method with these values.
        needs: What it needs recorded, layers by their full names.
    """

    values: Mapping[str, object]
    method: Method
    needs: Needs

    @property
    def key(self) -> Key:
        """Settings of one key can be replayed from one record."""
        needs = self.needs
        return (
            *(needs.prompt, needs.template, needs.continued, needs.reading, needs.dialect),
            *(needs.background, needs.noise, needs.picture, needs.heads),
            *(needs.emphasis, needs.emphasis_on, needs.emphasis_rule),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Bare:
    """A model without its presets."""

    unet: Any
    preset: Mapping[str, Mapping[str, object]] = field(default_factory=dict)


def parse_grid(pairs: Sequence[str]) -> dict[str, list[str]]:
    """Read "name=value,value" texts; a value of several parts joins them with "+".

    "each" stands for every single layer, head or level, "any:A+B+C" for A, B, C, A+B and so on.

    Raises:
        InputError: One has no "=" or no name, or a name comes twice.

    Example:
        >>> parse_grid(["timestep=50,100", "levels=1,2,1+2"])
        {'timestep': ['50', '100'], 'levels': ['1', '2', '1+2']}
    """
    split = {name: text.split(",") for name, text in parse_settings(pairs).items()}
    return {name: [part.strip() for part in parts] for name, parts in split.items()}


def plan(
    method: Method, model: Model, grid: Mapping[str, object], *, one_by_one: bool = False
) -> tuple[list[Setting], list[tuple[dict[str, object], str]]]:
    """Return every combination the model can do, and those it cannot, with the reason.

    A combination that is impossible only because of a value "each" stood for is left out; a value
    that was named must be possible.

    Args:
        method: The fields that do not vary.
        model: The model, or `Bare`.
        grid: Values by field name: a list, or one value. Text is read as on the command line, and
            "each" stands for all single ones.
        one_by_one: Whether each field with several values varies alone, the others as the method
            has them, instead of all with all.

    Raises:
        InputError: No such field, no values, a value of the wrong type, or an impossible one.

    Example:
        >>> from diffuseg.methods import Attend
        >>> plan(Attend(), load("mini"), {"timestep": [50, 100]})[0][1].values  # doctest: +SKIP
        {'timestep': 100}
    """
    unet = getattr(model, "unet", None)
    layers = () if unet is None else layers_of(unet)
    named: dict[str, list[object]] = {}
    free: set[str] = set()
    for name, given in grid.items():
        options = given if isinstance(given, list) else [given]
        if EACH in options:
            free.add(name)
        named[name] = [
            value
            for one in options
            for value in (
                _each(name, method, model, layers)
                if isinstance(one, str) and one == EACH
                else [_value(method, name, part) for part in _choices(name, one)]
            )
        ]
        if not named[name]:
            raise InputError(
                "a field that varies needs values", got=f"{name}=[]", remedy="name one or more"
            )
    chosen = _alone(named) if one_by_one else _combined(named)
    return _try_all(method, model, chosen, layers, may_fail=bool(free))


def plan_rows(
    method: Method, model: Model, rows: Sequence[Mapping[str, object]]
) -> tuple[list[Setting], list[tuple[dict[str, object], str]]]:
    """Return the settings of rows the model can do, and those it cannot, with the reason.

    Args:
        method: The fields a row does not name.
        model: The model, or `Bare`.
        rows: Values by field name.

    Raises:
        InputError: There is no row, none is possible, or one has no such field.

    Example:
        >>> from diffuseg.methods import Attend
        >>> rows = [{}, {"refine": 1, "levels": (2,)}]
        >>> plan_rows(Attend(), load("mini"), rows)[0][1].method.refine  # doctest: +SKIP
        1
    """
    if not rows:
        raise InputError("rows of settings must be given", got="none", remedy="name one or more")
    known = {one.name for one in fields(method)}  # type: ignore[arg-type]
    for name in {name for row in rows for name in row} - known:
        with_settings(method, {name: None})  # says what the fields are
    unet = getattr(model, "unet", None)
    layers = () if unet is None else layers_of(unet)
    return _try_all(method, model, [dict(row) for row in rows], layers, may_fail=True)


def _try_all(
    method: Method,
    model: Model,
    rows: Sequence[dict[str, object]],
    layers: Sequence[LayerId],
    *,
    may_fail: bool,
) -> tuple[list[Setting], list[tuple[dict[str, object], str]]]:
    done: list[Setting] = []
    left_out: list[tuple[dict[str, object], str]] = []
    errors: list[InputError] = []
    for chosen in rows:
        try:
            changed = with_settings(method, chosen)
            needs = _named(changed.needs(model), layers)
            _check_heads(chosen.get("heads"), needs, layers)
        except InputError as error:
            left_out.append((chosen, f"{error.expected} (got {error.got})"))
            errors.append(error)
            continue
        done.append(Setting(values=chosen, method=changed, needs=needs))
    if errors and (not done or not may_fail):
        raise errors[0]
    return done, left_out


def joint_needs(settings: Sequence[Setting]) -> Needs:
    """Return what all of some settings with one key need, so that one record serves them.

    Example:
        >>> from diffuseg.methods import Attend
        >>> needs = [Needs(timesteps=(t,), kinds=("cross",), layers=("a",)) for t in (50, 100, 50)]
        >>> joint_needs([Setting(values={}, method=Attend(), needs=one) for one in needs]).timesteps
        (50, 100)
    """
    needs = [one.needs for one in settings]
    return replace(
        needs[0],
        timesteps=tuple(dict.fromkeys(t for one in needs for t in one.timesteps)),
        kinds=tuple(dict.fromkeys(kind for one in needs for kind in one.kinds)),
        layers=tuple(dict.fromkeys(name for one in needs for name in one.layers)),
        features=tuple(dict.fromkeys(name for one in needs for name in one.features)),
    )


def shown(value: object) -> str:
    """Return a value as it is typed after --set.

    Example:
        >>> shown((1, 2)), shown(None), shown(0.5)
        ('1+2', 'none', '0.5')
    """
    if isinstance(value, list | tuple):
        return "+".join(map(shown, value))
    return "none" if value is None else str(value)


def _combined(named: Mapping[str, list[object]]) -> list[dict[str, object]]:
    return [dict(zip(named, values, strict=True)) for values in itertools.product(*named.values())]


def _alone(named: Mapping[str, list[object]]) -> list[dict[str, object]]:
    fixed = {name: values[0] for name, values in named.items() if len(values) == 1}
    varying = {name: values for name, values in named.items() if len(values) > 1}
    if not varying:
        return [fixed]
    return [{**fixed, name: value} for name, values in varying.items() for value in values]


def _choices(name: str, value: object) -> list[object]:
    """What a value stands for: itself, or with "any:" all choices of its parts, few parts first."""
    if not isinstance(value, str) or not value.startswith(ANY):
        return [value]
    parts = value.removeprefix(ANY).split("+")
    if len(parts) > _MOST_PARTS or not all(parts):
        raise InputError(
            f"any: takes 1 to {_MOST_PARTS} parts joined with +",
            got=f"{name}={value}",
            remedy="for example levels=any:1+2+4",
        )
    sizes = range(1, len(parts) + 1)
    return ["+".join(some) for n in sizes for some in itertools.combinations(parts, n)]


def _value(method: Method, name: str, value: object) -> object:
    """A value as the field's type: "1+2" is (1, 2) where the field has several values."""
    hint = get_type_hints(type(method)).get(name)
    if isinstance(value, str) and _holds_several(hint):
        value = value.replace("+", ",")
    try:
        return getattr(with_settings(method, {name: value}), name)
    except InputError as error:
        # Alone it may contradict the fixed fields and be right beside another value.
        if error.got == value or error.got == name:
            raise
        return value


def _holds_several(hint: Any) -> bool:
    if get_origin(hint) in (Union, types.UnionType):
        return any(_holds_several(one) for one in get_args(hint))
    return get_origin(hint) is tuple


def _each(
    name: str, method: Method, model: Model, layers: Sequence[LayerId]
) -> list[tuple[object]]:
    kinds = method.needs(model).kinds
    kind = "cross" if "cross" in kinds and not name.startswith("self") else "self"
    mine = [one for one in layers if one.kind == kind]
    match name:
        case "layers" | "self_layers":
            return [(one.name,) for one in mine]
        case "levels":
            return [(factor,) for factor in sorted({one.factor for one in mine})]
        case "heads" | "self_heads":
            return [(head,) for head in range(max((one.heads for one in mine), default=0))]
    raise InputError(
        '"each" stands for the single layers, heads or levels of a model',
        got=f"{name}={EACH}",
        remedy=f"name the values: {name}=A,B",
    )


def _named(needs: Needs, layers: Sequence[LayerId]) -> Needs:
    """The needs with the full names of the layers instead of patterns and levels."""
    patterns = (needs.layers,) if isinstance(needs.layers, str) else needs.layers
    names = tuple(
        one.name
        for one in layers
        if one.kind in needs.kinds
        and (needs.levels is None or one.factor in needs.levels)
        and any(fnmatchcase(one.name, pattern) for pattern in patterns)
    )
    return replace(needs, layers=names, levels=None)


def _check_heads(heads: object, needs: Needs, layers: Sequence[LayerId]) -> None:
    if not isinstance(heads, tuple):
        return
    fewest = min((one.heads for one in layers if one.name in needs.layers and one.kind == "cross"),
                 default=0)  # fmt: skip
    if max(heads) >= fewest:
        raise InputError(
            "heads must be there in every layer used",
            got=f"head {max(heads)} of layers with {fewest}",
            remedy=f"use 0 to {fewest - 1}, or other layers",
        )
