"""From classes or a caption to the prompts an image is shown under, and their tokens."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

from diffuseg.backbones import Diffusion, Features
from diffuseg.errors import InputError
from diffuseg.image import Image
from diffuseg.methods.needs import Needs
from diffuseg.methods.nouns import Caption, read_caption
from diffuseg.models import find_captioner
from diffuseg.prompts import ClassName, ClassPrompts, TokenSpan, build_prompts, parse_classes

log = logging.getLogger(__name__)

_EMPTY = ClassPrompts(prompts=("",), names=(), spans=())


@dataclass(frozen=True, slots=True)
class Asked:
    """What is looked for in one image: the prompts, and which of their tokens name what.

    If it comes from a caption, `caption` is its text.
    """

    prompts: ClassPrompts
    spans: tuple[TokenSpan, ...]
    caption: str | None = None


@dataclass(frozen=True, slots=True)
class Words:
    """What a user has said of an image: classes, a caption, or neither."""

    classes: tuple[ClassName, ...] | None = None
    caption: Caption | None = None

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
    prompts = build_prompts(classes, needs.template, joint=joint, fits=model.fits)
    return Asked(prompts, model.token_spans(prompts))


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
