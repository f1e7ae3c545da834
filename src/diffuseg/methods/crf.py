"""A dense conditional random field: labels brought to agree with all pixels near and alike.

Kraehenbuehl and Koltun, Efficient Inference in Fully Connected CRFs with Gaussian Edge Potentials,
NIPS 2011: every pixel is linked with every other, more strongly the nearer they are (spatial
kernel), and the nearer and the more alike in colour (bilateral kernel). What the paper leaves open
is as in the authors' second release, stated as facts: kernels are normalised symmetrically, K_ij /
sqrt(sum_k K_ik sum_k K_jk); a pixel is a neighbour of itself; beliefs start from the unary alone.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Literal

import numpy as np
import scipy.sparse
from jaxtyping import Float, Float32, Integer, UInt8

from diffuseg.errors import InputError
from diffuseg.labelmaps import integer_map
from diffuseg.methods.permutohedral import AllPairs, Lattice
from diffuseg.methods.settings import check_settings

Filter = Callable[[Float32[np.ndarray, "n k"]], Float32[np.ndarray, "n k"]]

_LEAST = 1e-8  # probability
_REACH = 6  # deviations; beyond, a Gaussian is below the precision of its sum


@dataclass(frozen=True, slots=True, kw_only=True)
class DenseCrf:
    """Settings of a dense CRF. As released with DeepLab v2 (Chen and others, 2018) for ResNet-101.

    That of its VGG-16 has `spatial=(2, 2)` and `bilateral=(4, 65, 3)`; DeepLab v1 tried deviations
    of 30 to 100 pixels and 3 to 6 levels of colour, weights of 3 to 6, and `spatial=(3, 3)`.

    Attributes:
        iterations: Of mean field; 0 leaves the labels as they are.
        spatial: Weight of the spatial kernel, and its deviation in pixels.
        bilateral: Weight of the bilateral kernel, its deviation in pixels and in levels of colour,
            of 255.
        certainty: Probability that a given label is right; the others share the rest.
        filter: How the bilateral kernel is summed. "lattice": about, in time that grows with the
            number of pixels. "exact": over all pairs, for small images.

    Raises:
        InputError: A setting is out of range.

    Example:
        >>> DenseCrf(bilateral=(4.0, 65.0, 3.0)).spatial
        (3.0, 1.0)
    """

    iterations: int = 10
    spatial: tuple[float, ...] = (3.0, 1.0)
    bilateral: tuple[float, ...] = (4.0, 67.0, 3.0)
    certainty: float = 0.7
    filter: Literal["lattice", "exact"] = "lattice"

    def __post_init__(self) -> None:
        check_settings(
            (self.iterations >= 0, "iterations must be 0 or more", self.iterations),
            (len(self.spatial) == 2 and _kernel(self.spatial),
             "spatial must be a weight of 0 or more and a positive deviation", self.spatial),
            (len(self.bilateral) == 3 and _kernel(self.bilateral),
             "bilateral must be a weight of 0 or more and two positive deviations",
             self.bilateral),
            (0 < self.certainty < 1, "certainty must be between 0 and 1", self.certainty),
            (self.filter in ("lattice", "exact"), 'filter must be "lattice" or "exact"',
             self.filter),
        )  # fmt: skip


def crf_labels(
    image: UInt8[np.ndarray, "H W 3"],
    labels: Integer[np.ndarray, "h w"],
    settings: DenseCrf | None = None,
    *,
    undecided: Collection[int] = (),
) -> Integer[np.ndarray, "h w"]:
    """Return labels that follow an image.

    The labels that compete are those that are there: none can come from nowhere.

    Args:
        image: Values 0 to 255.
        labels: Any numbers.
        settings: `DenseCrf()`.
        undecided: Labels of no class. Their pixels hold every label for equally likely, and have
            one in the end, unless no pixel has.

    Raises:
        InputError: Image and labels are not of one size, or no image and label map.

    Example:
        >>> image = np.zeros((8, 8, 3), np.uint8)
        >>> image[:, 4:] = 200
        >>> labels = np.where(image[..., 0] > 0, 7, 3)
        >>> labels[2, 2], labels[5, 6] = 7, -1
        >>> np.unique(crf_labels(image, labels, undecided=[-1])[:, 4:]).tolist()
        [7]
    """
    settings = settings or DenseCrf()
    labels = integer_map(labels)
    _check_image(image, labels.shape)
    values = np.array([one for one in np.unique(labels) if one not in undecided], labels.dtype)
    none = np.isin(labels, np.array(list(undecided), dtype=np.int64))
    if not settings.iterations or not len(values) or (len(values) == 1 and not none.any()):
        return labels.copy()
    beliefs = mean_field(image, label_energies(labels, values, settings.certainty), settings)
    return values[beliefs.argmax(0)]


def crf_probabilities(
    image: UInt8[np.ndarray, "H W 3"],
    probabilities: Float[np.ndarray, "k h w"],
    settings: DenseCrf | None = None,
) -> Float32[np.ndarray, "k h w"]:
    """Return probabilities of classes that follow an image; `argmax(0)` are labels.

    Args:
        image: Values 0 to 255.
        probabilities: None negative; brought to a sum of 1. A pixel of zeros is undecided.
        settings: `DenseCrf()`, of which `certainty` does nothing.

    Raises:
        InputError: Image and probabilities are not of one size, or values are out of range.

    Example:
        >>> image = np.zeros((4, 4, 3), np.uint8)
        >>> given = np.stack([np.full((4, 4), 0.4), np.full((4, 4), 0.6)])
        >>> given[:, 1, 1] = 0.9, 0.1
        >>> crf_probabilities(image, given).argmax(0)[1].tolist()
        [1, 1, 1, 1]
    """
    settings = settings or DenseCrf()
    held = np.asarray(probabilities, dtype=np.float32)
    if held.ndim != 3 or not held.size or not np.isfinite(held).all() or held.min() < 0:
        raise InputError(
            "probabilities must be finite, 0 or more, of shape (k, h, w)",
            got=f"shape {held.shape}" + (f", least {held.min()}" if held.size else ""),
            remedy="pass scores through a softmax first",
        )
    _check_image(image, held.shape[1:])
    total = held.sum(0)
    held = np.where(total > 0, held / np.where(total > 0, total, 1), 1 / len(held))
    return mean_field(image, -np.log(np.maximum(held, _LEAST)), settings)


def label_energies(
    labels: Integer[np.ndarray, "h w"], values: Integer[np.ndarray, " k"], certainty: float
) -> Float32[np.ndarray, "k h w"]:
    """Return minus the logarithm of how likely each label is where one is given.

    Args:
        labels: Those that are not among `values` are of no class.
        values: All that compete.
        certainty: Of what is given.

    Example:
        >>> np.exp(-label_energies(np.array([[4, 9]]), np.array([4, 5]), 0.75))[:, 0].tolist()
        [[0.75, 0.5], [0.25, 0.5]]
    """
    count = len(values)
    same = labels == values[:, None, None]
    other = max((1 - certainty) / max(count - 1, 1), _LEAST)
    energies = np.where(same, -np.log(certainty), -np.log(other))
    return np.where(same.any(0), energies, np.log(count)).astype(np.float32)


def mean_field(
    image: UInt8[np.ndarray, "h w 3"],
    energies: Float[np.ndarray, "k h w"],
    settings: DenseCrf,
) -> Float32[np.ndarray, "k h w"]:
    """Return every pixel's belief in every label, where neighbours prefer to agree (Potts).

    Args:
        image: Values 0 to 255.
        energies: Of labels by themselves, the unary term.
        settings: Of which `certainty` does nothing.

    Example:
        >>> energies = np.array([0.0, 1.0]).reshape(2, 1, 1)
        >>> found = mean_field(np.zeros((1, 1, 3), np.uint8), energies, DenseCrf(iterations=0))
        >>> np.round(found.ravel(), 3)
        array([0.731, 0.269], dtype=float32)
    """
    count, hw = len(energies), (image.shape[0], image.shape[1])
    # A row for each pixel: that is how sparse matrices are fast.
    alone = -energies.reshape(count, -1).T.astype(np.float32)
    terms = _kernels(image, settings) if settings.iterations else []
    beliefs = _softmax(alone.copy())
    for _ in range(settings.iterations):
        wanted = alone.copy()
        for weight, kernel in terms:
            wanted += np.float32(weight) * kernel(beliefs)
        beliefs = _softmax(wanted)
    return np.ascontiguousarray(beliefs.T).reshape(count, *hw)


def _kernels(image: UInt8[np.ndarray, "h w 3"], settings: DenseCrf) -> list[tuple[float, Filter]]:
    """Weights and normalised kernels; those without weight are left out."""
    hw = (image.shape[0], image.shape[1])
    kernels: list[tuple[float, Filter]] = []
    weight, near = settings.spatial
    if weight:
        kernels.append((weight, _normalised(_spatial(hw, near), hw[0] * hw[1])))
    weight, near, alike = settings.bilateral
    if weight:
        places = np.stack(np.meshgrid(*map(np.arange, hw), indexing="ij"), 2).reshape(-1, 2)
        points = np.concatenate([places / near, image.reshape(-1, 3) / alike], 1)
        around = Lattice.around if settings.filter == "lattice" else AllPairs.around
        kernels.append((weight, _normalised(around(points), len(points))))
    return kernels


def _normalised(kernel: Filter, count: int) -> Filter:
    """The kernel, divided by the roots of both pixels' sums."""
    root = 1 / np.sqrt(kernel(np.ones((count, 1), np.float32)) + np.float32(1e-20))
    return lambda values: root * kernel(root * values)


def _spatial(hw: tuple[int, int], deviation: float) -> Filter:
    """The Gaussian of pixels' distance, along columns and then rows; nothing is over the border."""
    height, width = hw
    down, across = _band(height, deviation), _band(width, deviation)

    def kernel(values: Float32[np.ndarray, "n k"]) -> Float32[np.ndarray, "n k"]:
        count = values.shape[1]
        held = (down @ values.reshape(height, width * count)).reshape(height, width, count)
        held = np.ascontiguousarray(held.transpose(1, 0, 2)).reshape(width, height * count)
        held = (across @ held).reshape(width, height, count)
        return np.ascontiguousarray(held.transpose(1, 0, 2)).reshape(height * width, count)

    return kernel


def _band(length: int, deviation: float) -> scipy.sparse.csr_array:
    reach = min(length - 1, int(np.ceil(_REACH * deviation)))
    apart = np.arange(length)[:, None] + np.arange(-reach, reach + 1)
    rows, columns = np.nonzero((apart >= 0) & (apart < length))
    weights = np.exp(-0.5 * ((columns - reach) / deviation) ** 2).astype(np.float32)
    return scipy.sparse.csr_array(
        (weights, (rows, apart[rows, columns])), shape=(length, length), dtype=np.float32
    )


def _softmax(rows: Float32[np.ndarray, "n k"]) -> Float32[np.ndarray, "n k"]:
    """In place."""
    rows -= rows.max(1, keepdims=True)
    np.exp(rows, out=rows)
    rows /= rows.sum(1, keepdims=True)
    return rows


def _kernel(numbers: tuple[float, ...]) -> bool:
    weight, *deviations = numbers
    return bool(np.isfinite(numbers).all()) and weight >= 0 and min(deviations) > 0


def _check_image(image: object, hw: tuple[int, ...]) -> None:
    fine = isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.shape == (*hw, 3)
    if not fine:
        raise InputError(
            f"the image must be of the labels' size, {hw[0]}x{hw[1]}, in 8 bits and three colours",
            got=f"{getattr(image, 'dtype', type(image).__name__)} of shape "
            f"{getattr(image, 'shape', None)}",
            remedy="bring both to one size first",
        )
