"""Models of every kind, tiny and random, and diffusers' own pipelines around them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import (
    StableDiffusionXLPipeline,
)

from support import folders

KINDS = ("sd15", "sd21", "sdxl")


def write_homes(root: Path) -> dict[str, Path]:
    """One folder of each kind, and of the miniature."""
    return {kind: getattr(folders, f"write_{kind}")(root / kind) for kind in (*KINDS, "mini")}


def pipelines_of(homes: Mapping[str, Path], models: Mapping[str, Any]) -> dict[str, Any]:
    """diffusers' own pipelines around our copies of the networks.

    Two copies of a network may differ in the last bit: kernels depend on where weights lie in
    memory.
    """
    made = {}
    for kind in KINDS:
        pipeline = StableDiffusionXLPipeline if kind == "sdxl" else StableDiffusionPipeline
        parts = {"unet": models[kind].unet, "vae": models[kind].vae}
        parts["text_encoder"] = models[kind].tower.encoder
        if kind == "sdxl":
            parts["text_encoder_2"] = models[kind].tower.encoder_2
        made[kind] = pipeline.from_pretrained(homes[kind], **parts)
        made[kind].set_progress_bar_config(disable=True)
    return made


def picture(seed: int = 0, hw: tuple[int, int] = (64, 96), rows: int = 1) -> torch.Tensor:
    return torch.rand(rows, 3, *hw, generator=torch.Generator().manual_seed(seed))
