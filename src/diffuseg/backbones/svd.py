"""Stable Video Diffusion: a clip denoised all frames together, from a picture instead of words.

Blattmann and others, arXiv 2311.15127. What conditions a clip is brought about as diffusers'
`StableVideoDiffusionPipeline` does; only its `fps` is one more than the `fps_id` told here.
"""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from diffuseg.backbones.protocols import FrameCondition
from diffuseg.errors import InputError

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.autoencoders.autoencoder_kl_temporal_decoder import (
        AutoencoderKLTemporalDecoder,
    )
    from diffusers.models.unets.unet_spatio_temporal_condition import (
        UNetSpatioTemporalConditionModel,
    )
    from transformers import CLIPVisionModelWithProjection
else:
    AutoencoderKL = AutoencoderKLTemporalDecoder = nn.Module
    UNetSpatioTemporalConditionModel = CLIPVisionModelWithProjection = nn.Module


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StableVideoDiffusion:
    """A latent image-to-video model; satisfies the `VideoDiffusion` protocol.

    Attributes:
        name: As the user asked for it.
        source: Where the weights came from.
        unet: The network whose attention is recorded.
        vae: The autoencoder; may be more precise than the U-Net, and one of images.
        image_encoder: CLIP's, which reads the conditioning frame.
        means: Of the colours it was trained on.
        deviations: Theirs.
        size: Root of the pixels the model was trained at.
        preset: Settings found for this model, by method name.
    """

    name: str
    source: str
    unet: UNetSpatioTemporalConditionModel
    vae: AutoencoderKLTemporalDecoder | AutoencoderKL
    image_encoder: CLIPVisionModelWithProjection
    means: tuple[float, ...]
    deviations: tuple[float, ...]
    size: int
    preset: Mapping[str, Mapping[str, object]] = field(default_factory=dict)

    @property
    def prediction(self) -> Literal["v_prediction"]:
        """What the U-Net's output means."""
        return "v_prediction"

    @property
    def scale(self) -> int:
        """Pixels a latent cell."""
        return 2 ** (len(self.vae.config["block_out_channels"]) - 1)

    @property
    def coarsest(self) -> int:
        """Pixels a cell of the U-Net's smallest grid; sides must be multiples of it."""
        return self.scale * 2 ** (len(self.unet.config["block_out_channels"]) - 1)

    @property
    def device(self) -> torch.device:
        """Where the U-Net is."""
        return self.unet.device

    @property
    def dtype(self) -> torch.dtype:
        """The U-Net's precision."""
        return self.unet.dtype

    def __repr__(self) -> str:
        return f"{self.name} from {self.source} ({self.dtype} on {self.device})"

    @torch.no_grad()
    def encode(
        self,
        image: Float[Tensor, "b 3 H W"],
        *,
        max_batch: int = 4,
        noise: Float[Tensor, "#b c h w"] | None = None,
    ) -> Float[Tensor, "b c h w"]:
        """Pixels in [0, 1] to latents: the mean of the autoencoder's posterior, scaled.

        Args:
            image: Frames; sides must be multiples of `scale`.
            max_batch: Frames that go through the autoencoder at once.
            noise: Standard normal; with it latents are drawn from the posterior.

        Raises:
            InputError: A side is no multiple of `scale`.
        """
        mean, deviation = self._posterior(image * 2 - 1, max_batch)
        latents = mean if noise is None else mean + deviation * noise.to(mean)
        return (latents * self.vae.config["scaling_factor"]).to(self.dtype)

    @torch.no_grad()
    def decode(
        self, latents: Float[Tensor, "b c h w"], *, max_batch: int = 4, chunk: int = 1
    ) -> Float[Tensor, "b 3 H W"]:
        """Latents to pixels in [0, 1], single precision.

        Args:
            latents: Frames.
            max_batch: Frames that go through the autoencoder at once.
            chunk: Frames the decoder smooths over time, so many after each other; 1: every frame
                by itself, as an autoencoder of images has them anyway.

        Raises:
            InputError: A number is not positive.
        """
        if max_batch < 1 or chunk < 1:
            raise InputError(
                "max_batch and chunk must be 1 or more",
                got=(max_batch, chunk),
                remedy="leave them out",
            )
        inner = latents.to(self.vae.device, self.vae.dtype) / self.vae.config["scaling_factor"]
        decode: Any = self.vae.decode
        smooths = "num_frames" in inspect.signature(decode).parameters
        parts: list[Tensor] = []
        for part in inner.split(chunk if smooths and chunk > 1 else max_batch):
            told = {"num_frames": 1 if chunk == 1 else len(part)} if smooths else {}
            parts.append(decode(part, return_dict=False, **told)[0])
        return (torch.cat(parts).float() * 0.5 + 0.5).clamp(0, 1)

    @torch.no_grad()
    def condition(
        self,
        frames: Float[Tensor, "b 3 H W"],
        *,
        fps_id: int,
        motion_bucket: int,
        noise_level: float,
        noise: Float[Tensor, "#b 3 H W"] | None = None,
    ) -> FrameCondition:
        """What clips are denoised from: a frame of each, usually the first.

        Args:
            frames: Pixels in [0, 1], one frame a clip.
            fps_id: Frames a second, less one.
            motion_bucket: How much moves, 0 to 255.
            noise_level: Share of noise in what the autoencoder sees of the frame; CLIP sees it
                clean.
            noise: Standard normal; None leaves the frame clean, whatever the model is told.

        Raises:
            InputError: A side is no multiple of `scale`.
        """
        pixels = frames.to(self.device, torch.float32) * 2 - 1
        seen = self._look(pixels)
        if noise is not None:
            pixels = pixels + noise_level * noise.to(pixels)
        latents, _ = self._posterior(pixels, len(pixels))
        told = torch.tensor([[fps_id, motion_bucket, noise_level]], dtype=self.dtype)
        return FrameCondition(
            vectors=seen[:, None].to(self.dtype),
            # Unlike the latents that are denoised these are not scaled.
            latents=latents.to(self.dtype),
            ids=told.expand(len(frames), -1).to(self.device),
        )

    @torch.no_grad()
    def denoise(
        self, latents: Float[Tensor, "b f c h w"], time: int | float, condition: FrameCondition
    ) -> Float[Tensor, "b f c h w"]:
        """One call of the U-Net, its raw output (v-prediction).

        Args:
            latents: Clips, scaled to variance one.
            time: ln(sigma) / 4.
            condition: One a clip.

        Raises:
            InputError: Neither fits the other, or a side is no multiple of `coarsest`.
        """
        clips, frames, _, *hw = latents.shape
        if clips != len(condition) or list(condition.latents.shape[-2:]) != hw:
            raise InputError(
                "there must be one condition a clip, of frames of its size",
                got=f"{clips} clips of {hw[0]}x{hw[1]} cells, {len(condition)} of "
                f"{condition.latents.shape[-2]}x{condition.latents.shape[-1]}",
                remedy="make it of the clip's own frames, at their size",
            )
        self._check_sides([side * self.scale for side in hw], self.coarsest)
        still = condition.latents[:, None].expand(-1, frames, -1, -1, -1)
        sample = torch.cat([latents.to(self.device, self.dtype), still], dim=2)
        # Called as a module, with plain names, so that hooks on the U-Net see every argument.
        return self.unet(
            sample,
            torch.tensor(time, dtype=torch.float32, device=self.device),
            encoder_hidden_states=condition.vectors,
            added_time_ids=condition.ids,
            return_dict=False,
        )[0]

    def _posterior(
        self, pixels: Float[Tensor, "b 3 H W"], max_batch: int
    ) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b c h w"]]:
        """Mean and deviation of pixels in [-1, 1], in the autoencoder's own units."""
        self._check_sides(pixels.shape[-2:], self.scale)
        given = pixels.to(self.vae.device, self.vae.dtype)
        found = [
            cast(Any, self.vae).encode(part, return_dict=False)[0]
            for part in given.split(max_batch)
        ]
        return torch.cat([one.mean for one in found]), torch.cat([one.std for one in found])

    def _look(self, pixels: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b d"]:
        """CLIP's vector of pictures in [-1, 1]."""
        side = cast(int, self.image_encoder.config.image_size)
        small = (_shrink(pixels, (side, side)) + 1) / 2
        means, deviations = (
            small.new_tensor(one).view(1, -1, 1, 1) for one in (self.means, self.deviations)
        )
        given = ((small - means) / deviations).to(
            self.image_encoder.device, self.image_encoder.dtype
        )
        return self.image_encoder(given).image_embeds

    def _check_sides(self, sides: Sequence[int], multiple: int) -> None:
        if any(side < multiple or side % multiple for side in sides):
            raise InputError(
                f"height and width must be multiples of {multiple}",
                got="x".join(map(str, sides)),
                remedy="resize the frames",
            )


def _shrink(pictures: Float[Tensor, "b c h w"], hw: tuple[int, int]) -> Float[Tensor, "b c H W"]:
    """Pictures at another size as the model was trained to see them: blurred, then bicubic."""
    for dim, side in ((-2, hw[0]), (-1, hw[1])):
        pictures = _blur(pictures, dim, pictures.shape[dim] / side)
    return F.interpolate(pictures, size=hw, mode="bicubic", align_corners=True)


def _blur(pictures: Float[Tensor, "b c h w"], dim: int, factor: float) -> Float[Tensor, "b c h w"]:
    """Pictures blurred along one side by half of what they are to shrink by."""
    width = max((factor - 1) / 2, 0.001)
    taps = int(max(4 * width, 3)) // 2 * 2 + 1
    places = torch.arange(taps, dtype=pictures.dtype, device=pictures.device) - taps // 2
    kernel = (-places.square() / (2 * width**2)).exp()
    lines = pictures.movedim(dim, -1)
    padded = F.pad(lines.flatten(0, -2)[:, None], (taps // 2, taps // 2), mode="reflect")
    blurred = F.conv1d(padded, (kernel / kernel.sum())[None, None])
    return blurred[:, 0].unflatten(0, lines.shape[:-1]).movedim(-1, dim)
