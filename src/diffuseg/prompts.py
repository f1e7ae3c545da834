"""From class names to prompts, and from the places of words in a prompt to token indices.

A class may have several names (synonyms); they are searched for together and reported under the
first. Where a word stands is known from building the prompt, never searched for, so a class called
"photo" is found at its own place in "a photo of photo".
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from itertools import groupby, pairwise

from diffuseg.errors import InputError

TEMPLATE = "a photo of {}"
_SLOT = "{}"
_JOINER = " and "


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassName:
    """One class: the name it is reported under and every word that stands for it.

    Attributes:
        name: As the user wrote it, outer and doubled blanks removed.
        words: `name` first, then its synonyms.
    """

    name: str
    words: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CharSpan:
    """Where a class is named: characters `start` to `stop` (excluded) of prompt `row`."""

    name: str
    row: int
    start: int
    stop: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenSpan:
    """The tokens that name a class in one prompt.

    Attributes:
        name: The class.
        row: Which prompt of the batch.
        tokens: Ascending indices into the token sequence; 0 is the start token.
    """

    name: str
    row: int
    tokens: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassPrompts:
    """Prompts that name classes, and where in them every class is named.

    Attributes:
        prompts: One text a row of the batch.
        names: The classes in the user's order.
        spans: In the order of the prompts; a class has one for each of its words.
    """

    prompts: tuple[str, ...]
    names: tuple[str, ...]
    spans: tuple[CharSpan, ...]


def parse_classes(classes: object) -> tuple[ClassName, ...]:
    """Read class names in any of the forms users write them.

    Args:
        classes: Text with commas, or an ordered list. An item is a name or a tuple of synonyms;
            "|" also separates synonyms. Case is kept, and ignored when names are compared.

    Raises:
        InputError: Nothing is named, a name is empty or not text, two classes share a word, or the
            container has no order.

    Example:
        >>> [item.words for item in parse_classes("car, sofa|couch")]
        [('car',), ('sofa', 'couch')]
        >>> parse_classes(["tree", ("person", "pedestrian")])[1].name
        'person'
    """
    parsed = tuple(_parse_class(item, classes) for item in _items(classes))
    if not parsed:
        raise InputError(
            "at least one class must be named", got=classes, remedy='for example "car, tree"'
        )
    owner: dict[str, str] = {}
    for item in parsed:
        for word in item.words:
            key = word.casefold()
            if key in owner:
                raise InputError(
                    "every word may stand for one class, once (upper and lower case are the same)",
                    got=f"{word!r} in {owner[key]!r} and in {item.name!r}",
                    remedy="remove the duplicate, or give synonyms of one class as a tuple "
                    "('sofa', 'couch') or as \"sofa|couch\"",
                )
            owner[key] = item.name
    return parsed


def _items(classes: object) -> list[object]:
    if isinstance(classes, str):
        return list(classes.split(",")) if classes.strip() else []
    if isinstance(classes, ClassName):
        return [classes]
    if isinstance(classes, Mapping | Set | bytes) or not isinstance(classes, Iterable):
        raise InputError(
            "classes must be text with commas or an ordered list of names",
            got=f"{type(classes).__name__}: {classes!r}",
            remedy='pass "car, tree" or ["car", ("sofa", "couch")]',
        )
    return list(classes)


def _parse_class(item: object, classes: object) -> ClassName:
    if isinstance(item, ClassName):
        return item
    parts = list(item) if isinstance(item, tuple | list) else [item]
    words: list[str] = []
    for part in parts:
        if not isinstance(part, str):
            raise InputError(
                "a class must be a name or a tuple of synonyms",
                got=f"{part!r} ({type(part).__name__})",
                remedy='name it with text, for example ["car", ("sofa", "couch")]',
            )
        words += [" ".join(word.split()) for word in part.split("|")]
    if not words or not all(words):
        raise InputError(
            "every class must have a name that is not empty",
            got=classes,
            remedy="remove the empty entry (a doubled or trailing comma leaves one)",
        )
    return ClassName(name=words[0], words=tuple(words))


def build_prompts(
    classes: object,
    template: str = TEMPLATE,
    *,
    joint: bool = True,
    fits: Callable[[str], bool] | None = None,
) -> ClassPrompts:
    """Write the prompts that name the classes.

    Args:
        classes: As for `parse_classes`.
        template: Text with one "{}" where the names go.
        joint: All names in one prompt, joined by " and "; else one prompt a name, synonyms too.
        fits: Whether a prompt fits a model's context (`Diffusion.fits`). A joint prompt that does
            not is dealt out over as few prompts as will do, about as many classes in each; a class
            is never torn apart.

    Raises:
        InputError: As `parse_classes`; the template has not exactly one "{}"; a class alone does
            not fit.

    Example:
        >>> build_prompts("dog, sofa|couch").prompts
        ('a photo of dog and sofa and couch',)
        >>> prompts = build_prompts("dog, sofa|couch", joint=False)
        >>> prompts.prompts[2], prompts.spans[2].name
        ('a photo of couch', 'sofa')
    """
    if not isinstance(template, str) or template.count(_SLOT) != 1:
        raise InputError(
            "the template must be text with one {} where the names go",
            got=template,
            remedy=f"for example {TEMPLATE!r}",
        )
    parsed = parse_classes(classes)
    if joint:
        rows = _deal(parsed, template, fits)
    else:
        rows = [[(item.name, word)] for item in parsed for word in item.words]
    written = [_write(row, template, number) for number, row in enumerate(rows)]
    return ClassPrompts(
        prompts=tuple(text for text, _ in written),
        names=tuple(item.name for item in parsed),
        spans=tuple(span for _, spans in written for span in spans),
    )


_Named = tuple[str, str]  # class, the word that stands for it here


def _write(row: Sequence[_Named], template: str, number: int) -> tuple[str, list[CharSpan]]:
    before, after = template.split(_SLOT)
    spans: list[CharSpan] = []
    start = len(before)
    for name, word in row:
        spans.append(CharSpan(name=name, row=number, start=start, stop=start + len(word)))
        start += len(word) + len(_JOINER)
    return before + _JOINER.join(word for _, word in row) + after, spans


def _deal(
    classes: Sequence[ClassName], template: str, fits: Callable[[str], bool] | None
) -> list[list[_Named]]:
    def named(group: Sequence[ClassName]) -> list[_Named]:
        return [(item.name, word) for item in group for word in item.words]

    def fit(group: Sequence[ClassName]) -> bool:
        return fits is None or fits(_write(named(group), template, 0)[0])

    groups: list[list[ClassName]] = []
    for item in classes:
        if groups and fit([*groups[-1], item]):
            groups[-1].append(item)
        elif fit([item]):
            groups.append([item])
        else:
            raise InputError(
                "one class with its synonyms must fit the text the model can read",
                got=_write(named([item]), template, 0)[0],
                remedy="use a shorter template, a shorter name or fewer synonyms",
            )
    # Classes compete inside a prompt, so prompts of like length treat them alike.
    count, total = len(groups), len(classes)
    bounds = [total * number // count for number in range(count + 1)]
    even = [classes[low:high] for low, high in pairwise(bounds)]
    return [named(group) for group in (even if all(map(fit, even)) else groups)]


def locate_tokens(
    prompts: ClassPrompts, offsets: Sequence[Sequence[tuple[int, int]]], *, context: int
) -> tuple[TokenSpan, ...]:
    """Turn character spans into token indices.

    Args:
        prompts: The prompts and where they name the classes.
        offsets: For each prompt, the characters (start, stop) every token stands for, start and end
            token included, nothing cut off; (n, n) for a token that stands for none.
        context: Length of the model's token sequence, start and end token included.

    Returns:
        For each prompt, its classes in order; several words of a class in one prompt make one span.

    Raises:
        InputError: A word lies behind the end of the context, or has no token at all.

    Example:
        >>> prompts = build_prompts("dog", "my {}s")
        >>> locate_tokens(prompts, [[(0, 0), (0, 2), (3, 7), (0, 0)]], context=77)
        (TokenSpan(name='dog', row=0, tokens=(2,)),)
    """
    found: list[TokenSpan] = []
    for (row, name), group in groupby(prompts.spans, key=lambda span: (span.row, span.name)):
        tokens: set[int] = set()
        for span in group:
            hits = [
                index
                for index, (start, stop) in enumerate(offsets[row])
                if start < span.stop and stop > span.start and start < stop
            ]
            word = prompts.prompts[row][span.start : span.stop]
            if not hits:
                raise InputError(
                    "every class name must be something the model's tokenizer can read",
                    got=f"{word!r}",
                    remedy="write the name in letters",
                )
            if hits[-1] >= context - 1:  # the last place is the end token's
                raise InputError(
                    f"every class name must lie within the {context - 2} tokens the model reads",
                    got=f"{word!r} at tokens {hits[0]} to {hits[-1]} of a prompt of "
                    f"{len(offsets[row]) - 2} tokens",
                    remedy="name fewer classes, shorten the template, or let the prompt be split "
                    "(build_prompts with fits=model.fits)",
                )
            tokens.update(hits)
        found.append(TokenSpan(name=name, row=row, tokens=tuple(sorted(tokens))))
    return tuple(found)


def find_word(prompt: str, word: str) -> tuple[tuple[int, int], ...]:
    """Every place (start, stop) where `word` stands in a prompt as a whole word, in any case.

    Example:
        >>> find_word("a cat and a catalogue: Cat", "cat")
        ((2, 5), (23, 26))
    """
    pattern = rf"(?<!\w){re.escape(word)}(?!\w)"
    return tuple(match.span() for match in re.finditer(pattern, prompt, re.IGNORECASE))
