"""The metrics against the references' own numbers."""

import numpy as np
import pytest

from diffuseg.eval.hungarian import SegmentCounts, assign
from diffuseg.eval.metrics import ConfusionMatrix
from diffuseg.eval.regions import mean_regions, score_regions


@pytest.mark.golden("metrics_miou")
def test_confusion_matrix(golden):
    truth, prediction = golden["in_gt"], golden["in_pred"]
    k, ignore = golden.scalar("param_num_classes"), golden.scalar("param_ignore")
    parts = []
    for g, p in zip(truth, prediction, strict=True):
        part = ConfusionMatrix(k, ignore=ignore)
        part.update(g, p)
        parts.append(part)
    half = len(parts) // 2
    matrix = sum(parts[1:half], parts[0]) + sum(parts[half + 1 :], parts[half])

    golden.check("out_confusion", matrix.counts)
    golden.check("out_iou", matrix.iou(), atol=1e-9)
    golden.check("out_pixel_accuracy", matrix.accuracy(), atol=1e-9)
    golden.check("out_mean_accuracy", matrix.mean_accuracy(), atol=1e-9)
    golden.check("out_miou_gt_present", matrix.miou("gt_present"), atol=1e-9)
    golden.check("out_miou_vspw", matrix.miou("gt_present"), atol=1e-9)
    golden.check("out_miou_union_present", matrix.miou("union_present"), atol=1e-9)
    golden.check("out_iou_eps", matrix.iou_eps(), atol=1e-9)
    golden.check("out_miou_all_eps", matrix.miou("all_eps"), atol=1e-9)
    golden.check("out_fwiou_vspw", matrix.fwiou(), atol=1e-9)
    golden.check(
        "out_per_image_miou_gt_present", [part.miou("gt_present") for part in parts], atol=1e-9
    )
    golden.check(
        "out_miou_foreground_gt_present",
        matrix.miou("gt_present", classes=range(1, k)),
        atol=1e-9,
    )
    assert matrix.n_images == len(truth)
    assert matrix.n_pixels == np.count_nonzero((truth != ignore) & (truth < k))


@pytest.mark.golden("metrics_hungarian")
def test_matching(golden):
    k = golden.scalar("param_num_classes")
    labels, segments = golden["in_label"], golden["in_pred"]
    parts = []
    for label, segment in zip(labels, segments, strict=True):
        part = SegmentCounts(k)
        part.update(label, segment)
        parts.append(part)
    for name in ("tp", "fp", "fn"):
        golden.check(f"out_per_image_{name}", [getattr(one.image, name) for one in parts])
    whole = sum(parts[1:], parts[0])
    for name in ("tp", "fp", "fn"):
        golden.check(f"out_{name}", getattr(whole.image, name))
    golden.check("out_labelled", whole.n_pixels)
    golden.check("out_iou", whole.iou(), atol=1e-9)
    golden.check("out_acc", whole.accuracy(), atol=1e-9)
    golden.check("out_miou", whole.miou(), atol=1e-9)

    clusters = SegmentCounts(k)
    for label, segment in zip(labels, golden["in_pred_global"], strict=True):
        clusters.update(label, segment)
    golden.check("out_global_hist", clusters.table)
    cluster_to_class = np.argsort(assign(clusters.table, np.arange(k))[1])
    golden.check("out_global_cluster_to_class", cluster_to_class)
    # The reference computed these two in float32.
    golden.check("out_global_miou_percent", 100 * clusters.dataset.miou(), atol=1e-5)
    golden.check("out_global_acc_percent", 100 * clusters.dataset.accuracy(), atol=1e-5)


@pytest.mark.golden("metrics_regions")
def test_regions(golden):
    scores = [
        score_regions(prediction, list(people))
        for prediction, people in zip(golden["in_pred"], golden["in_gt"], strict=True)
    ]
    golden.check("out_covering", [one.covering for one in scores], atol=1e-9)
    golden.check("out_rand", [one.rand for one in scores], atol=1e-9)
    golden.check("out_voi_log2", [one.voi for one in scores], atol=1e-9)
    mean = mean_regions(scores)
    golden.check("out_mean", [mean[one] for one in ("covering", "rand", "voi")], atol=1e-9)
