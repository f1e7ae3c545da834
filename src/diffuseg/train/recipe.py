"""Every number of the embedded miniature's training, in one place.

What was measured on two CPU cores before the choice: the VAE diverges from learning rate 1e-3 up;
words find their pixels only when the end and padding tokens are hidden from cross-attention while
the U-Net is trained, since those tokens have seen the whole caption; loss weight min(1/alpha_bar,
5) and timesteps skewed to high noise make it happen sooner.
"""

from dataclasses import dataclass, replace
from typing import Literal


@dataclass(frozen=True, kw_only=True, slots=True)
class VaePhase:
    """One stretch of the autoencoder's training, with its own warm restart of the learning rate.

    AdamW at `learning_rate`, linear decay over the second half; loss L1 + L2 + `kl` x (KL per
    latent value). `busy` is the share of crops picked for their contrast, three candidates each:
    most random crops show texture only, and things stay blurred without it.
    """

    steps: int
    learning_rate: float = 5e-4
    kl: float = 2e-3
    busy: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class VaeRecipe:
    """The autoencoder: factor 8, 4 latent channels; `batch` crops of `crop` pixels a step."""

    channels: tuple[int, ...] = (24, 32, 64, 96)
    crop: int = 64
    batch: int = 16
    phases: tuple[VaePhase, ...] = (
        VaePhase(steps=3200),
        VaePhase(steps=4200, kl=2e-4, busy=0.5),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class GroundingRecipe:
    """The loss that makes words find their pixels, on mosaics of `pictures`.

    `batch` mosaics a step of `grid` rows and columns, or the other way round, at timesteps up to
    `last_timestep`, under the nouns of their captions and up to `most_absent` others. Every noun
    has to win between `top` of the pixels of its pictures. `weight` is that of this loss beside
    the denoising one, `edges` that of a share in it: neighbours that look alike belong together.
    As many as `alone` come a second time under one noun, which has to find what it had among the
    others. As many as `wordless` come again under no words at all: their queries have to find the
    same with the keys of the words, so that features tell classes apart that nobody named. The
    same is asked of the maps after each of `products` with the self-attention of the middle layer
    of a block, or of all its layers. All of it happens every `every` steps.
    """

    pictures: tuple[str, ...] = ("windows", "pairs")
    grid: tuple[int, int] = (1, 2)
    batch: int = 12
    last_timestep: int = 500
    most_absent: int = 4
    top: tuple[float, float] = (0.03, 0.12)
    weight: float = 0.3
    edges: float = 0.0
    alone: int = 0
    wordless: int = 0
    products: int = 1
    every: int = 1
    completing: Literal["middle", "all"] = "middle"


Kind = Literal["crops", "windows", "pairs", "scenes"]


@dataclass(frozen=True, kw_only=True, slots=True)
class PhaseRecipe:
    """One stretch of the U-Net's training; phases run in order on the same weights.

    `pictures` names what is shown: "crops", "windows" and "pairs" (small, many a step; windows are
    framed around a thing and not shrunk, pairs around two) or whole "scenes". Steps take turns with
    those of `turns`, kinds and how many of each make a batch. `timestep_power`
    skews the uniform draw u to t = 1000 u^power; `weight_cap` caps the loss weight 1/alpha_bar.
    What a noun tells is of use where noise hides its thing, so lower powers and higher caps teach
    more of it. `colorless` is the share of captions whose colours are left out, so that the noun
    alone has to find its thing. After `warmup` steps the learning rate falls in a straight
    line, to `last_rate` of itself. `grounding` adds losses on mosaics.
    """

    pictures: Kind
    steps: int
    batch: int
    learning_rate: float
    timestep_power: float = 0.85
    weight_cap: float = 5.0
    colorless: float = 0.0
    warmup: int = 200
    last_rate: float = 0.1
    turns: tuple[tuple[Kind, int], ...] = ()
    grounding: tuple[GroundingRecipe, ...] = ()


_PAIRS = PhaseRecipe(
    pictures="pairs",
    steps=700,
    batch=32,
    learning_rate=5e-4,
    timestep_power=0.65,
    weight_cap=10.0,
    colorless=0.7,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class DenoiserRecipe:
    """U-Net and text tower, trained together on (latent, caption) pairs.

    `caption_dropout` is the share of empty captions (classifier-free guidance); `open_share` the
    share of steps that see end and padding tokens, as any Stable Diffusion does at inference;
    `constant_padding` weighs the loss that keeps those tokens' states the same for every caption,
    so that nothing can leak through them.
    """

    channels: tuple[int, ...] = (48, 96, 144, 144)
    heads: int = 4
    text_width: int = 128
    text_layers: int = 1
    text_heads: int = 4
    caption_dropout: float = 0.1
    open_share: float = 0.0
    constant_padding: float = 0.1
    ema: float = 0.9995
    phases: tuple[PhaseRecipe, ...] = (
        PhaseRecipe(pictures="crops", steps=1900, batch=32, learning_rate=5e-4),
        PhaseRecipe(pictures="crops", steps=1500, batch=32, learning_rate=5e-4),
        PhaseRecipe(pictures="windows", steps=2300, batch=32, learning_rate=5e-4, colorless=0.5),
        PhaseRecipe(
            pictures="windows",
            steps=1800,
            batch=32,
            learning_rate=5e-4,
            timestep_power=0.65,
            weight_cap=10.0,
            colorless=0.5,
        ),
        _PAIRS,
        replace(_PAIRS, steps=1000, last_rate=0.775),
        replace(
            _PAIRS,
            steps=300,
            batch=8,
            learning_rate=4e-4,
            warmup=100,
            last_rate=0.82,
            grounding=(GroundingRecipe(grid=(2, 2), batch=4, most_absent=2),),
        ),
        replace(
            _PAIRS,
            steps=1400,
            batch=8,
            learning_rate=6e-4,
            warmup=20,
            last_rate=0.58,
            grounding=(GroundingRecipe(),),
        ),
        replace(
            _PAIRS,
            steps=720,
            batch=4,
            learning_rate=5e-4,
            warmup=30,
            last_rate=0.05,
            grounding=(
                GroundingRecipe(
                    batch=5,
                    top=(0.02, 0.08),
                    edges=1.0,
                    alone=2,
                    products=3,
                    completing="all",
                ),
                GroundingRecipe(
                    pictures=("scenes",),
                    grid=(1, 1),
                    batch=1,
                    most_absent=6,
                    top=(0.01, 0.04),
                    edges=1.0,
                    alone=1,
                    products=3,
                    completing="all",
                ),
            ),
        ),
        PhaseRecipe(
            pictures="scenes",
            steps=2400,
            batch=8,
            learning_rate=4e-4,
            timestep_power=0.65,
            weight_cap=10.0,
            colorless=0.3,
            warmup=50,
            last_rate=0.03,
            turns=(("windows", 24),),
            grounding=(
                GroundingRecipe(
                    batch=4,
                    top=(0.02, 0.08),
                    edges=1.0,
                    alone=1,
                    wordless=2,
                    products=2,
                    completing="all",
                    every=3,
                ),
                GroundingRecipe(
                    pictures=("scenes",),
                    grid=(1, 1),
                    batch=1,
                    most_absent=6,
                    top=(0.01, 0.04),
                    edges=1.0,
                    wordless=1,
                    products=2,
                    completing="all",
                    every=3,
                ),
            ),
        ),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class PrimingRecipe:
    """The image tower's first lesson, the nouns of windows' captions.

    Warm-up and cosine decay; `turn` is Muon's rate in parts of AdamW's, `ema` averages the weights.
    """

    steps: int = 5000
    batch: int = 64
    learning_rate: float = 1e-3
    turn: float = 20.0
    warmup: int = 50
    weight_decay: float = 0.05
    ema: float = 0.99


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipRecipe:
    """The CLIP pair: pictures of `size` pixels in patches of `patch`.

    The image tower begins as `priming` leaves it. Muon for the layers, at `turn` times the rate of
    AdamW for the rest, with warm-up and cosine decay; the image tower learns at `tower_rate` of the
    text tower's rate. A share `single` of every batch shows a single thing; pictures are mirrored
    and cut to between `least` and all of their sides, a share `recolored` of them shows other
    colours than it had and asks for shapes only; `nouns` weighs each contrast against the
    prompts of single nouns beside the one against whole captions. `ema` averages the weights.
    """

    size: int = 96
    patch: int = 8
    width: int = 128
    layers: int = 4
    heads: int = 4
    text_width: int = 128
    text_layers: int = 2
    text_heads: int = 4
    projection: int = 128
    steps: int = 1400
    batch: int = 48
    learning_rate: float = 1e-3
    turn: float = 20.0
    tower_rate: float = 0.5
    warmup: int = 50
    weight_decay: float = 0.05
    ema: float = 0.99
    single: float = 0.5
    least: float = 0.82
    recolored: float = 0.3
    nouns: float = 0.7
    priming: PrimingRecipe = PrimingRecipe()


@dataclass(frozen=True, kw_only=True, slots=True)
class VitRecipe:
    """The self-supervised ViT of `size` pixels, trained on views of `crop` pixels, then on wholes.

    The regions of `scenes` scenes are clustered, `shapes` clusters of silhouettes and `textures` of
    the rest; a share `typical` of the silhouettes keeps its name. The silhouettes in `window` x
    `window` patches around every patch are told too. A view shows `zoom` times its own size of a
    scene, turned by up to `turn` degrees; the last share `whole` of the steps shows as much as a
    scene has, fewer views a step. Muon for the layers, at `muon` times the rate of AdamW for the
    rest, with warm-up and cosine decay; `ema` averages the weights.
    """

    size: int = 256
    patch: int = 16
    width: int = 128
    layers: int = 4
    heads: int = 4
    scenes: int = 3000
    shapes: int = 40
    textures: int = 16
    typical: float = 0.85
    window: int = 5
    crop: int = 128
    zoom: tuple[float, float] = (0.8, 1.4)
    turn: float = 20.0
    whole: float = 0.2
    steps: int = 3300
    batch: int = 32
    learning_rate: float = 1e-3
    muon: float = 20.0
    warmup: int = 50
    weight_decay: float = 0.05
    ema: float = 0.99


@dataclass(frozen=True, kw_only=True, slots=True)
class CaptionerRecipe:
    """The captioner: the CLIP pair's image tower and a decoder of `layers` and `width`.

    Muon for the layers, at `turn` times the rate of AdamW for the rest, with warm-up and cosine
    decay; the tower learns at `tower_rate` of the decoder's rate. Scenes and crops are shown for
    `mixed` steps, then scenes alone.
    """

    width: int = 128
    layers: int = 2
    heads: int = 4
    steps: int = 2000
    mixed: int = 1100
    batch: int = 32
    learning_rate: float = 1e-3
    turn: float = 20.0
    tower_rate: float = 0.3
    warmup: int = 50
    weight_decay: float = 0.05
    ema: float = 0.995


@dataclass(frozen=True, kw_only=True, slots=True)
class MiniRecipe:
    """The whole recipe: data, autoencoder, denoiser.

    Scenes are rendered once at `size` pixels; each gives `crops` square crops of at least half its
    side, shrunk to `crop_size`, whose captions name what can be seen in them.

    Example:
        >>> [phase.pictures for phase in MiniRecipe().denoiser.phases]
        ['crops', 'crops', 'windows', 'windows', 'pairs']
    """

    seed: int = 0
    size: int = 256
    scenes: int = 8000
    crops: int = 2
    crop_size: int = 128
    shard: int = 500
    vae: VaeRecipe = VaeRecipe()
    denoiser: DenoiserRecipe = DenoiserRecipe()
    clip: ClipRecipe = ClipRecipe()
    captioner: CaptionerRecipe = CaptionerRecipe()
    vit: VitRecipe = VitRecipe()
