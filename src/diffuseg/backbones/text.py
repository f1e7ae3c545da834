"""Prompts to embeddings with one CLIP text tower, as Stable Diffusion 1.x and 2.x have.

Every position's state is the last one after the final layer norm. The towers of 2.x are stored
without their last layer, so that the same call gives what 2.x was trained with.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from diffuseg.backbones.protocols import TextEmbedding, Weights
from diffuseg.emphasis import Stress
from diffuseg.errors import InputError
from diffuseg.prompts import find_word

if TYPE_CHECKING:
    from transformers import CLIPTextModel, PreTrainedTokenizerBase
else:
    CLIPTextModel = nn.Module
    PreTrainedTokenizerBase = object

Offsets = list[tuple[int, int]]


@runtime_checkable
class Tower(Protocol):
    """What `StableDiffusion` needs to read prompts and to tell the U-Net about them."""

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase: ...
    @property
    def context(self) -> int: ...
    @property
    def width(self) -> int: ...
    @property
    def vocabulary_size(self) -> int: ...

    def embed(self, prompts: Sequence[str]) -> TextEmbedding:
        """Prompts, all of which fit, to what cross-attention sees."""
        ...

    def negative(self, prompt: str, rows: int) -> TextEmbedding:
        """The other side of classifier-free guidance, the same in every row."""
        ...

    def conditions(self, text: TextEmbedding, hw: tuple[int, int]) -> dict[str, Tensor] | None:
        """What the U-Net is told beside the text vectors; `hw` in pixels."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ClipTower:
    """One tokenizer and one text encoder.

    Attributes:
        tokenizer: Pads with what the model was trained with.
        encoder: The frozen text encoder.
        mask_padding: Let cross-attention see the start token and the words only; for models that
            were trained so.
    """

    tokenizer: PreTrainedTokenizerBase
    encoder: CLIPTextModel
    mask_padding: bool = False

    @property
    def context(self) -> int:
        """Tokens of a padded prompt, start and end included."""
        limit = int(self.encoder.config.max_position_embeddings)
        return min(limit, int(self.tokenizer.model_max_length))

    @property
    def width(self) -> int:
        """Of a token's vector."""
        return int(self.encoder.config.hidden_size)

    @property
    def vocabulary_size(self) -> int:
        """Tokens the encoder has vectors for."""
        return int(self.encoder.config.vocab_size)

    @torch.no_grad()
    def embed(self, prompts: Sequence[str]) -> TextEmbedding:
        ids, words = tokenize(self.tokenizer, prompts, self.context)
        vectors = self.encoder(ids.to(self.encoder.device)).last_hidden_state
        return TextEmbedding(
            vectors=vectors,
            prompts=tuple(prompts),
            tokens=token_strings(self.tokenizer, ids),
            mask=words.to(vectors.device) if self.mask_padding else None,
        )

    def negative(self, prompt: str, rows: int) -> TextEmbedding:
        return self.embed([prompt] * rows)

    def conditions(self, text: TextEmbedding, hw: tuple[int, int]) -> dict[str, Tensor] | None:
        return None


def tokenize(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], context: int
) -> tuple[Int[Tensor, "b t"], Bool[Tensor, "b t"]]:
    """Token ids, padded to the context, and which of them are the start token or a word's."""
    batch = tokenizer(
        list(prompts),
        padding="max_length",
        max_length=context,
        truncation=True,
        return_tensors="pt",
    )
    lengths = batch["attention_mask"].sum(1, keepdim=True)
    return batch["input_ids"], torch.arange(context) < lengths - 1


def token_strings(
    tokenizer: PreTrainedTokenizerBase, ids: Int[Tensor, "b t"]
) -> tuple[tuple[str, ...], ...]:
    """The vocabulary's spelling of every token."""
    return tuple(tuple(tokenizer.convert_ids_to_tokens(row)) for row in ids.tolist())


def token_offsets(
    tokenizer: PreTrainedTokenizerBase, prompt: str, marks: Sequence[int] = ()
) -> Offsets:
    """The characters every token of a prompt stands for, nothing cut off.

    Args:
        tokenizer: Of any kind. One that keeps no offsets is asked about the text between `marks`
            piece by piece; its tokens are then known to lie in a piece, which is all that is asked.
        prompt: The text.
        marks: Places to cut at, for tokenizers that keep no offsets.

    Returns:
        (start, stop) for each token; start and end token stand for no character.

    Raises:
        InputError: The tokenizer keeps no offsets and a token reaches across a mark.
    """
    if tokenizer.is_fast:
        batch = tokenizer(prompt, return_offsets_mapping=True, truncation=False, verbose=False)
        return [(int(start), int(stop)) for start, stop in batch["offset_mapping"]]
    cuts = sorted({0, *marks, len(prompt)})
    offsets: Offsets = [(0, 0)]
    pieces: list[str] = []
    for start, stop in pairwise(cuts):
        piece = tokenizer.tokenize(prompt[start:stop])
        pieces += piece
        offsets += [(start, stop)] * len(piece)
    if pieces != tokenizer.tokenize(prompt):
        raise InputError(
            "class names must stand as words of their own in the prompt",
            got=prompt,
            remedy="put blanks around {} in the template",
        )
    return [*offsets, (len(prompt), len(prompt))]


def check_lengths(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], context: int) -> None:
    """Refuse prompts whose end the model would not see.

    Raises:
        InputError: Says how many tokens there are and which words are cut off.
    """
    for prompt in prompts:
        if not isinstance(prompt, str):
            raise InputError(
                "a prompt must be text",
                got=f"{prompt!r} ({type(prompt).__name__})",
                remedy='pass a str or a list of them; "" is the empty prompt',
            )
        offsets = token_offsets(tokenizer, prompt, _blanks(prompt))
        if len(offsets) > context:
            lost = prompt[offsets[context - 1][0] :]
            raise InputError(
                f"a prompt must fit the {context - 2} tokens the model reads",
                got=f"{len(offsets) - 2} tokens; cut off would be {lost!r}",
                remedy="shorten the prompt, or name fewer classes in one",
            )


def _blanks(prompt: str) -> list[int]:
    return [index for index, character in enumerate(prompt) if character == " "]


def token_weights(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], weights: Weights, context: int
) -> Float[Tensor, "b t"]:
    """One weight a token from weights by word or by part of the text; 1 where nothing is said.

    Every place where a word stands is weighted, with all the pieces the tokenizer cuts it into;
    a part (start, stop, weight), as `read_emphasis` finds them, is one place. Weights of places
    that overlap multiply.

    Raises:
        InputError: A word does not stand in its prompt, a weight is no number, or there are not as
            many weights as prompts.
    """
    if isinstance(weights, Tensor):
        if tuple(weights.shape) != (len(prompts), context):
            raise InputError(
                f"token weights must have the shape {(len(prompts), context)}",
                got=tuple(weights.shape),
                remedy="pass one row a prompt and one number a token",
            )
        return weights.float()
    if isinstance(weights, Mapping) or len(weights) != len(prompts):
        raise InputError(
            "weights must be a list with one {word: weight} (or None) a prompt",
            got=f"{weights!r} for {len(prompts)} prompts",
            remedy='for example weights=[{"car": 1.21}]',
        )
    table = torch.ones(len(prompts), context)
    for row, (prompt, said) in enumerate(zip(prompts, weights, strict=True)):
        parts = _word_parts(prompt, said) if isinstance(said, Mapping) else said or ()
        marks = [edge for start, stop, _ in parts for edge in (start, stop)]
        offsets = token_offsets(tokenizer, prompt, marks) if parts else []
        for first, last, weight in parts:
            for index, (start, stop) in enumerate(offsets[: context - 1]):
                if start < stop and start < last and stop > first:
                    table[row, index] *= weight
    return table


def _word_parts(prompt: str, words: Mapping[str, float]) -> list[Stress]:
    parts: list[Stress] = []
    for word, weight in words.items():
        places = find_word(prompt, word)
        if not places or not isinstance(weight, int | float):
            raise InputError(
                "a weighted word must stand in its prompt, and its weight be a number",
                got=f"{word!r}: {weight!r} for {prompt!r}",
                remedy="check the spelling",
            )
        parts += [(start, stop, weight) for start, stop in places]
    return parts


def reweight(
    vectors: Float[Tensor, "b t d"],
    empty: Float[Tensor, "#b t d"],
    weights: Float[Tensor, "b t"],
) -> Float[Tensor, "b t d"]:
    """Stress tokens: move each vector away from the empty prompt's, e + w (z - e).

    DiffSegmenter (arXiv 2309.02773) stresses the class name by w = 1.1^2.

    Example:
        >>> reweight(torch.ones(1, 1, 1), torch.zeros(1, 1, 1), torch.tensor([[1.21]])).item()
        1.2100000381469727
    """
    weight = weights.to(vectors)[..., None]
    # Where nothing is stressed the vectors stay what they are, to the last bit.
    return torch.where(weight == 1, vectors, empty + weight * (vectors - empty))
