"""The models a method runs on: found by name, loaded once, kept."""

import os
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from diffuseg.backbones import (
    KNOWN,
    Diffusion,
    Features,
    StableDiffusion,
    VideoDiffusion,
    load,
    load_vit,
)
from diffuseg.backbones.captioner import load_captioner
from diffuseg.backbones.catalog import lookup
from diffuseg.backbones.clip import Clip, load_clip
from diffuseg.backbones.folder import denoises_masks, sees_frames
from diffuseg.errors import InputError, WeightsError
from diffuseg.methods.needs import Backbone

MODEL_VARIABLE = "DIFFUSEG_MODEL"
"""Environment variable that names the diffusion model used when none is given."""

CAPTIONER = "Salesforce/blip-image-captioning-base"
"""What writes captions for models that come without a captioner of their own (the paper's)."""

CLIP = "openai/clip-vit-base-patch16"
"""What tells which classes an image shows for models that come without a CLIP of their own."""

VIT = "facebook/dino-vitb8"
"""Whose keys tell parts of pictures apart for models that come without a ViT of their own."""

MASKS = "mini-seg"
"""What denoises masks where no such model is named."""

Kind = Literal["diffusion", "base", "vit", "captioner", "clip"]

_LOADERS: dict[str, Callable[..., Any]] = {
    "diffusion": load,
    "base": load,
    "vit": load_vit,
    "captioner": load_captioner,
    "clip": load_clip,
}
_ARTICLES: dict[str, str] = {"diffusion": "a diffusion model", "vit": "a vision transformer"}


class ModelCache:
    """The models this process has loaded by name, the latest `limit` of each kind.

    `segment(..., model="sd1.5")` in a loop must not read gigabytes every time. Only names are kept
    here; a model you loaded yourself is yours.

    Example:
        >>> cache = ModelCache(limit=1)
        >>> len(cache)
        0
    """

    def __init__(self, limit: int = 1) -> None:
        self.limit = limit
        self._models: OrderedDict[tuple[Kind, str, str | None], object] = OrderedDict()

    def __len__(self) -> int:
        return len(self._models)

    def get(
        self,
        name: str,
        *,
        kind: Kind = "diffusion",
        device: str | None = None,
        offline: bool | None = None,
    ) -> Any:
        """Return the model of that name on that device, loading it if it is not there."""
        key = (kind, name, device)
        if key not in self._models:
            same = [one for one in self._models if one[0] == kind]
            for old in same[: len(same) - self.limit + 1]:
                del self._models[old]
            self._models[key] = _LOADERS[kind](name, device=device, offline=offline)
        self._models.move_to_end(key)
        return self._models[key]

    def clear(self) -> None:
        """Forget all models, so that their memory can be freed."""
        self._models.clear()


loaded = ModelCache()
"""What `segment` and `build_segmenter` keep of models named by text; `loaded.clear()` frees it."""


def find_model(
    model: object = None,
    *,
    backbone: Backbone | Literal["video"] = "diffusion",
    device: str | None = None,
    offline: bool | None = None,
) -> Any:
    """Return a model from a name, hub id or folder, or the model itself.

    Args:
        model: None means "mini" or, of diffusion models, the one that the environment variable
            DIFFUSEG_MODEL names; of those that denoise masks, "mini-seg".
        backbone: What it must be: "diffusion", "vit" or "masks", see `backbone_of`. "video": what
            segments videos, Stable Diffusion or Stable Video Diffusion.
        device: Where a named model is loaded, such as "cpu" or "cuda:1".
        offline: Never use the network.

    Raises:
        InputError: No such model, not a model, or one of the other kind.
        WeightsError: The weights are not to be had.
    """
    if model is None:
        named = os.environ.get(MODEL_VARIABLE) if backbone in ("diffusion", "video") else None
        model = named or (MASKS if backbone == "masks" else "mini")
    if isinstance(model, str | os.PathLike):
        _check_name(model, backbone)
        kind = "vit" if backbone == "vit" else "diffusion"
        model = loaded.get(os.fspath(model), kind=kind, device=device, offline=offline)
    is_video = isinstance(model, VideoDiffusion)
    wanted = ("unet", "encode", "embed", "denoise")
    is_diffusion = is_video or all(hasattr(model, name) for name in wanted)
    is_vit = not is_diffusion and isinstance(model, Features)
    if not is_diffusion and not is_vit:
        raise InputError(
            "the model must be a name, a hub id, a folder or a loaded model",
            got=type(model).__name__,
            remedy='pass "mini", or the result of diffuseg.load()',
        )
    for_masks = is_diffusion and getattr(model, "denoises_masks", False)
    if backbone == "masks" and not for_masks:
        raise _draws_no_masks(repr(model))
    if is_vit != (backbone == "vit"):
        raise _other_kind(backbone, repr(model))
    if for_masks and backbone != "masks":
        raise _only_masks(repr(model), getattr(model, "base", None))
    if is_video and backbone == "diffusion":
        raise _reads_no_words(repr(model))
    return model


def find_captioner(captioner: object, model: object, *, offline: bool | None = None) -> Any:
    """Return what writes captions: something with a method `caption`, or a function.

    Args:
        captioner: A name, hub id or folder; a loaded captioner; or a function from a list of images
            to a list of texts. None: the one that comes with the model, else `CAPTIONER`.
        model: Whose folder may have one, and on whose device it shall run.
        offline: Never use the network.

    Raises:
        InputError: Nothing of the kind.
        WeightsError: Its weights are not to be had.
    """
    captioner = _own_companion("captioner", model) or CAPTIONER if captioner is None else captioner
    if isinstance(captioner, str | os.PathLike):
        device = str(getattr(model, "device", "cpu"))
        try:
            captioner = loaded.get(
                os.fspath(captioner), kind="captioner", device=device, offline=offline
            )
        except WeightsError as error:
            remedy = f"{error.remedy}; or give a caption, or classes"
            raise WeightsError(error.expected, got=error.got, remedy=remedy) from error
    if not callable(getattr(captioner, "caption", captioner)):
        raise InputError(
            "the captioner must be a name, a loaded captioner or a function",
            got=repr(captioner),
            remedy=f'leave it out, or pass "{CAPTIONER}" or lambda images: [...]',
        )
    return captioner


def find_clip(clip: object, model: object, *, offline: bool | None = None) -> Clip:
    """Return the CLIP pair that names are compared with images by.

    Args:
        clip: A name, hub id or folder, or a loaded pair. None: the one that comes with the model,
            else `CLIP`.
        model: Whose folder may have one, and on whose device it shall run.
        offline: Never use the network.

    Raises:
        InputError: Nothing of the kind.
        WeightsError: Its weights are not to be had.
    """
    clip = _own_companion("clip", model) or CLIP if clip is None else clip
    if isinstance(clip, str | os.PathLike):
        device = str(getattr(model, "device", "cpu"))
        return loaded.get(os.fspath(clip), kind="clip", device=device, offline=offline)
    if not isinstance(clip, Clip):
        raise InputError(
            "CLIP must be a name, a hub id, a folder or a loaded pair",
            got=repr(clip),
            remedy=f'leave it out, or pass "{CLIP}"',
        )
    return clip


def find_vit(vit: object, model: object, *, offline: bool | None = None) -> Features:
    """Return the vision transformer that goes with a diffusion model.

    Args:
        vit: A name, hub id or folder, or a loaded network. None: the one that comes with the model,
            else `VIT`.
        model: Whose folder may have one, and on whose device it shall run.
        offline: Never use the network.

    Raises:
        InputError: Nothing of the kind.
        WeightsError: Its weights are not to be had.
    """
    named = _own_companion("vit", model) or VIT if vit is None else vit
    device = str(getattr(model, "device", "cpu"))
    return find_model(named, backbone="vit", device=device, offline=offline)


def find_base(model: StableDiffusion) -> StableDiffusion:
    """Return the model that an adapter changes, as it was, on the adapter's device.

    Args:
        model: Loaded from an adapter's folder.

    Raises:
        InputError: It is none, or its base is not what it was.
        WeightsError: The weights of its base are not to be had.
    """
    if model.base is None:
        raise InputError(
            "the attention of a base model takes an adapter, which says what it was made from",
            got=f"{model_name(model)}, a whole model",
            remedy="leave attention out, or train with weights=lora",
        )
    name = "mini" if model.base == "embedded" else model.base
    _check_name(name, "diffusion")
    return loaded.get(name, kind="base", device=str(model.device))


def _own_companion(part: str, model: object) -> str | None:
    """The name of the companion that lies in a model's own folder, if one does."""
    # Those of the model that an adapter changes are as good.
    for source in (getattr(model, "source", None), getattr(model, "base", None)):
        if source == "embedded":
            return "mini"
        if source and (Path(str(source)) / part / "config.json").is_file():
            return str(source)
    return None


def model_name(model: Diffusion | VideoDiffusion | Features) -> str:
    """Return a model's name, with the source of its weights where that says more.

    Example:
        >>> model_name(load("mini"))  # doctest: +SKIP
        'mini (embedded)'
    """
    return model.name if model.source == model.name else f"{model.name} ({model.source})"


def _check_name(name: str | os.PathLike[str], backbone: Backbone | Literal["video"]) -> None:
    """Refuse what is plainly of the other kind, before a loader says what it lacks."""
    folder = Path(name).expanduser()
    whole = (folder / "model_index.json").is_file()
    part = (folder / "config.json").is_file() and not whole
    alone = whole and not (folder / "vit").is_dir()
    if backbone != "vit" and part:
        raise _other_kind(backbone, str(name))
    known = lookup(name) if isinstance(name, str) else None
    if backbone == "diffusion" and (known.video if known else sees_frames(folder)):
        raise _reads_no_words(str(name))
    if known or (folder / "diffuseg.json").is_file() or whole:
        for_masks = known.masks if known else denoises_masks(folder)
        if backbone == "masks" and not for_masks:
            raise _draws_no_masks(str(name))
        if for_masks and backbone in ("diffusion", "video"):
            raise _only_masks(str(name), known.base if known else None)
    if backbone == "vit" and (alone or (name in KNOWN and name != "mini")):
        raise _other_kind(backbone, str(name))


def _reads_no_words(got: str) -> InputError:
    return InputError(
        "the model must be one of images, which reads words",
        got=f"{got}, a Stable Video Diffusion",
        remedy='use "mini", "sd1.5" or the folder of one; this model segments videos '
        "(segment_video, diffuseg video)",
    )


def _draws_no_masks(got: str) -> InputError:
    return InputError(
        "the model must be one that was made to denoise masks",
        got=got,
        remedy=f'use "{MASKS}", or the folder of one that was trained for it; a plain model '
        'segments with other methods, such as "attend"',
    )


def _only_masks(got: str, base: str | None) -> InputError:
    return InputError(
        "the model must be one that draws pictures",
        got=f"{got}, which was made to denoise masks",
        remedy='use method="segdiffusion" with it, or here its base model'
        + (f" ({base})" if base else ""),
    )


def _other_kind(backbone: Backbone | Literal["video"], got: str) -> InputError:
    named = '"mini", "facebook/dino-vitb8"' if backbone == "vit" else '"mini", "sd1.5"'
    methods = "diffseg, attend" if backbone == "vit" else "dinoseg"
    article = _ARTICLES["vit" if backbone == "vit" else "diffusion"]
    return InputError(
        f"the method runs on {article}",
        got=got,
        remedy=f"use such a model ({named} or a folder), or another method ({methods})",
    )
