"""Cells of a picture compared with the prototypes of classes, and labels from that.

Stage 3 of OVDiff (Karazija and others, 2023, arXiv 2306.09316): a class is as alike as its nearest
positive prototype, by cosine, and the background as the nearest negative of any class.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int, Int64
from torch import Tensor

from diffuseg import ops
from diffuseg.errors import InputError
from diffuseg.methods.ovdiff.prototypes import ClassPrototypes, Prototypes
from diffuseg.methods.ovdiff.settings import PrototypeKind

_KINDS: tuple[PrototypeKind, ...] = ("class", "instance", "part")  # in the order of their numbers
_LEAST_NORM = 1e-6

# What a product of cells and prototypes may take: beyond, classes and cells come in several goes.
_PRODUCT_BYTES = 32 << 20
_CELLS = 4096

ABSENT = -1.0
"""Similarity of what is not compared: the least a cosine can be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """Prototypes of several classes, ready to be compared: the rows of a class lie together.

    Attributes:
        vectors: Of length 1.
        kinds: As in `Prototypes`.
        sources: As in `Prototypes`.
        spans: Of every class: its first row, the first of its negatives, the end.
    """

    vectors: Float[Tensor, "p d"]
    kinds: Int64[Tensor, " p"]
    sources: Int64[Tensor, " p"]
    spans: tuple[tuple[int, int, int], ...]

    @property
    def owners(self) -> Int64[Tensor, " p"]:
        """The class of every row."""
        counts = torch.tensor([end - start for start, _, end in self.spans])
        return torch.arange(len(self.spans)).repeat_interleave(counts)

    @property
    def negative(self) -> Bool[Tensor, " p"]:
        """Which rows are of backgrounds."""
        rows = torch.zeros(len(self.vectors), dtype=torch.bool)
        for _, middle, end in self.spans:
            rows[middle:end] = True
        return rows

    def to(self, device: torch.device | str) -> "Vocabulary":
        """Return the same with its vectors on a device."""
        return replace(self, vectors=self.vectors.to(device))


@torch.no_grad()
def assemble(
    entries: Sequence[ClassPrototypes],
    stuff: Sequence[bool],
    *,
    kinds: Sequence[PrototypeKind] = _KINDS,
    stuff_threshold: float = 0.85,
) -> Vocabulary:
    """Put classes together; what depends on which they are happens here, not in a bank.

    Things stand in front of stuff, so a negative of theirs may well show some: those too alike to a
    positive of stuff are left out, unless it is the only one of its class, and so are all negatives
    of stuff.

    Args:
        entries: One a class.
        stuff: Which classes are stuff.
        kinds: Prototypes compared.
        stuff_threshold: Cosine above which a negative is too alike. From 1 on, every negative
            stays, stuff's too.

    Raises:
        InputError: There are no classes, or one without positive prototypes; stuff or features that
            do not fit.

    Example:
        >>> from diffuseg.methods.ovdiff.prototypes import pool_prototypes
        >>> left = torch.tensor([[[True, False]]])
        >>> cat = pool_prototypes(torch.tensor([[[[2.0, 0.0], [0.0, 3.0]]]]), left, ~left, parts=1)
        >>> vocabulary = assemble([cat], [False], kinds=["class"])
        >>> vocabulary.vectors, vocabulary.negative.tolist()
        (tensor([[1., 0.],
                [0., 1.]]), [False, True])
    """
    widths = {one.vectors.shape[1] for entry in entries for one in (entry.positive, entry.negative)}
    if not entries or len(stuff) != len(entries) or len(widths) != 1:
        raise InputError(
            "a vocabulary is one class or more, of one extractor, each a thing or stuff",
            got=f"{len(entries)} classes of {sorted(widths)} channels, {len(stuff)} told apart",
            remedy="give the entries of one extractor, and one truth value a class",
        )
    numbers = torch.tensor([_KINDS.index(one) for one in kinds])
    positives = [_unit_rows(entry.positive, numbers) for entry in entries]
    negatives = [_unit_rows(entry.negative, numbers) for entry in entries]
    bare = [number for number, one in enumerate(positives) if not len(one.vectors)]
    if bare:
        raise InputError(
            f"every class must have finite positive prototypes ({', '.join(kinds)})",
            got=f"none for number {bare[0]}",
            remedy="build the class again, or compare other kinds",
        )
    if stuff_threshold < 1 and any(stuff):
        of_stuff = torch.cat(
            [one.vectors for one, is_so in zip(positives, stuff, strict=True) if is_so]
        )
        negatives = [
            _rows(one, torch.zeros(len(one.vectors), dtype=torch.bool))
            if is_so
            else _rows(one, _unlike(one.vectors, of_stuff, stuff_threshold))
            for one, is_so in zip(negatives, stuff, strict=True)
        ]
    blocks: list[Prototypes] = []
    spans: list[tuple[int, int, int]] = []
    end = 0
    for positive, negative in zip(positives, negatives, strict=True):
        start, middle = end, end + len(positive.vectors)
        end = middle + len(negative.vectors)
        blocks += [positive, negative]
        spans.append((start, middle, end))
    return Vocabulary(
        vectors=torch.cat([one.vectors for one in blocks]),
        kinds=torch.cat([one.kinds for one in blocks]),
        sources=torch.cat([one.sources for one in blocks]),
        spans=tuple(spans),
    )


@torch.no_grad()
def match(
    features: Float[Tensor, "b h w d"],
    vocabulary: Vocabulary,
    *,
    selected: Sequence[int],
    background: bool = True,
) -> Float[Tensor, "b r h w"]:
    """Return how alike cells are to the background and to every class selected, -1 to 1.

    Only rows of classes selected are touched, and time and memory depend on their number alone.

    Args:
        features: As they come, not scaled, on the vocabulary's device.
        vocabulary: Of the same extractor.
        selected: Numbers of classes.
        background: Whether there is one: the negatives of the classes selected. Else, and where
            they have none, it is -1 everywhere.

    Returns:
        The background, then the classes in the order of `selected`.

    Raises:
        InputError: Nothing is selected, or what is not there, or features do not fit or are not
            finite.

    Example:
        >>> vocabulary = Vocabulary(
        ...     vectors=torch.eye(2), kinds=torch.tensor([0, 0]), sources=torch.tensor([-1, -1]),
        ...     spans=((0, 1, 1), (1, 2, 2)),
        ... )
        >>> match(torch.tensor([[[[0.0, 5.0]]]]), vocabulary, selected=[1]).flatten()
        tensor([-1.,  1.])
    """
    _check(features, vocabulary, selected)
    batch, height, width, _ = features.shape
    cells = features.flatten(0, 2).float()
    norms = torch.linalg.vector_norm(cells, dim=1)
    if not norms.isfinite().all():
        raise InputError(
            "the picture's features must be finite",
            got="NaN or infinity",
            remedy="run the model in float32",
        )
    scores = cells.new_full((1 + len(selected), len(cells)), ABSENT)
    # Scaling a cell does not change which prototype is nearest: it can wait for the few numbers
    # that are left, and no scaled copy of the features is made.
    norms.clamp_min_(_LEAST_NORM)
    scores[0] *= norms
    for part in torch.arange(len(cells)).split(_CELLS):
        at = slice(int(part[0]), int(part[-1]) + 1)
        for first, rows, spans in _groups(vocabulary, selected, at.stop - at.start, background):
            product = rows @ cells[at].T
            for place, (start, middle, end) in enumerate(spans, first):
                scores[1 + place, at] = product[start:middle].amax(0)
                if end > middle:
                    nearest = product[middle:end].amax(0)
                    torch.maximum(scores[0, at], nearest, out=scores[0, at])
    scores /= norms
    return scores.clamp_(-1, 1).unflatten(1, (batch, height, width)).transpose(0, 1)


def similarities(
    features: Float[Tensor, "b h w d"],
    vocabulary: Vocabulary,
    *,
    selected: Sequence[int],
    background: bool = True,
) -> Float[Tensor, "b r h w"]:
    """Return what `match` does with a row for every class, -1 of those not selected.

    With many classes those rows are most of the work that follows: `match` leaves them out.

    Example:
        >>> vocabulary = Vocabulary(
        ...     vectors=torch.eye(2), kinds=torch.tensor([0, 0]), sources=torch.tensor([-1, -1]),
        ...     spans=((0, 1, 1), (1, 2, 2)),
        ... )
        >>> similarities(torch.tensor([[[[0.0, 5.0]]]]), vocabulary, selected=[1]).flatten()
        tensor([-1., -1.,  1.])
    """
    found = match(features, vocabulary, selected=selected, background=background)
    shape = (len(found), 1 + len(vocabulary.spans), *found.shape[2:])
    result = found.new_full(shape, ABSENT)
    result[:, [0, *(1 + one for one in selected)]] = found
    return result


@torch.no_grad()
def label_scores(
    scores: Float[Tensor, "r H W"],
    *,
    classes: Sequence[int] | None = None,
    size: tuple[int, int] | None = None,
    background: Literal["prototypes", "threshold", "none"] = "prototypes",
    threshold: float = 0.72,
) -> Int[Tensor, "h w"]:
    """Return the label of every pixel: 0 for background, 1 + its number for a class.

    The first of equal rows wins. With "prototypes" the background also has all pixels where nothing
    is above 0.

    Args:
        scores: The background's, then one a class.
        classes: Their numbers; None: 0, 1, 2, …
        size: Height and width to enlarge to before labels are chosen; None: as it is.
        background: As in `OVDiff`.
        threshold: For "threshold".

    Example:
        >>> label_scores(torch.tensor([[[0.5, 0.1]], [[0.4, 0.3]]]), classes=[7]).tolist()
        [[0, 8]]
        >>> label_scores(torch.tensor([[[0.5, 0.1]], [[0.4, 0.3]]]), background="none").tolist()
        [[1, 1]]
    """
    numbers = list(range(len(scores) - 1)) if classes is None else list(classes)
    if len(numbers) != len(scores) - 1 or not numbers:
        raise InputError(
            "there must be a row for the background and one for each of one class or more",
            got=f"{len(scores)} rows for {len(numbers)} classes",
            remedy="give the classes that were selected",
        )
    hw = size or (scores.shape[1], scores.shape[2])
    # A row at a time: at a photograph's size not all of them fit into memory.
    planes = (ops.resize(one[None, None], hw)[0, 0] for one in scores)
    best = next(planes).clamp_min(0)
    if background != "prototypes":
        best = torch.full_like(best, -torch.inf)
    labels = torch.zeros_like(best, dtype=torch.int64)
    for number, plane in zip(numbers, planes, strict=True):
        labels[plane > best] = 1 + number
        torch.maximum(best, plane, out=best)
    if background == "threshold":
        labels[best < threshold] = 0
    return labels


def _unit_rows(prototypes: Prototypes, kinds: Int64[Tensor, " m"]) -> Prototypes:
    """The finite rows of some kinds, scaled to length 1."""
    wanted = torch.isin(prototypes.kinds, kinds)
    wanted &= prototypes.vectors.isfinite().all(1).cpu()
    found = _rows(prototypes, wanted)
    vectors = found.vectors.float()
    norms = torch.linalg.vector_norm(vectors, dim=1, keepdim=True).clamp_min(_LEAST_NORM)
    return replace(found, vectors=vectors / norms)


def _rows(prototypes: Prototypes, wanted: Bool[Tensor, " p"]) -> Prototypes:
    return Prototypes(
        vectors=prototypes.vectors[wanted],
        kinds=prototypes.kinds[wanted],
        sources=prototypes.sources[wanted],
    )


def _unlike(
    negatives: Float[Tensor, "p d"], stuff: Float[Tensor, "m d"], threshold: float
) -> Bool[Tensor, " p"]:
    """Which rows are not too alike to any of stuff; a single row is."""
    if len(negatives) <= 1:
        return torch.ones(len(negatives), dtype=torch.bool)
    most = max(1, _PRODUCT_BYTES // (4 * len(negatives)))
    nearest = [(negatives @ part.T).amax(1) for part in stuff.split(most)]
    return torch.stack(nearest).amax(0) <= threshold


def _groups(
    vocabulary: Vocabulary, selected: Sequence[int], cells: int, background: bool
) -> Iterator[tuple[int, Float[Tensor, "g d"], list[tuple[int, int, int]]]]:
    """Yield as many classes as make a product that fits: place of the first, rows, their spans."""
    most = max(1, _PRODUCT_BYTES // (4 * cells))
    blocks: list[Tensor] = []
    spans: list[tuple[int, int, int]] = []
    first = count = 0
    for place, number in enumerate(selected):
        start, middle, end = vocabulary.spans[number]
        end = end if background else middle
        if blocks and count + end - start > most:
            yield first, torch.cat(blocks), spans
            blocks, spans, first, count = [], [], place, 0
        blocks.append(vocabulary.vectors[start:end])
        spans.append((count, count + middle - start, count + end - start))
        count += end - start
    yield first, torch.cat(blocks), spans


def _check(features: Tensor, vocabulary: Vocabulary, selected: Sequence[int]) -> None:
    classes, width = len(vocabulary.spans), vocabulary.vectors.shape[1]
    if not selected or min(selected) < 0 or max(selected) >= classes:
        raise InputError(
            f"one class or more must be selected, by numbers from 0 to {classes - 1}",
            got=list(selected),
            remedy="where the pre-filter leaves nothing, select all",
        )
    if features.shape[3] != width:
        raise InputError(
            "features and prototypes must be of one extractor",
            got=f"{features.shape[3]} channels for prototypes of {width}",
            remedy="use the extractor, with the settings, that the bank was built with",
        )
