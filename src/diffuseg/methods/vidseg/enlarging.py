"""Labels of pixels from shares of cells, without modulation: enlarged, led by the frame's edges.

Where a cell's neighbours disagree a border runs through it, and their shares tell about where.
"""

import numpy as np
import PIL.Image
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from diffuseg import ops
from diffuseg.methods.edges import guided_filter
from diffuseg.methods.labelling import take_highest


@torch.no_grad()
def enlarge_shares(
    shares: Float[Tensor, "h w k"],
    pixels: UInt8[np.ndarray, "H W 3"],
    seen_hw: tuple[int, int],
    *,
    edges: int = 0,
) -> Int[Tensor, "H W"]:
    """Return the index of the label every pixel has most of, of equals the first.

    Args:
        shares: Of every label in a cell.
        pixels: The frame.
        seen_hw: Height and width the model saw it at, where its edges are followed.
        edges: Radius of the guided filter there; 0: edges are not followed.

    Example:
        >>> shares = torch.tensor([[[1.0, 0.0], [0.25, 0.75]]])
        >>> enlarge_shares(shares, np.zeros((1, 8, 3), np.uint8), (1, 8)).tolist()
        [[0, 0, 0, 0, 1, 1, 1, 1]]
    """
    maps = ops.resize(shares.permute(2, 0, 1)[None], seen_hw)[0]
    if edges:
        picture = PIL.Image.fromarray(pixels)
        if pixels.shape[:2] != seen_hw:
            picture = picture.resize((seen_hw[1], seen_hw[0]), PIL.Image.Resampling.BICUBIC)
        guide = torch.from_numpy(np.array(picture)).permute(2, 0, 1).to(maps.device)
        maps = guided_filter(maps, guide, radius=edges)
    hw = pixels.shape[0], pixels.shape[1]
    return take_highest(ops.resize(one[None, None], hw)[0, 0] for one in maps)[0]
