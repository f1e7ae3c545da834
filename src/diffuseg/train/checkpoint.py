"""Training state in one safetensors file: weights, optimizer moments and plain numbers.

A run is a pure function of (recipe, step): every random draw comes from a generator seeded with
the step, so weights, moments and the step number are all there is to resume from.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from diffuseg.errors import InputError
from diffuseg.files import atomic_path

_SEPARATOR = "|"


def save_checkpoint(
    path: Path,
    modules: Mapping[str, nn.Module],
    optimizer: torch.optim.Optimizer,
    facts: Mapping[str, object],
) -> None:
    """Write modules, optimizer moments and `facts` (JSON values) to `path`, atomically."""
    tensors: dict[str, Tensor] = {}
    for name, module in modules.items():
        for key, value in module.state_dict().items():
            tensors[f"module{_SEPARATOR}{name}{_SEPARATOR}{key}"] = value
    for index, moments in optimizer.state_dict()["state"].items():
        for key, value in moments.items():
            tensors[f"optimizer{_SEPARATOR}{index}{_SEPARATOR}{key}"] = value
    # Text towers tie buffers; safetensors refuses tensors that share memory.
    detached = {key: value.detach().cpu().clone().contiguous() for key, value in tensors.items()}
    with atomic_path(path) as temporary:
        save_file(detached, temporary, metadata={"facts": json.dumps(dict(facts))})


def load_checkpoint(
    path: Path, modules: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer | None = None
) -> dict[str, object]:
    """Load a checkpoint into `modules` (and `optimizer`) and return its facts.

    Raises:
        InputError: The file belongs to modules of other names or shapes.
    """
    states: dict[str, dict[str, Tensor]] = {name: {} for name in modules}
    moments: dict[int, dict[str, Tensor]] = {}
    with safe_open(path, framework="pt") as file:
        facts = json.loads(file.metadata()["facts"])
        for full in file.keys():  # noqa: SIM118 - a safetensors handle is no mapping
            group, owner, key = full.split(_SEPARATOR, 2)
            if group == "module" and owner in states:
                states[owner][key] = file.get_tensor(full)
            elif group == "optimizer" and optimizer is not None:
                moments.setdefault(int(owner), {})[key] = file.get_tensor(full)
    try:
        for name, module in modules.items():
            module.load_state_dict(states[name])
    except RuntimeError as error:
        raise InputError(
            "the checkpoint must come from the same recipe",
            got=f"{path}: {error}",
            remedy="delete the work folder to start again, or run with the recipe it was made by",
        ) from error
    if optimizer is not None:
        state = optimizer.state_dict()
        state["state"] = moments
        optimizer.load_state_dict(state)
    return facts
