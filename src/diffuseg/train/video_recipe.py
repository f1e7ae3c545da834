"""Every number of the video miniature's training, in one place.

What was measured on one CPU core before the choice: 32 channels on the finest level save half of
the time, but diffusers' group norms of this U-Net have 32 groups, and a group of one channel
forgets how bright a picture is; steps in bf16 take two thirds of those in fp32.
"""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoPhase:
    """One stretch of the training; the next begins with the averaged weights it leaves.

    A batch is `batch` windows of `side` latent cells a side through `frames` frames. Warm-up and
    cosine decay of AdamW's rate.
    """

    steps: int
    batch: int
    frames: int
    side: int
    learning_rate: float
    warmup: int = 50
    weight_decay: float = 0.01
    ema: float = 0.995


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoRecipe:
    """The whole recipe: clips and network.

    `frames` moments of each of `clips` clips are drawn, neighbours one of `paces` apart, in parts
    of the clip, the first at a random one. `shard` clips share a file. ln(sigma) is normal with
    `sigma_mean` and `sigma_std`; a share `faint` of it is uniform instead over `faint_sigmas`,
    which segmenters read features at and a normal draw would hardly see. `dropout` is the share of
    clips without their picture (guidance). The picture's noise is log-normal, `augment` the mean
    and deviation of its logarithm. `usual_pace` is called motion bucket 127. `likeness` weighs the
    loss that gives the queries of the blocks `taught` what the image miniature's features tell
    apart.
    """

    seed: int = 0
    size: int = 256
    clips: int = 160
    frames: int = 14
    shard: int = 10
    paces: tuple[float, ...] = (1 / 63, 1 / 40, 1 / 27, 1 / 20)
    usual_pace: float = 1 / 27
    channels: tuple[int, ...] = (64, 64, 64, 96)
    heads: int = 4
    time_width: int = 32
    sigma_mean: float = 0.0
    sigma_std: float = 1.5
    faint: float = 0.3
    faint_sigmas: tuple[float, float] = (0.002, 1.3)
    dropout: float = 0.15
    augment: tuple[float, float] = (-3.0, 0.5)
    likeness: float = 0.5
    taught: tuple[int, ...] = (6, 7, 8, 9)
    phases: tuple[VideoPhase, ...] = (
        VideoPhase(steps=760, batch=4, frames=7, side=16, learning_rate=7e-4),
        VideoPhase(steps=240, batch=1, frames=14, side=32, learning_rate=4e-4, warmup=20),
    )
