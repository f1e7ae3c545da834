"""Adapters: the few weights by which a fine-tuned U-Net differs from the model it was made of.

Files as peft writes them, read without peft: low-rank updates (LoRA, Hu et al. 2021, arXiv
2106.09685) are added to the weights they belong to, layers trained whole take the place of those
that were there. What is left is an ordinary U-Net.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from diffuseg.backbones.folder import bad_adapter

if TYPE_CHECKING:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
else:
    UNet2DConditionModel = nn.Module

_WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_DOWN, _UP = ".lora_A.weight", ".lora_B.weight"
# What peft can do beside, and what each is where it is not done.
_NOT_DONE: Mapping[str, tuple[object, ...]] = {
    "use_dora": (None, False),
    "fan_in_fan_out": (None, False),
    "bias": (None, "none"),
    "lora_bias": (None, False),
    "use_qalora": (None, False),
    "use_bdlora": (None, False),
    "alora_invocation_tokens": (None,),
    "target_parameters": (None,),
    "rank_pattern": (None, {}),
    "alpha_pattern": (None, {}),
}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Adapter:
    """What changes a U-Net.

    Attributes:
        path: The file the weights are from.
        scale: Strength of the updates.
        updates: By module, the two factors of its update: to few channels, and back.
        wholes: By name, parameters that take the place of those there were.
    """

    path: Path
    scale: float
    updates: Mapping[str, tuple[Float[Tensor, "r i *k"], Float[Tensor, "o r *k"]]]
    wholes: Mapping[str, Tensor]


def read_adapter(folder: Path) -> Adapter:
    """Read a folder that peft has written: adapter_config.json and adapter_model.safetensors.

    Raises:
        WeightsError: A file is missing or damaged, the adapter is not low-rank updates or has
            something beside that this library does not do, or values are not finite.

    Example:
        >>> read_adapter(Path("mini-seg/adapter")).scale  # doctest: +SKIP
        1.0
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    config, path = _read_config(folder / "adapter_config.json"), folder / _WEIGHTS
    try:
        found = load_file(path)
    except (OSError, SafetensorError) as error:
        raise bad_adapter(path, f"cannot be read: {error}") from error
    for name, tensor in found.items():
        if not name.startswith(_PREFIX) or not tensor.is_floating_point():
            raise bad_adapter(path, f"has {name}, which is no weight as peft names them")
        if not bool(tensor.isfinite().all()):
            raise bad_adapter(path, f"has values that are not finite in {name}")
    held = {name.removeprefix(_PREFIX): tensor.float() for name, tensor in found.items()}
    rank, updates = int(config["r"]), {}
    for name in [one for one in held if one.endswith((_DOWN, _UP))]:
        module = name.removesuffix(_DOWN).removesuffix(_UP)
        if module in updates:
            continue
        down, up = held.get(module + _DOWN), held.get(module + _UP)
        if down is None or up is None:
            raise bad_adapter(path, f"has one of the two factors for {module}")
        if len(down) != rank or up.shape[1] != rank:
            shapes = f"{tuple(down.shape)} and {tuple(up.shape)}"
            raise bad_adapter(path, f"has factors of {shapes} for {module}; r is {rank}")
        updates[module] = (down, up)
    wholes = {name: one for name, one in held.items() if not name.endswith((_DOWN, _UP))}
    for module in config.get("modules_to_save") or ():
        if not any(name.startswith(f"{module}.") or f".{module}." in name for name in wholes):
            raise bad_adapter(path, f"lacks {module}, which the configuration says is in it")
    root = math.sqrt(rank) if config.get("use_rslora") else rank
    return Adapter(
        path=path, scale=float(config["lora_alpha"]) / root, updates=updates, wholes=wholes
    )


def _read_config(path: Path) -> Mapping[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise bad_adapter(path, f"cannot be read as JSON: {error}") from error
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise bad_adapter(path, "is not of low-rank updates (peft_type LORA)")
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not isinstance(rank, int) or rank < 1 or not isinstance(alpha, int | float):
        raise bad_adapter(path, f"has r {rank!r} and lora_alpha {alpha!r}; both must be numbers")
    for name, harmless in _NOT_DONE.items():
        if config.get(name) not in harmless:
            raise bad_adapter(path, f"has {name} {config[name]!r}, which is not supported")
    return config


@torch.no_grad()
def apply_adapter(unet: UNet2DConditionModel, adapter: Adapter) -> None:
    """Make of a U-Net the one an adapter was saved from; it then denoises masks.

    Sums are in single precision, whatever the U-Net's is. Its first layer is made to take the
    latents of a picture and of a mask, as the adapter has it.

    Args:
        unet: Changed in place; of no use any more where an error is raised.
        adapter: What changes it.

    Raises:
        WeightsError: A module of the adapter is not in the U-Net, or is of another shape.
    """
    _widen(unet, adapter)
    parameters, modules = dict(unet.named_parameters()), dict(unet.named_modules())
    for name, whole in adapter.wholes.items():
        if name not in parameters:
            raise bad_adapter(adapter.path, f"has {name}, which the base model has not")
        _check_shape(adapter, name, whole.shape, parameters[name].shape)
        parameters[name].copy_(whole)
    for name, (down, up) in adapter.updates.items():
        module = modules.get(name)
        if not isinstance(module, nn.Linear | nn.Conv2d):
            what = "not" if module is None else f"as {type(module).__name__}"
            raise bad_adapter(adapter.path, f"has an update of {name}, which the base has {what}")
        weight = module.weight
        _check_shape(adapter, name, (len(up), *down.shape[1:]), weight.shape)
        down, up = (one.to(weight.device).flatten(1) for one in (down, up))
        weight.copy_(weight.float() + adapter.scale * (up @ down).view_as(weight))


def _widen(unet: UNet2DConditionModel, adapter: Adapter) -> None:
    """Give the first layer room for the channels of a mask."""
    kernels, old = adapter.wholes.get("conv_in.weight"), unet.conv_in
    cells = int(unet.config["out_channels"])
    if kernels is None:
        raise bad_adapter(adapter.path, "lacks conv_in whole, by which the U-Net sees masks")
    _check_shape(
        adapter,
        "conv_in.weight",
        kernels.shape,
        (old.out_channels, 2 * cells, *old.weight.shape[2:]),
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
    if wide.bias is not None and old.bias is not None:
        wide.bias.copy_(old.bias)
    unet.conv_in = wide.requires_grad_(False).train(old.training)
    unet.register_to_config(in_channels=2 * cells)


def _check_shape(
    adapter: Adapter, name: str, found: tuple[int, ...], wanted: tuple[int, ...]
) -> None:
    if tuple(found) != tuple(wanted):
        raise bad_adapter(
            adapter.path,
            f"has {tuple(found)} for {name}; with this base model it must be {tuple(wanted)}",
        )
