"""Diffusion models: what the rest of the library needs of one, which are known, and loading them.

Everything is loaded on first use, so that listing the known models imports neither torch nor
diffusers.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from diffuseg.backbones.catalog import KNOWN as KNOWN
    from diffuseg.backbones.catalog import KnownModel as KnownModel
    from diffuseg.backbones.catalog import ModelRow as ModelRow
    from diffuseg.backbones.catalog import list_models as list_models
    from diffuseg.backbones.loading import load as load
    from diffuseg.backbones.protocols import Diffusion as Diffusion
    from diffuseg.backbones.protocols import Features as Features
    from diffuseg.backbones.protocols import TextEmbedding as TextEmbedding
    from diffuseg.backbones.protocols import VideoDiffusion as VideoDiffusion
    from diffuseg.backbones.sampling import seeded_noise as seeded_noise
    from diffuseg.backbones.sd import StableDiffusion as StableDiffusion
    from diffuseg.backbones.svd import StableVideoDiffusion as StableVideoDiffusion
    from diffuseg.backbones.vit import VisionTransformer as VisionTransformer
    from diffuseg.backbones.vit import load_vit as load_vit

_HOME = {
    "KNOWN": "catalog",
    "KnownModel": "catalog",
    "ModelRow": "catalog",
    "list_models": "catalog",
    "load": "loading",
    "Diffusion": "protocols",
    "Features": "protocols",
    "TextEmbedding": "protocols",
    "VideoDiffusion": "protocols",
    "seeded_noise": "sampling",
    "StableDiffusion": "sd",
    "StableVideoDiffusion": "svd",
    "VisionTransformer": "vit",
    "load_vit": "vit",
}
__all__ = [
    "KNOWN",
    "Diffusion",
    "Features",
    "KnownModel",
    "ModelRow",
    "StableDiffusion",
    "StableVideoDiffusion",
    "TextEmbedding",
    "VideoDiffusion",
    "VisionTransformer",
    "list_models",
    "load",
    "load_vit",
    "seeded_noise",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
