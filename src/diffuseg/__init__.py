"""Text-to-image diffusion models as segmenters: masks for any image, for the words you name.

Names are loaded when they are first used, so that `import diffuseg` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from diffuseg import ovdiff as ovdiff
    from diffuseg.api import Segmenter as Segmenter
    from diffuseg.api import build_segmenter as build_segmenter
    from diffuseg.api import capture as capture
    from diffuseg.api import segment as segment
    from diffuseg.api import segment_many as segment_many
    from diffuseg.attention import AttentionRecord as AttentionRecord
    from diffuseg.attention import estimate_bytes as estimate_bytes
    from diffuseg.attention import intervene as intervene
    from diffuseg.attention import layers_of as layers_of
    from diffuseg.attention import record as record
    from diffuseg.backbones import list_models as list_models
    from diffuseg.backbones import load as load
    from diffuseg.errors import CaptureError as CaptureError
    from diffuseg.errors import DiffusegError as DiffusegError
    from diffuseg.errors import InputError as InputError
    from diffuseg.errors import MissingExtra as MissingExtra
    from diffuseg.errors import WeightsError as WeightsError
    from diffuseg.eval.metrics import ConfusionMatrix as ConfusionMatrix
    from diffuseg.eval.runner import evaluate as evaluate
    from diffuseg.eval.sweep import sweep as sweep
    from diffuseg.image import Image as Image
    from diffuseg.image import read_image as read_image
    from diffuseg.interaction import Interaction as Interaction
    from diffuseg.interaction import interact as interact
    from diffuseg.methods import METHODS as METHODS
    from diffuseg.methods import Attend as Attend
    from diffuseg.methods import Needs as Needs
    from diffuseg.result import Region as Region
    from diffuseg.result import Segmentation as Segmentation
    from diffuseg.video.segmenter import segment_video as segment_video

_HOME = {
    "Attend": "methods",
    "AttentionRecord": "attention",
    "CaptureError": "errors",
    "ConfusionMatrix": "eval.metrics",
    "DiffusegError": "errors",
    "Image": "image",
    "InputError": "errors",
    "Interaction": "interaction",
    "METHODS": "methods",
    "MissingExtra": "errors",
    "Needs": "methods",
    "Region": "result",
    "Segmentation": "result",
    "Segmenter": "api",
    "WeightsError": "errors",
    "build_segmenter": "api",
    "capture": "api",
    "estimate_bytes": "attention",
    "evaluate": "eval.runner",
    "interact": "interaction",
    "intervene": "attention",
    "layers_of": "attention",
    "list_models": "backbones",
    "load": "backbones",
    "read_image": "image",
    "record": "attention",
    "segment": "api",
    "segment_many": "api",
    "segment_video": "video.segmenter",
    "sweep": "eval.sweep",
}

# Rooms with public names of their own: `diffuseg.ovdiff.build_bank`.
_ROOMS = ("ovdiff",)

__all__ = [
    "METHODS",
    "Attend",
    "AttentionRecord",
    "CaptureError",
    "ConfusionMatrix",
    "DiffusegError",
    "Image",
    "InputError",
    "Interaction",
    "MissingExtra",
    "Needs",
    "Region",
    "Segmentation",
    "Segmenter",
    "WeightsError",
    "build_segmenter",
    "capture",
    "estimate_bytes",
    "evaluate",
    "interact",
    "intervene",
    "layers_of",
    "list_models",
    "load",
    "read_image",
    "record",
    "segment",
    "segment_many",
    "segment_video",
    "sweep",
]


def __getattr__(name: str) -> object:
    if name == "__version__":
        from importlib.metadata import version

        return version(__name__)
    if name in _ROOMS:
        return import_module(f"{__name__}.{name}")
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, *_ROOMS, "__version__"])
