"""Finding out which prompts a diffusers pipeline was called with."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from diffuseg.attention.captured import RecordHeader


class PromptWatch:
    """Reads the token ids a pipeline gives its (first) text encoder, by a hook.

    Models without a text encoder and a tokenizer are left alone.
    """

    def __init__(self, model: object) -> None:
        encoder = getattr(model, "text_encoder", None)
        tokenizer = getattr(model, "tokenizer", None)
        self._model = model
        self._tokenizer: Any = tokenizer
        self._encoder = encoder if isinstance(encoder, nn.Module) and tokenizer else None
        self._calls: list[list[list[int]]] = []

    def attach(self) -> list[Any]:
        """Return the handles of the hooks set."""
        if self._encoder is None:
            return []

        def hook(module, args, kwargs):
            ids = args[0] if args else kwargs.get("input_ids")
            if isinstance(ids, Tensor) and not torch.compiler.is_compiling():
                self._calls.append(ids.tolist())

        return [self._encoder.register_forward_pre_hook(hook, with_kwargs=True)]

    def complete(self, header: RecordHeader, *, half: str) -> RecordHeader:
        """Return the header with prompts and tokens, if it has none and they are certain.

        A pipeline encodes the prompts, then for guidance the negative ones; the batch of the U-Net
        is [negative, prompts]. Negative embeddings that were not encoded (SDXL's zeros) get no
        tokens.
        """
        if header.n_prompts or not 1 <= len(self._calls) <= 2:
            return header
        prompts = self._calls[0]
        negative: Sequence[list[int]] = self._calls[1] if len(self._calls) == 2 else []
        if not negative and getattr(self._model, "do_classifier_free_guidance", False):
            negative = [[] for _ in prompts]
        rows = {"cond": prompts, "uncond": negative}.get(half, [*negative, *prompts])
        return replace(
            header,
            prompts=tuple(self._tokenizer.decode(ids, skip_special_tokens=True) for ids in rows),
            tokens=tuple(tuple(self._tokenizer.convert_ids_to_tokens(ids)) for ids in rows),
        )
