"""Which classes are stuff (grass, sky) and not things (dog, car); names prompts are written with.

OVDiff keeps no background of stuff, and no background of things that looks like stuff. It knows
stuff from a table, made by a chat model, which ships as `things_stuff.json`.
"""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Literal, get_args

from torch import Tensor

from diffuseg.errors import InputError
from diffuseg.prompts import ClassName

log = logging.getLogger(__name__)

Sort = Literal["thing", "stuff"]
Overrides = Mapping[str, str] | Callable[[str], str | None]
Embed = Callable[[list[str]], Tensor]


@dataclass(frozen=True, slots=True)
class Table:
    """What ships: sorts by name, other words for names, and names to write prompts with."""

    paper: Mapping[str, Sort]
    corrected: Mapping[str, Sort]
    synonyms: Mapping[str, str]
    fixes: Mapping[str, str]


def is_stuff(
    names: Sequence[str | ClassName],
    *,
    overrides: Overrides | None = None,
    embed: Embed | None = None,
    corrected: bool = True,
) -> tuple[bool, ...]:
    """Return for every class whether it is stuff.

    In this order decide: what the user says; the table, in which case, plurals and common synonyms
    do not matter; the label of the nearest name in the table, if there is something to measure
    that; else it is a thing, as in the paper. Of a class with synonyms the first known word counts.

    Args:
        names: Of classes, or classes with their synonyms.
        overrides: "thing" or "stuff" by name, or a function from a name to one of them or None.
        embed: Names to unit vectors, such as `Clip.embed_names`. A name it cannot know is a thing.
        corrected: Whether names the authors call mislabelled, and some the table lacks, have their
            right label; else the table is the paper's.

    Raises:
        InputError: An override is neither "thing" nor "stuff".

    Example:
        >>> is_stuff(["grass", "Dogs", "ocean", "sand"])
        (True, False, False, True)
        >>> is_stuff(["ocean", "sand"], overrides={"ocean": "stuff"}, corrected=False)
        (True, False)
    """
    table = read_table()
    known = table.corrected if corrected else table.paper
    found: list[str | None] = []
    for one in names:
        words = one.words if isinstance(one, ClassName) else (one,)
        sorts = [_overridden(word, overrides) for word in words]
        sorts += [_tabled(word, known, table.synonyms) for word in words]
        found.append(next((sort for sort in sorts if sort), None))
    unknown = [number for number, sort in enumerate(found) if sort is None]
    if unknown and embed is not None:
        asked = [_name(names[number]) for number in unknown]
        for number, sort in zip(unknown, _nearest(asked, known, embed), strict=True):
            found[number] = sort
    return tuple(sort == "stuff" for sort in found)


def prompt_name(name: str) -> str:
    """Return the name a prompt is written with: data sets' spellings in plain words.

    Example:
        >>> prompt_name("tvmonitor"), prompt_name("Mouse"), prompt_name("dog")
        ('monitor', 'computer mouse', 'dog')
    """
    return read_table().fixes.get(_plain(name), name)


@cache
def read_table() -> Table:
    """Return what ships with the package."""
    text = resources.files("diffuseg.ovdiff").joinpath("things_stuff.json").read_text("utf-8")
    held = json.loads(text)
    paper: dict[str, Sort] = dict.fromkeys(held["things"], "thing")
    paper |= dict.fromkeys(held["stuff"], "stuff")
    return Table(
        paper=paper,
        corrected=paper | held["more"] | held["corrections"],
        synonyms=held["synonyms"],
        fixes=held["class_fixes"],
    )


def _overridden(name: str, overrides: Overrides | None) -> str | None:
    if overrides is None:
        return None
    if isinstance(overrides, Mapping):
        sort = {_plain(one): sort for one, sort in overrides.items()}.get(_plain(name))
    else:
        sort = overrides(name)
    if sort is not None and sort not in get_args(Sort):
        raise InputError(
            'a class must be said to be "thing" or "stuff"',
            got=f"{name!r}: {sort!r}",
            remedy='for example {"river": "stuff"}',
        )
    return sort


def _tabled(name: str, known: Mapping[str, Sort], synonyms: Mapping[str, str]) -> Sort | None:
    for form in _singulars(_plain(name)):
        sort = known.get(form) or known.get(synonyms.get(form, ""))
        if sort:
            return sort
    return None


def _nearest(names: list[str], known: Mapping[str, Sort], embed: Embed) -> list[Sort]:
    table = list(known)
    try:
        listed = embed(table)
        vectors = [_embedded(name, embed) for name in names]
    except InputError:
        # A miniature cannot know all words of the table, so nothing can be compared with it.
        log.info("not in the table of things and stuff, so things: %s", ", ".join(names))
        return ["thing"] * len(names)
    return [
        "thing" if vector is None else known[table[int((listed @ vector).argmax())]]
        for vector in vectors
    ]


def _embedded(name: str, embed: Embed) -> Tensor | None:
    try:
        return embed([name])[0]
    except InputError as error:
        log.info("%r is a thing: %s", name, error.got)
        return None


def _name(one: str | ClassName) -> str:
    return one.name if isinstance(one, ClassName) else one


def _plain(name: str) -> str:
    return " ".join(name.casefold().replace("_", " ").replace("-", " ").split())


def _singulars(name: str) -> list[str]:
    """The name, and what it may be the plural of."""
    forms = [name]
    for ending, single in (("ies", "y"), ("ves", "f"), ("ves", "fe"), ("es", ""), ("s", "")):
        if name.endswith(ending):
            forms.append(name.removesuffix(ending) + single)
    return forms
