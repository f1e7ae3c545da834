"""Attention maps joined into segments, without a word: DiffSeg's algorithm on plain tensors.

"Diffuse, Attend, and Segment" (Tian et al., CVPR 2024): the self-attention of all resolutions is
fused into one tensor that holds a probability map over the image for every cell; maps near in
symmetric KL divergence are averaged, first around a grid of anchors, then among themselves. Where
paper and authors' code differ, this follows the code, whose numbers are the published ones.

Dimension names: `b` images, `n` and `m` cells of the finest grid (the map of each, and what it is a
map over), `k` and `j` maps before and after a pass.
"""

import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from diffuseg import ops
from diffuseg.errors import InputError

Grid = Literal["auto", "reference", "even"]
Precision = Literal["float32", "float16"]
Weighting = Literal["proportional", "per_map", "equal"]

# Bytes of a chunk of maps (or of their logarithms) that exist at a time beside the tensor itself.
_SCRATCH_BYTES = {"cpu": 8 << 20}
_SCRATCH_BYTES_ACCELERATOR = 256 << 20
# Zeros come from underflow; a visible epsilon would change distances, small entries are many.
_TINY = torch.finfo(torch.float32).tiny
# The side for which the reference's formula was made; where few cells fall on an anchor, it bunches
# the anchors in the middle.
_REFERENCE_GRID = (64, 64)


@dataclass(frozen=True, slots=True)
class Proposals:
    """What merging leaves of one image's maps.

    Attributes:
        maps: One map over the cells a proposal, in the order in which anchors claimed them.
        counts: How many maps there were after each pass.
    """

    maps: Float[Tensor, "k m"]
    counts: tuple[int, ...]


def resolution_weights(
    grids: Sequence[tuple[int, int]],
    how: Weighting = "proportional",
    *,
    layers: Sequence[int] | None = None,
) -> tuple[float, ...]:
    """Return how much each grid's maps count, summing to 1.

    Args:
        grids: Height and width of each.
        how: "proportional" to the side of the grid, as the code has it: 8:4:2:1 for 64, 32, 16, 8.
            "per_map": the paper's formula read literally, proportional to the side for every
            layer, so that grids with more layers count more. "equal".
        layers: Number of layers of each grid, for "per_map".

    Example:
        >>> resolution_weights([(4, 4), (2, 2), (2, 2)])
        (0.5, 0.25, 0.25)
    """
    counts = layers if how == "per_map" and layers is not None else [1] * len(grids)
    sides = [1.0 if how == "equal" else (h * w) ** 0.5 for h, w in grids]
    raw = [side * count for side, count in zip(sides, counts, strict=True)]
    return tuple(one / sum(raw) for one in raw)


@torch.no_grad()
def aggregate(
    maps: Iterable[Float[Tensor, "b _ _"]],
    grids: Sequence[tuple[int, int]],
    weights: Sequence[float] | None = None,
    *,
    chunk: int | None = None,
) -> Float[Tensor, "b n n"]:
    """Fuse the self-attention of several grids on the finest.

    Each map is resized to the finest grid (bilinear), divided by its sum and weighted; the cells a
    coarse query covers all get its map. With weights that sum to 1, so does every result.

    Args:
        maps: For each grid, the mean over layers and heads, a map a query. Read one after the
            other, so a generator keeps only one of them in memory.
        grids: Height and width of each; each divides the largest.
        weights: One a grid, used as they are; default `resolution_weights(grids)`.
        chunk: Query rows of a grid that are resized at a time; changes memory, not the result.

    Raises:
        InputError: A grid does not divide the largest, or there is not one weight a grid.

    Example:
        >>> fused = aggregate([torch.ones(1, 16, 16), torch.ones(1, 4, 4)], [(4, 4), (2, 2)])
        >>> fused.shape, round(float(fused[0, 0].sum()), 4)
        (torch.Size([1, 16, 16]), 1.0)
    """
    if not grids:
        raise InputError("there must be maps to fuse", got="none", remedy="record self-attention")
    height, width = max(grids)
    for h, w in grids:
        if height % h or width % w:
            raise InputError(
                "every attention grid must divide the finest",
                got=f"grids {', '.join(f'{a}x{b}' for a, b in grids)}",
                remedy="segment at a working size that is a multiple of 64",
            )
    shares = resolution_weights(grids) if weights is None else weights
    if len(shares) != len(grids):
        raise InputError(
            "there must be one weight a resolution",
            got=f"{len(shares)} weights for {len(grids)} resolutions",
            remedy=f"give {len(grids)}, for {', '.join(f'{a}x{b}' for a, b in grids)}",
        )
    n = height * width
    total = torch.zeros(0)
    for one, (h, w), share in zip(maps, grids, shares, strict=True):
        batch = one.shape[0]
        if not total.numel():
            total = torch.zeros((batch, n, n), dtype=torch.float32, device=one.device)
        # [b, h, rows a query covers, w, columns it covers, n]
        tiled = total.view(batch, h, height // h, w, width // w, n)
        lines = max(1, (chunk or _chunk(one, batch * n)) // w)
        for start in range(0, h, lines):
            part = one[:, start * w : (start + lines) * w].float()
            fine = ops.resize(part.reshape(-1, 1, h, w), (height, width)).flatten(1)
            fine = fine * (share / fine.sum(-1, keepdim=True))
            target = tiled[:, start : start + lines]
            target.add_(fine.view(batch, target.shape[1], 1, w, 1, n))
    return total


def anchor_points(side: int, n: int, grid: Literal["reference", "even"]) -> tuple[int, ...]:
    """Return where `n` anchors lie along an axis of `side` cells.

    "reference" is the authors' formula: a whole number of cells apart, the rest left over on both
    sides. Unless there are many cells an anchor, that leaves out much of the image (28 cells, 16
    anchors: 6 to 21). "even" spreads them over all; there are no more than there are cells.

    Example:
        >>> anchor_points(64, 4, "reference"), anchor_points(28, 4, "even")
        ((0, 21, 42, 63), (3, 10, 17, 24))
    """
    if n == 1:
        return ((side - 1) // 2,)
    if grid == "even":
        n = min(n, side)
        return tuple(round((i + 0.5) * side / n - 0.5) for i in range(n))
    step = (side - 1) // (n - 1)
    start = (side - 1 - step * (n - 1)) // 2
    return tuple(start + step * i for i in range(n))


def anchor_grid(hw: tuple[int, int], n: int, grid: Grid = "auto") -> Int[np.ndarray, "k 2"]:
    """Return row and column of the anchors, `n` along each axis, row by row.

    Args:
        hw: Height and width of the grid of cells.
        n: Anchors along an axis.
        grid: How they are spread, see `anchor_points`. "auto": "reference" on 64 x 64 cells,
            where published numbers come from, else "even".

    Raises:
        InputError: Fewer than one anchor, or more than there are cells in a "reference" grid.

    Example:
        >>> anchor_grid((2, 4), 2).tolist()
        [[0, 0], [0, 2], [1, 0], [1, 2]]
    """
    chosen = grid
    if chosen == "auto":
        chosen = "reference" if hw == _REFERENCE_GRID else "even"
    if n < 1 or (chosen == "reference" and n > min(hw)):
        raise InputError(
            "there must be at least one anchor an axis, and no more than the attention has cells",
            got=f"{n} anchors for {hw[0]}x{hw[1]} cells",
            remedy='use fewer anchors, or grid="even"',
        )
    rows, columns = (anchor_points(side, n, chosen) for side in hw)
    return np.array([(row, column) for row in rows for column in columns], dtype=np.int64)


@torch.no_grad()
def distances(
    p: Float[Tensor, "*b k m"], q: Float[Tensor, "*b n m"], *, chunk: int | None = None
) -> Float[Tensor, "*b k n"]:
    """Symmetric KL divergence of every map of `p` from every map of `q`, in nats.

    Half of KL(p|q) + KL(q|p), which is half the sum of (p - q)(log p - log q). Multiplied out, it
    is two matrix products and the maps' own entropies. Float32; entries are clamped to its
    smallest normal number before the logarithm. Rounding may leave some 1e-6 of either sign where
    two maps are equal.

    Args:
        p: Maps.
        q: Maps; their logarithms exist `chunk` at a time.
        chunk: Changes memory, not the result.

    Example:
        >>> p = torch.tensor([[0.5, 0.5], [0.9, 0.1]])
        >>> [[round(abs(x), 4) for x in row] for row in distances(p, p).tolist()]
        [[0.0, 0.4394], [0.4394, 0.0]]
    """
    p, q = p.float(), q.float()
    result = p.new_empty((*p.shape[:-1], q.shape[-2]))
    log_p = p.clamp_min(_TINY).log_()
    # A shift of all logarithms at a cell by one number changes no distance, but the terms that
    # cancel get smaller, and with them the rounding.
    shift = log_p.mean(-2, keepdim=True)
    log_p.sub_(shift)
    own_p = (p * log_p).sum(-1, keepdim=True)
    size = chunk or _chunk(q, q.numel() // max(1, q.shape[-2]))
    with _exact_products(p.device):
        for start in range(0, q.shape[-2], size):
            part = q[..., start : start + size, :]
            log_q = part.clamp_min(_TINY).log_().sub_(shift)
            found = p @ log_q.mT
            found.add_(log_p @ part.mT)
            own_q = log_q.mul_(part).sum(-1)
            torch.sub(own_p + own_q.unsqueeze(-2), found, out=found)
            result[..., start : start + size] = found.mul_(0.5)
    return result


@torch.no_grad()
def anchor_distances(
    fused: Float[Tensor, "b n m"],
    anchors: Int[Tensor, " k"],
    *,
    precision: Precision = "float32",
    chunk: int | None = None,
) -> Float[Tensor, "b k n"]:
    """Symmetric KL divergence of the anchors' maps from those of all cells.

    It depends on no threshold: many can be tried on one.

    Args:
        fused: From `aggregate`.
        anchors: Indices of cells.
        precision: "float16" rounds the maps as the authors' code does; a map with an entry below
            3e-8 is then NaN from all others, and lost. Only to trace published numbers.
        chunk: As for `distances`.
    """
    lost: Tensor | None = None
    if precision == "float16":
        fused = fused.half().float()
        lost = (fused == 0).any(-1)  # [b, n]
    result = distances(fused[:, anchors], fused, chunk=chunk)
    # Exact, so that an anchor belongs to itself at the smallest threshold.
    result[:, torch.arange(len(anchors), device=result.device), anchors] = 0
    if lost is not None:
        result.masked_fill_(lost[:, None] | lost[:, anchors, None], torch.nan)
    return result


@torch.no_grad()
def mean_of(
    chosen: Bool[Tensor, "*b k n"], maps: Float[Tensor, "*b n m"]
) -> Float[Tensor, "*b k m"]:
    """Return the plain mean of the chosen maps, for every row of choices; NaN where none is.

    Example:
        >>> mean_of(torch.tensor([[True, True]]), torch.tensor([[1.0], [2.0]]))
        tensor([[1.5000]])
    """
    with _exact_products(maps.device):
        total = chosen.float() @ maps.float()
    return total.div_(chosen.sum(-1, keepdim=True))


def group_near(near: Bool[np.ndarray, "k k"], *, reuse: bool = True) -> Bool[np.ndarray, "j k"]:
    """Return the groups that maps form if each, in order, claims the maps near it.

    A map that was claimed starts no group of its own. In the authors' code it still counts in
    later groups; in the paper's algorithm (`reuse=False`) it is gone.

    Example:
        >>> chain = np.array([[1, 1, 0], [1, 1, 1], [0, 1, 1]], dtype=bool)
        >>> group_near(chain).astype(int).tolist()
        [[1, 1, 0], [0, 1, 1]]
        >>> group_near(chain, reuse=False).astype(int).tolist()
        [[1, 1, 0], [0, 0, 1]]
    """
    used = np.zeros(len(near), dtype=bool)
    groups: list[np.ndarray] = []
    for i, row in enumerate(near):
        if used[i]:
            continue
        claimed = row if reuse else row & ~used
        used |= claimed
        if claimed.any():
            groups.append(claimed)
    return np.stack(groups) if groups else near[:0]


@torch.no_grad()
def merge_pass(
    maps: Float[Tensor, "k m"], tau: float, *, reuse: bool = True
) -> Float[Tensor, "j m"]:
    """Average the maps that are near each other, see `group_near`.

    Means are plain: it does not matter how many cells a map stands for.
    """
    apart = distances(maps, maps)
    apart.fill_diagonal_(0)
    groups = group_near((apart < tau).cpu().numpy(), reuse=reuse)
    return mean_of(torch.from_numpy(groups).to(maps.device), maps)


@torch.no_grad()
def merge(
    fused: Float[Tensor, "b n m"],
    anchors: Int[Tensor, " k"],
    taus: Sequence[float],
    *,
    reuse: bool = True,
    precision: Precision = "float32",
    chunk: int | None = None,
) -> list[Proposals]:
    """Merge the maps of each image into proposals.

    The first pass gives every anchor the mean of all cells' maps near its own. Each further pass
    averages the maps the last one left that are near each other.

    Args:
        fused: From `aggregate`.
        anchors: Indices of cells, in the order in which they may claim.
        taus: Threshold of every pass, in nats; the first is of the anchors' pass.
        reuse: Whether maps claimed in a pass count in later groups of it, see `group_near`.
        precision: As for `anchor_distances`.
        chunk: As for `distances`.

    Example:
        >>> block = torch.tensor([0.4999, 0.4999, 0.0001, 0.0001])
        >>> fused = torch.stack([block, block, block.flip(0), block.flip(0)])[None]
        >>> [found] = merge(fused, torch.arange(4), [1.0, 1.0])
        >>> found.counts
        (4, 2)
    """
    apart = anchor_distances(fused, anchors, precision=precision, chunk=chunk)
    first = mean_of(apart < taus[0], fused)  # [b, k, m]
    results: list[Proposals] = []
    for maps in first:
        counts = [len(maps)]
        for tau in taus[1:]:
            maps = merge_pass(_known(maps), tau, reuse=reuse)
            counts.append(len(maps))
        results.append(Proposals(_known(maps), tuple(counts)))
    return results


def _known(maps: Float[Tensor, "k m"]) -> Float[Tensor, "j m"]:
    """Without the maps that half precision has lost."""
    return maps[~maps.isnan().any(-1)]


@torch.no_grad()
def refine_maps(
    fused: Float[Tensor, "n m"],
    maps: Float[Tensor, "k m"],
    how: Literal["kmeans", "kl"] = "kmeans",
) -> tuple[Int[Tensor, " n"], Float[Tensor, "k m"]]:
    """Assign every cell to a proposal and give each the mean map of its cells.

    Args:
        fused: From `aggregate`, of one image.
        maps: Proposals.
        how: "kmeans" (the authors' option): Lloyd's algorithm on the cells' maps in Euclidean
            space, started at the proposals. "kl": the proposal least far in symmetric KL.

    Returns:
        The proposal of every cell, and the new maps; a proposal without cells stays as it was.

    Example:
        >>> cells = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.1, 0.9]])
        >>> index, means = refine_maps(cells, torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
        >>> index.tolist()
        [0, 0, 1]
    """
    if how == "kl":
        index = distances(maps, fused).argmin(0)
    else:
        index = torch.from_numpy(_kmeans(fused, maps)).to(fused.device)
    chosen = index[None] == torch.arange(len(maps), device=fused.device)[:, None]
    means = mean_of(chosen, fused)
    return index, torch.where(chosen.any(-1, keepdim=True), means, maps.float())


def _kmeans(fused: Tensor, maps: Tensor) -> Int[np.ndarray, " n"]:
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    cells, start = (one.cpu().numpy().astype(np.float64) for one in (fused, maps))
    # scikit-learn's own types know only text for both.
    method = KMeans(n_clusters=len(start), init=start, n_init=1)  # type: ignore[arg-type]
    with warnings.catch_warnings():
        # Fewer different maps than proposals: an image of one colour.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return method.fit_predict(cells).astype(np.int64)


def _chunk(tensor: Tensor, row: int) -> int:
    """How many rows of `row` numbers fit the scratch memory of a device."""
    room = _SCRATCH_BYTES.get(tensor.device.type, _SCRATCH_BYTES_ACCELERATOR)
    return max(1, room // (4 * max(1, row)))


@contextmanager
def _exact_products(device: torch.device) -> Iterator[None]:
    """Matrix products in full float32: TensorFloat-32 or autocast would be 1e-2 off, and flip."""
    before = torch.get_float32_matmul_precision()
    with torch.autocast(device.type, enabled=False):
        if before == "highest":
            yield
            return
        torch.set_float32_matmul_precision("highest")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(before)
