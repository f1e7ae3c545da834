"""OVDiff's foreground and background of drawn pictures: proposals told apart by attribution.

Of masks that something proposes without knowing the class, those with much of the class words'
attribution are foreground and those with little background. Where nothing is proposed, the
attribution itself is thresholded.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from diffuseg.errors import InputError
from diffuseg.methods.ovdiff.attribution import normalise_attribution, stretch
from diffuseg.methods.ovdiff.settings import OVDiff

FIXED = (0.2, 0.5)
"""Below the first is background, above the second foreground."""
_BINS = 256
_Pair = tuple[float, float]


@torch.no_grad()
def split_foreground(
    attribution: Float[Tensor, "n s1 s2"],
    proposals: Sequence[Bool[Tensor, "_r _H _W"]],
    settings: OVDiff,
    *,
    size: int,
) -> tuple[Bool[Tensor, "n H W"], Bool[Tensor, "n H W"]]:
    """Split the pictures of one class into foreground and background; some pixels are neither.

    What no proposal covers is one more proposal. Empty proposals, and those on which the
    attribution is zero, are never foreground; the background is empty where nothing is left for
    it. So a picture whose attribution is constant has no foreground. With profile="release", as
    the authors' code does, an empty proposal makes the whole picture foreground, pixels with zero
    attribution are foreground, and a picture that is all foreground is all background too.

    Args:
        attribution: Means as `AttributionSum` has them, of all pictures of the class: Otsu's
            thresholds depend on all of them.
        proposals: Of every picture; none (r = 0) where nothing was found. Ignored, and may be left
            empty, with settings.proposals "none".
        settings: `mask_rule`, `fallback`, `proposals` and `profile` count.
        size: Side of the pictures.

    Returns:
        Foreground and background.

    Raises:
        InputError: Proposals are not as many as pictures, or not of their size; the attribution is
            not finite.

    Example:
        >>> attribution = torch.zeros(1, 4, 4)
        >>> attribution[:, :2] = 1
        >>> half = torch.zeros(1, 8, 8, dtype=torch.bool)
        >>> half[:, :4] = True
        >>> found, other = split_foreground(attribution, [half], OVDiff(), size=8)
        >>> found.equal(half), int(other.sum())
        (True, 16)
    """
    settings = settings.ready()
    if settings.proposals == "none":
        proposals = [torch.zeros(0, size, size, dtype=torch.bool)] * len(attribution)
    _check(proposals, len(attribution), size)
    pixels = normalise_attribution(attribution, size)
    low, high = FIXED
    if settings.fallback == "otsu" and not all(map(len, proposals)):
        low, high = otsu_thresholds(stretch(attribution)) or FIXED
    release = settings.profile == "release"
    found, other = torch.zeros(2, *pixels.shape, dtype=torch.bool, device=pixels.device)
    for number, (shown, masks) in enumerate(zip(pixels, proposals, strict=True)):
        if not len(masks):
            found[number], other[number] = shown > high, shown < low
            continue
        every = with_complement(masks.to(pixels.device))
        weights = mean_attribution(shown, every)
        if settings.mask_rule == "paper":
            found[number], other[number] = choose_whole(every, weights)
        elif release:
            ranks = rank_pixels_released(every, weights)
            found[number], other[number] = ranks == 0, ranks == ranks.max()
        else:
            found[number], other[number] = split_ranks(every, weights)
        if settings.mask_rule != "paper":
            other[number] = gate_background(other[number], shown)
    return found, other


def _check(proposals: Sequence[Tensor], number: int, size: int) -> None:
    wrong = [tuple(one.shape) for one in proposals if one.shape[1:] != (size, size)]
    if len(proposals) != number or wrong:
        raise InputError(
            f"every picture must have proposals of {size}x{size} pixels",
            got=f"proposals of {wrong[0]}" if wrong else f"{len(proposals)} for {number} pictures",
            remedy="propose on the drawn pictures; where there are none, give one of shape "
            f"(0, {size}, {size})",
        )


def with_complement(masks: Bool[Tensor, "r H W"]) -> Bool[Tensor, "r1 H W"]:
    """Put before masks what none of them covers.

    Example:
        >>> with_complement(torch.tensor([[[True, False]]])).tolist()
        [[[False, True]], [[True, False]]]
    """
    return torch.cat([~masks.any(0, keepdim=True), masks])


def mean_attribution(
    attribution: Float[Tensor, "H W"], masks: Bool[Tensor, "r H W"]
) -> Float[Tensor, " r"]:
    """Mean of the attribution in every mask, in double precision; NaN in an empty one.

    Example:
        >>> mean_attribution(torch.tensor([[0.0, 1.0]]), torch.ones(1, 1, 2, dtype=torch.bool))
        tensor([0.5000], dtype=torch.float64)
    """
    flat = masks.flatten(1).double()
    return flat @ attribution.flatten().double() / flat.sum(1)


def choose_whole(
    masks: Bool[Tensor, "r H W"], weights: Float[Tensor, " r"]
) -> tuple[Bool[Tensor, "H W"], Bool[Tensor, "H W"]]:
    """The mask of largest weight and that of smallest, both whole, as the paper has it.

    Example:
        >>> masks = torch.tensor([[[True, False]], [[False, True]]])
        >>> [one.tolist() for one in choose_whole(masks, torch.tensor([0.1, 0.8]))]
        [[[False, True]], [[True, False]]]
    """
    masks, weights = masks[~weights.isnan()], weights[~weights.isnan()]
    best, least = int(weights.argmax()), int(weights.argmin())
    found, other = masks[best], masks[least]
    return found & (weights[best] > 0), other & torch.tensor(best != least, device=other.device)


def split_ranks(
    masks: Bool[Tensor, "r H W"], weights: Float[Tensor, " r"]
) -> tuple[Bool[Tensor, "H W"], Bool[Tensor, "H W"]]:
    """Give every pixel to the mask of largest weight; the first and the last that have any.

    Pixels of masks whose weight is zero go to the last.

    Example:
        >>> masks = torch.tensor([[[True, False, False]], [[False, True, True]]])
        >>> [one.tolist() for one in split_ranks(masks, torch.tensor([0.1, 0.8]))]
        [[[False, True, True]], [[True, False, False]]]
    """
    known = ~weights.isnan()
    weights, order = weights[known].sort(descending=True, stable=True)
    held = masks[known][order] & (weights > 0)[:, None, None]
    ranks = held.to(torch.uint8).argmax(0)
    ranks[~held.any(0)] = len(weights) - 1
    last = ranks.max()
    return (ranks == 0) & held.any(0), (ranks == last) & (last > 0)


def rank_pixels_released(
    masks: Bool[Tensor, "r H W"], weights: Float[Tensor, " r"]
) -> Int[Tensor, "H W"]:
    """Rank of the mask every pixel belongs to, by the product of mask and weight.

    Unlike `split_ranks`, a weight of NaN or zero makes pixels rank 0, as in the authors' code.

    Example:
        >>> masks = torch.tensor([[[True, True]], [[False, False]]])
        >>> rank_pixels_released(masks, torch.tensor([0.5, float("nan")])).tolist()
        [[0, 0]]
    """
    weights, order = weights.sort(descending=True, stable=True)
    return (masks[order] * weights[:, None, None]).argmax(0)


def gate_background(
    background: Bool[Tensor, "H W"], attribution: Float[Tensor, "H W"], *, erode: bool = True
) -> Bool[Tensor, "H W"]:
    """Keep background of low attribution, less a border of one pixel; the image's own stays.

    Example:
        >>> gate_background(torch.tensor([[True, True, False]]), torch.zeros(1, 3)).tolist()
        [[True, False, False]]
    """
    kept = background & (attribution < FIXED[0])
    if not erode:
        return kept
    left = kept.clone()
    left[1:] &= kept[:-1]
    left[:-1] &= kept[1:]
    left[:, 1:] &= kept[:, :-1]
    left[:, :-1] &= kept[:, 1:]
    return left


def otsu_thresholds(maps: Float[Tensor, "n h w"]) -> _Pair | None:
    """Two thresholds between three kinds of values (Liao, Chen and Chung, 2001).

    They leave the most variance between the kinds, over a histogram of 256 bins of all maps
    together; each is the middle of the last bin below it. The first of several that are as good.
    In single precision, the lowest bin counting as if it were the second and being no kind of its
    own, thresholds are to the bin those of scikit-image, with which numbers were published.

    Returns:
        The lower and the higher, or None where fewer than three bins hold values.

    Example:
        >>> maps = torch.tensor([[[0.0, 0.0, 0.5, 0.5, 1.0, 1.0]]])
        >>> [round(one, 3) for one in otsu_thresholds(maps)]
        [0.002, 0.502]
        >>> otsu_thresholds(torch.zeros(1, 2, 2))
    """
    counts, edges = np.histogram(maps.cpu().numpy(), bins=_BINS)
    middles = (edges[1:] + edges[:-1]) / 2
    occupied = np.flatnonzero(counts)
    if len(occupied) < 3:
        return None
    if len(occupied) == 3:
        return float(middles[occupied[0]]), float(middles[occupied[1]])
    places = np.arange(_BINS, dtype=np.float32)
    places[0] = 1
    weights = (counts / counts.sum()).astype(np.float32)
    # Of the bins before each, so that a kind's are differences of two
    shares = np.concatenate([np.zeros(1, np.float32), np.cumsum(weights)])
    sums = np.concatenate([np.zeros(1, np.float32), np.cumsum(weights * places)])
    first, second = np.triu_indices(_BINS - 1, 1)
    gain = np.zeros(len(first), np.float32)
    for start, stop in ((0, first + 1), (first + 1, second + 1), (second + 1, _BINS)):
        share = shares[stop] - shares[start]
        total = sums[stop] - sums[start]
        alone = np.divide(total**2, share, out=np.zeros_like(gain), where=share > 0)
        gain += np.where(stop == 1, 0, alone)
    best = int(gain.argmax())
    return float(middles[first[best]]), float(middles[second[best]])
