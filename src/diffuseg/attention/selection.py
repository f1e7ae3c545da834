"""What a recording keeps, and how: halves, heads, dtype, device."""

from dataclasses import dataclass

import torch
from torch import Tensor

from diffuseg import ops
from diffuseg.attention.calls import UNetCall
from diffuseg.attention.captured import CapturedPass
from diffuseg.attention.layers import LayerShape, Site, shape_of
from diffuseg.attention.reduce import Reduction

HALVES = ("auto", "all", "cond", "uncond")
CLIP_TOKENS = 77


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """The arguments of `record()`, checked; they are documented there."""

    sites: tuple[Site, ...]
    heads: tuple[int, ...] | None
    features: tuple[str, ...]
    steps: tuple[int | float, ...] | None
    half: str
    dtype: torch.dtype | None
    device: torch.device | None
    reductions: tuple[Reduction, ...]
    early_exit: bool
    memory_limit: int | None

    @property
    def names(self) -> list[str]:
        """Everything that must arrive in a pass."""
        return [*(site.layer.name for site in self.sites), *self.features]

    @property
    def halved(self) -> bool:
        return self.half in ("cond", "uncond")

    def shapes(self, call: UNetCall) -> list[LayerShape]:
        """Return the sizes of what is kept of every layer in such a call."""
        return [
            shape_of(
                site.layer,
                call.latent_hw,
                batch=call.shape[0] // 2 if self.halved else call.shape[0],
                frames=call.frames,
                tokens=call.tokens or CLIP_TOKENS,
                heads=None if self.heads is None else len(self.heads),
            )
            for site in self.sites
        ]

    def cut_rows(self, tensor: Tensor) -> Tensor:
        """Return the wanted half of the batch, without gradient."""
        tensor = tensor.detach() if tensor.requires_grad else tensor
        return tensor.chunk(2)[self.half == "cond"] if self.halved else tensor

    def cut_heads(self, tensor: Tensor, heads: int) -> Tensor:
        """Split [b n c] into heads [b h n d] and return the wanted half and heads."""
        split = ops.split_heads(self.cut_rows(tensor), heads)
        return split if self.heads is None else split[:, list(self.heads)]

    def stored(self, tensor: Tensor) -> Tensor:
        """Return the tensor in the dtype it is kept in, not sharing memory nobody wants."""
        if self.dtype is not None and tensor.is_floating_point() and tensor.dtype != self.dtype:
            return tensor.to(self.dtype)
        is_part = tensor.nbytes < tensor.untyped_storage().nbytes()
        stays = self.device is None or self.device == tensor.device
        return tensor.clone() if is_part and stays else tensor

    def move(self, captured: CapturedPass) -> None:
        """Move a pass to where it is kept."""
        target = self.device
        left: set[torch.device] = set()
        moved: dict[int, Tensor] = {}  # layers share a mask
        for part in (captured.queries, captured.keys, captured.biases, captured.features):
            for name, tensor in part.items():
                if target is None or tensor.device == target:
                    continue
                left.add(tensor.device)
                if id(tensor) not in moved:
                    moved[id(tensor)] = tensor.to(target, non_blocking=True)
                part[name] = moved[id(tensor)]
        for device in left:
            _synchronize(device)


def _synchronize(device: torch.device) -> None:
    """Wait for copies: one that does not block may be read before it is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
