"""Which frames are taken together, and labels handed on from batch to batch."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64, Integer
from torch import Tensor

from diffuseg.errors import InputError
from diffuseg.methods.settings import given
from diffuseg.methods.vidseg.context import (
    UNNAMED,
    Clusters,
    ContextModel,
    cluster_cells,
    name_clusters,
    shrink_labels,
)
from diffuseg.methods.vidseg.correspondence import refine_labels, track
from diffuseg.methods.vidseg.settings import Naming, VidSeg


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Frames taken together.

    Attributes:
        frames: Their numbers.
        kept: Those whose result is this batch's: a later batch overwrites what it shares.
        after: The place in the plan of the batch whose labels this one learns from; None for the
            anchor's.
    """

    frames: range
    kept: range
    after: int | None


def batches(n: int, size: int, *, anchor: int = 0) -> list[Batch]:
    """Return the plan of a clip, in the order of working: from the anchor's batch on, then back.

    Batches begin at 0, size, 2 size, ...; the last is moved back to be full. With fewer frames than
    `size` there is one of them all. The anchor's batch is the one that keeps it.

    Args:
        n: Frames.
        size: Of a batch.
        anchor: The frame with labels.

    Raises:
        InputError: There are no frames, or no such anchor.

    Example:
        >>> [(one.frames, list(one.kept), one.after) for one in batches(5, 2, anchor=2)]
        [(range(2, 4), [2], None), (range(3, 5), [3, 4], 0), (range(0, 2), [0, 1], 0)]
    """
    if n < 1 or size < 1 or not 0 <= anchor < n:
        raise InputError(
            "a clip has a frame or more, and the anchor is one of them",
            got=f"{n} frames in batches of {size}, anchor {anchor}",
            remedy="count frames from 0",
        )
    size = min(size, n)
    starts = [min(start, n - size) for start in range(0, n, size)]
    ends = [*starts[1:], n]
    frames = [range(start, start + size) for start in starts]
    kept = [range(start, end) for start, end in zip(starts, ends, strict=True)]
    first = next(number for number, one in enumerate(kept) if anchor in one)
    plan = [
        Batch(frames=frames[number], kept=kept[number], after=number - first - 1)
        for number in range(first + 1, len(starts))
    ]
    plan.insert(0, Batch(frames=frames[first], kept=kept[first], after=None))
    for number in reversed(range(first)):
        # Backwards the chain begins once more at the anchor's batch.
        after = 0 if number == first - 1 else len(plan) - 1
        plan.append(Batch(frames=frames[number], kept=kept[number], after=after))
    return plan


def start_context(
    settings: VidSeg,
    features: Float[Tensor, "f n c"],
    hw: tuple[int, int],
    *,
    mask: Integer[Tensor, "H W"] | None = None,
    names: Integer[Tensor, " k"] | None = None,
    clusters: Clusters | None = None,
    anchor: int = 0,
) -> ContextModel:
    """Return the model the anchor's batch is labelled with.

    Args:
        settings: `VidSeg.ready`.
        features: Of the batch, see `features`.
        hw: Rows and columns of their grid.
        mask: Labels of the anchor, for naming="anchor" and "mask".
        names: Labels of the clusters, for naming="text".
        clusters: Of the batch, where they are known; naming by text needs them before this.
        anchor: Which frame of the batch the mask is of.

    Raises:
        InputError: What clusters are named by is missing or does not fit, or names nothing.

    Example:
        >>> features = torch.tensor([[[0.0], [0.1], [5.0], [5.1]]])
        >>> settings = VidSeg(clusters=2, neighbours=1).ready("sd")
        >>> model = start_context(settings, features, (2, 2), mask=torch.tensor([[3, 3], [8, 8]]))
        >>> model.predict(features)
        tensor([[3, 3, 8, 8]])
    """
    naming: Naming = given(settings.naming)
    count = hw[0] * hw[1]
    if features.shape[1] != count or not 0 <= anchor < len(features):
        raise InputError(
            f"features must be of a grid of {hw[0]} x {hw[1]}, the anchor one of the frames",
            got=f"{features.shape[1]} cells in {len(features)} frames, anchor {anchor}",
            remedy="give the grid of the blocks, and the anchor's place in its batch",
        )
    model = ContextModel(
        classifier=given(settings.classifier),
        neighbours=given(settings.neighbours),
        memory=given(settings.memory),
        seed=given(settings.seed),
    )
    cells = None
    if naming in ("anchor", "mask"):
        cells = shrink_labels(_needed(mask, naming), hw).flatten().to(features.device)
    by_clusters = model.classifier in ("kmeans", "centroids")
    if naming == "mask" and cells is not None and not by_clusters:
        return model.fit(features[anchor], _without(cells, settings))
    clusters = clusters or cluster_settings(settings, features)
    total = len(clusters.centres)
    if cells is not None:
        drop = given(settings.void) if settings.drop_void else ()
        names = name_clusters(clusters.numbers[anchor], cells, total, drop=drop)
    elif naming == "clusters":
        names = torch.arange(total)
    names = _needed(names, naming).long().to(features.device)
    if len(names) != total:
        raise InputError(
            "every cluster must have a name",
            got=f"{len(names)} names for {total} clusters",
            remedy="give one a cluster, -1 for none",
        )
    if by_clusters:
        return model.fit(clusters.centres, names)
    # A frame knows only the clusters it shows. That is all a mask can name; else every frame of the
    # batch tells, but in the authors' code.
    alone = cells is not None or settings.compat == "reference"
    seen = slice(anchor, anchor + 1) if alone else slice(None)
    return model.fit(features[seen], names[clusters.numbers[seen]])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Labelled:
    """A batch with labels.

    Attributes:
        labels: Of every cell.
        shares: Of every cell, how much is of each of `values`; 1 for a cell's label where tracks
            have changed it.
        values: The labels there are.
        model: Labels the next batch.
    """

    labels: Int64[Tensor, "f h w"]
    shares: Float[Tensor, "f h w k"]
    values: Int64[Tensor, " k"]
    model: ContextModel


def label_batch(
    settings: VidSeg,
    model: ContextModel,
    features: Float[Tensor, "f n c"],
    hw: tuple[int, int],
    *,
    tracked: Float[Tensor, "g m d"] | None = None,
    clusters: Clusters | None = None,
) -> Labelled:
    """Label a batch.

    Args:
        settings: `VidSeg.ready`.
        model: From `start_context`, or from the batch before.
        features: Of the batch, see `features`.
        hw: Rows and columns of their grid.
        tracked: Features that are followed where `settings.refine`: queries of `track_block`.
        clusters: Of the batch, where they are known; for classifier="centroids".

    Raises:
        InputError: `tracked` is missing, or something does not fit.

    Example:
        >>> features = torch.tensor([[[0.0], [9.0]]])
        >>> model = ContextModel(neighbours=1).fit(features[0], torch.tensor([3, 8]))
        >>> settings = VidSeg(refine=False).ready("sd")
        >>> label_batch(settings, model, features + 1, (1, 2)).labels
        tensor([[[3, 8]]])
    """
    if model.classifier == "centroids":
        clusters = clusters or cluster_settings(settings, features)
        of_clusters, values = model.shares(clusters.centres[None])
        shares = of_clusters[0][clusters.numbers]
    else:
        shares, values = model.shares(features)
    shares = shares.unflatten(1, hw)
    labels = values[shares.argmax(3)]
    if settings.refine:
        if tracked is None:
            raise InputError(
                "refining labels needs features to follow",
                got="none",
                remedy="give the queries of track_block, or set refine=False",
            )
        tracks = track(tracked, hw, aux=given(settings.aux))
        refined = refine_labels(
            labels, tracks, jump=given(settings.jump), signed=given(settings.signed)
        )
        alone = (refined[..., None] == values).float()
        shares = torch.where((refined != labels)[..., None], alone, shares)
        labels = refined
    after = model.update(features, labels.flatten(1))
    return Labelled(labels=labels, shares=shares, values=values, model=after)


def cluster_settings(settings: VidSeg, features: Float[Tensor, "f n c"]) -> Clusters:
    """Return the clusters of a batch as the settings have them."""
    return cluster_cells(
        features,
        given(settings.clusters),
        starts=given(settings.starts),
        seed=given(settings.seed),
    )


def _without(labels: Int64[Tensor, " n"], settings: VidSeg) -> Int64[Tensor, " n"]:
    """Labels, those that are void left out where the settings say so."""
    if not settings.drop_void:
        return labels
    return labels.where(~torch.isin(labels, labels.new_tensor(given(settings.void))), UNNAMED)


def _needed(value: Tensor | None, naming: Naming) -> Tensor:
    if value is None:
        raise InputError(
            f'naming="{naming}" needs {"names" if naming == "text" else "a mask of the anchor"}',
            got="none",
            remedy='give it, or set naming="clusters"',
        )
    return value
