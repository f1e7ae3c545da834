"""Captioners: pictures put into words."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from jaxtyping import UInt8
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
    def caption(
        self, images: object, prefixes: Sequence[str] | None = None, *, max_tokens: int = 40
    ) -> list[str]:
        """One caption a picture, by greedy decoding.

        Args:
            images: One picture or several, of anything `diffuseg.image.read_image` takes.
            prefixes: How each caption begins; the model continues it.
            max_tokens: Longest caption, in tokens, what it begins with left out.

        Raises:
            InputError: There is no picture, one cannot be read, there is not one prefix a picture,
                or `max_tokens` is not positive.

        Example:
            >>> load_captioner("mini").caption("scene.png")  # doctest: +SKIP
            ['a red car on grass under a sky']
        """
        if not isinstance(max_tokens, int) or max_tokens < 1:
            raise InputError(
                "max_tokens must be a positive integer", got=max_tokens, remedy="leave it out"
            )
        read = read_images(images)
        begun = [""] * len(read) if prefixes is None else list(prefixes)
        if len(begun) != len(read):
            raise InputError(
                "there must be one prefix for every picture",
                got=f"{len(begun)} prefixes for {len(read)} pictures",
                remedy='give "" where a caption may begin as it likes',
            )
        captions = [""] * len(read)
        # What goes together has one number of tokens: padding inside a text would be read as text.
        starts = [self._start(text) for text in begun]
        for length in sorted({len(ids) for ids in starts}):
            mine = [i for i, ids in enumerate(starts) if len(ids) == length]
            for first in range(0, len(mine), _BATCH):
                part = mine[first : first + _BATCH]
                texts = self._decode(
                    [read[i].pixels for i in part], [starts[i] for i in part], max_tokens
                )
                for i, text in zip(part, texts, strict=True):
                    captions[i] = _with_prefix(begun[i], text)
        return captions

    def _start(self, prefix: str) -> list[int]:
        """The tokens of what a caption begins with, without start and end."""
        if not prefix.strip():
            return []
        return list(self.tokenizer(prefix, add_special_tokens=False)["input_ids"])

    def _decode(
        self, pictures: list[UInt8[np.ndarray, "h w 3"]], starts: list[list[int]], max_tokens: int
    ) -> list[str]:
        pixels = self.processor(pictures, return_tensors="pt")["pixel_values"]
        options: dict[str, Any] = {}
        if starts[0] and type(self.model).__name__ == "BlipForConditionalGeneration":
            # BLIP writes its start token over the first place, and drops the last.
            options["input_ids"] = torch.tensor([[0, *start, 0] for start in starts])
        elif starts[0]:
            first = cast(Any, self.model.config).decoder_start_token_id
            options["decoder_input_ids"] = torch.tensor([[first, *start] for start in starts])
        options = {name: ids.to(self.device) for name, ids in options.items()}
        with _no_warnings():
            found = cast(Any, self.model).generate(
                pixel_values=pixels.to(self.device, self.dtype),
                max_new_tokens=max_tokens,
                do_sample=False,
                num_beams=1,
                **options,
            )
        return self.tokenizer.batch_decode(found, skip_special_tokens=True)


def _with_prefix(prefix: str, text: str) -> str:
    """The caption with its beginning as it was given: tokenizers change case and blanks."""
    text = " ".join(text.split())
    if not prefix.strip():
        return text
    squeezed = "".join(prefix.casefold().split())
    seen = 0
    for place, letter in enumerate(text):
        if seen == len(squeezed):
            return f"{prefix.rstrip()}{text[place:]}"
        if letter.isspace():
            continue
        if letter.casefold() != squeezed[seen]:
            break  # the tokenizer cannot write the prefix back: what follows is not known
        seen += 1
    return prefix.rstrip()


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
