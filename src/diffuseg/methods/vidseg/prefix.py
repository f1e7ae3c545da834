"""What a U-Net computes before its modulated layers: kept once a frame, and started again from.

At the first modulated step all labels and both signs of a frame have the same latents, and up to
the first decoder block that is modulated the same states. With attention 7 modulated that is half
of the work of the step.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from diffuseg.attention.layers import unet_of
from diffuseg.methods.vidseg.network import Call

_CLASSES = ("UpBlock2D", "CrossAttnUpBlock2D")


def find_prefix(model: object, first: int, frames: int) -> "Prefix | None":
    """Return what keeps the states before a decoder block; None where a model cannot start there.

    Only Stable Diffusion's U-Net as diffusers has it, not compiled, is called block by block.

    Args:
        model: A U-Net, or anything that has it as `.unet`.
        first: Number of the block, `up_blocks[first]`.
        frames: Of the batch.

    Example:
        >>> import torch
        >>> find_prefix(torch.nn.Linear(1, 1), 2, frames=14) is None
        True
    """
    called, unet = unet_of(model)
    blocks = getattr(unet, "up_blocks", ())
    # A forward of its own: what moves or compiles modules put it there.
    moved = called is not unet or "forward" in vars(unet)
    compiled = any(getattr(one, "_compiled_call_impl", None) is not None for one in unet.modules())
    known = type(unet).__name__ == "UNet2DConditionModel" and all(
        type(one).__name__ in _CLASSES for one in blocks
    )
    if moved or compiled or not known or first >= len(blocks):
        return None
    return Prefix(unet, first, frames)


class Prefix:
    """What decoder blocks are called with, by frame; made by `find_prefix`."""

    def __init__(self, unet: Any, first: int, frames: int) -> None:
        self.first = first
        self._unet = unet
        self._frames = frames
        self._there: set[int] = set()
        # Arguments of every block from the first on; of later ones not the states, which the block
        # before gives.
        self._given: dict[int, dict[str, Any]] = {}

    @property
    def complete(self) -> bool:
        """Whether all frames are kept."""
        return len(self._there) == self._frames

    @contextmanager
    def keeping(self, call: Call) -> Iterator[None]:
        """Keep what the blocks get while the U-Net runs for a call."""
        with ExitStack() as stack:
            for number, block in self._blocks():
                hook = partial(self._keep, call, number)
                stack.callback(block.register_forward_pre_hook(hook, with_kwargs=True).remove)
            yield
        self._there.update(call.frames.tolist())

    @contextmanager
    def restarting(self, call: Call) -> Iterator[None]:
        """Let the U-Net begin with the first of the blocks, whatever latents it gets.

        It is still called as a module, so hooks on it run.
        """
        self._unet.forward = partial(self._forward, call)
        try:
            yield
        finally:
            del self._unet.forward

    def _blocks(self) -> list[tuple[int, nn.Module]]:
        return list(enumerate(self._unet.up_blocks))[self.first :]

    def _keep(
        self, call: Call, number: int, _: nn.Module, __: tuple, arguments: Mapping[str, Any]
    ) -> None:
        given = self._given.setdefault(number, {})
        for name, value in arguments.items():
            if name == "hidden_states" and number > self.first:
                continue
            if name == "res_hidden_states_tuple":
                rows = given.setdefault(name, tuple(_Rows() for _ in value))
                for one, skip in zip(rows, value, strict=True):
                    one.put(skip, call, self._frames)
            elif isinstance(value, Tensor):
                given.setdefault(name, _Rows()).put(value, call, self._frames)
            else:
                given[name] = value

    def _forward(self, call: Call, *_: object, return_dict: bool = True, **__: object) -> object:
        states: dict[str, Tensor] = {}
        for number, block in self._blocks():
            given = {name: _taken(value, call) for name, value in self._given[number].items()}
            states["hidden_states"] = block(**(given | states))
        output = self._output(states["hidden_states"])
        if not return_dict:
            return (output,)
        from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput

        return UNet2DConditionOutput(sample=output)

    def _output(self, states: Float[Tensor, "r d h w"]) -> Float[Tensor, "r c h w"]:
        if self._unet.conv_norm_out:
            states = self._unet.conv_act(self._unet.conv_norm_out(states))
        return self._unet.conv_out(states)


class _Rows:
    """A tensor of every half of every frame, which come some frames at a time."""

    def __init__(self) -> None:
        self._held: Tensor | None = None

    def put(self, value: Tensor, call: Call, frames: int) -> None:
        seen = value.detach().unflatten(0, (call.halves, -1))
        if self._held is None:
            self._held = seen.new_empty(call.halves, frames, *seen.shape[2:])
        self._held[:, call.frames] = seen

    def take(self, call: Call) -> Tensor:
        if self._held is None:
            raise RuntimeError("nothing was kept")
        return self._held[:, call.frames].flatten(0, 1)


def _taken(value: Any, call: Call) -> Any:
    if isinstance(value, tuple) and value and isinstance(value[0], _Rows):
        return tuple(one.take(call) for one in value)
    return value.take(call) if isinstance(value, _Rows) else value
