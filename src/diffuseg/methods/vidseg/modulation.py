"""What modulation does to attention: labels' masks added to outputs, queries and keys put back.

Everything acts through `diffuseg.attention.intervene`, on any U-Net that it can change.
"""

from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from PIL import Image
from torch import Tensor

from diffuseg.attention import AddToOutput, InjectQK, LayerId, intervene
from diffuseg.attention.intervention import Edit
from diffuseg.errors import InputError
from diffuseg.methods.vidseg.network import Call, Network
from diffuseg.methods.vidseg.prefix import find_prefix
from diffuseg.methods.vidseg.settings import Modulated

_ATTENTION: dict[Modulated, str] = {
    "self": "transformer_blocks.*.attn1",
    "cross": "transformer_blocks.*.attn2",
    "temporal": "temporal_transformer_blocks.*.attn1",
}
_KINDS = ("self", "cross", "temporal")


def attention_of(blocks: Collection[int], kinds: Collection[Modulated]) -> tuple[str, ...]:
    """Return patterns on the names of decoder blocks' attention layers.

    Args:
        blocks: Block 3 i + j is `up_blocks[i].attentions[j]`.
        kinds: "self" and "cross": of the spatial transformer. "temporal": attention among frames.

    Example:
        >>> attention_of([7], ["cross"])
        ('up_blocks.2.attentions.1.transformer_blocks.*.attn2',)
    """
    places = [f"up_blocks.{one // 3}.attentions.{one % 3}" for one in blocks]
    return tuple(f"{place}.{_ATTENTION[kind]}" for place in places for kind in kinds)


# ---- masks


def label_masks(
    labels: Int[Tensor, "f h w"], values: Sequence[int] | Int[Tensor, " l"]
) -> Bool[Tensor, "l f h w"]:
    """Return where each label is in each frame.

    Example:
        >>> label_masks(torch.tensor([[[3, 5]]]), [5, 3]).squeeze().tolist()
        [[False, True], [True, False]]
    """
    wanted = torch.as_tensor(values, device=labels.device)
    return labels[None] == wanted.view(-1, 1, 1, 1)


def resize_masks(masks: Bool[Tensor, "*p h w"], hw: tuple[int, int]) -> Float[Tensor, "*p H W"]:
    """Bring masks to the grid of a layer, as bicubic enlarging or reducing of images in 8 bits.

    Example:
        >>> resize_masks(torch.ones(2, 4, 4, dtype=torch.bool), (2, 2)).shape
        torch.Size([2, 2, 2])
    """
    if masks.shape[-2:] == hw:
        return masks.float()
    return resize_planes(masks, hw, Image.Resampling.BICUBIC).float() / 255


def resize_planes(
    masks: Bool[Tensor, "*p h w"], hw: tuple[int, int], how: Image.Resampling
) -> Tensor:
    """Resize masks as grey images of 0 and 255; what a filter overshoots is cut off."""
    grey = (masks.to("cpu", torch.uint8) * 255).flatten(0, -3).numpy()
    planes = [np.asarray(Image.fromarray(one).resize((hw[1], hw[0]), how)) for one in grey]
    stacked = np.stack(planes) if planes else np.zeros((0, *hw), np.uint8)
    return torch.from_numpy(stacked).unflatten(0, masks.shape[:-2]).to(masks.device)


def frame_strengths(
    frames: int, strength: float, first: float | None = None
) -> Float[Tensor, " f"]:
    """Return lambda for every frame: the same, or moving evenly from `first` towards `strength`.

    As the authors have it, the last frame stays one part in `frames` short of `strength`.

    Example:
        >>> frame_strengths(4, 50.0, 10.0).tolist()
        [10.0, 20.0, 30.0, 40.0]
    """
    begin = strength if first is None else first
    return begin + (strength - begin) * torch.arange(frames) / frames


# ---- edits


class Kept:
    """Queries and keys of an unmodulated pass, by step and layer, for every frame of a batch.

    Args:
        frames: Of the batch.
        dtype: What they are kept in; as they are by default.
        device: Where; where they are by default.
    """

    def __init__(
        self,
        frames: int,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        self._frames = frames
        self._like = {"dtype": dtype, "device": device}
        # Spatial layers: halves, frames, heads, positions, width. Temporal ones: halves, positions,
        # heads, frames, width.
        self._held: dict[tuple[int, str, str], Tensor] = {}

    @property
    def frames(self) -> int:
        """Of the batch."""
        return self._frames

    @property
    def bytes(self) -> int:
        """Memory that is held."""
        return sum(one.nbytes for one in self._held.values())

    def queries(self, index: int, name: str) -> Float[Tensor, "f n c"]:
        """Return a spatial layer's queries of a step, of the conditional half, heads merged.

        Raises:
            InputError: They were not kept.
        """
        held = self._get(index, name, "q")[-1]
        return held.transpose(1, 2).flatten(2)

    def keep(self, call: Call, side: str) -> Callable[[LayerId, object, Tensor], Tensor]:
        """Return an edit's value that changes nothing and keeps what it sees."""

        def value(layer: LayerId, _: object, own: Tensor) -> Tensor:
            seen = own.detach().unflatten(0, (call.halves, -1))
            key = call.index, layer.name, side
            if layer.kind == "temporal":
                self._held[key] = seen.to(**self._like, copy=True)  # pyright: ignore
                return own
            if key not in self._held:
                shape = seen.shape[0], self._frames, *seen.shape[2:]
                device, dtype = self._like["device"], self._like["dtype"]
                self._held[key] = torch.empty(
                    shape, device=device or own.device, dtype=dtype or own.dtype
                )
            held = self._held[key]
            held[:, call.frames.to(held.device)] = seen.to(held)
            return own

        return value

    def put(self, call: Call, side: str) -> Callable[[LayerId, object, Tensor], Tensor]:
        """Return an edit's value that puts back what was kept, frame by frame."""

        def value(layer: LayerId, _: object, own: Tensor) -> Tensor:
            held = self._get(call.index, layer.name, side)
            if layer.kind == "temporal":
                clips = len(call.frames) // call.clip
                return held[:, None].expand(-1, clips, *held.shape[1:]).flatten(0, 2).to(own)
            return held[:, call.frames.to(held.device)].flatten(0, 1).to(own)

        return value

    def _get(self, index: int, name: str, side: str) -> Tensor:
        try:
            return self._held[index, name, side]
        except KeyError:
            raise InputError(
                "queries and keys must have been kept in the unmodulated pass",
                got=f"none of {name} at step {index}",
                remedy="denoise with denoise_plain first, with a network that keeps this layer",
            ) from None


def keeping_edits(kept: Kept, call: Call, layers: tuple[str, ...]) -> tuple[Edit, ...]:
    """Return edits that keep queries and keys of an unmodulated call, and change nothing."""
    q, k = kept.keep(call, "q"), kept.keep(call, "k")
    return (InjectQK(q=q, k=k, layers=layers, kinds=_KINDS),)


def injection_edits(kept: Kept, call: Call, layers: tuple[str, ...]) -> tuple[Edit, ...]:
    """Return edits that give a call the queries and keys kept of the same step and frames."""
    q, k = kept.put(call, "q"), kept.put(call, "k")
    return (InjectQK(q=q, k=k, layers=layers, kinds=_KINDS),)


def modulation_edits(call: Call, layers: tuple[str, ...]) -> tuple[Edit, ...]:
    """Return edits that add a call's amounts to the output of attention, in both of its halves.

    Every channel gets the same; of temporal attention, a position's sequence of frames gets what
    is added to the position in those frames.
    """
    added = call.added
    if added is None:
        return ()

    def value(layer: LayerId, _: object, output: Tensor) -> Tensor:
        spread = added.flatten(1)  # [r n]
        if layer.kind == "temporal":
            spread = spread.unflatten(0, (-1, call.clip)).transpose(1, 2).flatten(0, 1)
        return spread.repeat(call.halves, 1)[..., None].to(output)

    return (AddToOutput(value=value, layers=layers, kinds=_KINDS),)


class Changing:
    """A U-Net as the loops of `denoising` call it: it keeps, puts back and modulates attention.

    Args:
        network: Calls the U-Net; knows text, conditions and precision.
        unet: The U-Net, or anything that has it as `.unet`.
        kept: Where queries and keys go; also an attribute.
        injected: Layers whose queries and keys are put back, patterns as `attention_of` has them.
        modulated: Layers whose output is added to.
        features: Layers whose queries are kept too, at the step `feature_step`.
        feature_step: The step.
        restart_step: Where modulated passes begin with the latents the unmodulated pass had there.
            What comes before the modulated layers is then not computed again, of models that
            `find_prefix` knows; None: always all.
    """

    def __init__(
        self,
        network: Network,
        unet: object,
        *,
        kept: Kept,
        injected: tuple[str, ...],
        modulated: tuple[str, ...],
        features: tuple[str, ...] = (),
        feature_step: int | None = None,
        restart_step: int | None = None,
    ) -> None:
        self._network = network
        self._unet = unet
        self.kept = kept
        self._injected = injected
        self._modulated = modulated
        self._features = features
        self._feature_step = feature_step
        self._restart_step = restart_step
        # Without modulation, as of `modulate=False`, nothing is put back and nothing starts again.
        shared = restart_step is not None and injected and modulated
        self._prefix = find_prefix(unet, _block(modulated), kept.frames) if shared else None

    def __call__(self, x: Float[Tensor, "r c h w"], call: Call) -> Float[Tensor, "r2 c h w"]:
        """Return the network's output, attention being kept or changed as the call asks."""
        prefix = self._prefix if call.index == self._restart_step else None
        with ExitStack() as stack:
            if prefix and not call.modulated:
                stack.enter_context(prefix.keeping(call))
            elif prefix and prefix.complete:
                stack.enter_context(prefix.restarting(call))
            else:
                prefix = None
            if edits := self._edits(call, prefix.first if prefix else 0):
                stack.enter_context(intervene(self._unet, edits))
            return self._network(x, call)

    def _edits(self, call: Call, first: int) -> tuple[Edit, ...]:
        if call.modulated:
            # Blocks that are not called cannot be changed.
            injected = tuple(one for one in self._injected if _block([one]) >= first)
            put = injection_edits(self.kept, call, injected) if injected else ()
            return (*put, *modulation_edits(call, self._modulated))
        kept = keeping_edits(self.kept, call, self._injected) if self._injected else ()
        if self._features and call.index == self._feature_step:
            queries = self.kept.keep(call, "q")
            kept = (*kept, InjectQK(q=queries, layers=self._features, kinds=_KINDS))
        return kept


def _block(patterns: Collection[str]) -> int:
    """The first U-Net block among patterns that `attention_of` made."""
    return min(int(one.split(".")[1]) for one in patterns)
