"""Masks completed by what sees the image: holes filled, borders drawn, after a method is done.

DiffSegmenter (arXiv 2309.02773) suggests a promptable segmenter for this; `backbones.sam` is one.
"""

from dataclasses import replace
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from diffuseg.errors import InputError
from diffuseg.image import Image, read_image
from diffuseg.result import Segmentation


@runtime_checkable
class RegionCompleter(Protocol):
    """Makes better score maps of score maps, looking at the image."""

    def __call__(
        self, image: Image, scores: Float[np.ndarray, "k h w"]
    ) -> Float[np.ndarray, "k h w"]: ...


def complete_regions(
    segmentation: Segmentation, image: object, completer: RegionCompleter
) -> Segmentation:
    """Return a segmentation by its completed scores.

    Args:
        segmentation: With the score maps of all its names (`keep_scores=True`).
        image: The image it is of, in any form `read_image` takes.
        completer: Gets the image and the scores; must not change what it gets.

    Raises:
        InputError: There are no scores, the image has another size, or the completer gives no
            finite scores of the same shape.

    Example:
        >>> scores = np.array([[[0.6, 0.4]], [[0.5, 0.5]]])
        >>> labels = scores.argmax(0)
        >>> seg = Segmentation(labels=labels, names=("sky", "car"), scores=scores)
        >>> image = np.zeros((1, 2, 3), np.uint8)
        >>> complete_regions(seg, image, lambda _, given: given[::-1]).labels.tolist()
        [[1, 0]]
    """
    if segmentation.scores is None:
        raise InputError(
            "completing needs the score maps of a segmentation",
            got="none kept",
            remedy="segment with keep_scores=True",
        )
    seen = read_image(image)
    if seen.hw != segmentation.hw:
        raise InputError(
            "image and segmentation must have one size",
            got=f"{seen.hw} and {segmentation.hw}",
            remedy="pass the image that was segmented",
        )
    scores = np.asarray(completer(seen, segmentation.scores))
    if scores.shape != segmentation.scores.shape or not np.isfinite(scores).all():
        raise InputError(
            "a completer must return a finite score for every class and pixel",
            got=f"{scores.dtype} {scores.shape} for {segmentation.scores.shape}",
            remedy="return an array of the shape it is called with",
        )
    labels = scores.argmax(axis=0).astype(segmentation.labels.dtype)
    # Pixels the method left undecided are not for a completer of regions to decide.
    undecided = segmentation.labels == segmentation.ignore
    labels[undecided] = segmentation.ignore
    name = getattr(completer, "__name__", repr(completer))
    origin = replace(
        segmentation.provenance,
        parameters={**segmentation.provenance.parameters, "completer": name},
    )
    return replace(segmentation, labels=labels, scores=scores.astype(np.float32), provenance=origin)
