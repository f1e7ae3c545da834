"""DiffSeg: segments without names, from self-attention alone.

"Diffuse, Attend, and Segment: Unsupervised Zero-Shot Segmentation using Stable Diffusion" (Tian et
al., CVPR 2024). The steps on tensors are in `merging`.
"""

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Literal

import torch

from diffuseg.attention import AttentionRecord
from diffuseg.errors import InputError
from diffuseg.methods.anchors import Grid, anchor_grid
from diffuseg.methods.divergence import Precision
from diffuseg.methods.fusing import Weighting, fuse_record, without_weights
from diffuseg.methods.merging import Tau, merge, refine_maps
from diffuseg.methods.needs import Model, Needs
from diffuseg.methods.settings import (
    check_settings,
    given,
    recorded_preset,
    weight_rules,
    with_preset,
)
from diffuseg.methods.suppression import Assign, rate_cells, suppress
from diffuseg.result import Segmentation

log = logging.getLogger(__name__)


PRESETS: dict[str, dict[str, object]] = {
    "coco-stuff": {"timestep": 300, "tau": 1.1},
    "cityscapes": {"timestep": 300, "tau": 0.9},
    "wild": {"timestep": 300, "tau": 1.0},
}
"""The paper's settings by what they were chosen for (section 9.6), for Stable Diffusion."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DiffSeg:
    """Segment an image into parts it does not name, by merging self-attention maps.

    A field that is None takes the value found for the model (its preset), else the one named last.

    Attributes:
        timestep: Noise level the model is told, 0 to 999; it is shown the image without noise. 300
            (paper, 9.6 and Fig. 11a).
        weighting: How the resolutions count (R). "proportional" to the side of their grids (the
            authors' code): 8:4:2:1 for 64, 32, 16, 8. "per_map": every layer by its side (the
            paper's formula). "equal".
        weights: Instead of `weighting`: one number a resolution, finest first; 0 leaves one out;
            without the finest the cells are those of the next. They are not normalised, as in the
            authors' code: a sum of 1.3 makes all divergences 1.3 times as large.
        normalise: Whether `weights` are divided by their sum.
        anchors: Anchors along each axis (M). 16 (paper, 9.6: 256 in all).
        grid: How anchors are spread. "reference": the authors' formula, made for 64 x 64 cells.
            "even": over the whole image. "auto": the one on 64 x 64 cells, the other elsewhere.
        rounds: Merging passes (N), that around the anchors included. 3 (paper, 9.6, Fig. 11c), or
            as many as `tau` has values.
        tau: Symmetric KL divergence below which maps are merged, in nats; one for all rounds or
            one each. 1.0 (paper, 9.6, "in the wild"). It depends on the model more than all else.
            "auto": found anew for every image, from how far its anchors are apart; see
            `threshold.automatic_tau`.
        reuse_matched: Whether a map that was merged counts in later groups of the same round, as in
            the authors' code; False is the paper's algorithm 1.
        refine: "none"; "kmeans": proposals are refined by k-means on the cells' maps (the authors'
            option, off in all their figures); "kl": by the nearest proposal of each cell.
        assign: Which segment a pixel falls to. "highest" (paper): the one whose map is highest at
            the pixel. "nearest": the one whose map is least far from the pixel's own, in symmetric
            KL. Maps of small segments are narrow and high, those of large ones spread and low,
            which lets small ones overflow under "highest".
        kl_dtype: "float16" loses all maps with very small entries in the first round, as the
            authors' code does. Only to trace their figures.
        relabel: Number segments by area and leave out those without a pixel. Else they keep the
            order in which anchors claimed them, and numbers may be missing.

    Raises:
        InputError: A value out of range, or two that exclude each other.

    Example:
        >>> DiffSeg(tau=0.5, anchors=8).tau
        0.5
    """

    timestep: int | None = None
    weighting: Weighting | None = None
    weights: tuple[float, ...] | None = None
    normalise: bool = False
    anchors: int | None = None
    grid: Grid | None = None
    rounds: int | None = None
    tau: float | tuple[float, ...] | Literal["auto"] | None = None
    reuse_matched: bool = True
    refine: Literal["none", "kmeans", "kl"] = "none"
    assign: Assign | None = None
    kl_dtype: Precision = "float32"
    relabel: bool = False

    def __post_init__(self) -> None:
        _check(self)

    @classmethod
    def preset(cls, name: str) -> "DiffSeg":
        """Return the method with the paper's settings for a kind of image, see `PRESETS`.

        Raises:
            InputError: No preset of that name.

        Example:
            >>> DiffSeg.preset("cityscapes").tau
            0.9
        """
        if name not in PRESETS:
            raise InputError(
                "the preset must be one of the paper's",
                got=repr(name),
                remedy=f"use one of {', '.join(PRESETS)}",
            )
        return with_preset(cls(), PRESETS[name])

    def needs(self, model: Model) -> Needs:
        """All self-attention of one call on the clean latents, with an empty prompt."""
        chosen = self._filled(model.preset.get("diffseg", {}))
        return Needs(
            timesteps=(given(chosen.timestep),), kinds=("self",), prompt="empty", noise=False
        )

    def __call__(self, record: AttentionRecord, *, scores: bool = False) -> Segmentation:
        """Segment from a record of one image; segments are called "segment 0", "segment 1", …

        Args:
            record: Holds what `needs` says. Rows of the batch are taken for prompts, and averaged.
            scores: Whether the result keeps the map of every segment, at the image's size.

        Raises:
            InputError: The record has no self-attention or numbers that are not finite, or the
                settings do not fit its grids.
        """
        chosen = self._filled(recorded_preset(record, "diffseg"))

        # 1. One map over the image for every cell of the finest grid
        fused, (height, width) = fuse_record(  # [1, n, n]
            record, given(chosen.weighting), chosen.weights, normalise=chosen.normalise
        )

        # 2. Anchors gather the maps near their own, then merge among themselves
        points = anchor_grid((height, width), given(chosen.anchors), given(chosen.grid))
        anchors = torch.from_numpy(points[:, 0] * width + points[:, 1]).to(fused.device)
        [found] = merge(
            fused,
            anchors,
            _taus(chosen),
            reuse=chosen.reuse_matched,
            precision=chosen.kl_dtype,
        )
        log.debug("maps after each round: %s", found.counts)
        if chosen.tau == "auto":
            log.info("tau %.4g, found from the image", found.taus[0])
        if not len(found.maps):
            raise InputError(
                "at least one anchor must keep its map",
                got=f"none after {len(found.counts)} rounds with kl_dtype={chosen.kl_dtype!r}",
                remedy='use kl_dtype="float32"',
            )

        # 3. Optionally each cell goes to one proposal, and proposals become the means of theirs
        maps = found.maps
        if chosen.refine != "none":
            _, maps = refine_maps(fused[0], maps, chosen.refine)

        # 4. At each pixel of the user's image, the highest map (or the nearest) suppresses others
        return suppress(
            record,
            rate_cells(maps, fused[0], chosen.assign),
            (height, width),
            method="diffseg",
            parameters=asdict(chosen),
            relabel=chosen.relabel,
            scores=scores,
        )

    def _filled(self, preset: Mapping[str, object]) -> "DiffSeg":
        """This method with nothing left open but `weights`."""
        known = with_preset(self, without_weights(preset, self.weighting))
        if known.rounds is None and isinstance(known.tau, tuple):
            known = replace(known, rounds=len(known.tau))
        general = {
            "timestep": 300,
            "weighting": "proportional",
            "anchors": 16,
            "grid": "auto",
            "rounds": 3,
            "tau": 1.0,
            "assign": "highest",
        }
        return with_preset(known, general)


def _taus(method: DiffSeg) -> tuple[Tau, ...]:
    tau = method.tau
    if isinstance(tau, tuple):
        return tau
    rounds = given(method.rounds)
    return ("auto",) * rounds if tau == "auto" else (given(tau),) * rounds


def _positive(value: object) -> bool:
    return isinstance(value, int | float) and value > 0


def _check(method: DiffSeg) -> None:
    taus = method.tau if isinstance(method.tau, tuple) else (method.tau,)
    weights, rounds = method.weights, method.rounds
    check_settings(
        (
            method.timestep is None or method.timestep >= 0,
            "timestep must be 0 or more",
            method.timestep,
        ),
        *weight_rules(weights),
        (
            method.anchors is None or method.anchors >= 1,
            "anchors must be 1 or more",
            method.anchors,
        ),
        (rounds is None or rounds >= 1, "rounds must be 1 or more", rounds),
        (
            bool(taus) and all(one in (None, "auto") or _positive(one) for one in taus),
            'tau must be positive, or "auto"',
            taus,
        ),
        (
            rounds is None or not isinstance(method.tau, tuple) or len(method.tau) == rounds,
            "there must be one tau for all rounds, or one for each",
            f"{len(taus)} for {rounds} rounds",
        ),
    )
