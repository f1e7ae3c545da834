"""Every number of Seg-diffusion's fine-tuning, in one place.

Defaults are those of the paper's ancestor Marigold (Ke et al. 2023, arXiv 2312.02145) where the
paper is silent, and of end-to-end fine-tuning (Martin Garcia et al. 2024, arXiv 2409.11355) for a
single step; what neither has is said to be ours.
"""

from dataclasses import dataclass, replace
from typing import Literal

from diffuseg.errors import InputError
from diffuseg.methods.segdiffusion.noise import MULTIRES, WHITE, PyramidNoise
from diffuseg.train.segdiffusion.relations import read_relations

Noise = Literal["annealed", "multires", "white"]
Weights = Literal["full", "lora"]
Objective = Literal["denoise", "one-step"]

NOISES: dict[Noise, PyramidNoise] = {
    "annealed": PyramidNoise(),
    "multires": MULTIRES,
    "white": WHITE,
}
"""What masks are trained with: of several resolutions, white towards the clean end; of several
resolutions throughout; white."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SegRecipe:
    """How a model is fine-tuned.

    Attributes:
        steps: Updates of the weights.
        images: Pictures an update, over all processes and accumulated parts (Marigold: 32).
        queries: Classes asked for of a picture.
        weights: "full": the whole U-Net learns. "lora": low-rank updates of its layers
            (Hu et al. 2021, arXiv 2106.09685) and, whole, its first and last layer.
        rank: Of the updates.
        convolutions: Whether convolutions are updated too, not attention alone.
        text: Whether the layers that read prompts are, the keys and values of cross-attention:
            "learned" or "frozen". Ours.
        kept: Share of the updates that is written in the end. Less than all of them know less of
            the masks and more of words without any (Wortsman et al. 2022, arXiv 2109.01903).
        learning_rate: At its height (Marigold: 3e-5); None: 3e-5, with "lora" 1e-4.
        warmup: Steps until it is reached.
        final: What it falls to by the last step, as a share.
        weight_decay: Of AdamW.
        clip: Most the norm of a gradient may be.
        ema: Of the average of the weights, which is what is kept and measured; its memory grows
            from nothing, min(ema, (1 + n) / (10 + n)). Ours.
        objective: "denoise"; "one-step": from zeros at the last timestep, the decoded mask against
            the true one.
        prediction: What the network is to put out; None: what the base model does. A model that
            predicted noise may learn another: noise is no use for a single step.
        noise: One of `NOISES`.
        strength: Of its pyramid.
        timestep_power: Timesteps are 1000 u^power, u uniform; below 1 there is more noise. Ours.
        balanced: Whether every query counts the same in the loss.
        crop: Side of the squares cut from pictures, pixels.
        zoom: Least and greatest factor on a picture's size before.
        jitter: Most that brightness, contrast and saturation change, as a share.
        flip: Whether half of the pictures are mirrored.
        negatives: Share of queries for classes that a picture does not show. Ours.
        least: Share of a crop's known pixels that a class must have to be asked for. Ours.
        without: Classes never learned: their pictures are left out, their names never asked for.
        templates: Prompts of a class. One is drawn for every query: the first half of the time,
            one of the others else. The first is what the model is asked with in the end.
        related: What is known of names beside what is shipped, see `read_relations`: classes that
            may lie on the same pixels are never asked for as absent of each other's pictures.
        precision: Of the U-Net's arithmetic; weights are kept in single precision.
        checkpointing: Whether activations are computed again rather than kept.
        seed: Of everything drawn.

    Raises:
        InputError: A number is out of range.

    Example:
        >>> SegRecipe(weights="lora").rate
        0.0001
    """

    steps: int = 25_000
    images: int = 32
    queries: int = 4
    weights: Weights = "full"
    rank: int = 32
    convolutions: bool = False
    text: Literal["learned", "frozen"] = "learned"
    kept: float = 1.0
    learning_rate: float | None = None
    warmup: int = 100
    final: float = 0.01
    weight_decay: float = 0.01
    clip: float = 1.0
    ema: float = 0.9999
    objective: Objective = "denoise"
    prediction: Literal["epsilon", "v_prediction"] | None = None
    noise: Noise = "annealed"
    strength: float = 0.9
    timestep_power: float = 1.0
    balanced: bool = False
    crop: int = 512
    zoom: tuple[float, float] = (0.5, 2.0)
    jitter: float = 0.1
    flip: bool = True
    negatives: float = 0.25
    least: float = 0.001
    without: tuple[str, ...] = ()
    templates: tuple[str, ...] = ("a photo of a {}",)
    related: tuple[str, ...] = ()
    precision: Literal["fp32", "bf16"] = "bf16"
    checkpointing: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        positive = ("steps", "images", "queries", "rank", "crop", "timestep_power", "clip")
        for name in positive:
            if not getattr(self, name) > 0:
                raise _wrong(f"{name} must be above 0", getattr(self, name), "leave it out")
        if not 0 < self.final <= 1:
            raise _wrong("final must lie in (0, 1]", self.final, "leave it out")
        shares = ("negatives", "least", "jitter", "ema")
        for name in shares:
            if not 0 <= getattr(self, name) <= 1:
                raise _wrong(f"{name} must lie in [0, 1]", getattr(self, name), "leave it out")
        if not 0 < self.kept <= 1:
            raise _wrong("kept must lie in (0, 1]", self.kept, "leave it out")
        if self.weights == "full" and (self.kept, self.text) != (1, "learned"):
            raise _wrong(
                "kept and text are for low-rank updates",
                f"kept={self.kept}, text={self.text}, weights=full",
                "set weights=lora",
            )
        if not 0 < self.zoom[0] <= self.zoom[1]:
            raise _wrong("zoom must rise from above 0", self.zoom, "for example 0.5 to 2")
        if self.rate <= 0:
            raise _wrong("the learning rate must be above 0", self.rate, "leave it out")
        if not 0 <= self.warmup < self.steps:
            raise _wrong(
                f"warm-up must be shorter than the {self.steps} steps", self.warmup, "use a tenth"
            )
        odd = [one for one in self.templates if one.count("{}") != 1]
        if odd or not self.templates or len(set(self.templates)) < len(self.templates):
            raise _wrong(
                "templates must have {} once each, where the name goes, and differ",
                self.templates,
                'for example "a photo of a {},a {}"',
            )
        read_relations(self.related)

    @property
    def rate(self) -> float:
        """The learning rate at its height."""
        if self.learning_rate is not None:
            return self.learning_rate
        return 1e-4 if self.weights == "lora" else 3e-5

    @property
    def pyramid(self) -> PyramidNoise:
        """The noise masks are trained with."""
        return replace(NOISES[self.noise], strength=self.strength)


def _wrong(expected: str, got: object, remedy: str) -> InputError:
    return InputError(expected, got=got, remedy=remedy)
