"""Captions of the world: a few dozen words in natural order, several phrasings a scene."""

from collections.abc import Sequence

import numpy as np

from diffuseg.errors import InputError
from diffuseg.world.shapes import THINGS
from diffuseg.world.sprites import COLORS
from diffuseg.world.textures import STUFF

_GLUE = (
    *(
        "a",
        "an",
        "the",
        "and",
        "with",
        "on",
        "in",
        "by",
        "of",
        "to",
        "is",
        "are",
        "there",
    ),
    *("this", "above", "under", "over", "next", "beside", "near", "behind", "front"),
    *(
        "photo",
        "picture",
        "photograph",
        "image",
        "good",
        "other",
        "object",
        "background",
    ),
)

VOCABULARY: tuple[str, ...] = (*THINGS, *COLORS, *STUFF, *_GLUE)
"""Every word a caption, a prompt template or a background prompt of the world may contain."""

Noun = tuple[str, str]
"""Colour and kind of one thing."""


def caption_things(things: Sequence[Noun], stuff: Sequence[str], rng: np.random.Generator) -> str:
    """Phrase in words what is given, in one of several ways, everything named once.

    Args:
        things: (colour, kind) of each thing; may be empty.
        stuff: Names of the regions; may be empty if there is a thing.
        rng: Chooses the phrasing and the order.

    Returns:
        Lower-case words of `VOCABULARY`, single blanks between them.

    Raises:
        InputError: Nothing to name.

    Example:
        >>> caption_things([("red", "car")], ["grass"], np.random.default_rng(11))
        'a red car on grass'
    """
    if not things and not stuff:
        raise InputError(
            "a caption names at least one thing or stuff",
            got="no names",
            remedy="pass things=[('red', 'car')] or stuff=['grass']",
        )
    nouns = [_noun(things[i]) for i in rng.permutation(len(things))]
    ground, sky = _split(stuff, rng)
    if not nouns:
        return _empty_scene(ground, sky, rng)
    listed = _listed(nouns, rng)
    forms = _forms(nouns, listed, ground, sky)
    return forms[int(rng.integers(len(forms)))]


def caption_scene(
    things: Sequence[Noun], stuff: Sequence[str], rng: np.random.Generator
) -> tuple[str, ...]:
    """At least five captions of a scene: the first names everything, the last ones only a part.

    Args:
        things: (colour, kind) of each thing, at least one.
        stuff: Names of the regions, at least one.
        rng: Chooses the phrasings.

    Example:
        >>> caption_scene([("red", "car")], ["grass"], np.random.default_rng(0))[0]
        'a red car on grass'
    """
    nouns = [_noun(things[i]) for i in rng.permutation(len(things))]
    ground, sky = _split(stuff, rng)
    captions = [_forms(nouns, " and ".join(nouns), ground, sky)[0]]
    for _ in range(12):
        phrase = caption_things(things, stuff, rng)
        if phrase not in captions:
            captions.append(phrase)
        if len(captions) == 4:
            break
    some = [things[int(i)] for i in rng.permutation(len(things))[: max(1, len(things) - 1)]]
    if len(stuff) == 1:
        captions.append(caption_things(some, stuff, rng))
    else:  # which thing stands on which region is not known here: claim no place
        part, plain = stuff[int(rng.integers(2))], " and ".join(_noun(t) for t in some)
        forms = (
            f"{plain} with {part} in the background",
            f"{part} with {plain}",
            f"{plain} and {part}",
        )
        captions.append(forms[int(rng.integers(3))])
    one = things[int(rng.integers(len(things)))]
    captions.append(_noun(one))
    return tuple(dict.fromkeys(captions))


def _noun(thing: Noun) -> str:
    color, kind = thing
    return f"{'an' if color[0] in 'aeiou' else 'a'} {color} {kind}"


def _split(stuff: Sequence[str], rng: np.random.Generator) -> tuple[str, bool]:
    """The ground regions as a phrase, and whether there is sky."""
    ground = [name for name in stuff if name != "sky"]
    ground = [ground[int(i)] for i in rng.permutation(len(ground))]
    return " and ".join(ground), "sky" in stuff


def _listed(nouns: list[str], rng: np.random.Generator) -> str:
    if len(nouns) == 1:
        return nouns[0]
    link = ("and", "and", "next to", "beside", "near", "with", "by")[int(rng.integers(7))]
    return f" {link} ".join((nouns[0], " and ".join(nouns[1:])))


def _forms(nouns: list[str], listed: str, ground: str, sky: bool) -> list[str]:
    plain = " and ".join(nouns)
    be = "is" if len(nouns) == 1 else "are"
    if ground and sky:
        return [
            f"{listed} with sky above {ground}",
            f"{listed} on {ground} under a sky",
            f"{ground} under a sky with {plain}",
            f"there {be} {plain} on {ground} under the sky",
            f"{plain} on {ground} with sky in the background",
            f"a photo of {listed} on {ground} under a sky",
            f"sky over {ground} with {plain}",
        ]
    if ground:
        return [
            f"{listed} on {ground}",
            f"{listed} on {ground}",
            f"{ground} with {plain}",
            f"there {be} {plain} on {ground}",
            f"{plain} with {ground} in the background",
            f"a picture of {listed} on {ground}",
            f"a photo of {listed} on {ground}",
            f"{plain} in front of {ground}",
        ]
    if sky:
        return [
            f"{listed} in the sky",
            f"the sky with {plain}",
            f"there {be} {plain} in the sky",
            f"{plain} with sky in the background",
            f"a photo of {listed} in the sky",
            f"sky behind {plain}",
        ]
    return [
        listed,
        f"there {be} {plain}",
        f"a picture of {listed}",
        f"a photo of {plain}",
    ]


def _empty_scene(ground: str, sky: bool, rng: np.random.Generator) -> str:
    if ground and sky:
        forms = [f"sky above {ground}", f"{ground} under a sky", f"sky over {ground}"]
    elif ground:
        forms = [ground, f"a picture of {ground}", f"there is {ground}"]
    else:
        forms = ["sky", "the sky", "a picture of the sky"]
    return forms[int(rng.integers(len(forms)))]
