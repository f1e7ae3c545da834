"""First weights of a small image tower, so that it learns shapes from few pictures.

With the usual random weights a transformer of this size tells colours within a hundred steps and
shapes only after thousands: single pixels of a patch hardly differ from their neighbours, so the
patch embedding sees little but the patch's mean, and attention has to find out what lies beside
what. Here patches begin as their principal components, evened out; positions as sines and cosines;
and attention prefers its like, so neighbours (A. Trockman and J. Z. Kolter, Mimetic initialization
of self-attention layers, ICML 2023, section 4; its constants).
"""

import math
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from diffuseg.train.captioned import to_pixels

if TYPE_CHECKING:
    from transformers import CLIPVisionModel

_QUERY_KEY = (0.7, 0.7)  # noise and identity in the product of query and key weights
_VALUE_OUT = (0.4, 0.4)  # noise and negative identity in that of value and output weights
_POSITION = 1.0  # size of the sines and cosines beside patches of unit variance
_SLOWEST = 0.06  # of the fastest frequency, which turns by a quarter from patch to patch


@torch.no_grad()
def prime_tower(
    tower: "CLIPVisionModel",
    images: UInt8[np.ndarray, "n h w 3"],
    generator: torch.Generator,
) -> None:
    """Set the first weights of patches, positions and attention; the rest stays as it is.

    Args:
        tower: Of any width that is a multiple of 4.
        images: A few hundred training pictures, whose patches are looked at.
        generator: On the CPU.
    """
    config, embeddings = tower.config, tower.embeddings
    width, patch, side = config.hidden_size, config.patch_size, config.image_size
    if not isinstance(patch, int) or not isinstance(side, int):
        raise TypeError(f"the tower must see squares, not {side} in patches of {patch}")
    kernel = principal_patches(images, patch, width, generator)
    embeddings.patch_embedding.weight.copy_(kernel)
    embeddings.position_embedding.weight[0] = 0
    embeddings.position_embedding.weight[1:] = _POSITION * sine_positions(side // patch, width)
    embeddings.class_embedding.copy_(0.5 * torch.randn(width, generator=generator))
    heads = config.num_attention_heads
    narrow = width // heads
    for layer in tower.encoder.layers:
        attention = cast(Any, layer).self_attn  # transformers does not type its layers
        for start in range(0, width, narrow):
            query, key = _factors(width, *_QUERY_KEY, generator)
            attention.q_proj.weight[start : start + narrow] = query[:, :narrow].T
            attention.k_proj.weight[start : start + narrow] = key[:, :narrow].T
        out, value = _factors(width, _VALUE_OUT[0], -_VALUE_OUT[1], generator)
        attention.v_proj.weight.copy_(value.T)
        attention.out_proj.weight.copy_(out)


def principal_patches(
    images: UInt8[np.ndarray, "n h w 3"], patch: int, width: int, generator: torch.Generator
) -> Float[Tensor, "d 3 p p"]:
    """Patch kernels: the strongest components, half evened out, turned at random; unit variance."""
    pixels = to_pixels(images)
    grid = pixels.unfold(2, patch, patch).unfold(3, patch, patch).permute(0, 2, 3, 1, 4, 5)
    patches = grid.reshape(-1, 3 * patch * patch)
    values, vectors = torch.linalg.eigh(patches.double().T @ patches.double() / len(patches))
    kept = min(width, len(values))
    strong, basis = values.flip(0)[:kept], vectors.flip(1)[:, :kept]
    kernels = (basis * strong.clamp(min=1e-8) ** -0.25).T.float()
    kernels /= (patches @ kernels.T).std()
    turn = torch.linalg.qr(torch.randn(width, width, generator=generator)).Q[:, :kept]
    return (turn @ kernels).reshape(width, 3, patch, patch)


def sine_positions(side: int, width: int) -> Float[Tensor, "n d"]:
    """Root mean square 1; half of the width for rows, half for columns.

    Example:
        >>> sine_positions(8, 128).square().mean().item()
        1.0
    """
    place = torch.arange(side).float()
    turns = math.pi / 2 * torch.logspace(0, math.log10(_SLOWEST), width // 4)
    angles = place[:, None] * turns
    table = math.sqrt(2) * torch.cat([angles.sin(), angles.cos()], dim=1)
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    return torch.cat([table[rows.flatten()], table[columns.flatten()]], dim=1)


def _factors(
    width: int, noise: float, identity: float, generator: torch.Generator
) -> tuple[Float[Tensor, "d d"], Float[Tensor, "d d"]]:
    """Two matrices whose product (the second transposed) is the identity with noise."""
    random = torch.randn(width, width, generator=generator) / math.sqrt(width)
    left, strength, right = torch.linalg.svd(noise * random + identity * torch.eye(width))
    return left * strength.sqrt(), right.T * strength.sqrt()
