"""What the library asks of a model. Structural: a model has these, it does not inherit them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from diffuseg.emphasis import Stress
from diffuseg.prompts import ClassPrompts, TokenSpan

Prediction = Literal["epsilon", "v_prediction"]
Weights = Sequence[Mapping[str, float] | Sequence[Stress] | None] | Tensor
"""Per prompt, how strongly its words count, or its parts; or one number a token, `b t`."""
OnStep = Callable[[int, int, Tensor], None]
"""Called after a sampling step with its index, its timestep and the latents, `b c h w`."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TextEmbedding:
    """Prompts as the model reads them, one a row.

    Attributes:
        vectors: What cross-attention sees.
        prompts: The texts.
        tokens: The token strings of every row, start, end and padding included.
        mask: The positions that may be attended to; all of them when None, as Stable Diffusion was
            trained.
        pooled: One vector for the whole prompt; SDXL only.

    Example:
        >>> text = TextEmbedding(vectors=torch.zeros(1, 4, 8), prompts=("",), tokens=(("",) * 4,))
        >>> len(TextEmbedding.concat([text, text]))
        2
    """

    vectors: Float[Tensor, "b t d"]
    prompts: tuple[str, ...]
    tokens: tuple[tuple[str, ...], ...]
    mask: Bool[Tensor, "b t"] | None = None
    pooled: Float[Tensor, "b p"] | None = None

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, rows: slice) -> "TextEmbedding":
        """The rows of a slice."""
        return TextEmbedding(
            vectors=self.vectors[rows],
            prompts=self.prompts[rows],
            tokens=self.tokens[rows],
            mask=None if self.mask is None else self.mask[rows],
            pooled=None if self.pooled is None else self.pooled[rows],
        )

    @staticmethod
    def concat(parts: "Sequence[TextEmbedding]") -> "TextEmbedding":
        """The rows of several embeddings of one model, in order."""
        masks = [part.mask for part in parts if part.mask is not None]
        pooled = [part.pooled for part in parts if part.pooled is not None]
        return TextEmbedding(
            vectors=torch.cat([part.vectors for part in parts]),
            prompts=tuple(prompt for part in parts for prompt in part.prompts),
            tokens=tuple(row for part in parts for row in part.tokens),
            mask=torch.cat(masks) if masks else None,
            pooled=torch.cat(pooled) if pooled else None,
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FrameCondition:
    """What clips are denoised from instead of words, a frame of each; one a row.

    Attributes:
        vectors: What cross-attention sees.
        latents: Laid beside those of every frame of the clip.
        ids: What else the model is told: frames a second, motion, noise on the frame.

    Example:
        >>> one = FrameCondition(vectors=torch.ones(1, 1, 8), latents=torch.ones(1, 4, 8, 8),
        ...                      ids=torch.tensor([[14.0, 127.0, 0.02]]))
        >>> both = FrameCondition.concat([one.without(), one])
        >>> len(both), both.vectors[:, 0, 0].tolist()
        (2, [0.0, 1.0])
    """

    vectors: Float[Tensor, "b 1 d"]
    latents: Float[Tensor, "b c h w"]
    ids: Float[Tensor, "b 3"]

    def __len__(self) -> int:
        return len(self.vectors)

    def without(self) -> "FrameCondition":
        """The unconditional ones: nothing is seen of the frame, the rest is told as before."""
        return FrameCondition(
            vectors=torch.zeros_like(self.vectors),
            latents=torch.zeros_like(self.latents),
            ids=self.ids,
        )

    @staticmethod
    def concat(parts: "Sequence[FrameCondition]") -> "FrameCondition":
        """The rows of several, in order."""
        return FrameCondition(
            vectors=torch.cat([part.vectors for part in parts]),
            latents=torch.cat([part.latents for part in parts]),
            ids=torch.cat([part.ids for part in parts]),
        )


@runtime_checkable
class Diffusion(Protocol):
    """A text-to-image latent diffusion model.

    Attributes:
        name: As the user asked for it: a catalog name, a hub id or a folder's name.
        source: Where the weights came from: a hub id, a folder, or "embedded".
        unet: The network whose attention is recorded.
        scale: Pixels a latent cell.
        size: Pixels of the side the model was trained at.
        prediction: What the U-Net's output means.
        timesteps: How many noise levels there are; timesteps run from 0 to one less.
        vocabulary: Every word the model knows, where the list is closed.
        preset: Settings found for this model, by method name.
    """

    @property
    def name(self) -> str: ...
    @property
    def source(self) -> str: ...
    @property
    def unet(self) -> nn.Module: ...
    @property
    def scale(self) -> int: ...
    @property
    def size(self) -> int: ...
    @property
    def prediction(self) -> Prediction: ...
    @property
    def timesteps(self) -> int: ...
    @property
    def vocabulary(self) -> tuple[str, ...] | None: ...
    @property
    def preset(self) -> Mapping[str, Mapping[str, object]]: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def dtype(self) -> torch.dtype: ...

    def encode(
        self,
        image: Float[Tensor, "b 3 H W"],
        *,
        max_batch: int = ...,
        noise: Float[Tensor, "#b c h w"] | None = ...,
    ) -> Float[Tensor, "b c h w"]:
        """Pixels in [0, 1] to latents: the autoencoder's mean, or with noise a draw, scaled."""
        ...

    def decode(
        self, latents: Float[Tensor, "b c h w"], *, max_batch: int = ...
    ) -> Float[Tensor, "b 3 H W"]:
        """Latents to pixels in [0, 1]."""
        ...

    def embed(
        self, prompts: str | Sequence[str], *, weights: Weights | None = None
    ) -> TextEmbedding:
        """Prompts to what cross-attention sees; `weights` stress words."""
        ...

    def token_spans(self, prompts: ClassPrompts) -> tuple[TokenSpan, ...]:
        """The tokens that name each class."""
        ...

    def fits(self, prompt: str) -> bool:
        """Whether the whole prompt can be read."""
        ...

    def check_words(self, words: Sequence[str]) -> None:
        """Raise InputError if the model cannot know one of the words."""
        ...

    def add_noise(
        self,
        latents: Float[Tensor, "b c h w"],
        timestep: int,
        noise: Float[Tensor, "#b c h w"],
    ) -> Float[Tensor, "b c h w"]:
        """The latents at a noise level."""
        ...

    def denoise(
        self, latents: Float[Tensor, "b c h w"], timestep: int, text: TextEmbedding
    ) -> Float[Tensor, "r c h w"]:
        """One call of the U-Net, its raw output."""
        ...

    def predict_x0(
        self,
        latents: Float[Tensor, "b c h w"],
        timestep: int,
        output: Float[Tensor, "b c h w"],
    ) -> Float[Tensor, "b c h w"]:
        """The clean latents an output stands for."""
        ...

    def predict_epsilon(
        self,
        latents: Float[Tensor, "b c h w"],
        timestep: int,
        output: Float[Tensor, "b c h w"],
    ) -> Float[Tensor, "b c h w"]:
        """The noise an output stands for."""
        ...

    def sample(
        self,
        prompts: str | Sequence[str],
        *,
        steps: int = ...,
        guidance: float = ...,
        negative: str = ...,
        seed: int | Sequence[int] = ...,
        hw: tuple[int, int] | None = ...,
        scheduler: object = ...,
        on_step: OnStep | None = ...,
    ) -> Float[Tensor, "b 3 H W"]:
        """Draw one image a prompt, pixels in [0, 1]."""
        ...


@runtime_checkable
class VideoDiffusion(Protocol):
    """An image-to-video latent diffusion model: frames see each other, words are not read.

    Attributes:
        name: As the user asked for it: a catalog name, a hub id or a folder's name.
        source: Where the weights came from: a hub id, a folder, or "embedded".
        unet: The network whose attention is recorded.
        scale: Pixels a latent cell.
        coarsest: Pixels a cell of the smallest grid; sides must be multiples of it.
        size: Root of the pixels the model was trained at.
        preset: Settings found for this model, by method name.
    """

    @property
    def name(self) -> str: ...
    @property
    def source(self) -> str: ...
    @property
    def unet(self) -> nn.Module: ...
    @property
    def scale(self) -> int: ...
    @property
    def coarsest(self) -> int: ...
    @property
    def size(self) -> int: ...
    @property
    def preset(self) -> Mapping[str, Mapping[str, object]]: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def dtype(self) -> torch.dtype: ...

    def encode(
        self,
        image: Float[Tensor, "b 3 H W"],
        *,
        max_batch: int = ...,
        noise: Float[Tensor, "#b c h w"] | None = ...,
    ) -> Float[Tensor, "b c h w"]:
        """Pixels in [0, 1] to latents: the autoencoder's mean, or with noise a draw, scaled."""
        ...

    def decode(
        self, latents: Float[Tensor, "b c h w"], *, max_batch: int = ..., chunk: int = ...
    ) -> Float[Tensor, "b 3 H W"]:
        """Latents to pixels in [0, 1], `chunk` frames smoothed over time."""
        ...

    def condition(
        self,
        frames: Float[Tensor, "b 3 H W"],
        *,
        fps_id: int,
        motion_bucket: int,
        noise_level: float,
        noise: Float[Tensor, "#b 3 H W"] | None = ...,
    ) -> FrameCondition:
        """What clips are denoised from: a frame of each."""
        ...

    def denoise(
        self, latents: Float[Tensor, "b f c h w"], time: int | float, condition: FrameCondition
    ) -> Float[Tensor, "b f c h w"]:
        """One call of the U-Net, its raw output; the time is ln(sigma) / 4."""
        ...


@runtime_checkable
class Features(Protocol):
    """A network that turns pictures into grids of feature vectors (a vision transformer).

    Attributes:
        name: As the user asked for it.
        source: Where the weights came from.
        patch: Pixels a grid cell.
        size: Pixels of the side the model was trained at.
        preset: Settings found for this network, by method name.
    """

    @property
    def name(self) -> str: ...
    @property
    def source(self) -> str: ...
    @property
    def patch(self) -> int: ...
    @property
    def size(self) -> int: ...
    @property
    def preset(self) -> Mapping[str, Mapping[str, object]]: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def dtype(self) -> torch.dtype: ...

    def features(
        self, images: Float[Tensor, "b 3 H W"], what: str = ..., *, layer: int = ...
    ) -> Float[Tensor, "b h w d"]:
        """Pixels in [0, 1] to one vector a grid cell: "keys", "queries", "values", "tokens"."""
        ...

    def attentions(
        self, images: Float[Tensor, "b 3 H W"], *, specials: bool = ...
    ) -> Iterator[Float[Tensor, "b heads n m"]]:
        """Self-attention between grid cells, layer by layer."""
        ...
