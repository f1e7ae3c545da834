"""Seg-diffusion's settings: how a fine-tuned model is asked for the masks of classes."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import ClassVar, Literal, NoReturn

from diffuseg.attention import AttentionRecord
from diffuseg.errors import InputError
from diffuseg.methods.needs import Backbone, Model, Needs
from diffuseg.methods.segdiffusion.ensemble import Reduction
from diffuseg.methods.segdiffusion.schedule import Spacing, spaced_timesteps
from diffuseg.methods.settings import check_settings, given, with_preset

Profile = Literal["default", "quality", "paper", "one-step"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SegDiffusion:
    """Masks denoised like pictures, one class after the other (the seed paper's Seg-diffusion).

    A field that is None takes the value of the model's preset, else the profile's.

    Attributes:
        profile: "default": few steps, one run. "quality": 10 steps, 10 runs. "paper": 50 steps, 10
            runs. "one-step": for models trained end to end, from zeros. "default".
        steps: Calls of the network a run. 4.
        runs: Masks of a class that are pooled, each from noise of its own. 1.
        reduction: How: "mean"; "median"; "legacy": see `pool_runs`. "mean".
        spacing: Which timesteps: "trailing", "leading" or "linspace". "trailing".
        start: What masks begin as: "noise", or "zeros" with a single step. "noise".
        seed: Of the noise. 0.
        side: Longer side a picture is brought to, pixels; the model's own.
        template: The prompt of a class. "a photo of a {}".
        names: Of a class with several: "first", or "all", each asked for and the highest counting.
            "first".
        background: "threshold": where no class has `threshold`. "none": every pixel has a class.
            "threshold".
        threshold: The share needed. 0.5.
        learned: Names the model was shown masks of; the model's own.
        attention: Share that the cross-attention of the base model has in the score of a name, 0
            to 1; its mask has the rest (a frozen model beside the trained one, as in FC-CLIP: Yu et
            al. 2023, arXiv 2308.02487, there geometric). 0.
        attention_new: The same for names that are none of `learned`. As `attention`.
        batch: Masks denoised at once, which changes nothing but time and memory. 8.

    Raises:
        InputError: A setting is out of range, or does not go with another.

    Example:
        >>> SegDiffusion(runs=4).ready({"steps": 10}).steps
        10
    """

    profile: Profile | None = None
    steps: int | None = None
    runs: int | None = None
    reduction: Reduction | None = None
    spacing: Spacing | None = None
    start: Literal["noise", "zeros"] | None = None
    seed: int | None = None
    side: int | None = None
    template: str | None = None
    names: Literal["first", "all"] | None = None
    background: Literal["threshold", "none"] | None = None
    threshold: float | None = None
    learned: tuple[str, ...] | None = None
    attention: float | None = None
    attention_new: float | None = None
    batch: int | None = None

    backbone: ClassVar[Backbone] = "masks"
    chooses: ClassVar[bool] = True
    """Whether the method says itself which classes of a vocabulary a picture shows."""

    def __post_init__(self) -> None:
        held = {one.name: getattr(self, one.name) for one in fields(self)}
        least = {"steps": 1, "runs": 1, "seed": 0, "side": 32, "batch": 1}
        told = self.template
        check_settings(
            *((held[name] is None or held[name] >= low, f"{name} must be {low} or more", held[name])
              for name, low in least.items()),
            *((held[name] is None or 0 <= held[name] <= 1, f"{name} must lie in [0, 1]", held[name])
              for name in ("threshold", "attention", "attention_new")),
            (told is None or told.count("{}") == 1,
             "template must have {} once, where the name goes", told),
            (self.start != "zeros" or self.steps in (None, 1),
             "what begins at zeros must have a single step", self.steps),
            (self.start != "zeros" or self.runs in (None, 1),
             "what begins at zeros must have a single run, as all would be the same", self.runs),
        )  # fmt: skip

    def ready(self, preset: Mapping[str, object] | None = None) -> "SegDiffusion":
        """Return the settings with nothing left open but `side` and `learned`.

        Args:
            preset: The model's, as `model.preset["segdiffusion"]`. A profile asked for comes before
                it.

        Raises:
            InputError: The preset has something that is no setting.

        Example:
            >>> SegDiffusion(profile="one-step").ready().start
            'zeros'
        """
        asked = PROFILES[self.profile] if self.profile else {}
        filled = with_preset(with_preset(self, asked), preset or {})
        profile = filled.profile or "default"
        filled = with_preset(filled, {**_SHARED, **PROFILES[profile], "profile": profile})
        return with_preset(filled, {"attention_new": filled.attention})

    def needs(self, model: Model) -> Needs:
        """At which timesteps the network is asked, and how: a method that is given names."""
        chosen = self.ready(model.preset.get("segdiffusion"))
        return Needs(
            timesteps=spaced_timesteps(given(chosen.steps), spacing=chosen.spacing or "trailing"),
            kinds=("cross",),
            prompt="per_class",
            template=given(chosen.template),
        )

    def __call__(self, record: AttentionRecord, *, scores: bool = False) -> NoReturn:
        """Refuse: masks are denoised, attention does not say how.

        Raises:
            InputError: Always.
        """
        raise InputError(
            "Seg-diffusion denoises masks beside a picture",
            got="a record of attention",
            remedy='use segment(image, classes, method="segdiffusion"), or build_segmenter',
        )


PROFILES: Mapping[Profile, Mapping[str, object]] = {
    "default": {},
    "quality": {"steps": 10, "runs": 10, "start": "noise"},
    "paper": {"steps": 50, "runs": 10, "start": "noise"},
    "one-step": {"steps": 1, "runs": 1, "start": "zeros"},
}
"""What profiles set beside the values all share."""

_SHARED: Mapping[str, object] = {
    "steps": 4,
    "runs": 1,
    "reduction": "mean",
    "spacing": "trailing",
    "start": "noise",
    "seed": 0,
    "template": "a photo of a {}",
    "names": "first",
    "background": "threshold",
    "threshold": 0.5,
    "attention": 0.0,
    "batch": 8,
}
