"""The nouns of a caption, and where they stand in it.

Parts of speech come from TextBlob's tagger, whose lexicon and rules are in its package: nothing is
downloaded. Any other can be given.
"""

import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from diffuseg.errors import InputError
from diffuseg.prompts import CharSpan

Tagger = Callable[[Sequence[str]], Sequence[str]]
"""The words of a text, commas and stops included, to one part of speech each: those of nouns begin
with "NN", as in the Penn Treebank."""

PICTURE_WORDS: tuple[str, ...] = (
    *("photo", "photos", "photograph", "picture", "pictures", "image", "view", "background"),
    *("foreground", "front", "side", "top", "middle"),
)
"""Nouns that speak of the picture or of a place in it, not of what it shows."""

_WORD = re.compile(r"\w+(?:['\u2019-]\w+)*|[^\w\s]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Caption:
    """A text about an image.

    Attributes:
        text: The prompt.
        nouns: Every noun in it, in order; a noun that comes twice is there twice.
    """

    text: str
    nouns: tuple[CharSpan, ...]


def read_caption(caption: object, *, tagger: Tagger | None = None) -> Caption:
    """Find the nouns of a caption.

    Args:
        caption: Text; one that was read before is returned as it is.
        tagger: By default TextBlob's, for English.

    Raises:
        InputError: It is not text, it has no word in it, or there is not one tag a word.

    Example:
        >>> [noun.name for noun in read_caption("A red car in front of two Houses").nouns]
        ['car', 'front', 'houses']
        >>> read_caption("un chat", tagger=lambda words: ["DT", "NN"]).nouns[0].start
        3
    """
    if isinstance(caption, Caption):
        return caption
    if not isinstance(caption, str) or not re.search(r"\w", caption):
        raise InputError(
            "a caption must be text with words in it",
            got=repr(caption),
            remedy='describe the image, for example "a red car on grass"',
        )
    text = " ".join(caption.split())
    places = list(_WORD.finditer(text))
    tags = (tagger or tag_english)([place.group() for place in places])
    if len(tags) != len(places):
        raise InputError(
            "a tagger must give one tag for every word",
            got=f"{len(tags)} tags for {len(places)} words",
            remedy="tag the list it is given, commas and stops included",
        )
    nouns = tuple(
        CharSpan(name=place.group().lower(), row=0, start=place.start(), stop=place.end())
        for place, tag in zip(places, tags, strict=True)
        if tag.startswith("NN") and place.group()[0].isalnum()
    )
    return Caption(text=text, nouns=nouns)


def tag_english(words: Sequence[str]) -> list[str]:
    """Return the part of speech of every word of an English text.

    Example:
        >>> tag_english(["a", "red", "car"])
        ['DT', 'JJ', 'NN']
    """
    from textblob.en import tag

    with warnings.catch_warnings():
        # It leaves the file of its lexicon to be closed by chance.
        warnings.simplefilter("ignore", ResourceWarning)
        return [kind for _, kind in tag(" ".join(words), tokenize=False)]


def fold_plurals(names: Sequence[str]) -> dict[str, str]:
    """Return the name every noun is reported under if singular and plural are one.

    Only where both are there: "cars" alone stays "cars". The one that comes first names both.

    Example:
        >>> fold_plurals(["cars", "grass", "car"])
        {'cars': 'cars', 'grass': 'grass', 'car': 'cars'}
    """
    from textblob.inflect import singularize

    first: dict[str, str] = {}
    for name in names:
        # The rules for singulars are wrong for some words ("grass"), but the same each time.
        kin = {name, singularize(name)} | {one for one in first if singularize(one) == name}
        first[name] = next((first[one] for one in first if one in kin), name)
    return first
