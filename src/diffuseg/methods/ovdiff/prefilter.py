"""Which classes a picture shows, by texts about one and about several of them (OVDiff, 3.3).

First every class on its own, then all combinations of those left. Stuff is not asked about: it
always stays, and is added by who calls.
"""

from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from diffuseg.errors import InputError

Rule = Literal["release", "paper"]
Subset = tuple[int, ...]

_MOST_CANDIDATES = 14  # 16383 texts


def prompt_of(names: Sequence[str]) -> str:
    """Return the text about names, one or several.

    Example:
        >>> prompt_of(["dog", "potted plant"])
        'a dog and a potted plant'
    """
    return " and ".join(f"a {name}" for name in names)


@torch.no_grad()
def first_stage(
    image: Float[Tensor, " d"],
    names: Float[Tensor, "k d"],
    rule: Rule = "release",
    candidates: int = 10,
) -> list[int]:
    """Return which names have their share of a softmax of the cosines, or more.

    Cosines go into it as they are: multiplied by CLIP's scale, nearly all names would drop out.

    Args:
        image: Its embedding, of any length.
        names: Embeddings of the texts about single names.
        rule: "release": a name stays from 1 / k on. "paper": above 1 / k.
        candidates: How many may be left.

    Returns:
        Ascending; or, if there were more than `candidates`, those most alike, best first. If none
        passes, because all are equal, the best `candidates`.

    Raises:
        InputError: There are no names, or embeddings are not finite.

    Example:
        >>> names = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.9, 0.1]])
        >>> first_stage(torch.tensor([2.0, 0.0]), names)
        [0, 2]
        >>> first_stage(torch.tensor([2.0, 0.0]), names, candidates=1)
        [0]
    """
    shares = name_shares(image, names)
    found = enough(shares, rule).nonzero()[:, 0].tolist()
    if 0 < len(found) <= candidates:
        return found
    order = torch.argsort(shares, descending=True, stable=True).tolist()
    known = set(found or order)
    return [one for one in order if one in known][:candidates]


def enough(shares: Float[Tensor, " k"], rule: Rule = "release") -> Bool[Tensor, " k"]:
    """Return which shares reach, or by the paper exceed, what they would be if all were equal.

    Example:
        >>> enough(torch.tensor([0.25, 0.25, 0.0, 0.5]), "paper").tolist()
        [False, False, False, True]
    """
    least = 1 / len(shares)
    return shares > least if rule == "paper" else shares >= least


def name_shares(image: Float[Tensor, " d"], names: Float[Tensor, "k d"]) -> Float[Tensor, " k"]:
    """Return the softmax of an image's cosines with names.

    Raises:
        InputError: There are no names, or embeddings are not finite.

    Example:
        >>> name_shares(torch.tensor([1.0, 0.0]), torch.tensor([[3.0, 0.0], [0.0, 3.0]]))
        tensor([0.7311, 0.2689])
    """
    return torch.softmax(cosines(image, names), dim=0)


@torch.no_grad()
def best_subset(
    image: Float[Tensor, " d"],
    texts_of: Callable[[Sequence[Subset]], Float[Tensor, "m d"]],
    candidates: Sequence[int],
) -> Subset:
    """Return the candidates, one or several, whose joint text is most like the image.

    Args:
        image: Its embedding.
        texts_of: Returns embeddings of the texts about given combinations of names, such as those
            of `prompt_of`; every combination comes once.
        candidates: Numbers of names. Of equally good combinations the smaller wins, then the one
            that comes first here.

    Raises:
        InputError: There are no candidates, too many, or embeddings are not finite.

    Example:
        >>> names = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> def texts(subsets):
        ...     return torch.stack([names[list(one)].mean(0) for one in subsets])
        >>> best_subset(torch.tensor([1.0, 0.9]), texts, [0, 1])
        (0, 1)
    """
    if not 1 <= len(candidates) <= _MOST_CANDIDATES:
        raise InputError(
            f"1 to {_MOST_CANDIDATES} candidates can be combined, each doubles the work",
            got=f"{len(candidates)} of them",
            remedy="let the first stage leave fewer; the paper has 10",
        )
    known = subsets_of(candidates)
    return known[int(cosines(image, texts_of(known)).argmax())]


def subsets_of(candidates: Sequence[int]) -> list[Subset]:
    """Return all combinations, smaller ones first, then in the order of the candidates.

    Example:
        >>> subsets_of([4, 2])
        [(4,), (2,), (4, 2)]
    """
    sizes = range(1, len(candidates) + 1)
    return [one for size in sizes for one in combinations(candidates, size)]


def cosines(image: Float[Tensor, " d"], texts: Float[Tensor, "m d"]) -> Float[Tensor, " m"]:
    """Return the cosine of an image's embedding with each text's.

    Raises:
        InputError: There are no texts, or embeddings are not finite.

    Example:
        >>> cosines(torch.tensor([2.0, 0.0]), torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
        tensor([1., 0.])
    """
    found = F.normalize(texts.float(), dim=1) @ F.normalize(image.float(), dim=0)
    if not len(found) or not found.isfinite().all():
        raise InputError(
            "choosing classes needs finite embeddings of an image and a text or more",
            got="NaN or infinity" if len(found) else "no texts",
            remedy="run CLIP in float32; without names to ask about, leave the pre-filter out",
        )
    return found
