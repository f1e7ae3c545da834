"""The context manager behind `record()`: passes of the U-Net in, a complete record out."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from importlib import metadata
from types import TracebackType
from typing import Any, TypeVar

import torch
from torch import nn

from diffuseg.attention.attention_record import AttentionRecord
from diffuseg.attention.calls import (
    UNetCall,
    check_not_fused,
    find_step,
    output_tensor,
    read_call,
    some_of,
)
from diffuseg.attention.captured import CapturedPass, Contents, RecordHeader
from diffuseg.attention.hooks import FeatureSlot, Hooks, LayerSlot
from diffuseg.attention.layers import find_module
from diffuseg.attention.memory import available_bytes, item_bytes, readable_bytes, record_bytes
from diffuseg.attention.pipeline_text import PromptWatch
from diffuseg.attention.selection import Selection
from diffuseg.errors import CaptureError

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

# A record shares the machine with the model that fills it and the method that reads it.
_DEFAULT_SHARE = 0.5
_COMPILE_REMEDY = (
    "if the model is compiled, set torch._dynamo.config.skip_nnmodule_hook_guards = False before "
    "torch.compile (else compiled code may skip hooks)"
)


class _Stop(BaseException):  # not an Exception: a handler around the U-Net must not catch it
    """Leaves a U-Net whose remaining layers nobody wants."""

    def __init__(self, owner: "Recorder") -> None:
        super().__init__("early exit")
        self.owner = owner


@dataclass(slots=True)
class _Pass:
    match: int | float | None  # the step asked for that this pass is; None: not wanted
    captured: CapturedPass
    arrived: set[str] = field(default_factory=set)


class Recorder:
    """Records while its `with` block runs; made by `record()`."""

    def __init__(
        self,
        *,
        model: object,
        called: nn.Module,
        unet: nn.Module,
        selection: Selection,
        header: RecordHeader,
    ) -> None:
        self._model = model
        self._unet = unet
        self._selection = selection
        self._header = header
        self._contents = self._emptied()
        self._text = PromptWatch(model)
        self._hooks = Hooks(
            called=called,
            sites=selection.sites,
            features=[(name, find_module(unet, name)) for name in selection.features],
            on_call=self._called,
            on_return=self._returned,
            on_layer=self._layer_arrived,
            on_feature=self._feature_arrived,
        )
        self._pass: _Pass | None = None
        self._first: UNetCall | None = None
        self._seen: list[int | float] = []
        self._left = set(selection.steps or ())
        self._missing: list[tuple[int | float, list[str]]] = []
        self._limit: int | None = None
        self._running = False

    # ---- the block

    def __enter__(self) -> AttentionRecord:
        check_not_fused(self._selection.sites)
        for one in self._selection.reductions:
            one.reset()
        self._hooks.attach(self._text.attach())
        return AttentionRecord(self._contents)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool | None:
        self._hooks.detach()
        try:
            if error is None or isinstance(error, _Stop):
                self._finish()
        finally:
            self._hooks.clear()
            # The record is the caller's. Hooks and recorder hold each other: what they held would
            # stay until Python looks for circles, which for tensors is too late.
            self._contents, self._pass = self._emptied(), None
        return isinstance(error, _Stop) and error.owner is self

    def run(self, call: Callable[[], _T]) -> _T | None:
        """Run one pass inside the block; with `early_exit` it may be cut short.

        Args:
            call: Calls the U-Net once.

        Returns:
            What `call` returns, or None if the pass was stopped because all of it that is wanted
            had arrived. Unlike a bare call, that is done in every wanted pass, not only the last.

        Example:
            >>> from diffusers import UNet2DConditionModel
            >>> from diffuseg.attention.recording import record
            >>> unet = UNet2DConditionModel(
            ...     block_out_channels=(8, 8), attention_head_dim=2, norm_num_groups=4,
            ...     cross_attention_dim=4,
            ...     down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            ...     up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"))
            >>> latents, text = torch.zeros(1, 4, 8, 8), torch.zeros(1, 7, 4)
            >>> recorder = record(unet, layers="down_blocks.*", early_exit=True)
            >>> with torch.no_grad(), recorder as rec:
            ...     for t in (100, 300):
            ...         _ = recorder.run(lambda: unet(latents, t, text))
            >>> rec.timesteps
            (100, 300)
        """
        self._running = True
        try:
            return call()
        except _Stop as stop:
            if stop.owner is not self:
                raise
            return None
        finally:
            self._running = False

    def _emptied(self) -> Contents:
        """A record with nothing in it."""
        layers = tuple(site.layer for site in self._selection.sites)
        return Contents(header=self._header, layers=layers)

    # ---- one pass

    def _called(self, args: tuple, kwargs: dict[str, Any]) -> None:
        self._hooks.clear()
        self._open(read_call(args, kwargs))

    def _open(self, call: UNetCall) -> None:
        """Begin a pass; one that was left open was stopped by an exception and is dropped."""
        self._check_unchanged()
        dropped, self._pass = self._pass, None
        if dropped is not None and dropped.arrived and self._selection.reductions:
            raise CaptureError(
                "every pass must run to its end where maps are reduced as they come",
                got=f"the pass at timestep {dropped.captured.step} was left by an exception",
                remedy="let exceptions leave the with block, and record anew",
            )
        step = call.step
        asked = (step,) if self._selection.steps is None else self._selection.steps
        match = find_step(step, asked)
        if match is not None:
            self._check_call(call)
            self._check_memory(call)
        self._pass = _Pass(match, CapturedPass(step))

    def _returned(self) -> None:
        if self._pass is not None:
            self._close(self._pass)

    def _close(self, one: _Pass) -> None:
        """End a pass: take what compiled code put away, and store it all."""
        for slot in self._hooks.layers:
            self._take_layer(one, slot)
        for slot in self._hooks.features:
            self._take_feature(one, slot)
        self._pass = None
        step = one.captured.step
        self._seen.append(step)
        if one.match is None:
            return
        self._left.discard(one.match)
        missing = [name for name in self._selection.names if name not in one.arrived]
        if missing:
            self._missing.append((step, missing))
        self._selection.move(one.captured)
        self._contents.passes.append(one.captured)

    # Without an open pass (the U-Net's own hooks compiled, a part's not) things wait in their slot.

    def _layer_arrived(self, slot: LayerSlot) -> None:
        if self._pass is not None and slot.full:
            self._take_layer(self._pass, slot)
            self._stop_if_done(self._pass)

    def _feature_arrived(self, slot: FeatureSlot) -> None:
        if self._pass is not None:
            self._take_feature(self._pass, slot)
            self._stop_if_done(self._pass)

    def _take_layer(self, one: _Pass, slot: LayerSlot) -> None:
        q, k, bias = slot.q, slot.k, slot.bias
        slot.clear()
        if q is None or k is None or one.match is None:
            return
        layer, hw, choice = slot.site.layer, slot.grid.hw, self._selection
        if layer.kind != "temporal" and q.shape[1] != hw[0] * hw[1]:
            raise CaptureError(
                "a layer must have one query for each position of its grid",
                got=f"{q.shape[1]} queries on a grid of {hw[0]}x{hw[1]} in {layer.name}",
                remedy="remove token merging, or whatever else drops tokens",
            )
        if bias is not None:
            bias = choice.cut_rows(bias.expand(q.shape[0], -1, -1))
        q, k = choice.cut_heads(q, layer.heads), choice.cut_heads(k, layer.heads)
        self._contents.grids[layer.name] = hw
        one.arrived.add(layer.name)
        for reduction in choice.reductions:
            if reduction.takes(layer):
                reduction.update(layer, one.captured.step, q, k, hw, bias=bias)
                return
        one.captured.queries[layer.name] = choice.stored(q)
        one.captured.keys[layer.name] = choice.stored(k)
        if bias is not None:
            one.captured.biases[layer.name] = bias

    def _take_feature(self, one: _Pass, slot: FeatureSlot) -> None:
        output, slot.output = slot.output, None
        if output is None or one.match is None:
            return
        tensor = self._selection.cut_rows(output_tensor(output))
        one.captured.features[slot.name] = self._selection.stored(tensor)
        one.arrived.add(slot.name)
        kept = sum(part.nbytes for part in (*self._contents.passes, one.captured))
        if self._limit is not None and kept > self._limit:
            raise _too_large(kept, self._limit)

    def _stop_if_done(self, one: _Pass) -> None:
        if not self._selection.early_exit or one.match is None or not self._has_all(one):
            return
        if self._running or not self._left - {one.match}:
            self._close(one)
            raise _Stop(self)

    def _has_all(self, one: _Pass) -> bool:
        return one.match is None or len(one.arrived) == len(self._selection.names)

    # ---- checks, and the end

    def _check_unchanged(self) -> None:
        check_not_fused(self._selection.sites)
        if replaced := self._hooks.replaced():
            raise CaptureError(
                "the model's layers must stay the same while it is recorded",
                got=f"replaced projections in {some_of(replaced)}",
                remedy="load LoRA and other adapters before entering record()",
            )

    def _check_call(self, call: UNetCall) -> None:
        first = self._first = self._first or call
        if call.shape != first.shape:
            raise CaptureError(
                "all passes of a record must have the same batch and latent size",
                got=f"{call.shape} after {first.shape}",
                remedy="record them apart, each in its own with block",
            )
        if self._selection.halved and call.shape[0] % 2:
            raise CaptureError(
                "a batch of two halves must be even",
                got=f"half={self._selection.half!r} with a batch of {call.shape[0]}",
                remedy='pass half="all", or call the U-Net with [unconditional, conditional]',
            )

    def _check_memory(self, call: UNetCall) -> None:
        """Raise before the pass runs if the record would not fit."""
        choice = self._selection
        needed = sum(one.nbytes for one in self._contents.passes) + record_bytes(
            choice.shapes(call),
            choice.reductions,
            item=item_bytes(self._unet, choice.dtype),
            steps=max(len(self._left), 1),
        )
        if self._limit is None:
            self._limit = choice.memory_limit
        if self._limit is None:
            free = available_bytes(choice.device or next(self._unet.parameters()).device)
            self._limit = None if free is None else int(free * _DEFAULT_SHARE)
        if self._limit is not None and needed > self._limit:
            raise _too_large(needed, self._limit)

    def _finish(self) -> None:
        """Check that everything arrived, then complete the header and the reduced maps."""
        if int(self._hooks.traced.count):
            self._take_traced_call()
        if self._pass is not None and self._has_all(self._pass):
            self._close(self._pass)
        if self._pass is not None:
            raise CaptureError(
                "every pass of the U-Net must run to its end",
                got=f"the pass at timestep {self._pass.captured.step} was left before",
                remedy="let exceptions leave the with block, and where another "
                "record(early_exit=True) stops the pass, record both selections in one",
            )
        if self._missing:
            step, names = self._missing[0]
            expected = len(self._selection.names)
            raise CaptureError(
                "every selected layer must arrive in every pass",
                got=f"{expected - len(names)} of {expected} at timestep {step}; "
                f"missing {some_of(names)}",
                remedy=_COMPILE_REMEDY + "; if projections were fused, unfuse_qkv_projections()",
            )
        if not self._contents.passes or self._left:
            seen = ", ".join(map(str, self._seen)) or "none at all"
            asked = "" if self._selection.steps is None else f"; asked for {sorted(self._left)}"
            raise CaptureError(
                "the U-Net given to record() must run inside the with block",
                got=f"passes at timesteps: {seen}{asked}",
                remedy="call that very object (or the pipeline it belongs to) in the block, at "
                "the timesteps asked for; " + _COMPILE_REMEDY,
            )
        self._complete()

    def _take_traced_call(self) -> None:
        traced = self._hooks.traced
        count = int(traced.count) + len(self._seen)
        if count > 1:
            raise CaptureError(
                "several passes of a compiled U-Net can be told apart only by the object called",
                got=f"{count} passes",
                remedy="give record() the result of torch.compile, not the U-Net inside it",
            )
        self._open(read_call(traced.args, traced.kwargs))
        self._returned()

    def _complete(self) -> None:
        contents, target = self._contents, self._selection.device
        for reduction in self._selection.reductions:
            for mean in reduction.finish():
                values = mean.values if target is None else mean.values.to(target)
                contents.reduced.append(replace(mean, values=values))
        header = self._text.complete(contents.header, half=self._selection.half)
        contents.header = replace(
            header,
            model=header.model or _name_of(self._model, self._unet),
            timesteps=tuple(one.step for one in contents.passes),
            latent_hw=None if self._first is None else self._first.latent_hw,
            provenance=header.provenance or _provenance(self._selection),
        )
        _log.debug("%r", AttentionRecord(contents))


def _name_of(model: object, unet: nn.Module) -> str:
    for one in (model, unet):
        for holder, attribute in ((one, "name"), (getattr(one, "config", None), "_name_or_path")):
            name = getattr(holder, attribute, None)
            if isinstance(name, str) and name:
                return name
    return type(unet).__name__


def _provenance(selection: Selection) -> dict[str, str]:
    return {
        "half": selection.half,
        "torch": torch.__version__,
        "diffusers": metadata.version("diffusers"),
    }


def _too_large(needed: int, limit: int) -> CaptureError:
    return CaptureError(
        f"the record must fit in {readable_bytes(limit)}",
        got=readable_bytes(needed),
        remedy="pass reduce=HeadMean(), fewer layers, levels or steps, dtype=torch.float16, a "
        "smaller image, or a larger memory_limit",
    )
