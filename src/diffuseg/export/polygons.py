"""Outlines of masks as polygons on the pixel grid, and back without loss.

Corners lie between pixels: pixel (y, x) is the square from (x, y) to (x + 1, y + 1), the origin is
the top left corner of the image and y grows downwards. Outlines follow the pixel edges, so that
filling them gives the mask again, exactly.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int

from diffuseg.errors import InputError

# Rings of one polygon differ in length, so the axis has no name.
Ring = Int[np.ndarray, "_ 2"]

# Directions of travel with the mask on the right hand, in clockwise order on the screen.
_RIGHT, _DOWN, _LEFT, _UP = range(4)


def trace_polygons(mask: Bool[np.ndarray, "h w"]) -> list[list[Ring]]:
    """Return the polygons of a mask: for every part its outline, then its holes.

    A part is a set of pixels joined by their edges; pixels that meet at a corner only are parts of
    their own. Rings are closed (the last corner is the first), hold only the corners where the
    outline turns, as (x, y), and visit no corner twice. Outlines run clockwise on the screen, holes
    anticlockwise; since y grows downwards this is the order GeoJSON asks for.

    Example:
        >>> trace_polygons(np.array([[True, True]]))[0][0].tolist()
        [[0, 0], [2, 0], [2, 1], [0, 1], [0, 0]]
    """
    from scipy import ndimage

    parts = np.zeros(mask.shape, dtype=np.int32)
    ndimage.label(mask, output=parts)
    polygons: list[list[Ring]] = [[] for _ in range(parts.max(initial=0))]
    starts, pixels, following = _edges(mask)
    unseen = np.ones(len(starts), dtype=bool)
    for first in range(len(starts)):
        if not unseen[first]:
            continue
        walk: list[int] = []
        edge = first
        while unseen[edge]:
            unseen[edge] = False
            walk.append(edge)
            edge = following[edge]
        part = parts[tuple(pixels[first])] - 1
        for ring in _simple_rings(starts[walk]):
            # The outline of a part comes first, whichever ring was met first.
            polygons[part].insert(0 if _signed_area(ring) > 0 else len(polygons[part]), ring)
    return polygons


def fill_polygons(
    polygons: Sequence[Sequence[object]], hw: tuple[int, int]
) -> Bool[np.ndarray, "h w"]:
    """Return the mask of polygons whose edges all lie on the pixel grid, as traced.

    Args:
        polygons: For each its rings, arrays or lists of (x, y).
        hw: Height and width of the mask.

    Raises:
        InputError: An edge is slanted, a corner is not on the grid or lies outside the image.

    Example:
        >>> fill_polygons([[[(1, 0), (2, 0), (2, 1), (1, 1), (1, 0)]]], (1, 3)).tolist()
        [[False, True, False]]
    """
    # Whether a pixel is inside is the parity of the upright edges to its left; each edge is marked
    # where it begins and where it ends, and spread over its rows by the first running exclusive or.
    odd = np.zeros((hw[0] + 1, hw[1] + 1), dtype=bool)
    for polygon in polygons:
        for ring in polygon:
            corners = np.asarray(ring)
            _check_ring(corners, hw)
            (x0, y0), (x1, y1) = corners[:-1].T.astype(int), corners[1:].T.astype(int)
            upright = x0 == x1
            np.logical_xor.at(odd, (y0[upright], x0[upright]), True)
            np.logical_xor.at(odd, (y1[upright], x1[upright]), True)
    rows = np.logical_xor.accumulate(odd, axis=0)
    return np.logical_xor.accumulate(rows, axis=1)[:-1, :-1]


def _edges(
    mask: Bool[np.ndarray, "h w"],
) -> tuple[Int[np.ndarray, "n 2"], Int[np.ndarray, "n 2"], list[int]]:
    """Return of every straight edge its start (x, y), a pixel (y, x) inside, and the next edge."""
    padded = np.pad(mask.astype(np.int8), 1)
    down, right = np.diff(padded, axis=0)[:, 1:-1], np.diff(padded, axis=1)[1:-1]
    y, x0, x1, inside_below = _runs(down)
    x, y0, y1, inside_right = _runs(right.T)
    # A top edge runs right, a bottom edge left; a left edge runs up, a right edge down.
    start = np.concatenate(
        [
            np.stack([np.where(inside_below, x0, x1), y], axis=1),
            np.stack([x, np.where(inside_right, y1, y0)], axis=1),
        ]
    )
    end = np.concatenate(
        [
            np.stack([np.where(inside_below, x1, x0), y], axis=1),
            np.stack([x, np.where(inside_right, y0, y1)], axis=1),
        ]
    )
    heading = np.concatenate(
        [np.where(inside_below, _RIGHT, _LEFT), np.where(inside_right, _UP, _DOWN)]
    )
    pixels = np.concatenate(
        [
            np.stack([np.where(inside_below, y, y - 1), x0], axis=1),
            np.stack([y0, np.where(inside_right, x, x - 1)], axis=1),
        ]
    )
    departures = {
        (corner_x, corner_y, way): i
        for i, ((corner_x, corner_y), way) in enumerate(
            zip(start.tolist(), heading.tolist(), strict=True)
        )
    }
    following: list[int] = []
    for (corner_x, corner_y), way in zip(end.tolist(), heading.tolist(), strict=True):
        # Where two parts touch at a corner, turning clockwise stays with the part at hand.
        clockwise = departures.get((corner_x, corner_y, (way + 1) % 4))
        other = (corner_x, corner_y, (way - 1) % 4)
        following.append(departures[other] if clockwise is None else clockwise)
    return start, pixels, following


def _runs(
    change: Int[np.ndarray, "r c"],
) -> tuple[
    Int[np.ndarray, " n"], Int[np.ndarray, " n"], Int[np.ndarray, " n"], Bool[np.ndarray, " n"]
]:
    """Return row, first column, end column and sign of every run of equal non-zero values."""
    padded = np.pad(change, ((0, 0), (1, 1)))
    differs = padded[:, 1:] != padded[:, :-1]
    row, begin = np.nonzero(differs & (padded[:, 1:] != 0))
    _, end = np.nonzero(differs & (padded[:, :-1] != 0))
    return row, begin, end, change[row, begin] > 0


def _simple_rings(corners: Ring) -> list[Ring]:
    """Cut a closed walk at every corner it visits twice."""
    rings: list[Ring] = []
    path: list[tuple[int, int]] = []
    place: dict[tuple[int, int], int] = {}
    for x, y in corners.tolist():
        if (x, y) in place:
            since = place[x, y]
            rings.append(_closed(path[since:]))
            for corner in path[since + 1 :]:
                del place[corner]
            del path[since + 1 :]
        else:
            place[x, y] = len(path)
            path.append((x, y))
    rings.append(_closed(path))
    return rings


def _closed(path: list[tuple[int, int]]) -> Ring:
    return np.array([*path, path[0]], dtype=np.int64)


def _signed_area(ring: Ring) -> float:
    x, y = ring.T
    return float(np.sum(x[:-1] * y[1:] - x[1:] * y[:-1])) / 2


def _check_ring(corners: np.ndarray, hw: tuple[int, int]) -> None:
    shaped = corners.ndim == 2 and corners.shape[1] == 2 and corners.dtype.kind in "iuf"
    if not (
        shaped
        and (corners == np.rint(corners)).all()
        and (corners >= 0).all()
        and (corners <= [hw[1], hw[0]]).all()
        and ((corners[1:] == corners[:-1]).any(axis=1)).all()
        and (corners[0] == corners[-1]).all()
    ):
        raise InputError(
            "outlines must be closed, inside the image, along the edges of pixels",
            got=f"{corners[:6].tolist()} … in an image {hw[0]} high, {hw[1]} wide",
            remedy="draw polygons from other tools with PIL.ImageDraw and use from_labels()",
        )
