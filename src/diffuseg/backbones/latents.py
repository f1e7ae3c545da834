"""The units of latents: an autoencoder's own, and those a U-Net is trained on."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
else:
    AutoencoderKL = nn.Module


def latent_units(vae: AutoencoderKL) -> tuple[Tensor | float, Tensor | float]:
    """Offset and factor: the U-Net's latents are (the autoencoder's - offset) * factor.

    One number each, or one a channel where the configuration has means and deviations.

    Example:
        >>> shift, factor = latent_units(model.vae)  # doctest: +SKIP
        >>> latents = (vae_latents - shift) * factor  # doctest: +SKIP
    """
    config = vae.config
    mean, deviation = config.get("latents_mean"), config.get("latents_std")
    if mean is None or deviation is None:
        return config.get("shift_factor") or 0.0, config["scaling_factor"]
    like = {"device": vae.device, "dtype": vae.dtype}
    offset = torch.tensor(mean, **like).view(1, -1, 1, 1)
    return offset, config["scaling_factor"] / torch.tensor(deviation, **like).view(1, -1, 1, 1)
