"""What a method says it needs recorded, and what a method is."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from torch import nn

from diffuseg.attention import AttentionRecord
from diffuseg.prompts import TEMPLATE
from diffuseg.result import Segmentation

Prompting = Literal["empty", "joint", "per_class", "caption", "caption_and_empty"]
Backbone = Literal["diffusion", "vit"]


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
        background: Words recorded beside the user's classes, as one class named "background".
        noise: Whether noise is added at the timestep, or the clean latents are shown.

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
    background: tuple[str, ...] = ()
    noise: bool = True


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
