"""Vision transformers: keys, queries, values and tokens of any layer, and self-attention."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from diffuseg.backbones.companions import find_companion, load_image_files, load_part
from diffuseg.backbones.loading import pick_device, pick_dtype
from diffuseg.backbones.outputs import outputs_of
from diffuseg.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers.image_processing_utils import BaseImageProcessor
else:
    PreTrainedModel = nn.Module
    BaseImageProcessor = object

What = Literal["keys", "queries", "values", "tokens"]
"""Which vectors of a layer; "tokens" are its output, after the last layer the normalised one."""

ARCHITECTURES: tuple[str, ...] = (
    "ViTModel",
    "ViTForImageClassification",
    "Dinov2Model",
    "Dinov2ForImageClassification",
    "Dinov2WithRegistersModel",
    "Dinov2WithRegistersForImageClassification",
    "ViTMAEModel",
    "ViTMAEForPreTraining",
)
"""What `config.json` may name: ViT and DINO are ViTModel, DINOv2 has classes of its own; of MAE the
encoder is taken, which is a ViT, and shown the whole picture."""

# transformers 5 and 4 name the projections differently.
_PROJECTIONS: dict[str, tuple[str, str]] = {
    "queries": ("q_proj", "query"),
    "keys": ("k_proj", "key"),
    "values": ("v_proj", "value"),
}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class VisionTransformer:
    """A frozen ViT; satisfies the `Features` protocol.

    Attributes:
        name: As the user asked for it.
        source: Where the weights came from.
        model: transformers' `ViTModel`, `Dinov2Model` or `Dinov2WithRegistersModel`.
        mean: Of the pixels of a channel, in [0, 1].
        std: Of the pixels of a channel.
        preset: Settings found for this network, by method name.
    """

    name: str
    source: str
    model: PreTrainedModel
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    preset: Mapping[str, Mapping[str, object]] = field(default_factory=dict)

    @property
    def patch(self) -> int:
        """Pixels a grid cell."""
        return int(self.model.config.patch_size)

    @property
    def size(self) -> int:
        """Pixels of the side its positions were learned at."""
        return int(self.model.config.image_size)

    @property
    def depth(self) -> int:
        """How many layers there are."""
        return int(self.model.config.num_hidden_layers)

    @property
    def heads(self) -> int:
        """Attention heads of a layer."""
        return int(self.model.config.num_attention_heads)

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        """The network's precision."""
        return self.model.dtype

    def __repr__(self) -> str:
        return f"ViT {self.name} from {self.source} ({self.dtype} on {self.device})"

    @torch.no_grad()
    def features(
        self, images: Float[Tensor, "b 3 H W"], what: str = "keys", *, layer: int = -1
    ) -> Float[Tensor, "b h w d"]:
        """One vector a patch, heads side by side, float32; CLS and registers are left out.

        Args:
            images: Pixels in [0, 1]; sides must be multiples of `patch`, and need not be equal.
            what: "keys" (OVDiff, MaskCut), "queries", "values" or "tokens".
            layer: Counted from 0, or from -1 backwards. The last is what OVDiff uses.

        Raises:
            InputError: A side is no multiple of `patch`, or `what` or `layer` is not there.

        Example:
            >>> vit = load_vit("mini")  # doctest: +SKIP
            >>> vit.features(torch.zeros(1, 3, 128, 256)).shape  # doctest: +SKIP
            torch.Size([1, 8, 16, 128])
        """
        if what not in get_args(What):
            raise InputError(
                f"what must be one of {', '.join(get_args(What))}", got=what, remedy='try "keys"'
            )
        index = self._layer(layer)
        grid = self._grid(images)
        if what == "tokens":
            tokens = self._tokens(images, index)
        else:
            with outputs_of([self._projections(what)[index]]) as caught:
                self._run(images)
            tokens = caught[0]
        return tokens[:, -grid[0] * grid[1] :].float().unflatten(1, grid)

    @torch.no_grad()
    def attentions(
        self, images: Float[Tensor, "b 3 H W"], *, specials: bool = False
    ) -> Iterator[Float[Tensor, "b heads n m"]]:
        """Self-attention, layer by layer, float32; each made when it is asked for.

        Args:
            images: As for `features`.
            specials: Whether rows and columns of CLS and registers come first. By default only
                those of patches are returned; their rows then sum to less than one.

        Raises:
            InputError: A side is no multiple of `patch`.
        """
        grid = self._grid(images)
        pairs = (*self._projections("queries"), *self._projections("keys"))
        with outputs_of(pairs) as caught:
            self._run(images)
        return self._maps(caught, 0 if specials else -grid[0] * grid[1])

    def _maps(self, caught: Sequence[Tensor], start: int) -> Iterator[Tensor]:
        half = len(caught) // 2
        for q, k in zip(caught[:half], caught[half:], strict=True):
            q, k = (one.float().unflatten(-1, (self.heads, -1)).transpose(1, 2) for one in (q, k))
            maps = (q @ k.mT * q.shape[-1] ** -0.5).softmax(dim=-1)
            yield maps[:, :, start:, start:]

    def _grid(self, images: Float[Tensor, "b 3 H W"]) -> tuple[int, int]:
        height, width = images.shape[-2:]
        if height % self.patch or width % self.patch or not height or not width:
            raise InputError(
                f"image sides must be multiples of {self.patch} pixels",
                got=f"{height}x{width}",
                remedy=f"resize it: working_hw(hw, size={self.size}, multiple={self.patch})",
            )
        return height // self.patch, width // self.patch

    def _layer(self, layer: int) -> int:
        if not -self.depth <= layer < self.depth:
            raise InputError(
                f"the layer must be one of {self.depth}",
                got=layer,
                remedy=f"count from 0 to {self.depth - 1}, or from -1 backwards",
            )
        return layer % self.depth

    def _projections(self, what: str) -> list[nn.Module]:
        return [
            module
            for name, module in self.model.named_modules()
            if name.rpartition(".")[2] in _PROJECTIONS[what]
        ]

    def _tokens(self, images: Float[Tensor, "b 3 H W"], layer: int) -> Float[Tensor, "b n d"]:
        if layer == self.depth - 1:
            return self._run(images)
        # transformers 4 keeps the layers of a ViT where DINOv2 has them.
        model = cast(Any, self.model)
        stack = model.layers if hasattr(model, "layers") else model.encoder.layer
        with outputs_of([stack[layer]]) as caught:
            self._run(images)
        return caught[0]

    def _run(self, images: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b n d"]:
        from transformers import ViTModel

        mean, std = (
            torch.tensor(value, device=self.device)[:, None, None]
            for value in (self.mean, self.std)
        )
        pixels = ((images.to(self.device).float() - mean) / std).to(self.dtype)
        # DINOv2 always fits its positions to the image.
        fit = {"interpolate_pos_encoding": True} if isinstance(self.model, ViTModel) else {}
        return self.model(pixel_values=pixels, **fit).last_hidden_state


def load_vit(
    name: str | os.PathLike[str] = "mini",
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    offline: bool | None = None,
) -> VisionTransformer:
    """Load a vision transformer.

    Args:
        name: "mini" (embedded), a hub id such as "facebook/dino-vitb8" or "facebook/dinov2-base",
            or a folder in transformers format.
        device: For instance "cpu" or "cuda:1"; by default the first there is of CUDA, Apple's GPU
            and the CPU.
        dtype: "fp32", "fp16" or "bf16"; by default fp32 on the CPU and fp16 elsewhere.
        offline: Never use the network; by default as HF_HUB_OFFLINE says.

    Raises:
        InputError: No such name, device or dtype.
        WeightsError: The weights are not to be had, damaged, or of another kind.

    Example:
        >>> load_vit("mini", device="cpu")  # doctest: +SKIP
        ViT mini from embedded (torch.float32 on cpu)
    """
    place = pick_device(device)
    precision = pick_dtype(dtype, place)
    found = find_companion(name, "vit", ARCHITECTURES, offline=offline, text=False)
    mean, std = _pixel_range(load_image_files(found))
    return VisionTransformer(
        name=found.name,
        source=found.source,
        model=load_part(_kind(found.architecture), found, precision, place),
        mean=mean,
        std=std,
        preset=found.preset,
    )


def _kind(architecture: str) -> "type[PreTrainedModel]":
    from transformers import Dinov2Model, Dinov2WithRegistersModel, ViTModel

    if architecture.startswith("Dinov2WithRegisters"):
        return Dinov2WithRegistersModel
    if architecture.startswith("Dinov2"):
        return Dinov2Model

    class Headless(ViTModel):
        """Loads a ViTModel without the pooler, which many folders have no weights for."""

        @classmethod
        def from_pretrained(cls, path: Path, **options: Any) -> Any:
            return ViTModel.from_pretrained(path, add_pooling_layer=False, **options)

    return Headless


def _pixel_range(
    processor: BaseImageProcessor,
) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and deviation that the image processor's file names; none if it normalises nothing."""
    if not getattr(processor, "do_normalize", True):
        return (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    mean, std = getattr(processor, "image_mean", None), getattr(processor, "image_std", None)
    red, green, blue = map(float, mean or (0.5, 0.5, 0.5))
    *spread, last = map(float, std or (0.5, 0.5, 0.5))
    return (red, green, blue), (spread[0], spread[1], last)
