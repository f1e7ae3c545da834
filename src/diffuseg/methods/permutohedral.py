"""Gaussian filtering of values at scattered points, on a permutohedral lattice or among all pairs.

Adams, Baek and Davis, Fast High-Dimensional Filtering Using the Permutohedral Lattice, Eurographics
2010. Points of d numbers lie in the plane of d + 1 coordinates that sum to 0. Its lattice cuts that
plane into simplices of d + 1 vertices; a point shares its value among those around it (splat),
vertices take some of their neighbours' along d + 1 directions (blur), and points read them again
(slice). All three are sparse matrices, made once for the points and used for any values.
"""

from dataclasses import dataclass

import numpy as np
import scipy.sparse
from jaxtyping import Float, Float32, Float64, Int32, Int64

from diffuseg.errors import InputError

_PAIRS = 1 << 22  # kernel values held at a time where all pairs are filtered
_MOST_KEYS = 1 << 62


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Lattice:
    """The lattice around some points.

    Attributes:
        slicing: What each point reads: d + 1 vertices' shares, which sum to 1.
        splatting: The same, transposed.
        blurs: One matrix a direction: half of a vertex' own value, a quarter of each neighbour's.
    """

    slicing: scipy.sparse.csr_array
    splatting: scipy.sparse.csr_array
    blurs: tuple[scipy.sparse.csr_array, ...]

    @classmethod
    def around(cls, points: Float[np.ndarray, "n d"]) -> "Lattice":
        """Return the lattice for a Gaussian of deviation 1 among points.

        Args:
            points: Divided by their deviations.

        Raises:
            InputError: There are no points, one is not finite, or they lie so far apart that
                vertices cannot be numbered.

        Example:
            >>> Lattice.around(np.zeros((5, 2))).slicing.shape
            (5, 3)
        """
        _check(points)
        n, d = points.shape
        elevated = _elevated(points)
        origin, rank = _simplices(elevated)
        shares = _shares(elevated, origin, rank)
        # One number for all coordinates of a vertex but the last, which follows from them. With
        # room for a step in any direction, steps are a sum, and none leads to another's number.
        low = origin[:d].min(1) - 2 * (d + 1)
        extents = [int(one) for one in origin[:d].max(1) - low + 2 * (d + 1)]
        strides = np.ones(d, np.int64)
        total = 1
        for i in range(d):
            strides[i] = total
            total *= extents[i]
            if total > _MOST_KEYS:
                raise InputError(
                    "points must lie within what a lattice can number",
                    got=f"{n} points over {_spread(points)} deviations",
                    remedy="use larger deviations",
                )
        base = strides @ (origin[:d] - low[:, None])
        keys = np.empty((n, d + 1), np.int64)
        for k in range(d + 1):
            wrapped = strides @ (rank[:d] > d - k)
            keys[:, k] = base + k * strides.sum() - (d + 1) * wrapped
        vertices, place = np.unique(keys, return_inverse=True)
        count = len(vertices)
        slicing = scipy.sparse.csr_array(
            (
                shares.T.astype(np.float32).ravel(),
                place.astype(np.int32).ravel(),
                np.arange(0, n * (d + 1) + 1, d + 1, dtype=np.int32),
            ),
            shape=(n, count),
        )
        steps = [int((d + 1) * strides[j] - strides.sum()) for j in range(d)]
        steps.append(int(-strides.sum()))
        blurs = tuple(_blur(vertices, step) for step in steps)
        return cls(slicing=slicing, splatting=slicing.T.tocsr(), blurs=blurs)

    def __call__(self, values: Float[np.ndarray, "n c"]) -> Float32[np.ndarray, "n c"]:
        """Return the filtered values, up to a factor that is the same for all points.

        Example:
            >>> lattice = Lattice.around(np.array([[0.0], [0.0], [90.0]]))
            >>> found = lattice(np.array([[1.0], [0.0], [0.0]]))
            >>> bool(found[0] == found[1] > 0), float(found[2, 0])
            (True, 0.0)
        """
        held = self.splatting @ values.astype(np.float32)
        for blur in self.blurs:
            held = blur @ held
        return self.slicing @ held


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AllPairs:
    """The Gaussian of deviation 1 between all pairs of points; time grows with their square.

    Attributes:
        points: Divided by their deviations, their mean at 0.
    """

    points: Float32[np.ndarray, "n d"]

    @classmethod
    def around(cls, points: Float[np.ndarray, "n d"]) -> "AllPairs":
        """Return the filter for points.

        Raises:
            InputError: There are no points, or one is not finite.

        Example:
            >>> AllPairs.around(np.array([[1.0], [3.0]])).points.ravel().tolist()
            [-1.0, 1.0]
        """
        _check(points)
        return cls(points=(points - points.mean(0)).astype(np.float32))

    def __call__(self, values: Float[np.ndarray, "n c"]) -> Float32[np.ndarray, "n c"]:
        """Return for every point the sum of all values, each times its Gaussian.

        Example:
            >>> AllPairs.around(np.array([[0.0], [2.0]]))(np.array([[1.0], [0.0]])).round(3)
            array([[1.   ],
                   [0.135]], dtype=float32)
        """
        values = values.astype(np.float32)
        squares = 0.5 * (self.points * self.points).sum(1)
        found = np.empty_like(values)
        size = max(1, _PAIRS // len(values))
        for start in range(0, len(values), size):
            rows = slice(start, start + size)
            # -|a - b|^2 / 2; rounding must not make it positive.
            kernel = self.points[rows] @ self.points.T
            kernel -= squares[rows, None]
            kernel -= squares
            np.minimum(kernel, 0, out=kernel)
            found[rows] = np.exp(kernel, out=kernel) @ values
        return found


def _check(points: Float[np.ndarray, "n d"]) -> None:
    if points.ndim != 2 or not points.size or not np.isfinite(points).all():
        raise InputError(
            "points must be finite, and some",
            got=f"shape {points.shape}",
            remedy="pass one row of numbers for every point",
        )


def _spread(points: Float[np.ndarray, "n d"]) -> str:
    return " x ".join(f"{one:.3g}" for one in points.max(0) - points.min(0))


def _elevated(points: Float[np.ndarray, "n d"]) -> Float64[np.ndarray, "d+1 n"]:
    """Points in the plane, scaled so that splat, blur and slice are a Gaussian of deviation 1.

    The variances of sharing and reading, and that of the blur, add up to 2/3 (d + 1)^2.
    """
    d = points.shape[1]
    axes = np.arange(1, d + 1)
    scaled = (points * (np.sqrt(2 / 3) * (d + 1) / np.sqrt(axes * (axes + 1)))).T
    # Row i of the plane's basis: -i times axis i, and 1 times all axes after it.
    after = np.concatenate([np.cumsum(scaled[::-1], 0)[::-1], np.zeros_like(scaled[:1])])
    after[1:] -= axes[:, None] * scaled
    return after


def _simplices(
    elevated: Float64[np.ndarray, "e n"],
) -> tuple[Int64[np.ndarray, "e n"], Int32[np.ndarray, "e n"]]:
    """Where each point's simplex begins, a vertex of multiples of d + 1, and coordinates' order.

    Rank 0 is the coordinate that is furthest above the vertex.
    """
    e = len(elevated)
    nearest = np.rint(elevated / e)
    apart = elevated / e - nearest
    excess = nearest.sum(0).astype(np.int32)
    rank = np.zeros(elevated.shape, np.int32)
    for i in range(e):
        for j in range(i + 1, e):
            lower = apart[i] < apart[j]
            rank[i] += lower
            rank[j] += ~lower
    # Brought back to the plane, by the coordinates that are nearest to the next multiple.
    rank += excess
    origin = nearest.astype(np.int64)
    under, over = rank < 0, rank >= e
    origin += under
    origin -= over
    rank += np.where(under, e, 0).astype(np.int32)
    rank -= np.where(over, e, 0).astype(np.int32)
    return origin * e, rank


def _shares(
    elevated: Float64[np.ndarray, "e n"],
    origin: Int64[np.ndarray, "e n"],
    rank: Int32[np.ndarray, "e n"],
) -> Float64[np.ndarray, "e n"]:
    """How near each point is to its simplex' vertices: barycentric coordinates."""
    e = len(elevated)
    ordered = np.empty_like(elevated)
    np.put_along_axis(ordered, rank, (elevated - origin) / e, axis=0)
    shares = np.empty_like(elevated)
    shares[0] = 1 + ordered[-1] - ordered[0]
    for k in range(1, e):
        shares[k] = ordered[e - 1 - k] - ordered[e - k]
    return shares


def _blur(vertices: Int64[np.ndarray, " m"], step: int) -> scipy.sparse.csr_array:
    """The blur along a direction; a neighbour that is no vertex has no value."""
    count = len(vertices)
    wanted = vertices + step
    place = np.minimum(np.searchsorted(vertices, wanted), count - 1)
    there = vertices[place] == wanted
    ends = np.concatenate([[0], np.cumsum(there)]).astype(np.int32)
    onward = scipy.sparse.csr_array(
        (np.full(ends[-1], 0.25, np.float32), place[there].astype(np.int32), ends),
        shape=(count, count),
    )
    ends = np.arange(count + 1, dtype=np.int32)
    own = scipy.sparse.csr_array(
        (np.full(count, 0.5, np.float32), ends[:-1], ends), shape=(count, count)
    )
    return (own + onward + onward.T.tocsr()).tocsr()
