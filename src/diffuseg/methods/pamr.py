"""Pixel-adaptive mask refinement: scores averaged over neighbours of a like colour, repeatedly.

Araslanov and Roth, Single-Stage Semantic Segmentation from Image Labels, CVPR 2020, section 3.3.
The formulas are those of the authors' release (visinf/1-stage-wseg), stated as facts: which
neighbours count, and how deviations are pooled, the paper leaves open.
"""

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from diffuseg.errors import InputError

_SHARPNESS = 0.1  # factor on the deviation of colours
_LEAST = 1e-8
_AROUND = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if dy or dx]

# Rows of all planes worked on at a time, by bytes: they stay in the cache while all neighbours are
# added. Measured for 14 planes of 448 x 448, on a CPU with 1 MB of second-level cache a core.
_STRIP_BYTES = 1 << 20
_LEAST_ROWS = 8


@torch.no_grad()
def pamr(
    scores: Float[Tensor, "k h w"],
    image: Float[Tensor, "3 H W"],
    *,
    iterations: int = 10,
    dilations: Sequence[int] = (1, 2, 4, 8, 12, 24),
) -> Float[Tensor, "k H W"]:
    """Refine scores so that they follow the colours of an image.

    A pixel's neighbours are the eight around it at every distance in `dilations`; over the border
    the outermost pixel is repeated. A neighbour weighs more the less its colour differs, in units
    of the deviation of colours among all of them, and weights sum to 1. In every iteration each
    pixel takes the weighted mean of its neighbours, not of itself.

    No copies are made for the neighbours: beyond what goes in and comes out there are the weights,
    `8 len(dilations)` planes of the image's size, and one padded copy of the scores.

    Args:
        scores: Of any size; enlarged first, corner pixels to corner pixels.
        image: Values 0 to 255.
        iterations: 0 only enlarges.
        dilations: Distances of neighbours, in pixels of the image.

    Raises:
        InputError: A setting is out of range, or values are not finite.

    Example:
        >>> image = torch.zeros(3, 4, 8)
        >>> image[:, :, 4:] = 200
        >>> scores = torch.tensor([[[1.0, 0.9, 0.8, 0.2, 0.7, 0.1, 0.0, 0.0]]]).expand(1, 4, 8)
        >>> (pamr(scores, image, dilations=(1, 2))[0, 0] > 0.5).int().tolist()
        [1, 1, 1, 1, 0, 0, 0, 0]
    """
    if iterations < 0 or not dilations or min(dilations) < 1:
        raise InputError(
            "iterations must be 0 or more, and there must be a dilation, all 1 or more",
            got=f"{iterations} iterations, dilations {tuple(dilations)}",
            remedy="the paper has 10 iterations and dilations 1, 2, 4, 8, 12, 24",
        )
    if not (scores.isfinite().all() and image.isfinite().all()):
        raise InputError(
            "scores and image must be finite",
            got="NaN or infinity",
            remedy="refine only what was compared",
        )
    hw = (image.shape[1], image.shape[2])
    scores = F.interpolate(scores[None].float(), size=hw, mode="bilinear", align_corners=True)[0]
    if not iterations:
        return scores
    weights = affinities(image, dilations)
    reach = max(dilations)
    rows = max(_LEAST_ROWS, _STRIP_BYTES // (4 * len(scores) * hw[1]))
    for _ in range(iterations):
        padded = _padded(scores, reach)
        for top in range(0, hw[0], rows):
            strip = scores[:, top : top + rows].zero_()
            near = _neighbours(padded, reach, dilations, slice(top, top + strip.shape[1]))
            for weight, other in zip(weights, near, strict=True):
                strip.addcmul_(other, weight[top : top + rows])
    return scores


@torch.no_grad()
def affinities(image: Float[Tensor, "3 H W"], dilations: Sequence[int]) -> Float[Tensor, "m H W"]:
    """Return the weights of every pixel's neighbours, the eight of a distance after each other.

    Example:
        >>> affinities(torch.zeros(3, 5, 5), (1,))[:, 2, 2]
        tensor([0.1250, 0.1250, 0.1250, 0.1250, 0.1250, 0.1250, 0.1250, 0.1250])
    """
    image = image.float()
    reach = max(dilations)
    padded = _padded(image, reach)
    whole = slice(0, image.shape[1])

    # The pixel itself is among its neighbours once a distance. Counted from it, equal colours
    # deviate by exactly 0, whatever rounding does.
    count = 9 * len(dilations)
    total, squares = torch.zeros_like(image), torch.zeros_like(image)
    for other in _neighbours(padded, reach, dilations, whole):
        apart = other - image
        total += apart
        squares.addcmul_(apart, apart)
    variance = (squares - total.square_() / count).clamp_min_(0) / (count - 1)
    scale = -1 / (_LEAST + _SHARPNESS * variance.sqrt_())

    weights = image.new_empty((8 * len(dilations), *image.shape[1:]))
    near = _neighbours(padded, reach, dilations, whole)
    for weight, other in zip(weights, near, strict=True):
        torch.mean((other - image).abs_().mul_(scale), dim=0, out=weight)
    weights.sub_(weights.amax(0)).exp_()
    return weights.div_(weights.sum(0))


def _padded(planes: Float[Tensor, "k H W"], reach: int) -> Float[Tensor, "k _ _"]:
    return F.pad(planes[None], (reach, reach, reach, reach), mode="replicate")[0]


def _neighbours(
    padded: Float[Tensor, "*k _ _"], reach: int, dilations: Sequence[int], rows: slice
) -> Iterator[Float[Tensor, "*k h w"]]:
    """Views of the neighbours of some rows, in one order always."""
    width = padded.shape[-1] - 2 * reach
    for far in dilations:
        for dy, dx in _AROUND:
            top, left = reach + far * dy, reach + far * dx
            yield padded[..., top + rows.start : top + rows.stop, left : left + width]
