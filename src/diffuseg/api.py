"""Glue: an image and names in, a segmentation out, or the record in between."""

import logging
import os
import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

from diffuseg.attention import AttentionRecord
from diffuseg.backbones import Diffusion, load
from diffuseg.batch import Asked, Job, Shot, ask, capture_batch, group_jobs, model_name
from diffuseg.errors import InputError
from diffuseg.image import Image, read_image, working_hw
from diffuseg.methods import DEFAULT_METHOD, Method, Needs, find_method, method_name
from diffuseg.prompts import ClassName, parse_classes
from diffuseg.result import Segmentation

MODEL_VARIABLE = "DIFFUSEG_MODEL"
"""Environment variable that names the model used when none is given."""

log = logging.getLogger(__name__)


class ModelCache:
    """The models this process has loaded by name, the latest `limit` of them.

    `segment(..., model="sd1.5")` in a loop must not read gigabytes every time. Only names are kept
    here; a model you loaded yourself is yours.

    Example:
        >>> cache = ModelCache(limit=1)
        >>> len(cache)
        0
    """

    def __init__(self, limit: int = 1) -> None:
        self.limit = limit
        self._models: OrderedDict[tuple[str, str | None], Diffusion] = OrderedDict()

    def __len__(self) -> int:
        return len(self._models)

    def get(
        self, name: str, *, device: str | None = None, offline: bool | None = None
    ) -> Diffusion:
        """Return the model of that name on that device, loading it if it is not there."""
        key = (name, device)
        if key not in self._models:
            while len(self._models) >= self.limit:
                self._models.popitem(last=False)
            self._models[key] = load(name, device=device, offline=offline)
        self._models.move_to_end(key)
        return self._models[key]

    def clear(self) -> None:
        """Forget all models, so that their memory can be freed."""
        self._models.clear()


loaded = ModelCache()
"""What `segment` and `build_segmenter` keep of models named by text; `loaded.clear()` frees it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Segmenter:
    """A model, a method and their settings: an image in, a segmentation out.

    Made by `build_segmenter`.

    Attributes:
        model: The diffusion model.
        method: The method.
        classes: What is looked for when a call names nothing else.
        seed: Seed of the noise, the same noise for every image.
        size: Side of the square whose area the model sees; None: the side it was trained at.
        fit: "aspect" keeps the image's proportions, "square" does not.
        keep_scores: Whether results carry the score maps of all classes.
    """

    model: Diffusion
    method: Method
    classes: tuple[ClassName, ...] | None = None
    seed: int = 0
    size: int | None = None
    fit: str = "aspect"
    keep_scores: bool = False

    def __call__(self, image: object, classes: object = None) -> Segmentation:
        """Segment one image, in any form `read_image` takes; for other classes than the usual.

        Raises:
            InputError: The image cannot be read, or a class is not usable.
        """
        return self.many([image], [classes])[0]

    def many(
        self, images: Sequence[object], classes: Sequence[object] | None = None
    ) -> list[Segmentation]:
        """Segment several images, those of one working size together.

        Args:
            images: In any form `read_image` takes.
            classes: One class list an image; None, or None for an image: `self.classes`.

        Raises:
            InputError: An image cannot be read, or a class is not usable.
        """
        start = time.perf_counter()
        held = [read_image(image) for image in images]
        seconds = {"read": (time.perf_counter() - start) / max(1, len(held))}
        needs = self.method.needs(self.model)
        jobs = [
            Job(image, self._ask(one, needs), self._hw(image))
            for image, one in zip(held, classes or [None] * len(held), strict=True)
        ]
        results: dict[int, Segmentation] = {}
        for group in group_jobs(jobs):
            shots = capture_batch([jobs[i] for i in group], self.model, needs, self.seed)
            for i, shot in zip(group, shots, strict=True):
                results[i] = self._finish(held[i], shot, seconds)
        return [results[i] for i in range(len(held))]

    def check(self) -> None:
        """Make sure the method has the classes it needs, and the model knows them.

        Raises:
            InputError: Not so.
        """
        self._ask(None, self.method.needs(self.model))

    def capture(
        self, image: object, classes: object = None, *, everything: bool = False
    ) -> AttentionRecord:
        """Return the record of an image from which the method works.

        Args:
            image: In any form `read_image` takes.
            classes: What to look for; None: `self.classes`.
            everything: Whether all self- and cross-attention is recorded, so that the method can
                be run again with other layers, or another method.
        """
        held = read_image(image)
        needs = self.method.needs(self.model)
        asked = self._ask(classes, needs)
        if everything:
            needs = replace(needs, kinds=("self", "cross"), layers="*", levels=None, heads=None)
        [shot] = capture_batch([Job(held, asked, self._hw(held))], self.model, needs, self.seed)
        return shot.record

    def _ask(self, classes: object, needs: Needs) -> Asked:
        parsed = self.classes if classes is None else parse_classes(classes)
        return ask(self.model, needs, parsed)

    def _hw(self, image: Image) -> tuple[int, int]:
        return _seen_hw(image, self.model, self.size, self.fit)

    def _finish(self, image: Image, shot: Shot, seconds: dict[str, float]) -> Segmentation:
        start = time.perf_counter()
        found = self.method(shot.record, scores=self.keep_scores)
        spent = {**seconds, **shot.seconds, "method": time.perf_counter() - start}
        rounded = {name: round(value, 6) for name, value in spent.items()}
        origin = replace(
            found.provenance, model=model_name(self.model), image=image.source, seconds=rounded
        )
        return replace(found, provenance=origin)


def build_segmenter(
    model: object = None,
    method: object = DEFAULT_METHOD,
    classes: object = None,
    *,
    seed: int = 0,
    size: int | None = None,
    fit: str = "aspect",
    keep_scores: bool = False,
) -> Segmenter:
    """Return a callable that segments images, everything about it checked beforehand.

    Args:
        model: A name, hub id or folder; a loaded model; None: the one that the environment
            variable DIFFUSEG_MODEL names, else the embedded "mini".
        method: A name, or a method object with settings of your own.
        classes: What to look for: "car, tree", or a list whose items are names or tuples of
            synonyms. May be left out if every call names its own, or the method needs none.
        seed: Of the noise.
        size: Side of the square whose area the model sees; by default what it was trained at.
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
    parsed = None if classes is None else parse_classes(classes)
    check_number("seed", seed, least=0)
    if size is not None:
        check_number("size", size, least=64)
    segmenter = Segmenter(
        model=find_model(model),
        method=chosen,
        classes=parsed,
        seed=seed,
        size=size,
        fit=fit,
        keep_scores=keep_scores,
    )
    if parsed is not None:
        needs = chosen.needs(segmenter.model)
        if needs.prompt == "empty":
            raise InputError(
                "classes are named for methods that look for them",
                got=f"{', '.join(one.name for one in parsed)} for {method_name(chosen)}, which "
                "finds segments without names",
                remedy='leave the classes out, or use another method, such as "attend"',
            )
        ask(segmenter.model, needs, parsed)
    log.info("model %s, method %s", model_name(segmenter.model), method_name(chosen))
    return segmenter


def segment(
    image: object,
    classes: object = None,
    *,
    model: object = None,
    method: object = DEFAULT_METHOD,
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
        model, method, classes, seed=seed, size=size, fit=fit, keep_scores=keep_scores
    )
    return segmenter(held)


def segment_many(
    images: Iterable[object],
    classes: object = None,
    *,
    model: object = None,
    method: object = DEFAULT_METHOD,
    seed: int = 0,
    size: int | None = None,
    fit: str = "aspect",
    keep_scores: bool = False,
    batch_size: int = 4,
) -> Iterator[Segmentation]:
    """Segment images one after the other, `batch_size` at a time, in order.

    Args:
        images: Any number; read as they are needed.
        classes: The same for all; and the rest as for `segment`.
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
        model, method, classes, seed=seed, size=size, fit=fit, keep_scores=keep_scores
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
    seed: int = 0,
    size: int | None = None,
    fit: str = "aspect",
) -> AttentionRecord:
    """Show an image to a model and return the record of its attention.

    The image is encoded, noise of the seed is added at each timestep asked for, and the U-Net is
    called once with the prompts that name the classes.

    Args:
        image: In any form `read_image` takes.
        model: As for `build_segmenter`.
        needs: What to run and record, such as `Attend().needs(model)`.
        classes: As for `build_segmenter`; not needed if `needs.prompt` is "empty".
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
    chosen = find_model(model)
    parsed = None if classes is None else parse_classes(classes)
    hw = _seen_hw(held, chosen, size, fit)
    [shot] = capture_batch([Job(held, ask(chosen, needs, parsed), hw)], chosen, needs, seed)
    return shot.record


def find_model(
    model: object = None, *, device: str | None = None, offline: bool | None = None
) -> Diffusion:
    """Return a model from a name, hub id or folder, or the model itself.

    Args:
        model: None means the one named by the environment variable DIFFUSEG_MODEL, else "mini".
        device: Where a named model is loaded, such as "cpu" or "cuda:1".
        offline: Never use the network.

    Raises:
        InputError: No such model, or not a model.
        WeightsError: The weights are not to be had.
    """
    if model is None:
        model = os.environ.get(MODEL_VARIABLE) or "mini"
    if isinstance(model, str | os.PathLike):
        return loaded.get(os.fspath(model), device=device, offline=offline)
    if not all(hasattr(model, name) for name in ("unet", "encode", "embed", "denoise")):
        raise InputError(
            "the model must be a name, a hub id, a folder or a loaded model",
            got=type(model).__name__,
            remedy='pass "mini", or the result of diffuseg.load()',
        )
    return model  # type: ignore[return-value]


def _seen_hw(image: Image, model: Diffusion, size: int | None, fit: str) -> tuple[int, int]:
    """The height and width at which a model sees an image."""
    if fit not in ("aspect", "square"):
        raise InputError(
            'fit must be "aspect" or "square"', got=repr(fit), remedy="use one of the two"
        )
    return working_hw(image.hw, size=size or model.size, fit=fit)


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
