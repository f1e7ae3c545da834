"""What a text-to-image model changes before it learns masks: its first layer."""

from typing import TYPE_CHECKING, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from diffuseg.errors import InputError

if TYPE_CHECKING:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
else:
    UNet2DConditionModel = nn.Module

Copy = Literal["duplicate", "image_only", "random"]


def widen_conv_in(
    unet: UNet2DConditionModel,
    *,
    copy: Copy = "duplicate",
    generator: torch.Generator | None = None,
) -> None:
    """Let a U-Net take the latents of a picture and, behind them, those of a mask.

    Its first layer gets twice the input channels and its configuration says so, so that it is saved
    and loaded like any other. One that is wide already stays as it is: which half is the picture's
    is part of what it has learned.

    Args:
        unet: Changed in place.
        copy: What the layer's kernels become. "duplicate": both halves the old ones, halved, so
            that the same latents twice give what they gave once. "image_only": the picture's the
            old ones, the mask's zero. "random": all drawn anew, as the published code does. The
            bias stays.
        generator: Where chance comes from, with "random".

    Raises:
        InputError: The U-Net takes neither as many channels as it puts out nor twice as many.

    Example:
        >>> widen_conv_in(model.unet)  # doctest: +SKIP
        >>> model.unet.config["in_channels"]  # doctest: +SKIP
        8
    """
    old, cells = unet.conv_in, int(unet.config["out_channels"])
    takes = old.in_channels
    if takes == 2 * cells:
        return
    if takes != cells or not isinstance(old, nn.Conv2d):
        raise InputError(
            f"a U-Net that is to learn masks must take {cells} channels, or {2 * cells}",
            got=f"{takes} channels",
            remedy="use a plain text-to-image model, not one for inpainting or depth",
        )
    wide = nn.Conv2d(
        2 * cells,
        old.out_channels,
        old.kernel_size,  # pyright: ignore[reportArgumentType]
        padding=old.padding,  # pyright: ignore[reportArgumentType]
        bias=old.bias is not None,
        device=old.weight.device,
        dtype=old.weight.dtype,
    )
    with torch.no_grad():
        wide.weight.copy_(widen_kernels(old.weight, copy=copy, generator=generator))
        if wide.bias is not None and old.bias is not None:
            wide.bias.copy_(old.bias)
    wide.requires_grad_(old.weight.requires_grad)
    unet.conv_in = wide.train(old.training)
    unet.register_to_config(in_channels=2 * cells)


def widen_kernels(
    kernels: Float[Tensor, "d c x y"],
    *,
    copy: Copy = "duplicate",
    generator: torch.Generator | None = None,
) -> Float[Tensor, "d c2 x y"]:
    """Kernels for twice the input channels, see `widen_conv_in`.

    Example:
        >>> widen_kernels(torch.full((1, 1, 1, 1), 3.0)).flatten().tolist()
        [1.5, 1.5]
    """
    kernels = kernels.detach()
    if copy == "duplicate":
        return torch.cat([kernels, kernels], 1) / 2
    if copy == "image_only":
        return torch.cat([kernels, torch.zeros_like(kernels)], 1)
    # As a fresh layer begins, in single precision on the CPU for every device to have the same.
    width = 2 * kernels[0].numel()
    shape = (kernels.shape[0], 2 * kernels.shape[1], *kernels.shape[2:])
    drawn = (torch.rand(shape, generator=generator) * 2 - 1) / width**0.5
    return drawn.to(kernels)
