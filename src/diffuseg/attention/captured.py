"""What a record is made of: its header, passes through the U-Net, means of maps."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from importlib import metadata

from jaxtyping import Float, UInt8
from torch import Tensor

from diffuseg.attention.layers import LayerId
from diffuseg.errors import InputError
from diffuseg.prompts import TokenSpan


def _installed_version() -> str:
    try:
        return metadata.version("diffuseg")
    except metadata.PackageNotFoundError:
        return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordHeader:
    """What a record is a record of.

    The caller of `record()` gives what it knows; `timesteps`, `latent_hw` and `version` are filled
    in on leaving, `model`, `prompts` and `tokens` too if they are empty and can be found out.

    Attributes:
        model: Name, id or path of the model.
        prompts: One for every row of the batch, or one for every equal run of rows (one prompt
            for the whole batch, n prompts with several images each).
        tokens: The token strings of each prompt, start, end and padding tokens included.
        spans: Which tokens name which class.
        names: The classes, in the user's order.
        timesteps: Of every pass, in the order of the passes; whole numbers except for SVD.
        seed: Seed of the noise, None where there was none.
        image_hw: Height and width of the user's image.
        input_hw: Height and width of what the model saw, in pixels.
        latent_hw: Height and width of the latent.
        version: Version of diffuseg.
        provenance: Anything else worth keeping, plain JSON values.

    Example:
        >>> RecordHeader(model="mini", prompts=("a dog",)).timesteps
        ()
    """

    model: str = ""
    prompts: tuple[str, ...] = ()
    tokens: tuple[tuple[str, ...], ...] = ()
    spans: tuple[TokenSpan, ...] = ()
    names: tuple[str, ...] = ()
    timesteps: tuple[int | float, ...] = ()
    seed: int | None = None
    image_hw: tuple[int, int] | None = None
    input_hw: tuple[int, int] | None = None
    latent_hw: tuple[int, int] | None = None
    version: str = field(default_factory=_installed_version)
    provenance: Mapping[str, str | int | float | bool | None] = field(default_factory=dict)

    @property
    def n_prompts(self) -> int:
        """How many prompts the tokens and spans refer to; 0 if nothing is known of them."""
        rows = max((span.row + 1 for span in self.spans), default=0)
        return max(len(self.prompts), len(self.tokens), rows)

    def prompt_of(self, batch: int) -> tuple[int, ...]:
        """Return the prompt of every row of a batch; equal runs of rows share one.

        Raises:
            InputError: The batch cannot be dealt out over the prompts.
        """
        count = self.n_prompts
        if not count or batch % count:
            raise InputError(
                "the header must name the prompt of every row, or one for each equal run of rows",
                got=f"{count} prompts for a batch of {batch}",
                remedy="pass record(header=RecordHeader(prompts=..., tokens=..., spans=...))",
            )
        return tuple(row * count // batch for row in range(batch))

    def of_rows(self, rows: Sequence[int], batch: int) -> "RecordHeader":
        """Return the header of a part of the batch; prompt i is then that of row i."""
        if not self.n_prompts:
            return self
        prompts = [self.prompt_of(batch)[row] for row in rows]
        return replace(
            self,
            prompts=tuple(self.prompts[i] for i in prompts) if self.prompts else (),
            tokens=tuple(self.tokens[i] for i in prompts) if self.tokens else (),
            spans=tuple(
                replace(span, row=row)
                for row, prompt in enumerate(prompts)
                for span in self.spans
                if span.row == prompt
            ),
        )

    def places(self, text: str, batch: int) -> list[tuple[int, tuple[int, ...]]]:
        """Return where a class or any word of the prompts is: rows of the batch and their tokens.

        Raises:
            InputError: No prompt has it; lists what there is.
        """
        wanted = text.casefold()
        found: dict[int, set[int]] = {}
        for span in self.spans:
            if span.name.casefold() == wanted:
                found.setdefault(span.row, set()).update(span.tokens)
        if not found:
            pieces = {row: find_tokens(tokens, text) for row, tokens in enumerate(self.tokens)}
            found = {row: set(tokens) for row, tokens in pieces.items() if tokens}
        if not found:
            names = dict.fromkeys(span.name for span in self.spans)
            words = dict.fromkeys(word for row in self.tokens for word, _ in split_words(row))
            known = ", ".join(dict.fromkeys([*names, *words]))
            raise InputError(
                "the word must be a class or a word of the recorded prompts",
                got=text,
                remedy=f"one of: {known}"
                if known
                else "pass token indices, or the prompt's tokens by record(header=...)",
            )
        rows = enumerate(self.prompt_of(batch))
        return [(row, tuple(sorted(found[prompt]))) for row, prompt in rows if prompt in found]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReducedMap:
    """A mean of attention maps that was taken while they were recorded.

    Attributes:
        kind: Kind of the layers.
        hw: Grid of the queries.
        tokens: Keys the columns stand for; None if all are there, in order.
        pooled: Whether maps of all grids were brought to `hw` and are in one mean.
        count: Head maps in the mean (layers x heads x passes).
        values: The mean, float32.
    """

    kind: str
    hw: tuple[int, int]
    tokens: tuple[int, ...] | None = None
    pooled: bool = False
    count: int
    values: Float[Tensor, "b n m"]


@dataclass(frozen=True, slots=True)
class CapturedPass:
    """What one call of the U-Net left: queries and keys by layer name, features by module path."""

    step: int | float
    queries: dict[str, Tensor] = field(default_factory=dict)
    keys: dict[str, Tensor] = field(default_factory=dict)
    biases: dict[str, Tensor] = field(default_factory=dict)
    features: dict[str, Tensor] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Bytes of queries, keys and features."""
        parts = (self.queries, self.keys, self.features)
        return sum(tensor.nbytes for part in parts for tensor in part.values())

    def rows(self, index: slice | list[int]) -> "CapturedPass":
        """Return the same pass with some rows of the batch; a slice shares the tensors."""
        parts = (self.queries, self.keys, self.biases, self.features)
        return CapturedPass(
            self.step, *({name: one[index] for name, one in part.items()} for part in parts)
        )

    def only(self, names: Collection[str]) -> "CapturedPass":
        """Return the same pass with the attention of some layers, and all features."""
        parts = (self.queries, self.keys, self.biases)
        q, k, bias = ({name: part[name] for name in part if name in names} for part in parts)
        return CapturedPass(self.step, q, k, bias, self.features)


@dataclass(slots=True, kw_only=True)
class Contents:
    """All that is in a record; `record()` fills it pass by pass."""

    header: RecordHeader = field(default_factory=RecordHeader)
    layers: Sequence[LayerId] = ()
    grids: dict[str, tuple[int, int]] = field(default_factory=dict)
    passes: list[CapturedPass] = field(default_factory=list)
    reduced: list[ReducedMap] = field(default_factory=list)
    picture: UInt8[Tensor, "3 H W"] | None = None

    @property
    def timesteps(self) -> tuple[int | float, ...]:
        """The timestep of every pass."""
        return self.header.timesteps or tuple(one.step for one in self.passes)

    def stored(self, kind: str) -> list[LayerId]:
        """Return the layers of a kind whose queries and keys were kept."""
        names = self.passes[0].queries if self.passes else {}
        return [one for one in self.layers if one.kind == kind and one.name in names]

    def passes_at(self, step: int | float | None) -> list[CapturedPass]:
        """Return the passes at a timestep, all of them for None.

        Raises:
            InputError: There is none; lists the timesteps.
        """
        passes = [one for one in self.passes if step is None or one.step == step]
        if not passes:
            raise InputError(
                "the step must be a recorded timestep",
                got="any" if step is None else step,
                remedy=f"recorded: {', '.join(map(str, self.timesteps)) or 'none'}",
            )
        return passes

    def only(self, patterns: Sequence[str], steps: Sequence[int | float] | None) -> "Contents":
        """Return the part with some layers and timesteps; see `AttentionRecord.only`."""
        if self.reduced:
            raise InputError(
                "layers can be chosen where queries and keys were kept",
                got="a record with means taken by reduce=",
                remedy="record without reduce=",
            )
        layers = [one for one in self.layers if any(fnmatchcase(one.name, p) for p in patterns)]
        if not layers:
            raise InputError(
                "layers must match recorded ones",
                got=", ".join(patterns),
                remedy=f"for example {self.layers[-1].name}" if self.layers else "record some",
            )
        for step in steps or ():
            self.passes_at(step)
        names = {one.name for one in layers}
        passes = [one.only(names) for one in self.passes if steps is None or one.step in steps]
        return replace(
            self,
            header=replace(self.header, timesteps=tuple(one.step for one in passes)),
            layers=layers,
            grids={name: grid for name, grid in self.grids.items() if name in names},
            passes=passes,
        )


def find_tokens(tokens: Sequence[str], text: str) -> tuple[int, ...]:
    """Return the indices of all tokens that spell `text` (one or more whole words).

    Works for CLIP's pieces, where "</w>" ends a word, and for vocabularies of whole words.

    Example:
        >>> find_tokens(("<|startoftext|>", "hot</w>", "do", "g</w>", "<|endoftext|>"), "Hot dog")
        (1, 2, 3)
    """
    words = split_words(tokens)
    wanted = text.casefold().split()
    found: set[int] = set()
    for start in range(len(words) - len(wanted) + 1):
        run = words[start : start + len(wanted)]
        if wanted and [word.casefold() for word, _ in run] == wanted:
            found.update(index for _, indices in run for index in indices)
    return tuple(sorted(found))


def split_words(tokens: Sequence[str]) -> list[tuple[str, tuple[int, ...]]]:
    """Join word pieces: every word of a token sequence with the indices of its pieces."""
    pieces_end = any(token.endswith("</w>") for token in tokens)
    words: list[tuple[str, tuple[int, ...]]] = []
    text, indices = "", []
    for index, token in enumerate(tokens):
        special = token.startswith("<") and token.endswith(">") and not token.endswith("</w>")
        if special or token.startswith("["):
            text, indices = "", []
            continue
        text, indices = text + token.removesuffix("</w>"), [*indices, index]
        if token.endswith("</w>") or not pieces_end:
            words.append((text, tuple(indices)))
            text, indices = "", []
    return words
