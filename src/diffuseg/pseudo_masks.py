"""Masks from image-level labels, laid out as PASCAL VOC, for training a segmenter on.

Weakly supervised segmentation: which classes are in an image is known, where is not. A method finds
out, and says by its scores how sure it is; pixels it is not sure of are left out of the training.
"""

import json
import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import PIL.Image
from jaxtyping import Float, UInt8

from diffuseg.api import Segmenter, check_number
from diffuseg.asking import Words, ask
from diffuseg.errors import DiffusegError, InputError
from diffuseg.file_runs import Input, Outcome, Work, run_files, settings_key
from diffuseg.files import atomic_path
from diffuseg.filtering import choose_listed
from diffuseg.image import Image
from diffuseg.image_labels import ImageLabels
from diffuseg.methods import method_name
from diffuseg.models import model_name
from diffuseg.palettes import voc_palette
from diffuseg.prompts import ClassName, parse_classes
from diffuseg.result import Segmentation

UNSURE = 255
"""The label of pixels that are not to be trained on, as VOC has it; 0 is the background."""

BACKGROUND = "background"

Confidence = Literal["margin", "score"]
Pictures = Literal["link", "copy", "none"]

_ORIENTATION = 274  # the EXIF tag

log = logging.getLogger(__name__)


def make_pseudo_masks(
    inputs: Sequence[Input],
    out: Path,
    segmenter: Segmenter,
    labels: ImageLabels,
    *,
    classes: object = None,
    threshold: float = 0.1,
    confidence: Confidence = "margin",
    pictures: Pictures = "link",
    resume: bool = False,
    batch_size: int = 4,
) -> Iterator[Outcome]:
    """Write the masks of labelled images, yielding what became of each, in order.

    Below `out`, the layout of PASCAL VOC: `SegmentationClass/NAME.png` (colour-indexed: 0 the
    background, n the n-th class, 255 unsure), `Confidence/NAME.png` (8-bit grey, 255 sure),
    `JPEGImages/`, `ImageSets/Segmentation/train.txt`, `classes.txt` (the names in the order of the
    numbers) and `pseudo-masks.json` (how all this was made).

    Args:
        inputs: From `find_images`. One without labels ends with an error of its own; one whose list
            of labels is empty becomes all background.
        out: The output folder.
        segmenter: With a method that looks for classes and gives scores.
        labels: From `read_image_labels`.
        classes: All classes in the order of their numbers, with the words for them: labels may use
            any ("plane|aeroplane"). None: the names in the labels, sorted.
        threshold: Confidence below which a pixel is unsure; 0 for none.
        confidence: How it is computed, see `confidence_of`.
        pictures: Whether `JPEGImages` links to the images, has copies, or is left out.
        resume: Skip images whose masks are there, from the same file with the same settings.
        batch_size: Images that go through the model together.

    Raises:
        InputError: No image has labels, a label is no class, the model cannot know a word, the
            method finds segments without names, or an option is out of range.

    Example:
        >>> labels = read_image_labels("labels.json")  # doctest: +SKIP
        >>> run = make_pseudo_masks(inputs, Path("masks"), segmenter, labels)  # doctest: +SKIP
        >>> sum(outcome.error is None for outcome in run)  # doctest: +SKIP
        1464
    """
    check_number("batch_size", batch_size, least=1)
    known = parse_classes(list(labels.names) if classes is None else classes)
    _check(segmenter, known, labels, threshold, confidence, pictures)
    _compare(inputs, labels)
    ready = replace(segmenter, keep_scores=True, class_filter=None, classes=known, caption=None)
    options = {"threshold": threshold, "confidence": confidence}
    work = Work(
        settings=settings_key(ready, **options),
        segment=lambda some, images: _segment(ready, [one.path for one in some], images, labels),
        outputs=lambda one: _outputs(out, one, pictures),
        write=lambda seg, one, image: _write(
            seg, out, one, image, known, threshold, confidence, pictures
        ),
        facts=lambda one: {"labels": _names_of(labels, one.path)},
    )
    run = run_files(inputs, out, work, resume=resume, batch_size=batch_size)
    return _with_lists(run, inputs, out, ready, known, options)


def confidence_of(seg: Segmentation, how: Confidence = "margin") -> Float[np.ndarray, "h w"]:
    """Return how sure a result is of every pixel's label, in [0, 1]; 0 where it is undecided.

    Args:
        seg: A result with scores. Scores below 0 are first raised, all by as much.
        how: "margin": 1 - second / best, by how much the label's score exceeds that of the next
            best name, as a share of it; it does not depend on the scale of the scores. "score": the
            label's score over the highest score of its name in the image.

    Raises:
        InputError: The result has no scores.

    Example:
        >>> scores = np.array([[[0.8, 0.4]], [[0.2, 0.4]]])
        >>> seg = Segmentation(labels=np.zeros((1, 2), int), names=("a", "b"), scores=scores)
        >>> confidence_of(seg).tolist(), confidence_of(seg, "score").tolist()
        ([[0.75, 0.0]], [[1.0, 0.5]])
    """
    if seg.scores is None:
        raise InputError(
            "the confidence of a mask comes from scores",
            got=f"a result of {seg.provenance.method or 'a method'} without scores",
            remedy="use a method that gives scores, such as iseg or attend",
        )
    scores = seg.scores.astype(np.float32)
    scores -= min(0.0, float(scores.min()))
    decided = seg.labels != seg.ignore
    index = np.where(decided, seg.labels, 0)[None].astype(np.int64)
    best = np.take_along_axis(scores, index, axis=0)[0]
    if how == "score":
        highest = scores.max(axis=(1, 2))[index[0]]
        found = np.divide(best, highest, out=np.zeros_like(best), where=highest > 0)
    else:
        others = scores.copy()
        np.put_along_axis(others, index, 0.0, axis=0)
        second = others.max(axis=0)
        found = np.divide(best - second, best, out=np.zeros_like(best), where=best > 0)
    return np.where(decided, found.clip(0, 1), 0).astype(np.float32)


def mask_of(
    seg: Segmentation,
    classes: Sequence[str],
    confidence: Float[np.ndarray, "h w"],
    threshold: float,
) -> UInt8[np.ndarray, "h w"]:
    """Return VOC's numbers: 0 the background, n the n-th class, 255 unsure.

    Args:
        seg: A result whose names are among the classes, or "background".
        classes: In the order of their numbers.
        confidence: Of every pixel.
        threshold: Least confidence of a pixel that keeps its label.

    Example:
        >>> seg = Segmentation(labels=np.array([[0, 1, 1]]), names=("background", "sky"))
        >>> mask_of(seg, ["car", "sky"], np.array([[1.0, 1.0, 0.0]]), 0.5).tolist()
        [[0, 2, 255]]
    """
    numbers = [0 if name == BACKGROUND else 1 + list(classes).index(name) for name in seg.names]
    lookup = np.array([*numbers, UNSURE], dtype=np.uint8)
    decided = (seg.labels != seg.ignore) & (confidence >= threshold)
    return lookup[np.where(decided, seg.labels, len(numbers))]


def _segment(
    segmenter: Segmenter, paths: Sequence[Path], images: Sequence[Image], labels: ImageLabels
) -> list[Segmentation]:
    known = segmenter.classes or ()
    names = [_names_of(labels, path) for path in paths]
    chosen = [
        choose_listed(one, known, f"{path} in {labels.source}")
        for one, path in zip(names, paths, strict=True)
    ]
    shown = [i for i, one in enumerate(chosen) if one]
    results = segmenter.many([images[i] for i in shown], [chosen[i] for i in shown])
    found = dict(zip(shown, results, strict=True))
    return [found.get(i) or _empty(image) for i, image in enumerate(images)]


def _empty(image: Image) -> Segmentation:
    """Of an image that shows none of the classes: background, and no doubt about it."""
    zeros = np.zeros(image.hw, dtype=np.int32)
    scores = np.ones((1, *image.hw), dtype=np.float32)
    return Segmentation(labels=zeros, names=(BACKGROUND,), scores=scores)


def _names_of(labels: ImageLabels, path: Path) -> tuple[str, ...]:
    names = labels.of(path)
    if names is None:
        raise InputError(
            "every image must have labels",
            got=f"none for {path.name} among the {len(labels)} images of {labels.source}",
            remedy="add them (an empty list if it shows no class), or leave the image out",
        )
    return names


def _outputs(out: Path, one: Input, pictures: Pictures) -> tuple[Path, ...]:
    found = tuple(out / room / f"{one.stem}.png" for room in ("SegmentationClass", "Confidence"))
    if pictures == "none":
        return found
    return (*found, out / "JPEGImages" / f"{one.stem}{one.path.suffix}")


def _write(
    seg: Segmentation,
    out: Path,
    one: Input,
    image: Image,
    classes: Sequence[ClassName],
    threshold: float,
    confidence: Confidence,
    pictures: Pictures,
) -> tuple[Path, ...]:
    sure = confidence_of(seg, confidence)
    mask = mask_of(seg, [item.name for item in classes], sure, threshold)
    indexed = PIL.Image.fromarray(mask)
    indexed.putpalette(voc_palette(256).tobytes())
    outputs = _outputs(out, one, pictures)
    try:
        with ExitStack() as stack:
            indexed.save(stack.enter_context(atomic_path(outputs[0])))
            grey = PIL.Image.fromarray(np.round(255 * sure).astype(np.uint8))
            grey.save(stack.enter_context(atomic_path(outputs[1])))
            for path in outputs[2:]:
                _place(one.path, stack.enter_context(atomic_path(path)), image, pictures)
    except OSError as error:
        if isinstance(error, DiffusegError):
            raise
        raise InputError(
            "the masks must be writable",
            got=f"{outputs[0]}: {error.strerror or error}",
            remedy="free some space, or choose another output folder",
        ) from error
    return outputs


def _place(source: Path, target: Path, image: Image, pictures: Pictures) -> None:
    """Put an image beside its mask."""
    with PIL.Image.open(source) as held:
        turned = held.getexif().get(_ORIENTATION, 1) != 1
    if turned:
        # Masks are upright, and trainers do not turn pictures.
        PIL.Image.fromarray(image.pixels).save(target)
        return
    if pictures == "link":
        try:
            target.symlink_to(os.path.relpath(source.resolve(), target.parent.resolve()))
            return
        except OSError as error:  # Windows, and file systems without links
            log.warning("copied, since no link can be made: %s", error)
    shutil.copyfile(source, target)


def _with_lists(
    run: Iterator[Outcome],
    inputs: Sequence[Input],
    out: Path,
    segmenter: Segmenter,
    classes: Sequence[ClassName],
    options: dict[str, object],
) -> Iterator[Outcome]:
    """The same and, at the end or wherever it is stopped, the lists of what is there."""
    stems = iter(inputs)
    done: list[str] = []
    parameters: dict[str, object] = {}
    try:
        for outcome in run:
            one = next(stems)
            if outcome.error is None:
                done.append(one.stem)
            if outcome.segmentation is not None and len(outcome.segmentation.names) > 1:
                parameters = dict(outcome.segmentation.provenance.parameters)
            yield outcome
    finally:
        names = [BACKGROUND, *(item.name for item in classes)]
        made = {
            "model": model_name(segmenter.model),
            "method": method_name(segmenter.method),
            "parameters": parameters,
            "seed": segmenter.seed,
            **options,
            "classes": names,
            "images": len(done),
            "version": metadata.version("diffuseg"),
        }
        texts = {
            "ImageSets/Segmentation/train.txt": "".join(f"{stem}\n" for stem in done),
            "classes.txt": "".join(f"{name}\n" for name in names),
            "pseudo-masks.json": json.dumps(made, indent=2) + "\n",
        }
        for name, text in texts.items():
            with atomic_path(out / name) as temporary:
                temporary.write_text(text, encoding="utf-8")


def _check(
    segmenter: Segmenter,
    classes: tuple[ClassName, ...],
    labels: ImageLabels,
    threshold: float,
    confidence: str,
    pictures: str,
) -> None:
    for name, value, known in (
        ("confidence", confidence, get_args(Confidence)),
        ("pictures", pictures, get_args(Pictures)),
    ):
        if value not in known:
            raise InputError(
                f"{name} must be one of {', '.join(known)}", got=value, remedy="leave it out"
            )
    if isinstance(threshold, bool) or not 0 <= threshold <= 1:
        raise InputError(
            "the threshold of confidence must lie in [0, 1]",
            got=threshold,
            remedy="use 0 for masks without unsure pixels",
        )
    if len(classes) >= UNSURE:
        raise InputError(
            f"masks of 8 bits have room for {UNSURE - 1} classes",
            got=len(classes),
            remedy="leave some out, or make several sets",
        )
    if any(one.name.casefold() == BACKGROUND for one in classes):
        raise InputError(
            "the background is number 0 and no class",
            got=f"a class {BACKGROUND!r}",
            remedy="leave it out; the method decides what is background",
        )
    choose_listed(labels.names, classes, f"labels in {labels.source}")
    needs = segmenter.method.needs(segmenter.model)
    if needs.prompt == "empty":
        raise InputError(
            "masks from labels need a method that looks for classes",
            got=method_name(segmenter.method),
            remedy='use method="iseg", "diffsegmenter" or "attend"',
        )
    ask(segmenter.model, needs, Words(classes))


def _compare(inputs: Sequence[Input], labels: ImageLabels) -> None:
    """Say which labels have no image; there must be one that has."""
    used: set[str] = set()
    for one in inputs:
        try:
            key = labels.key_of(one.path)
        except InputError:
            continue  # said of the image itself
        used |= set() if key is None else {key}
    left = [key for key in labels.by_image if key not in used]
    if not used:
        first = ", ".join([*labels.by_image][:3])
        raise InputError(
            "labels must belong to the images",
            got=f"none of {len(inputs)} images, such as {inputs[0].path if inputs else 'none'}, is "
            f"among the {len(labels)} of {labels.source}, such as {first or 'none'}",
            remedy="labels go by the names of the image files without suffix",
        )
    if left:
        shown = ", ".join(left[:5]) + (", …" if len(left) > 5 else "")
        log.warning("%d of %d labelled images are not there: %s", len(left), len(labels), shown)
