"""A diffusion model made by hand: latents are small pictures, queries a linear map of them.

What comes out can be said beforehand, unlike that of random weights: cells of one colour have one
feature, and what is added to an attention layer's output changes the picture there.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffuseg.backbones.protocols import TextEmbedding

WIDTH = 8
FACTORS = (8, 4, 2, 1)


class Attention(nn.Module):
    """The modules hooks go to; it hands on what its queries are, and adds a trace of it."""

    def __init__(self, cross: bool, generator: torch.Generator) -> None:
        super().__init__()
        self.heads, self.inner_dim, self.scale, self.is_cross_attention = 2, WIDTH, 1.0, cross
        self.to_q, self.to_k, self.to_v = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(WIDTH, WIDTH, bias=False)])
        for one in (self.to_q, self.to_k, self.to_v, self.to_out[0]):
            mix = torch.randn(WIDTH, WIDTH, generator=generator)
            one.weight.data = torch.linalg.qr(mix)[0]

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        # Keys are of the queries' own places, so that any number of tokens will do.
        self.to_k(x if not self.is_cross_attention else context)
        return x + 0.02 * self.to_out[0](self.to_q(x))


class Transformer(nn.Module):
    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        block = nn.Module()
        block.attn1, block.attn2 = Attention(False, generator), Attention(True, generator)
        self.transformer_blocks = nn.ModuleList([block])

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        block: Any = self.transformer_blocks[0]
        return block.attn2(block.attn1(x, context), context)


class Block(nn.Module):
    def __init__(self, generator: torch.Generator, number: int) -> None:
        super().__init__()
        self.upsamplers = nn.ModuleList([nn.Identity()]) if number < 3 else None
        self.attentions = nn.ModuleList(
            [Transformer(generator) for _ in range(3)] if number else []
        )


class LinearUNet(nn.Module):
    """Every block sees the latents, made smaller, and adds what attention did to the output."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.config = {"in_channels": 4}
        self.spread = nn.Parameter(torch.randn(4, WIDTH, generator=generator), requires_grad=False)
        self.down_blocks = nn.ModuleList([nn.Module() for _ in FACTORS])
        for block in self.down_blocks[:-1]:
            block.downsamplers = nn.ModuleList([nn.Identity()])
        self.up_blocks = nn.ModuleList([Block(generator, number) for number in range(4)])
        self.requires_grad_(False)

    def forward(self, sample: Tensor, timestep: Any, encoder_hidden_states: Tensor, **_: Any):
        noise = torch.zeros_like(sample)
        for block, factor in zip(self.up_blocks, FACTORS, strict=True):
            small = F.avg_pool2d(sample, factor)
            hw = small.shape[-2:]
            x = small.flatten(2).transpose(1, 2) @ self.spread
            transformers: Any = block.attentions
            for transformer in transformers:
                after = transformer(x, encoder_hidden_states)
                change = ((after - x) @ self.spread.T).transpose(1, 2).unflatten(2, hw)
                noise = noise + F.interpolate(change, size=sample.shape[-2:])
        return (noise,)


@dataclass(frozen=True, kw_only=True)
class LinearDiffusion:
    """A `Diffusion` whose autoencoder makes cells of 8 pixels, or fewer, of their mean colour."""

    name: str = "linear"
    source: str = "linear"
    unet: LinearUNet = field(default_factory=LinearUNet)
    scale: int = 8
    size: int = 64
    prediction: str = "epsilon"
    timesteps: int = 1000
    vocabulary: tuple[str, ...] | None = None
    preset: Any = field(default_factory=dict)
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: torch.dtype = torch.float32

    def encode(self, image, *, max_batch=4, noise=None):
        cells = F.avg_pool2d(image * 4 - 2, self.scale)
        return torch.cat([cells, cells.mean(1, keepdim=True)], 1)

    def decode(self, latents, *, max_batch=4):
        return (F.interpolate(latents[:, :3], scale_factor=self.scale) / 4 + 0.5).clamp(0, 1)

    def embed(self, prompts, *, weights=None):
        texts = [prompts] if isinstance(prompts, str) else list(prompts)
        vectors = torch.ones(len(texts), 5, WIDTH)
        return TextEmbedding(
            vectors=vectors, prompts=tuple(texts), tokens=(("",) * 5,) * len(texts)
        )

    def denoise(self, latents, timestep, text):
        return self.unet(latents, timestep, encoder_hidden_states=text.vectors)[0]

    def token_spans(self, prompts): ...
    def fits(self, prompt): ...
    def check_words(self, words): ...
    def add_noise(self, latents, timestep, noise): ...
    def predict_x0(self, latents, timestep, output): ...
    def predict_epsilon(self, latents, timestep, output): ...
    def sample(self, prompts, **options): ...


def shapes(n: int, side: int = 64) -> tuple[Any, Any]:
    """Frames of a red disk and a blue square that move over green, and their labels 5, 9 and 2."""
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    frames = torch.zeros(n, side, side, 3, dtype=torch.uint8)
    truth = torch.full((n, side, side), 2, dtype=torch.uint8)
    for i in range(n):
        disk = (rows - 0.3 * side).square() + (columns - 0.3 * side - i).square()
        square = ((rows - 0.72 * side).abs() < side / 6) & ((columns - 0.7 * side + i) < side / 6)
        square &= (columns - 0.7 * side + i) > -side / 6
        frames[i] = torch.tensor([40, 160, 60], dtype=torch.uint8)
        inside = disk < (side / 5) ** 2
        for mask, color, label in ((inside, (220, 40, 40), 5), (square, (40, 60, 220), 9)):
            frames[i][mask] = torch.tensor(color, dtype=torch.uint8)
            truth[i][mask] = label
    return frames.numpy(), truth.numpy()
