"""VidSeg's scene context and its refinement against the outputs of the authors' own functions."""

import re

import numpy as np
import pytest
import torch

from diffuseg.methods.vidseg.batching import label_batch, start_context
from diffuseg.methods.vidseg.context import (
    ContextModel,
    cluster_cells,
    name_clusters,
    shrink_labels,
)
from diffuseg.methods.vidseg.correspondence import refine_labels, track
from diffuseg.methods.vidseg.features import aggregate_queries
from diffuseg.methods.vidseg.settings import VidSeg


def tensor(array):
    return torch.from_numpy(np.ascontiguousarray(array)).float()


def integers(array):
    return torch.from_numpy(array.astype(np.int64))


def conditioned(array):
    """The half of a block's queries that is with the prompt."""
    return tensor(array[len(array) // 2 :])


def renumbered(numbers):
    """Clusters in the order they are met: equal for equal partitions."""
    flat = np.asarray(numbers).ravel()
    _, first, inverse = np.unique(flat, return_index=True, return_inverse=True)
    return first.argsort().argsort()[inverse]


@pytest.mark.golden("vidseg_scene_context")
def test_scene_context(golden):
    hw = tuple(golden["param_hw"].tolist())
    mask = integers(golden["in_gt_anchor"])
    settings = VidSeg(
        clusters=golden.scalar("param_num_clusters"),
        neighbours=golden.scalar("param_knn"),
        batch=golden.scalar("param_frames"),
        compat="reference",
    ).ready("sd")
    model = None
    numbers = sorted({int(one[1]) for one in map(re.compile(r"in_b(\d+)_").match, golden.arrays)
                      if one})  # fmt: skip
    for number in numbers:
        names = [one for one in golden.arrays if re.fullmatch(rf"in_b{number}_block\d+_q", one)]
        features = aggregate_queries([conditioned(golden[one]) for one in names])
        golden.check(f"out_b{number}_features", features.flatten(0, 1), atol=1e-6)
        if model is None:
            found = cluster_cells(features, settings.clusters)
            of_anchor = golden["out_b0_kmeans_anchor"]
            same = np.array_equal(renumbered(found.numbers[0]), renumbered(of_anchor))
            assert same, "another partition"
            names = name_clusters(
                found.numbers[0], shrink_labels(mask, hw).flatten(), settings.clusters
            )
            anchor = names[found.numbers[0]].unflatten(0, hw)
            golden.check("out_b0_anchor_labels", anchor)
            golden.check("out_labels", anchor.unique())
            model = start_context(settings, features, hw, mask=mask)
        golden.check(f"out_b{number}_knn", model.predict(features).unflatten(1, hw))
        tracked = conditioned(golden[f"in_b{number}_block{settings.track_block}_q"])
        tracks = track(tracked, hw)
        golden.check(f"out_b{number}_track_h", tracks.rows)
        golden.check(f"out_b{number}_track_w", tracks.columns)
        found = label_batch(settings, model, features, hw, tracked=tracked)
        labels, model = found.labels, found.model
        golden.check(f"out_b{number}_cbr", labels)


@pytest.mark.golden("vidseg_cbr")
def test_refinement(golden):
    hw = tuple(golden["param_hw"].tolist())
    jump, labels = golden.scalar("param_threshold"), integers(golden["in_labels"])
    features = conditioned(golden["in_features"])
    with_first, plain = (track(features, hw, aux=aux) for aux in (True, False))
    for name, tracks in (("track", with_first), ("track_noaux", plain)):
        golden.check(f"out_{name}_h", tracks.rows)
        golden.check(f"out_{name}_w", tracks.columns)
    for name, signed in (("signed", True), ("abs", False)):
        golden.check(f"out_keep_{name}", with_first.steady(jump, signed=signed))
        refined = refine_labels(labels, with_first, jump=jump, signed=signed)
        golden.check(f"out_refined_{name}", refined)
    refined = refine_labels(labels, plain, jump=jump, signed=True)
    golden.check("out_refined_noaux_signed", refined)


@pytest.mark.golden("vidseg_cbr")
def test_neighbours(golden):
    # The votes of a file without a number of neighbours are of the number the method has.
    count = golden.scalar("param_knn") if "param_knn" in golden else ContextModel().neighbours
    model = ContextModel(neighbours=count)
    model = model.fit(tensor(golden["in_knn_ref"]), integers(golden["in_knn_ref_labels"]))
    golden.check("out_knn_pred", model.predict(tensor(golden["in_knn_query"])[None])[0])
