"""A model that denoises masks found, its settings checked, and both made a segmenter."""

import logging
from dataclasses import replace

from diffuseg.backbones import StableDiffusion
from diffuseg.errors import InputError
from diffuseg.methods.attend import Attend
from diffuseg.methods.segdiffusion import SegDiffusion
from diffuseg.methods.segdiffusion.schedule import ddim_schedule
from diffuseg.methods.settings import given
from diffuseg.models import find_base, find_model, model_name
from diffuseg.prompts import parse_classes
from diffuseg.segdiffusion.levels import noise_levels
from diffuseg.segdiffusion.segmenter import MaskSegmenter
from diffuseg.segmenter import Segmenter

log = logging.getLogger(__name__)


def open_segmenter(
    model: object = None,
    settings: SegDiffusion | None = None,
    classes: object = None,
    *,
    keep_scores: bool = False,
) -> MaskSegmenter:
    """Return a callable that segments images by denoising masks, everything checked beforehand.

    Args:
        model: A name, hub id or folder, or a loaded model, of those that denoise masks. None: the
            embedded one.
        settings: Of the method; what is left open is as the model's preset says.
        classes: What to look for: "car, tree", or a list. None: every call names its own.
        keep_scores: Whether results carry the mask of every class before the decision.

    Raises:
        InputError: No such model or class, or the settings do not go with the model.
        WeightsError: The model's weights are not to be had.

    Example:
        >>> find = open_segmenter("mini-seg", classes="ball, grass")  # doctest: +SKIP
        >>> find("ball.png").names  # doctest: +SKIP
        ('background', 'ball', 'grass')
    """
    held: StableDiffusion = find_model(model, backbone="masks")
    method = (settings or SegDiffusion()).ready(held.preset.get("segdiffusion"))
    method = replace(method, side=method.side or held.size)
    levels = noise_levels(held.scheduler)
    if method.start == "zeros" and levels.prediction == "epsilon":
        raise InputError(
            "a model must predict velocities to segment from zeros",
            got=f"{model_name(held)}, which predicts noise",
            remedy='leave start out, and profile="one-step", which sets it',
        )
    own = held.scheduler.get("timestep_spacing", "leading")
    if own != "trailing":
        log.warning(
            "%s comes with %s timesteps, of which few never see the noisiest; %s ones are used",
            *(model_name(held), own, method.spacing),
        )
    schedule = ddim_schedule(
        levels,
        given(method.steps),
        spacing=given(method.spacing),
        offset=int(str(held.scheduler.get("steps_offset", 1))),
    )
    attending = None
    if max(given(method.attention), given(method.attention_new)) > 0:
        # Maps from 0 to 1, as masks are.
        attending = Segmenter(model=find_base(held), method=Attend(normalise="minmax"))
    segmenter = MaskSegmenter(
        model=held,
        method=method,
        classes=None if classes is None else parse_classes(classes),
        keep_scores=keep_scores,
        schedule=schedule,
        attending=attending,
    )
    if segmenter.classes is not None:
        segmenter.check()
    return segmenter
