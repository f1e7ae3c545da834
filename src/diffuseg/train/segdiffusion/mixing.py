"""Several data sets in one training: their classes under one roof, and whose turn it is.

A class is asked for as absent only of pictures whose data set names it: where it does not, nobody
looked. Every batch is of one data set, drawn by the sets' shares.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float

from diffuseg.errors import InputError
from diffuseg.train.segdiffusion.batches import BatchSource, MaskBatch
from diffuseg.train.segdiffusion.pictures import LabelledPictures
from diffuseg.train.segdiffusion.queries import QuerySampler
from diffuseg.train.segdiffusion.relations import Relations, spoken

_SETS = 3  # what a stream of chance is for; see `batches`


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Mixture:
    """Data sets that are learned from together.

    Attributes:
        sets: They.
        weights: How often they are drawn, against each other; None: by their numbers of pictures.

    Raises:
        InputError: There is no set, or not a weight above 0 for each.

    Example:
        >>> Mixture(sets=(streets, rooms), weights=(2.0, 1.0)).shares  # doctest: +SKIP
        (0.6666666666666666, 0.3333333333333333)
    """

    sets: tuple[LabelledPictures, ...]
    weights: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if not self.sets:
            raise InputError("there must be a data set", got="none", remedy="name one")
        weights = self.weights
        if weights is not None and (
            len(weights) != len(self.sets) or not all(0 < one < float("inf") for one in weights)
        ):
            raise InputError(
                "every data set of a mixture must have a weight above 0",
                got=f"{len(self.sets)} sets, weights {', '.join(map(str, weights))}",
                remedy="give one for each, or none at all",
            )

    @property
    def shares(self) -> tuple[float, ...]:
        """How often every set is drawn, of 1."""
        sizes = self.weights or tuple(max(len(one), 1) for one in self.sets)
        return tuple(one / sum(sizes) for one in sizes)

    @property
    def labels(self) -> tuple[str, ...]:
        """What every set is called: its name, numbered where it is not the first of that name."""
        names = [one.name for one in self.sets]
        counts = [names[:place].count(name) + 1 for place, name in enumerate(names)]
        return tuple(
            name if count == 1 else f"{name}-{count}"
            for name, count in zip(names, counts, strict=True)
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Merged:
    """Data sets whose classes are one list.

    Attributes:
        mixture: The sets.
        classes: Of all of them.
        places: Where every set's classes are in that list.
        related: Which classes of a set may lie on the pixels of which; None: none of them.
    """

    mixture: Mixture
    classes: tuple[str, ...]
    places: tuple[tuple[int, ...], ...]
    related: tuple[Bool[np.ndarray, "k k"] | None, ...]

    def find(self, names: Sequence[str]) -> tuple[tuple[str, ...], ...]:
        """What every set calls some classes, where it has them.

        Args:
            names: In the words of any set.

        Raises:
            InputError: No set has a class of that name.
        """
        wanted: set[int] = set()
        for name in names:
            here = {
                place
                for pictures, places in zip(self.mixture.sets, self.places, strict=True)
                for one, place in zip(pictures.classes, places, strict=True)
                if one == name
            }
            if not here:
                raise InputError(
                    "classes that are left out must be the data set's",
                    got=name,
                    remedy=f"it has {', '.join(self.classes)}",
                )
            wanted |= here
        return tuple(
            tuple(
                one for one, place in zip(pictures.classes, places, strict=True) if place in wanted
            )
            for pictures, places in zip(self.mixture.sets, self.places, strict=True)
        )


def as_mixture(pictures: "LabelledPictures | Mixture") -> Mixture:
    """A data set by itself as the one of a mixture."""
    return pictures if isinstance(pictures, Mixture) else Mixture(sets=(pictures,))


def merge_sets(mixture: Mixture, relations: Relations) -> Merged:
    """Find the classes that data sets share.

    Classes of two sets are one if they are called the same or by synonyms, under the name of the
    set that comes first; those of a single set stay as many as they are.

    Example:
        >>> merge_sets(Mixture(sets=(streets, rooms)), read_relations()).classes  # doctest: +SKIP
        ('road', 'person', 'sofa')
    """
    classes: list[str] = []
    places: list[tuple[int, ...]] = []
    for pictures in mixture.sets:
        found = _place(pictures.classes, classes, relations)
        new = [n for n, one in enumerate(found) if one is None]
        for n in new:
            found[n] = len(classes)
            classes.append(pictures.classes[n])
        places.append(tuple(one for one in found if one is not None))
    tables = [_related(one.classes, relations) for one in mixture.sets]
    return Merged(
        mixture=mixture, classes=tuple(classes), places=tuple(places), related=tuple(tables)
    )


def _place(names: Sequence[str], classes: Sequence[str], relations: Relations) -> list[int | None]:
    """Which of the classes there are names mean: the same word first, then a synonym."""
    found: list[int | None] = [None] * len(names)

    def said(name: str) -> str:
        return spoken(name).casefold()

    for key in (said, relations.head):
        held = [key(one) for one in classes]
        for n, name in enumerate(names):
            free = [p for p, one in enumerate(held) if one == key(name) and p not in found]
            if found[n] is None and free:
                found[n] = free[0]
    return found


def _related(classes: Sequence[str], relations: Relations) -> Bool[np.ndarray, "k k"] | None:
    table = relations.table(classes)
    np.fill_diagonal(table, val=False)
    return table if table.any() else None


@runtime_checkable
class Source(Protocol):
    """Draws batches."""

    def draw(self, step: int, *, images: int, rank: int = 0, part: int = 0) -> MaskBatch: ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MixedSource:
    """Draws every batch from one of several data sets.

    Attributes:
        sources: Draw from one each.
        shares: How often each is drawn, of 1.
        seed: Of what is drawn.
    """

    sources: tuple[BatchSource, ...]
    shares: tuple[float, ...]
    seed: int

    def choose(self, step: int, *, rank: int = 0, part: int = 0) -> int:
        """Which data set a batch is of: a function of the seed and these numbers alone."""
        rng = np.random.default_rng([self.seed, _SETS, step, rank, part])
        return int(rng.choice(len(self.sources), p=self.shares))

    def draw(self, step: int, *, images: int, rank: int = 0, part: int = 0) -> MaskBatch:
        """Return the batch of a part of an update, as `BatchSource.draw`."""
        chosen = self.sources[self.choose(step, rank=rank, part=part)]
        return chosen.draw(step, images=images, rank=rank, part=part)


def balance_sets(samplers: Sequence[QuerySampler], merged: Merged) -> None:
    """Let classes be balanced by how often they come in all sets, not in their own alone.

    Args:
        samplers: One a set.
        merged: The sets.
    """
    often: Float[np.ndarray, " k"] = np.zeros(len(merged.classes))
    for sampler, share, places in zip(samplers, merged.mixture.shares, merged.places, strict=True):
        often[list(places)] += share * sampler.frequencies
    least = often[often > 0].min()
    for sampler, places in zip(samplers, merged.places, strict=True):
        sampler.counts = often[list(places)].clip(least)
