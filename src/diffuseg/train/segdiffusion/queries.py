"""Which pictures are learned from, and which classes are asked for of them.

Rare classes are asked for more often than they come, absent ones too: a network that only ever
heard the names of what is there would find something whatever it is asked for.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, UInt8

from diffuseg.errors import InputError
from diffuseg.train.segdiffusion.pictures import count_labels

_HARD = 0.5  # of the absent classes, those often seen beside a present one
_CELL = 64  # pixels of a latent cell; of less there is nothing to learn


class QuerySampler:
    """Draws pictures and classes.

    Args:
        classes: Names in the order of the labels.
        shown: Which classes every picture shows, one row a picture.
        without: Classes that are not learned; pictures that show one are never drawn.
        unasked: Classes that are never asked for and whose pictures are drawn: the background.
        queries: Classes asked for of a picture.
        negatives: Share of them that is not there.
        least: Share of a crop's known pixels that a class must have to be asked for.
        related: Which classes may lie on the pixels of which: none is asked for as absent of a
            picture that shows a related one. None: there are none such.
        name: Of the data set, for what is said of it.

    Attributes:
        learned: Which classes are asked for: seen in a picture that may be drawn.
        pictures: Numbers of the pictures that may be drawn.
        counts: How often classes come, which is what they are balanced by.

    Raises:
        InputError: A class that is left out is none of the data set's, or no picture remains.

    Example:
        >>> shown = np.array([[True, True, False], [False, False, True]])
        >>> sampler = QuerySampler(("car", "road", "fish"), shown, without=("fish",))
        >>> sampler.pictures.tolist(), sampler.learned.tolist()
        ([0], [True, True, False])
    """

    def __init__(
        self,
        classes: Sequence[str],
        shown: Bool[np.ndarray, "n k"],
        *,
        without: Sequence[str] = (),
        unasked: Sequence[str] = (),
        queries: int = 4,
        negatives: float = 0.25,
        least: float = 0.001,
        related: Bool[np.ndarray, "k k"] | None = None,
        name: str = "the data set",
    ) -> None:
        unknown = [name for name in (*without, *unasked) if name not in classes]
        if unknown:
            raise InputError(
                "classes that are left out must be the data set's",
                got=", ".join(unknown),
                remedy=f"it has {', '.join(classes)}",
            )
        hidden = np.array([name in without for name in classes], dtype=bool)
        asked = np.array([name not in (*without, *unasked) for name in classes], dtype=bool)
        self.pictures = np.flatnonzero(shown[:, asked].any(1) & ~shown[:, hidden].any(1))
        if not len(self.pictures):
            raise InputError(
                "there must be a picture that shows a class to be learned",
                got=f"{len(shown)} pictures of {name} without any",
                remedy="check the labels, or leave fewer classes out",
            )
        self.related = related
        self.shown, self.queries, self.negatives, self.least = shown, queries, negatives, least
        drawn = shown[self.pictures]
        self.learned: Bool[np.ndarray, " k"] = drawn.any(0) & asked
        # How many pictures show a class, and how many show two of them.
        self.counts: Float[np.ndarray, " k"] = np.maximum(drawn.sum(0), 1).astype(float)
        self._together = drawn.T.astype(np.float32) @ drawn.astype(np.float32)

    @property
    def frequencies(self) -> Float[np.ndarray, " k"]:
        """Share of the pictures that may be drawn which show a class."""
        return self.shown[self.pictures].mean(0)

    def draw_picture(self, rng: np.random.Generator) -> int:
        """Any picture, or half of the time one with a class that is drawn first."""
        if rng.random() < 0.5:
            return int(rng.choice(self.pictures))
        learned = np.flatnonzero(self.learned)
        chosen = rng.choice(learned, p=_normal(self.counts[learned] ** -0.5))
        return int(rng.choice(self.pictures[self.shown[self.pictures, chosen]]))

    def draw_classes(
        self, picture: int, labels: UInt8[np.ndarray, "h w"], rng: np.random.Generator
    ) -> list[int]:
        """Classes to ask for of a crop, none twice, those that are there first.

        There are fewer than `queries` only where that is all that can be asked for; there is always
        one.

        Args:
            picture: Its number: a class that the whole picture shows, or one that is related to
                it, is never asked for as absent.
            labels: Of the crop.
            rng: Where chance comes from.
        """
        counts = count_labels(labels)
        enough = max(self.least * sum(counts.values()), _CELL)
        here = [one for one, n in counts.items() if n >= enough and self.learned[one]]
        absent = np.flatnonzero(self.learned & self._surely_absent(picture))
        wanted = int((rng.random(self.queries) >= self.negatives).sum())
        wanted = min(max(wanted, self.queries - len(absent)), len(here))
        chosen = _choose(here, self.counts[here] ** -0.5, wanted, rng)
        missing = min(self.queries - len(chosen), len(absent))
        hard = int((rng.random(missing) < _HARD).sum())
        beside = self._together[self.shown[picture]].sum(0)[absent]
        found = _choose(absent.tolist(), beside, min(hard, int((beside > 0).sum())), rng)
        rest = [one for one in absent.tolist() if one not in found]
        drawn = chosen + found + _choose(rest, np.ones(len(rest)), missing - len(found), rng)
        # A picture that shows every class, cut where there is enough of none.
        return drawn or [int(rng.choice(np.flatnonzero(self.learned & self.shown[picture])))]

    def _surely_absent(self, picture: int) -> Bool[np.ndarray, " k"]:
        shown = self.shown[picture]
        if self.related is None:
            return ~shown
        return ~(shown | self.related[shown].any(0))


def _normal(weights: Float[np.ndarray, " k"]) -> Float[np.ndarray, " k"]:
    return weights / weights.sum()


def _choose(
    numbers: Sequence[int], weights: Float[np.ndarray, " k"], count: int, rng: np.random.Generator
) -> list[int]:
    if not count:
        return []
    return rng.choice(numbers, count, replace=False, p=_normal(weights.astype(float))).tolist()
