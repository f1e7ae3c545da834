"""OVDiff's prototypes and matching against the outputs of the authors' own functions."""

import re

import numpy as np
import pytest
import torch

from diffuseg.methods.ovdiff import explaining, matching, prefilter, prototypes, windows
from diffuseg.methods.ovdiff import features as features_of
from diffuseg.methods.pamr import pamr

CLOSE = 1e-5


def tensor(array):
    return torch.from_numpy(np.ascontiguousarray(array)).float()


def mask(array):
    return torch.from_numpy(array.astype(bool))


def cases(golden, prefix):
    """Numbers of the arrays called PREFIX followed by one."""
    found = (re.fullmatch(rf"{prefix}(\d+)", name) for name in golden.arrays)
    return sorted(int(match[1]) for match in found if match)


@pytest.mark.golden("ovdiff_sd_features")
def test_features(golden):
    sides, size = golden["param_sides"].tolist(), golden.scalar("param_feat_size")
    used = [one for one in cases(golden, "in_query_l") if golden["param_selected"][one]]
    queries = [tensor(golden[f"in_query_l{one}"]) for one in used]
    joined = features_of.join_queries(queries, [(sides[one],) * 2 for one in used], size)[0]
    golden.check("out_features", joined, atol=CLOSE)
    unit = torch.nn.functional.normalize(joined, dim=-1, eps=1e-6)
    golden.check("out_features_norm", unit, atol=CLOSE)


@pytest.mark.golden("ovdiff_support_prototypes")
def test_prototypes(golden):
    features = tensor(golden["in_feats"])
    fg, bg = mask(golden["in_fg"]), mask(golden["in_bg"])
    small = {"fg": prototypes.shrink_masks(fg, features.shape[1:3])}
    small["bg"] = prototypes.shrink_masks(bg, features.shape[1:3])
    kept = golden["out_kept_images"]
    for sign in ("fg", "bg"):
        golden.check(f"out_{sign}_small", small[sign])
    golden.check("out_kept_images", small["fg"].flatten(1).any(1).nonzero()[:, 0])

    starts = (tensor(golden["in_kmeans_init_fg"]), tensor(golden["in_kmeans_init_bg"]))
    pooled = prototypes.pool_prototypes(
        features, fg, bg, parts=golden.scalar("param_k"), init=starts
    )
    for sign, found, start in (
        ("fg", pooled.positive, starts[0]),
        ("bg", pooled.negative, starts[1]),
    ):
        instances = np.full_like(golden[f"out_instance_{sign}"], np.nan)
        of_picture = found.kinds == prototypes.INSTANCE
        rows = np.searchsorted(kept, found.sources[of_picture].numpy())
        instances[rows] = found.vectors[of_picture]
        golden.check(f"out_instance_{sign}", instances, atol=CLOSE)
        golden.check(
            f"out_class_{sign}", found.vectors[found.kinds == prototypes.CLASS][0], atol=CLOSE
        )
        golden.check(f"out_part_{sign}", found.vectors[found.kinds == prototypes.PART], atol=1e-4)
        samples = features[kept][small[sign][kept]]
        labels = prototypes.cluster(samples, len(start), init=start)[1]
        golden.check(f"out_labels_{sign}", labels)
    # A cell that both masks touch is the foreground's.
    inside = pooled.cells[small["fg"]].tolist()
    assert inside == golden["out_labels_fg"].tolist()
    only = small["bg"][kept] & ~small["fg"][kept]
    wanted = golden["out_labels_bg"][only[small["bg"][kept]].numpy()]
    assert (-2 - pooled.cells[kept][only]).tolist() == wanted.tolist()


def class_entries(golden, signs=("in_fg_", "in_bg_")):
    """One entry a class, whose rows are known again by `sources`."""
    return [
        prototypes.ClassPrototypes(
            positive=rows_of(golden[f"{signs[0]}{number}"]),
            negative=rows_of(golden[f"{signs[1]}{number}"]),
            cells=torch.full((1, 1, 1), -1, dtype=torch.int16),
        )
        for number in cases(golden, signs[0])
    ]


def rows_of(array):
    return prototypes.Prototypes(
        vectors=tensor(array),
        kinds=torch.full((len(array),), prototypes.PART),
        sources=torch.arange(len(array)),
    )


def same_labels(golden, name, got):
    """Check that all labels but a thousandth are equal."""
    want, got = golden[name], np.asarray(got)
    golden.check(name, np.where((want != got).mean() > 1e-3, got, want))


@pytest.mark.golden("ovdiff_match_background")
def test_match(golden):
    entries = class_entries(golden)
    vocabulary = matching.assemble(
        entries,
        [bool(one) for one in golden["param_stuff"]],
        stuff_threshold=golden.scalar("param_stuff_threshold"),
    )
    negative, owners = vocabulary.negative, vocabulary.owners
    for number in range(len(entries)):
        kept = np.zeros_like(golden[f"out_bg_keep_{number + 1}"])
        kept[vocabulary.sources[negative & (owners == number)].numpy()] = 1
        golden.check(f"out_bg_keep_{number + 1}", kept)

    selected = (golden["param_selected"] - 1).tolist()
    features = tensor(golden["in_features"])[None]
    low = matching.similarities(features, vocabulary, selected=selected)[0]
    golden.check("out_sim_low", low, atol=2e-5)
    hw = tuple(golden["param_window_hw"].tolist())
    merge = windows.Merge(len(low), hw)
    merge.add(low, (0, 0, *hw))
    golden.check("out_sim", merge.mean(), atol=2e-5)
    size = tuple(golden["param_gt_hw"].tolist())
    same_labels(golden, "out_labels", matching.label_scores(merge.mean(), size=size))


@pytest.mark.golden("ovdiff_sliding_merge")
def test_windows(golden):
    hw = tuple(golden["param_image_hw"].tolist())
    steps = zip(golden["param_crops"].tolist(), golden["param_strides"].tolist(), strict=True)
    boxes = [box for crop, stride in steps for box in windows.window_boxes(hw, crop, stride)]
    boxes.append((0, 0, *hw))
    golden.check("out_windows", boxes)

    stuff = [bool(one) for one in golden["param_stuff"]]
    selected = (golden["param_selected"] - 1).tolist()
    extractors = range(golden.scalar("param_n_extractors"))
    whole, merge = (windows.Merge(1 + rows, hw) for rows in (len(stuff), len(selected)))
    for one in extractors:
        entries = class_entries(golden, (f"in_e{one}_fg_", f"in_e{one}_bg_"))
        vocabulary = matching.assemble(entries, stuff)
        for number, box in enumerate(boxes):
            features = tensor(golden[f"in_e{one}_win{number}"])[None]
            found = matching.similarities(features, vocabulary, selected=selected)[0]
            whole.add(found, box)
            merge.add(matching.match(features, vocabulary, selected=selected)[0], box)
    golden.check("out_counts", whole.counts // len(extractors))
    golden.check("out_sim", whole.mean(), atol=2e-5)
    size = tuple(golden["param_gt_hw"].tolist())
    same_labels(golden, "out_labels", matching.label_scores(whole.mean(), size=size))
    few = matching.label_scores(merge.mean(), classes=selected, size=size)
    same_labels(golden, "out_labels", few)


@pytest.mark.golden("ovdiff_prefilter")
def test_prefilter(golden):
    for case in cases(golden, "in_image_"):
        image, names = tensor(golden[f"in_image_{case}"]), tensor(golden[f"in_class_text_{case}"])
        most = golden.scalar(f"param_eta_{case}")
        shares = prefilter.name_shares(image, names)
        golden.check(f"out_probs_{case}", shares, atol=CLOSE)
        golden.check(f"out_stage1_{case}", prefilter.enough(shares))
        candidates = prefilter.first_stage(image, names, "release", most)
        wide = golden[f"out_candidates_{case}"].size
        golden.check(f"out_candidates_{case}", candidates + [-1] * (wide - len(candidates)))

        texts, members = golden[f"in_combo_text_{case}"], golden[f"in_combo_members_{case}"]
        asked = []

        def texts_of(subsets, texts=texts, members=members, asked=asked):
            asked.extend(subsets)
            named = [tuple(sorted(one)) for one in subsets]
            known = [tuple(np.flatnonzero(row).tolist()) for row in members]
            return tensor(texts[[known.index(one) for one in named]])

        best = prefilter.best_subset(image, texts_of, candidates)
        rows = [np.isin(np.arange(len(names)), one) for one in asked]
        assert np.array_equal(rows, members.astype(bool))
        scores = prefilter.cosines(image, tensor(texts))
        golden.check(f"out_combo_scores_{case}", scores, atol=CLOSE)
        golden.check(f"out_final_{case}", np.isin(np.arange(len(names)), best))


@pytest.mark.golden("ovdiff_pamr")
def test_pamr(golden):
    refined = pamr(
        tensor(golden["in_sim"]),
        tensor(golden["in_image"]),
        iterations=golden.scalar("param_iters"),
        dilations=golden["param_dilations"].tolist(),
    )
    golden.check("out_sim", refined, atol=CLOSE)


@pytest.mark.golden("ovdiff_explain")
def test_winners(golden):
    owner = golden["in_owner"]
    classes = golden["out_class_sim"].shape[-1]
    rows = rows_of(golden["in_prototypes"])
    none = rows_of(np.zeros((0, rows.vectors.shape[1])))
    entries = []
    for number in range(classes):
        mine = torch.from_numpy(owner == number)
        held = prototypes.Prototypes(
            vectors=rows.vectors[mine], kinds=rows.kinds[mine], sources=rows.sources[mine]
        )
        cells = torch.full((1, 1, 1), -1, dtype=torch.int16)
        entries.append(prototypes.ClassPrototypes(positive=held, negative=none, cells=cells))
    vocabulary = matching.assemble(entries, [False] * classes)
    features = tensor(golden["in_features"])
    found = matching.match(features[None], vocabulary, selected=range(classes))[0, 1:]
    golden.check("out_class_sim", found.permute(1, 2, 0), atol=CLOSE)
    same_labels(golden, "out_labels", found.argmax(0))
    labels = torch.from_numpy(golden["out_labels"].astype(np.int64))
    won = explaining.winners(features, vocabulary, selected=range(classes), labels=1 + labels)
    golden.check("out_winner", vocabulary.sources[won.rows])
    golden.check("out_winner_sim", won.similarity, atol=CLOSE)
