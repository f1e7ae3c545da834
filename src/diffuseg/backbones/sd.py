"""Stable Diffusion of every kind: one class, whatever reads the prompts.

Weights are frozen, and a call keeps a graph only if a tensor it is given asks for gradients.
Nothing is an inference tensor, so what comes out can be trained on.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from typing import TYPE_CHECKING, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from diffuseg.backbones.catalog import KNOWN
from diffuseg.backbones.latents import latent_units
from diffuseg.backbones.protocols import OnStep, Prediction, TextEmbedding, Weights
from diffuseg.backbones.sampling import build_scheduler, spread_seeds, step_options
from diffuseg.backbones.text import (
    Tower,
    check_lengths,
    reweight,
    token_offsets,
    token_weights,
)
from diffuseg.errors import InputError
from diffuseg.prompts import ClassPrompts, TokenSpan, locate_tokens

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
else:
    AutoencoderKL = UNet2DConditionModel = nn.Module


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StableDiffusion:
    """A latent text-to-image model; satisfies the `Diffusion` protocol.

    Attributes:
        name: As the user asked for it.
        source: Where the weights came from.
        unet: The network whose attention is recorded.
        vae: The autoencoder; may be more precise than the U-Net.
        tower: Reads prompts.
        scheduler: Configuration of the noise schedule the model was trained with.
        alphas: Share of signal left at every timestep, on the CPU.
        size: Pixels of the side the model was trained at.
        prediction: What the U-Net's output means.
        vocabulary: Every word the model knows, where the list is closed.
        preset: Settings found for this model, by method name.
        base: Where the model came from that this one changes, if it is an adapter of one.
    """

    name: str
    source: str
    unet: UNet2DConditionModel
    vae: AutoencoderKL
    tower: Tower
    scheduler: Mapping[str, object]
    alphas: Float[Tensor, " s"]
    size: int
    prediction: Prediction
    vocabulary: tuple[str, ...] | None = None
    preset: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    base: str | None = None

    @property
    def denoises_masks(self) -> bool:
        """Whether the U-Net is shown a picture beside what it denoises, a mask (Seg-diffusion)."""
        return self.unet.config["in_channels"] == 2 * self.unet.config["out_channels"]

    @property
    def scale(self) -> int:
        """Pixels a latent cell."""
        return 2 ** (len(self.vae.config["block_out_channels"]) - 1)

    @property
    def timesteps(self) -> int:
        """How many noise levels there are."""
        return len(self.alphas)

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

    def encode(
        self,
        image: Float[Tensor, "b 3 H W"],
        *,
        max_batch: int = 4,
        noise: Float[Tensor, "#b c h w"] | None = None,
    ) -> Float[Tensor, "b c h w"]:
        """Pixels in [0, 1] to latents: the mean of the autoencoder's posterior, scaled.

        Args:
            image: Sides must be multiples of `scale`.
            max_batch: Images that go through the autoencoder at once.
            noise: Standard normal; with it latents are drawn from the posterior.

        Raises:
            InputError: A side is no multiple of `scale`.
        """
        self._check_sides(image.shape[-2], image.shape[-1])
        with _graph_if_asked(image):
            pixels = image.to(self.vae.device, self.vae.dtype) * 2 - 1
            posteriors = [
                self.vae.encode(part, return_dict=False)[0] for part in pixels.split(max_batch)
            ]
            latents = torch.cat([one.mean for one in posteriors])
            if noise is not None:
                latents = latents + torch.cat([one.std for one in posteriors]) * noise.to(latents)
            shift, factor = latent_units(self.vae)
            return ((latents - shift) * factor).to(self.dtype)

    def decode(
        self, latents: Float[Tensor, "b c h w"], *, max_batch: int = 4
    ) -> Float[Tensor, "b 3 H W"]:
        """Latents to pixels in [0, 1], single precision."""
        with _graph_if_asked(latents):
            shift, factor = latent_units(self.vae)
            inner = latents.to(self.vae.device, self.vae.dtype) / factor + shift
            parts = [
                self.vae.decode(cast(torch.FloatTensor, part), return_dict=False)[0]
                for part in inner.split(max_batch)
            ]
            return (torch.cat(parts).float() * 0.5 + 0.5).clamp(0, 1)

    def embed(
        self, prompts: str | Sequence[str], *, weights: Weights | None = None
    ) -> TextEmbedding:
        """Prompts to what cross-attention sees.

        Args:
            prompts: One or several texts; "" is the empty prompt.
            weights: How strongly words count, {word: weight} a prompt (or one number a token): a
                token's vector z becomes e + w (z - e), e being the empty prompt's at its place.

        Raises:
            InputError: A prompt is too long, or a weighted word does not stand in it.
        """
        texts = [prompts] if isinstance(prompts, str) else list(prompts)
        if not texts:
            raise InputError(
                "there must be a prompt", got=prompts, remedy='pass "" for the empty prompt'
            )
        check_lengths(self.tower.tokenizer, texts, self.tower.context)
        text = self.tower.embed(texts)
        if weights is None:
            return text
        table = token_weights(self.tower.tokenizer, texts, weights, self.tower.context)
        empty = self.tower.embed([""]).vectors
        return replace(text, vectors=reweight(text.vectors, empty, table.to(text.vectors.device)))

    def token_spans(self, prompts: ClassPrompts) -> tuple[TokenSpan, ...]:
        """The tokens that name each class, whole words whatever the tokenizer cuts them into.

        Raises:
            InputError: A class name lies behind the end of what the model reads, or is nothing the
                tokenizer can read.
        """
        marks: list[set[int]] = [set() for _ in prompts.prompts]
        for span in prompts.spans:
            marks[span.row] |= {span.start, span.stop}
        offsets = [
            token_offsets(self.tower.tokenizer, prompt, sorted(cuts))
            for prompt, cuts in zip(prompts.prompts, marks, strict=True)
        ]
        return locate_tokens(prompts, offsets, context=self.tower.context)

    def fits(self, prompt: str) -> bool:
        """Whether the whole prompt can be read."""
        return len(token_offsets(self.tower.tokenizer, prompt)) <= self.tower.context

    def check_words(self, words: Sequence[str]) -> None:
        """Make sure the model can know the words, where its vocabulary is closed.

        Raises:
            InputError: Names the words it does not know, the ones it does, and models that would.
        """
        if self.vocabulary is None:
            return
        parts = [part for word in words for part in re.findall(r"\w+", word.lower())]
        unknown = [part for part in dict.fromkeys(parts) if part not in self.vocabulary]
        if not unknown:
            return
        near = [get_close_matches(part, self.vocabulary, n=1) for part in unknown]
        meant = ", ".join(match for matches in near for match in matches)
        real = ", ".join(name for name, row in KNOWN.items() if row.ids and not row.video)
        raise InputError(
            f"the model {self.name!r} knows only these words: {', '.join(self.vocabulary)}",
            got=", ".join(unknown),
            remedy=(f"did you mean {meant}? Otherwise " if meant else "")
            + f"choose a model that reads any English: {real}",
        )

    def add_noise(
        self,
        latents: Float[Tensor, "b c h w"],
        timestep: int,
        noise: Float[Tensor, "#b c h w"],
    ) -> Float[Tensor, "b c h w"]:
        """The latents at a noise level: root of alpha-bar parts of them, the rest noise."""
        signal, rest = self._levels(timestep)
        return signal * latents + rest * noise.to(latents)

    def _levels(self, timestep: int) -> tuple[float, float]:
        whole = isinstance(timestep, int) and not isinstance(timestep, bool)
        if not whole or not 0 <= timestep < self.timesteps:
            raise InputError(
                f"a timestep must be a whole number from 0 to {self.timesteps - 1}",
                got=timestep,
                remedy="choose one in that range; small ones add little noise",
            )
        alpha = self.alphas[timestep].item()
        return math.sqrt(alpha), math.sqrt(1 - alpha)

    def denoise(
        self, latents: Float[Tensor, "b c h w"], timestep: int, text: TextEmbedding
    ) -> Float[Tensor, "r c2 h w"]:
        """One call of the U-Net, its raw output (see `prediction`).

        One row of latents is repeated for every row of text, and the other way round. A model that
        denoises masks is shown the latents of a picture and, behind them, those of a mask.

        Raises:
            InputError: Neither fits the other, there is no such timestep, or latents are of a
                picture alone where there must be a mask, too.
        """
        self._levels(timestep)
        if self.denoises_masks and latents.shape[1] != self.unet.config["in_channels"]:
            raise self._draws_no_pictures(f"latents of {latents.shape[1]} channels")
        rows = max(len(latents), len(text))
        if len(latents) not in (1, rows) or len(text) not in (1, rows):
            raise InputError(
                "latents and prompts must be as many, or one of either",
                got=f"{len(latents)} latents and {len(text)} prompts",
                remedy="repeat the shorter one",
            )
        with _graph_if_asked(latents, text.vectors):
            step = torch.tensor(timestep, device=self.device)
            return self._call(latents.expand(rows, -1, -1, -1), step, text, rows)

    def _call(
        self, latents: Float[Tensor, "r c h w"], timestep: Tensor, text: TextEmbedding, rows: int
    ) -> Float[Tensor, "r c2 h w"]:
        height, width = latents.shape[-2] * self.scale, latents.shape[-1] * self.scale
        if len(text) != rows:
            text = TextEmbedding.concat([text] * rows)
        # Called as a module, with plain names, so that hooks on the U-Net see every argument.
        return self.unet(
            latents.to(self.device, self.dtype),
            timestep,
            encoder_hidden_states=text.vectors.to(self.device, self.dtype),
            encoder_attention_mask=text.mask,
            added_cond_kwargs=self.tower.conditions(text, (height, width)),
            return_dict=False,
        )[0]

    def predict_x0(
        self,
        latents: Float[Tensor, "b c h w"],
        timestep: int,
        output: Float[Tensor, "b c h w"],
    ) -> Float[Tensor, "b c h w"]:
        """The clean latents that the U-Net's output stands for."""
        signal, rest = self._levels(timestep)
        if self.prediction == "v_prediction":
            return signal * latents - rest * output
        return (latents - rest * output) / signal

    def predict_epsilon(
        self,
        latents: Float[Tensor, "b c h w"],
        timestep: int,
        output: Float[Tensor, "b c h w"],
    ) -> Float[Tensor, "b c h w"]:
        """The noise that the U-Net's output stands for."""
        signal, rest = self._levels(timestep)
        if self.prediction == "v_prediction":
            return rest * latents + signal * output
        return output

    @torch.no_grad()
    def sample(
        self,
        prompts: str | Sequence[str],
        *,
        steps: int = 30,
        guidance: float = 7.5,
        negative: str = "",
        seed: int | Sequence[int] = 0,
        hw: tuple[int, int] | None = None,
        scheduler: object = None,
        on_step: OnStep | None = None,
    ) -> Float[Tensor, "b 3 H W"]:
        """Draw one image a prompt, as diffusers' own pipeline would.

        With guidance above 1 every call of the U-Net sees twice the rows, the unconditional ones
        first. The noise of a row depends on its seed alone, not on its neighbours or the device.

        Args:
            prompts: One or several.
            steps: Of the scheduler.
            guidance: Classifier-free guidance (Ho and Salimans, arXiv 2207.12598).
            negative: What to steer away from.
            seed: Of the first image, the next ones counting up; or one an image.
            hw: Pixels; by default the model's native square.
            scheduler: Name of a diffusers scheduler, or an instance; the model's own by default.
            on_step: Called after every step.

        Returns:
            Pixels in [0, 1], single precision.

        Raises:
            InputError: Any of these makes no sense, or the model denoises masks.
        """
        if self.denoises_masks:
            raise self._draws_no_pictures("a call of sample")
        if not isinstance(steps, int) or steps < 1:
            raise InputError("steps must be a whole number above 0", got=steps, remedy="try 30")
        height, width = hw or (self.size, self.size)
        self._check_sides(height, width)
        text = self.embed(prompts)
        rows = len(text)
        guided = guidance > 1
        if guided:
            check_lengths(self.tower.tokenizer, [negative], self.tower.context)
            text = TextEmbedding.concat([self.tower.negative(negative, rows), text])
        driver = build_scheduler(scheduler, self.scheduler)
        driver.set_timesteps(steps, device=self.device)
        generators = [torch.Generator().manual_seed(one) for one in spread_seeds(seed, rows)]
        shape = (self.unet.config["in_channels"], height // self.scale, width // self.scale)
        noise = torch.stack([torch.randn(shape, generator=each) for each in generators])
        latents = noise.to(self.device, self.dtype) * driver.init_noise_sigma
        options = step_options(driver, generators)
        for index, timestep in enumerate(driver.timesteps):
            given = torch.cat([latents, latents]) if guided else latents
            given = driver.scale_model_input(given, timestep)
            output = self._call(given, timestep, text, len(given))
            if guided:
                without, along = output.chunk(2)
                output = without + guidance * (along - without)
            latents = driver.step(output, timestep, latents, return_dict=False, **options)[0]
            if on_step is not None:
                on_step(index, int(timestep), latents)
        return self.decode(latents)

    def _draws_no_pictures(self, got: str) -> InputError:
        takes = self.unet.config["in_channels"]
        return InputError(
            f"the model {self.name!r} denoises masks: it is shown {takes} channels, those of a "
            "picture and of a mask, and draws nothing",
            got=got,
            remedy='use method="segdiffusion", or for other methods and for drawing the base '
            f"model{f' ({self.base})' if self.base else ''}",
        )

    def _check_sides(self, height: int, width: int) -> None:
        if min(height, width) < self.scale or height % self.scale or width % self.scale:
            raise InputError(
                f"height and width must be multiples of {self.scale}",
                got=f"{height}x{width}",
                remedy="resize the image (diffuseg.image.working_hw gives a fitting size)",
            )


@contextmanager
def _graph_if_asked(*inputs: Tensor) -> Iterator[None]:
    asked = any(tensor.requires_grad for tensor in inputs)
    with torch.set_grad_enabled(asked and torch.is_grad_enabled()):
        yield
