"""A CLIP tokenizer whose vocabulary is the words of Scenes, one token a word.

It is an ordinary `CLIPTokenizer` (byte-pair encoding, lower-cased, start and end token, padded
with the end token as Stable Diffusion 1.x does), so that the embedded model goes through the code
any Stable Diffusion does. Words outside the vocabulary fall apart into characters.
"""

from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

_WORD_END = "</w>"
_CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,:;!?'-"
START, END = "<|startoftext|>", "<|endoftext|>"


def learn_merges(words: Iterable[str]) -> list[tuple[str, str]]:
    """Byte-pair merges under which every given word becomes a single token.

    The usual greedy training, run until no word is left in pieces: encoding replays the merges in
    order, so it ends where training ended.

    Example:
        >>> learn_merges(["ab", "abc"])
        [('b', 'c</w>'), ('a', 'bc</w>'), ('a', 'b</w>')]
    """
    pieces = {word: (*word[:-1], word[-1] + _WORD_END) for word in dict.fromkeys(words)}
    merges: list[tuple[str, str]] = []
    while True:
        pairs = Counter(pair for parts in pieces.values() for pair in pairwise(parts))
        if not pairs:
            return merges
        best = max(pairs, key=lambda pair: (pairs[pair], pair[1].endswith(_WORD_END), pair))
        merges.append(best)
        pieces = {word: _apply(parts, best) for word, parts in pieces.items()}


def _apply(parts: tuple[str, ...], merge: tuple[str, str]) -> tuple[str, ...]:
    joined: list[str] = []
    index = 0
    while index < len(parts):
        if parts[index : index + 2] == merge:
            joined.append("".join(merge))
            index += 2
        else:
            joined.append(parts[index])
            index += 1
    return tuple(joined)


def build_tokenizer(words: Iterable[str], *, max_length: int = 77) -> "CLIPTokenizer":
    """The tokenizer for a closed list of lower-case words.

    Args:
        words: Every word that shall be one token, a-z only.
        max_length: Length of the padded sequence; 77 as in Stable Diffusion.

    Example:
        >>> build_tokenizer(["red", "car"]).tokenize("a red car")
        ['a</w>', 'red</w>', 'car</w>']
    """
    from transformers import CLIPTokenizer

    merges = learn_merges(words)
    symbols = [*_CHARACTERS, *(character + _WORD_END for character in _CHARACTERS)]
    symbols += dict.fromkeys("".join(merge) for merge in merges)
    symbols += [START, END]
    vocab = {symbol: index for index, symbol in enumerate(symbols)}
    return CLIPTokenizer(
        vocab=vocab,
        merges=merges,  # pyright: ignore[reportArgumentType] - annotated as text, takes pairs
        bos_token=START,
        eos_token=END,
        unk_token=END,
        pad_token=END,
        model_max_length=max_length,
    )
