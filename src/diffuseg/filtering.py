"""Glue: of a vocabulary of many names, those an image shows, before a method looks for them.

Three sources behind one protocol: lists somebody has made (a dict or a file), CLIP, and any object
of yours that is called as they are.
"""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol, cast, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from diffuseg.backbones.clip import TEMPLATES, Clip
from diffuseg.errors import InputError
from diffuseg.image import Image, read_image
from diffuseg.image_labels import ImageLabels, read_image_labels
from diffuseg.methods.presence import (
    at_least_one,
    in_upper_range,
    near_best,
    strongest_share,
    window_boxes,
)
from diffuseg.methods.settings import check_settings, with_preset, with_settings
from diffuseg.models import find_captioner, find_clip, find_model
from diffuseg.prompts import ClassName, find_word, parse_classes

PRESET = "class-filter"
"""Under which name a model's preset has settings of `ClipFilter`."""


@runtime_checkable
class ClassFilter(Protocol):
    """Says which classes of a vocabulary each image shows: at least one, in their order."""

    def __call__(
        self, images: Sequence[Image], classes: tuple[ClassName, ...]
    ) -> list[tuple[ClassName, ...]]: ...


@dataclass(frozen=True, slots=True)
class ListedClasses:
    """The classes of each image as a list has them; images are known by their file names.

    Example:
        >>> import numpy as np
        >>> listed = ListedClasses(read_image_labels({"a.jpg": ["sofa", "cat"]}))
        >>> image = Image(pixels=np.zeros((32, 32, 3), np.uint8), source="a.jpg")
        >>> [one.name for one in listed([image], parse_classes("dog, cat, couch|sofa"))[0]]
        ['cat', 'couch']
    """

    labels: ImageLabels

    def __call__(
        self, images: Sequence[Image], classes: tuple[ClassName, ...]
    ) -> list[tuple[ClassName, ...]]:
        """Return the listed classes of every image, in the order of `classes`.

        Raises:
            InputError: An image is not listed, or without a name, or with one that is no class.
        """
        return [self._classes_of(image, classes) for image in images]

    def _classes_of(self, image: Image, classes: tuple[ClassName, ...]) -> tuple[ClassName, ...]:
        names = self.labels.of(image.source)
        if not names:
            raise InputError(
                "every image must have its classes in the list",
                got=f"{image.source}: {'not there' if names is None else 'no name'}, of "
                f"{len(self.labels)} images in {self.labels.source}",
                remedy='add it, use class_filter="clip", or leave the image out',
            )
        return choose_listed(names, classes, f"{image.source} in {self.labels.source}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipFilter:
    """Keeps the classes that CLIP sees in an image; the best one if it is sure of none.

    A field that is None takes the value of the model's preset, else the one named last.

    Attributes:
        rule: "share": a name's share among all names (a softmax, as in CLIP's zero-shot
            classification) in the window where it is largest. "diffsegmenter": the image is nearly
            as alike as to the best name, or a caption of it alike to the name. "range": above the
            least by a part of the range, as TagCLIP. "share".
        windows: Where is looked: 1 for the whole image, 2 for windows of half its shorter side, and
            so on. 1 and 2; the whole image for the other rules.
        share: Least share, for "share". 0.25.
        caption_share: Least share of a name that a caption of the image says, for "share"; None:
            no caption is written.
        image_threshold: Least likeness to the image relative to the best, for "diffsegmenter".
            0.97 (DiffSegmenter).
        text_threshold: Least cosine of caption and name, for "diffsegmenter". 0.8 (DiffSegmenter).
        theta: Least part of the range, for "range". 0.6 (TagCLIP on PASCAL VOC).
        templates: Texts a name is put into; their embeddings are averaged.
        clip: A loaded CLIP, a name, hub id or folder. The one that comes with the model, else
            OpenAI's ViT-B/16.
        captioner: As for `build_segmenter`, where captions are used.

    Raises:
        InputError: A setting is out of range.

    Example:
        >>> ClipFilter(rule="range", theta=0.2).rule
        'range'
    """

    rule: Literal["share", "diffsegmenter", "range"] | None = None
    windows: tuple[int, ...] | None = None
    share: float | None = None
    caption_share: float | None = None
    image_threshold: float | None = None
    text_threshold: float | None = None
    theta: float | None = None
    templates: tuple[str, ...] = TEMPLATES
    clip: Any = None
    captioner: Any = None
    # The names of the last vocabulary, embedded: thousands of prompts for a long one.
    _told: dict[object, Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        shares = ("share", "caption_share", "image_threshold", "text_threshold", "theta")
        held = [(name, getattr(self, name)) for name in shares]
        check_settings(
            *((one is None or 0 <= one <= 1, f"{name} must lie in [0, 1]", one)
              for name, one in held),
            (self.windows is None or min(self.windows, default=0) > 0,
             "windows must be 1 or more", self.windows),
        )  # fmt: skip

    def ready(self, model: object) -> "ClipFilter":
        """Return the filter with nothing left open, its CLIP and captioner loaded.

        Args:
            model: What the classes are then looked for with: its preset and companions are used.

        Raises:
            InputError: No such CLIP or captioner.
            WeightsError: Weights are not to be had.
        """
        preset = dict(getattr(model, "preset", {}).get(PRESET, {}))
        filled = with_preset(self, preset)
        general = {"rule": "share", "share": 0.25, "theta": 0.6}
        general |= {"image_threshold": 0.97, "text_threshold": 0.8}
        filled = with_preset(filled, general)
        if filled.windows is None:
            filled = replace(filled, windows=(1, 2) if filled.rule == "share" else (1,))
        captioner = filled.captioner
        if filled.takes_captions:
            captioner = find_captioner(captioner, model)
        return replace(filled, clip=find_clip(filled.clip, model), captioner=captioner)

    @property
    def takes_captions(self) -> bool:
        """Whether captions are written."""
        by_share = self.rule in ("share", None) and self.caption_share is not None
        return by_share or self.rule == "diffsegmenter"

    def __call__(
        self, images: Sequence[Image], classes: tuple[ClassName, ...]
    ) -> list[tuple[ClassName, ...]]:
        """Return the classes seen in every image, in the order of `classes`.

        Raises:
            InputError: CLIP cannot know a name.
        """
        if self.windows is None or not isinstance(self.clip, Clip):
            return self.ready(None)(images, classes)
        said = self._captions(images)
        told = self._embedded(classes)
        found: list[tuple[ClassName, ...]] = []
        for image, caption in zip(images, said, strict=True):
            likeness = self._look(image) @ told.T  # [w, k]
            kept = self._keep(likeness, told, caption, classes).tolist()
            found.append(tuple(one for one, is_kept in zip(classes, kept, strict=True) if is_kept))
        return found

    def _keep(
        self,
        likeness: Float[Tensor, "w k"],
        told: Float[Tensor, "k d"],
        caption: str,
        classes: tuple[ClassName, ...],
    ) -> Bool[Tensor, " k"]:
        best = likeness.amax(dim=0)  # [k]
        match self.rule:
            case "range":
                return in_upper_range(best, cast(float, self.theta))
            case "diffsegmenter":
                kept = near_best(best, cast(float, self.image_threshold))
                if caption:
                    text = self.clip.embed_texts(caption)[0] @ told.T  # [k]
                    kept = kept | (text >= cast(float, self.text_threshold))
                return kept
        scale = float(self.clip.model.logit_scale.detach().float().exp())
        share = strongest_share(likeness, scale)
        kept = share >= cast(float, self.share)
        if self.caption_share is not None:
            named = [any(find_word(caption, word) for word in one.words) for one in classes]
            kept = kept | (torch.tensor(named, device=share.device) & (share >= self.caption_share))
        return at_least_one(kept, share)

    def _look(self, image: Image) -> Float[Tensor, "w d"]:
        boxes = window_boxes(image.hw, cast(tuple[int, ...], self.windows))
        parts = [image.pixels[y0:y1, x0:x1] for y0, x0, y1, x1 in boxes]
        return self.clip.embed_images([Image(pixels=part, source=image.source) for part in parts])

    def _embedded(self, classes: tuple[ClassName, ...]) -> Float[Tensor, "k d"]:
        if classes not in self._told:
            self._told.clear()
            self._told[classes] = self.clip.embed_names(classes, templates=self.templates)
        return self._told[classes]

    def _captions(self, images: Sequence[Image]) -> list[str]:
        if not self.takes_captions:
            return [""] * len(images)
        written = list(getattr(self.captioner, "caption", self.captioner)(list(images)))
        if len(written) != len(images) or not all(isinstance(one, str) for one in written):
            raise InputError(
                "a captioner must give one text for every image",
                got=f"{len(written)} texts for {len(images)} images",
                remedy="return a list as long as the one it is called with",
            )
        return [" ".join(re.findall(r"\w+", one.lower())) for one in written]


def find_filter(
    class_filter: object, model: object = None, settings: Mapping[str, object] | None = None
) -> ClassFilter | None:
    """Return a filter from any of the forms it is given in, ready to be called.

    Args:
        class_filter: None; "clip"; a `ClipFilter`; a dict {image: names}, a `.json` or `.csv` file
            of it or a folder of VOC annotations (see `read_image_labels`); or something that is
            called as `ClassFilter` says.
        model: What the classes are looked for with: "clip" is the one that comes with it.
        settings: Fields of `ClipFilter`, as text or values.

    Raises:
        InputError: Nothing of the kind, no such file, or settings for something else.
        WeightsError: CLIP's weights are not to be had.

    Example:
        >>> find_filter({"a.jpg": ["car"]}).labels.names
        ('car',)
    """
    by_name = isinstance(class_filter, str) and class_filter.lower() == "clip"
    chosen = ClipFilter() if by_name else class_filter
    if isinstance(chosen, ClipFilter):
        return with_settings(chosen, settings or {}).ready(model)
    if settings:
        raise InputError(
            "settings of a filter are those of CLIP's",
            got=f"{', '.join(settings)} for {class_filter!r}",
            remedy='use class_filter="clip", or leave them out',
        )
    if chosen is None:
        return None
    if isinstance(chosen, str) and not Path(chosen).exists():
        raise InputError(
            'a class filter must be "clip", a file of labels, or an object that is called',
            got=chosen,
            remedy="check the path, or use clip",
        )
    if isinstance(chosen, str | os.PathLike | Mapping | ImageLabels):
        return ListedClasses(read_image_labels(chosen))
    if not callable(chosen):
        raise InputError(
            'a class filter must be "clip", a file of labels, or an object that is called',
            got=repr(chosen),
            remedy="leave it out to look for all classes",
        )
    return cast(ClassFilter, chosen)


def filter_classes(
    image: object,
    classes: object,
    class_filter: object = "clip",
    *,
    model: object = None,
) -> tuple[str, ...]:
    """Return which names of a vocabulary an image shows, in the vocabulary's order.

    Args:
        image: In any form `read_image` takes.
        classes: The vocabulary: names with commas, or a list whose items are names or tuples of
            synonyms. Any number.
        class_filter: As for `find_filter`.
        model: As for `segment`; "clip" is the one that comes with it.

    Raises:
        InputError: The image, the names or the filter cannot be used.
        WeightsError: CLIP's weights are not to be had.

    Example:
        >>> filter_classes("scene.png", "car, tree, fish, sky", model="mini")  # doctest: +SKIP
        ('car', 'sky')
    """
    parsed = parse_classes(classes)
    named = model is None or isinstance(model, str | os.PathLike)
    found = find_filter(class_filter, find_model(model) if named else model)
    kept = [parsed] if found is None else run_filter(found, [read_image(image)], [parsed])
    return tuple(one.name for one in kept[0])


def describe_filter(class_filter: ClassFilter) -> str:
    """Return a filter and its settings in one line.

    Example:
        >>> describe_filter(ListedClasses(read_image_labels({"a.jpg": ["car"]})))
        'the labels given (1 images)'
    """
    if isinstance(class_filter, ListedClasses):
        return f"{class_filter.labels.source} ({len(class_filter.labels)} images)"
    if not isinstance(class_filter, ClipFilter):
        return repr(class_filter)
    names = {"share": ("share", "caption_share"), "range": ("theta",)}
    names["diffsegmenter"] = ("image_threshold", "text_threshold")
    used = ("rule", "windows", *names[class_filter.rule or "share"])
    held = [(name, getattr(class_filter, name)) for name in used]
    shown = ", ".join(f"{name}={value}" for name, value in held if value is not None)
    return f"CLIP {getattr(class_filter.clip, 'name', class_filter.clip)}: {shown}"


def run_filter(
    class_filter: ClassFilter,
    images: Sequence[Image],
    classes: Sequence[tuple[ClassName, ...]],
) -> list[tuple[ClassName, ...]]:
    """Return what a filter keeps of each image's vocabulary, made sure of and put in order.

    Raises:
        InputError: It gives no list an image, keeps nothing, or something that was not asked.
    """
    kept: list[tuple[ClassName, ...]] = [()] * len(images)
    for vocabulary in dict.fromkeys(classes):
        mine = [i for i, one in enumerate(classes) if one == vocabulary]
        found = list(class_filter([images[i] for i in mine], vocabulary))
        if len(found) != len(mine):
            raise InputError(
                "a class filter must give one list of classes for every image",
                got=f"{len(found)} lists for {len(mine)} images",
                remedy="return a list as long as that of the images",
            )
        for i, one in zip(mine, found, strict=True):
            names = [str(getattr(item, "name", item)) for item in one]
            if not names:
                raise InputError(
                    "a class filter must keep at least one class",
                    got=f"none for {images[i].source}",
                    remedy="let it keep the likeliest where it is sure of none",
                )
            kept[i] = choose_listed(names, vocabulary, f"the filter's list for {images[i].source}")
    return kept


def choose_listed(
    names: Sequence[str], classes: tuple[ClassName, ...], where: str
) -> tuple[ClassName, ...]:
    """Return the classes that names mean, by any of their words, in the order of the classes.

    Args:
        names: In any order; case makes no difference.
        classes: What they may mean.
        where: In words, where the names are from.

    Raises:
        InputError: A name means none of them.

    Example:
        >>> [one.name for one in choose_listed(["Sofa"], parse_classes("cat, couch|sofa"), "a.xml")]
        ['couch']
    """
    owner = {word.casefold(): i for i, one in enumerate(classes) for word in one.words}
    unknown = [name for name in names if name.casefold() not in owner]
    if unknown:
        known = [one.name for one in classes]
        shown = ", ".join(known[:20]) + (", …" if len(known) > 20 else "")
        raise InputError(
            "listed names must be among the classes",
            got=f"{', '.join(unknown)}: {where}",
            remedy=f'the classes are {shown}; add a synonym ("sofa|couch"), or correct the list',
        )
    chosen = {owner[name.casefold()] for name in names}
    return tuple(classes[i] for i in sorted(chosen))
