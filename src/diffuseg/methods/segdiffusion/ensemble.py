"""Several masks of one class made one, how far they agree, and classes made labels."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from diffuseg import ops
from diffuseg.errors import InputError
from diffuseg.methods.labelling import label_planes

Reduction = Literal["mean", "median", "legacy"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pooled:
    """What runs have in common.

    Attributes:
        share: Of every pixel, 0 to 1.
        uncertainty: How far the runs lie apart; None of a single one, which says nothing of it.
    """

    share: Float[Tensor, "*s"]
    uncertainty: Float[Tensor, "*s"] | None


class Moments:
    """Mean and standard deviation of runs that come one after the other, of which none is kept.

    Welford's sums, which lose nothing where runs are almost the same.

    Example:
        >>> moments = Moments()
        >>> for run in (torch.tensor([0.9]), torch.tensor([0.5])):
        ...     moments.add(run)
        >>> pooled = moments.pooled()
        >>> round(pooled.share.item(), 3), round(pooled.uncertainty.item(), 3)
        (0.7, 0.283)
    """

    def __init__(self) -> None:
        self._count = 0
        self._mean = self._squares = torch.zeros(())

    @torch.no_grad()
    def add(self, run: Float[Tensor, "*s"]) -> None:
        """Take one run more, of the shape of the others."""
        self._count += 1
        off = run.float() - self._mean
        self._mean = self._mean + off / self._count
        self._squares = self._squares + off * (run.float() - self._mean)

    def pooled(self) -> Pooled:
        """Return the mean, and the deviation by one run less than there are.

        Raises:
            InputError: There was no run.
        """
        if not self._count:
            raise InputError("there must be a run", got="none", remedy="add one")
        spread = (self._squares / max(self._count - 1, 1)).clamp_min(0).sqrt()
        return Pooled(share=self._mean, uncertainty=spread if self._count > 1 else None)


class Spread:
    """How far runs lie apart at every pixel, of the name whose mask is the highest there.

    Example:
        >>> spread = Spread((1, 2))
        >>> for share, apart in (([[0.2, 0.9]], 0.1), ([[0.6, 0.3]], 0.3)):
        ...     one = torch.tensor(share)
        ...     spread.add(Pooled(share=one, uncertainty=torch.full_like(one, apart)))
        >>> spread.result()
        array([[0.3, 0.1]], dtype=float32)
    """

    def __init__(self, hw: tuple[int, int]) -> None:
        self._hw = hw
        self._best: Tensor | None = None
        self._apart = torch.zeros(())

    def add(self, pooled: Pooled) -> None:
        """Take one name more; its maps are enlarged."""
        if pooled.uncertainty is None:
            return
        share, apart = (
            ops.resize(one[None, None], self._hw)[0, 0]
            for one in (pooled.share, pooled.uncertainty)
        )
        if self._best is None:
            self._best, self._apart = share, apart
            return
        better = share > self._best
        self._best = share.where(better, self._best)
        self._apart = apart.where(better, self._apart)

    def result(self) -> Float[np.ndarray, "H W"] | None:
        """Return the map; None if there was a single run of every name."""
        return None if self._best is None else self._apart.cpu().numpy()


@torch.no_grad()
def pool_runs(runs: Float[Tensor, "n *b h w"], reduction: Reduction = "mean") -> Pooled:
    """Return what runs have in common.

    Args:
        runs: Shares of one class, one run after the other.
        reduction: "mean", and the standard deviation. "median": the lower one, and the median of
            what runs are away from it. "legacy": the same of runs that are each stretched to
            [0, 1], the result once more, as the published code has it (its alignment moves
            nothing); the mask of an absent class is then as strong as any.

    Raises:
        InputError: There is no run.

    Example:
        >>> pooled = pool_runs(torch.tensor([0.1, 0.2, 0.6]).view(3, 1, 1), "median")
        >>> round(pooled.share.item(), 2), round(pooled.uncertainty.item(), 2)
        (0.2, 0.1)
    """
    if not len(runs):
        raise InputError("there must be a run", got="none", remedy="ask for 1 or more")
    runs, single = runs.float(), len(runs) == 1
    if reduction == "mean":
        return Pooled(share=runs.mean(0), uncertainty=None if single else runs.std(0))
    if reduction == "legacy":
        runs = ops.minmax(runs)
    middle = runs.median(0).values
    spread = (runs - middle).abs().median(0).values
    if reduction == "legacy":
        low, high = middle.amin((-2, -1), keepdim=True), middle.amax((-2, -1), keepdim=True)
        spread = spread / (high - low).where(high > low, 1.0)
        middle = ops.minmax(middle)
    return Pooled(share=middle, uncertainty=None if single else spread)


def pool_names(
    shares: Iterable[Float[Tensor, "h w"]], owners: Iterable[int]
) -> Iterator[Float[Tensor, "h w"]]:
    """Yield one map a class, the highest of its names at every pixel.

    Args:
        shares: One map a name, those of a class after each other.
        owners: The class of every name.

    Example:
        >>> maps = [torch.tensor([[one]]) for one in (0.2, 0.7, 0.4)]
        >>> [round(one.item(), 1) for one in pool_names(maps, [0, 0, 1])]
        [0.7, 0.4]
    """
    held: Tensor | None = None
    last: int | None = None
    for owner, plane in zip(owners, shares, strict=True):
        if held is not None and owner == last:
            held = torch.maximum(held, plane)
            continue
        if held is not None:
            yield held
        held, last = plane, owner
    if held is not None:
        yield held


@torch.no_grad()
def label_classes(
    shares: Iterable[Float[Tensor, "h w"]],
    hw: tuple[int, int],
    *,
    background: Literal["threshold", "none"] = "threshold",
    threshold: float = 0.5,
    keep: bool = False,
) -> tuple[Int[np.ndarray, "H W"], Float[np.ndarray, "k H W"] | None]:
    """Return the class of every pixel, from the share of one class after the other.

    Maps are enlarged before they are compared; from a generator only two exist at a time.

    Args:
        shares: One map a class, at least one. The first wins where several are highest.
        hw: Height and width of the labels.
        background: "threshold": where no class has `threshold` there is none, label 0, and classes
            count from 1. "none": every pixel has a class, from 0.
        threshold: The share needed.
        keep: Whether the enlarged maps are returned too, the background's first.

    Raises:
        InputError: There is no class.

    Example:
        >>> runs = [torch.tensor([[0.7, 0.2]]), torch.tensor([[0.65, 0.3]])]
        >>> label_classes(runs, (1, 2))[0].tolist(), label_classes(runs, (1, 2), threshold=0.75)[0]
        ([[1, 0]], array([[0, 0]], dtype=int32))
    """
    planes = (ops.resize(one[None, None], hw)[0, 0] for one in shares)
    first = next(planes, None)
    if first is None:
        raise InputError("there must be a class", got="none", remedy="name some")

    def all_planes() -> Iterator[Tensor]:
        yield first
        yield from planes

    return label_planes(all_planes(), background=background, threshold=threshold, keep=keep)
