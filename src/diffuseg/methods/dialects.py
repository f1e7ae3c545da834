"""How iSeg's code speaks of the classes of its data sets: words, the text around them, tokens.

Its published numbers come from these texts, slips included (arXiv 2409.03209 does not give them).
All tokens of a prompt take part in the clustering, so the words around the classes count.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from diffuseg.prompts import ClassName, ClassPrompts, TokenSpan

DialectName = Literal["voc", "context", "coco"]
Task = Literal["pseudo-mask", "open-vocabulary"]
Wording = Literal["reference", "intended"]

_START = "a photograph of {} and other object and background"
_FIRST_TOKEN = 4  # behind the start token and "a photograph of"

_SURROUNDINGS: Mapping[DialectName, str] = {
    "voc": "ground, land, grass, tree, building, wall, sky, lake, water",
    "context": "",
    "coco": "ground, land, grass, tree, building, wall, sky, lake, water, river, sea, railway",
}
_NEVER_JOINED = (
    "railroad, keyboard, helmet, cloud, house, mountain, ocean, road, rock, street, valley, "
    "bridge, sign"
)
# What follows the last word, and stands before the first, in the text that was run.
_TRAIL: Mapping[DialectName, str] = {"voc": "", "context": "", "coco": ", "}
_LEAD: Mapping[Task, str] = {"pseudo-mask": ", ", "open-vocabulary": ""}

_SPOKEN: Mapping[DialectName, Mapping[str, str]] = {
    "voc": {
        "aeroplane": "plane",
        "diningtable": "dining table",
        "pottedplant": "potted plant",
        "tvmonitor": "tv monitor",
    },
    "context": {
        "aeroplane": "plane",
        "pottedplant": "plant",
        "tvmonitor": "monitor",
        "computer": "laptop",
        "bedclothes": "bedding",
    },
    "coco": {
        "person": "people",
        "airplane": "plane",
        "aeroplane": "plane",
        "diningtable": "dining table",
        "pottedplant": "potted plant",
        "tv": "tv monitor",
        "tvmonitor": "tv monitor",
    },
}

# Which of the two tokens a name has are read, as the code counts; other names are one token.
_LAST = (1,)
_BOTH = (0, 1)
_PIECES: Mapping[DialectName, Mapping[str, tuple[int, ...]]] = {
    "voc": {"dining table": _BOTH, "potted plant": _LAST, "tv monitor": _LAST},
    "context": {},
    "coco": {
        "traffic light": _LAST,
        "fire hydrant": _LAST,
        "stop sign": _BOTH,
        "parking meter": _BOTH,
        "sports ball": _BOTH,
        "baseball bat": _LAST,
        "baseball glove": _LAST,
        "surfboard": _BOTH,
        "tennis racket": _LAST,
        "wine glass": _LAST,
        "hot dog": _BOTH,
        "potted plant": _LAST,
        "dining table": _BOTH,
        "tv monitor": _LAST,
        "cell phone": _BOTH,
        "teddy bear": _BOTH,
        "hair drier": _BOTH,
    },
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """The names a data set's classes have in prompts, and which of their tokens are read.

    Attributes:
        name: The data set.
        legacy: Whether tokens are counted by the code's own table instead of the tokenizer. They
            agree but for "fire hydrant": it has three tokens and the table says two, so it and all
            classes behind it are read one token early.
    """

    name: DialectName
    legacy: bool = False

    def speak(self, classes: Sequence[ClassName]) -> tuple[ClassName, ...]:
        """Return the classes with the words of the dialect; synonyms of the user's stay.

        Example:
            >>> Dialect(name="voc").speak([ClassName(name="aeroplane", words=("aeroplane",))])
            (ClassName(name='aeroplane', words=('plane',)),)
        """
        spoken = _SPOKEN[self.name]
        taken = {word.casefold() for one in classes for word in one.words}

        def say(word: str) -> str:
            said = spoken.get(word, word)
            # Another class may be called so already.
            return word if said != word and said.casefold() in taken else said

        return tuple(replace(one, words=tuple(map(say, one.words))) for one in classes)

    def narrow(self, prompts: ClassPrompts) -> ClassPrompts:
        """Return the prompts, of some names only the last word marked.

        Example:
            >>> from diffuseg.prompts import build_prompts
            >>> Dialect(name="coco").narrow(build_prompts("wine glass", "{}")).spans[0].start
            5
        """
        spans = []
        for span in prompts.spans:
            word = prompts.prompts[span.row][span.start : span.stop]
            if _PIECES[self.name].get(word) == _LAST:
                span = replace(span, start=span.stop - len(word.rpartition(" ")[2]))
            spans.append(span)
        return replace(prompts, spans=tuple(spans))

    def locate(self, prompts: ClassPrompts) -> tuple[TokenSpan, ...]:
        """Return the tokens of the classes by the code's table, in prompts of its templates.

        Example:
            >>> from diffuseg.prompts import build_prompts
            >>> prompts = build_prompts("fire hydrant, dog", "a photograph of {}")
            >>> [span.tokens for span in Dialect(name="coco", legacy=True).locate(prompts)]
            [(5,), (7,)]
        """
        found: dict[tuple[int, str], tuple[int, ...]] = {}
        starts = dict.fromkeys(range(len(prompts.prompts)), _FIRST_TOKEN)
        for span in prompts.spans:
            word = prompts.prompts[span.row][span.start : span.stop]
            pieces = _PIECES[self.name].get(word)
            start = starts[span.row]
            tokens = tuple(start + place for place in pieces or (0,))
            starts[span.row] += (1 if pieces is None else 2) + 1  # and the word "and"
            key = (span.row, span.name)
            found[key] = (*found.get(key, ()), *tokens)
        return tuple(
            TokenSpan(name=name, row=row, tokens=tokens) for (row, name), tokens in found.items()
        )


def dialect_template(name: DialectName, task: Task, wording: Wording = "reference") -> str:
    """Return a prompt of iSeg's with {} for the classes.

    Args:
        name: The data set.
        task: The two differ by a comma: without it "background" and "ground" are one word.
        wording: "reference": as it was run. "intended": with all words of the code's list, most of
            which it never joins to the prompt.

    Example:
        >>> dialect_template("context", "open-vocabulary")
        'a photograph of {} and other object and background'
    """
    around = _SURROUNDINGS[name]
    if wording == "intended":
        return ", ".join([_START, around, _NEVER_JOINED] if around else [_START])
    return _START + _LEAD[task] + around + _TRAIL[name]
