"""What a scene's features mean: clusters, the names they get, and a classifier that carries on.

VidSeg's scene context model (Wang and others, CVPR 2025): clusters of the first batch are named by
one frame's labels, and every batch is labelled from the one before.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int64, Integer
from torch import Tensor

from diffuseg.errors import InputError
from diffuseg.methods.vidseg.nearest import share_votes
from diffuseg.methods.vidseg.settings import Classifier

UNNAMED = -1
"""The label of cells and clusters that have none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Clusters:
    """Cells put into groups.

    Attributes:
        numbers: The cluster of every cell of every frame, from 0.
        centres: The mean feature of every cluster.
    """

    numbers: Int64[Tensor, "f n"]
    centres: Float[Tensor, "k c"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextModel:
    """Labelled cells, and how others are labelled from them.

    It never changes: `fit`, `update` and `add` return another. It holds tensors only, so that a
    long video can be left and taken up again.

    Attributes:
        classifier: As in `VidSeg`. "knn" with `neighbours`; "mlp", "forest" and "adaboost" are
            scikit-learn's with its own settings; "kmeans" and "centroids" take the nearest of the
            references, which are centres of clusters.
        neighbours: Of "knn".
        memory: Cells of the bank at most: what earlier batches held, as many of every label as can
            be, and what was added.
        seed: Of what is kept in the bank, and of scikit-learn's classifiers.
        references: Features of the cells learnt from, the last batch's.
        labels: Theirs.
        bank: Features of the cells kept.
        bank_labels: Theirs.
        ranks: Of every cell of the bank: the smallest stay longest.
        updates: How often `update` was called.

    Example:
        >>> model = ContextModel(neighbours=1)
        >>> model = model.fit(torch.tensor([[0.0], [4.0]]), torch.tensor([7, 9]))
        >>> model.predict(torch.tensor([[[3.0], [1.0]]]))
        tensor([[9, 7]])
    """

    classifier: Classifier = "knn"
    neighbours: int = 4
    memory: int = 0
    seed: int = 1
    references: Float[Tensor, "m c"] | None = None
    labels: Int64[Tensor, " m"] | None = None
    bank: Float[Tensor, "r c"] | None = None
    bank_labels: Int64[Tensor, " r"] | None = None
    ranks: Float[Tensor, " r"] | None = None
    updates: int = 0

    @property
    def known(self) -> tuple[int, ...]:
        """The labels it can give, in order."""
        held = [one for one in (self.labels, self.bank_labels) if one is not None]
        return tuple(torch.cat(held).unique().tolist()) if held else ()

    def fit(self, features: Float[Tensor, "*n c"], labels: Integer[Tensor, "*m"]) -> "ContextModel":
        """Return the model with these references alone; cells that are `UNNAMED` are left out.

        Raises:
            InputError: No cell has a label, or features and labels do not fit.
        """
        cells, named = _labelled(features, labels)
        if not len(named):
            raise InputError(
                "a cell or more of the anchor must have a label",
                got="none",
                remedy="give a mask with an object in it, or keep void labels: drop_void=False",
            )
        return replace(
            self, references=cells, labels=named, bank=None, bank_labels=None, ranks=None
        )

    @torch.no_grad()
    def predict(self, features: Float[Tensor, "f n c"]) -> Int64[Tensor, "f n"]:
        """Return the label of every cell.

        Raises:
            InputError: Nothing was learnt, or features of other blocks, or not finite.
        """
        shares, known = self.shares(features)
        return known[shares.argmax(2)]

    @torch.no_grad()
    def shares(
        self, features: Float[Tensor, "f n c"]
    ) -> tuple[Float[Tensor, "f n k"], Int64[Tensor, " k"]]:
        """Return every label's share of each cell, and the labels in order.

        Of "knn" it is the share of the neighbours' votes; others give a cell to one label.

        Raises:
            InputError: As `predict`.
        """
        references, labels = self._learnt()
        cells = features.flatten(0, 1).float()
        if self.classifier in ("mlp", "forest", "adaboost"):
            known = labels.unique()
            found = self._classified(cells, references, labels)
            shares = (found[:, None] == known).float()
        else:
            count = self.neighbours if self.classifier == "knn" else 1
            shares, known = share_votes(cells, references, labels, neighbours=count)
        return shares.unflatten(0, features.shape[:2]), known.long()

    def update(
        self, features: Float[Tensor, "*n c"], labels: Integer[Tensor, "*m"]
    ) -> "ContextModel":
        """Return the model of the next batch: it learns from this one, and from the bank.

        With `memory` the references so far go into the bank. Centres of clusters stay what they
        are.

        Raises:
            InputError: As `fit`.
        """
        if self.classifier in ("kmeans", "centroids"):
            return self
        model = replace(self, updates=self.updates + 1)
        if self.memory and self.references is not None and self.labels is not None:
            generator = torch.Generator().manual_seed(self.seed + self.updates)
            ranks = torch.rand(len(self.labels), generator=generator)
            model = model._banked(self.references, self.labels, ranks.to(self.references.device))
        cells, named = _labelled(features, labels)
        if not len(named):  # nothing of this batch is known: what was stays
            return model
        return replace(model, references=cells, labels=named)

    def add(self, features: Float[Tensor, "*n c"], labels: Integer[Tensor, "*m"]) -> "ContextModel":
        """Return the model that knows more cells: of an object that has just appeared, say.

        With `memory` they stay in the bank, before any of a batch; without, they count until the
        next `update`.

        Raises:
            InputError: Features and labels do not fit.
        """
        cells, named = _labelled(features, labels)
        if self.references is None or self.labels is None:
            return self.fit(features, labels)
        _check_width(self.references, cells)
        if self.memory and self.classifier not in ("kmeans", "centroids"):
            # Below all ranks of batches, yet not all alike where there are too many.
            generator = torch.Generator().manual_seed(self.seed + self.updates)
            ranks = torch.rand(len(named), generator=generator) - 1
            return self._banked(cells, named, ranks.to(cells.device))
        return replace(
            self,
            references=torch.cat([self.references, cells]),
            labels=torch.cat([self.labels, named]),
        )

    def _learnt(self) -> tuple[Float[Tensor, "m c"], Int64[Tensor, " m"]]:
        if self.references is None or self.labels is None:
            raise InputError(
                "a model must be fitted before it labels",
                got="no labelled cells",
                remedy="call fit(features, labels) with the anchor's, and use what it returns",
            )
        if self.bank is None or self.bank_labels is None:
            return self.references, self.labels
        joined = torch.cat([self.references, self.bank])
        return joined, torch.cat([self.labels, self.bank_labels])

    def _banked(
        self, cells: Float[Tensor, "m c"], labels: Int64[Tensor, " m"], ranks: Float[Tensor, " m"]
    ) -> "ContextModel":
        """The model with more in its bank, and what is too much left out."""
        if self.bank is not None and self.bank_labels is not None and self.ranks is not None:
            cells = torch.cat([self.bank, cells])
            labels = torch.cat([self.bank_labels, labels])
            ranks = torch.cat([self.ranks, ranks])
        if len(labels) > self.memory:
            # The first of every label, then the second of every label, ...: rare ones keep all.
            order = ranks.argsort(stable=True)
            order = order[labels[order].argsort(stable=True)]
            ordered = labels[order]
            turn = torch.arange(len(order), device=order.device)
            turn = turn - torch.searchsorted(ordered, ordered)
            keep = order[turn.argsort(stable=True)[: self.memory]].sort().values
            cells, labels, ranks = cells[keep], labels[keep], ranks[keep]
        return replace(self, bank=cells, bank_labels=labels, ranks=ranks)

    def _classified(
        self,
        cells: Float[Tensor, "n c"],
        references: Float[Tensor, "m c"],
        labels: Int64[Tensor, " m"],
    ) -> Int64[Tensor, " n"]:
        """The labels one of scikit-learn's classifiers gives."""
        from sklearn.ensemble import AdaBoostClassifier, RandomForestClassifier
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.neural_network import MLPClassifier

        _check_width(references, cells)
        if (labels == labels[0]).all():  # which not all of them take
            return labels[:1].expand(len(cells)).clone()
        methods = {"mlp": MLPClassifier, "forest": RandomForestClassifier}
        method = methods.get(self.classifier, AdaBoostClassifier)(random_state=self.seed)
        with warnings.catch_warnings():
            # Its own number of iterations is part of its own settings.
            warnings.simplefilter("ignore", ConvergenceWarning)
            method.fit(references.cpu().numpy(), labels.cpu().numpy())
        found = torch.from_numpy(np.asarray(method.predict(cells.cpu().numpy())))
        return found.to(cells.device, torch.int64)


def cluster_cells(
    features: Float[Tensor, "f n c"], clusters: int, *, starts: int = 10, seed: int = 1
) -> Clusters:
    """Put the cells of all frames into groups by k-means; fewer where there are fewer cells.

    Example:
        >>> found = cluster_cells(torch.tensor([[[0.0], [0.1], [5.0]]]), 2).numbers[0]
        >>> bool(found[0] == found[1] != found[2])
        True
    """
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    cells = features.flatten(0, 1).float().cpu().numpy()
    method = KMeans(min(clusters, len(cells)), n_init=starts, random_state=seed)  # type: ignore[arg-type]
    with warnings.catch_warnings():
        # Fewer different cells than clusters: frames of one colour.
        warnings.simplefilter("ignore", ConvergenceWarning)
        method.fit(cells)
    numbers = torch.from_numpy(np.asarray(method.labels_)).to(features.device, torch.int64)
    centres = torch.from_numpy(np.asarray(method.cluster_centers_)).to(features.device)
    return Clusters(numbers=numbers.unflatten(0, features.shape[:2]), centres=centres.float())


def shrink_labels(labels: Integer[Tensor, "H W"], hw: tuple[int, int]) -> Int64[Tensor, "h w"]:
    """Return labels on another grid: of every cell the pixel at its centre.

    Example:
        >>> shrink_labels(torch.arange(5)[None], (1, 2)).tolist()
        [[1, 3]]
    """
    if 0 in labels.shape:
        raise InputError(
            "labels must have a pixel or more", got=tuple(labels.shape), remedy="give a whole mask"
        )
    rows, columns = (
        # floor((i + 1/2) size / cells), in whole numbers
        (2 * torch.arange(cells, device=labels.device) + 1) * size // (2 * cells)
        for cells, size in zip(hw, labels.shape, strict=True)
    )
    return labels[rows[:, None], columns].long()


def name_clusters(
    numbers: Integer[Tensor, " n"],
    labels: Integer[Tensor, " m"],
    clusters: int,
    *,
    drop: Sequence[int] = (),
) -> Int64[Tensor, " k"]:
    """Return every cluster's most frequent label, of equals the smallest.

    Args:
        numbers: Clusters of the anchor's cells.
        labels: The anchor's.
        clusters: How many there are.
        drop: Labels that name nothing.

    Returns:
        `UNNAMED` for clusters without a cell that names.

    Raises:
        InputError: Cells and labels do not fit.

    Example:
        >>> numbers, labels = torch.tensor([0, 0, 0, 1]), torch.tensor([4, 4, 9, 255])
        >>> name_clusters(numbers, labels, 3, drop=[255])
        tensor([ 4, -1, -1])
    """
    if len(numbers) != len(labels):
        raise InputError(
            "there must be a label for every cell",
            got=f"{len(labels)} labels for {len(numbers)} cells",
            remedy="bring the mask to the grid with shrink_labels",
        )
    labels = labels.long()  # in 8 bits there is no room for UNNAMED
    fine = (labels != UNNAMED) & ~torch.isin(labels, labels.new_tensor(list(drop)))
    known, codes = torch.unique(labels[fine], return_inverse=True)
    names = torch.full((clusters,), UNNAMED, dtype=torch.int64, device=labels.device)
    if not len(known):
        return names
    counts = torch.bincount(
        numbers[fine].long() * len(known) + codes, minlength=clusters * len(known)
    ).unflatten(0, (clusters, len(known)))
    seen = counts.any(1)
    names[seen] = known[counts[seen].argmax(1)]
    return names


def _labelled(
    features: Float[Tensor, "*n c"], labels: Integer[Tensor, "*m"]
) -> tuple[Float[Tensor, "r c"], Int64[Tensor, " r"]]:
    """Cells that have a label, in a row."""
    if features.shape[:-1] != labels.shape:
        raise InputError(
            "there must be a label for every cell",
            got=f"labels {tuple(labels.shape)} for features {tuple(features.shape)}",
            remedy="give both of the same frames",
        )
    cells, flat = features.reshape(-1, features.shape[-1]).float(), labels.reshape(-1).long()
    named = flat != UNNAMED
    return cells[named], flat[named]


def _check_width(references: Float[Tensor, "m c"], cells: Float[Tensor, "n d"]) -> None:
    if references.shape[1] != cells.shape[1] or not cells.isfinite().all():
        raise InputError(
            f"features must be finite and have the references' {references.shape[1]} channels",
            got=f"{cells.shape[1]} channels, or NaN or infinity",
            remedy="give features of the same blocks, run in float32",
        )
