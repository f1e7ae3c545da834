"""Recording attention: hooks inside a `with` block, nothing changed, nothing left behind.

Hooks sit on `to_q` and `to_k` of every chosen layer (and on modules named as features); a U-Net
keeps its attention processors, so its output is the same to the last bit and its own fast attention
goes on working. On leaving the block it is checked that every chosen layer arrived in every pass.

Inside code that torch.compile has traced, a hook cannot do more than put a tensor away; the rest is
then done when the pass is over.
"""

from collections.abc import Sequence

import torch

from diffuseg.attention.calls import check_steps
from diffuseg.attention.captured import RecordHeader
from diffuseg.attention.layers import (
    LayerId,
    as_tuple,
    layers_of,
    select_layers,
    shape_of,
    sites_of,
    unet_of,
)
from diffuseg.attention.memory import item_bytes, record_bytes
from diffuseg.attention.recorder import Recorder
from diffuseg.attention.reduce import Reduction
from diffuseg.attention.selection import CLIP_TOKENS, HALVES, Selection
from diffuseg.errors import InputError

__all__ = ["estimate_bytes", "record"]


def record(
    model: object,
    *,
    layers: str | Sequence[str] = "*",
    kinds: str | Sequence[str] = ("self", "cross"),
    levels: int | Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    features: str | Sequence[str] = (),
    steps: int | float | Sequence[int | float] | None = None,
    half: str = "auto",
    dtype: torch.dtype | None = None,
    device: str | torch.device | None = "cpu",
    reduce: object = None,
    early_exit: bool = False,
    memory_limit: int | None = None,
    header: RecordHeader | None = None,
) -> "Recorder":
    """Record attention of a diffusion model while a `with` block runs.

    Args:
        model: A diffusers U-Net (2D conditional or spatio-temporal, also a compiled one), or a
            pipeline or backbone with one as `.unet`. Give the object that will be called.
        layers: Only layers whose module path matches this pattern ("up_blocks.*") or one of these.
        kinds: "self", "cross", "temporal"; one or several.
        levels: Only layers whose grid is smaller than the latent by these factors (1, 2, 4, 8).
        heads: Only these heads, of every layer.
        features: Paths of modules whose outputs to keep ("up_blocks.1.resnets.0").
        steps: Only passes at these timesteps; None for every pass.
        half: For batches [unconditional, conditional]: which half to keep. "auto" and "all" keep
            the whole batch.
        dtype: To store queries, keys and features in; default the model's.
        device: To keep them on; None leaves them where the model computes.
        reduce: A `HeadMean` or `TokenColumns`, or several: layers it takes are averaged as they
            come, and their queries and keys not kept.
        early_exit: Stop the U-Net as soon as all is there: the pass is left through an exception
            that this context swallows, so the rest of the `with` body is skipped. To run several
            passes, give each to `Recorder.run`. How much it saves depends on the last layer wanted:
            nothing for the last up block, measured by benchmarks/record.py for earlier ones. It has
            no effect inside compiled code.
        memory_limit: Bytes the record may take; default half of what is free.
        header: What the caller knows of prompts, image and seed. For a pipeline, prompts and tokens
            are found out if they are not given.

    Returns:
        A context manager that yields the `AttentionRecord`; passes are in it once they are over.

    Raises:
        InputError: An argument that fits no model or not this one; a selection without layers.
        CaptureError: On entering: the projections are fused. In a pass: the record would not fit in
            memory, or the passes do not go together. On leaving: something did not arrive.

    Example:
        >>> from diffusers import UNet2DConditionModel
        >>> unet = UNet2DConditionModel(
        ...     block_out_channels=(8, 8), attention_head_dim=2, norm_num_groups=4,
        ...     cross_attention_dim=4, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        ...     up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"))
        >>> with torch.no_grad(), record(unet, kinds="self", levels=2) as rec:
        ...     _ = unet(torch.zeros(1, 4, 8, 12), 300, torch.zeros(1, 7, 4))
        >>> rec.self_attention(level=2).shape, rec.timesteps
        (torch.Size([1, 24, 24]), (300,))
    """
    called, unet = unet_of(model)
    sites = sites_of(unet)
    names = as_tuple(features, str, "features must be module paths")
    chosen: tuple[LayerId, ...] = ()
    if kinds or not names:
        there = [site.layer for site in sites]
        chosen = select_layers(there, names=layers, kinds=kinds, levels=levels)
    if half not in HALVES:
        raise InputError(
            f"half must be one of {', '.join(HALVES)}",
            got=half,
            remedy='"cond" for the conditional half of a classifier-free guidance batch',
        )
    selection = Selection(
        sites=tuple(site for site in sites if site.layer in chosen),
        heads=_check_heads(heads, chosen),
        features=names,
        steps=check_steps(steps),
        half=half,
        dtype=dtype,
        device=None if device is None else torch.device(device),
        reductions=_check_reductions(reduce, chosen),
        early_exit=early_exit,
        memory_limit=memory_limit,
    )
    return Recorder(
        model=model,
        called=called,
        unet=unet,
        selection=selection,
        header=header or RecordHeader(),
    )


def estimate_bytes(
    model: object,
    latent_hw: tuple[int, int],
    *,
    batch: int = 1,
    frames: int = 1,
    tokens: int = CLIP_TOKENS,
    steps: int = 1,
    layers: str | Sequence[str] = "*",
    kinds: str | Sequence[str] = ("self", "cross"),
    levels: int | Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    dtype: torch.dtype | None = None,
    reduce: object = None,
) -> int:
    """Return the bytes a record will take, from shapes alone; nothing is run.

    Args:
        model: As for `record`.
        latent_hw: Height and width of the latent (an eighth of the image's).
        batch: Rows kept (videos, for a video model).
        frames: Frames of a video.
        tokens: Text tokens; 77 for CLIP, 1 for SVD.
        steps: Passes kept.
        layers: As for `record`, like all others. Features are not part of the estimate: how large a
            module's output is shows only when it runs.

    Example:
        >>> from diffusers import UNet2DConditionModel
        >>> unet = UNet2DConditionModel(
        ...     block_out_channels=(8, 8), attention_head_dim=2, norm_num_groups=4,
        ...     cross_attention_dim=4, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        ...     up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"))
        >>> estimate_bytes(unet, (64, 64), kinds="self")
        1376256
    """
    unet = unet_of(model)[1]
    chosen = select_layers(layers_of(unet), names=layers, kinds=kinds, levels=levels)
    some = _check_heads(heads, chosen)
    shapes = [
        shape_of(
            one,
            latent_hw,
            batch=batch,
            frames=frames,
            tokens=tokens,
            heads=None if some is None else len(some),
        )
        for one in chosen
    ]
    reductions = _check_reductions(reduce, chosen)
    return record_bytes(shapes, reductions, item=item_bytes(unet, dtype), steps=steps)


def _check_reductions(reduce: object, layers: Sequence[LayerId]) -> tuple[Reduction, ...]:
    given = () if reduce is None else reduce if isinstance(reduce, Sequence) else (reduce,)
    for one in given:
        if not isinstance(one, Reduction):
            raise InputError(
                "reduce must be a HeadMean, a TokenColumns, or several",
                got=one,
                remedy="for example record(unet, reduce=HeadMean())",
            )
        if not any(one.takes(layer) for layer in layers):
            raise InputError(
                "a reduction must take at least one of the selected layers",
                got=f"{type(one).__name__} takes none of {len(layers)} layers",
                remedy="select its kinds: record(kinds=...), or give it others",
            )
    return tuple(given)


def _check_heads(heads: Sequence[int] | None, layers: Sequence[LayerId]) -> tuple[int, ...] | None:
    if heads is None:
        return None
    chosen = as_tuple(heads, int, "heads must be whole numbers")
    fewest = min((layer.heads for layer in layers), default=0)
    if not chosen or not all(0 <= head < fewest for head in chosen):
        raise InputError(
            f"heads must be among the {fewest} that every selected layer has",
            got=heads,
            remedy="count from 0, or select layers that have these heads",
        )
    return chosen
