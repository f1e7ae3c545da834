"""Class maps that follow the picture's edges, which attention on a coarse grid cannot know.

A grid cell of Stable Diffusion's finest attention is eight pixels wide, so borders are wrong by up
to half of that. The guided filter (He, Sun and Tang, Guided Image Filtering, TPAMI 2013) makes each
map, within every small window, a linear function of the picture's colours.
"""

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional as F

from diffuseg import ops
from diffuseg.attention import AttentionRecord
from diffuseg.errors import InputError

_REGULAR = 1e-4  # variance of colours in [0, 1] below which a window counts as plain


def follow_edges(
    record: AttentionRecord, maps: Float[Tensor, "k h w"], radius: int
) -> Float[Tensor, "k H W"]:
    """Enlarge maps to the size the model saw and fit them to the picture there; 0: leave them.

    Args:
        record: Holds the picture.
        maps: One a class.
        radius: Of the guided filter's windows, in pixels the model sees.

    Raises:
        InputError: There is no picture in the record.
    """
    if not radius:
        return maps
    if record.picture is None:
        raise InputError(
            "following edges needs the picture the model saw",
            got="a record of attention alone",
            remedy="capture it with this setting, or use edges=0",
        )
    picture = record.picture.to(maps.device)
    enlarged = ops.resize(maps[None], (picture.shape[1], picture.shape[2]))[0]
    return guided_filter(enlarged, picture, radius=radius)


@torch.no_grad()
def guided_filter(
    maps: Float[Tensor, "k h w"],
    picture: UInt8[Tensor, "3 h w"],
    *,
    radius: int,
    regular: float = _REGULAR,
) -> Float[Tensor, "k h w"]:
    """Filter maps by a colour picture (equations 19 to 21 of the paper).

    Args:
        maps: One a class; they are filtered one by one.
        picture: The guide.
        radius: Of the square windows, in pixels.
        regular: Added to the colours' variances, which are those of values in [0, 1]: edges weaker
            than its root are not followed.

    Example:
        >>> picture = torch.zeros(3, 1, 6, dtype=torch.uint8)
        >>> picture[:, :, 3:] = 255
        >>> blurred = torch.tensor([[[0.0, 0.0, 0.2, 0.5, 1.0, 1.0]]])
        >>> (guided_filter(blurred, picture, radius=5)[0, 0] > 0.5).int().tolist()
        [0, 0, 0, 1, 1, 1]
    """
    guide = picture.float() / 255
    mean = _means(guide, radius)
    pairs = _means((guide[:, None] * guide[None]).flatten(0, 1), radius).unflatten(0, (3, 3))
    spread = pairs - mean[:, None] * mean[None]  # [3, 3, h, w]
    spread = spread.permute(2, 3, 0, 1) + regular * torch.eye(3, device=guide.device)
    inverse = torch.linalg.inv(spread)
    return torch.stack([_filtered(one, guide, mean, inverse, radius) for one in maps])


def _filtered(
    plane: Float[Tensor, "h w"],
    guide: Float[Tensor, "3 h w"],
    mean: Float[Tensor, "3 h w"],
    inverse: Float[Tensor, "h w 3 3"],
    radius: int,
) -> Float[Tensor, "h w"]:
    level = _means(plane[None], radius)
    shared = _means(guide * plane, radius) - mean * level  # [3, h, w]
    slope = torch.einsum("hwij,jhw->ihw", inverse, shared)
    offset = level[0] - (slope * mean).sum(0)
    return (_means(slope, radius) * guide).sum(0) + _means(offset[None], radius)[0]


def _means(planes: Float[Tensor, "k h w"], radius: int) -> Float[Tensor, "k h w"]:
    """Means over square windows, of the part that lies within the picture."""
    found = planes[:, None]
    for down, across in ((radius, 0), (0, radius)):
        # A window that reaches over the border on both sides is not to be longer than the side.
        down, across = min(down, found.shape[2] - 1), min(across, found.shape[3] - 1)
        found = F.avg_pool2d(
            found,
            (2 * down + 1, 2 * across + 1),
            stride=1,
            padding=(down, across),
            count_include_pad=False,
        )
    return found[:, 0]
