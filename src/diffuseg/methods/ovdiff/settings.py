"""OVDiff's settings: what a bank is built with, how pictures are matched, and its variants."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import ClassVar, Literal, NoReturn, get_args

from diffuseg.attention import AttentionRecord
from diffuseg.errors import InputError
from diffuseg.methods.needs import Model, Needs
from diffuseg.methods.settings import check_settings, given, with_preset

Profile = Literal["default", "release", "paper"]
Extracts = Literal["sd", "dino", "clip", "clip-tokens", "mae"]
PrototypeKind = Literal["class", "instance", "part"]

NEGATIVE_PROMPT = "text, low quality, blurry, cartoon, meme, low resolution, bad, poor, faded"
SD_LAYERS = (
    "down_blocks.0.attentions.0.*",
    "mid_block.attentions.0.*",
    "up_blocks.1.*",
    "up_blocks.2.*",
    "up_blocks.3.attentions.2.*",
)
"""The cross-attention layers whose queries are features: 7680 channels for SD 1.x (section 3.1)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OVDiff:
    """Masks from pictures that the model draws of every class (Karazija and others, 2023).

    A field that is None takes the value of the model's preset, else the profile's. The fields up to
    `prototype_seed` decide what is in a bank; the others only how pictures are matched.

    Attributes:
        profile: "default": what the authors' code does, without its defects. "release": with
            those that change numbers. "paper": as printed. "default".
        number: Pictures drawn of a class, N. 32.
        template: Prompt a picture is drawn from. "A good picture of a {}".
        negative: What it is steered away from.
        guidance: Strength of classifier-free guidance. 8.
        steps: Of the sampler. 30.
        scheduler: A diffusers scheduler. "DPMSolverMultistep".
        seed: Of the first picture of every class. 42.
        size: Side of the pictures, pixels; the model's own.
        proposals: What proposes masks: "maskcut" (normalised cuts of ViT keys), "given" (a function
            of yours, see `build_bank`) or "none", then the
            attribution is thresholded. "maskcut".
        mask_rule: Among proposals: "paper" takes those of largest and smallest mean attribution
            whole; "release" lets them overlap and gates the background.
        fallback: Without proposals, or where there are none: "otsu" (two thresholds of Otsu's over
            all pictures of a class) or "fixed" (0.5 and 0.2).
        cut_threshold: Least cosine of neighbours in MaskCut. 0.15.
        cuts: Masks MaskCut looks for. 3.
        cut_size: Side of the picture MaskCut sees; 480, brought to whole patches.
        extractors: Features compared, their similarities averaged: "sd" (queries of
            cross-attention), "dino" and "mae" (keys of a ViT), "clip" (keys of the last layer but
            one), "clip-tokens" (its output). sd, dino, clip.
        dino, clip, mae: What "dino", "clip" and "mae" are: names, hub ids or folders. Those that
            come with the model, else facebook/dino-vitb8, openai/clip-vit-base-patch16 and
            facebook/vit-mae-base.
        layers: Patterns on the paths of the layers of "sd".
        vit_layer: Layer of "dino" and "mae", from 0 or, backwards, -1. -1.
        clip_layer: Layer of "clip". -2.
        vit_zoom: How much larger "dino" and "mae" see a picture of `side` than the pictures their
            positions were learned at. 2 (448 where it was 224).
        clip_zoom: The same for "clip", of windows. 2.
        timestep: Noise of "sd". 200.
        noise_seed: Of that noise, the same for every picture. 43.
        parts: Part prototypes of a class and sign, K. 32.
        prototype_seed: Of k-means. 0.
        kinds: Prototypes compared. All three.
        background: "prototypes": the classes' negatives are a class of their own. "threshold":
            background is where no class reaches `threshold`. "none": every pixel has a class.
        threshold: For "threshold". 0.72.
        stuff_threshold: Negatives more alike than this to a positive of stuff are left out; 1
            leaves none out. 0.85.
        prefilter: Classes CLIP does not see are left out: "release", "paper" or "none".
        candidates: How many at most go into its subsets, eta. 10.
        side: Shorter side a picture is brought to, pixels. 448.
        crops: Sides of the windows. 448, 336.
        stride: Pixels from window to window. 224.
        whole: Whether the whole picture is one more window.
        pamr: Iterations of pixel-adaptive refinement. 0.
        bank: Folder of the classes' prototypes, see `build_bank`. One in the user's cache, to which
            classes are added as they are asked for.

    Raises:
        InputError: A setting is out of range.

    Example:
        >>> OVDiff(profile="paper").ready().mask_rule
        'paper'
    """

    profile: Profile | None = None
    number: int | None = None
    template: str | None = None
    negative: str | None = None
    guidance: float | None = None
    steps: int | None = None
    scheduler: str | None = None
    seed: int | None = None
    size: int | None = None
    proposals: Literal["maskcut", "given", "none"] | None = None
    mask_rule: Literal["release", "paper"] | None = None
    fallback: Literal["fixed", "otsu"] | None = None
    cut_threshold: float | None = None
    cuts: int | None = None
    cut_size: int | None = None
    extractors: tuple[Extracts, ...] | None = None
    dino: str | None = None
    clip: str | None = None
    mae: str | None = None
    layers: tuple[str, ...] | None = None
    vit_layer: int | None = None
    clip_layer: int | None = None
    vit_zoom: float | None = None
    clip_zoom: float | None = None
    timestep: int | None = None
    noise_seed: int | None = None
    parts: int | None = None
    prototype_seed: int | None = None
    kinds: tuple[PrototypeKind, ...] | None = None
    background: Literal["prototypes", "threshold", "none"] | None = None
    threshold: float | None = None
    stuff_threshold: float | None = None
    prefilter: Literal["release", "paper", "none"] | None = None
    candidates: int | None = None
    side: int | None = None
    crops: tuple[int, ...] | None = None
    stride: int | None = None
    whole: bool | None = None
    pamr: int | None = None
    bank: str | None = None

    chooses: ClassVar[bool] = True
    """Whether the method says itself which classes of a vocabulary a picture shows."""

    def __post_init__(self) -> None:
        least = {"number": 1, "steps": 1, "seed": 0, "size": 32, "cuts": 1, "cut_size": 32}
        least |= {"timestep": 0, "noise_seed": 0, "parts": 1, "candidates": 1, "side": 32}
        least |= {"stride": 1, "pamr": 0, "guidance": 0}
        held = {one.name: getattr(self, one.name) for one in fields(self)}
        for name in ("cut_threshold", "threshold", "stuff_threshold"):
            value = held[name]
            fine = value is None or (math.isfinite(value) and -1 <= value <= 1)
            check_settings((fine, f"{name} must lie in [-1, 1]", value))
        check_settings(
            *((held[name] is None or 0.1 <= held[name] <= 16,
               f"{name} must be 0.1 to 16", held[name]) for name in ("vit_zoom", "clip_zoom")),
            *((held[name] is None or held[name] >= low, f"{name} must be {low} or more", held[name])
              for name, low in least.items()),
            (self.crops is None or min(self.crops, default=0) >= 32,
             "crops must be 32 or more", self.crops),
            (self.template is None or "{}" in self.template,
             "template must have {} where the name goes", self.template),
            *((held[name] is None or len(set(held[name])) == len(held[name]) > 0,
               f"{name} must be some, none of them twice", held[name])
              for name in ("extractors", "kinds", "crops")),
        )  # fmt: skip

    def ready(self, preset: Mapping[str, object] | None = None) -> "OVDiff":
        """Return the settings with nothing left open but `size` and the networks.

        Args:
            preset: The model's, as `model.preset["ovdiff"]`.

        Raises:
            InputError: The preset has something that is no setting.
        """
        filled = with_preset(self, preset or {})
        profile = filled.profile or "default"
        return with_preset(filled, {**_RELEASE, **PROFILES[profile], "profile": profile})

    def needs(self, model: Model) -> Needs:
        """What is looked at in a picture's windows: a method that is given names."""
        chosen = self.ready(model.preset.get("ovdiff"))
        return Needs(
            timesteps=(given(chosen.timestep),), kinds=("cross",), layers=given(chosen.layers)
        )

    def __call__(self, record: AttentionRecord, *, scores: bool = False) -> NoReturn:
        """Refuse: windows of a picture are compared with a bank, a record has neither.

        Raises:
            InputError: Always.
        """
        raise InputError(
            "OVDiff works from pictures and a bank of classes",
            got="a record of attention",
            remedy='use segment(image, classes, method="ovdiff"), or build_segmenter',
        )


_RELEASE: Mapping[str, object] = {
    "number": 32,
    "template": "A good picture of a {}",
    "negative": NEGATIVE_PROMPT,
    "guidance": 8.0,
    "steps": 30,
    "scheduler": "DPMSolverMultistep",
    "seed": 42,
    "proposals": "maskcut",
    "mask_rule": "release",
    "fallback": "fixed",
    "cut_threshold": 0.15,
    "cuts": 3,
    "cut_size": 480,
    "extractors": ("sd", "dino", "clip"),
    "layers": SD_LAYERS,
    "vit_layer": -1,
    "clip_layer": -2,
    "vit_zoom": 2.0,
    "clip_zoom": 2.0,
    "timestep": 200,
    "noise_seed": 43,
    "parts": 32,
    "prototype_seed": 0,
    "kinds": get_args(PrototypeKind),
    "background": "prototypes",
    "threshold": 0.72,
    "stuff_threshold": 0.85,
    "prefilter": "release",
    "candidates": 10,
    "side": 448,
    "crops": (448, 336),
    "stride": 224,
    "whole": True,
    "pamr": 0,
}

PROFILES: Mapping[Profile, Mapping[str, object]] = {
    "default": {},
    "release": {},
    "paper": {"mask_rule": "paper", "fallback": "otsu", "prefilter": "paper", "whole": False},
}
"""What profiles set beside the values all share; "release" also keeps defects of the code."""

ABLATIONS: Mapping[str, Mapping[str, object]] = {
    "full": {},
    "w/o bg prototypes": {"background": "threshold"},
    "w/o category filter": {"prefilter": "none"},
    "w/o stuff filter": {"stuff_threshold": 1.0},
    "w/o proposals": {"proposals": "none", "fallback": "otsu"},
    "w/o sliding window": {"crops": (448,), "stride": 448, "whole": True},
    "only class average": {"kinds": ("class",)},
}
"""The rows of Table A.1: what each changes."""
