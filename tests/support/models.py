"""Builders of tiny random U-Nets with the block layout of the real ones, and inputs that fit them.

Every builder seeds torch's generator inside a fork, so a model is the same on every call and the
caller's random state is left alone. All weights are random: outputs mean nothing, but names, head
counts, grids, projections and control flow are those of the real classes.
"""

from collections.abc import Callable
from typing import Any

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.models.unets.unet_spatio_temporal_condition import UNetSpatioTemporalConditionModel
from torch import Tensor, nn

TOKENS = 7
CROSS_DIM = 12
FRAMES = 3


def _seeded(build: Callable[[], nn.Module], seed: int) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build().eval().requires_grad_(False)


def sd15(seed: int = 0, *, levels: int = 4, layers: int = 2) -> UNet2DConditionModel:
    """SD 1.x layout: 2-2-2 down, 1 mid, 3-3-3 up transformers, same head count at all levels.

    Fewer `levels` or `layers` make a smaller one.
    """
    widths = tuple(8 * min(2**i, 4) for i in range(levels))
    return _seeded(
        lambda: UNet2DConditionModel(
            sample_size=16,
            block_out_channels=widths,
            down_block_types=("CrossAttnDownBlock2D",) * (levels - 1) + ("DownBlock2D",),
            up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * (levels - 1),
            layers_per_block=layers,
            attention_head_dim=2,
            cross_attention_dim=CROSS_DIM,
            norm_num_groups=4,
        ),
        seed,
    )


def sd21(seed: int = 0) -> UNet2DConditionModel:
    """SD 2.x layout: linear projections, fixed head width (so 1-2-4-4 heads), upcast attention."""
    return _seeded(
        lambda: UNet2DConditionModel(
            sample_size=16,
            block_out_channels=(8, 16, 32, 32),
            attention_head_dim=(1, 2, 4, 4),
            cross_attention_dim=CROSS_DIM,
            norm_num_groups=4,
            use_linear_projection=True,
            upcast_attention=True,
        ),
        seed,
    )


def sdxl(seed: int = 0) -> UNet2DConditionModel:
    """SDXL layout: no attention at full size, 2 and 3 blocks a transformer, added conditioning."""
    return _seeded(
        lambda: UNet2DConditionModel(
            sample_size=16,
            block_out_channels=(8, 16, 32),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 2, 3),
            attention_head_dim=(1, 2, 4),
            cross_attention_dim=CROSS_DIM,
            norm_num_groups=4,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=4,
            projection_class_embeddings_input_dim=6 * 4 + 10,
        ),
        seed,
    )


def svd(seed: int = 0) -> UNetSpatioTemporalConditionModel:
    """Stable Video Diffusion layout: spatial and temporal transformer blocks side by side."""
    return _seeded(
        lambda: UNetSpatioTemporalConditionModel(
            sample_size=16,
            block_out_channels=(32, 32, 64, 64),
            num_attention_heads=(2, 2, 4, 4),
            cross_attention_dim=CROSS_DIM,
            addition_time_embed_dim=4,
            projection_class_embeddings_input_dim=3 * 4,
            num_frames=FRAMES,
        ),
        seed,
    )


def inputs(
    unet: nn.Module,
    *,
    batch: int = 1,
    hw: tuple[int, int] = (16, 16),
    tokens: int = TOKENS,
    timestep: int = 500,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> dict[str, Any]:
    """Keyword arguments for one call of `unet`; row i does not depend on the batch size."""
    video = isinstance(unet, UNetSpatioTemporalConditionModel)
    channels = unet.config.in_channels
    width = unet.config.cross_attention_dim

    def row(number: int) -> list[Tensor]:
        generator = torch.Generator().manual_seed(1000 * seed + number)
        sizes = [(FRAMES, channels, *hw), (1, width), (3,)] if video else []
        sizes = sizes or [(channels, *hw), (tokens, width), (10,), (6,)]
        return [torch.randn(size, generator=generator).to(dtype) for size in sizes]

    sample, text, *added = (torch.stack(part) for part in zip(*map(row, range(batch)), strict=True))
    call: dict[str, Any] = {"sample": sample, "timestep": timestep, "encoder_hidden_states": text}
    if video:
        call["added_time_ids"] = added[0]
    elif unet.config.addition_embed_type == "text_time":
        call["added_cond_kwargs"] = {"text_embeds": added[0], "time_ids": added[1]}
    return call


LAYOUTS: dict[str, Callable[[], nn.Module]] = {"sd15": sd15, "sd21": sd21, "sdxl": sdxl, "svd": svd}


def n_hooks(unet):
    return sum(
        len(module._forward_hooks) + len(module._forward_pre_hooks) for module in unet.modules()
    )
