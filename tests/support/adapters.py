"""Writers of folders of models that denoise masks: whole, and as adapters of another model.

Weights are random with fixed seeds, or what peft saves of a U-Net it has updated.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor

from diffuseg.segdiffusion.levels import mask_scheduler
from diffuseg.segdiffusion.surgery import widen_conv_in

UPDATED = ("to_q", "to_v", "conv1")
PREFIX = "base_model.model."


def write_whole(folder: Path, base: Path, **facts: Any) -> Path:
    """A base's folder with a U-Net that takes masks, too, and the scheduler they need."""
    shutil.copytree(base, folder)
    unet = UNet2DConditionModel.from_pretrained(base / "unet")
    widen_conv_in(unet)
    unet.save_pretrained(folder / "unet")
    write_scheduler(folder, base)
    told = {"masks": "segdiffusion", "size": 64, **facts}
    (folder / "diffuseg.json").write_text(json.dumps(told))
    return folder


def write_scheduler(folder: Path, base: Path, **changes: object) -> None:
    """The scheduler of masks, from the base's."""
    own = json.loads((base / "scheduler/scheduler_config.json").read_text())
    path = folder / "scheduler/scheduler_config.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**mask_scheduler({**own, **changes}), **changes}))


def write_adapter(
    folder: Path,
    unet: Any,
    *,
    base: str,
    scheduler: Path,
    rank: int = 2,
    strength: float = 0.05,
    seed: int = 0,
    **facts: Any,
) -> Path:
    """An adapter with small random updates of a U-Net, as peft would save it; it predicts v."""
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, Tensor] = {}
    for name, module in unet.named_modules():
        if name.rpartition(".")[2] not in UPDATED or not hasattr(module, "weight"):
            continue
        weight: Any = module.weight
        out, into, *kernel = weight.shape
        down = torch.randn(rank, into, *kernel, generator=generator)
        up = torch.randn(out, rank, *(1 for _ in kernel), generator=generator)
        tensors[f"{PREFIX}{name}.lora_A.weight"] = down * into**-0.5
        tensors[f"{PREFIX}{name}.lora_B.weight"] = up * strength
    narrow, cells = unet.conv_in.weight.detach().float(), unet.config["out_channels"]
    wide = torch.cat([narrow[:, :cells], narrow[:, :cells]], 1) / 2
    tensors[f"{PREFIX}conv_in.weight"] = wide
    tensors[f"{PREFIX}conv_in.bias"] = unet.conv_in.bias.detach().float()
    tensors[f"{PREFIX}conv_out.weight"] = unet.conv_out.weight.detach().float() * 1.1
    tensors[f"{PREFIX}conv_out.bias"] = unet.conv_out.bias.detach().float()
    (folder / "adapter").mkdir(parents=True)
    halved = {name: one.half().contiguous() for name, one in tensors.items()}
    save_file(halved, folder / "adapter/adapter_model.safetensors")
    config = {
        "peft_type": "LORA", "r": rank, "lora_alpha": rank, "bias": "none",
        "target_modules": list(UPDATED), "modules_to_save": ["conv_in", "conv_out"],
    }  # fmt: skip
    (folder / "adapter/adapter_config.json").write_text(json.dumps(config))
    write_scheduler(folder, scheduler, prediction_type="v_prediction")
    told = {"masks": "segdiffusion", "base": base, **facts}
    (folder / "diffuseg.json").write_text(json.dumps(told))
    return folder
