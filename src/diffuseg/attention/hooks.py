"""The hooks that read a U-Net: what they see goes into slots, and the recorder is told.

They are closures that do no more than an assignment where torch.compile traces them: that, the
compiler follows without a break, and it does not guard on what is assigned. Everything else is done
where hooks run as ordinary Python, at the latest when the pass is over.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from diffuseg.attention.layers import Site


class Grid:
    """The height and width a transformer was last called with."""

    hw: tuple[int, int] = (0, 0)


class LayerSlot:
    """What was last seen of one attention layer."""

    def __init__(self, site: Site, grid: Grid) -> None:
        self.site = site
        self.grid = grid
        self.projections: tuple[nn.Module, nn.Module] = (
            site.attention.get_submodule("to_q"),
            site.attention.get_submodule("to_k"),
        )
        self.clear()

    @property
    def full(self) -> bool:
        return self.q is not None and self.k is not None

    def clear(self) -> None:
        self.q: Tensor | None = None
        self.k: Tensor | None = None
        self.bias: Tensor | None = None


class FeatureSlot:
    """The last output of one module."""

    def __init__(self, name: str, module: nn.Module) -> None:
        self.name = name
        self.module = module
        self.output: Any = None


class TracedCalls:
    """The last call of a U-Net whose own pre-hook was compiled, and how many there were.

    The number is a tensor: adding to it is part of the compiled graph and happens in every call.
    """

    def __init__(self) -> None:
        self.args: tuple = ()
        self.kwargs: dict[str, Any] = {}
        with torch.inference_mode(False):
            self.count = torch.zeros((), dtype=torch.int64)


class Hooks:
    """All hooks of one recording.

    Args:
        called: The U-Net as it is called, compiled or not.
        sites: The attention layers to read.
        features: The modules to read, by path.
        on_call: Told the arguments of every call of the U-Net.
        on_return: Told that the U-Net returned.
        on_layer: Told that something of a layer is in its slot.
        on_feature: Told that a module's output is in its slot.
    """

    def __init__(
        self,
        *,
        called: nn.Module,
        sites: Sequence[Site],
        features: Sequence[tuple[str, nn.Module]],
        on_call: Callable[[tuple, dict[str, Any]], None],
        on_return: Callable[[], None],
        on_layer: Callable[[LayerSlot], None],
        on_feature: Callable[[FeatureSlot], None],
    ) -> None:
        grids = {id(site.transformer): Grid() for site in sites}
        self.layers = [LayerSlot(site, grids[id(site.transformer)]) for site in sites]
        self.features = [FeatureSlot(name, module) for name, module in features]
        self.traced = TracedCalls()
        self._called = called
        self._on_call = on_call
        self._on_return = on_return
        self._on_layer = on_layer
        self._on_feature = on_feature
        self._handles: list[Any] = []

    def attach(self, others: Sequence[Any] = ()) -> None:
        """Set all hooks, or none if one of them fails; `others` are handles removed with them."""
        add = self._handles.append
        self._handles += others
        try:
            add(self._called.register_forward_pre_hook(self._call_hook(), with_kwargs=True))
            add(self._called.register_forward_hook(self._return_hook()))
            for transformer, grid in {s.site.transformer: s.grid for s in self.layers}.items():
                hook = _grid_hook(grid)
                add(transformer.register_forward_pre_hook(hook, with_kwargs=True))
            for slot in self.layers:
                attention = slot.site.attention
                add(attention.register_forward_pre_hook(_mask_hook(slot), with_kwargs=True))
                add(slot.projections[0].register_forward_hook(self._layer_hook(slot, "q")))
                add(slot.projections[1].register_forward_hook(self._layer_hook(slot, "k")))
            for slot in self.features:
                add(slot.module.register_forward_hook(self._feature_hook(slot)))
        except BaseException:
            self.detach()
            raise

    def detach(self) -> None:
        """Remove all hooks."""
        while self._handles:
            self._handles.pop().remove()

    def clear(self) -> None:
        """Empty all slots."""
        for slot in self.layers:
            slot.clear()
        for slot in self.features:
            slot.output = None
        self.traced.args = ()
        self.traced.kwargs = {}

    def replaced(self) -> list[str]:
        """Return the layers whose projections are no longer the modules with the hooks."""
        return [
            slot.site.layer.name
            for slot in self.layers
            if (slot.site.attention.to_q, slot.site.attention.to_k) != slot.projections
        ]

    def _call_hook(self) -> Callable:
        traced, on_call = self.traced, self._on_call

        def hook(module, args, kwargs):
            if torch.compiler.is_compiling():
                traced.args = args
                traced.kwargs = kwargs
                traced.count.add_(1)
            else:
                on_call(args, kwargs)

        return hook

    def _return_hook(self) -> Callable:
        on_return = self._on_return

        def hook(module, args, output):
            if not torch.compiler.is_compiling():
                on_return()

        return hook

    def _layer_hook(self, slot: LayerSlot, name: str) -> Callable:
        on_layer = self._on_layer

        def on_q(module, args, output):
            slot.q = output
            if not torch.compiler.is_compiling():
                on_layer(slot)

        def on_k(module, args, output):
            slot.k = output
            if not torch.compiler.is_compiling():
                on_layer(slot)

        return on_q if name == "q" else on_k

    def _feature_hook(self, slot: FeatureSlot) -> Callable:
        on_feature = self._on_feature

        def hook(module, args, output):
            slot.output = output
            if not torch.compiler.is_compiling():
                on_feature(slot)

        return hook


def _grid_hook(grid: Grid) -> Callable:
    def hook(module, args, kwargs):
        states = args[0] if args else kwargs["hidden_states"]
        grid.hw = (states.shape[-2], states.shape[-1])

    return hook


def _mask_hook(slot: LayerSlot) -> Callable:
    def hook(module, args, kwargs):
        slot.bias = kwargs.get("attention_mask")

    return hook
