"""OVDiff's first stage against the outputs of the reference functions."""

import re

import numpy as np
import pytest
import torch

from diffuseg.methods.ovdiff import OVDiff, foreground, maskcut
from diffuseg.methods.ovdiff.attribution import AttributionSum, normalise_attribution, stretch

CLOSE = 1e-5


def tensor(array):
    return torch.from_numpy(np.ascontiguousarray(array)).float()


@pytest.mark.golden("ovdiff_attribution")
def test_attribution(golden):
    tokens = torch.from_numpy(golden["param_token_indices"]).long()
    heads, sides = golden["param_heads"].tolist(), golden["param_sides"].tolist()
    batch = golden.scalar("param_batch")
    total = AttributionSum()
    found = [re.fullmatch(r"in_attn_s(\d+)_l(\d+)", name) for name in golden.arrays]
    for step, layer in sorted((int(one[1]), int(one[2])) for one in found if one):
        maps = tensor(golden[f"in_attn_s{step}_l{layer}"]).unflatten(0, (-1, heads[layer]))
        assert len(maps) == 2 * batch
        total.add(maps[batch:][..., tokens], (sides[layer], sides[layer]))
    golden.check("out_heatmap", total.mean(), atol=CLOSE)
    golden.check("out_norm", stretch(total.mean()), atol=CLOSE)
    enlarged = normalise_attribution(total.mean(), golden["out_norm_up"].shape[-1])
    golden.check("out_norm_up", enlarged, atol=CLOSE)


@pytest.mark.golden("ovdiff_promptable_masks")
def test_masks(golden):
    heat, scale = tensor(golden["in_heatmap"]), golden.scalar("param_proposal_scale")
    held = golden["in_proposals"].astype(bool).repeat(scale, -2).repeat(scale, -1)
    size = held.shape[-1]
    counts = golden["param_count"].tolist()
    proposals = [
        torch.from_numpy(one[1:count].copy()) for one, count in zip(held, counts, strict=True)
    ]
    pixels = normalise_attribution(heat, size)
    golden.check("out_attr_up_sample", pixels[:, 3::16, 5::16], atol=CLOSE)
    means = np.full(golden["out_mean_attr"].shape, np.nan)
    for row, shown, masks in zip(means, pixels, proposals, strict=True):
        weights = foreground.mean_attribution(shown, foreground.with_complement(masks))
        row[: len(weights)] = weights
    golden.check("out_mean_attr", means, atol=CLOSE)

    found, other = ungated(pixels, proposals)
    golden.check("out_fg_bits", pack(found))
    golden.check("out_bg_bits", pack(other))
    gated = [
        foreground.gate_background(mask, shown, erode=False)
        for mask, shown in zip(other, pixels, strict=True)
    ]
    golden.check("out_bg_gated_bits", pack(torch.stack(gated)))
    found, other = foreground.split_foreground(
        heat, proposals, OVDiff(profile="release"), size=size
    )
    golden.check("out_fg_bits", pack(found))
    golden.check("out_bg_eroded_bits", pack(other))
    same_without_defects(golden, heat, proposals, size)

    thresholds = foreground.otsu_thresholds(stretch(heat))
    golden.check("out_otsu_thresholds", thresholds or foreground.FIXED, atol=CLOSE)
    settings = OVDiff(proposals="none", fallback="otsu")
    found, other = foreground.split_foreground(heat, [], settings, size=size)
    golden.check("out_otsu_fg_bits", pack(found))
    golden.check("out_otsu_bg_bits", pack(other))


def ungated(pixels, proposals):
    """Foreground and background by the release's ranks; where nothing is proposed, by numbers."""
    pairs = []
    for shown, masks in zip(pixels, proposals, strict=True):
        every = foreground.with_complement(masks)
        ranks = foreground.rank_pixels_released(every, foreground.mean_attribution(shown, every))
        pair = (ranks == 0, ranks == ranks.max())
        pairs.append(pair if len(masks) else (shown > 0.5, shown < 0.2))
    return tuple(map(torch.stack, zip(*pairs, strict=True)))


def same_without_defects(golden, heat, proposals, size):
    """Where no proposal is empty and no weight zero, what was corrected does not show."""
    means = golden["out_mean_attr"]
    proposed = [float(np.nan_to_num(row, nan=1).min()) > 0 for row in means]
    whole = [len(one) == 0 or not one.any(0).all() for one in proposals]
    if all(proposed) and all(whole):
        found, other = foreground.split_foreground(heat, proposals, OVDiff(), size=size)
        golden.check("out_fg_bits", pack(found))
        golden.check("out_bg_eroded_bits", pack(other))


def pack(masks):
    return np.packbits(masks.numpy(), axis=-1)


@pytest.mark.golden("ovdiff_maskcut")
def test_maskcut(golden):
    features, threshold = tensor(golden["in_features"]), golden.scalar("param_tau")
    weights = maskcut.affinity(features, threshold)
    golden.check("out_affinity_first", weights == 1)
    vector = maskcut.second_vector(weights)
    assert vector is not None
    vector = vector / np.linalg.norm(vector) * np.sign(vector @ golden["out_eigvec_first"])
    golden.check("out_eigvec_first", vector, atol=1e-4)
    masks = maskcut.cut_cells(features, threshold=threshold, number=golden.scalar("param_n"))
    golden.check("out_masks", masks)
