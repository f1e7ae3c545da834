"""Cells tracked through a batch by their features, and labels that vote along the tracks.

VidSeg's refinement by correspondence (Wang and others, CVPR 2025): a label that flickers on a
track gives way to the one the track mostly has; tracks that jump do not vote.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64, Integer
from torch import Tensor

from diffuseg.errors import InputError

# What comparing the labels of tracks frame with frame may take; beyond, tracks come in parts.
_VOTES_BYTES = 32 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Tracks:
    """Where every cell of the first frame goes.

    Attributes:
        points: The cell of every track in every frame, numbered row by row; a frame's tracks may
            meet.
        hw: Rows and columns of the grid.
    """

    points: Int64[Tensor, "f n"]
    hw: tuple[int, int]

    @property
    def rows(self) -> Int64[Tensor, "f n"]:
        """The row of every track in every frame."""
        return self.points // self.hw[1]

    @property
    def columns(self) -> Int64[Tensor, "f n"]:
        """The column of every track in every frame."""
        return self.points % self.hw[1]

    def steady(self, jump: int = 1, *, signed: bool = False) -> Bool[Tensor, " n"]:
        """Return which tracks never move by more than `jump` rows or columns in a step.

        Args:
            jump: Cells.
            signed: Whether moves up and to the left are never too far, as the authors' code has it.

        Example:
            >>> tracks = Tracks(points=torch.tensor([[0, 3], [3, 0]]), hw=(1, 4))
            >>> tracks.steady().tolist(), tracks.steady(signed=True).tolist()
            ([False, False], [False, True])
        """
        moves = torch.stack([self.rows, self.columns]).diff(dim=1)
        return ((moves if signed else moves.abs()) <= jump).flatten(0, 1).all(0)


@torch.no_grad()
def track(features: Float[Tensor, "f n c"], hw: tuple[int, int], *, aux: bool = True) -> Tracks:
    """Follow every cell of the first frame to the most alike cell of frame after frame.

    Args:
        features: Of one block, as they come.
        hw: Rows and columns of the grid.
        aux: Whether a cell of the next frame is also compared by what the first frame has at its
            place, which counts 1/(q+1) from frame q on: the first step stays where it is, and later
            ones are drawn to where they came from.

    Raises:
        InputError: Features do not fit the grid or are not finite.

    Example:
        >>> frames = torch.eye(3)[torch.tensor([[0, 1, 2], [1, 0, 2]])]
        >>> track(frames, (1, 3), aux=False).points.tolist()
        [[0, 1, 2], [1, 0, 2]]
    """
    frames, n, _ = features.shape
    if frames == 0 or n != hw[0] * hw[1] or not features.isfinite().all():
        raise InputError(
            f"there must be a frame or more of {hw[0]} x {hw[1]} finite features",
            got=f"{frames} frames of {n} cells",
            remedy="give the grid of the block the features are from, run in float32",
        )
    unit = torch.nn.functional.normalize(features.float(), dim=2, eps=1e-12)
    now = torch.arange(n, device=features.device)
    points = [now]
    for q in range(frames - 1):
        if aux and q == 0:  # all the weight is on the frame itself, where a cell is most alike
            points.append(now)
            continue
        # Weighting what is compared with, not two similarities, leaves one product.
        against = torch.lerp(unit[0], unit[q + 1], q / (q + 1)) if aux else unit[q + 1]
        now = (unit[q][now] @ against.T).argmax(1)
        points.append(now)
    return Tracks(points=torch.stack(points), hw=hw)


@torch.no_grad()
def refine_labels(
    labels: Integer[Tensor, "f h w"], tracks: Tracks, *, jump: int = 1, signed: bool = False
) -> Integer[Tensor, "f h w"]:
    """Return labels in which every track that does not jump has its most frequent label.

    Of equally frequent labels the one met first counts. Where tracks meet the one that started
    last, row by row, has its way. Cells without a track keep their label.

    Args:
        labels: On the grid of the tracks.
        tracks: Of the same frames.
        jump: As in `Tracks.steady`.
        signed: As there.

    Raises:
        InputError: Labels and tracks do not fit.

    Example:
        >>> tracks = Tracks(points=torch.tensor([[0, 1]] * 3), hw=(1, 2))
        >>> refine_labels(torch.tensor([[[7, 9]], [[8, 9]], [[7, 9]]]), tracks)[:, 0].tolist()
        [[7, 9], [7, 9], [7, 9]]
    """
    frames, height, width = labels.shape
    if (height, width) != tracks.hw or frames != len(tracks.points):
        raise InputError(
            "labels must be on the grid, and of the frames, that were tracked",
            got=f"{frames} frames of {height} x {width}, tracks through {len(tracks.points)} of "
            f"{tracks.hw[0]} x {tracks.hw[1]}",
            remedy="give the labels of the batch the tracks are of",
        )
    flat = labels.flatten(1)
    steady = tracks.steady(jump, signed=signed)
    points = tracks.points[:, steady]
    votes = _most_frequent(flat.gather(1, points))
    # The number of the last track at every cell: writing votes in turn without a loop.
    numbers = torch.arange(points.shape[1], device=points.device).expand_as(points)
    last = torch.full_like(flat, -1, dtype=torch.int64)
    last.scatter_reduce_(1, points, numbers, "amax")
    covered = last >= 0
    result = flat.clone()
    result[covered] = votes[last[covered]]
    return result.unflatten(1, tracks.hw)


def _most_frequent(labels: Integer[Tensor, "f n"]) -> Integer[Tensor, " n"]:
    """Of every column the most frequent label, of equals the first."""
    frames, n = labels.shape
    size = max(1, _VOTES_BYTES // frames**2)
    found = [labels.new_empty(0)]
    for part in labels.split(size, dim=1) if n else ():
        counts = (part[:, None] == part[None]).sum(1)
        found.append(part.gather(0, counts.argmax(0, keepdim=True))[0])
    return torch.cat(found)
