"""Pictures compared with a bank window by window: OVDiff's third stage, with its networks.

What can be shared is: the features of a window are extracted once for all classes, windows of one
size go through a network together whatever picture they are of, and a vocabulary is put together
once for every list of classes.
"""

import logging
import os
import time
from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from diffuseg.attention import AttentionRecord
from diffuseg.errors import InputError
from diffuseg.image import Image, read_image
from diffuseg.methods.ovdiff import OVDiff
from diffuseg.methods.ovdiff.matching import ABSENT, label_scores, match
from diffuseg.methods.ovdiff.windows import Box, Merge, window_boxes
from diffuseg.methods.pamr import pamr
from diffuseg.methods.settings import given
from diffuseg.models import find_clip, model_name
from diffuseg.ops import resize
from diffuseg.ovdiff.bank import Bank
from diffuseg.ovdiff.choosing import Prefilter
from diffuseg.ovdiff.extractors import Extractor, Picture, find_extractors, find_proposer, lanczos
from diffuseg.ovdiff.recipe import kept_settings, make_recipe
from diffuseg.ovdiff.things_stuff import Overrides
from diffuseg.ovdiff.views import (
    BACKGROUND,
    Listed,
    View,
    check_background,
    list_classes,
    stored_name,
)
from diffuseg.prompts import ClassName, parse_classes
from diffuseg.provenance import Provenance
from diffuseg.result import Segmentation
from diffuseg.segmenter import Segmenter

log = logging.getLogger(__name__)

# Windows whose features are held at once: of Stable Diffusion 1.x each takes 126 MB.
_BATCH = 8

# Vocabularies put together that are kept.
_KEPT = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class BankSegmenter(Segmenter):
    """A bank, and the networks and settings it is used with: an image in, a segmentation out.

    Made by `open_segmenter`, or by `build_segmenter` for the method "ovdiff".

    Attributes:
        bank: The classes there are.
        extractors: What windows are compared by, by name.
        prefilter: What chooses classes for a picture; None: all are compared.
        stuff: Which classes are stuff where the table is not to be asked, see `is_stuff`.
        embed: Measures names that the table does not know; None: they are things.
    """

    bank: Bank
    extractors: Mapping[str, Extractor]
    prefilter: Prefilter | None = None
    stuff: Overrides | None = None
    embed: Any = None
    # Shared by copies with other settings.
    lists: "OrderedDict[object, Listed]" = field(
        default_factory=OrderedDict, repr=False, compare=False
    )

    def many(
        self,
        images: Sequence[object],
        classes: Sequence[object] | None = None,
        captions: Sequence[object] | None = None,
    ) -> list[Segmentation]:
        """Segment several images; windows of one size go through the networks together.

        Args:
            images: In any form `read_image` takes.
            classes: One class list an image; None, or None for an image: `self.classes`, and
                without those all classes of the bank.
            captions: Not for this method.

        Raises:
            InputError: An image cannot be read, or a class is not in the bank.
        """
        start = time.perf_counter()
        views = self.view(images, classes, captions)
        spent = (time.perf_counter() - start) / max(1, len(views))
        return [
            replace(
                one,
                provenance=replace(
                    one.provenance, seconds={"choose": round(spent, 6), **one.provenance.seconds}
                ),
            )
            for one in self.segment_views(views)
        ]

    def segment_views(self, views: Sequence[View]) -> list[Segmentation]:
        """Segment what `view` has prepared."""
        start = time.perf_counter()
        background = self.settings.background == "prototypes"
        merges = [Merge(1 + len(one.selected), one.hw, device=self.model.device) for one in views]
        for number, box, name, features in self.features(views):
            view = views[number]
            found = match(
                features[None],
                view.listed.vocabularies[name],
                selected=view.selected,
                background=background,
            )
            for _ in range(view.boxes[box]):
                merges[number].add(found[0], box)
        spent = (time.perf_counter() - start) / max(1, len(views))
        return [
            self._result(view, merge.mean(), spent)
            for view, merge in zip(views, merges, strict=True)
        ]

    def check(self) -> None:
        """Make sure all classes are in the bank, or are put there.

        Raises:
            InputError: One is not, and cannot be.
        """
        self._listed(self.classes)

    def capture(
        self,
        image: object,
        classes: object = None,
        *,
        caption: object = None,
        everything: bool = False,
    ) -> AttentionRecord:
        """Refuse: there is no record this method could work from.

        Raises:
            InputError: Always.
        """
        raise InputError(
            "a record can be had for methods that work from one",
            got="OVDiff, which compares windows of pictures with a bank",
            remedy='use another method, such as "attend"',
        )

    def view(
        self,
        images: Sequence[object],
        classes: Sequence[object] | None = None,
        captions: Sequence[object] | None = None,
    ) -> list[View]:
        """Read images and choose the classes they are compared with; as `many`."""
        if any(one is not None for one in captions or ()):
            raise InputError(
                "OVDiff looks for classes of its bank",
                got="a caption",
                remedy="name classes instead",
            )
        held = [read_image(image) for image in images]
        listed = [self._listed(one) for one in self._asked(held, classes)]
        pixels = [self._brought(image) for image in held]
        return [
            View(
                image=image,
                pixels=seen,
                listed=one,
                selected=self._selected(seen, one),
                boxes=self._boxes((seen.shape[0], seen.shape[1])),
            )
            for image, seen, one in zip(held, pixels, listed, strict=True)
        ]

    def features(
        self, views: Sequence[View]
    ) -> Iterator[tuple[int, Box, str, Float[Tensor, "h w d"]]]:
        """Yield the features of every window: number of its picture, window, extractor, features.

        Each comes once, whatever it counts.
        """
        sizes: dict[tuple[int, int], list[tuple[int, Box]]] = {}
        for number, view in enumerate(views):
            for box in view.boxes:
                size = (box[2] - box[0], box[3] - box[1])
                sizes.setdefault(size, []).append((number, box))
        for windows in sizes.values():
            for start in range(0, len(windows), _BATCH):
                some = windows[start : start + _BATCH]
                pictures = [views[number].pixels[y0:y1, x0:x1] for number, (y0, x0, y1, x1) in some]
                for name, extract in self.extractors.items():
                    for (number, box), grid in zip(some, extract(pictures), strict=True):
                        yield number, box, name, grid

    @property
    def settings(self) -> OVDiff:
        """The method, ready."""
        if not isinstance(self.method, OVDiff):
            raise InputError(
                "a bank is used by OVDiff",
                got=repr(self.method),
                remedy="build another segmenter for another method",
            )
        return self.method

    def _brought(self, image: Image) -> Picture:
        """The image with its shorter side as the settings say."""
        side, (height, width) = given(self.settings.side), image.hw
        short = min(height, width)
        # What is left of a pixel of the longer side is cut off, as the authors do.
        return lanczos(image.pixels, (height * side // short, width * side // short))

    def _boxes(self, hw: tuple[int, int]) -> dict[Box, int]:
        method = self.settings
        boxes = [
            box
            for crop in given(method.crops)
            for box in window_boxes(hw, crop, given(method.stride))
        ]
        if given(method.whole):
            boxes.append((0, 0, *hw))
        return dict(Counter(boxes))

    def _selected(self, pixels: Picture, listed: Listed) -> tuple[int, ...]:
        if self.prefilter is None:
            return tuple(range(len(listed.names)))
        return tuple(self.prefilter([pixels], listed.texts, listed.stuff)[0])

    def _listed(self, classes: tuple[ClassName, ...] | None) -> Listed:
        """Classes with their prototypes; all of the bank where none are named."""
        method = self.settings
        if classes is None:
            classes = tuple(ClassName(name=name, words=(name,)) for name in self.bank.names)
        if not classes:
            raise InputError(
                "OVDiff must be told classes, or have a bank with some",
                got=f"no classes, and none in {self.bank.path}",
                remedy='name some: "car, tree"',
            )
        kinds, least = given(method.kinds), given(method.stuff_threshold)
        key = (tuple(one.words for one in classes), kinds, least, method.background == "none")
        if key in self.lists:
            self.lists.move_to_end(key)
            return self.lists[key]
        check_background(classes, method)
        self._add_missing(classes)
        listed = list_classes(
            classes,
            self.bank,
            method,
            tuple(self.extractors),
            stuff=self.stuff,
            embed=self.embed,
            device=self.model.device,
        )
        self.lists[key] = listed
        while len(self.lists) > _KEPT:
            self.lists.popitem(last=False)
        return listed

    def _add_missing(self, classes: Sequence[ClassName]) -> None:
        """Draw what is missing, where the bank is the library's own."""
        missing = [one for one in classes if self.bank.missing([stored_name(self.bank, one)])]
        if self.settings.bank is not None or not missing:
            return
        from diffuseg.ovdiff.building import build_bank

        named = ", ".join(one.name for one in missing)
        log.info("drawing pictures of %s for the bank %s", named, self.bank.path)
        build_bank(missing, self.bank.path, self.model, self.settings)

    def _result(self, view: View, scores: Float[Tensor, "r h w"], matching: float) -> Segmentation:
        start = time.perf_counter()
        method, size = self.settings, view.image.hw
        if given(method.pamr):
            pixels = torch.from_numpy(view.pixels.copy()).permute(2, 0, 1).to(scores)
            scores = pamr(scores, pixels, iterations=given(method.pamr))
        background = method.background or "prototypes"
        labels = label_scores(
            scores,
            classes=view.selected,
            size=size,
            background=background,
            threshold=given(method.threshold),
        )
        names, first = view.listed.names, 0
        if background == "none":
            first = 1
        else:
            names = (BACKGROUND, *names)
        held = None
        if self.keep_scores:
            planes = scores.new_full((1 + len(view.listed.names), *size), ABSENT)
            rows = [0, *(1 + one for one in view.selected)]
            planes[rows] = resize(scores[None], size)[0]
            if background == "threshold":
                planes[0] = given(method.threshold)
            held = planes[first:].cpu().numpy()
        return Segmentation(
            labels=(labels - first).cpu().numpy(),
            names=names,
            scores=held,
            provenance=Provenance(
                model=model_name(self.model),
                method="ovdiff",
                parameters=asdict(method),
                seed=method.noise_seed,
                seconds={
                    "match": round(matching, 6),
                    "label": round(time.perf_counter() - start, 6),
                },
                image=view.image.source,
                image_hw=view.image.hw,
                working_hw=view.hw,
            ),
        )


def open_segmenter(
    bank: Any = None,
    model: object = None,
    settings: OVDiff | None = None,
    classes: object = None,
    *,
    stuff: Overrides | None = None,
    keep_scores: bool = False,
) -> BankSegmenter:
    """Return a callable that segments images with a bank, everything checked beforehand.

    Settings left open are the bank's where they decide what is in it, else those of the model's
    preset.

    Args:
        bank: Its folder, or the bank. None: the settings' own, and without that one in the user's
            cache, to which classes are added as they are asked for.
        model: As for `build_segmenter`: the one the bank was built with.
        settings: Of the method.
        classes: What to look for: "car, tree", or a list. None: all that is in the bank.
        stuff: "thing" or "stuff" by name, or a function from a name to one of them or None, where
            the table is not to be asked.
        keep_scores: Whether results carry the score maps of all classes.

    Raises:
        InputError: No such bank or class, or the bank was built with another model or settings.
        WeightsError: A network is not to be had.

    Example:
        >>> find = open_segmenter("bank", "mini", classes="ball, grass")  # doctest: +SKIP
        >>> find("ball.png").names  # doctest: +SKIP
        ('background', 'ball', 'grass')
    """
    from diffuseg.models import find_model

    named = None if classes is None else parse_classes(classes)
    held = find_model(model)
    method = settings or OVDiff()
    if bank is not None:
        method = replace(method, bank=str(bank.path if isinstance(bank, Bank) else bank))
    opened = None if method.bank is None else Bank.open(method.bank)
    if opened is not None:
        method = opened.adopt(method)
    method = method.ready(held.preset.get("ovdiff"))
    extractors = find_extractors(held, method)
    if opened is None:
        opened = _own_bank(held, method, extractors)
    else:
        opened.check(make_recipe(held, method, extractors))
    clip = find_clip(method.clip, held)
    rule, prefilter = method.prefilter, None
    if rule is not None and rule != "none":
        prefilter = Prefilter(clip=clip, rule=rule, candidates=given(method.candidates))
    segmenter = BankSegmenter(
        model=held,
        method=method,
        classes=named,
        keep_scores=keep_scores,
        bank=opened,
        extractors=extractors,
        prefilter=prefilter,
        stuff=stuff,
        embed=clip.embed_names,
    )
    if named is not None:
        segmenter.check()
    return segmenter


def _own_bank(model: Any, method: OVDiff, extractors: Mapping[str, Extractor]) -> Bank:
    """The bank in the user's cache that is built with just this."""
    recipe = make_recipe(model, method, extractors, find_proposer(model, method))
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = root / "diffuseg" / "ovdiff" / recipe.digest[:16]
    log.info("the bank is %s", folder)
    return Bank.create(folder, recipe, settings=kept_settings(method), model=model.name)
