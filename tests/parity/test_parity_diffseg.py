"""DiffSeg against the outputs of the authors' own functions."""

import re

import numpy as np
import pytest
import torch

from diffuseg.eval import coarse27
from diffuseg.eval.hungarian import ImageMatching, histogram
from diffuseg.methods import merging, naming
from diffuseg.methods.attend import best_class

SCALE = 8  # pixels a latent cell: the labels' side over the attention's, given by the VAE


def tensor(array):
    return torch.from_numpy(np.ascontiguousarray(array)).float()


def by_side(golden, prefix):
    """Arrays called PREFIX_SIDE, finest first, and their grids."""
    found = {
        int(name.removeprefix(prefix)): array
        for name, array in golden.arrays.items()
        if re.fullmatch(rf"{prefix}\d+", name)
    }
    sides = sorted(found, reverse=True)
    return [tensor(found[side]) for side in sides], [(side, side) for side in sides]


def fused_of(golden):
    """The tensor [1, n, n], and its grid."""
    whole = tensor(golden["in_aggregate"])
    hw = tuple(whole.shape[:2])
    return whole.flatten(2).flatten(0, 1)[None], hw


def anchors_of(golden, hw):
    points = merging.anchor_grid(hw, golden.scalar("param_num_points"), "reference")
    return torch.from_numpy(points[:, 0] * hw[1] + points[:, 1])


def labels_of(maps, hw, size=None):
    size = size or (SCALE * hw[0], SCALE * hw[1])
    return best_class(maps.unflatten(1, hw), size)[0]


def check_labels(golden, name, got, sure):
    """Compare labels where the winner is clear by more than rounding."""
    want = golden[name].astype(np.int64)
    golden.check(name, np.where(sure, got, want))


@pytest.mark.golden("diffseg_grid")
def test_grid(golden):
    for name in golden.arrays:
        side, n = map(int, re.fullmatch(r"out_grid_r(\d+)_m(\d+)", name).groups())
        golden.check(name, merging.anchor_grid((side, side), n, "reference"))


@pytest.mark.golden("diffseg_aggregate")
def test_aggregate(golden):
    heads, grids = by_side(golden, "in_attn_")
    means = [maps.mean(0, keepdim=True) for maps in heads]
    shape = golden["out_aggregate"].shape
    given = golden["param_weight_ratio"].tolist()
    golden.check("out_aggregate", merging.aggregate(means, grids, given).view(shape), atol=1e-6)
    if np.allclose(given, merging.resolution_weights(grids), atol=1e-6):
        golden.check("out_aggregate", merging.aggregate(means, grids).view(shape), atol=1e-6)


@pytest.mark.golden("diffseg_merge")
def test_merge(golden):
    fused, hw = fused_of(golden)
    anchors, taus = anchors_of(golden, hw), golden["param_tau"].tolist()
    apart = merging.anchor_distances(fused, anchors)
    golden.check("out_kl_anchor_pixel", apart[0], atol=5e-5)
    golden.check("out_match0", apart[0] < taus[0])
    for last in range(len(taus)):
        [found] = merging.merge(fused, anchors, taus[: last + 1])
        golden.check(f"out_maps_after_{last}", found.maps.unflatten(1, hw), atol=1e-6)
    [found] = merging.merge(fused, anchors, taus)
    golden.check("out_counts", found.counts)
    size = golden["out_labels"].shape
    sure = golden["out_label_rel_margin"] > 1e-5
    check_labels(golden, "out_labels", labels_of(found.maps, hw, size), sure)


@pytest.mark.golden("diffseg_refine")
def test_refine(golden):
    fused, hw = fused_of(golden)
    merged = tensor(golden["in_maps_merged"]).flatten(1)
    index, maps = merging.refine_maps(fused[0], merged)
    golden.check("out_cluster_index", index.unflatten(0, hw))
    golden.check("out_cluster_maps", maps.unflatten(1, hw), atol=1e-6)
    sure = golden["out_label_rel_margin"] > 1e-5
    check_labels(golden, "out_labels", labels_of(maps, hw, golden["out_labels"].shape), sure)
    if "param_tau" in golden:
        taus = golden["param_tau"].tolist()
        [found] = merging.merge(fused, anchors_of(golden, hw), taus)
        golden.check("in_maps_merged", found.maps.unflatten(1, hw), atol=1e-6)


@pytest.mark.golden("diffseg_fp16_trap")
def test_half_precision_is_not_used_unless_asked_for(golden):
    fused, hw = fused_of(golden)
    anchors, taus = anchors_of(golden, hw), golden["param_tau"].tolist()
    [found] = merging.merge(fused, anchors, taus)
    golden.check("out_fp32_counts", found.counts)
    labels = labels_of(found.maps, hw, golden["out_fp32_labels"].shape)
    assert (labels == golden["out_fp32_labels"]).mean() >= 0.999

    half = merging.anchor_distances(fused, anchors, precision="float16")[0]
    golden.check("out_fp16_anchor_is_nan", half.isnan().all(1))
    [found] = merging.merge(fused, anchors, taus, precision="float16")
    assert found.maps.isfinite().all()


@pytest.mark.golden("diffseg_full64")
def test_full_size(golden):
    features, grids = by_side(golden, "in_feat_")
    attention = (torch.softmax(one @ one.T, dim=-1)[None] for one in features)
    fused = merging.aggregate(attention, grids)
    hw = grids[0]
    if hw == (64, 64):  # where the rows given were taken
        rows = [fused[0, y * hw[1] + x] for y, x in ((0, 0), (5, 40), (31, 32), (63, 63))]
        golden.check("out_aggregate_rows", torch.stack(rows).unflatten(1, hw), atol=1e-6)
    taus = golden["param_tau"].tolist()
    [found] = merging.merge(fused, anchors_of(golden, hw), taus)
    golden.check("out_counts", found.counts)
    golden.check("out_num_maps", len(found.maps))
    want = golden["out_labels"]
    same = labels_of(found.maps, hw, want.shape) == want
    tight = np.unpackbits(golden["out_tight"])[: want.size].reshape(want.shape).astype(bool)
    assert same.mean() >= 0.999
    assert same[~tight].mean() >= 0.9999


@pytest.mark.golden("diffseg_semantic")
def test_semantic(golden):
    heads, grids = by_side(golden, "in_cross_")
    side = round(heads[0].shape[1] ** 0.5)
    grids = [(round(one.shape[1] ** 0.5),) * 2 for one in heads]
    assert grids[0] == (side, side)
    shape = golden["out_aggregate_cross"].shape
    given = golden["param_weight_ratio"].tolist()
    maps = naming.aggregate_cross([one.mean(0) for one in heads], grids, shape[:2], weights=given)
    golden.check("out_aggregate_cross", maps.permute(1, 2, 0), atol=2e-6)

    places = (golden["param_word_positions"] + 1).tolist()  # the start token comes first
    few = naming.aggregate_cross(
        [one.mean(0) for one in heads], grids, shape[:2], weights=given, tokens=places
    )
    assert torch.equal(few, maps[places])
    labels = torch.from_numpy(golden["in_pred"].astype(np.int64))
    words = golden["param_words"]
    for norm, voting, scores, index in (
        ("l2", "mean", "out_score_mean_l2", "out_index_l2"),
        ("sum", "sum", "out_score_l1", "out_index_l1"),
    ):
        nouns = naming.noun_maps(maps, [(one,) for one in places], norm)
        ids, found, best = naming.vote(labels, nouns, voting)
        golden.check("out_mask_ids", ids)
        golden.check(scores, found, atol=1e-6)
        golden.check(index, best)
    nouns = naming.noun_maps(maps, [(one,) for one in places])
    for voting in ("mean", "majority"):
        _, _, best = naming.vote(labels, nouns, voting)
        assert words[best.numpy()].tolist() == golden[f"out_label_{voting}"].tolist()


@pytest.mark.golden("diffseg_eval")
def test_eval(golden):
    k = golden.scalar("param_n_class")
    parts = []
    for truth, prediction in zip(golden["in_label"], golden["in_pred"], strict=True):
        parts.append(ImageMatching(k))
        parts[-1].update(truth, prediction)
    for name in ("tp", "fp", "fn"):
        golden.check(f"out_{name}_per_image", [getattr(part, name) for part in parts])
    total = sum(parts[1:], parts[0])
    for name in ("tp", "fp", "fn"):
        golden.check(f"out_{name}", getattr(total, name))
    golden.check("out_all", total.n_pixels)
    golden.check("out_iou", total.iou().astype(np.float32))
    golden.check("out_acc_f64", total.accuracy(), atol=1e-12)
    golden.check("out_miou_f64", total.miou(), atol=1e-12)
    golden.check("out_hist_image0", histogram(golden["in_label"][0], golden["in_pred"][0], k))


@pytest.mark.golden("diffseg_preprocess")
def test_preprocess(golden):
    size = golden.scalar("param_resolution")
    pixels = coarse27.square_pixels(golden["in_image"], size)
    golden.check("out_image", pixels, atol=1e-3)
    golden.check("out_image_scaled", pixels / 127.5 - 1, atol=1e-5)
    labels = coarse27.square_labels(golden["in_label"], size)
    golden.check("out_label", labels)
    golden.check("out_label_coarse", coarse27.cityscapes27_labels(labels))


@pytest.mark.golden("diffseg_label_sets")
def test_label_sets(golden):
    fine = np.arange(len(golden["out_coco_fine_to_coarse"]))
    golden.check("out_coco_fine_to_coarse", coarse27.coco_stuff27_labels(fine))
    golden.check("out_coco_val_ids", coarse27.coco_stuff27_images())
    ids = np.arange(len(golden["out_cityscapes_id_to_class"]))
    golden.check("out_cityscapes_id_to_class", coarse27.cityscapes27_labels(ids))
    assert tuple(golden["out_coco_coarse_names"].tolist()) == coarse27.COCO_STUFF27
