"""What a denoiser of masks is trained on: targets, the cells that count, losses, learning rate."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor
from torch.nn import functional as F

from diffuseg.errors import InputError

IGNORE = 255
"""The label of pixels of which nothing is known."""

_CERTAIN = 1e-4  # cross-entropy sees no share nearer to 0 or 1


def class_targets(
    labels: Integer[Tensor, "h w"], classes: Sequence[int], *, ignore: int = IGNORE
) -> tuple[Bool[Tensor, "k h w"], Bool[Tensor, "h w"]]:
    """Return the mask of every class asked for, and where something is known.

    A class that is nowhere has an empty mask. What is not known lies outside of all.

    Args:
        labels: Of a picture.
        classes: Those asked for.
        ignore: The label of what is not known.

    Raises:
        InputError: That label is asked for.

    Example:
        >>> masks, known = class_targets(torch.tensor([[3, 255, 7]]), [7, 5])
        >>> masks.int().tolist(), known.tolist()
        ([[[0, 0, 1]], [[0, 0, 0]]], [[True, False, True]])
    """
    if ignore in classes:
        raise InputError(
            f"{ignore} must not be a class, it says that nothing is known",
            got=list(classes),
            remedy="leave it out",
        )
    asked = torch.tensor(list(classes), dtype=torch.int64, device=labels.device).view(-1, 1, 1)
    # Compared as 64-bit numbers: labels may be 8 bits, and classes beyond.
    return labels.long() == asked, labels != ignore


def valid_cells(known: Bool[Tensor, "b h w"], scale: int = 8) -> Bool[Tensor, "b h2 w2"]:
    """Latent cells all of whose pixels are known.

    Args:
        known: By pixel.
        scale: Pixels a cell.

    Raises:
        InputError: Sides are no multiples of `scale`.

    Example:
        >>> known = torch.ones(1, 2, 4, dtype=torch.bool)
        >>> known[0, 1, 3] = False
        >>> valid_cells(known, 2).tolist()
        [[[True, False]]]
    """
    height, width = known.shape[-2:]
    if height % scale or width % scale:
        raise InputError(
            f"height and width must be multiples of {scale}",
            got=f"{height}x{width}",
            remedy="crop or pad pictures and labels alike",
        )
    return known.unflatten(2, (-1, scale)).unflatten(1, (-1, scale)).all(4).all(2)


def denoising_loss(
    output: Float[Tensor, "b c h w"],
    target: Float[Tensor, "b c h w"],
    valid: Bool[Tensor, "b h w"],
    *,
    balanced: bool = False,
) -> Float[Tensor, ""]:
    """Mean square of what an output is off, over valid cells; 0 where there are none.

    Args:
        output: Of the network.
        target: See `Levels.target`.
        valid: The cells that count.
        balanced: Whether every query counts the same, however many valid cells it has.

    Example:
        >>> output, valid = torch.ones(1, 4, 1, 2), torch.tensor([[[True, False]]])
        >>> denoising_loss(output, torch.zeros(1, 4, 1, 2), valid).item()
        1.0
    """
    some = valid.flatten(1).any(1)
    if not some.any():
        return output.float().nan_to_num(0, 0, 0).sum() * 0
    squares = (output.float() - target.float()).square()
    if not balanced:
        return squares[valid[:, None].expand_as(squares)].mean()
    means = [one[:, cells].mean() for one, cells in zip(squares, valid, strict=True) if cells.any()]
    return torch.stack(means).mean()


def mask_loss(
    channel: Float[Tensor, "b h w"],
    masks: Bool[Tensor, "b h w"],
    known: Bool[Tensor, "b h w"],
    *,
    square: float = 0.0,
) -> Float[Tensor, ""]:
    """Cross-entropy and Dice loss of decoded masks, over known pixels; 0 where there are none.

    Dice is Milletari's (arXiv 1606.04797), with squares below the line and a pixel added to both
    sides, of every mask by itself. Cross-entropy says nothing of pixels beyond either end, Dice and
    the mean square do.

    Args:
        channel: The decoded mean channel, from -1 to 1 and beyond; not cut off.
        masks: What it should be.
        known: The pixels that count.
        square: Weight of the mean square, which helps early.

    Example:
        >>> masks, known = torch.eye(8).bool()[None], torch.ones(1, 8, 8, dtype=torch.bool)
        >>> right, wrong = masks.float() * 2 - 1, 1 - masks.float() * 2
        >>> round(mask_loss(right, masks, known).item(), 3)
        0.0
        >>> mask_loss(wrong, masks, known).item() > 1
        True
    """
    if not known.any():
        return channel.float().nan_to_num(0, 0, 0).sum() * 0
    inside = known.float()
    shares, wanted = (channel.float() + 1) / 2, masks.float() * inside
    bounded = shares.clamp(_CERTAIN, 1 - _CERTAIN)
    entropy = F.binary_cross_entropy(bounded[known], wanted[known])
    shares = shares.masked_fill(~known, 0)
    overlap = 2 * (shares * wanted).sum((1, 2)) + 1
    dice = 1 - overlap / (shares.square().sum((1, 2)) + wanted.sum((1, 2)) + 1)
    off = (shares - wanted)[known].square().mean()
    return entropy + dice[known.flatten(1).any(1)].mean() + square * off


def rate_factor(step: int, *, total: int = 25_000, final: float = 0.01, warmup: int = 100) -> float:
    """Factor on the learning rate at a step counted from 0: up in a line, down exponentially.

    Args:
        step: Number of the step.
        total: The step from which the factor is `final`.
        final: Where it ends.
        warmup: The step at which it is 1.

    Raises:
        InputError: The numbers make no curve.

    Example:
        >>> [round(rate_factor(step), 3) for step in (0, 50, 100, 12_550, 30_000)]
        [0.0, 0.5, 1.0, 0.1, 0.01]
    """
    if not (0 <= warmup < total and 0 < final <= 1):
        raise InputError(
            "the learning rate must rise before it falls, to a positive share",
            got=f"warmup {warmup}, total {total}, final {final}",
            remedy="for example warmup=100, total=25000, final=0.01",
        )
    if step < warmup:
        return step / warmup
    if step >= total:
        return final
    return math.exp(math.log(final) * (step - warmup) / (total - warmup))
