"""What the image miniature lends the video one: latents, embeddings, features to begin from.

Stable Video Diffusion shares the autoencoder of Stable Diffusion, and its U-Net began as that of
2.1. The miniatures' widths differ (diffusers' group norms of this U-Net have 32 groups), so the
video U-Net cannot be loaded from the image one; it is told instead what that one's features are.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional

from diffuseg.world.captions import VOCABULARY
from diffuseg.world.tokenizer import build_tokenizer

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from transformers import CLIPVisionModelWithProjection

CLIP_SIDE = 224
"""Pixels that diffusers' pipeline gives the image encoder, whatever its own size is."""
_BLOCK_7 = "up_blocks.2.attentions.1.transformer_blocks.0.attn1.to_q"
_BLOCK_9 = "up_blocks.3.attentions.0.transformer_blocks.0.attn1.to_k"
_VIT_LAYER = 2
_BATCH = 14
_Model = TypeVar("_Model", bound=nn.Module)


@dataclass(frozen=True, kw_only=True, slots=True)
class Encoded:
    """Frames as the video miniature is trained on them.

    Args:
        latents: Posterior means, scaled.
        embeddings: The image encoder's, of every frame.
        coarse: The image U-Net's queries of block 7 and the ViT's keys.
        fine: The image U-Net's keys of block 9.
    """

    latents: Float[Tensor, "f 4 h w"]
    embeddings: Float[Tensor, "f e"]
    coarse: Float[Tensor, "f c h2 w2"]
    fine: Float[Tensor, "f d h w"]


class Encoders:
    """The image miniature's parts, frozen, from its folder."""

    def __init__(self, folder: Path) -> None:
        from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
        from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
        from transformers import CLIPTextModel, ViTModel

        self.vae = _frozen(AutoencoderKL.from_pretrained(folder / "vae", torch_dtype=torch.float32))
        self.image_encoder = _frozen(enlarge_encoder(folder / "clip"))
        self.unet = _frozen(
            UNet2DConditionModel.from_pretrained(folder / "unet", torch_dtype=torch.float32)
        )
        vit = ViTModel.from_pretrained(folder / "vit", dtype=torch.float32, add_pooling_layer=False)
        self.vit = _frozen(vit)
        text = _frozen(CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=torch.float32))
        start = build_tokenizer(VOCABULARY)("", return_tensors="pt").input_ids[:, :1]
        self._nothing_said = text(start).last_hidden_state

    @torch.inference_mode()
    def __call__(self, frames: UInt8[Tensor, "f h w 3"]) -> Encoded:
        """Encode frames in [0, 255], some at a time."""
        parts = [self._encode(part) for part in frames.split(_BATCH)]
        columns = zip(*parts, strict=True)
        latents, embeddings, coarse, fine = (torch.cat(column) for column in columns)
        return Encoded(latents=latents, embeddings=embeddings, coarse=coarse, fine=fine)

    def _encode(self, frames: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        pixels = frames.permute(0, 3, 1, 2).float().div(127.5).sub(1)
        latents = encode_means(self.vae, pixels)
        return (latents, embed_pictures(self.image_encoder, pixels), *self._look(pixels, latents))

    def _look(
        self, pixels: Float[Tensor, "f 3 H W"], latents: Float[Tensor, "f 4 h w"]
    ) -> tuple[Tensor, Tensor]:
        """Coarse and fine features of clean frames.

        Which ones: of all queries and keys of the decoder and all keys of the ViT, those by whose
        nearest neighbours labels of a first frame are best carried on.
        """
        keys = f"layers.{_VIT_LAYER}.attention.k_proj"
        with layer_outputs(self.unet, _BLOCK_7, _BLOCK_9) as seen:
            self.unet(latents, 1, self._nothing_said.expand(len(latents), -1, -1))
        with layer_outputs(self.vit, keys) as shown:
            self.vit(pixels * 2, interpolate_pos_encoding=True)  # deviation 0.25 of [0, 1]
        height, width = latents.shape[2:]
        queries = _grid(seen[_BLOCK_7], height // 2, width // 2)
        patches = _grid(shown[keys][:, 1:], pixels.shape[2] // 16, pixels.shape[3] // 16)
        return torch.cat([queries, patches], dim=1), _grid(seen[_BLOCK_9], height, width)


def _grid(tokens: Float[Tensor, "f n c"], height: int, width: int) -> Float[Tensor, "f c h w"]:
    return tokens.transpose(1, 2).unflatten(2, (height, width))


@contextmanager
def layer_outputs(model: nn.Module, *names: str) -> Iterator[dict[str, Tensor]]:
    """What the layers called `names` give while the block runs, by name."""
    seen: dict[str, Tensor] = {}

    def keep(name: str, _module: nn.Module, _given: object, output: Tensor) -> None:
        seen[name] = output

    handles = [
        model.get_submodule(name).register_forward_hook(partial(keep, name)) for name in names
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def encode_means(
    vae: "AutoencoderKL", pixels: Float[Tensor, "f 3 H W"]
) -> Float[Tensor, "f 4 h w"]:
    """Scaled posterior means of pictures in [-1, 1]."""
    return vae.encode(pixels, return_dict=False)[0].mean * vae.config["scaling_factor"]


def embed_pictures(
    encoder: "CLIPVisionModelWithProjection", pixels: Float[Tensor, "f 3 H W"]
) -> Float[Tensor, "f e"]:
    """Embeddings of pictures in [-1, 1], brought to the encoder's size."""
    shown = functional.interpolate(
        pixels, size=(CLIP_SIDE, CLIP_SIDE), mode="bicubic", antialias=True, align_corners=False
    )
    return encoder(shown).image_embeds


def enlarge_encoder(folder: Path) -> "CLIPVisionModelWithProjection":
    """A CLIP pair's image tower and projection, for pictures of `CLIP_SIDE` pixels.

    Its patches become twice as large, as if every 2 x 2 pixels were averaged before; the places of
    the patches there are now more of lie between the old ones.
    """
    from transformers import CLIPModel, CLIPVisionConfig, CLIPVisionModelWithProjection

    pair = CLIPModel.from_pretrained(folder, dtype=torch.float32)
    old: Any = pair.config.vision_config
    patch: int = 2 * old.patch_size
    config = CLIPVisionConfig(**(old.to_dict() | {"image_size": CLIP_SIDE, "patch_size": patch}))
    tower = CLIPVisionModelWithProjection(config)
    held = pair.state_dict()
    state = {name: held[name] for name in tower.state_dict()}
    name = "vision_model.embeddings.patch_embedding.weight"
    state[name] = state[name].repeat_interleave(2, dim=2).repeat_interleave(2, dim=3) / 4
    name = "vision_model.embeddings.position_embedding.weight"
    first, places = state[name][:1], state[name][1:]
    before, after = old.image_size // old.patch_size, CLIP_SIDE // patch
    grid = places.T.reshape(1, -1, before, before)
    grid = functional.interpolate(
        grid, size=(after, after), mode="bicubic", align_corners=False
    ).flatten(2)
    state[name] = torch.cat([first, grid[0].T])
    tower.load_state_dict(copy.deepcopy(state))
    return tower


def _frozen(model: _Model) -> _Model:
    return model.float().eval().requires_grad_(False)
