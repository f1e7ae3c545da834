"""Labels of cells made labels of pixels: by modulation, by shares of votes, or by size alone."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int32, Int64
from torch import Tensor

from diffuseg.labelmaps import resized_labels
from diffuseg.methods.crf import crf_labels
from diffuseg.methods.settings import given
from diffuseg.methods.vidseg import VidSeg
from diffuseg.methods.vidseg.batching import Labelled
from diffuseg.methods.vidseg.denoising import denoise_modulated
from diffuseg.methods.vidseg.differences import (
    Compat,
    Fusion,
    as_stored,
    difference_maps,
    filter_maps,
    to_images,
)
from diffuseg.methods.vidseg.enlarging import enlarge_shares
from diffuseg.methods.vidseg.modulation import frame_strengths, label_masks
from diffuseg.video.seeing import Pixels, Seen


def pixel_labels(
    model: Any,
    settings: VidSeg,
    seen: Seen,
    labelled: Labelled,
    frames: Sequence[Pixels],
    values: Sequence[int],
    *,
    rows: int,
) -> list[Int32[np.ndarray, "h w"]]:
    """Return the label of every pixel of a batch.

    Args:
        model: That has seen it.
        settings: `VidSeg.ready` for it.
        seen: What it made of the batch.
        labelled: The batch's cells.
        frames: The pictures.
        values: All labels there are.
        rows: Most rows of latents in a call of the U-Net.
    """
    hw = frames[0].shape[0], frames[0].shape[1]
    if settings.modulate:
        fine = _modulated(model, settings, seen, labelled.labels, values, hw, rows).cpu().numpy()
    elif settings.shares:
        edges, known = given(settings.edges), labelled.values.cpu()
        fine = [
            known[enlarge_shares(one, pixels, seen.seen_hw, edges=edges).long().cpu()].numpy()
            for one, pixels in zip(labelled.shares, frames, strict=True)
        ]
    else:
        fine = [resized_labels(one.numpy(), hw) for one in labelled.labels.cpu()]
    found = [one.astype(np.int32) for one in fine]
    if settings.crf:
        crf = settings.dense_crf
        found = [crf_labels(*both, crf) for both in zip(frames, found, strict=True)]
    return found


def _modulated(
    model: Any,
    settings: VidSeg,
    seen: Seen,
    coarse: Int64[Tensor, "f h w"],
    values: Sequence[int],
    hw: tuple[int, int],
    rows: int,
) -> Int64[Tensor, "f H W"]:
    """Labels of pixels: where pushing and pulling a label changes the image most."""
    count = len(coarse)
    compat: Compat = given(settings.compat)
    masks = label_masks(coarse, values)
    fusion = Fusion(count, hw, values, device=coarse.device)
    parts = denoise_modulated(
        seen.network,
        seen.plain,
        masks,
        seen.schedule,
        strengths=frame_strengths(count, given(settings.strength), settings.strength_first),
        blended=settings.blended,
        grid=seen.modulated_grid,
        rows=rows,
    )
    for part in parts:
        images = [to_images(model.decode(one), hw) for one in (part.positive, part.negative)]
        maps = difference_maps(
            *images,
            side=given(settings.blur_side),
            width=given(settings.blur_width),
            compat=compat,
        )
        if compat == "reference":
            maps = as_stored(maps)
        maps = filter_maps(
            maps,
            masks[part.labels, part.frames],
            strength=settings.filter_strength if settings.filter else None,
            normalise=given(settings.normalise),
        )
        fusion.add(part.labels, part.frames, maps)
    return fusion.labels()
