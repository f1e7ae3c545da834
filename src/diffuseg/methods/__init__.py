"""The methods by name, and what all of them share.

A method is a frozen dataclass whose fields are its paper's hyper-parameters. It says what it needs
recorded and turns a record into a segmentation; it knows no model.
"""

from diffuseg.errors import InputError
from diffuseg.methods.attend import Attend
from diffuseg.methods.clustering import Clustering, Dbscan, KMeans
from diffuseg.methods.diffseg import DiffSeg
from diffuseg.methods.diffsegmenter import DiffSegmenter
from diffuseg.methods.dinoseg import DinoSeg
from diffuseg.methods.iseg import ISeg
from diffuseg.methods.iseg_unsupervised import ISegUnsupervised
from diffuseg.methods.needs import Method, Model, Needs, backbone_of
from diffuseg.methods.nouns import Caption, read_caption
from diffuseg.methods.ovdiff import OVDiff
from diffuseg.methods.segdiffusion import SegDiffusion
from diffuseg.methods.semantic import SemanticDiffSeg
from diffuseg.methods.settings import parse_settings, with_preset, with_settings

METHODS: dict[
    str,
    type[Attend]
    | type[DiffSegmenter]
    | type[ISeg]
    | type[DiffSeg]
    | type[Clustering]
    | type[OVDiff]
    | type[SegDiffusion],
] = {
    "attend": Attend,
    "diffsegmenter": DiffSegmenter,
    "iseg": ISeg,
    "iseg-unsupervised": ISegUnsupervised,
    "diffseg": DiffSeg,
    "semantic-diffseg": SemanticDiffSeg,
    "dinoseg": DinoSeg,
    "kmeans": KMeans,
    "dbscan": Dbscan,
    "ovdiff": OVDiff,
    "segdiffusion": SegDiffusion,
}
"""Every method by the name users type."""

DEFAULT_METHOD = "attend"

__all__ = [
    "DEFAULT_METHOD",
    "METHODS",
    "Attend",
    "Caption",
    "Dbscan",
    "DiffSeg",
    "DiffSegmenter",
    "DinoSeg",
    "ISeg",
    "ISegUnsupervised",
    "KMeans",
    "Method",
    "Model",
    "Needs",
    "OVDiff",
    "SegDiffusion",
    "SemanticDiffSeg",
    "backbone_of",
    "find_method",
    "method_name",
    "parse_settings",
    "read_caption",
    "with_preset",
    "with_settings",
]


def find_method(method: object) -> Method:
    """Return a method from its name, or the method itself.

    Raises:
        InputError: No method of that name, or something else altogether.

    Example:
        >>> find_method("attend").timestep is None
        True
    """
    if isinstance(method, str) and method.lower() in METHODS:
        return METHODS[method.lower()]()
    if not isinstance(method, str | type) and callable(method) and hasattr(method, "needs"):
        return method  # type: ignore[return-value]
    raise InputError(
        "the method must be a known name or a method object",
        got=repr(method),
        remedy=f"use one of {', '.join(METHODS)}, or an object such as Attend(timestep=50)",
    )


def method_name(method: object) -> str:
    """Return the name of a method, or of its class if it has none here.

    Example:
        >>> method_name(Attend())
        'attend'
    """
    names = (name for name, known in METHODS.items() if type(method) is known)
    return next(names, type(method).__name__)
