"""Which parts of a U-Net learn: all of it, or low-rank updates of its layers."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, cast

import torch
from torch import nn

from diffuseg.errors import MissingExtra

if TYPE_CHECKING:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from transformers import PreTrainedModel
else:
    UNet2DConditionModel = nn.Module

WHOLE = ("conv_in", "conv_out")
"""Layers that learn as a whole beside updates: what goes in is new, and so is what comes out."""

_ATTENTION = r"to_q|to_k|to_v|to_out\.0"
_TRANSFORMER = r"proj_in|proj_out|ff\.net\.0\.proj|ff\.net\.2"
_PROMPT = r"attn2\.to_[kv]$"
_RESIDUAL = r"conv1|conv2|conv_shortcut|time_emb_proj|conv"


def add_updates(
    unet: UNet2DConditionModel, *, rank: int, convolutions: bool, text: bool = True, seed: int = 0
) -> nn.Module:
    """Freeze a U-Net and add low-rank updates, of strength 1, that are zero yet.

    Args:
        unet: Changed in place.
        rank: Of the updates.
        convolutions: Whether the layers between attention are updated too.
        text: Whether the layers that read the prompt are.
        seed: Of the half of the updates that does not begin at zero.

    Returns:
        The network to train, which calls the U-Net.

    Raises:
        MissingExtra: peft is not installed.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise MissingExtra("peft", extra="train", purpose="learning low-rank updates") from error

    layers = f"{_ATTENTION}|{_TRANSFORMER}"
    if convolutions:
        layers += f"|{_RESIDUAL}"
    config = LoraConfig(
        r=rank,
        lora_alpha=rank,
        target_modules=rf"{'' if text else f'(?!.*{_PROMPT})'}.*\.({layers})",
        modules_to_save=list(WHOLE),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return cast(nn.Module, get_peft_model(cast("PreTrainedModel", unet), config))


@contextmanager
def updates_at(network: nn.Module, share: float) -> Iterator[None]:
    """Let only a share of the updates count for a while; layers that learn as a whole stay."""
    # peft's layers hold the strength of every adapter by its name.
    found = [cast("dict[str, float]", getattr(one, "scaling", None)) for one in network.modules()]
    strengths = [one for one in found if isinstance(one, dict)]
    held = [dict(one) for one in strengths]
    for one in strengths:
        one.update({name: value * share for name, value in one.items()})
    try:
        yield
    finally:
        for one, old in zip(strengths, held, strict=True):
            one.update(old)
