"""Where images differ that were pushed and pulled towards a label, and labels from that.

Images are 8-bit RGB throughout, as values far out of range are clipped before they are compared.
"""

import io
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from diffuseg import ops
from diffuseg.errors import InputError
from diffuseg.methods.vidseg.modulation import resize_planes

Compat = Literal["fixed", "reference"]

_TINY = 1e-5  # keeps the map of an absent label at 0
_QUALITY = 75  # of the JPEG files the authors' code stores maps in


def to_images(decoded: Float[Tensor, "b 3 h w"], hw: tuple[int, int]) -> UInt8[Tensor, "b 3 H W"]:
    """Decoded images in [0, 1] as 8 bits, cut off not rounded, and brought to a size.

    Example:
        >>> to_images(torch.full((1, 3, 1, 1), 0.999), (1, 2))[0, 0].tolist()
        [[254, 254]]
    """
    bits = (decoded.clamp(0, 1) * 255).to(torch.uint8)
    if bits.shape[-2:] == hw:
        return bits
    return ops.resize(bits.float(), hw).round().clamp(0, 255).to(torch.uint8)


def gaussian_kernel(side: int, width: float) -> Float[Tensor, " s"]:
    """One side of a Gaussian filter, of sum 1.

    Raises:
        InputError: The side is not odd and positive, or the width not positive.

    Example:
        >>> [round(one, 4) for one in gaussian_kernel(3, 1.0).tolist()]
        [0.2741, 0.4519, 0.2741]
    """
    if side < 1 or side % 2 == 0 or width <= 0:
        raise InputError(
            "a Gaussian filter must have an odd side and a positive width",
            got=f"side {side}, width {width}",
            remedy="the paper has 5 and 3",
        )
    places = torch.arange(side, dtype=torch.float64) - side // 2
    weights = (-(places**2) / (2 * width**2)).exp()
    return (weights / weights.sum()).float()


def blur(planes: Float[Tensor, "b h w"], side: int, width: float) -> Float[Tensor, "b h w"]:
    """Filter planes by a Gaussian; behind a border they are mirrored at the outermost pixels.

    Raises:
        InputError: As `gaussian_kernel` does, or a plane is no wider than half of the filter.

    Example:
        >>> blur(torch.ones(1, 4, 5), 5, 3.0).allclose(torch.ones(1, 4, 5))
        True
    """
    kernel = gaussian_kernel(side, width).to(planes.device)
    reach = side // 2
    if min(planes.shape[-2:]) <= reach:
        raise InputError(
            f"images must be wider and higher than {reach} pixels to be filtered",
            got=tuple(planes.shape[-2:]),
            remedy="choose a smaller filter, or 1 for none",
        )
    padded = F.pad(planes[:, None].float(), (reach,) * 4, mode="reflect")
    rows = F.conv2d(padded, kernel.view(1, 1, -1, 1))
    return F.conv2d(rows, kernel.view(1, 1, 1, -1))[:, 0]


@torch.no_grad()
def difference_maps(
    positive: UInt8[Tensor, "b 3 h w"],
    negative: UInt8[Tensor, "b 3 h w"],
    *,
    side: int = 5,
    width: float = 3.0,
    compat: Compat = "fixed",
) -> Float[Tensor, "b h w"]:
    """How far images differ in colour, smoothed.

    Args:
        positive: Where a label was pushed.
        negative: Where it was pulled.
        side: Of the Gaussian filter; 1: none.
        width: Its standard deviation, pixels.
        compat: "reference": differences and their squares wrap around at 256, as in the authors'
            code; what it then loses in files is `as_stored`.

    Example:
        >>> pushed = torch.full((1, 3, 4, 4), 16, dtype=torch.uint8)
        >>> pulled = torch.zeros_like(pushed)
        >>> round(difference_maps(pushed, pulled, side=1)[0, 0, 0].item(), 3)
        27.713
        >>> difference_maps(pushed, pulled, side=1, compat="reference")[0, 0, 0].item()
        0.0
    """
    if compat == "reference":
        apart = positive - negative
        squares = (apart * apart).float()
    else:
        squares = (positive.float() - negative.float()) ** 2
    return blur(squares.sum(1).sqrt(), side, width)


def as_stored(maps: Float[Tensor, "b h w"]) -> Float[Tensor, "b h w"]:
    """Difference maps as the authors' code has them back from its files: whole numbers, in JPEG.

    Example:
        >>> as_stored(torch.full((1, 8, 8), 20.9))[0, 0, 0].item()
        20.0
    """
    read = []
    for one in maps.clamp(0, 255).to("cpu", torch.uint8).numpy():
        file = io.BytesIO()
        Image.fromarray(one).save(file, format="JPEG", quality=_QUALITY)
        read.append(np.asarray(Image.open(file)))
    stacked = torch.from_numpy(np.stack(read)) if read else torch.zeros(maps.shape)
    return stacked.float().to(maps.device)


@torch.no_grad()
def filter_maps(
    maps: Float[Tensor, "b H W"],
    masks: Bool[Tensor, "_b h w"],
    *,
    strength: float | None = 0.7,
    normalise: bool = True,
) -> Float[Tensor, "b H W"]:
    """Make maps of different labels comparable, and weaken them outside their coarse masks.

    Args:
        maps: As `difference_maps` has them.
        masks: Of the same labels and frames.
        strength: The share kept outside a mask: 0 nothing, 1 everything. None: no filtering.
        normalise: Whether each map is brought to a maximum of 1. One that is zero stays so.

    Raises:
        InputError: Masks are not as many as maps.

    Example:
        >>> inside = torch.tensor([[[True, True, False, False]]])
        >>> filter_maps(torch.ones(1, 1, 4), inside, strength=0.5, normalise=False).tolist()
        [[[1.0, 1.0, 0.5, 0.5]]]
    """
    if len(masks) != len(maps):
        raise InputError(
            "there must be one mask a map",
            got=f"{len(masks)} masks for {len(maps)} maps",
            remedy="flatten labels and frames of both alike",
        )
    if normalise:
        maps = maps / (maps.amax((1, 2), keepdim=True) + _TINY)
    if strength is None:
        return maps
    inside = mask_weights(masks, (maps.shape[1], maps.shape[2])).to(maps.device).float() / 255
    return maps * (inside + strength * (1 - inside))


def mask_weights(masks: Bool[Tensor, "b h w"], hw: tuple[int, int]) -> UInt8[Tensor, "b H W"]:
    """Enlarge coarse masks smoothly, by Lanczos's filter: 255 inside.

    Example:
        >>> mask_weights(torch.ones(1, 2, 2, dtype=torch.bool), (4, 4))[0, 0].tolist()
        [255, 255, 255, 255]
    """
    return resize_planes(masks, hw, Image.Resampling.LANCZOS)


def fuse(
    maps: Float[Tensor, "l f h w"], values: Sequence[int] | Int[Tensor, " l"]
) -> Int[Tensor, "f h w"]:
    """Give every pixel the label whose map is highest there; of equal ones the first.

    Args:
        maps: Of every label in every frame.
        values: The labels.

    Raises:
        InputError: Labels are not as many as maps, or there is none.

    Example:
        >>> fuse(torch.tensor([[[[0.2, 0.0]]], [[[0.5, 0.0]]]]), [3, 17]).tolist()
        [[[17, 3]]]
    """
    fusion = Fusion(maps.shape[1], (maps.shape[2], maps.shape[3]), values, device=maps.device)
    if len(maps) != len(values):
        raise InputError(
            "there must be one map a label",
            got=f"{len(maps)} maps for {len(values)} labels",
            remedy="give zeros for a label that is nowhere",
        )
    frames = torch.arange(maps.shape[1], device=maps.device)
    for number, planes in enumerate(maps):
        fusion.add(torch.full_like(frames, number), frames, planes)
    return fusion.labels()


class Fusion:
    """Labels of a batch, from maps that come a few at a time and need not all be kept.

    A pixel that no map rises above zero at has the first label.

    Args:
        frames: Of the batch.
        hw: Of the maps.
        values: The labels.
        device: Where maps are compared.

    Raises:
        InputError: There is no label.

    Example:
        >>> fusion = Fusion(1, (1, 2), [3, 17])
        >>> fusion.add(torch.tensor([1]), torch.tensor([0]), torch.tensor([[[0.5, 0.0]]]))
        >>> fusion.labels().tolist()
        [[[17, 3]]]
    """

    def __init__(
        self,
        frames: int,
        hw: tuple[int, int],
        values: Sequence[int] | Int[Tensor, " l"],
        *,
        device: torch.device | str = "cpu",
    ) -> None:
        if not len(values):
            raise InputError("there must be a label", got="none", remedy="give the anchor's labels")
        self._values = torch.as_tensor(values, device=device)
        self._best = torch.zeros((frames, *hw), device=device)
        self._winners = torch.zeros((frames, *hw), dtype=torch.int64, device=device)

    @torch.no_grad()
    def add(
        self,
        labels: Int[Tensor, " p"],
        frames: Int[Tensor, " p"],
        maps: Float[Tensor, "p h w"],
    ) -> None:
        """Compare maps of labels, by their numbers, in frames; pairs may come in any order."""
        for label, frame, plane in zip(labels.tolist(), frames.tolist(), maps, strict=True):
            best, winners = self._best[frame], self._winners[frame]
            better = (plane > best) | ((plane == best) & (label < winners))
            best[better], winners[better] = plane[better], label

    def labels(self) -> Int[Tensor, "f h w"]:
        """Return the label of every pixel."""
        return self._values[self._winners]
