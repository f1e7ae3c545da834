"""Probes of frozen features and attention: do they tell classes, and objects, apart?

Nothing is trained. A nearest-prototype probe gives every pixel the class whose mean feature is the
most similar; a divergence probe compares how two pixels of one object attend with how two pixels of
different ones do.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor
from torch.nn import functional

from diffuseg import ops
from diffuseg.attention import record
from diffuseg.backbones.protocols import Diffusion, Features
from diffuseg.backbones.sampling import seeded_noise
from diffuseg.errors import InputError
from diffuseg.eval.metrics import ConfusionMatrix
from diffuseg.image import Image, to_tensor
from diffuseg.world.scenes import CLASSES, THINGS, Scene

Extract = Callable[[UInt8[np.ndarray, "h w 3"]], Float[Tensor, "gh gw d"]]
"""A picture to one vector a grid cell."""
Attend = Callable[[UInt8[np.ndarray, "h w 3"]], Float[Tensor, "gh gw m"]]
"""A picture to one row of attention a grid cell, each summing to one."""
Space = Literal["raw", "centred", "whitened"]

_PURE = 0.5  # share of a cell's pixels one class must have for the cell to count for its mean
_ONE_OBJECT = 0.75  # the same for pairs of cells, which have to be surely of one object or not
_RIDGE = 1e-3  # of the largest variance, added before whitening


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ProbeResult:
    """What a nearest-prototype probe found.

    Attributes:
        matrix: Counts of (true, predicted) class over the pixels of all test scenes.
        prototypes: Mean feature of every class in the space compared in; NaN where a class has no
            cell in the training scenes.
    """

    matrix: ConfusionMatrix
    prototypes: Float[Tensor, "k d"]

    @property
    def iou(self) -> dict[str, float]:
        """Intersection over union by class name."""
        return dict(zip(CLASSES, self.matrix.iou().tolist(), strict=True))

    @property
    def miou(self) -> float:
        """Mean over the classes in the truth."""
        return self.matrix.miou()

    @property
    def things_miou(self) -> float:
        """The same over things only."""
        return self.matrix.miou(classes=range(len(THINGS)))


def nearest_prototype_probe(
    extract: Extract,
    train_scenes: Iterable[Scene],
    test_scenes: Iterable[Scene],
    *,
    space: Space = "whitened",
) -> ProbeResult:
    """Score features by giving every pixel the class with the most similar mean feature.

    Class means are taken over the cells of the training scenes that are mostly of one class.
    Similarity is the cosine; the map of similarities is resized to the picture (bilinear) before
    the best class is chosen.

    Args:
        extract: The features of a picture, of any grid; the same number of channels every time.
        train_scenes: Scenes the means come from.
        test_scenes: Scenes that are scored.
        space: "whitened": the mean of all training cells is taken off and their covariance made the
            identity, whatever their class, so that no direction counts more for being strong (a
            cosine sees little but the few strongest directions of most networks). "centred": only
            the mean. "raw": as they are.

    Raises:
        InputError: No scenes, another space, or features that are no numbers.
    """
    if space not in get_args(Space):
        raise InputError(
            f"space must be one of {', '.join(get_args(Space))}",
            got=space,
            remedy='use "whitened"',
        )
    cells, shares = [], []
    for scene in train_scenes:
        found = _features(extract, scene)
        cells.append(found.flatten(0, 1))
        shares.append(_shares(scene.labels, len(CLASSES), found.shape[:2]).flatten(0, 1))
    if not cells:
        raise InputError("there must be training scenes", got="none", remedy="pass some")
    points = torch.cat(cells)
    offset, basis = _basis(points, space)
    weight = torch.cat(shares)
    weight = weight * (weight > _PURE)
    prototypes = weight.mT @ ((points - offset) @ basis) / weight.sum(0)[:, None]
    directions = functional.normalize(prototypes, dim=-1).nan_to_num(0)
    absent = prototypes.isnan().any(dim=-1)
    matrix = ConfusionMatrix(len(CLASSES))
    for scene in test_scenes:
        found = functional.normalize((_features(extract, scene) - offset) @ basis, dim=-1)
        scores = (found @ directions.mT).masked_fill(absent, -2).permute(2, 0, 1)
        labels = ops.resize(scores[None], scene.labels.shape)[0].argmax(0)
        matrix.update(scene.labels, labels.numpy())
    if not matrix.n_images:
        raise InputError("there must be test scenes", got="none", remedy="pass some")
    return ProbeResult(matrix=matrix, prototypes=prototypes)


def _features(extract: Extract, scene: Scene) -> Float[Tensor, "gh gw d"]:
    found = extract(scene.image).detach().float().cpu()
    if not found.isfinite().all():
        raise InputError(
            "features must be numbers",
            got=f"NaN or infinity in scene {scene.index}",
            remedy="load the model in fp32",
        )
    return found


def _basis(
    points: Float[Tensor, "n d"], space: Space
) -> tuple[Float[Tensor, " d"], Float[Tensor, "d e"]]:
    same = torch.eye(points.shape[1])
    if space == "raw":
        return torch.zeros(points.shape[1]), same
    if space == "centred":
        return points.mean(0), same
    values, vectors = torch.linalg.eigh(torch.cov(points.mT.double()).reshape(same.shape).double())
    scale = (values.clamp_min(0) + _RIDGE * values[-1]).rsqrt()
    return points.mean(0), (vectors * scale).float()


def _shares(
    labels: UInt8[np.ndarray, "h w"], count: int, grid: Sequence[int]
) -> Float[Tensor, "gh gw k"]:
    """Share of each label in each cell."""
    planes = functional.one_hot(torch.from_numpy(labels).long(), count).permute(2, 0, 1).float()
    return functional.adaptive_avg_pool2d(planes, (grid[0], grid[1])).permute(1, 2, 0)


def vit_extract(vit: Features, what: str = "keys", *, layer: int = -1) -> Extract:
    """Features of a vision transformer, of the picture at its own size."""

    def extract(image: UInt8[np.ndarray, "h w 3"]) -> Float[Tensor, "gh gw d"]:
        return vit.features(_pixels(image), what, layer=layer)[0]

    return extract


def query_extract(
    model: Diffusion, layer: str, timestep: int, *, kind: str = "self", seed: int = 0
) -> Extract:
    """Queries of one attention layer of a U-Net, heads side by side, with the empty prompt.

    Args:
        model: Whose U-Net is recorded.
        layer: Its path, as `layers_of` names it.
        timestep: Of the noise added to the picture's latents.
        kind: "self" or "cross".
        seed: Of the noise.
    """

    def extract(image: UInt8[np.ndarray, "h w 3"]) -> Float[Tensor, "gh gw d"]:
        with record(model.unet, layers=layer, kinds=(kind,)) as held:
            _show(model, image, timestep, seed)
        q = held.queries(layer)[0]
        return q.transpose(0, 1).flatten(1).unflatten(0, held.grid(layer))

    return extract


def attention_rows(
    model: Diffusion,
    timestep: int,
    *,
    layers: str | Sequence[str] = "*",
    hw: tuple[int, int] | None = None,
    seed: int = 0,
) -> Attend:
    """Self-attention of a U-Net with the empty prompt: the mean of all layers of one grid.

    Args:
        model: Whose U-Net is recorded.
        timestep: Of the noise added to the picture's latents.
        layers: Patterns on their paths.
        hw: The grid; by default the finest recorded.
        seed: Of the noise.
    """

    def attend(image: UInt8[np.ndarray, "h w 3"]) -> Float[Tensor, "gh gw m"]:
        with record(model.unet, layers=layers, kinds=("self",)) as held:
            _show(model, image, timestep, seed)
        grid = hw or held.grids("self")[0]
        return held.self_attention(grid, layers=layers)[0].unflatten(0, grid)

    return attend


@torch.no_grad()
def _show(model: Diffusion, image: UInt8[np.ndarray, "h w 3"], timestep: int, seed: int) -> None:
    latents = model.encode(_pixels(image))
    _, *shape = latents.shape
    noise = seeded_noise((shape[0], shape[1], shape[2]), seed).to(latents)
    model.denoise(model.add_noise(latents, timestep, noise), timestep, model.embed([""]))


def _pixels(image: UInt8[np.ndarray, "h w 3"]) -> Float[Tensor, "1 3 h w"]:
    return to_tensor(Image(pixels=image), image.shape[:2])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PairDivergences:
    """Symmetric KL divergences between the attention of pairs of pixels, in nats.

    Attributes:
        same: Of pairs in one thing or one stuff region.
        different: Of pairs in two.
    """

    same: Float[np.ndarray, " s"]
    different: Float[np.ndarray, " t"]

    @property
    def medians(self) -> tuple[float, float]:
        """Of the pairs of one object, and of the pairs of two."""
        return float(np.median(self.same)), float(np.median(self.different))

    @property
    def ratio(self) -> float:
        """Median over pairs of two objects by median over pairs of one; above 1 is apart."""
        same, different = self.medians
        return different / same if same else float("inf")

    @property
    def separation(self) -> float:
        """Chance that a pair of two objects diverges more than a pair of one; 0.5 is none."""
        order = np.sort(self.same)
        below = np.searchsorted(order, self.different, side="left")
        upto = np.searchsorted(order, self.different, side="right")
        return float((below + upto).mean() / (2 * len(order)))

    def histogram(
        self, bins: int = 40
    ) -> tuple[Float[np.ndarray, " e"], Int[np.ndarray, " n"], Int[np.ndarray, " n"]]:
        """Edges, and counts of pairs of one object and of two; the last bin ends at the largest."""
        top = max(float(self.same.max()), float(self.different.max())) or 1.0
        edges = np.linspace(0.0, top, bins + 1)
        return edges, np.histogram(self.same, edges)[0], np.histogram(self.different, edges)[0]


def pair_divergences(
    attend: Attend, scenes: Iterable[Scene], *, pairs: int = 200, seed: int = 0
) -> PairDivergences:
    """Compare the attention of pixel pairs of the same object and of different ones.

    The divergence is DiffSeg's, (KL(p, q) + KL(q, p)) / 2 of two rows. An object is a thing or a
    stuff region; every object of a scene is drawn equally often, however large. Cells that lie on a
    border are left out.

    Args:
        attend: The rows of attention of a picture.
        scenes: Scenes with two objects or more; others give no pairs of two.
        pairs: Pairs of each kind a scene.
        seed: Of the choice of pairs.

    Raises:
        InputError: The scenes have no pairs of one kind.
    """
    same: list[Float[Tensor, " p"]] = []
    different: list[Float[Tensor, " p"]] = []
    for place, scene in enumerate(scenes):
        rows = attend(scene.image).detach().float().cpu()
        objects = _objects(scene, rows.shape[:2])
        rng = np.random.default_rng([seed, place])
        cells = [np.flatnonzero(plane) for plane in objects.flatten(1).numpy()]
        cells = [one for one in cells if len(one) > 1]
        flat = rows.flatten(0, 1)
        ones, twos = _draw_pairs(cells, pairs, rng)
        same.append(symmetric_kl(flat[ones[:, 0]], flat[ones[:, 1]]))
        different.append(symmetric_kl(flat[twos[:, 0]], flat[twos[:, 1]]))
    found = [
        torch.cat(kind).numpy() if kind else np.zeros(0, np.float32) for kind in (same, different)
    ]
    if not all(len(kind) for kind in found):
        raise InputError(
            "there must be pairs of pixels of one object and of two",
            got=f"{len(found[0])} of one, {len(found[1])} of two",
            remedy="pass more scenes, or attention of a finer grid",
        )
    return PairDivergences(same=found[0], different=found[1])


def symmetric_kl(p: Float[Tensor, "n m"], q: Float[Tensor, "n m"]) -> Float[Tensor, " n"]:
    """(KL(p, q) + KL(q, p)) / 2 of rows that sum to one, in nats.

    Example:
        >>> symmetric_kl(torch.tensor([[0.5, 0.5]]), torch.tensor([[0.5, 0.5]]))
        tensor([0.])
    """
    p, q = p.clamp_min(1e-12), q.clamp_min(1e-12)
    return 0.5 * ((p - q) * (p.log() - q.log())).sum(-1)


def _objects(scene: Scene, grid: Sequence[int]) -> Bool[Tensor, "o gh gw"]:
    """Cells that surely belong to each thing and each stuff region."""
    count = len(scene.things)
    stuff = (scene.labels.astype(np.int64) - len(THINGS)).clip(0)
    ids = np.where(scene.instances > 0, scene.instances - 1, count + stuff).astype(np.uint8)
    shares = _shares(ids, count + len(CLASSES) - len(THINGS), grid)
    return (shares > _ONE_OBJECT).permute(2, 0, 1)


def _draw_pairs(
    cells: Sequence[np.ndarray], pairs: int, rng: np.random.Generator
) -> tuple[Int[Tensor, "p 2"], Int[Tensor, "q 2"]]:
    """Pairs of cells of one object and of two; `cells` are those of each object."""
    ones = [
        rng.choice(cells[int(rng.integers(len(cells)))], 2, replace=False).tolist()
        for _ in range(pairs if cells else 0)
    ]
    twos: list[list[int]] = []
    for _ in range(pairs if len(cells) > 1 else 0):
        first, second = rng.choice(len(cells), 2, replace=False)
        twos.append([int(rng.choice(cells[first])), int(rng.choice(cells[second]))])
    found = [torch.tensor(kind, dtype=torch.long).reshape(-1, 2) for kind in (ones, twos)]
    return found[0], found[1]
