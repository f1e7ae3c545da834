"""A model and a method joined, called with images."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from diffuseg.asking import (
    Words,
    ask,
    continue_prompts,
    read_words,
    takes_captions,
    write_captions,
)
from diffuseg.attention import AttentionRecord
from diffuseg.backbones import Features
from diffuseg.batch import Job, Shot, capture_batch, group_jobs
from diffuseg.errors import InputError
from diffuseg.filtering import ClassFilter, run_filter
from diffuseg.image import Image, read_image, working_hw
from diffuseg.methods import Method, Needs
from diffuseg.methods.nouns import Caption
from diffuseg.models import find_captioner, model_name
from diffuseg.prompts import ClassName, parse_classes
from diffuseg.result import Segmentation


@dataclass(frozen=True, slots=True, kw_only=True)
class Segmenter:
    """A model, a method and their settings: an image in, a segmentation out.

    Made by `build_segmenter`.

    Attributes:
        model: What the method runs on: a diffusion model, or a vision transformer.
        method: The method.
        classes: What is looked for when a call names nothing else.
        caption: What is read instead of classes, by methods that look for its nouns.
        captioner: What writes a caption where neither is given, or continues the prompts of
            methods that have them continued; None: the model's own.
        class_filter: What says which of the classes an image shows; the others are not looked for.
        seed: Seed of the noise, the same noise for every image.
        size: Side of the square whose area the model sees; None: the side it was trained at.
        fit: "aspect" keeps the image's proportions, "square" does not.
        keep_scores: Whether results carry the score maps of all classes.
    """

    model: Any
    method: Method
    classes: tuple[ClassName, ...] | None = None
    caption: Caption | None = None
    captioner: object = None
    class_filter: ClassFilter | None = None
    seed: int = 0
    size: int | None = None
    fit: str = "aspect"
    keep_scores: bool = False

    def __call__(
        self, image: object, classes: object = None, *, caption: object = None
    ) -> Segmentation:
        """Segment one image, in any form `read_image` takes; for other words than the usual.

        Raises:
            InputError: The image cannot be read, or a class or the caption is not usable.
        """
        return self.many([image], [classes], [caption])[0]

    def many(
        self,
        images: Sequence[object],
        classes: Sequence[object] | None = None,
        captions: Sequence[object] | None = None,
    ) -> list[Segmentation]:
        """Segment several images, those of one working size together.

        Args:
            images: In any form `read_image` takes.
            classes: One class list an image; None, or None for an image: `self.classes`.
            captions: One caption an image; None, or None for an image: `self.caption`.

        Raises:
            InputError: An image cannot be read, or a class or a caption is not usable.
        """
        start = time.perf_counter()
        held = [read_image(image) for image in images]
        seconds = {"read": (time.perf_counter() - start) / max(1, len(held))}
        needs = self.method.needs(self.model)
        start = time.perf_counter()
        words = self._words(held, classes, captions, needs)
        if takes_captions(needs):
            seconds["caption"] = (time.perf_counter() - start) / max(1, len(held))
        if self.class_filter is not None:
            start = time.perf_counter()
            words = self._kept(held, words)
            seconds["filter"] = (time.perf_counter() - start) / max(1, len(held))
        if needs.continued:
            start = time.perf_counter()
            words = continue_prompts(held, words, self.captioner, self.model, needs)
            seconds["caption"] = (time.perf_counter() - start) / max(1, len(held))
        jobs = [
            Job(image, ask(self.model, needs, one), self._hw(image))
            for image, one in zip(held, words, strict=True)
        ]
        results: dict[int, Segmentation] = {}
        for group in group_jobs(jobs):
            shots = capture_batch([jobs[i] for i in group], self.model, needs, self.seed)
            for i, shot in zip(group, shots, strict=True):
                results[i] = self._finish(held[i], shot, seconds)
        return [results[i] for i in range(len(held))]

    def check(self) -> None:
        """Make sure the method has the words it needs, and the model knows them.

        Raises:
            InputError: Not so.
            WeightsError: A captioner is needed, and not to be had.
        """
        needs, words = self.method.needs(self.model), Words(self.classes, self.caption)
        if takes_captions(needs) and not words:
            find_captioner(self.captioner, self.model)
        else:
            ask(self.model, needs, words)
        if needs.continued:
            find_captioner(self.captioner, self.model)

    def capture(
        self,
        image: object,
        classes: object = None,
        *,
        caption: object = None,
        everything: bool = False,
    ) -> AttentionRecord:
        """Return the record of an image from which the method works.

        Args:
            image: In any form `read_image` takes.
            classes: What to look for; None: `self.classes`.
            caption: What is read instead; None: `self.caption`.
            everything: Whether all self- and cross-attention is recorded, so that the method can
                be run again with other layers, or another method.
        """
        held = read_image(image)
        needs = self.method.needs(self.model)
        words = self._kept([held], self._words([held], [classes], [caption], needs))
        if needs.continued:
            words = continue_prompts([held], words, self.captioner, self.model, needs)
        job = Job(held, ask(self.model, needs, words[0]), self._hw(held))
        if everything:
            needs = replace(needs, kinds=("self", "cross"), layers="*", levels=None, heads=None)
        [shot] = capture_batch([job], self.model, needs, self.seed)
        return shot.record

    def _words(
        self,
        images: Sequence[Image],
        classes: Sequence[object] | None,
        captions: Sequence[object] | None,
        needs: Needs,
    ) -> list[Words]:
        """What is known of every image; what is not, and can be, is written by the captioner."""
        unsaid = [None] * len(images)
        named, told = classes or unsaid, captions or unsaid
        if not len(named) == len(told) == len(images):
            raise InputError(
                "there must be one class list, or one caption, for every image",
                got=f"{len(named)} class lists and {len(told)} captions for {len(images)} images",
                remedy="give None for an image without",
            )
        usual = Words(self.classes, self.caption)
        words = [read_words(*pair) or usual for pair in zip(named, told, strict=True)]
        silent = [i for i, one in enumerate(words) if not one]
        if silent and takes_captions(needs):
            found = write_captions([images[i] for i in silent], self.captioner, self.model)
            for i, one in zip(silent, found, strict=True):
                words[i] = one
        return words

    def _asked(
        self, images: Sequence[Image], classes: Sequence[object] | None
    ) -> list[tuple[ClassName, ...] | None]:
        """The classes of every image, for methods that know no other words."""
        named = list(classes or [None] * len(images))
        if len(named) != len(images):
            raise InputError(
                "there must be one class list for every image",
                got=f"{len(named)} class lists for {len(images)} images",
                remedy="give None for an image without",
            )
        asked = [self.classes if one is None else parse_classes(one) for one in named]
        words = [Words(classes=one) for one in asked]
        return [one.classes for one in self._kept(images, words)]

    def _kept(self, images: Sequence[Image], words: list[Words]) -> list[Words]:
        """What is looked for in every image: of its classes, those the filter keeps."""
        if self.class_filter is None:
            return words
        found = [one.classes for one in words]
        numbers = [i for i, one in enumerate(found) if one is not None]
        vocabularies = [one for one in found if one is not None]
        kept = run_filter(self.class_filter, [images[i] for i in numbers], vocabularies)
        words = list(words)
        for i, one in zip(numbers, kept, strict=True):
            words[i] = replace(words[i], classes=one)
        return words

    def _hw(self, image: Image) -> tuple[int, int]:
        return seen_hw(image, self.model, self.size, self.fit)

    def _finish(self, image: Image, shot: Shot, seconds: dict[str, float]) -> Segmentation:
        start = time.perf_counter()
        found = self.method(shot.record, scores=self.keep_scores)
        spent = {**seconds, **shot.seconds, "method": time.perf_counter() - start}
        rounded = {name: round(value, 6) for name, value in spent.items()}
        origin = replace(
            found.provenance, model=model_name(self.model), image=image.source, seconds=rounded
        )
        return replace(found, provenance=origin)


def seen_hw(image: Image, model: Any, size: int | None, fit: str) -> tuple[int, int]:
    """The height and width at which a model sees an image."""
    if fit not in ("aspect", "square"):
        raise InputError(
            'fit must be "aspect" or "square"', got=repr(fit), remedy="use one of the two"
        )
    if isinstance(model, Features):
        return working_hw(image.hw, size=size or model.size, multiple=model.patch, fit=fit)
    return working_hw(image.hw, size=size or model.size, fit=fit)
