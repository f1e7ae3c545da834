"""Changing attention while it is computed: the write counterpart of `record()`.

The same discovery, the same scope and the same clean-up: hooks that return a replacement, inside a
`with` block, gone after it. Recording never writes, so that stays a promise of its own.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from diffuseg import ops
from diffuseg.attention.calls import (
    check_not_fused,
    check_steps,
    find_step,
    output_tensor,
    read_call,
    some_of,
)
from diffuseg.attention.layers import (
    LayerId,
    Site,
    as_tuple,
    find_module,
    select_layers,
    sites_of,
    unet_of,
)
from diffuseg.errors import CaptureError, InputError

Value = Tensor | Callable[[Any, int | float, Tensor], Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class InjectQK:
    """Use other queries or keys in some layers.

    Attributes:
        q: Queries [b h n d] as a record has them (or [b n c] as the projection returns them), or a
            function of (layer, step, the model's own [b h n d]) that returns such; None keeps them.
        k: Keys [b h m d], likewise.
        layers: Only layers whose path matches this pattern or one of these.
        kinds: "self", "cross", "temporal"; one or several.
        levels: Only layers whose grid is smaller than the latent by these factors.
        steps: Only passes at these timesteps.

    Example:
        >>> edit = InjectQK(q=lambda layer, step, own: own.flip(0), layers="up_blocks.*")
        >>> edit.k is None
        True
    """

    q: Value | None = None
    k: Value | None = None
    layers: str | tuple[str, ...] = "*"
    kinds: str | tuple[str, ...] = ("self", "cross")
    levels: int | tuple[int, ...] | None = None
    steps: int | float | tuple[int | float, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AddToOutput:
    """Add to the output of attention layers, after the output projection, before the residual.

    Attributes:
        value: What is added, of a shape that broadcasts to [b n c] (a map over positions is
            [b n 1]), or a function of (layer, step, the output [b n c]) that returns such.
        layers: Only layers whose path matches this pattern or one of these.
        kinds: "self", "cross", "temporal"; one or several.
        levels: Only layers whose grid is smaller than the latent by these factors.
        steps: Only passes at these timesteps.

    Example:
        >>> AddToOutput(value=torch.ones(1, 64, 1), layers="up_blocks.2.*", kinds="cross").kinds
        'cross'
    """

    value: Value
    layers: str | tuple[str, ...] = "*"
    kinds: str | tuple[str, ...] = ("self", "cross")
    levels: int | tuple[int, ...] | None = None
    steps: int | float | tuple[int | float, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplaceOutput:
    """Let modules return another tensor.

    Attributes:
        modules: Path of a module of the U-Net, or several. Of a module that returns a tuple (a down
            block: states, skip connections) the first is replaced.
        value: The tensor, or a function of (path, step, the module's own output).
        steps: Only passes at these timesteps.

    Example:
        >>> ReplaceOutput(modules="mid_block", value=lambda path, step, own: own * 0).steps
    """

    modules: str | tuple[str, ...]
    value: Value
    steps: int | float | tuple[int | float, ...] | None = None


Edit = InjectQK | AddToOutput | ReplaceOutput


def intervene(model: object, edits: object) -> "Intervention":
    """Change attention of a diffusion model while a `with` block runs.

    Edits of one module act in the order given. Where `record()` and `intervene()` are nested, the
    inner one's hooks run later: a record inside sees the changed values, one around it the model's
    own.

    Args:
        model: As for `record`, not compiled.
        edits: `InjectQK`, `AddToOutput`, `ReplaceOutput`; one or several.

    Returns:
        A context manager; on leaving, every edit must have acted at least once.

    Raises:
        InputError: An edit that fits no layer or module.
        CaptureError: On entering: the model is compiled or its projections are fused. In a pass: a
            value of the wrong shape. On leaving: an edit never acted.

    Example:
        >>> from diffusers import UNet2DConditionModel
        >>> unet = UNet2DConditionModel(
        ...     block_out_channels=(8, 8), attention_head_dim=2, norm_num_groups=4,
        ...     cross_attention_dim=4, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        ...     up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"))
        >>> add = AddToOutput(value=torch.ones(1, 64, 1), layers="up_blocks.1.*", kinds="cross")
        >>> with torch.no_grad(), intervene(unet, add) as changes:
        ...     _ = unet(torch.zeros(1, 4, 8, 8), 300, torch.zeros(1, 7, 4))
        >>> changes.counts  # three transformers in that block
        (3,)
    """
    called, unet = unet_of(model)
    given = (edits,) if isinstance(edits, Edit) else edits
    if not (isinstance(given, Sequence) and given and all(isinstance(e, Edit) for e in given)):
        raise InputError(
            "edits must be InjectQK, AddToOutput or ReplaceOutput, at least one",
            got=edits,
            remedy="for example intervene(unet, AddToOutput(value=..., layers=...))",
        )
    return Intervention(called=called, unet=unet, edits=tuple(given))


@dataclass(slots=True, kw_only=True)
class _Progress:
    """What hooks know and write down.

    Apart from the intervention, which has the hooks: in a circle with them, the values of edits
    would be kept until Python looks for circles, which for tensors is too late.
    """

    counts: list[int]
    idle: list[list[str]]
    step: int | float | None = None


class Intervention:
    """Changes attention while its `with` block runs; made by `intervene()`."""

    def __init__(self, *, called: nn.Module, unet: nn.Module, edits: tuple[Edit, ...]) -> None:
        self._called = called
        self._unet = unet
        self._edits = edits
        self._progress = _Progress(counts=[0] * len(edits), idle=[[] for _ in edits])
        self._seen: list[int | float] = []
        self._handles: list[Any] = []
        self._hooks = [one for number in range(len(edits)) for one in self._hooks_of(number)]

    @property
    def counts(self) -> tuple[int, ...]:
        """How often each edit has acted."""
        return tuple(self._progress.counts)

    def __enter__(self) -> "Intervention":
        self._check_model()
        try:
            hook = self._called.register_forward_pre_hook(self._begin, with_kwargs=True)
            self._handles.append(hook)
            self._handles += [module.register_forward_hook(hook) for module, hook in self._hooks]
        except BaseException:
            self._detach()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._detach()
        left = self._progress.idle
        idle = next((number for number, names in enumerate(left) if names), None)
        if error is None and idle is not None:
            edit = self._edits[idle]
            seen = ", ".join(map(str, self._seen)) or "none at all"
            raise CaptureError(
                "every edit must act on each of its layers or modules at least once",
                got=f"{type(edit).__name__}(steps={edit.steps}) never did on "
                f"{some_of(left[idle])}; passes at timesteps: {seen}",
                remedy="call the U-Net given to intervene() in the block, at the edit's steps",
            )

    def _detach(self) -> None:
        while self._handles:
            self._handles.pop().remove()

    def _check_model(self) -> None:
        modules = list(self._unet.modules())
        check_not_fused([one for edit in self._edits for one in self._sites(edit)])
        if self._called is not self._unet or any(
            getattr(module, "_compiled_call_impl", None) is not None for module in modules
        ):
            raise CaptureError(
                "a model must not be compiled to be changed while it runs",
                got=f"{type(self._called).__name__}, compiled as a whole or in parts",
                remedy="load the model without torch.compile for this",
            )

    def _begin(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        if torch.compiler.is_compiling():
            return
        step = read_call(args, kwargs).step
        self._progress.step = step
        self._seen.append(step)

    # ---- edits become (module, hook)

    def _hooks_of(self, number: int) -> list[tuple[nn.Module, Callable]]:
        edit = self._edits[number]
        if isinstance(edit, ReplaceOutput):
            paths = as_tuple(edit.modules, str, "modules must be module paths")
            return [
                (find_module(self._unet, path), self._hook(number, path, edit.value, _exchange))
                for path in paths
            ]
        sites = self._sites(edit)
        if isinstance(edit, AddToOutput):
            return [
                (
                    site.attention.get_submodule("to_out.0"),
                    self._hook(number, site.layer, edit.value, _add),
                )
                for site in sites
            ]
        if edit.q is None and edit.k is None:
            raise InputError("InjectQK must inject something", got=edit, remedy="give q or k")
        return [
            (site.attention.get_submodule(name), self._hook(number, site.layer, value, _inject))
            for site in sites
            for name, value in (("to_q", edit.q), ("to_k", edit.k))
            if value is not None
        ]

    def _sites(self, edit: Edit) -> list[Site]:
        if isinstance(edit, ReplaceOutput):
            return []
        sites = sites_of(self._unet)
        there = [site.layer for site in sites]
        chosen = select_layers(there, names=edit.layers, kinds=edit.kinds, levels=edit.levels)
        return [site for site in sites if site.layer in chosen]

    def _hook(
        self, number: int, place: LayerId | str, value: Value, act: Callable[..., Any]
    ) -> Callable:
        steps = check_steps(self._edits[number].steps)
        name = place if isinstance(place, str) else place.name
        progress = self._progress
        idle = progress.idle[number]
        idle.append(name)

        def hook(module, args, output):
            step = progress.step
            if torch.compiler.is_compiling() or step is None:
                return None
            if steps is not None and find_step(step, steps) is None:
                return None
            progress.counts[number] += 1
            if name in idle:
                idle.remove(name)
            return act(value, place, step, output)

        return hook


def _inject(
    value: Value, layer: LayerId, step: int | float, output: Float[Tensor, "b n c"]
) -> Float[Tensor, "b n c"]:
    own = ops.split_heads(output, layer.heads)
    new = value(layer, step, own) if callable(value) else value
    return _fitted(ops.merge_heads(new) if new.ndim == 4 else new, output, layer.name)


def _add(
    value: Value, layer: LayerId, step: int | float, output: Float[Tensor, "b n c"]
) -> Float[Tensor, "b n c"]:
    added = value(layer, step, output) if callable(value) else value
    # Sizes are compared from the last side; sides of 1, or missing in front, are repeated.
    sides = zip(reversed(added.shape), reversed(output.shape), strict=False)
    if added.ndim > output.ndim or not all(one in (1, whole) for one, whole in sides):
        raise _misfit(added, output, layer.name)
    return output + added.to(output)


def _exchange(value: Value, path: str, step: int | float, output: Any) -> Any:
    own = output_tensor(output)
    new = _fitted(value(path, step, own) if callable(value) else value, own, path)
    if isinstance(output, Tensor):
        return new
    if isinstance(output, tuple | list):
        return type(output)((new, *output[1:]))
    return replace(output, sample=new)


def _fitted(new: Tensor, own: Tensor, place: str) -> Tensor:
    if new.shape != own.shape:
        raise _misfit(new, own, place)
    return new.to(own)


def _misfit(new: Tensor, own: Tensor, place: str) -> CaptureError:
    return CaptureError(
        f"a value must fit the model's own at {place}, {tuple(own.shape)}",
        got=f"a tensor of {tuple(new.shape)}",
        remedy="mind both halves of a guidance batch, and that grids differ from layer to layer",
    )
