"""Masks as pictures: the pixels an autoencoder is shown, and masks from what it puts out.

Pixels are the autoencoder's, from -1 to 1. A mask is a picture of the two ends, in three equal
channels; what comes back is their mean. Nothing is stretched to its own least and largest value:
the mask of a class that is not there has to stay empty.
"""

from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from diffuseg.errors import InputError


def picture_pixels(pictures: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
    """8-bit pictures as an autoencoder sees them.

    Example:
        >>> import torch
        >>> picture_pixels(torch.tensor([0, 255], dtype=torch.uint8).expand(1, 3, 1, 2))[0, 0]
        tensor([[-1.,  1.]])
    """
    return pictures.float() / 255 * 2 - 1


def mask_pixels(masks: Bool[Tensor, "b h w"]) -> Float[Tensor, "b 3 h w"]:
    """Masks as an autoencoder sees them: 1 inside, -1 outside, thrice.

    Example:
        >>> import torch
        >>> mask_pixels(torch.tensor([[[False, True]]]))[0, :, 0]
        tensor([[-1.,  1.],
                [-1.,  1.],
                [-1.,  1.]])
    """
    return (masks.float() * 2 - 1)[:, None].expand(-1, 3, -1, -1)


def mean_channel(decoded: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b h w"]:
    """What an autoencoder put out, its channels averaged before anything is cut off.

    Example:
        >>> import torch
        >>> mean_channel(torch.tensor([3.0, 0.0, 0.0]).view(1, 3, 1, 1)).item()
        1.0
    """
    return decoded.float().mean(1)


def mask_shares(channel: Float[Tensor, "*b h w"]) -> Float[Tensor, "*b h w"]:
    """How far pixels belong to a mask, 0 to 1, from the mean channel.

    Example:
        >>> import torch
        >>> mask_shares(torch.tensor([[-1.5, 0.0, 0.5]])).tolist()
        [[0.0, 0.5, 0.75]]
    """
    return (channel.clamp(-1, 1) + 1) / 2


def threshold_shares(
    shares: Float[Tensor, "*b h w"], threshold: float = 0.5
) -> Bool[Tensor, "*b h w"]:
    """Masks from shares: what has the threshold is inside.

    Raises:
        InputError: The threshold is not in [0, 1].

    Example:
        >>> import torch
        >>> threshold_shares(torch.tensor([[0.4, 0.5]])).tolist()
        [[False, True]]
    """
    if not 0 <= threshold <= 1:
        raise InputError(
            "a threshold of shares must lie in [0, 1]", got=threshold, remedy="0.5 is the middle"
        )
    return shares >= threshold
