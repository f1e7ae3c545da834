"""Which methods segment videos, and their settings made ready for a model and what it is told."""

from collections.abc import Mapping
from dataclasses import replace

from diffuseg.backbones import Diffusion, VideoDiffusion
from diffuseg.errors import InputError
from diffuseg.methods.settings import with_preset
from diffuseg.methods.vidseg import EMERDIFF, VidSeg
from diffuseg.models import find_model, model_name
from diffuseg.video.seeing import check_model, kind_of, stride

VIDEO_METHODS: Mapping[str, Mapping[str, object]] = {"vidseg": {}, "emerdiff": EMERDIFF}
"""What segments videos, by the name users type, with what it changes of VidSeg's settings."""


def ready_for(
    model: Diffusion | VideoDiffusion,
    settings: VidSeg,
    method: str,
    anchor: object,
    classes: object,
    clusters: int | None,
) -> VidSeg:
    """Return settings with nothing left open.

    What is open comes from the model's preset, the method, the paper, in that order.

    Raises:
        InputError: Settings do not go together, with what is given, or with the model.
    """
    naming = "clusters" if anchor is None else "anchor"
    if classes is not None:
        naming = "text"
    if clusters is not None:
        if settings.clusters not in (None, clusters):
            raise InputError(
                "the number of clusters must be given once",
                got=f"{clusters} and {settings.clusters}",
                remedy="leave one of them out",
            )
        settings = replace(settings, clusters=clusters)
    # What needs a mask cannot be if none was given; one that was has to be looked at.
    fits = {"clusters": ("clusters",), "anchor": ("anchor", "mask"), "text": ("text", "mask")}
    preset = model.preset.get(method, {})
    if settings.naming is None:
        found = preset.get("naming")
        settings = with_preset(settings, {"naming": found if found in fits[naming] else naming})
    if settings.naming not in fits[naming]:
        raise InputError(
            f"naming must be {' or '.join(fits[naming])} with what is given",
            got=settings.naming,
            remedy="leave it out; give a mask as anchor, words as classes",
        )
    chosen = settings
    for source in (preset, VIDEO_METHODS[method]):
        changes = dict(source)
        if chosen.steps is not None and isinstance(step := changes.get("modulate_step"), int):
            # The same noise whatever the number of steps.
            changes["modulate_step"] = min(chosen.steps - 1, round(step / 25 * chosen.steps))
        chosen = with_preset(chosen, changes)
    chosen = with_preset(chosen, {"multiple": min(64, stride(model))})
    chosen = chosen.ready(kind_of(model))
    check_model(model, chosen)
    return chosen


def word_reader(model: Diffusion | VideoDiffusion, namer_model: object) -> object:
    """Return the model that finds words.

    Raises:
        InputError: The model reads none, and no other is named.
    """
    if namer_model is not None:
        return find_model(namer_model, device=str(model.device))
    if isinstance(model, VideoDiffusion):
        raise InputError(
            "words need a model that reads them",
            got=f"{model_name(model)}, a Stable Video Diffusion",
            remedy='name one that does, such as namer_model="mini" (--namer-model mini)',
        )
    return model
