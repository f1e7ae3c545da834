"""Scores of objects followed through a video: regions (J), boundaries (F), J&F, as in DAVIS."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Integer
from scipy.optimize import linear_sum_assignment

from diffuseg.errors import InputError

BOUND = 0.008
"""Tolerance of boundaries, as a share of the picture's diagonal."""

VOID = 255


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ObjectScores:
    """J and F of the objects of one video.

    Attributes:
        objects: The labels of the objects.
        frames: The frames scored, by their place among those given.
        j: J of every object in every frame scored.
        f: F of the same.

    Example:
        >>> mask = np.array([[0, 1], [0, 1]])
        >>> scores = score_objects([(mask, mask)] * 4)
        >>> scores.objects, scores.frames, scores.j_and_f
        ((1,), (1, 2), 1.0)
    """

    objects: tuple[int, ...]
    frames: tuple[int, ...]
    j: Float[np.ndarray, "k f"]
    f: Float[np.ndarray, "k f"]

    @property
    def j_and_f(self) -> float:
        """Mean of J and F over frames, then objects."""
        return (statistics(self.j)["mean"] + statistics(self.f)["mean"]) / 2


def score_objects(
    pairs: Iterable[tuple[Integer[np.ndarray, "_ _"] | None, Integer[np.ndarray, "_ _"]]],
    *,
    objects: Sequence[int] | None = None,
    ends: Literal["drop", "keep"] = "drop",
    bound: float | int = BOUND,
) -> ObjectScores:
    """Score objects whose first mask was given (semi-supervised).

    Args:
        pairs: Truth and prediction of every frame, in order. Truth 0 and 255 are background; a
            truth of None is not annotated, and such frames are left out.
        objects: Labels of the objects; by default 1 to the largest of the first annotation.
        ends: "drop" leaves the first and the last annotated frame out, as DAVIS does: the first is
            given.
        bound: Tolerance of boundaries: a share of the diagonal, or pixels from 1 on.

    Raises:
        InputError: Sizes differ, nothing is left to score, or the prediction has an object that the
            first annotation has not.

    Example:
        >>> truth, moved = np.eye(8, dtype=int), np.roll(np.eye(8, dtype=int), 4, axis=0)
        >>> score_objects([(truth, moved)] * 3).j.tolist()
        [[0.0]]
    """
    rows: list[tuple[int, Float[np.ndarray, " k"], Float[np.ndarray, " k"]]] = []
    held = None if objects is None else tuple(objects)
    for index, (truth, prediction) in enumerate(pairs):
        if truth is None:
            continue
        _check_sizes(truth, prediction)
        if held is None:
            held = tuple(range(1, int(truth[truth != VOID].max(initial=0)) + 1))
        if not held:
            raise _nothing("no object in the first annotation")
        extra = np.setdiff1d(prediction, [0, VOID, *held])
        if extra.size:
            raise InputError(
                f"predicted objects must be among {held[0]} to {held[-1]}",
                got=f"labels {extra[:5].tolist()} in frame {index}",
                remedy="number objects as the first annotation does, or pass objects=",
            )
        if rows or ends == "keep":
            masks = [(truth == k, prediction == k) for k in held]
            j = np.array([jaccard(*pair) for pair in masks])
            f = np.array([boundary_f(*pair, bound=bound) for pair in masks])
        else:
            j = f = np.full(len(held), np.nan)
        rows.append((index, j, f))
    if ends == "drop":
        rows = rows[1:-1]
    if not rows or held is None:
        raise _nothing(f"no frame is left with ends={ends!r}")
    return ObjectScores(
        objects=held,
        frames=tuple(row[0] for row in rows),
        j=np.stack([row[1] for row in rows], axis=1),
        f=np.stack([row[2] for row in rows], axis=1),
    )


def score_proposals(
    pairs: Iterable[tuple[Integer[np.ndarray, "_ _"], Integer[np.ndarray, "_ _"]]],
    *,
    void: Iterable[Bool[np.ndarray, "h w"]] | None = None,
    bound: float | int = BOUND,
    most: int = 20,
) -> ObjectScores:
    """Score proposals against objects they are matched to afterwards (unsupervised).

    All frames count. Each object gets the proposal with which the sum of (J + F) / 2 over frames is
    largest, none twice; objects without a proposal are scored against nothing.

    Args:
        pairs: Truth and proposals of every frame, in order; 0 is background.
        void: Where neither is looked at, a frame; None: where the truth is 255.
        bound: See `score_objects`.
        most: Proposals allowed.

    Raises:
        InputError: Sizes differ, there is no object or no frame, or there are too many proposals.

    Example:
        >>> truth = np.array([[1, 1, 0], [0, 2, 2]])
        >>> score_proposals([(truth, 3 - truth)]).j.shape
        (2, 1)
    """
    held = [(truth, prediction) for truth, prediction in pairs]
    voids = [truth == VOID for truth, _ in held] if void is None else list(void)
    objects = sorted({int(k) for truth, _ in held for k in np.unique(truth)} - {0, VOID})
    proposals = sorted({int(k) for _, one in held for k in np.unique(one)} - {0, VOID})
    if not objects:
        raise _nothing("no object in any frame")
    if len(proposals) > most:
        raise InputError(
            f"there may be at most {most} proposals",
            got=len(proposals),
            remedy="merge or drop some",
        )
    # Proposals that are not there are empty everywhere.
    labels = [*proposals, *[-1] * max(0, len(objects) - len(proposals))]
    j, f = np.zeros((2, len(labels), len(objects), len(held)))
    for t, ((truth, prediction), hidden) in enumerate(zip(held, voids, strict=True)):
        _check_sizes(truth, prediction)
        for p, label in enumerate(labels):
            mine = (prediction == label) & ~hidden
            for k, one in enumerate(objects):
                true = (truth == one) & ~hidden
                j[p, k, t], f[p, k, t] = jaccard(true, mine), boundary_f(true, mine, bound=bound)
    chosen, of = linear_sum_assignment(-(j.mean(axis=2) + f.mean(axis=2)) / 2)
    order = chosen[np.argsort(of)]
    every = np.arange(len(objects))
    return ObjectScores(
        objects=tuple(objects),
        frames=tuple(range(len(held))),
        j=j[order, every],
        f=f[order, every],
    )


def summarise(videos: Mapping[str, ObjectScores]) -> dict[str, float | int]:
    """Return J, F and J&F of a set: means over all objects of all videos.

    Raises:
        InputError: There are no videos.

    Example:
        >>> mask = np.array([[0, 1], [0, 1]])
        >>> summarise({"a": score_objects([(mask, mask)] * 3)})["j_and_f"]
        1.0
    """
    if not videos:
        raise _nothing("no videos")
    out: dict[str, float | int] = {"videos": len(videos)}
    out["objects"] = sum(len(one.objects) for one in videos.values())
    for name in ("j", "f"):
        parts = [object_statistics(getattr(one, name)) for one in videos.values()]
        for what in ("mean", "recall", "decay"):
            out[f"{name}_{what}"] = float(np.concatenate([part[what] for part in parts]).mean())
    out["j_and_f"] = (out["j_mean"] + out["f_mean"]) / 2
    return out


def object_statistics(values: Float[np.ndarray, "k f"]) -> dict[str, Float[np.ndarray, " k"]]:
    """Return for every object: mean over frames, recall (share above 0.5), decay.

    Decay is the mean of the first quarter of the frames less that of the last.

    Example:
        >>> object_statistics(np.array([[1.0, 1.0, 0.5, 0.0]]))["decay"].tolist()
        [0.75]
    """
    n = values.shape[1]
    # The published script holds these in 8 bits and wraps beyond 255 frames; this does not.
    edges = np.round(np.linspace(1, n, 5) + 1e-10).astype(np.int64) - 1
    quarters = [values[:, edges[i] : edges[i + 1] + 1] for i in range(4)]
    return {
        "mean": values.mean(axis=1),
        "recall": (values > 0.5).mean(axis=1),
        "decay": quarters[0].mean(axis=1) - quarters[3].mean(axis=1),
    }


def statistics(values: Float[np.ndarray, "k f"]) -> dict[str, float]:
    """Return the mean over objects of `object_statistics`.

    Example:
        >>> statistics(np.ones((2, 5)))["recall"]
        1.0
    """
    return {name: float(one.mean()) for name, one in object_statistics(values).items()}


def jaccard(truth: Bool[np.ndarray, "h w"], mask: Bool[np.ndarray, "h w"]) -> float:
    """Return intersection over union; 1 when both are empty.

    Example:
        >>> jaccard(np.array([[True, True]]), np.array([[True, False]]))
        0.5
    """
    union = np.count_nonzero(truth | mask)
    return float(np.count_nonzero(truth & mask) / union) if union else 1.0


def boundary_f(
    truth: Bool[np.ndarray, "h w"], mask: Bool[np.ndarray, "h w"], *, bound: float | int = BOUND
) -> float:
    """Return the F measure of boundary pixels: those near a boundary of the other mask are right.

    Near is within a disk of radius ceil(`bound` x diagonal). Both empty: 1; one of them: 0.

    Example:
        >>> square = np.zeros((20, 20), dtype=bool)
        >>> square[5:15, 5:15] = True
        >>> boundary_f(square, np.roll(square, 1, axis=0)), boundary_f(square, ~square | square)
        (1.0, 0.0)
    """
    radius = int(bound) if bound >= 1 else math.ceil(bound * math.hypot(*truth.shape))
    edge_t, edge_m = boundary(truth), boundary(mask)
    n_truth, n_mask = np.count_nonzero(edge_t), np.count_nonzero(edge_m)
    if not n_truth or not n_mask:
        return float(n_truth == n_mask)
    window = _window(edge_t | edge_m)
    edge_t, edge_m = edge_t[window], edge_m[window]
    precision = np.count_nonzero(edge_m & dilate(edge_t, radius)) / n_mask
    recall = np.count_nonzero(edge_t & dilate(edge_m, radius)) / n_truth
    whole = precision + recall
    return float(2 * precision * recall / whole) if whole else 0.0


def boundary(mask: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """Return the pixels that differ from their right, lower or lower right neighbour.

    Example:
        >>> boundary(np.array([[False, True], [False, True]])).tolist()
        [[True, False], [True, False]]
    """
    padded = np.pad(mask, ((0, 1), (0, 1)), mode="edge")
    right, down, both = padded[:-1, 1:], padded[1:, :-1], padded[1:, 1:]
    return (mask ^ right) | (mask ^ down) | (mask ^ both)


def dilate(mask: Bool[np.ndarray, "h w"], radius: int) -> Bool[np.ndarray, "h w"]:
    """Return where a true pixel lies within `radius`, in whole pixels of Euclidean distance.

    A disk is a stack of rows: distances along rows first, then each row is lent to those above and
    below. Exact, and a tenth of the time of a distance transform.

    Example:
        >>> dilate(np.eye(1, 5, dtype=bool), 2).astype(int).tolist()
        [[1, 1, 1, 0, 0]]
    """
    # Small numbers go through memory fastest; one more than the radius is far.
    small = np.uint8 if radius < 254 else np.int32
    along = np.where(mask, 0, radius + 1).astype(small)
    for _ in range(min(radius, mask.shape[1] - 1)):
        before = along[:, :-1] + 1
        np.minimum(along[:, :-1], along[:, 1:] + 1, out=along[:, :-1])
        np.minimum(along[:, 1:], before, out=along[:, 1:])
    out = along <= radius
    for rows in range(1, min(radius, mask.shape[0] - 1) + 1):
        near = along <= math.isqrt(radius * radius - rows * rows)
        out[rows:] |= near[:-rows]
        out[:-rows] |= near[rows:]
    return out


def _window(edges: Bool[np.ndarray, "h w"]) -> tuple[slice, slice]:
    rows, columns = np.flatnonzero(edges.any(axis=1)), np.flatnonzero(edges.any(axis=0))
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


def _check_sizes(truth: Integer[np.ndarray, "h w"], mask: Integer[np.ndarray, "a b"]) -> None:
    if truth.shape != mask.shape:
        raise InputError(
            "truth and prediction must have one size",
            got=f"{truth.shape} and {mask.shape}",
            remedy="resize the prediction to the truth",
        )


def _nothing(why: str) -> InputError:
    return InputError(
        "there must be something to score", got=why, remedy="check the masks and the settings"
    )
