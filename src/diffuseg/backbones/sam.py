"""Segment Anything: the mask a point and a box ask for."""

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import nn

from diffuseg.backbones.companions import find_companion, load_image_files, load_part
from diffuseg.backbones.loading import pick_device, pick_dtype
from diffuseg.errors import InputError
from diffuseg.image import Image

if TYPE_CHECKING:
    from transformers import SamModel, SamProcessor
else:
    SamModel = nn.Module
    SamProcessor = object


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sam:
    """A frozen SAM that completes score maps (Kirillov et al. 2023, arXiv 2304.02643).

    Of every class that is best somewhere it is asked for the mask around the class's highest point,
    within the box of its pixels. The mask that agrees best with them raises the score inside to the
    class's highest there, and lowers it outside, if it agrees well enough. Constant maps, such as
    that of a background, stay as they are.

    Attributes:
        name: As the user asked for it.
        source: Where the weights came from.
        model: transformers' model.
        processor: Brings pictures, points and boxes to its size.
        agreement: Intersection over union of mask and class from which a mask is believed.
        share: How much a mask counts beside the score that was there, 0 to 1.
    """

    name: str
    source: str
    model: SamModel
    processor: SamProcessor
    agreement: float = 0.5
    share: float = 0.5

    def __post_init__(self) -> None:
        if not (0 <= self.agreement <= 1 and 0 <= self.share <= 1):
            raise InputError(
                "agreement and share must be from 0 to 1",
                got=f"{self.agreement} and {self.share}",
                remedy="leave them out",
            )

    def __repr__(self) -> str:
        return f"SAM {self.name} from {self.source}"

    def __call__(
        self, image: Image, scores: Float[np.ndarray, "k h w"]
    ) -> Float[np.ndarray, "k h w"]:
        """Return the scores with masks in them, see `completion.RegionCompleter`."""
        best = scores.argmax(axis=0)
        asked = [
            index
            for index, one in enumerate(scores)
            if one.min() < one.max() and (best == index).any()
        ]
        completed = scores.copy()
        if not asked:
            return completed
        regions = [best == index for index in asked]
        masks = self.masks(image, [scores[index] for index in asked], regions)
        for index, region, offered in zip(asked, regions, masks, strict=True):
            overlap = [_iou(mask, region) for mask in offered]
            chosen = int(np.argmax(overlap))
            if overlap[chosen] < self.agreement:
                continue
            top = scores[index][region].max()
            drawn = np.where(offered[chosen], top, 0)
            completed[index] = (1 - self.share) * scores[index] + self.share * drawn
        return completed

    @torch.no_grad()
    def masks(
        self,
        image: Image,
        scores: list[Float[np.ndarray, "h w"]],
        regions: list[Bool[np.ndarray, "h w"]],
    ) -> list[Bool[np.ndarray, "m h w"]]:
        """Return the masks SAM offers for every region: at its highest score, within its box."""
        points, boxes = [], []
        for plane, region in zip(scores, regions, strict=True):
            y, x = np.unravel_index(int(np.where(region, plane, -np.inf).argmax()), region.shape)
            rows, columns = np.flatnonzero(region.any(1)), np.flatnonzero(region.any(0))
            points.append([[float(x), float(y)]])
            boxes.append([float(one) for one in (columns[0], rows[0], columns[-1], rows[-1])])
        pixels: UInt8[np.ndarray, "h w 3"] = image.pixels
        given = cast(Any, self.processor)(
            pixels, input_points=[points], input_boxes=[boxes], return_tensors="pt"
        )
        place = self.model.device
        found = cast(Any, self.model)(
            pixel_values=given["pixel_values"].to(place, self.model.dtype),
            input_points=given["input_points"].to(place, self.model.dtype),
            input_boxes=given["input_boxes"].to(place, self.model.dtype),
            multimask_output=True,
        )
        [masks] = cast(Any, self.processor).post_process_masks(
            found.pred_masks.float().cpu(),
            given["original_sizes"],
            given["reshaped_input_sizes"],
        )  # [k, m, h, w]
        return [np.asarray(one, dtype=bool) for one in masks]


def load_sam(
    name: str | os.PathLike[str],
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    offline: bool | None = None,
) -> Sam:
    """Load a SAM.

    Args:
        name: A hub id such as "facebook/sam-vit-base", or a folder in transformers format.
        device: For instance "cpu" or "cuda:1"; by default the first there is of CUDA, Apple's GPU
            and the CPU.
        dtype: "fp32", "fp16" or "bf16"; by default fp32 on the CPU and fp16 elsewhere.
        offline: Never use the network; by default as HF_HUB_OFFLINE says.

    Raises:
        InputError: No such name, device or dtype.
        WeightsError: The weights are not to be had, damaged, or of another kind.

    Example:
        >>> load_sam("facebook/sam-vit-base", device="cpu")  # doctest: +SKIP
        SAM facebook/sam-vit-base from facebook/sam-vit-base
    """
    import transformers

    if name == "mini":
        raise InputError(
            "the miniature has no SAM",
            got=name,
            remedy='use "facebook/sam-vit-base", or a folder with such a model',
        )
    place = pick_device(device)
    precision = pick_dtype(dtype, place)
    found = find_companion(name, "sam", ("SamModel",), offline=offline, text=False)
    return Sam(
        name=found.name,
        source=found.source,
        model=load_part(transformers.SamModel, found, precision, place),
        processor=transformers.SamProcessor(cast(Any, load_image_files(found))),
    )


def _iou(one: Bool[np.ndarray, "h w"], other: Bool[np.ndarray, "h w"]) -> float:
    whole = (one | other).sum()
    return float((one & other).sum() / whole) if whole else 0.0
