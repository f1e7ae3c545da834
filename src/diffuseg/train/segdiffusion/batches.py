"""What one part of an update shows: crops, the classes asked for, timesteps and noise.

Everything drawn is a pure function of the seed, the number of the update, the process and the part:
a run that is taken up again draws what it would have drawn, without any state of a generator.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from diffuseg.methods.segdiffusion.training import class_targets
from diffuseg.train.segdiffusion.pictures import Crop, draw_crop
from diffuseg.train.segdiffusion.queries import QuerySampler
from diffuseg.train.segdiffusion.recipe import SegRecipe

_PICTURES, _NOISE, _WORDS = 0, 1, 2  # what a stream of chance is for


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MaskBatch:
    """Crops and queries.

    Attributes:
        pixels: Of the crops.
        known: Where their labels are known.
        owners: The crop of every query.
        classes: The class of every query.
        masks: Where it is.
        timesteps: How noisy its mask is shown.
        noise: The noise it is shown with.
        templates: The template every query is asked in; none where there is but one.
    """

    pixels: UInt8[Tensor, "b 3 H W"]
    known: Bool[Tensor, "b H W"]
    owners: Int[Tensor, " q"]
    classes: tuple[int, ...]
    masks: Bool[Tensor, "q H W"]
    timesteps: Int[Tensor, " q"]
    noise: Float[Tensor, "q c h w"]
    templates: tuple[int, ...] = ()


@runtime_checkable
class Wholes(Protocol):
    """Pictures by number; `KeptPictures` is such."""

    def __getitem__(self, index: int) -> Crop: ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BatchSource:
    """Draws batches.

    Attributes:
        wholes: The pictures.
        sampler: Which, and what is asked for.
        recipe: How they are cut, and the noise.
        channels: Of latents.
        scale: Pixels a latent cell.
        timesteps: How many noise levels there are.
        places: Of the data set's classes among all that are learned; None: it has all of them.
    """

    wholes: Wholes
    sampler: QuerySampler
    recipe: SegRecipe
    channels: int = 4
    scale: int = 8
    timesteps: int = 1000
    places: tuple[int, ...] | None = None

    def draw(self, step: int, *, images: int, rank: int = 0, part: int = 0) -> MaskBatch:
        """Return the batch of a part of an update.

        Args:
            step: Number of the update.
            images: Crops in it.
            rank: Number of the process.
            part: Number of the part, where gradients are accumulated.
        """
        recipe = self.recipe
        rng = np.random.default_rng([recipe.seed, _PICTURES, step, rank, part])
        pixels, known, owners, classes, masks = [], [], [], [], []
        for owner in range(images):
            number = self.sampler.draw_picture(rng)
            crop = draw_crop(
                self.wholes[number],
                rng,
                side=recipe.crop,
                zoom=recipe.zoom,
                flip=recipe.flip,
                jitter=recipe.jitter,
            )
            asked = self.sampler.draw_classes(number, crop.labels, rng)
            found, sure = class_targets(torch.from_numpy(crop.labels), asked)
            pixels.append(torch.from_numpy(crop.pixels).permute(2, 0, 1))
            known.append(sure)
            owners += [owner] * len(asked)
            classes += asked
            masks.append(found)
        times, noise = self._draw_noise(len(owners), step, rank, part)
        if self.places is not None:
            classes = [self.places[one] for one in classes]
        return MaskBatch(
            pixels=torch.stack(pixels),
            known=torch.stack(known),
            owners=torch.tensor(owners),
            classes=tuple(classes),
            masks=torch.cat(masks),
            timesteps=times,
            noise=noise,
            templates=self._draw_templates(len(owners), step, rank, part),
        )

    def _draw_templates(self, count: int, step: int, rank: int, part: int) -> tuple[int, ...]:
        others = len(self.recipe.templates) - 1
        if not others:
            return ()
        rng = np.random.default_rng([self.recipe.seed, _WORDS, step, rank, part])
        first, rest = rng.random(count) < 0.5, rng.integers(1, others + 1, count)
        return tuple(np.where(first, 0, rest).tolist())

    def _draw_noise(
        self, count: int, step: int, rank: int, part: int
    ) -> tuple[Int[Tensor, " q"], Float[Tensor, "q c h w"]]:
        seed = np.random.SeedSequence([self.recipe.seed, _NOISE, step, rank, part])
        number = int(seed.generate_state(1, np.uint64)[0] >> 1)
        generator = torch.Generator().manual_seed(number)
        cells = self.recipe.crop // self.scale
        shape = (count, self.channels, cells, cells)
        if self.recipe.objective == "one-step":
            return torch.full((count,), self.timesteps - 1), torch.zeros(shape)
        drawn = torch.rand(count, generator=generator) ** self.recipe.timestep_power
        times = (drawn * self.timesteps).long().clamp_max(self.timesteps - 1)
        noise = self.recipe.pyramid.draw(shape, times, total=self.timesteps, generator=generator)
        return times, noise
