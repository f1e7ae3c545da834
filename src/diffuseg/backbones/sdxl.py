"""Stable Diffusion XL's way of reading prompts: two text encoders, a pooled vector, the size.

The U-Net sees the next-to-last states of both encoders side by side, the second one's pooled
vector, and the size and crop of the picture (Podell et al., arXiv 2307.01952, section 2.2).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from diffuseg.backbones.protocols import TextEmbedding
from diffuseg.backbones.text import token_strings, tokenize

if TYPE_CHECKING:
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, PreTrainedTokenizerBase
else:
    CLIPTextModel = CLIPTextModelWithProjection = nn.Module
    PreTrainedTokenizerBase = object


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TwoTowers:
    """Two tokenizers and two text encoders, the second with a pooled, projected vector.

    Attributes:
        tokenizer: The first; tokens are counted and named after it (both share a vocabulary and
            differ in padding only).
        encoder: The first.
        tokenizer_2: The second.
        encoder_2: The second.
        zero_negative: An empty negative prompt is all zeros instead of the empty text.
    """

    tokenizer: PreTrainedTokenizerBase
    encoder: CLIPTextModel
    tokenizer_2: PreTrainedTokenizerBase
    encoder_2: CLIPTextModelWithProjection
    zero_negative: bool = True

    @property
    def context(self) -> int:
        """Tokens of a padded prompt, start and end included."""
        return min(
            int(limit)
            for tokenizer, encoder in self._pairs()
            for limit in (tokenizer.model_max_length, encoder.config.max_position_embeddings)
        )

    @property
    def width(self) -> int:
        """Of a token's vector, both encoders' together."""
        return sum(int(encoder.config.hidden_size) for _, encoder in self._pairs())

    @property
    def vocabulary_size(self) -> int:
        """Tokens both encoders have vectors for."""
        return min(int(encoder.config.vocab_size) for _, encoder in self._pairs())

    def _pairs(
        self,
    ) -> tuple[tuple[PreTrainedTokenizerBase, CLIPTextModel | CLIPTextModelWithProjection], ...]:
        return (self.tokenizer, self.encoder), (self.tokenizer_2, self.encoder_2)

    @torch.no_grad()
    def embed(self, prompts: Sequence[str]) -> TextEmbedding:
        first, _ = tokenize(self.tokenizer, prompts, self.context)
        second, _ = tokenize(self.tokenizer_2, prompts, self.context)
        one = self.encoder(first.to(self.encoder.device), output_hidden_states=True)
        two = self.encoder_2(second.to(self.encoder_2.device), output_hidden_states=True)
        return TextEmbedding(
            vectors=torch.cat([one.hidden_states[-2], two.hidden_states[-2]], dim=-1),
            prompts=tuple(prompts),
            tokens=token_strings(self.tokenizer, first),
            pooled=two.text_embeds,
        )

    def negative(self, prompt: str, rows: int) -> TextEmbedding:
        text = self.embed([prompt] * rows)
        if prompt or not self.zero_negative or text.pooled is None:
            return text
        return replace(
            text,
            vectors=torch.zeros_like(text.vectors),
            pooled=torch.zeros_like(text.pooled),
        )

    def conditions(self, text: TextEmbedding, hw: tuple[int, int]) -> dict[str, Tensor] | None:
        if text.pooled is None:
            return None
        # Original size, crop offset and target size: an uncropped picture of this very size.
        sizes = torch.tensor([*hw, 0, 0, *hw]).to(text.pooled)
        return {"text_embeds": text.pooled, "time_ids": sizes.expand(len(text), -1)}
