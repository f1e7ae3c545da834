"""iSeg against the outputs of the authors' own functions."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from diffuseg import ops
from diffuseg.backbones.text import reweight
from diffuseg.eval.metrics import ConfusionMatrix
from diffuseg.methods import iseg_maps, labelling, prototypes, refinement
from diffuseg.methods.dialects import Dialect, dialect_template
from diffuseg.methods.iseg_profiles import VOC_HEAD_COUNTS, VOC_HEADS
from diffuseg.prompts import build_prompts, parse_classes

CLOSE = 1e-4  # of the largest value
DIALECTS = {"voc2012": "voc", "voc_context": "context", "coco_object": "coco"}
SPECS = Path(__file__).resolve().parents[2] / ".." / "shared" / "specs"


def tensor(array):
    return torch.from_numpy(np.ascontiguousarray(array)).float()


def cases(golden, prefix):
    """Numbers of the arrays called PREFIX_NUMBER."""
    found = (re.fullmatch(rf"{prefix}_(\d+)", name) for name in golden.arrays)
    return sorted(int(match[1]) for match in found if match)


def close(golden, name, got):
    golden.check(name, got, atol=CLOSE * float(np.abs(golden[name]).max()))


def head_mean(q, k):
    """Mean over heads of softmax(q kT) [n, m]; the scale is in the factors."""
    return ops.attention_maps(tensor(q)[None], tensor(k)[None], scale=1.0)[0]


def stretched(maps, size):
    """Columns [n, k] as planes of `size`, each over [0, 1]."""
    side = round(len(maps) ** 0.5)
    return ops.minmax(ops.resize(maps.T.unflatten(1, (side, side))[None], size)[0])


@pytest.mark.golden("iseg_refine")  # and iseg_refine_small
def test_refine(golden):
    maps, size = tensor(golden["in_cross"]), golden.scalar("param_size")
    close(golden, "out_x0", refinement.minsum(maps))
    explicit = "in_attn_heads12" in golden
    for case in cases(golden, "out_map"):
        ent, times = float(golden["param_ent"][case]), int(golden["param_iter"][case])
        if explicit:
            attention = tensor(golden["in_attn_heads12"]).mean(0)
        else:
            attention = head_mean(golden["in_q"], golden["in_k"])
        attention = refinement.reduce_entropy(attention, ent=ent, inplace=True)
        if explicit:
            close(golden, f"out_P_{case}", attention)
        else:
            some = golden["param_rows"][: len(golden[f"out_prows_{case}"])].tolist()
            close(golden, f"out_prows_{case}", attention[some])
        found = refinement.refine(maps, attention, iterations=times)
        close(golden, f"out_map_{case}", stretched(found, (size, size)))


def same_partition(golden, name, got, share):
    """Check how many pixels have the label wanted; where numbers differ, the best renaming."""
    want, got = golden[name].ravel().astype(np.int64), np.asarray(got).ravel()
    names = np.zeros((want.max() + 1, got.max() + 1))
    np.add.at(names, (want, got), 1)
    equal = (want == got).mean()
    if want.max() != got.max():
        equal = names.max(0).sum() / want.size
    golden.check(name, np.full(golden[name].shape, -1) if equal < share else golden[name])


def share(golden, name, got, least):
    """Check that at least so many labels are equal."""
    want, got = golden[name], np.asarray(got)
    golden.check(name, np.where((want == got).mean() < least, got, want))


@pytest.mark.golden("iseg_cluster")
def test_clusters(golden):
    for case in cases(golden, "in_x"):
        planes = tensor(golden[f"in_x_{case}"])  # [t, h, w]
        hw = (planes.shape[1], planes.shape[2])
        pixels = planes.flatten(1).T.contiguous()
        count, rounds = (golden.scalar(f"param_{name}_{case}") for name in ("K", "stages"))
        grid = prototypes.prototype_grid(hw, count)
        golden.check(f"out_grid_{case}", grid)
        if f"out_kl_first_{case}" in golden:
            known = pixels.where(pixels != 0, 1e-6)
            apart = prototypes.half_distances(known[grid], known)
            golden.check(f"out_kl_first_{case}", apart, rtol=0.02, atol=1e-4)
        for precision, name, share in (
            ("float16", f"out_labels_{case}", 0.98),
            ("float32", f"out_fp32_labels_{case}", 0.99),
        ):
            labels = prototypes.cluster_pixels(
                pixels, hw, count=count, rounds=rounds, precision=precision
            )
            same_partition(golden, name, labels, share)


@pytest.mark.golden("iseg_label")
def test_label(golden):
    maps = tensor(golden["in_cam"])
    ids = np.append(0, golden["param_present"] + 1)  # labels of the whole data set
    for case, threshold in enumerate(golden["param_thr"].tolist()):
        labels, scores = labelling.label_planes(
            (labelling.stretch(one) for one in maps),
            background="threshold" if threshold else "square",
            threshold=threshold,
            keep=True,
        )
        golden.check(f"out_label_{case}", ids[labels])
        if f"out_scores_{case}" in golden:
            close(golden, f"out_scores_{case}", scores)


@pytest.mark.golden("iseg_unsup")
def test_unsupervised(golden):
    size = golden.scalar("param_size")
    seeds = torch.from_numpy(golden["in_seed"].astype(np.int64)).flatten()
    attention = head_mean(golden["in_q"], golden["in_k"])
    attention = refinement.reduce_entropy(attention, ent=golden.scalar("param_ent"), inplace=True)
    maps = torch.nn.functional.one_hot(seeds).float()
    maps = refinement.refine(maps, attention, iterations=golden.scalar("param_iter"))
    planes = stretched(maps, (size, size))
    want = golden["out_map64"]
    close(golden, "out_map64", ops.resize(planes[None], want.shape[1:])[0])
    share(golden, "out_label", planes.argmax(0), 0.995)


def pixels_of(golden, heads):
    """The text attention of every pixel [4096, 77], of some of the heads."""
    levels = []
    for level, side in ((4, 16), (2, 32)):
        q, k = golden[f"in_q{side}"], golden[f"in_k{side}"]
        assert len(q) == VOC_HEAD_COUNTS[level]
        some = list(VOC_HEADS[level]) if heads == "voc" else slice(None)
        levels.append(head_mean(q[some], k[some]).T.unflatten(1, (side, side)))
    return iseg_maps.token_maps(levels, (0.7, 0.3), (64, 64))


def columns_of(golden, pixels):
    """The mean over the tokens of every class [4096, k]."""
    rows = golden["param_token_sel"].tolist()
    found = [pixels[:, [one for one in row if one >= 0]].mean(1) for row in rows]
    return torch.stack(found, dim=1)


def smoothed(pixels, precision="float32"):
    labels = prototypes.cluster_pixels(pixels, (64, 64), precision=precision)
    return prototypes.means_of(pixels, labels)[labels], labels


@pytest.mark.golden("iseg_cross")
def test_cross(golden):
    close(golden, "out_mean_nocluster", columns_of(golden, pixels_of(golden, "all")))
    pixels = pixels_of(golden, "voc")
    close(golden, "out_heads_nocluster", columns_of(golden, pixels))

    known, labels = smoothed(pixels)
    same_partition(golden, "out_fp32_labels", labels, 0.995)
    want = golden["out_fp32_heads_cluster"]
    off = np.abs(columns_of(golden, known).numpy() - want) > 1e-3 * np.abs(want)
    golden.check("out_fp32_heads_cluster", np.where(off.mean() > 0.01, np.nan, want))

    known, labels = smoothed(pixels, "float16")
    same_partition(golden, "out_labels_heads_cluster", labels, 0.98)
    want = golden["out_heads_cluster"]
    got = columns_of(golden, known).numpy()
    alike = min(np.corrcoef(a, b)[0, 1] for a, b in zip(got.T, want.T, strict=True))
    golden.check("out_heads_cluster", np.where(alike < 0.995, np.nan, want))


@pytest.mark.golden("iseg_chain")
def test_chain(golden):
    heads = "all" if golden.scalar("param_head_mean") else "voc"
    pixels = pixels_of(golden, heads)
    own = columns_of(golden, smoothed(pixels)[0] if golden.scalar("param_cluster") else pixels)
    exact = chained(golden, tensor(golden["out_cross"]))
    close(golden, "out_cam", exact[0])
    share(golden, "out_label", exact[1], 0.999)
    whole = chained(golden, own)
    golden.check("out_cam", whole[0], atol=0.02)
    share(golden, "out_label", whole[1], 0.995)
    for labels, strict in ((exact[1], True), (whole[1], False)):
        order = [0, *(golden["in_labels"] + 1).tolist()]
        confusion = ConfusionMatrix(len(order))
        confusion.update(*(by_place(one, order) for one in (golden["in_gt"], labels)))
        if strict:
            golden.check("out_hist", confusion.counts, atol=0.001 * labels.size)
        slack = 1e-3 if strict else 5e-3
        golden.check("out_miou", confusion.miou(), atol=slack)
        golden.check("out_pacc", confusion.accuracy(), atol=slack)


def chained(golden, maps):
    """Planes of the image's size and labels of the whole data set."""
    attention = head_mean(golden["in_self_q"], golden["in_self_k"])
    attention = refinement.reduce_entropy(attention, ent=golden.scalar("param_ent"), inplace=True)
    maps = refinement.refine(maps, attention, iterations=golden.scalar("param_iter"))
    size, threshold = golden.scalar("param_mask_size"), golden.scalar("param_thr")
    planes = ops.resize(stretched(maps, (size, size))[None], golden["in_gt"].shape)[0]
    labels, _ = labelling.label_planes(
        (labelling.stretch(one) for one in planes),
        background="threshold" if threshold else "square",
        threshold=threshold,
    )
    return planes, np.append(0, golden["in_labels"] + 1)[labels]


def by_place(labels, order):
    """Labels as places in `order`; 255 stays."""
    table = np.full(256, 255)
    table[order] = np.arange(len(order))
    return table[labels]


def classes_of(dialect):
    """The classes of a data set in the order of its labels."""
    name, first = {"voc": ("voc20", 0), "context": ("context59", 0), "coco": ("coco_object81", 1)}[
        dialect
    ]
    return json.loads((SPECS / "evaluation_classes.json").read_text())[name]["names"][first:]


def words(array):
    return bytes(array).decode()


@pytest.mark.golden("iseg_prompt")
def test_prompt(golden):
    for case in cases(golden, "in_dataset"):
        name = DIALECTS[words(golden[f"in_dataset_{case}"])]
        dialect = Dialect(name=name, legacy=True)
        classes = [classes_of(name)[one] for one in golden[f"in_labels_{case}"].tolist()]
        spoken = dialect.speak(parse_classes(classes))
        for task, key in (("pseudo-mask", "out_text_wsss"), ("open-vocabulary", "out_text_ovs")):
            prompts = build_prompts(spoken, dialect_template(name, task))
            assert prompts.prompts == (words(golden[f"{key}_{case}"]),)
            rows = [list(span.tokens) for span in dialect.locate(prompts)]
            wide = max(map(len, rows))
            padded = [row + [-1] * (wide - len(row)) for row in rows]
            golden.check(f"out_token_sel_{case}", padded)
        plain = tensor(golden[f"in_emb_{case}"])[None]
        weights = torch.ones(1, plain.shape[1])
        weights[0, [one for row in rows for one in row]] = golden.scalar("param_gamma")
        stressed = reweight(plain, torch.zeros_like(plain), weights)[0]
        golden.check(f"out_emb_{case}", stressed, rtol=1e-6)
