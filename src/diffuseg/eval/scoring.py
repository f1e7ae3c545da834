"""What a method is told of an image's truth, and what counts of its answer."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from statistics import fmean
from typing import Literal, get_args

import numpy as np
from jaxtyping import Int64

from diffuseg.api import Segmenter
from diffuseg.errors import InputError
from diffuseg.eval.datasets import BACKGROUND, Dataset, Sample
from diffuseg.eval.hungarian import SegmentCounts, assign, histogram
from diffuseg.eval.metrics import ConfusionMatrix
from diffuseg.eval.state import Counts
from diffuseg.methods import Method, Model, method_name, with_settings
from diffuseg.result import IGNORE, Segmentation

Given = Literal["classes", "vocabulary", "count", "mean_count", "nothing"]
"""What of the truth a method may be told, see `Rules`."""

COUNTED = "k"
"""The field of a method that is the number of segments it makes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """How a method is scored.

    Attributes:
        given: What it is told. "classes": the names of those present in the image. "vocabulary":
            the names of all classes, of which a filter keeps some for each image. "count": how many
            there are. "mean_count": how many there are on average, the same for all images.
            "nothing".
        named: Whether its segments have names. Else they are matched to the classes by the truth.
        count: The number told by "mean_count".
    """

    given: Given
    named: bool
    count: int | None = None

    @property
    def average(self) -> str:
        """The rule by which a mean over classes is usually taken."""
        return "gt_present" if self.named else "union_present"

    def empty(self, data: Dataset) -> Counts:
        """Return counts of nothing yet."""
        return empty_counts(self.named, len(data.classes), data.ignore)


def empty_counts(named: bool, n_classes: int, ignore: int) -> Counts:
    """Return counts of nothing yet, of segments with names or without."""
    if named:
        return ConfusionMatrix(n_classes, ignore=ignore, undecided=IGNORE)
    return SegmentCounts(n_classes, undecided=IGNORE)


def find_rules(
    method: Method, model: Model, data: Dataset, n_images: int, given: str | None = None
) -> Rules:
    """Return how a method is scored.

    Args:
        method: The method.
        model: What it needs may depend on this.
        data: The data set.
        n_images: How many images of it are scored.
        given: What the method is told; None: the classes if it needs them (all classes, if it
            chooses among them), else nothing.

    Raises:
        InputError: The method cannot be told that, or must be told how many segments there are.
    """
    if given is not None and given not in get_args(Given):
        raise InputError(
            f"what is given must be one of {', '.join(get_args(Given))}",
            got=repr(given),
            remedy="leave it out for what the method needs",
        )
    prompt = method.needs(model).prompt
    named = prompt != "empty"
    usual = "classes" if prompt in ("joint", "per_class") else "nothing"
    usual = "vocabulary" if chooses(method) else usual
    chosen: Given = given or usual  # type: ignore[assignment]
    if chosen in ("classes", "vocabulary") and not named:
        raise InputError(
            "classes are given to methods that look for them",
            got=f"given={chosen!r} for {method_name(method)}, which finds segments without names",
            remedy='use given="nothing"',
        )
    if chosen in ("count", "mean_count") and (named or not _takes_count(method)):
        raise InputError(
            "a number of segments is given to methods that make that many without names",
            got=f"given={chosen!r} for {method_name(method)}",
            remedy='use given="nothing", or a method such as "kmeans"',
        )
    if chosen == "nothing" and _takes_count(method) and not _has_count(method, model):
        raise InputError(
            f"{method_name(method)} must be told how many segments there are",
            got=f"no {COUNTED}",
            remedy=f"set {COUNTED}, or tell it the number of classes of each image (given "
            '"count") or their average ("mean_count")',
        )
    count = None
    if chosen == "mean_count":
        k = len(data.classes)
        count = max(1, round(fmean(len(data[i].present(k)) for i in range(n_images))))
    return Rules(given=chosen, named=named, count=count)


def informed(method: Method, sample: Sample, data: Dataset, rules: Rules) -> Method:
    """Return the method with the number of segments it is told, if it is told one."""
    if rules.given not in ("count", "mean_count"):
        return method
    count = rules.count or max(1, len(sample.present(len(data.classes))))
    return with_settings(method, {COUNTED: count})


def named_classes(sample: Sample, data: Dataset, rules: Rules) -> list[str] | None:
    """Return the classes a method is told to look for in an image."""
    if rules.given not in ("vocabulary", "classes"):
        return None
    every = [name for name in data.classes if name != BACKGROUND]
    present = {data.classes[i] for i in sample.present(len(data.classes))}
    if rules.given == "vocabulary" or not present & set(every):
        return every
    return [name for name in every if name in present]


def segment_samples(
    segmenter: Segmenter, samples: Sequence[Sample], data: Dataset, rules: Rules
) -> list[Segmentation]:
    """Segment images, the method being told of each what the rules say."""
    methods = [informed(segmenter.method, sample, data, rules) for sample in samples]
    classes = [named_classes(sample, data, rules) for sample in samples]
    if all(one == methods[0] for one in methods):
        known = replace(segmenter, method=methods[0])
        return known.many([sample.image for sample in samples], classes)
    return [
        replace(segmenter, method=method)(sample.image, names)
        for method, sample, names in zip(methods, samples, classes, strict=True)
    ]


def score_sample(sample: Sample, result: Segmentation, data: Dataset, rules: Rules) -> Counts:
    """Return the counts of one image."""
    counts = rules.empty(data)
    if rules.named:
        counts.update(sample.truth, class_labels(result, data))
    else:
        # Numbers stay as they are: published figures depend on them.
        undecided = result.labels == result.ignore
        counts.update(_scored(sample, data), np.where(undecided, IGNORE, result.labels))
    return counts


def class_labels(result: Segmentation, data: Dataset) -> np.ndarray:
    """Return a result's labels as class indices of a data set; undecided where it names others."""
    lookup = np.full(len(result.names) + 1, IGNORE, dtype=np.int32)
    for position, name in enumerate(result.names):
        if name in data.classes:
            lookup[position] = data.classes.index(name)
    undecided = result.labels == result.ignore
    return lookup[np.where(undecided, len(result.names), result.labels)]


def name_by_truth(sample: Sample, result: Segmentation, data: Dataset) -> Segmentation:
    """Return a result whose nameless segments are called after the classes matched to them.

    Among the classes present, one to one, most pixels right; segments left over keep their names.
    """
    decided = result.labels != result.ignore
    truth = _scored(sample, data)[decided]
    table = histogram(truth, result.labels[decided], len(data.classes))
    rows, columns = assign(table, np.array(sample.present(len(data.classes)), dtype=np.int64))
    names = {
        result.names[segment]: data.classes[one]
        for one, segment in zip(rows.tolist(), columns.tolist(), strict=True)
        if segment < len(result.names) and table[one, segment]
    }
    return result.rename(names)


def _scored(sample: Sample, data: Dataset) -> Int64[np.ndarray, "h w"]:
    """The truth, -1 where it is not scored."""
    return np.where(sample.truth == data.ignore, -1, sample.truth.astype(np.int64))


def chooses(method: object) -> bool:
    """Return whether a method says itself which classes of a vocabulary an image shows.

    Example:
        >>> from diffuseg.methods import Attend, OVDiff
        >>> chooses(OVDiff()), chooses(Attend())
        (True, False)
    """
    return bool(getattr(method, "chooses", False))


def _takes_count(method: Method) -> bool:
    return is_dataclass(method) and any(one.name == COUNTED for one in fields(method))


def _has_count(method: Method, model: Model) -> bool:
    preset = model.preset.get(method_name(method), {})
    return getattr(method, COUNTED) is not None or COUNTED in preset
