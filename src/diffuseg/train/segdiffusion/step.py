"""One step of learning to denoise masks: a batch through the networks, to a loss."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from diffuseg.methods.segdiffusion.codec import mask_pixels, picture_pixels
from diffuseg.methods.segdiffusion.schedule import Levels
from diffuseg.methods.segdiffusion.training import denoising_loss, mask_loss, valid_cells
from diffuseg.segdiffusion.autoencoder import decode_channel, encode_pixels
from diffuseg.train.segdiffusion.batches import MaskBatch

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
else:
    AutoencoderKL = nn.Module


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Learned:
    """What a step found.

    Attributes:
        loss: To be descended.
        errors: Mean square of what every query's output is off, for the log.
        present: Which queries were for a class that is there.
        valid: Share of the cells that counted.
    """

    loss: Float[Tensor, ""]
    errors: Float[Tensor, " q"]
    present: Bool[Tensor, " q"]
    valid: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MaskLearner:
    """The networks, and how a batch goes through them.

    Attributes:
        unet: What learns: latents of the picture and of the noisy mask, timesteps and text in.
        vae: The autoencoder, frozen.
        texts: What the prompt of every class becomes, one row a class; of several templates all
            classes in the first one, then all in the next.
        text_mask: Which of its tokens are seen, or None.
        levels: The noise levels.
        end_to_end: Whether the decoded mask is compared, from a single step.
        balanced: Whether every query counts the same.
        templates: How many templates there are.
    """

    unet: nn.Module
    vae: AutoencoderKL
    texts: Float[Tensor, "k t d"]
    text_mask: Bool[Tensor, "k t"] | None
    levels: Levels
    end_to_end: bool = False
    balanced: bool = False
    templates: int = 1

    def __call__(self, batch: MaskBatch) -> Learned:
        """Return the loss of a batch."""
        with torch.no_grad():
            pictures = encode_pixels(self.vae, picture_pixels(batch.pixels))
        return self.learn_from(pictures, batch)

    def learn_from(self, pictures: Float[Tensor, "b c h w"], batch: MaskBatch) -> Learned:
        """Return the loss of a batch whose pictures are latents already."""
        device = self.texts.device
        owners, times = batch.owners.to(device), batch.timesteps.to(device)
        known, seen = batch.known.to(device)[owners], pictures.to(device)[owners]
        masks, noise = batch.masks.to(device), batch.noise.to(device)
        with torch.no_grad():
            clean = encode_pixels(self.vae, mask_pixels(masks)).to(device)
        if self.end_to_end:
            noisy = torch.zeros_like(clean)
        else:
            noisy = self.levels.add_noise(clean, noise, times)
        output = self.denoise(torch.cat([seen, noisy], 1), times, batch.classes, batch.templates)
        valid = valid_cells(known, known.shape[-1] // clean.shape[-1])
        if self.end_to_end:
            found = self.levels.clean(noisy, output, times)
            channel = decode_channel(self.vae, found)
            loss = mask_loss(channel, masks, known)
            errors = (channel.detach() - (masks.float() * 2 - 1)).square().mean((1, 2))
        else:
            target = self.levels.target(clean, noise, times)
            loss = denoising_loss(output, target, valid, balanced=self.balanced)
            errors = (output.detach().float() - target).square().mean((1, 2, 3))
        return Learned(
            loss=loss,
            errors=errors,
            present=masks.flatten(1).any(1),
            valid=valid.float().mean().item(),
        )

    def denoise(
        self,
        latents: Float[Tensor, "q c h w"],
        times: Int[Tensor, " q"],
        classes: tuple[int, ...],
        templates: tuple[int, ...] = (),
    ) -> Float[Tensor, "q c2 h w"]:
        """The network's output for the latents of pictures and masks and a class each.

        Args:
            latents: Of both.
            times: How noisy the masks are.
            classes: What is asked for.
            templates: In which template; none given: in the first.
        """
        rows = torch.tensor(classes, device=self.texts.device)
        if templates:
            among = len(self.texts) // self.templates
            rows = rows + among * torch.tensor(templates, device=self.texts.device)
        mask = None if self.text_mask is None else self.text_mask[rows]
        return self.unet(
            latents,
            times,
            encoder_hidden_states=self.texts[rows],
            encoder_attention_mask=mask,
            return_dict=False,
        )[0]
