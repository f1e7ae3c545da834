"""Glue: an image and names in, a segmentation out, or the record in between."""

import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import islice
from typing import Any

from diffuseg.asking import ask, continue_prompts, read_words, takes_captions
from diffuseg.attention import AttentionRecord
from diffuseg.backbones import Features
from diffuseg.batch import Job, capture_batch
from diffuseg.errors import InputError
from diffuseg.filtering import ClassFilter, ListedClasses, find_filter
from diffuseg.image import read_image
from diffuseg.methods import (
    DEFAULT_METHOD,
    Method,
    Needs,
    OVDiff,
    SegDiffusion,
    backbone_of,
    find_method,
    method_name,
)
from diffuseg.models import MODEL_VARIABLE, ModelCache, find_model, loaded, model_name
from diffuseg.result import Segmentation
from diffuseg.segmenter import Segmenter, seen_hw

__all__ = [
    "MODEL_VARIABLE",
    "ModelCache",
    "Segmenter",
    "build_segmenter",
    "capture",
    "check_number",
    "find_model",
    "loaded",
    "model_name",
    "segment",
    "segment_many",
]

log = logging.getLogger(__name__)


def build_segmenter(
    model: object = None,
    method: object = DEFAULT_METHOD,
    classes: object = None,
    *,
    caption: object = None,
    captioner: object = None,
    class_filter: object = None,
    seed: int = 0,
    size: int | None = None,
    fit: str = "aspect",
    keep_scores: bool = False,
) -> Segmenter:
    """Return a callable that segments images, everything about it checked beforehand.

    Args:
        model: A name, hub id or folder; a loaded model; None: the one that the environment
            variable DIFFUSEG_MODEL names, else the embedded "mini". For methods that run on a
            vision transformer, such a network; for "segdiffusion", one that denoises masks.
        method: A name, or a method object with settings of your own.
        classes: What to look for: "car, tree", or a list whose items are names or tuples of
            synonyms. May be left out if every call names its own, or the method needs none.
        caption: For methods that name what a caption's nouns say: text, or the result of
            `read_caption`.
        captioner: What writes captions where neither is given: a name, hub id or folder, a loaded
            captioner, or a function from a list of images to a list of texts. None: the one that
            comes with the model, else BLIP.
        class_filter: Makes the classes a vocabulary, of which only those are looked for that an
            image shows: "clip", the pair that comes with the model; lists by image, as a file or a
            dict (then the classes may be left out); or what `find_filter` takes.
        seed: Of the noise.
        size: Side of the square whose area the model sees; by default what it was trained at. For
            "segdiffusion": the longer side.
        fit: "aspect" keeps the image's proportions, "square" does not.
        keep_scores: Whether results carry the score maps of all classes.

    Raises:
        InputError: No such model, method or class; a number out of range; or classes for a method
            that finds segments without names.
        WeightsError: The model's weights are not to be had.

    Example:
        >>> find = build_segmenter("mini", classes="ball, grass")  # doctest: +SKIP
        >>> find("ball.png").names  # doctest: +SKIP
        ('ball', 'grass')
    """
    chosen = find_method(method)
    words = read_words(classes, caption)
    check_number("seed", seed, least=0)
    if isinstance(chosen, OVDiff):
        own = {"captioner": captioner, "size": size, "seed": seed or None}
        own |= {"caption": caption, "fit": None if fit == "aspect" else fit}
        return _with_bank(model, chosen, words.classes, class_filter, keep_scores, own)
    if size is not None:
        check_number("size", size, least=64)
    if isinstance(chosen, SegDiffusion):
        own = {"captioner": captioner, "caption": caption, "fit": None if fit == "aspect" else fit}
        chosen = _with_numbers(chosen, {"seed": seed or None, "side": size})
        return _for_masks(model, chosen, words.classes, class_filter, keep_scores, own)
    held = find_model(model, backbone=backbone_of(chosen))
    needs = chosen.needs(held)
    kept = None
    if class_filter is not None:
        kept = _find_filter(class_filter, chosen, held, caption)
        if isinstance(kept, ListedClasses) and classes is None:
            words = read_words(list(kept.labels.names))
    segmenter = Segmenter(
        model=held,
        method=chosen,
        classes=words.classes,
        caption=words.caption,
        captioner=captioner,
        class_filter=kept,
        seed=seed,
        size=size,
        fit=fit,
        keep_scores=keep_scores,
    )
    if words and needs.prompt == "empty":
        named = ", ".join(one.name for one in words.classes or ()) or repr(caption)
        raise InputError(
            "classes and captions are for methods that look for them",
            got=f"{named} for {method_name(chosen)}, which finds segments without names",
            remedy='leave them out, or use another method, such as "attend"',
        )
    if words:
        ask(segmenter.model, needs, words)
    if captioner is not None and not (takes_captions(needs) or needs.continued):
        raise InputError(
            "a captioner is for methods that work from captions",
            got=f"{captioner!r} for {method_name(chosen)}",
            remedy='leave it out, or use method="semantic-diffseg" or DiffSegmenter(caption=True)',
        )
    log.info("model %s, method %s", model_name(segmenter.model), method_name(chosen))
    return segmenter


def _with_bank(
    model: object,
    method: OVDiff,
    classes: object,
    class_filter: object,
    keep_scores: bool,
    others: Mapping[str, object],
) -> Segmenter:
    from diffuseg.ovdiff.segmenter import open_segmenter

    for name, value in others.items():
        if value is not None:
            raise InputError(
                "OVDiff has settings of its own for how pictures are seen",
                got=f"{name}={value!r}",
                remedy="leave it out; see side, noise_seed and clip of OVDiff",
            )
    segmenter = open_segmenter(None, model, method, classes, keep_scores=keep_scores)
    if class_filter is not None:
        kept = find_filter(class_filter, segmenter.model)
        segmenter = replace(segmenter, class_filter=kept)
    log.info("model %s, method %s", model_name(segmenter.model), method_name(method))
    return segmenter


def _with_numbers(method: SegDiffusion, numbers: Mapping[str, int | None]) -> SegDiffusion:
    """The settings with what was said beside them."""
    told = {name: value for name, value in numbers.items() if value is not None}
    for name, value in told.items():
        if getattr(method, name) not in (None, value):
            raise InputError(
                f"{name} of SegDiffusion must be said once",
                got=f"{getattr(method, name)} in the settings and {value} beside them",
                remedy="leave one of them out",
            )
    return replace(method, **told)


def _for_masks(
    model: object,
    method: SegDiffusion,
    classes: object,
    class_filter: object,
    keep_scores: bool,
    others: Mapping[str, object],
) -> Segmenter:
    from diffuseg.segdiffusion.opening import open_segmenter

    for name, value in others.items():
        if value is not None:
            raise InputError(
                "Seg-diffusion asks for classes, and keeps a picture's proportions",
                got=f"{name}={value!r}",
                remedy="leave it out",
            )
    segmenter = open_segmenter(model, method, classes, keep_scores=keep_scores)
    if class_filter is not None:
        kept = find_filter(class_filter, segmenter.model)
        if isinstance(kept, ListedClasses) and classes is None:
            segmenter = replace(segmenter, classes=read_words(list(kept.labels.names)).classes)
            segmenter.check()
        segmenter = replace(segmenter, class_filter=kept)
    log.info("model %s, method %s", model_name(segmenter.model), method_name(method))
    return segmenter


def segment(
    image: object,
    classes: object = None,
    *,
    model: object = None,
    method: object = DEFAULT_METHOD,
    caption: object = None,
    captioner: object = None,
    class_filter: object = None,
    seed: int = 0,
    size: int | None = None,
    fit: str = "aspect",
    keep_scores: bool = False,
) -> Segmentation:
    """Segment one image.

    Args:
        image: A path, the bytes of a file, a Pillow image, a NumPy array or a torch tensor.
        classes: What to look for, if the method looks for classes; and `model` to `keep_scores`:
            as for `build_segmenter`.

    Returns:
        Labels at the image's own size. Which model ran, how, and how long each stage took is in
        `provenance`.

    Raises:
        InputError: The image or a class cannot be used, or there is no such model or method.
        WeightsError: The model's weights are not to be had.

    Example:
        >>> seg = segment("ball.png", "ball, grass", model="mini")  # doctest: +SKIP
        >>> seg["ball"].sum()  # doctest: +SKIP
        5129
    """
    # Before the model is loaded, which takes far longer.
    held = read_image(image)
    segmenter = build_segmenter(
        model,
        method,
        classes,
        caption=caption,
        captioner=captioner,
        class_filter=class_filter,
        seed=seed,
        size=size,
        fit=fit,
        keep_scores=keep_scores,
    )
    return segmenter(held)


def segment_many(
    images: Iterable[object],
    classes: object = None,
    *,
    model: object = None,
    method: object = DEFAULT_METHOD,
    caption: object = None,
    captioner: object = None,
    class_filter: object = None,
    seed: int = 0,
    size: int | None = None,
    fit: str = "aspect",
    keep_scores: bool = False,
    batch_size: int = 4,
) -> Iterator[Segmentation]:
    """Segment images one after the other, `batch_size` at a time, in order.

    Args:
        images: Any number; read as they are needed.
        classes: The same for all, as a caption would be; and the rest as for `segment`.
        batch_size: Images that go through the model together, if they have one working size.

    Raises:
        InputError: As `segment`, for the first image that cannot be used.
        WeightsError: The model's weights are not to be had.

    Example:
        >>> for seg in segment_many(["a.png", "b.png"], "ball, grass"):  # doctest: +SKIP
        ...     print(seg.areas)
    """
    check_number("batch_size", batch_size, least=1)
    segmenter = build_segmenter(
        model,
        method,
        classes,
        caption=caption,
        captioner=captioner,
        class_filter=class_filter,
        seed=seed,
        size=size,
        fit=fit,
        keep_scores=keep_scores,
    )
    return _segment_lazily(segmenter, iter(images), batch_size)


def _segment_lazily(
    segmenter: Segmenter, images: Iterator[object], batch_size: int
) -> Iterator[Segmentation]:
    while batch := list(islice(images, batch_size)):
        yield from segmenter.many(batch)


def capture(
    image: object,
    model: object,
    needs: Needs,
    classes: object = None,
    *,
    caption: object = None,
    seed: int = 0,
    size: int | None = None,
    fit: str = "aspect",
) -> AttentionRecord:
    """Show an image to a model and return the record of its attention.

    The image is encoded, noise of the seed is added at each timestep asked for, and the U-Net is
    called once with the prompts that name the classes. A vision transformer just sees it.

    Args:
        image: In any form `read_image` takes.
        model: As for `build_segmenter`; a name means a diffusion model.
        needs: What to run and record, such as `Attend().needs(model)`.
        classes: As for `build_segmenter`; not needed if `needs.prompt` is "empty".
        caption: As for `build_segmenter`.
        seed: Of the noise.
        size: Side of the square whose area the model sees; by default what it was trained at.
        fit: "aspect" keeps the image's proportions, "square" does not.

    Raises:
        InputError: The image or a class cannot be used, or a layer is not there.
        WeightsError: The model's weights are not to be had.

    Example:
        >>> from diffuseg.methods import Attend
        >>> model = load("mini")  # doctest: +SKIP
        >>> held = capture("a.png", model, Attend().needs(model), "ball")  # doctest: +SKIP
        >>> held.save("a.safetensors")  # doctest: +SKIP
    """
    held = read_image(image)
    check_number("seed", seed, least=0)
    chosen = find_model(model, backbone="vit" if isinstance(model, Features) else "diffusion")
    words = [read_words(classes, caption)]
    if needs.continued:
        words = continue_prompts([held], words, None, chosen, needs)
    job = Job(held, ask(chosen, needs, words[0]), seen_hw(held, chosen, size, fit))
    [shot] = capture_batch([job], chosen, needs, seed)
    return shot.record


def _find_filter(
    class_filter: object, method: Method, model: Any, caption: object
) -> ClassFilter | None:
    prompt = method.needs(model).prompt
    if prompt == "empty" or caption is not None:
        got = "a caption" if prompt != "empty" else method_name(method)
        raise InputError(
            "a class filter is for methods that look for classes",
            got=f"class_filter={class_filter!r} and {got}",
            remedy='leave it out, or name classes and use a method such as "attend"',
        )
    return find_filter(class_filter, model)


def check_number(name: str, value: object, *, least: int) -> None:
    """Make sure a number is whole and not too small.

    Raises:
        InputError: It is not.

    Example:
        >>> check_number("batch_size", 4, least=1)
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InputError(
            f"{name} must be a whole number of at least {least}",
            got=repr(value),
            remedy=f"use {name}={least}, for example",
        )
