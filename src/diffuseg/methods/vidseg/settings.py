"""VidSeg's settings for both kinds of model, EmerDiff among them, and the papers' ablations."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Literal

from diffuseg.errors import InputError
from diffuseg.methods.crf import DenseCrf
from diffuseg.methods.settings import check_settings, with_preset, with_settings

Kind = Literal["sd", "svd"]
Classifier = Literal["knn", "mlp", "forest", "adaboost", "kmeans", "centroids"]
Naming = Literal["anchor", "mask", "clusters", "text"]
Modulated = Literal["self", "cross", "temporal"]

BLOCKS = range(3, 12)
"""Decoder blocks with attention: block 3 i + j is `up_blocks[i].attentions[j]`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VidSeg:
    """Every frame of a clip segmented by the names on one of them (Wang and others, CVPR 2025).

    A field that is None takes the value of the model's preset, else the one named last; where two
    are named, Stable Diffusion's comes first and Stable Video Diffusion's second. Steps count from
    0, blocks as in `BLOCKS`.

    Attributes:
        backbone_kind: "sd" or "svd"; what the model is.
        steps: Of the sampler. 25.
        feature_step: Whose queries are features. The last.
        modulate_step: Where noising stops and modulation acts. 22; 17 (of 25, else that share).
        noise: "additive": noise is added up to `modulate_step`. "shared": the same noise for all
            frames. "inversion": the sampler backwards.
        sample_posterior: Whether latents are drawn from the encoder's distribution, or its mean.
        seed: Of that and the noise, set again for every batch. 1.
        guidance: Of the last frame, towards the empty prompt or the conditioning frame. 5; 2.5.
        guidance_first: Of the first frame, linear in between. `guidance`; 1.
        multiple: Sides of the frames are brought down to multiples of it. 64.
        size: Height and width frames are brought to before that; the clip's own.
        side: Instead the root of the area they are brought to, proportions kept, as models with a
            size of their own need; 0: not. 0.
        feature: "self_q" or "cross_q": queries of self- or cross-attention. "self_q".
        feature_blocks: Whose queries the features are. 6, 7, 8.
        join: How: "mean", of blocks of one grid; "concat": side by side, on the finest grid, for
            networks whose blocks say different things. "mean".
        clusters: Of k-means on the first batch. 20.
        starts: Of k-means, of which the best counts. 10.
        naming: What labels are. "anchor": of every cluster the most frequent label of the anchor's
            mask. "mask": that mask, cell by cell. "clusters": the clusters' numbers. "text": names
            given as words. "anchor".
        drop_void: Whether `void` names no cluster; else it is a label like others.
        void: Those labels. 0, 255.
        classifier: What carries labels on: "knn", "mlp", "forest" or "adaboost" learn from labelled
            cells; "kmeans" keeps the first batch's clusters; "centroids" clusters every batch anew,
            each cluster named as the nearest of the first. "knn".
        neighbours: Of "knn". 4.
        memory: Cells of batches before the last one that stay references; 0 keeps none. 0.
        batch: Frames taken together. 14.
        refine: Whether labels vote along tracks.
        track_block: Whose queries are tracked. 7.
        aux: Whether tracks are also held by the first frame's features.
        jump: Cells a track may move in a step along either side. 1.
        signed: Whether only jumps down and to the right count. With compat="reference".
        modulate: Whether labels come from modulated images; else the coarse maps are enlarged.
        shares: Whether, then, cells are enlarged with every label's share of the neighbours' votes,
            so that borders run through cells; else as they are. No.
        edges: Radius, in pixels the model sees, of the guided filter by which shares then follow
            the frame's edges; 0: none. 0.
        modulate_block: Where. 7; 8.
        modulated: Which attention's output: "self", "cross", "temporal". cross; self, temporal.
        strength: What is added and taken away, lambda, in the last frame. 50.
        strength_first: In the first frame, linear in between. `strength`.
        injected: Attention whose queries and keys are the unmodulated pass's, for SVD. "code":
            temporal. "paper": spatial too. "code".
        blend: Whether latents outside a label's mask are put back.
        blend_steps: Steps after which they are, from `modulate_step` on, or "all". 2; "all".
        blur_side: Of the filter of differences, pixels; 1: none. 5.
        blur_width: Its standard deviation. 3.
        normalise: Whether every difference map is brought to a maximum of 1.
        filter: Whether difference maps are weakened outside the label's mask.
        filter_strength: To which share. 0.7.
        compat: "fixed", or "reference": with the defects of the authors' code, 8-bit differences
            that wrap around foremost. "fixed".
        crf: Whether a dense CRF comes last, on every frame by itself. No.
        crf_iterations, crf_spatial, crf_bilateral, crf_certainty: Its settings, see `DenseCrf`.
        fps_id, motion_bucket, condition_noise: What SVD is told beside the frame. 14, 127, 0.02.

    Raises:
        InputError: A setting is out of range.

    Example:
        >>> VidSeg(clusters=30).ready("svd").modulate_step
        17
    """

    backbone_kind: Kind | None = None
    steps: int | None = None
    feature_step: int | None = None
    modulate_step: int | None = None
    noise: Literal["additive", "shared", "inversion"] | None = None
    sample_posterior: bool | None = None
    seed: int | None = None
    guidance: float | None = None
    guidance_first: float | None = None
    multiple: int | None = None
    size: tuple[int, ...] | None = None
    side: int | None = None
    feature: Literal["self_q", "cross_q"] | None = None
    feature_blocks: tuple[int, ...] | None = None
    join: Literal["mean", "concat"] | None = None
    clusters: int | None = None
    starts: int | None = None
    naming: Naming | None = None
    drop_void: bool | None = None
    void: tuple[int, ...] | None = None
    classifier: Classifier | None = None
    neighbours: int | None = None
    memory: int | None = None
    batch: int | None = None
    refine: bool | None = None
    track_block: int | None = None
    aux: bool | None = None
    jump: int | None = None
    signed: bool | None = None
    modulate: bool | None = None
    shares: bool | None = None
    edges: int | None = None
    modulate_block: int | None = None
    modulated: tuple[Modulated, ...] | None = None
    strength: float | None = None
    strength_first: float | None = None
    injected: Literal["code", "paper"] | None = None
    blend: bool | None = None
    blend_steps: int | Literal["all"] | None = None
    blur_side: int | None = None
    blur_width: float | None = None
    normalise: bool | None = None
    filter: bool | None = None
    filter_strength: float | None = None
    compat: Literal["fixed", "reference"] | None = None
    crf: bool | None = None
    crf_iterations: int | None = None
    crf_spatial: tuple[float, ...] | None = None
    crf_bilateral: tuple[float, ...] | None = None
    crf_certainty: float | None = None
    fps_id: int | None = None
    motion_bucket: int | None = None
    condition_noise: float | None = None

    def __post_init__(self) -> None:
        held = {one.name: getattr(self, one.name) for one in fields(self)}
        least = dict.fromkeys(_COUNTS, 1) | dict.fromkeys(_FROM_ZERO, 0)
        blocks = (*(self.feature_blocks or ()), self.track_block, self.modulate_block)
        size, side, window = self.size, self.blur_side, self.blend_steps
        check_settings(
            *((held[name] is None or math.isfinite(held[name]), f"{name} must be finite",
               held[name]) for name in _NUMBERS),
            *((held[name] is None or held[name] >= low, f"{name} must be {low} or more", held[name])
              for name, low in least.items()),
            *((one is None or one in BLOCKS, "blocks are numbered 3 to 11", one)
              for one in blocks),
            *((held[name] is None or len(set(held[name])) == len(held[name]) > 0,
               f"{name} must be some, none of them twice", held[name])
              for name in ("feature_blocks", "modulated")),
            (size is None or (len(size) == 2 and min(size) >= 1),
             "size must be a height and a width", size),
            (side is None or side % 2 == 1, "blur_side must be odd", side),
            (not self.edges or self.shares is not False,
             "edges are followed by shares, so shares must be set", self.edges),
            (self.blur_width is None or self.blur_width > 0, "blur_width must be positive",
             self.blur_width),
            (not isinstance(window, int) or window >= 0, "blend_steps must be 0 or more", window),
        )  # fmt: skip
        last = None if self.steps is None else self.steps - 1
        for name in ("modulate_step", "feature_step"):
            fine = held[name] is None or last is None or held[name] <= last
            check_settings((fine, f"{name} must be one of the {self.steps} steps", held[name]))
        first, read = self.modulate_step, self.feature_step
        fine = first is None or read is None or first <= read
        check_settings((fine, "feature_step must not come before modulate_step", (first, read)))
        _ = self.dense_crf  # checks its settings

    def ready(self, kind: Kind, preset: Mapping[str, object] | None = None) -> "VidSeg":
        """Return the settings with nothing left open but `size`.

        Args:
            kind: What the model is.
            preset: The model's, as `model.preset["vidseg"]`, or `EMERDIFF`.

        Raises:
            InputError: The preset has something that is no setting, or the settings are for the
                other kind of model.

        Example:
            >>> VidSeg().ready("sd", EMERDIFF).batch
            1
        """
        filled = with_preset(self, preset or {})
        if filled.backbone_kind not in (None, kind):
            raise InputError(
                f"settings must be for the kind of model they are used with, {kind}",
                got=filled.backbone_kind,
                remedy="leave backbone_kind out",
            )
        filled = with_preset(filled, {**_SHARED, **_KINDS[kind], "backbone_kind": kind})
        return with_preset(filled, _derived(filled, kind))

    @property
    def dense_crf(self) -> DenseCrf:
        """The settings of the CRF, whether there is one or not."""
        told = {name: getattr(self, f"crf_{name}") for name in _CRF}
        return DenseCrf(**{name: value for name, value in told.items() if value is not None})

    @property
    def blended(self) -> range:
        """The steps after which latents are blended; of settings that are `ready`."""
        first, end = self.modulate_step or 0, self.steps or 0
        if not self.blend:
            return range(first, first)
        count = self.blend_steps
        return range(first, min(first + count, end) if isinstance(count, int) else end)


def _derived(filled: VidSeg, kind: Kind) -> dict[str, object]:
    """What follows from other settings."""
    steps = filled.steps or 1
    return {
        "feature_step": steps - 1,
        # The same noise whatever the number of steps.
        "modulate_step": min(steps - 1, round({"sd": 22, "svd": 17}[kind] / 25 * steps)),
        "guidance_first": 1.0 if kind == "svd" else filled.guidance,
        "strength_first": filled.strength,
        "signed": filled.compat == "reference",
    }


_COUNTS = ("steps", "multiple", "clusters", "starts", "neighbours", "batch", "blur_side")
_FROM_ZERO = (
    *("side", "edges", "feature_step", "modulate_step", "seed", "memory", "jump"),
    "filter_strength",
)
_NUMBERS = (
    *("guidance", "guidance_first", "strength", "strength_first", "blur_width"),
    *("filter_strength", "condition_noise"),
)
_CRF = ("iterations", "spatial", "bilateral", "certainty")

_SHARED: Mapping[str, object] = {
    "steps": 25,
    "noise": "additive",
    "sample_posterior": True,
    "seed": 1,
    "multiple": 64,
    "side": 0,
    "feature": "self_q",
    "join": "mean",
    "feature_blocks": (6, 7, 8),
    "clusters": 20,
    "starts": 10,
    "naming": "anchor",
    "drop_void": False,
    "void": (0, 255),
    "classifier": "knn",
    "neighbours": 4,
    "memory": 0,
    "batch": 14,
    "refine": True,
    "track_block": 7,
    "aux": True,
    "jump": 1,
    "modulate": True,
    "shares": False,
    "edges": 0,
    "strength": 50.0,
    "injected": "code",
    "blend": True,
    "blur_side": 5,
    "blur_width": 3.0,
    "normalise": True,
    "filter": True,
    "filter_strength": 0.7,
    "compat": "fixed",
    "crf": False,
    **{f"crf_{name}": getattr(DenseCrf(), name) for name in _CRF},
    "fps_id": 14,
    "motion_bucket": 127,
    "condition_noise": 0.02,
}

_KINDS: Mapping[Kind, Mapping[str, object]] = {
    "sd": {
        "guidance": 5.0,
        "modulate_block": 7,
        "modulated": ("cross",),
        "blend_steps": 2,
    },
    "svd": {
        "guidance": 2.5,
        "modulate_block": 8,
        "modulated": ("self", "temporal"),
        "blend_steps": "all",
    },
}

EMERDIFF: Mapping[str, object] = {
    "modulate_step": 18,  # of 25 the nearest to the paper's 281 of 1000
    "noise": "inversion",
    "guidance": 1.0,
    "feature": "cross_q",
    "feature_blocks": (3,),
    "classifier": "centroids",
    "batch": 1,
    "refine": False,
    "modulate_block": 5,
    "modulated": ("cross",),
    "strength": 10.0,
    "blend": False,
    "normalise": False,
    "filter": False,
}
"""EmerDiff (Namekata and others, ICLR 2024), every frame by itself, as the paper describes it.

The authors published no code, and did not name clusters; here those of a frame have the names of
the nearest of the anchor's. With VidSeg's number of clusters; the paper's is 30.
"""

DATASETS: Mapping[str, Mapping[str, object]] = {
    "vspw": {},
    "camvid": {},
    "cityscapes": {"clusters": 30, "size": (256, 512)},
}
"""What the paper sets for its data sets."""

ABLATIONS: Mapping[str, Mapping[str, Mapping[str, object]]] = {
    "crf": {
        "EmerDiff": EMERDIFF,
        "EmerDiff + CRF": {**EMERDIFF, "crf": True},
        "VidSeg": {},
    },
    "classifier": {
        "AdaBoost": {"classifier": "adaboost"},
        "random forest": {"classifier": "forest"},
        "MLP": {"classifier": "mlp"},
        "KNN": {"classifier": "knn"},
    },
    "modulated block": {f"block {block}": {"modulate_block": block} for block in BLOCKS},
    "batch": {f"{size} frames": {"batch": size} for size in (5, 10, 14, 20)},
    "clusters": {f"{count} clusters": {"clusters": count} for count in (5, 10, 20, 30)},
    "parts": {
        "full": {},
        "w/o aggregation": {"feature_blocks": (7,)},
        "w/o refinement": {"refine": False},
        "w/o first frame in tracks": {"aux": False},
        "w/o blending": {"blend": False},
        "w/o filtering": {"filter": False},
        "w/o modulation": {"modulate": False},
    },
}
"""What the rows of Tables 5 to 7, of the paper's ablations of batch and clusters, and of ours
change."""


def ablate(method: VidSeg, table: str, row: str) -> VidSeg:
    """Return settings changed as a row of `ABLATIONS` has it.

    Raises:
        InputError: There is no such row.

    Example:
        >>> ablate(VidSeg(), "classifier", "random forest").classifier
        'forest'
    """
    rows = ABLATIONS.get(table, {})
    if row not in rows:
        raise InputError(
            "an ablation must be a table and a row of it",
            got=f"{row} of {table}",
            remedy=f"one of {', '.join(rows or ABLATIONS)}",
        )
    return with_settings(method, rows[row])
