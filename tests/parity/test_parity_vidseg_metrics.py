"""Video metrics against the references' own numbers."""

import numpy as np
import pytest

from diffuseg.eval.metrics import ConfusionMatrix
from diffuseg.eval.video_metrics import VideoMetrics
from diffuseg.eval.video_objects import (
    boundary,
    boundary_f,
    jaccard,
    object_statistics,
    score_objects,
    score_proposals,
)


def videos(golden, truth, prediction):
    n = 0
    while f"{truth}_{n}" in golden:
        yield (
            n,
            golden[f"{truth}_{n}"].astype(np.int64),
            golden[f"{prediction}_{n}"].astype(np.int64),
        )
        n += 1


def shifted(raw):
    return np.where((raw == 0) | (raw == 255), 255, raw - 1)


@pytest.mark.golden("vidseg_metrics")
def test_vspw(golden):
    k = golden["out_shifted_iou_per_class"].size
    metrics = VideoMetrics(k, undecided=255)
    raw = ConfusionMatrix(k, undecided=255)
    for i, truth, prediction in videos(golden, "in_gt", "in_pred"):
        metrics.update(str(i), zip(shifted(truth), shifted(prediction), strict=True))
        raw.update(truth, np.where(prediction < k, prediction, 255))
    for name, matrix in (("raw", raw), ("shifted", metrics.matrix)):
        golden.check(f"out_{name}_iou_per_class", matrix.iou(), atol=1e-6)
        golden.check(f"out_{name}_miou", matrix.miou(), atol=1e-6)
        golden.check(f"out_{name}_acc", matrix.accuracy(), atol=1e-6)
        golden.check(f"out_{name}_fwiou", matrix.fwiou(), atol=1e-6)


@pytest.mark.golden("vidseg_metrics")
def test_consistency_with_the_rule_for_each_length(golden):
    metrics = VideoMetrics(256, ignore=-1)
    names = []
    for i, truth, prediction in videos(golden, "in_gt", "in_pred"):
        metrics.update(str(i), zip(truth, prediction, strict=True))
        names.append(str(i))
    for n in (8, 16):
        golden.check(
            f"out_vc{n}", np.concatenate([metrics.windows(one, n) for one in names]), atol=1e-6
        )
        golden.check(f"out_mvc{n}", metrics.mvc(n), atol=1e-6)


@pytest.mark.golden("vidseg_metrics")
def test_objects(golden):
    truth, prediction = golden["in_vos_gt"] > 0, golden["in_vos_pred"] > 0
    bound = float(golden.scalar("param_bound_th"))
    pairs = [
        [(g, p) for g, p in zip(gs, ps, strict=True)]
        for gs, ps in zip(truth, prediction, strict=True)
    ]
    j = np.array([[jaccard(*pair) for pair in row] for row in pairs])
    f = np.array([[boundary_f(*pair, bound=bound) for pair in row] for row in pairs])
    golden.check("out_J", j, atol=1e-6)
    golden.check("out_F", f, atol=1e-6)
    golden.check("out_J_mean", j.mean(), atol=1e-6)
    golden.check("out_F_mean", f.mean(), atol=1e-6)


@pytest.mark.golden("metrics_mvc")
def test_consistency_with_the_rule_for_all_lengths(golden):
    k = golden.scalar("param_num_classes")
    metrics = VideoMetrics(k, short="longest")
    for i, raw, prediction in videos(golden, "in_raw", "in_pred"):
        metrics.update(str(i), zip(shifted(raw), prediction, strict=True))
        for n in (8, 16):
            if f"out_vc{n}_clips_{i}" in golden:
                golden.check(f"out_vc{n}_clips_{i}", metrics.windows(str(i), n), atol=1e-9)
            else:
                assert str(i) in metrics.left_out
    for n in (8, 16):
        golden.check(f"out_mvc{n}", metrics.mvc(n), atol=1e-9)
    golden.check("out_miou", metrics.miou(), atol=1e-9)
    golden.check("out_pixel_accuracy", metrics.matrix.accuracy(), atol=1e-9)


@pytest.mark.golden("metrics_davis")
def test_davis(golden):
    truth, prediction = golden["in_gt"], golden["in_pred"]
    n, bound = int(golden.scalar("param_num_objects")), float(golden.scalar("param_bound_th"))
    objects = range(1, n + 1)

    def pairs(a, b):
        return list(zip(a, b, strict=True))

    for i, mask in enumerate(truth):
        got = boundary(mask == 1)
        assert np.array_equal(got, golden["out_boundary_map_object1"][i])
    semi = score_objects(pairs(truth, prediction), objects=objects, bound=bound)
    every = score_objects(pairs(truth, prediction), objects=objects, ends="keep", bound=bound)
    merged = score_objects(
        pairs((truth > 0).astype(int), (prediction > 0).astype(int)), ends="keep", bound=bound
    )
    free = score_proposals(
        pairs(golden["in_gt_void"], golden["in_pred_unsup"]), void=golden["in_void"], bound=bound
    )
    for name in ("j", "f"):
        upper = name.upper()
        golden.check(f"out_{upper}_semi", getattr(semi, name), atol=1e-9)
        stats = object_statistics(getattr(semi, name))
        stacked = np.stack([stats[one] for one in ("mean", "recall", "decay")], axis=1)
        golden.check(f"out_{upper}_stats_semi", stacked, atol=1e-9)
        golden.check(f"out_{upper}_allframes", getattr(every, name), atol=1e-9)
        golden.check(f"out_{upper}_single_object", getattr(merged, name)[0], atol=1e-9)
        golden.check(f"out_{upper}_unsup", getattr(free, name), atol=1e-9)
    golden.check("out_JF_mean_semi", semi.j_and_f, atol=1e-9)
    golden.check("out_JF_mean_unsup", free.j_and_f, atol=1e-9)
