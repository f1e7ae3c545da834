"""Captioners: pictures put into words."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from diffuseg.backbones.companions import (
    find_companion,
    load_image_files,
    load_part,
    load_text_files,
    read_images,
)
from diffuseg.backbones.loading import pick_device, pick_dtype
from diffuseg.errors import InputError

if TYPE_CHECKING:
    from transformers import (
        BlipForConditionalGeneration,
        PreTrainedTokenizerBase,
        VisionEncoderDecoderModel,
    )
    from transformers.image_processing_utils import BaseImageProcessor
else:
    BlipForConditionalGeneration = VisionEncoderDecoderModel = nn.Module
    PreTrainedTokenizerBase = BaseImageProcessor = object

_ARCHITECTURES = ("BlipForConditionalGeneration", "VisionEncoderDecoderModel")
_BATCH = 16


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Captioner:
    """A frozen image-to-text model.

    Attributes:
        name: As the user asked for it.
        source: Where the weights came from.
        model: transformers' model.
        tokenizer: Of its text decoder.
        processor: Brings pictures to its size and range.
    """

    name: str
    source: str
    model: BlipForConditionalGeneration | VisionEncoderDecoderModel
    tokenizer: PreTrainedTokenizerBase
    processor: BaseImageProcessor

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        """The model's precision."""
        return self.model.dtype

    def __repr__(self) -> str:
        return f"captioner {self.name} from {self.source} ({self.dtype} on {self.device})"

    @torch.no_grad()
    def caption(self, images: object, *, max_tokens: int = 40) -> list[str]:
        """One caption a picture, by greedy decoding.

        Args:
            images: One picture or several, of anything `diffuseg.image.read_image` takes.
            max_tokens: Longest caption, in tokens.

        Raises:
            InputError: There is no picture, one cannot be read, or `max_tokens` is not positive.

        Example:
            >>> load_captioner("mini").caption("scene.png")  # doctest: +SKIP
            ['a red car on grass under a sky']
        """
        if not isinstance(max_tokens, int) or max_tokens < 1:
            raise InputError(
                "max_tokens must be a positive integer", got=max_tokens, remedy="leave it out"
            )
        read = read_images(images)
        captions: list[str] = []
        for start in range(0, len(read), _BATCH):
            part = [image.pixels for image in read[start : start + _BATCH]]
            pixels = self.processor(part, return_tensors="pt")["pixel_values"]
            with _no_warnings():
                ids = cast(Any, self.model).generate(
                    pixel_values=pixels.to(self.device, self.dtype),
                    max_new_tokens=max_tokens,
                    do_sample=False,
                    num_beams=1,
                )
            texts = self.tokenizer.batch_decode(ids, skip_special_tokens=True)
            captions += [" ".join(text.split()) for text in texts]
        return captions


@contextmanager
def _no_warnings() -> Iterator[None]:
    """Without transformers' warnings: it misses a mask for padding, and captions have none."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def load_captioner(
    name: str | os.PathLike[str] = "mini",
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    offline: bool | None = None,
) -> Captioner:
    """Load a captioner.

    Args:
        name: "mini" (embedded), a hub id such as "Salesforce/blip-image-captioning-base", or a
            folder in transformers format with BLIP or an encoder-decoder.
        device: For instance "cpu" or "cuda:1"; by default the first there is of CUDA, Apple's GPU
            and the CPU.
        dtype: "fp32", "fp16" or "bf16"; by default fp32 on the CPU and fp16 elsewhere.
        offline: Never use the network; by default as HF_HUB_OFFLINE says.

    Raises:
        InputError: No such name, device or dtype.
        WeightsError: The weights are not to be had, damaged, or of another kind.

    Example:
        >>> load_captioner("mini", device="cpu")  # doctest: +SKIP
        captioner mini from embedded (torch.float32 on cpu)
    """
    import transformers

    place = pick_device(device)
    precision = pick_dtype(dtype, place)
    found = find_companion(name, "captioner", _ARCHITECTURES, offline=offline)
    return Captioner(
        name=found.name,
        source=found.source,
        model=load_part(getattr(transformers, found.architecture), found, precision, place),
        tokenizer=load_text_files(found),
        processor=load_image_files(found),
    )
