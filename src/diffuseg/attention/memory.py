"""How much memory there is, and how much a record will take of it."""

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from diffuseg.attention.layers import LayerShape
from diffuseg.attention.reduce import Reduction

_MEMINFO = Path("/proc/meminfo")


def available_bytes(device: torch.device) -> int | None:
    """Return the free memory of a device; None where the system does not tell.

    For the CPU that is what Linux calls available (free, plus caches it would give up).

    Example:
        >>> free = available_bytes(torch.device("cpu"))
        >>> free is None or free > 0
        True
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if _MEMINFO.is_file():
        lines = (line.split() for line in _MEMINFO.read_text().splitlines())
        found = {words[0]: int(words[1]) for words in lines if len(words) > 1}
        if "MemAvailable:" in found:
            return found["MemAvailable:"] << 10
    for name in ("SC_AVPHYS_PAGES", "SC_PHYS_PAGES"):
        if name in getattr(os, "sysconf_names", {}):
            return os.sysconf(name) * os.sysconf("SC_PAGE_SIZE")
    return None


def readable_bytes(count: int | float) -> str:
    """Return a number of bytes for people.

    Example:
        >>> readable_bytes(71_000_000)
        '71.0 MB'
    """
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def item_bytes(unet: nn.Module, dtype: torch.dtype | None) -> int:
    """Return the bytes of one stored number: of `dtype`, or of the model's own."""
    return (dtype or next(unet.parameters()).dtype).itemsize


def record_bytes(
    shapes: Sequence[LayerShape], reductions: Sequence[Reduction], *, item: int, steps: int
) -> int:
    """Return the bytes of a record of layers of these shapes in `steps` passes."""
    stored = [shape for shape in shapes if not any(one.takes(shape.layer) for one in reductions)]
    total = steps * item * sum(shape.elements for shape in stored)
    for one in reductions:
        total += one.nbytes([shape for shape in shapes if one.takes(shape.layer)])
    return total
