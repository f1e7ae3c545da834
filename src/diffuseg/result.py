"""What comes out: the one result type of every method."""

import difflib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import PIL.Image
from jaxtyping import Bool, Float, Int, Integer

from diffuseg import labelmaps
from diffuseg.errors import InputError
from diffuseg.labelmaps import IGNORE
from diffuseg.provenance import Provenance


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Region:
    """The pixels of one name.

    Attributes:
        name: The class name.
        mask: True where the image shows it.
        area: Its number of pixels.
        bbox: The smallest box around it, `(y0, x0, y1, x1)`; the last row and column are outside.
        score: Mean of its score map inside its mask; None where the method gave no scores.
    """

    name: str
    mask: Bool[np.ndarray, "h w"]
    area: int
    bbox: tuple[int, int, int, int]
    score: float | None

    def __repr__(self) -> str:
        score = "" if self.score is None else f", score {self.score:.3f}"
        return f"Region {self.name!r}: {self.area} px, bbox {self.bbox}{score}"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Segmentation:
    """A name for every pixel of an image.

    Attributes:
        labels: Index into `names` for every pixel, or `ignore` where undecided. Read-only.
        names: The class names: every class asked for, also those the image does not show.
        scores: A map for every name, higher where the name fits better. Read-only, not copied.
        uncertainty: How far several runs of a method lie apart at every pixel, as the method says.
            Read-only, not copied.
        ignore: The label of undecided pixels; never an index of `names`.
        provenance: Model, method, parameters, seed and times.

    Raises:
        InputError: Shapes, types or ranges do not fit together, or a name is empty or comes twice.

    Example:
        >>> seg = Segmentation(labels=np.array([[0, 0], [1, 65535]]), names=("grass", "car"))
        >>> int(seg["car"].sum()), seg.present, [region.area for region in seg]
        (1, ('grass', 'car'), [2, 1])
        >>> seg
        Segmentation 2x2: grass 50.0 %, car 25.0 %, undecided 25.0 %
    """

    labels: Integer[np.ndarray, "h w"]
    names: tuple[str, ...]
    scores: Float[np.ndarray, "k h w"] | None = None
    uncertainty: Float[np.ndarray, "h w"] | None = None
    ignore: int = IGNORE
    provenance: Provenance = field(default_factory=Provenance)

    __hash__ = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", labelmaps.checked_names(self.names))
        object.__setattr__(
            self, "labels", labelmaps.checked_labels(self.labels, len(self.names), self.ignore)
        )
        if self.scores is not None:
            shape = (len(self.names), *self.labels.shape)
            object.__setattr__(self, "scores", labelmaps.checked_scores(self.scores, shape))
        if self.uncertainty is not None:
            held = labelmaps.checked_scores(self.uncertainty[None], (1, *self.labels.shape))
            object.__setattr__(self, "uncertainty", held[0])

    @classmethod
    def from_labels(
        cls,
        labels: object,
        names: object = None,
        *,
        scores: object = None,
        ignore: int = IGNORE,
        provenance: Provenance | None = None,
    ) -> "Segmentation":
        """Return a segmentation from any label map, naming its segments if nobody has.

        Without `names` the labels may be any integers; they become "segment 0", "segment 1", … in
        order of area, the largest first, so that the numbers do not depend on chance, and pixels
        of the label `ignore` become undecided under the usual label, 65535. Rows of `scores`, if
        given, follow: row i belongs to label i.

        Args:
            labels: Integers of shape `h w`: an array, or nested lists.
            names: A sequence of names, or None.
            scores: Floating point maps of shape `k h w`, or None.
            ignore: The label of undecided pixels.
            provenance: Where the labels come from.

        Raises:
            InputError: Shapes, types or ranges do not fit together, or a name is empty or double.

        Example:
            >>> Segmentation.from_labels([[7, 7, 7], [3, 3, 9]]).labels.tolist()
            [[0, 0, 0], [1, 1, 2]]
        """
        held = labelmaps.integer_map(labels)
        maps = None if scores is None else np.asarray(scores)
        if names is None:
            n_maps = None if maps is None else (maps.shape or (0,))[0]
            held, ids = labelmaps.rank_by_area(held, ignore=ignore, n_maps=n_maps)
            maps = None if maps is None else maps[ids]
            named = tuple(f"segment {i}" for i in range(len(ids)))
            ignore = IGNORE
        else:
            named = labelmaps.checked_names(names)
        if maps is not None:
            maps = labelmaps.checked_scores(maps, (len(named), *held.shape))
        return cls(
            labels=held,
            names=named,
            scores=maps,
            ignore=ignore,
            provenance=provenance or Provenance(),
        )

    @property
    def hw(self) -> tuple[int, int]:
        """Height and width in pixels, those of the image."""
        return self.labels.shape[0], self.labels.shape[1]

    @property
    def areas(self) -> dict[str, int]:
        """Number of pixels of every name, zero for those the image does not show."""
        counts = np.bincount(self.labels[self.labels != self.ignore], minlength=len(self.names))
        return dict(zip(self.names, counts.tolist(), strict=True))

    @property
    def present(self) -> tuple[str, ...]:
        """The names that have at least one pixel, in the order of `names`."""
        return tuple(name for name, area in self.areas.items() if area)

    def __getitem__(self, name: str) -> Bool[np.ndarray, "h w"]:
        """Return the mask of a name; all False if the image does not show it.

        Raises:
            InputError: The name is not among `names`.
        """
        return self.labels == self._index(name)

    def __contains__(self, name: object) -> bool:
        return name in self.present

    def __len__(self) -> int:
        return len(self.present)

    def __iter__(self) -> Iterator[Region]:
        for name in self.present:
            index = self.names.index(name)
            mask = self.labels == index
            rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
            score = (
                None
                if self.scores is None
                else float(self.scores[index][mask].mean(dtype=np.float64))
            )
            yield Region(
                name=name,
                mask=mask,
                area=int(mask.sum()),
                bbox=(int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1),
                score=score,
            )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Segmentation):
            return NotImplemented
        return (
            _same(self.scores, other.scores)
            and _same(self.uncertainty, other.uncertainty)
            and self.names == other.names
            and self.ignore == other.ignore
            and self.provenance == other.provenance
            and np.array_equal(self.labels, other.labels)
        )

    def __repr__(self) -> str:
        n = self.labels.size
        parts = [f"{name} {100 * area / n:.1f} %" for name, area in self.areas.items() if area]
        if len(parts) > 8:
            parts[8:] = [f"… {len(parts) - 8} more"]
        if undecided := int((self.labels == self.ignore).sum()):
            parts.append(f"undecided {100 * undecided / n:.1f} %")
        origin = ", ".join(filter(None, (self.provenance.model, self.provenance.method)))
        ending = f" ({origin})" if origin else ""
        return f"Segmentation {self.hw[0]}x{self.hw[1]}: {', '.join(parts)}{ending}"

    def rename(self, names: Mapping[str, str]) -> "Segmentation":
        """Return the segmentation with other names, `{old: new}`; those not mentioned stay.

        Raises:
            InputError: An old name is unknown, or two classes get one name (see `merge`).

        Example:
            >>> seg = Segmentation.from_labels(np.array([[4, 4, 2]]))
            >>> seg.rename({"segment 0": "sky"}).names
            ('sky', 'segment 1')
        """
        for old in names:
            self._index(old)
        renamed = tuple(names.get(name, name) for name in self.names)
        if len(set(renamed)) < len(renamed):
            raise InputError(
                "after renaming all names must differ",
                got=list(renamed),
                remedy='to make one class of several, use merge({"vehicle": ("car", "truck")})',
            )
        return replace(self, names=renamed)

    def relabel(self, names: Sequence[str]) -> "Segmentation":
        """Return the segmentation with these of its names, in this order.

        Pixels of names left out become undecided.

        Raises:
            InputError: A name is unknown or comes twice.

        Example:
            >>> seg = Segmentation(labels=np.array([[0, 1, 2]]), names=("car", "tree", "sky"))
            >>> seg.relabel(("sky", "car")).labels.tolist()
            [[1, 65535, 0]]
        """
        old = [self._index(name) for name in labelmaps.checked_names(names)]
        ignore = self.ignore if not 0 <= self.ignore < len(old) else IGNORE
        position = np.full(len(self.names), ignore, dtype=np.int32)
        position[old] = np.arange(len(old))
        return replace(
            self,
            labels=self._mapped(position, ignore),
            names=tuple(names),
            scores=None if self.scores is None else self.scores[old],
            ignore=ignore,
        )

    def merge(self, groups: Mapping[str, str | Sequence[str]]) -> "Segmentation":
        """Return the segmentation with classes joined, `{new: (old, old, …)}`.

        A new class takes the place of the first of its members in `names`. Its score is the highest
        of theirs, which keeps the scores on one scale and their argmax where it was.

        Raises:
            InputError: A member is unknown or in two groups, or a new name is another class.

        Example:
            >>> seg = Segmentation(labels=np.array([[0, 1, 2]]), names=("car", "tree", "truck"))
            >>> seg.merge({"vehicle": ("car", "truck")}).labels.tolist()
            [[0, 1, 0]]
        """
        target: dict[str, str] = {}
        for new, members in groups.items():
            for member in (members,) if isinstance(members, str) else members:
                self._index(member)
                if member in target:
                    raise InputError(
                        "a class can be merged into one group only",
                        got=f"{member!r} in {target[member]!r} and in {new!r}",
                        remedy="leave it in one of them",
                    )
                target[member] = new
        for name in self.names:
            if name in groups and name not in target:
                raise InputError(
                    "the name of a group must be new, or that of one of its members",
                    got=f"{name!r}, which is another class",
                    remedy=f"add {name!r} to the group, or choose another name",
                )
        joined = [target.get(name, name) for name in self.names]
        names = tuple(dict.fromkeys(joined))
        position = np.array([names.index(name) for name in joined], dtype=np.int32)
        scores = None
        if self.scores is not None:
            scores = np.stack([self.scores[position == i].max(axis=0) for i in range(len(names))])
        return replace(self, labels=self._mapped(position, self.ignore), names=names, scores=scores)

    def resize(self, hw: tuple[int, int]) -> "Segmentation":
        """Return the segmentation at height and width `hw`.

        Labels by the nearest pixel centre, scores and uncertainty bilinearly, antialiased where
        they shrink.

        Example:
            >>> seg = Segmentation(labels=np.array([[0, 1]]), names=("sea", "sky"))
            >>> seg.resize((2, 4)).labels.tolist()
            [[0, 0, 1, 1], [0, 0, 1, 1]]
        """
        if len(hw) != 2 or min(hw) < 1:
            raise InputError(
                "the new size must be a positive height and width", got=hw, remedy="use (480, 640)"
            )
        return replace(
            self,
            labels=labelmaps.resized_labels(self.labels, hw),
            scores=None if self.scores is None else labelmaps.resized_scores(self.scores, hw),
            uncertainty=None
            if self.uncertainty is None
            else labelmaps.resized_scores(self.uncertainty[None], hw)[0],
        )

    def overlay(self, image: object) -> PIL.Image.Image:
        """Return the image with the segmentation over it; `render.overlay` has options."""
        from diffuseg import render

        return render.overlay(image, self)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the segmentation in the format of the path's suffix; return the path.

        `.png` is an indexed image, with names and provenance beside it in `NAME.names.json`; `.npz`
        holds everything, scores included; `.json` is COCO with run-length masks; `.geojson` is
        polygons. A file is there whole or not at all.

        Raises:
            InputError: Another suffix, or the folder cannot be written to.
        """
        from diffuseg import export

        return export.save(self, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Segmentation":
        """Return the segmentation `save` wrote.

        Raises:
            InputError: The file, or what belongs to it, is missing, damaged or of another kind.
        """
        from diffuseg import export

        return export.load(path)

    def _index(self, name: object) -> int:
        if name in self.names:
            return self.names.index(str(name))
        near = difflib.get_close_matches(str(name), self.names, n=3)
        known = ", ".join(self.names[:20]) + (", …" if len(self.names) > 20 else "")
        hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
        raise InputError(
            "the name must be one of the segmentation's names",
            got=repr(name),
            remedy=f"{hint}use one of: {known}",
        )

    def _mapped(self, position: Int[np.ndarray, " k"], ignore: int) -> Int[np.ndarray, "h w"]:
        undecided = self.labels == self.ignore
        return np.where(undecided, ignore, position[np.where(undecided, 0, self.labels)])


def _same(one: np.ndarray | None, other: np.ndarray | None) -> bool:
    if one is None or other is None:
        return one is other
    return np.array_equal(one, other)
