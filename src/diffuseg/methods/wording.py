"""One prompt a class: what a captioner adds to it, and which of its tokens stand for the class.

DiffSegmenter (arXiv 2309.02773) lets a captioner continue "a photograph of a dog", stresses the
class word, and reads the attention to the verb behind it ("running") together with the class's. Its
code has three ways of doing so, one a data set, kept here under their names.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from diffuseg.emphasis import read_emphasis
from diffuseg.errors import InputError
from diffuseg.prompts import CharSpan

Profile = Literal["voc12", "voc10", "coco"]
Reading = Literal["words", "attributes", "voc12", "voc10", "coco", "coco-legacy"]
"""Which tokens stand for a class.

"words": all pieces of its words. "attributes": and those of a word in -ing that follows. "voc12",
"voc10", "coco": as the authors' code for that data set has it, one piece of the class and one
behind it. "coco-legacy": the latter one place too far, as that code has it.
"""

PREFIXES: dict[str, str] = {
    "voc12": "a photograph of ",
    "voc10": "a photography of ",
    "coco": "a photography of ",
}
"""What stands before the class in the authors' prompts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Worded:
    """A prompt for one class.

    Attributes:
        text: The prompt.
        named: The class in it.
        stressed: The part that emphasis weights.
        following: The word right behind the class, if it ends in "ing".
    """

    text: str
    named: CharSpan
    stressed: CharSpan
    following: CharSpan | None = None


def stressed_prompt(profile: Profile, name: str, caption: str) -> str:
    """Write a prompt as the authors' code does, "++" behind the class's last word.

    Args:
        profile: Whose way of writing.
        name: The class.
        caption: Begins with the profile's prefix and the class.

    Raises:
        InputError: The caption ends before the class does.

    Example:
        >>> stressed_prompt("coco", "traffic light", "a photography of traffic light on a pole")
        'a photography of traffic light++ on a pole'
    """
    if profile == "voc12":
        begun = PREFIXES[profile] + name
        return f"{begun}++{caption[len(begun) :]}"
    words, named = caption.split(" "), name.split(" ")
    place = 2 + len(named)
    if len(words) <= place:
        raise InputError(
            "a caption must begin with the words before the class, and the class",
            got=repr(caption),
            remedy=f"let it begin with {PREFIXES[profile] + name!r}",
        )
    words[place] = f"{named[-1]}++"
    return " ".join(words)


def pick_tokens(
    named: Sequence[int], reading: Reading, following: Sequence[int] = ()
) -> tuple[int, ...]:
    """Choose the tokens whose attention is read for a class.

    Args:
        named: The tokens of the class, ascending; 0 is the start token.
        reading: The rule.
        following: The tokens of the word right behind the class if that ends in -ing, else none.

    Example:
        >>> pick_tokens((4, 5), "coco", (6,)), pick_tokens((4, 5), "coco-legacy", (6,))
        ((5, 6), (5, 7))
        >>> pick_tokens((4, 5), "words", (6,)), pick_tokens((4, 5), "attributes", (6,))
        ((4, 5), (4, 5, 6))
    """
    match reading:
        case "words":
            return tuple(named)
        case "attributes":
            return (*named, *following)
        case "voc12":
            first = named[0]
        case _:
            first = named[-1]
    if not following:
        return (first,)
    return (first, first + (2 if reading == "coco-legacy" else 1))


def word_prompt(text: str, named: CharSpan, reading: Reading) -> Worded:
    """Find in a prompt what is stressed and what follows the class.

    Args:
        text: A prompt that names one class, perhaps continued by a captioner.
        named: The class in it.
        reading: For a profile of the authors, the prompt is written their way.

    Raises:
        InputError: The prompt does not begin as the profile's does.

    Example:
        >>> span = CharSpan(name="dog", row=0, start=16, stop=19)
        >>> worded = word_prompt("a photograph of dog running", span, "attributes")
        >>> worded.following
        CharSpan(name='dog', row=0, start=20, stop=27)
    """
    stressed = named
    profile = reading.removesuffix("-legacy")
    if profile in get_args(Profile):
        prefix, word = PREFIXES[profile], text[named.start : named.stop]
        if not text.startswith(prefix) or named.start != len(prefix):
            raise InputError(
                f"prompts of the profile {profile!r} begin with {prefix!r}",
                got=repr(text),
                remedy=f'use template="{prefix}{{}}"',
            )
        if any(letter in word for letter in "()+\\"):
            raise InputError(
                f"class names of the profile {profile!r} must be free of weights",
                got=repr(word),
                remedy='leave out "+" and parentheses, or use tokens="words"',
            )
        written = stressed_prompt(profile, word, text)  # type: ignore[arg-type]
        text, weighted = read_emphasis(written)
        start, stop, _ = weighted[0]
        stressed = CharSpan(name=named.name, row=named.row, start=start, stop=stop)
    behind = text[named.stop :].split()
    after = behind[0] if behind and text[named.stop].isspace() else ""
    following = None
    if after.endswith("ing"):
        start = text.index(after, named.stop)
        stop = start + len(after)
        following = CharSpan(name=named.name, row=named.row, start=start, stop=stop)
    return Worded(text=text, named=named, stressed=stressed, following=following)
