"""Why a cell has its label: the prototype that won, and the parts of pictures it stands for.

OVDiff (Karazija and others, 2023, arXiv 2306.09316), figure A.4: a decision leads back to a picture
that was drawn of the class (instance), to alike parts of several (part), or to all (class).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int, Int64
from torch import Tensor

from diffuseg.errors import InputError
from diffuseg.methods.ovdiff.matching import ABSENT, Vocabulary, match
from diffuseg.methods.ovdiff.prototypes import CLASS, INSTANCE, ClassPrototypes


@dataclass(frozen=True, slots=True, kw_only=True)
class Winners:
    """What won where, of one window and extractor.

    Attributes:
        labels: 0 for background, 1 + its number for a class.
        rows: Of the vocabulary: the prototype most alike among those of the label; -1 where it has
            none.
        similarity: Of that prototype.
    """

    labels: Int64[Tensor, "h w"]
    rows: Int64[Tensor, "h w"]
    similarity: Float[Tensor, "h w"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reason:
    """A prototype, and how much of a region it has decided.

    Attributes:
        owner: Number of the class it is of.
        negative: Whether it is of that class's background.
        kind: As in `Prototypes`.
        source: As in `Prototypes`.
        weight: Sum of similarities over cells that it won; negative ones count as 0.
        cells: Their number.
    """

    owner: int
    negative: bool
    kind: int
    source: int
    weight: float
    cells: int


@torch.no_grad()
def winners(
    features: Float[Tensor, "h w d"],
    vocabulary: Vocabulary,
    *,
    selected: Sequence[int],
    background: bool = True,
    labels: Int[Tensor, "h w"] | None = None,
) -> Winners:
    """Return the prototype that decided every cell: of its label the one most alike.

    Args:
        features: Of one window.
        vocabulary: Of the same extractor.
        selected: Numbers of the classes compared.
        background: Whether there is one, as in `match`.
        labels: Of the picture, brought to the grid: they come from several windows and extractors,
            and this says what in this one speaks for them. None: what this one says on its own.

    Raises:
        InputError: As `match`; a label that was not compared.

    Example:
        >>> vocabulary = Vocabulary(
        ...     vectors=torch.eye(2), kinds=torch.tensor([0, 2]), sources=torch.tensor([-1, 3]),
        ...     spans=((0, 2, 2),),
        ... )
        >>> found = winners(torch.tensor([[[1.0, 2.0]]]), vocabulary, selected=[0])
        >>> found.labels.tolist(), found.rows.tolist()
        ([[1]], [[1]])
    """
    if labels is None:
        scores = match(features[None], vocabulary, selected=selected, background=background)[0]
        places = torch.where(scores > 0, scores, 0.0).argmax(0)
        numbers = torch.tensor([0, *(1 + one for one in selected)], device=places.device)
        labels = numbers[places]
    found = labels.unique().tolist()
    if not set(found) <= {0, *(1 + one for one in selected)}:
        raise InputError(
            "labels must be those of classes compared, or 0 for background",
            got=found,
            remedy="select the classes that the picture was matched with",
        )
    rows = torch.full(labels.shape, -1, dtype=torch.int64, device=labels.device)
    nearest = features.new_full(labels.shape, ABSENT, dtype=torch.float32)
    for label in found:
        if label:
            start, middle, _ = vocabulary.spans[label - 1]
            among = torch.arange(start, middle)
        elif background:
            spans = [vocabulary.spans[one] for one in selected]
            among = torch.cat([torch.arange(middle, end) for _, middle, end in spans])
        else:
            continue
        if not len(among):
            continue
        here = labels == label
        cells = features[here].float()
        norms = torch.linalg.vector_norm(cells, dim=1).clamp_min(1e-6)
        among = among.to(cells.device)
        best, place = (cells @ vocabulary.vectors[among].T).max(1)
        rows[here] = among[place]
        nearest[here] = best / norms
    return Winners(labels=labels.long(), rows=rows, similarity=nearest)


def reasons(
    found: Sequence[tuple[Winners, Vocabulary]], region: Sequence[Bool[Tensor, "_ _"]]
) -> list[Reason]:
    """Return the prototypes that decided a region, the weightiest first.

    Args:
        found: What won in each window, of one extractor or of several that share a bank.
        region: Of each window the cells asked about.

    Example:
        >>> vocabulary = Vocabulary(
        ...     vectors=torch.eye(2), kinds=torch.tensor([0, 2]), sources=torch.tensor([-1, 3]),
        ...     spans=((0, 2, 2),),
        ... )
        >>> won = winners(torch.tensor([[[1.0, 2.0]]]), vocabulary, selected=[0])
        >>> [best] = reasons([(won, vocabulary)], [torch.ones(1, 1, dtype=torch.bool)])
        >>> best.kind, best.source, best.cells
        (2, 3, 1)
    """
    votes: dict[tuple[int, bool, int, int], tuple[float, int]] = {}
    for (won, vocabulary), cells in zip(found, region, strict=True):
        owners, negative = vocabulary.owners, vocabulary.negative
        inside = cells & (won.rows >= 0)
        rows, similarity = won.rows[inside].cpu(), won.similarity[inside].cpu().clamp_min(0)
        for row in rows.unique().tolist():
            mine = rows == row
            key = (
                int(owners[row]),
                bool(negative[row]),
                int(vocabulary.kinds[row]),
                int(vocabulary.sources[row]),
            )
            weight, count = votes.get(key, (0.0, 0))
            votes[key] = (weight + float(similarity[mine].sum()), count + int(mine.sum()))
    listed = [
        Reason(
            owner=key[0], negative=key[1], kind=key[2], source=key[3], weight=one[0], cells=one[1]
        )
        for key, one in votes.items()
    ]
    return sorted(listed, key=lambda one: -one.weight)


def support_cells(
    entry: ClassPrototypes, *, kind: int, source: int, negative: bool = False
) -> Bool[Tensor, "n h w"]:
    """Return which cells of the pictures a prototype is the mean of.

    Of a negative, cells that the foreground touches too are not shown.

    Args:
        entry: The class it is of.
        kind: As in `Prototypes`.
        source: As in `Prototypes`.
        negative: Whether it is of the background.

    Example:
        >>> from diffuseg.methods.ovdiff.prototypes import PART, pool_prototypes
        >>> left = torch.tensor([[[True, False]]])
        >>> cat = pool_prototypes(torch.tensor([[[[2.0, 0.0], [0.0, 3.0]]]]), left, ~left)
        >>> support_cells(cat, kind=PART, source=0, negative=True)
        tensor([[[False,  True]]])
    """
    cells = entry.cells
    inside = cells <= -2 if negative else cells >= 0
    if kind == CLASS:
        return inside
    if kind == INSTANCE:
        pictures = torch.arange(len(cells)) == source
        return inside & pictures[:, None, None]
    return cells == (-(source + 2) if negative else source)
