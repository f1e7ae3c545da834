"""Masks denoised from noise: the loop, whatever the network is."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from diffuseg.errors import InputError
from diffuseg.methods.segdiffusion.schedule import Schedule

Network = Callable[[Float[Tensor, "r c2 h w"], int], Float[Tensor, "r c h w"]]
"""Latents, those of the picture before those of the mask, and a timestep, to the output."""
OnStep = Callable[[int, Float[Tensor, "r c h w"]], None]
"""Called after a step with its number and the latents."""


@torch.no_grad()
def denoise_masks(
    network: Network,
    picture: Float[Tensor, "_ c h w"],
    start: Float[Tensor, "r c h w"],
    schedule: Schedule,
    *,
    on_step: OnStep | None = None,
) -> Float[Tensor, "r c h w"]:
    """Denoise the latents of masks; rows do not see each other.

    Args:
        network: Knows what every row is asked for.
        picture: Latents of the picture, one for all rows or one a row.
        start: Latents of the masks to begin with.
        schedule: The steps.
        on_step: Told every state.

    Raises:
        InputError: Pictures are not as many as rows, nor one.

    Example:
        >>> from diffuseg.methods.segdiffusion.schedule import Levels, ddim_schedule
        >>> levels = Levels(alphas=torch.tensor([1.0, 0.0]), prediction="sample")
        >>> picture = torch.full((1, 4, 2, 2), 7.0)
        >>> seen = lambda x, time: x[:, :4]
        >>> denoise_masks(seen, picture, torch.zeros(3, 4, 2, 2), ddim_schedule(levels, 1)).mean()
        tensor(7.)
    """
    if len(picture) not in (1, len(start)):
        raise InputError(
            "there must be one picture, or as many as masks",
            got=f"{len(picture)} pictures for {len(start)} masks",
            remedy="repeat them",
        )
    seen, x = picture.to(start).expand(len(start), -1, -1, -1), start
    for index, time in enumerate(schedule.timesteps):
        x = schedule.step(x, network(torch.cat([seen, x], 1), time), index)
        if on_step is not None:
            on_step(index, x)
    return x
