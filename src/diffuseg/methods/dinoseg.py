"""DinoSeg: DiffSeg's merging on the self-attention of a vision transformer.

"Diffuse, Attend, and Segment: Unsupervised Zero-Shot Segmentation using Stable Diffusion" (Tian et
al., CVPR 2024), appendix 9.5: a baseline of the paper, for which no code was published.
"""

from dataclasses import dataclass, fields, replace
from typing import ClassVar

from diffuseg.attention import AttentionRecord
from diffuseg.errors import InputError
from diffuseg.methods.diffseg import DiffSeg
from diffuseg.methods.needs import Backbone, Needs
from diffuseg.methods.settings import recorded_preset, with_preset
from diffuseg.result import Segmentation

# What a network without noise and with one resolution has no use for.
_FOREIGN = ("timestep", "weighting", "weights", "normalise")


@dataclass(frozen=True, slots=True, kw_only=True)
class DinoSeg(DiffSeg):
    """Segment an image into parts it does not name, by merging a vision transformer's attention.

    One map a patch: the mean over all layers and heads of its attention to the other patches, made
    to sum to 1. What follows, and the settings, are DiffSeg's, but for these defaults: `anchors` is
    14 and `grid` is "even", for a grid of 28 x 28 patches (DINO ViT-B/8 at 224 pixels). `tau` is
    1.0 as in DiffSeg, since the paper names none; it depends on the network, and "auto" finds it
    from the image. A ViT has no noise and one resolution: `timestep`, `weighting`, `weights` and
    `normalise` cannot be set.

    Raises:
        InputError: A value out of range, or of a setting a ViT has no use for.

    Example:
        >>> DinoSeg(tau="auto").backbone
        'vit'
    """

    backbone: ClassVar[Backbone] = "vit"

    def __post_init__(self) -> None:
        DiffSeg.__post_init__(self)
        for name in _FOREIGN:
            if getattr(self, name) not in (None, False):
                raise InputError(
                    "a vision transformer has neither noise levels nor several resolutions",
                    got=f"{name}={getattr(self, name)}",
                    remedy="leave it out",
                )

    def needs(self, model: object) -> Needs:
        """All self-attention of one call on the image."""
        return Needs(timesteps=(), kinds=("self",), prompt="empty", noise=False)

    def __call__(self, record: AttentionRecord, *, scores: bool = False) -> Segmentation:
        """Segment from a record of one image; segments are called "segment 0", "segment 1", …

        Args:
            record: Of a vision transformer.
            scores: Whether the result keeps the map of every segment, at the image's size.

        Raises:
            InputError: The record has self-attention of more than one grid, none, or numbers that
                are not finite.
        """
        grids = record.grids("self")
        if len(grids) != 1:
            raise InputError(
                "dinoseg works on the record of a vision transformer, with one grid",
                got=f"grids {', '.join(f'{h}x{w}' for h, w in grids) or 'of none'}",
                remedy='capture it with method="dinoseg", or use method="diffseg"',
            )
        known = with_preset(self, recorded_preset(record, "dinoseg"))
        chosen = with_preset(known, {"anchors": 14, "grid": "even"})
        plain = DiffSeg(**{one.name: getattr(chosen, one.name) for one in fields(chosen)})
        found = plain(record, scores=scores)
        used = found.provenance.parameters
        parameters = {name: value for name, value in used.items() if name not in _FOREIGN}
        origin = replace(found.provenance, method="dinoseg", parameters=parameters)
        return replace(found, provenance=origin)
