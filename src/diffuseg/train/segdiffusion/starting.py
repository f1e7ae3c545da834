"""Weights a training begins from that are not the base model's: of a run, or of what one wrote."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from torch import nn

from diffuseg.backbones.folder import denoises_masks
from diffuseg.errors import InputError
from diffuseg.train.segdiffusion.recipe import SegRecipe
from diffuseg.train.segdiffusion.state import LATEST, load_average, read_facts

if TYPE_CHECKING:
    from peft import PeftModel


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """Where weights are.

    Attributes:
        folder: A work folder, or a fine-tuned model's.
        kind: "run", "adapter" or "whole".
        scheduler: What their masks are denoised with.
    """

    folder: Path
    kind: str
    scheduler: Mapping[str, object]


def find_start(folder: Path, recipe: SegRecipe) -> Start:
    """Look what a folder holds.

    Raises:
        InputError: Neither a run nor a model that denoises masks, or one that cannot go on as the
            recipe asks.
    """
    if (folder / LATEST).is_file():
        facts = read_facts(folder / LATEST)
        return Start(folder=folder, kind="run", scheduler=facts.scheduler)
    if not denoises_masks(folder):
        raise InputError(
            "a training can start from the work folder of another, or a model it wrote",
            got=f"{folder}, which is neither",
            remedy="leave --start out to begin from the base model",
        )
    adapter = (folder / "adapter").is_dir()
    if adapter != (recipe.weights == "lora"):
        held = "an adapter of low-rank updates" if adapter else "whole weights"
        raise InputError(
            f"weights to start from must be of the kind that learns, {recipe.weights}",
            got=f"{folder} with {held}",
            remedy="set weights=lora for an adapter and weights=full for a whole model, or give a "
            "whole model as the base",
        )
    config = folder / "scheduler" / "scheduler_config.json"
    scheduler = json.loads(config.read_text(encoding="utf-8"))
    return Start(folder=folder, kind="adapter" if adapter else "whole", scheduler=scheduler)


def load_start(start: Start, network: nn.Module, learned: Mapping[str, nn.Parameter]) -> None:
    """Put its weights into what learns.

    Raises:
        InputError: They are of something else.
    """
    from safetensors.torch import load_file

    if start.kind == "run":
        load_average(start.folder / LATEST, learned)
        return
    if start.kind == "adapter":
        from peft import get_peft_model_state_dict, set_peft_model_state_dict

        peft = cast("PeftModel", network)
        held = load_file(start.folder / "adapter" / "adapter_model.safetensors")
        _check(start, held, dict(get_peft_model_state_dict(peft)))
        config = json.loads((start.folder / "adapter" / "adapter_config.json").read_text("utf-8"))
        share = config["lora_alpha"] / config["r"]
        held = {
            name: one * share if name.endswith("lora_B.weight") else one
            for name, one in held.items()
        }
        set_peft_model_state_dict(peft, held)
        return
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    whole = UNet2DConditionModel.from_pretrained(
        start.folder / "unet", torch_dtype=torch.float32, local_files_only=True
    ).state_dict()
    _check(start, whole, network.state_dict())
    network.load_state_dict(whole)


def _check(start: Start, held: Mapping[str, torch.Tensor], ours: Mapping[str, object]) -> None:
    odd = sorted(set(held) ^ set(ours)) or [
        name for name, one in held.items() if one.shape != cast(torch.Tensor, ours[name]).shape
    ]
    if odd:
        raise InputError(
            "weights to start from must be of what learns",
            got=f"{start.folder}, where {len(odd)} differ, such as {odd[0]}",
            remedy="use the same base, rank and layers",
        )
