"""VidSeg's difference maps and fusion against the authors' functions, as meant and as shipped."""

import numpy as np
import pytest
import torch

from diffuseg.methods.vidseg.differences import (
    as_stored,
    difference_maps,
    filter_maps,
    fuse,
    gaussian_kernel,
    mask_weights,
    to_images,
)
from diffuseg.methods.vidseg.modulation import label_masks


def planes(array):
    """Images [... h w 3] as a batch of [3 h w]."""
    found = torch.from_numpy(np.ascontiguousarray(array))
    return found.flatten(0, -4).permute(0, 3, 1, 2)


def same_labels(golden, name, got):
    """Check that all labels but a thousandth are equal."""
    want, got = golden[name], np.asarray(got)
    golden.check(name, np.where((want != got).mean() > 1e-3, got, want))


@pytest.mark.golden("vidseg_diffmap")
def test_fusion(golden):
    positive, negative = planes(golden["in_pos"]), planes(golden["in_neg"])
    values, (side, width) = golden["in_labels"].tolist(), golden["param_blur"].tolist()
    coarse = torch.from_numpy(golden["in_coarse"])
    masks = label_masks(coarse, values).flatten(0, 1)
    shape = golden["in_pos"].shape[:2]
    size = golden["in_pos"].shape[2:4]
    strength = golden.scalar("param_filter_s")
    golden.check("out_gauss_kernel", gaussian_kernel(int(side), width), atol=1e-6)
    weights = mask_weights(masks, size).unflatten(0, shape)
    golden.check("out_mask_lanczos", weights, atol=1)

    def labels(maps, share):
        return fuse(filter_maps(maps, masks, strength=share).unflatten(0, shape), values)

    how = {"side": int(side), "width": width}
    maps = difference_maps(positive, negative, **how)
    golden.check("out_diff", maps.unflatten(0, shape), atol=1e-3)
    for name, share in (("seg", strength), ("seg_nofilter", None), ("seg_s0", 0.0)):
        same_labels(golden, f"out_{name}", labels(maps, share))

    legacy = difference_maps(positive, negative, **how, compat="reference")
    golden.check("out_legacy_diff", legacy.unflatten(0, shape), atol=1e-3)
    golden.check("out_legacy_L", legacy.to(torch.uint8).unflatten(0, shape), atol=1)
    golden.check("out_legacy_jpeg", as_stored(legacy).unflatten(0, shape), atol=3)
    read = torch.from_numpy(golden["out_legacy_jpeg"]).float().flatten(0, 1)
    golden.check("out_legacy_seg", labels(read, strength))
    golden.check("out_legacy_seg_nofilter", labels(read, None))


@pytest.mark.golden("vidseg_diffmap")
def test_images(golden):
    decoded = planes(golden["in_decoded"][None])
    size = golden["out_decoded_resized"].shape[:2]
    same = golden["in_decoded"].shape[:2]
    for name, hw in (("out_decoded_u8", same), ("out_decoded_resized", size)):
        golden.check(name, to_images(decoded, hw)[0].permute(1, 2, 0), atol=hw != same)
