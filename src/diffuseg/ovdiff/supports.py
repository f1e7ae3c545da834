"""Support sets: pictures a model draws of every class, and where it saw the class in each.

One sampling run gives both. Attention to the class's tokens is taken out of every cross-attention
layer right after its softmax, and only a sum is kept.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from diffuseg import ops
from diffuseg.attention import LayerId, record
from diffuseg.attention.captured import ReducedMap
from diffuseg.attention.layers import LayerShape
from diffuseg.backbones import Diffusion
from diffuseg.errors import InputError
from diffuseg.methods.ovdiff import OVDiff
from diffuseg.methods.ovdiff.attribution import AttributionSum
from diffuseg.methods.ovdiff.settings import NEGATIVE_PROMPT
from diffuseg.methods.settings import given
from diffuseg.prompts import ClassName, build_prompts, parse_classes

Progress = Callable[[int, int], None]
Tokens = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Supports:
    """The pictures of one class.

    Attributes:
        name: The class.
        prompt: What they were drawn from; of a class with synonyms all prompts, " | " between.
        images: Red, green and blue, 0 to 255.
        attribution: Mean attention to the class's tokens, on the CPU.
    """

    name: str
    prompt: str
    images: UInt8[np.ndarray, "n h w 3"]
    attribution: Float[Tensor, "n s1 s2"]


@dataclass(frozen=True, slots=True)
class _Job:
    """One picture to draw: of which class, from which prompt and noise."""

    owner: int
    prompt: str
    tokens: Tokens
    seed: int


def draw_supports(
    model: Diffusion,
    classes: object,
    settings: OVDiff | None = None,
    *,
    batch_size: int = 8,
    progress: Progress | None = None,
) -> Iterator[Supports]:
    """Draw the support set of every class, with the attribution of its words.

    Picture i of every class starts from the noise of seed `settings.seed` + i, whatever else is
    drawn beside it. (The authors draw the noise of a class's pictures from one generator, seeded
    once a class; there, too, all classes start from the same noise.) The pictures of a class with
    synonyms take turns with its words.

    Everything is checked before the first picture is drawn, when this is called.

    Args:
        model: Draws.
        classes: As for `parse_classes`.
        settings: The fields up to `size` count. With profile="release", the class's tokens are
            looked for from the start of the prompt, where the first one like the name's first may
            be one of the template's, and colours are cut to whole numbers instead of rounded.
        batch_size: Pictures drawn at once, of several classes where it does not divide their
            number; results differ by rounding only.
        progress: Told (pictures drawn, pictures in all) after every batch.

    Yields:
        A class's pictures as soon as all of them are there, in the order of the classes.

    Raises:
        InputError: The model does not know a word, a name is beyond what it reads, or a setting
            fits no model.

    Example:
        >>> import diffuseg as ds
        >>> quick = OVDiff(number=2, steps=1, size=32, scheduler="DDIM")
        >>> [found] = draw_supports(ds.load("mini"), "car", quick)
        >>> found.prompt, found.images.shape, found.attribution.shape
        ('A good picture of a car', (2, 32, 32, 3), torch.Size([2, 4, 4]))
    """
    chosen = (settings or OVDiff()).ready(model.preset.get("ovdiff"))
    if batch_size < 1:
        raise InputError("batch_size must be 1 or more", got=batch_size, remedy="try 8")
    parsed = parse_classes(classes)
    model.check_words([word for one in parsed for word in one.words])
    negative = negative_prompt(model, chosen)
    prompts, jobs = _plan(model, parsed, chosen)
    return _draw(model, parsed, prompts, jobs, chosen, negative, batch_size, progress)


def negative_prompt(model: Diffusion, settings: OVDiff) -> str:
    """Return what pictures are steered away from.

    The authors' words are left out where the model cannot know them, as one with a closed
    vocabulary; any other text is yours, and must be known.

    Raises:
        InputError: The model does not know a word of it.
    """
    text = given(settings.ready(model.preset.get("ovdiff")).negative)
    try:
        model.check_words([text])
    except InputError:
        if text == NEGATIVE_PROMPT:
            return ""
        raise
    return text


def _plan(
    model: Diffusion, classes: Sequence[ClassName], settings: OVDiff
) -> tuple[list[str], list[_Job]]:
    """The prompt of every class, for people, and all pictures, class by class."""
    written = build_prompts(classes, given(settings.template), joint=False)
    spans = {span.row: span.tokens for span in model.token_spans(written)}
    if settings.profile == "release":
        spans = {
            row: _first_place(model.embed(written.prompts[row]).tokens[0], tokens)
            for row, tokens in spans.items()
        }
    rows = iter(zip(written.prompts, (spans[row] for row in sorted(spans)), strict=True))
    prompts, jobs = [], []
    for owner, one in enumerate(classes):
        turns = [next(rows) for _ in one.words]
        prompts.append(" | ".join(prompt for prompt, _ in turns))
        jobs += [
            _Job(owner, *turns[number % len(turns)], seed=given(settings.seed) + number)
            for number in range(given(settings.number))
        ]
    return prompts, jobs


def _first_place(words: Sequence[str], tokens: Tokens) -> Tokens:
    """As many tokens, from the first that is like the name's first."""
    start = words.index(words[tokens[0]])
    return tuple(range(start, start + len(tokens)))


def _draw(
    model: Diffusion,
    classes: Sequence[ClassName],
    prompts: Sequence[str],
    jobs: Sequence[_Job],
    settings: OVDiff,
    negative: str,
    batch_size: int,
    progress: Progress | None,
) -> Iterator[Supports]:
    images: list[np.ndarray] = []
    maps: list[Tensor] = []
    number, owner = given(settings.number), 0
    for start in range(0, len(jobs), batch_size):
        batch = jobs[start : start + batch_size]
        drawn, attribution = _draw_batch(model, batch, settings, negative)
        images += list(drawn)
        maps += list(attribution)
        if progress is not None:
            progress(start + len(batch), len(jobs))
        while len(images) >= number and owner < len(classes):
            yield Supports(
                name=classes[owner].name,
                prompt=prompts[owner],
                images=np.stack(images[:number]),
                attribution=torch.stack(maps[:number]),
            )
            del images[:number], maps[:number]
            owner += 1


def _draw_batch(
    model: Diffusion, batch: Sequence[_Job], settings: OVDiff, negative: str
) -> tuple[UInt8[np.ndarray, "b h w 3"], Float[Tensor, "b s1 s2"]]:
    side, guidance = settings.size or model.size, given(settings.guidance)
    columns = ClassColumns([job.tokens for job in batch])
    half = "cond" if guidance > 1 else "all"  # `sample` then has no other half
    with record(model, kinds="cross", half=half, reduce=columns):
        pixels = model.sample(
            [job.prompt for job in batch],
            steps=given(settings.steps),
            guidance=guidance,
            negative=negative,
            seed=[job.seed for job in batch],
            hw=(side, side),
            scheduler=settings.scheduler,
        )
    levels = pixels.permute(0, 2, 3, 1).mul(255)
    whole = levels.floor() if settings.profile == "release" else levels.round()
    return whole.to(torch.uint8).cpu().numpy(), columns.attribution().cpu()


class ClassColumns:
    """What `record(reduce=...)` fills with the attribution of each row's own tokens.

    All cross-attention layers count, the coarsest too.

    Args:
        tokens: Of every row.

    Example:
        >>> ClassColumns([(6,), (6, 7)]).tokens
        ((6,), (6, 7))
    """

    def __init__(self, tokens: Sequence[Tokens]) -> None:
        self.tokens = tuple(tokens)
        self._columns = sorted({token for row in self.tokens for token in row})
        width = max(map(len, self.tokens))
        place = {token: index for index, token in enumerate(self._columns)}
        # Rows with fewer tokens take a column twice, and it is then set to zero.
        padded = [row + row[:1] * (width - len(row)) for row in self.tokens]
        self._places = torch.tensor([[place[token] for token in row] for row in padded])
        self._held = torch.arange(width) < self._counts()[:, None]
        self.reset()

    def _counts(self) -> Tensor:
        return torch.tensor([len(row) for row in self.tokens])

    def reset(self) -> None:
        self._sum = AttributionSum(self._counts())

    def takes(self, layer: LayerId) -> bool:
        return layer.kind == "cross"

    def update(
        self,
        layer: LayerId,
        step: int | float,
        q: Float[Tensor, "b h n d"],
        k: Float[Tensor, "b h m d"],
        hw: tuple[int, int],
        bias: Float[Tensor, "b _ m"] | None = None,
    ) -> None:
        maps = ops.head_maps(q, k, scale=layer.scale, bias=bias, tokens=self._columns)
        places = self._places.to(maps.device)[:, None, None]
        own = maps.gather(3, places.expand(*maps.shape[:3], -1))
        self._sum.add(own * self._held.to(maps.device)[:, None, None], hw)

    def finish(self) -> list[ReducedMap]:
        """No means for the record; see `attribution`."""
        return []

    def nbytes(self, shapes: Sequence[LayerShape]) -> int:
        largest = max((shape.rows * shape.queries for shape in shapes), default=0)
        return 4 * largest

    def attribution(self) -> Float[Tensor, "b s1 s2"]:
        """Return the mean of all that was taken."""
        return self._sum.mean()
