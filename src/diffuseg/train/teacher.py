"""A small convolutional net that learns shapes first, and shows its features to the image tower.

Measured on windows around single things: after 20 000 of them the image tower's transformer still
took one shape for another, while this net knew two of three things after 12 000. Its features, one
vector a patch, are something to imitate, patch by patch, while the tower learns from captions (as
H. Touvron and others, Training data-efficient image transformers and distillation through
attention, ICML 2021, found for much larger ones). It is not part of the miniature.
"""

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from diffuseg.train.captioned import to_pixels
from diffuseg.train.data import Progress
from diffuseg.train.log import TrainLog
from diffuseg.train.loop import train_steps
from diffuseg.train.recipe import MiniRecipe, TeacherRecipe
from diffuseg.train.windows import Framed, cut_windows
from diffuseg.world.scenes import COLORS, THINGS

_COLOR_SHARE = 0.3  # weight of the colour, which is learned at once


class Teacher(nn.Module):
    """Four halvings, so one feature a patch of 16 pixels; kind and colour from the maximum."""

    def __init__(self, recipe: TeacherRecipe) -> None:
        super().__init__()
        first, second, third, last = recipe.channels
        self.body = nn.Sequential(
            _convolution(3, first, stride=2),
            _convolution(first, second, stride=2),
            _convolution(second, second),
            _convolution(second, third, stride=2),
            _convolution(third, third),
            _convolution(third, last, stride=2),
            _convolution(last, last),
        )
        self.kind = nn.Linear(last, len(THINGS))
        self.color = nn.Linear(last, len(COLORS))

    def forward(
        self, pixels: Float[Tensor, "b 3 h w"]
    ) -> tuple[Float[Tensor, "b things"], Float[Tensor, "b colors"]]:
        """Scores of kinds and colours."""
        strongest = self.body(pixels).amax((2, 3))
        return self.kind(strongest), self.color(strongest)

    @torch.no_grad()
    def features(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b n d"]:
        """One vector for every 16 x 16 pixels, each channel standardized over the batch."""
        maps = self.body(pixels).flatten(2).transpose(1, 2)
        return (maps - maps.mean((0, 1))) / (maps.std((0, 1)) + 1e-3)


def _convolution(width_in: int, width_out: int, *, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(width_in, width_out, 3, stride, 1, bias=False),
        nn.BatchNorm2d(width_out),
        nn.ReLU(),
    )


def train_teacher(
    recipe: MiniRecipe,
    framed: Framed,
    work: Path,
    *,
    device: torch.device,
    log: TrainLog,
    progress: Progress | None = None,
) -> Teacher:
    """Train (or resume) the teacher on windows around single things.

    Args:
        recipe: Of the whole miniature; `recipe.clip.teacher` is read.
        framed: For instance of `load_framed`.
        work: Folder of the checkpoint `teacher.safetensors`.
        device: Where to train.
        log: The journal.
        progress: Told (done, total) after every step.
    """
    settings = recipe.clip.teacher
    torch.manual_seed(recipe.seed)
    teacher = Teacher(settings).to(device)

    def losses(model: Teacher, step: int) -> dict[str, Float[Tensor, ""]]:
        rng = np.random.default_rng([recipe.seed, 12, step])
        rows = rng.integers(len(framed.scenes), size=settings.batch)
        images = cut_windows(framed, rows, rng, side=settings.window, reach=recipe.clip.shift)
        by_kind, by_color = model(to_pixels(images).to(device))
        kinds, colors = framed.kinds[rows].to(device), framed.colors[rows].to(device)
        return {
            "kinds": functional.cross_entropy(by_kind, kinds),
            "colors": _COLOR_SHARE * functional.cross_entropy(by_color, colors),
        }

    return train_steps(
        teacher,
        settings,
        losses,
        checkpoint=work / "teacher.safetensors",
        log=log,
        progress=progress,
    )
