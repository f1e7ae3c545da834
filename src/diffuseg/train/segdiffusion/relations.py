"""Names of classes: how one says them, and which of them may lie on the same pixels.

"vegetation" is not absent from a picture because its data set called all of it "tree". What is
related stands in a file of plain words beside this one; a user's own lines are added to it.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
from jaxtyping import Bool

from diffuseg.errors import InputError

_ENDINGS = ("-merged", "-other", "-stuff")  # COCO's
_LINE = re.compile(r"([^=:~]+)([=:~])(.+)")


def spoken(name: str) -> str:
    """A class as one would say it: data sets write "wall-other-merged" and "sofa|couch".

    Example:
        >>> spoken("wall-other-merged"), spoken("sofa|couch"), spoken("traffic_light")
        ('wall', 'sofa', 'traffic light')
    """
    first = name.split("|")[0].strip().replace("_", " ")
    for ending in _ENDINGS:
        first = first.removesuffix(ending)
    return first.strip() or name


@dataclass(frozen=True, slots=True, kw_only=True)
class Relations:
    """Which names speak of the same pixels.

    Attributes:
        heads: Of words for one thing the one that stands for them all.
        pairs: Of these, two that overlap: a thing and its kinds or parts, and others.
    """

    heads: dict[str, str]
    pairs: frozenset[tuple[str, str]]

    def head(self, name: str) -> str:
        """The word that stands for a class and its synonyms.

        Example:
            >>> read_relations().head("Couch") == read_relations().head("sofa")
            True
        """
        key = spoken(name).casefold()
        return self.heads.get(key, key)

    def table(self, classes: Sequence[str]) -> Bool[np.ndarray, "k k"]:
        """Which classes are related to which; each is to itself.

        Example:
            >>> read_relations().table(["tree", "vegetation", "sky"])[0].tolist()
            [True, True, False]
        """
        heads = [self.head(name) for name in classes]
        return np.array(
            [[a == b or (a, b) in self.pairs for b in heads] for a in heads], dtype=bool
        ).reshape(len(heads), len(heads))


def read_relations(lines: Sequence[str] = ()) -> Relations:
    """What is known of names, and what a user adds.

    Args:
        lines: "a = b" for words of one thing, "a: b, c" where a is wider than b and c or the whole
            of them, "a ~ b" where they overlap otherwise. What is wider than a is wider than b,
            too.

    Raises:
        InputError: A line is none of these.

    Example:
        >>> own = read_relations(["lynx: bobcat"])
        >>> own.table(["bobcat", "lynx"])[0].tolist()
        [True, True]
    """
    shipped = resources.files("diffuseg.train.segdiffusion") / "related.txt"
    rows = [_parse(one) for one in [*shipped.read_text("utf-8").splitlines(), *lines] if _says(one)]
    heads = _joined([names for sign, names in rows if sign == "="])
    below: dict[str, set[str]] = {}
    pairs: set[tuple[str, str]] = set()
    for sign, names in rows:
        first, *others = (heads.get(name, name) for name in names)
        if sign == ":":
            below.setdefault(first, set()).update(others)
        elif sign == "~":
            pairs |= {(first, one) for one in others}
    for first in below:
        pairs |= {(first, one) for one in _descendants(first, below)}
    return Relations(heads=heads, pairs=frozenset(pairs | {(b, a) for a, b in pairs}))


def read_lines(path: Path) -> tuple[str, ...]:
    """The lines of a user's file, without what is empty or a comment.

    Raises:
        InputError: It cannot be read, or a line says no relation.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            "related names are read from a text file", got=f"{path}: {error}", remedy="check it"
        ) from error
    found = tuple(one.strip() for one in text.splitlines() if _says(one))
    for one in found:
        _parse(one)
    return found


def _says(line: str) -> bool:
    return bool(line.strip()) and not line.lstrip().startswith("#")


def _parse(line: str) -> tuple[str, list[str]]:
    found = _LINE.fullmatch(line.strip())
    names: list[str] = []
    if found:
        first, sign, rest = found.groups()
        names = [
            spoken(one.strip()).casefold()
            for one in (first, *rest.split("=" if sign == "=" else ","))
        ]
    if not found or not all(names) or any(set(one) & set("=:~") for one in names):
        raise InputError(
            "related names are told as a = b, a: b, c or a ~ b, c",
            got=line,
            remedy='for example "sofa = couch", "vehicle: car, bus" or "rider ~ bicycle"',
        )
    return found.group(2), names


def _joined(groups: Iterable[Sequence[str]]) -> dict[str, str]:
    """Every word to the first of those it is the same as, over all groups that meet."""
    heads: dict[str, str] = {}
    for names in groups:
        meet = {heads.get(name, name) for name in names}
        first = heads.get(names[0], names[0])
        heads |= {name: first for name, head in heads.items() if head in meet}
        heads |= dict.fromkeys(names, first)
    return heads


def _descendants(first: str, below: dict[str, set[str]]) -> set[str]:
    found: set[str] = set()
    ahead = [first]
    while ahead:
        new = below.get(ahead.pop(), set()) - found
        found |= new
        ahead += new
    return found - {first}
