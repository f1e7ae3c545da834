"""Label maps and score maps as plain arrays: checked, numbered by area, resized."""

from collections.abc import Iterable

import numpy as np
from jaxtyping import Float, Int, Integer

from diffuseg.errors import InputError

IGNORE = 65535


def checked_names(names: object) -> tuple[str, ...]:
    """Return the names as a tuple.

    Raises:
        InputError: They are no sequence of non-empty strings, or not all different.

    Example:
        >>> checked_names(["car", "tree"])
        ('car', 'tree')
    """
    held = tuple(names) if isinstance(names, Iterable) and not isinstance(names, str) else ()
    if not held or not all(isinstance(name, str) and name.strip() for name in held):
        raise InputError(
            "names must be a sequence of non-empty strings",
            got=repr(names),
            remedy='pass one name for every class, such as ("car", "tree")',
        )
    if len(set(held)) < len(held):
        twice = sorted({name for name in held if held.count(name) > 1})
        raise InputError(
            "names must differ", got=f"{twice} more than once", remedy="name every class once"
        )
    if len(held) > IGNORE:
        raise InputError(
            f"there can be at most {IGNORE} names", got=len(held), remedy="merge classes"
        )
    return held


def integer_map(labels: object) -> Integer[np.ndarray, "h w"]:
    """Return the labels as an array.

    Raises:
        InputError: They are not integers of shape `h w`, or there are none.

    Example:
        >>> integer_map([[0, 1]]).shape
        (1, 2)
    """
    held = np.asarray(labels)
    if held.ndim != 2 or not held.size or held.dtype.kind not in "iu":
        raise InputError(
            "labels must be integers of shape (h, w)",
            got=f"{held.dtype} of shape {held.shape}",
            remedy="pass one class index for every pixel",
        )
    return held


def checked_labels(labels: object, n_names: int, ignore: int) -> Int[np.ndarray, "h w"]:
    """Return the labels as a read-only int32 copy.

    Raises:
        InputError: They are not integers of shape `h w`, a label is neither `ignore` nor the index
            of one of the `n_names` names, or `ignore` is such an index.

    Example:
        >>> checked_labels([[0, 255]], 1, 255).dtype
        dtype('int32')
    """
    if 0 <= ignore < n_names:
        raise InputError(
            "the label of undecided pixels must not be the index of a name",
            got=f"ignore={ignore} with {n_names} names",
            remedy=f"use the default, {IGNORE}",
        )
    held = integer_map(labels)
    wrong = ((held < 0) | (held >= n_names)) & (held != ignore)
    if wrong.any():
        raise InputError(
            f"labels must be 0 to {n_names - 1}, or {ignore} where undecided",
            got=f"{np.unique(held[wrong])[:5].tolist()}",
            remedy="name every label, or use from_labels() without names",
        )
    # Always a copy, so that making it read-only leaves the caller's array alone.
    copied = np.array(held, dtype=np.int32, order="C")
    copied.flags.writeable = False
    return copied


def checked_scores(scores: object, shape: tuple[int, ...]) -> Float[np.ndarray, "k h w"]:
    """Return the scores as a read-only view; not a copy, those of a large photo take gigabytes.

    Raises:
        InputError: They are not floating point, or not of the shape `(k, h, w)` given.

    Example:
        >>> checked_scores(np.zeros((2, 4, 6)), (2, 4, 6)).flags.writeable
        False
    """
    held = np.asarray(scores)
    if held.shape != shape or held.dtype.kind != "f":
        raise InputError(
            f"scores must be floating point of shape {shape}: one map for every name",
            got=f"{held.dtype} of shape {held.shape}",
            remedy="resize the maps to the size of the labels, in the order of the names",
        )
    view = held.view()
    view.flags.writeable = False
    return view


def rank_by_area(
    labels: Integer[np.ndarray, "h w"], *, ignore: int, n_maps: int | None = None
) -> tuple[Int[np.ndarray, "h w"], Integer[np.ndarray, " k"]]:
    """Number the segments by area, the largest 0; return the new labels and the old of each.

    Segments of one area keep the order of their labels. `ignore` becomes 65535.

    Raises:
        InputError: All labels are `ignore`, or one is not the index of one of `n_maps` score maps.

    Example:
        >>> ranked, ids = rank_by_area(np.array([[7, 3, 3]]), ignore=0)
        >>> ranked.tolist(), ids.tolist()
        ([[1, 0, 0]], [3, 7])
    """
    ids, index, counts = np.unique(labels, return_inverse=True, return_counts=True)
    order = [i for i in np.argsort(-counts, kind="stable") if ids[i] != ignore]
    if not order:
        raise InputError(
            "at least one pixel must be decided",
            got=f"every pixel is {ignore}, the label of undecided pixels",
            remedy="pass the names as well",
        )
    if n_maps is not None and (ids[order].min() < 0 or ids[order].max() >= n_maps):
        raise InputError(
            "every label needs its row of scores",
            got=f"labels from {ids[order].min()} to {ids[order].max()}, {n_maps} score maps",
            remedy="pass one map for every label",
        )
    position = np.full(len(ids), IGNORE, dtype=np.int32)
    position[order] = np.arange(len(order))
    return position[index].reshape(labels.shape), ids[order]


def resized_labels(labels: Int[np.ndarray, "h w"], hw: tuple[int, int]) -> Int[np.ndarray, "H W"]:
    """Return the labels at another height and width, each from the nearest pixel centre.

    The same pixels as "nearest-exact" of `torch.nn.functional.interpolate`.

    Example:
        >>> resized_labels(np.array([[0, 1]]), (1, 4)).tolist()
        [[0, 0, 1, 1]]
    """
    rows, columns = (
        ((2 * np.arange(new) + 1) * old) // (2 * new)
        for new, old in zip(hw, labels.shape, strict=True)
    )
    return labels[rows[:, None], columns]


def resized_scores(
    scores: Float[np.ndarray, "k h w"], hw: tuple[int, int]
) -> Float[np.ndarray, "k H W"]:
    """Return the scores at another height and width: bilinear, antialiased where they shrink.

    Example:
        >>> resized_scores(np.zeros((2, 4, 4), dtype=np.float32), (8, 6)).shape
        (2, 8, 6)
    """
    import torch

    shrinks = hw[0] < scores.shape[1] or hw[1] < scores.shape[2]
    maps = [
        torch.nn.functional.interpolate(
            torch.tensor(one[None, None]).float(),
            size=hw,
            mode="bilinear",
            align_corners=False,
            antialias=shrinks,
        )[0, 0].numpy()
        for one in scores
    ]
    return np.stack(maps).astype(scores.dtype)
