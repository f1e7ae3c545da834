"""What a method says it needs recorded, and what a method is."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Literal, Protocol, runtime_checkable

from torch import nn

from diffuseg.attention import AttentionRecord
from diffuseg.errors import InputError
from diffuseg.methods.dialects import Dialect
from diffuseg.methods.wording import Reading
from diffuseg.prompts import TEMPLATE
from diffuseg.result import Segmentation

Prompting = Literal["empty", "joint", "per_class", "caption", "caption_and_empty"]
Backbone = Literal["diffusion", "vit", "masks"]
"""What a method runs on: a text-to-image model, a vision transformer, or a text-to-image model that
was made to denoise masks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """What to run and what to record so that a method can work from the record alone.

    Attributes:
        timesteps: Noise levels; the U-Net is called once at each.
        kinds: Kinds of attention, of "self", "cross", "temporal".
        layers: Patterns on layer names.
        levels: Latent side divided by the layer's grid side; None: all.
        heads: Heads, by number; None: all.
        features: Modules whose outputs are kept.
        prompt: "empty": no text. "joint": all classes in one prompt, or in as few as fit.
            "per_class": one prompt a class. "caption": a caption of the image and its nouns, or the
            classes in one prompt if there are some. "caption_and_empty": the empty prompt as well.
        template: The prompt, with {} for the classes.
        continued: Whether a captioner continues the prompt of every class; with "per_class".
        reading: Which tokens of a prompt stand for its class, see `wording`; with "per_class".
        dialect: How classes are called in prompts, and which of their tokens count; with "joint".
        background: Words recorded beside the user's classes, as one class named "background".
        noise: Whether noise is added at the timestep, or the clean latents are shown.
        picture: Whether the picture itself is kept beside its attention.
        emphasis: How strongly some tokens of a prompt count, w; 1 leaves them alone.
        emphasis_on: "classes": the tokens that name classes (the nouns, with a caption). "start":
            the start token.
        emphasis_rule: What w does to a token's vector z. "blend": e + w (z - e), e being the empty
            prompt's at its place. "scale": w z, and so keys and values of every layer. "key": the
            vector stays, and its keys are multiplied by w.

    Raises:
        InputError: The emphasis is negative or not finite.

    Example:
        >>> Needs(timesteps=(100,), kinds=("cross",)).prompt
        'joint'
    """

    timesteps: tuple[int, ...]
    kinds: tuple[str, ...]
    layers: str | tuple[str, ...] = "*"
    levels: tuple[int, ...] | None = None
    heads: tuple[int, ...] | None = None
    features: tuple[str, ...] = ()
    prompt: Prompting = "joint"
    template: str = TEMPLATE
    continued: bool = False
    reading: Reading = "words"
    dialect: Dialect | None = None
    background: tuple[str, ...] = ()
    noise: bool = True
    picture: bool = False
    emphasis: float = 1.0
    emphasis_on: Literal["classes", "start"] = "classes"
    emphasis_rule: Literal["blend", "scale", "key"] = "blend"

    def __post_init__(self) -> None:
        if not (isfinite(self.emphasis) and self.emphasis >= 0):
            raise InputError(
                "emphasis must be a number of 0 or more",
                got=self.emphasis,
                remedy="1 changes nothing, 1.21 stresses the class words",
            )
        if self.prompt != "per_class" and (self.continued or self.reading != "words"):
            raise InputError(
                "prompts are continued, and read by a profile, where each has one class",
                got=f"prompt={self.prompt!r}",
                remedy='use prompt="per_class"',
            )


@runtime_checkable
class Model(Protocol):
    """As much of a diffusion model as a method may look at to say what it needs."""

    @property
    def unet(self) -> nn.Module: ...
    @property
    def preset(self) -> Mapping[str, Mapping[str, object]]: ...


def backbone_of(method: object) -> Backbone:
    """Return what a method runs on: what its class says as `backbone`, else a diffusion model.

    Example:
        >>> from diffuseg.methods import Attend
        >>> backbone_of(Attend())
        'diffusion'
    """
    return getattr(method, "backbone", "diffusion")


@runtime_checkable
class Method(Protocol):
    """A frozen dataclass of hyper-parameters that turns a record into a segmentation."""

    def needs(self, model: Model) -> Needs:
        """What must be recorded; settings left open come from the model's preset."""
        ...

    def __call__(self, record: AttentionRecord, *, scores: bool = False) -> Segmentation:
        """The segmentation, at the size of the user's image; with the score maps on request."""
        ...
