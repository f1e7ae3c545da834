"""Masks through an autoencoder and back, with gradients where they are asked for.

Masks cannot go the way of pictures, whose channels are cut off before anyone could average them.
"""

from typing import TYPE_CHECKING, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from diffuseg.backbones.latents import latent_units
from diffuseg.methods.segdiffusion.codec import mean_channel

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
else:
    AutoencoderKL = nn.Module


def encode_pixels(
    vae: AutoencoderKL, pixels: Float[Tensor, "b 3 H W"], *, max_batch: int = 4
) -> Float[Tensor, "b c h w"]:
    """Pixels from -1 to 1 to latents: the mode of the autoencoder's posterior, scaled.

    Args:
        vae: The autoencoder.
        pixels: Of pictures or masks, see `codec`.
        max_batch: How many go through at once.

    Example:
        >>> encode_pixels(model.vae, mask_pixels(masks)).shape  # doctest: +SKIP
        torch.Size([2, 4, 32, 32])
    """
    parts = pixels.to(vae.device, vae.dtype).split(max_batch)
    modes = torch.cat([vae.encode(part, return_dict=False)[0].mode() for part in parts])
    shift, factor = latent_units(vae)
    return (modes.float() - shift) * factor


def decode_channel(
    vae: AutoencoderKL, latents: Float[Tensor, "b c h w"], *, max_batch: int = 4
) -> Float[Tensor, "b H W"]:
    """Latents to the mean channel, from -1 to 1 and beyond; `codec.mask_shares` makes shares of it.

    Args:
        vae: The autoencoder.
        latents: Scaled.
        max_batch: How many go through at once.

    Example:
        >>> decode_channel(model.vae, latents).shape  # doctest: +SKIP
        torch.Size([2, 256, 256])
    """
    shift, factor = latent_units(vae)
    inner = (latents.float().to(vae.device) / factor + shift).to(vae.dtype)
    parts = [
        mean_channel(vae.decode(cast(torch.FloatTensor, part), return_dict=False)[0])
        for part in inner.split(max_batch)
    ]
    return torch.cat(parts)
