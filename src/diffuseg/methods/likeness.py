"""What is like the places a user points at: cells by their queries and keys, and their colour.

An alternative to multiplying by self-attention where that is spread too wide for many products, as
a small model's is. Ours. Four steps: every seed speaks for the cells like its own (kernel
regression), neighbouring cells that are alike come to agree (a random walk with restarts, as in
Grady 2006), a linear classifier learnt from the result judges every cell anew (as GrabCut refits
its colours), and neighbours agree once more.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import scipy.sparse
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from diffuseg import ops
from diffuseg.attention import AttentionRecord, LayerId

_PER_TENSOR, _COMPONENTS = 32, 32  # principal components of one layer's queries, and of all
_RIDGE = 0.01  # how far off its own value a seed's cell may be
_LINK_SHARPNESS = (2.0, 3.3)  # of features and colours, against the mean of neighbours
_LEAST_LINK = 1e-5
_RESTART = 0.01  # weight of a cell's own judgement against that of each neighbour
_LEARNT = 0.6  # share of the classifier's judgement in the second round
_CUT = 0.35  # above it, cells count as selected for the classifier


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Likeness:
    """An image's cells, each described by numbers, and the links between neighbours.

    Attributes:
        grid: Height and width of the grid.
        features: What describes a cell to the seeds, of squared length 2 and a share of colour.
        judged: What the classifier sees.
        agree: Solves for the values on which neighbours and restarts agree.
        reach: Squared distance at which a seed's word counts 1/e; two cells are 4 apart on average
            (5 with colours).
        answers: Its answers to cells pointed at before, since clicks come one by one.
    """

    grid: tuple[int, int]
    features: Float[Tensor, "n d"]
    judged: Float[Tensor, "n e"]
    agree: Callable[[Float[np.ndarray, " n"]], Float[np.ndarray, " n"]]
    reach: float
    answers: dict[int, Tensor] = field(default_factory=dict, repr=False)

    def select(
        self,
        seeds: Float[Tensor, "n k"],
        wanted: Bool[Tensor, " k"],
        areas: Float[Tensor, " n"] | None = None,
        hints: Float[Tensor, " n"] | None = None,
    ) -> Float[Tensor, " n"]:
        """Return how much each cell belongs to what is wanted, 0 to 1; 0.35 is a good cut.

        Args:
            seeds: Cells pointed at, one a column.
            wanted: Which of them are wanted.
            areas: 1 in the boxes and masks wanted, which the thing lies in; None: anywhere.
            hints: 0 to 1, where something else says the thing is.
        """
        judged = torch.zeros(len(self.features)) if hints is None else hints
        if areas is not None:
            judged = (judged + areas / 2).clamp(0, 1) * (areas > 0)
        if seeds.shape[1]:
            judged = judged + self._speak(seeds, wanted)
        learnt = self._learn(self._agreed(judged) > _CUT)
        blended = learnt * _LEARNT + judged.clamp(0, 1) * (1 - _LEARNT)
        if areas is not None:
            blended = blended * (areas > 0)
        return self._kept(self._agreed(blended), seeds, wanted)

    def _speak(self, seeds: Tensor, wanted: Tensor) -> Float[Tensor, " n"]:
        """Each seed's word, weighted so that seeds' own cells get their own value."""
        at = seeds.argmax(0)
        apart = torch.cdist(self.features, self.features[at]).square()  # [n, k]
        words = torch.exp(-apart / self.reach)
        ridge = _RIDGE * torch.eye(len(at))
        weights = torch.linalg.solve(words[at] + ridge, wanted.float())
        return words @ weights

    def _kept(self, found: Tensor, seeds: Tensor, wanted: Tensor) -> Float[Tensor, " n"]:
        """The same, but for seeds' cells, which get their own value, and what agrees with them."""
        if not seeds.shape[1]:
            return found
        at = seeds.argmax(0)
        for cell in set(at.tolist()) - self.answers.keys():
            seed = np.zeros(len(found))
            seed[cell] = 1
            self.answers[cell] = torch.from_numpy(self.agree(seed)).float()
        answers = torch.stack([self.answers[cell] for cell in at.tolist()], 1)
        ridge = 1e-4 * torch.eye(len(at))
        missing = torch.linalg.solve(answers[at] + ridge, wanted.float() - found[at])
        return found + answers @ missing

    def _agreed(self, judged: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        found = self.agree(_RESTART * judged.double().numpy())
        return torch.from_numpy(found).float()

    def _learn(self, selected: Bool[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Least squares on what is selected, both sides counting the same."""
        y = selected.float()
        if not 0 < y.sum() < len(y):
            return y
        share = torch.where(selected, 0.5 / y.sum(), 0.5 / (1 - y).sum())[:, None]
        weighted = self.judged * share
        gram = weighted.T @ self.judged + 1e-3 * torch.eye(self.judged.shape[1])
        return (self.judged @ torch.linalg.solve(gram, weighted.T @ y)).clamp(0, 1)


@torch.no_grad()
def describe(
    record: AttentionRecord,
    layers: Sequence[LayerId],
    grid: tuple[int, int],
    colours: Float[Tensor, "1 3 H W"] | None = None,
    *,
    reach: float = 0.8,
) -> Likeness:
    """Describe the cells of an image.

    Args:
        record: Of one image, one row.
        layers: Self-attention layers whose queries and keys describe a cell.
        grid: Height and width of the grid, finer than the layers' if you like.
        colours: The image, 0 to 1; None: colour does not count.
        reach: How unlike a seed the cells may be for which it speaks, see `Likeness`.
    """
    parts: list[Tensor] = []
    for layer in layers:
        for held in (record.queries(layer), record.keys(layer)):
            flat = ops.merge_heads(held.float())[0].cpu()  # [n, c]
            unit = torch.nn.functional.normalize(flat - flat.mean(0), dim=1)
            planes = principal(unit, _PER_TENSOR).T.unflatten(1, record.grid(layer))
            parts.append(ops.resize(planes[None], grid)[0].flatten(1).T)
    features = _scaled(principal(torch.cat(parts, 1), _COMPONENTS))
    hues = torch.zeros(len(features), 0)
    if colours is not None:
        small = torch.nn.functional.interpolate(colours, grid, mode="area")
        hues = _scaled(small[0].flatten(1).T.cpu())
    rows, columns = torch.meshgrid(
        torch.linspace(0, 1, grid[0]), torch.linspace(0, 1, grid[1]), indexing="ij"
    )
    place = torch.stack([rows.flatten(), columns.flatten(), torch.ones(len(features))], 1)
    return Likeness(
        grid=grid,
        features=torch.cat([features, hues * 0.5**0.5], 1),
        judged=torch.cat([features, features[:, :8] ** 2, hues, hues**2, place], 1),
        agree=_solver([features, hues], grid),
        reach=reach,
    )


def principal(rows: Float[Tensor, "n c"], count: int) -> Float[Tensor, "n p"]:
    """Return the largest principal components of rows, at most `count`; the same every time.

    Example:
        >>> principal(torch.tensor([[1.0, 1.0], [-1.0, -1.0]]), 1).abs()
        tensor([[1.4142],
                [1.4142]])
    """
    centred = rows - rows.mean(0)
    count = min(count, *rows.shape)
    # A random start and two products find the largest ones; a full decomposition takes seconds.
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(rows.shape[1], min(2 * count, *rows.shape), generator=generator)
    for _ in range(2):
        start = torch.linalg.qr(centred.T @ (centred @ start)).Q
    projected = centred @ start
    _, directions = torch.linalg.eigh(projected.T @ projected)
    return projected @ directions.flip(1)[:, :count]


def _scaled(rows: Float[Tensor, "n c"]) -> Float[Tensor, "n c"]:
    """Centred, of mean squared length 2."""
    centred = rows - rows.mean(0)
    return centred * (2 / centred.square().sum(1).mean().clamp_min(1e-12)).sqrt()


def _solver(
    kinds: Sequence[Float[Tensor, "n _"]], grid: tuple[int, int]
) -> Callable[[Float[np.ndarray, " n"]], Float[np.ndarray, " n"]]:
    """Factorise once what every selection solves: restarts, and links among eight neighbours."""
    from scipy.sparse.linalg import splu

    height, width = grid
    index = np.arange(height * width).reshape(grid)
    pairs = [
        (index[:, :-1], index[:, 1:]),
        (index[:-1], index[1:]),
        (index[:-1, :-1], index[1:, 1:]),
        (index[:-1, 1:], index[1:, :-1]),
    ]
    here, there = (np.concatenate([one[side].ravel() for one in pairs]) for side in (0, 1))
    unlike = np.zeros(len(here))
    for rows, sharpness in zip(kinds, _LINK_SHARPNESS, strict=True):
        if rows.shape[1]:
            apart = (rows[here] - rows[there]).square().sum(1).double().numpy()
            unlike += sharpness * apart / max(apart.mean(), 1e-12)
    links = np.exp(-unlike) + _LEAST_LINK
    n = height * width
    one_way = scipy.sparse.coo_matrix((links, (here, there)), (n, n))
    both = (one_way + one_way.T).tocsr()
    degree = np.asarray(both.sum(1)).ravel()
    return splu((scipy.sparse.diags(degree + _RESTART) - both).tocsc()).solve
