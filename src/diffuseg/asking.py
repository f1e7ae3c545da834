"""From classes or a caption to the prompts an image is shown under, and their tokens."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from diffuseg.backbones import Diffusion, Features
from diffuseg.errors import InputError
from diffuseg.image import Image
from diffuseg.methods.needs import Needs
from diffuseg.methods.nouns import Caption, read_caption
from diffuseg.methods.wording import pick_tokens, word_prompt
from diffuseg.models import find_captioner
from diffuseg.prompts import (
    CharSpan,
    ClassName,
    ClassPrompts,
    TokenSpan,
    build_prompts,
    parse_classes,
)

log = logging.getLogger(__name__)

_EMPTY = ClassPrompts(prompts=("",), names=(), spans=())


@dataclass(frozen=True, slots=True)
class Asked:
    """What is looked for in one image: the prompts, and which of their tokens name what.

    If it comes from a caption, `caption` is its text. `stressed` are the tokens that emphasis
    weights, where they are not those of `spans`.
    """

    prompts: ClassPrompts
    spans: tuple[TokenSpan, ...]
    caption: str | None = None
    stressed: tuple[TokenSpan, ...] | None = None


@dataclass(frozen=True, slots=True)
class Words:
    """What a user has said of an image: classes, a caption, or neither.

    `continued` is what a captioner has made of the prompts of single classes, by prompt.
    """

    classes: tuple[ClassName, ...] | None = None
    caption: Caption | None = None
    continued: Mapping[str, str] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return self.classes is not None or self.caption is not None


def read_words(classes: object = None, caption: object = None) -> Words:
    """Read classes or a caption.

    Raises:
        InputError: Both are given, or one of them cannot be used.

    Example:
        >>> read_words("car, tree").classes[0].name
        'car'
    """
    if classes is not None and caption is not None:
        raise InputError(
            "an image is described by classes or by a caption",
            got="both",
            remedy="leave one of them out: names of classes are made into a prompt themselves",
        )
    return Words(
        None if classes is None else parse_classes(classes),
        None if caption is None else read_caption(caption),
    )


def takes_captions(needs: Needs) -> bool:
    """Return whether a method works from a caption."""
    return needs.prompt in ("caption", "caption_and_empty")


def write_captions(images: Sequence[Image], captioner: object, model: Diffusion) -> list[Words]:
    """Have captions written for images.

    Raises:
        InputError: No such captioner, or it does not give one text an image.
        WeightsError: Its weights are not to be had.
    """
    found = find_captioner(captioner, model)
    texts = list(getattr(found, "caption", found)(list(images)))
    if len(texts) != len(images):
        raise InputError(
            "a captioner must give one text for every image",
            got=f"{len(texts)} texts for {len(images)} images",
            remedy="return a list as long as the one it is called with",
        )
    for image, text in zip(images, texts, strict=True):
        log.info("caption of %s: %s", image.source, getattr(text, "text", text))
    return [
        # A captioner that has nothing to say is no error of the user's.
        Words(caption=Caption(text="", nouns=()) if text == "" else read_caption(text))
        for text in texts
    ]


def continue_prompts(
    images: Sequence[Image],
    words: Sequence[Words],
    captioner: object,
    model: Diffusion,
    needs: Needs,
) -> list[Words]:
    """Have the prompt of every class continued by what a captioner sees in the image.

    Raises:
        InputError: No such captioner, or it does not give one text a prompt that begins with it.
        WeightsError: Its weights are not to be had.
    """
    found = find_captioner(captioner, model)
    told: list[Words] = []
    for image, one in zip(images, words, strict=True):
        if one.classes is None:
            told.append(one)
            continue
        prompts = list(build_prompts(one.classes, needs.template, joint=False).prompts)
        texts = list(getattr(found, "caption", found)([image] * len(prompts), prompts))
        begun = [_begins(text, prompt) for text, prompt in zip(texts, prompts, strict=False)]
        if len(texts) != len(prompts) or not all(begun):
            raise InputError(
                "a captioner must continue every prompt it is given",
                got=repr(texts) if len(texts) == len(prompts) else f"{len(texts)} texts",
                remedy="return a list of texts that begin with the second list it is called with",
            )
        # Captioners write in lower case; the class must stay as it is.
        whole = {
            prompt: prompt + text[len(prompt) :]
            for prompt, text in zip(prompts, texts, strict=True)
        }
        for text in whole.values():
            log.info("prompt for %s: %s", image.source, text)
        told.append(replace(one, continued=whole))
    return told


def _begins(text: object, prompt: str) -> bool:
    return isinstance(text, str) and text.casefold().startswith(prompt.casefold())


def ask(model: Diffusion | Features, needs: Needs, words: Words) -> Asked:
    """Return the prompts of an image, every word known to the model and within its reach.

    Raises:
        InputError: The method needs classes or a caption and has none, or takes no caption; the
            model cannot know a word, or reads none.
    """
    if needs.prompt == "empty":
        return Asked(_EMPTY, ())
    if isinstance(model, Features):
        raise InputError(
            "methods with a prompt need a model that reads text",
            got=f"{model.name}, a vision transformer",
            remedy='use needs with prompt="empty"',
        )
    if words.caption is not None:
        if not takes_captions(needs):
            raise InputError(
                "a caption is for methods that look for its nouns",
                got=repr(words.caption.text),
                remedy='name classes, or use method="semantic-diffseg"',
            )
        return _with_empty(_ask_caption(model, words.caption), needs)
    if words.classes is None:
        raise InputError(
            "this method needs the names of the classes to look for",
            got="none",
            remedy='name them, for example "car, tree, grass"',
        )
    if needs.continued or needs.reading != "words":
        return _ask_each(model, needs, words)
    return _with_empty(_ask_classes(model, needs, words.classes), needs)


def _ask_classes(model: Diffusion, needs: Needs, classes: tuple[ClassName, ...]) -> Asked:
    if needs.background:
        if any(one.name.casefold() == "background" for one in classes):
            raise InputError(
                "the background is either a class of yours or found by words",
                got="the class 'background' and background words",
                remedy="leave one of them out",
            )
        surroundings = ClassName(name="background", words=needs.background)
        classes = parse_classes([*classes, surroundings])
    model.check_words([word for one in classes for word in one.words])
    joint = needs.prompt != "per_class"
    dialect = needs.dialect
    if dialect is not None:
        classes = dialect.speak(classes)
    prompts = build_prompts(classes, needs.template, joint=joint, fits=model.fits)
    if dialect is None:
        return Asked(prompts, model.token_spans(prompts))
    if dialect.legacy:
        return Asked(prompts, dialect.locate(prompts))
    prompts = dialect.narrow(prompts)
    return Asked(prompts, model.token_spans(prompts))


def _ask_each(model: Diffusion, needs: Needs, words: Words) -> Asked:
    """One prompt a class, continued where a captioner has done so."""
    classes = words.classes or ()
    model.check_words([word for one in classes for word in one.words])
    bare = build_prompts(classes, needs.template, joint=False)
    model.check_words(list(words.continued.values()))
    worded = [
        word_prompt(
            _fitted(model, words.continued.get(prompt, prompt), at_least=len(prompt)),
            span,
            needs.reading,
        )
        for prompt, span in zip(bare.prompts, bare.spans, strict=True)
    ]
    texts = tuple(one.text for one in worded)

    def located(spans: Sequence[CharSpan]) -> tuple[TokenSpan, ...]:
        return model.token_spans(replace(bare, prompts=texts, spans=tuple(spans)))

    named = located([one.named for one in worded])
    behind = located([one.following for one in worded if one.following is not None])
    following = {span.row: span.tokens for span in behind}
    spans = tuple(
        replace(
            span,
            tokens=pick_tokens(span.tokens, needs.reading, following.get(span.row, ())),
        )
        for span in named
    )
    prompts = replace(bare, prompts=texts, spans=tuple(one.named for one in worded))
    return Asked(prompts, spans, stressed=located([one.stressed for one in worded]))


def _fitted(model: Diffusion, text: str, *, at_least: int) -> str:
    """As many words of a text as the model can read, never less than its beginning."""
    whole = text
    while not model.fits(text) and len(text) > at_least:
        text = text[:at_least] + text[at_least:].rpartition(" ")[0]
    if text != whole:
        log.warning("a prompt is too long for the model, left out: %s", whole[len(text) :])
    return text


def _ask_caption(model: Diffusion, caption: Caption) -> Asked:
    model.check_words([caption.text])
    text = caption.text
    while not model.fits(text):
        shorter = text.rpartition(" ")[0]
        if not shorter:
            raise InputError(
                "the first word of a caption must fit the text the model can read",
                got=repr(text[:60]),
                remedy="shorten it",
            )
        text = shorter
    if text != caption.text:
        log.warning(
            "the caption is too long for the model, left out: %s", caption.text[len(text) :]
        )
    nouns = tuple(noun for noun in caption.nouns if noun.stop <= len(text))
    names = tuple(dict.fromkeys(noun.name for noun in nouns))
    prompts = ClassPrompts(prompts=(text,), names=names, spans=nouns)
    return Asked(prompts, model.token_spans(prompts), caption.text)


def _with_empty(asked: Asked, needs: Needs) -> Asked:
    """The same and, if the method needs it, the empty prompt in a row of its own."""
    if needs.prompt != "caption_and_empty":
        return asked
    prompts = replace(asked.prompts, prompts=(*asked.prompts.prompts, ""))
    return replace(asked, prompts=prompts)
