"""DiffSegmenter's own numbers: prompts, weights, maps, labels and figures."""

import numpy as np
import pytest
import torch

from diffuseg.attention import AttentionRecord, RecordHeader
from diffuseg.attention.captured import CapturedPass, Contents, ReducedMap
from diffuseg.attention.layers import LayerId
from diffuseg.backbones.text import reweight, token_weights
from diffuseg.emphasis import read_emphasis
from diffuseg.eval.metrics import ConfusionMatrix
from diffuseg.methods import DiffSegmenter
from diffuseg.methods.attend import best_plane
from diffuseg.methods.wording import Reading, pick_tokens, stressed_prompt
from diffuseg.prompts import TokenSpan

SIDES = (8, 16, 32, 64)
CONTEXT = 77
START, END = 49406, 49407


class Clip:
    """CLIP's vocabulary as a tokenizer that keeps no offsets; its pieces are ids."""

    is_fast = False

    def __init__(self):
        module = pytest.importorskip("instant_clip_tokenizer", reason="has CLIP's vocabulary")
        self._encode = module.Tokenizer().encode

    def tokenize(self, text):
        return [str(one) for one in self._encode(text)]


def text_of(array):
    return bytes(array.tolist()).decode()


def cases(golden, name):
    count = 0
    while f"{name}_{count}" in golden:
        yield count
        count += 1


def layer(kind, side, number, heads, width):
    return LayerId(
        name=f"{kind}.{side}.{number}",
        stage="up",
        block=0,
        index=number,
        depth=0,
        kind=kind,
        heads=heads,
        width=width,
        scale=1.0,
        factor=64 // side,
    )


def self_layers(features, sharpness, side):
    """softmax over keys of s (2 f_i f_j - |f_j|^2), as queries and keys."""
    for number, (f, s) in enumerate(zip(features, sharpness, strict=True)):
        f = torch.from_numpy(f)
        own = float(s) * (f * f).sum(1, keepdim=True)
        q = torch.cat([2 * float(s) * f, torch.ones_like(own)], dim=1)[None, None]
        k = torch.cat([f, -own], dim=1)[None, None]
        yield layer("self", side, number, 1, q.shape[-1]), q, k


def record_of(parts, tokens, *, names=("thing",), reduced=(), hw=None):
    """A record of one prompt; `parts` are layers with queries and keys."""
    one = CapturedPass(100)
    grids, layers = {}, []
    for at, q, k in parts:
        one.queries[at.name], one.keys[at.name] = q, k
        grids[at.name] = (64 // at.factor,) * 2
        layers.append(at)
    for mean in reduced:
        at = layer("cross", mean.hw[0], 0, 1, 1)
        grids[at.name] = mean.hw
        layers.append(at)
    header = RecordHeader(
        prompts=("",),
        names=names,
        spans=tuple(TokenSpan(name=name, row=0, tokens=tokens) for name in names),
        timesteps=(100,),
        image_hw=hw,
    )
    return AttentionRecord(
        Contents(header=header, layers=layers, grids=grids, passes=[one], reduced=list(reduced))
    )


def relative(golden, name, got, rtol=1e-4):
    golden.check(name, got, atol=rtol * float(np.abs(golden[name]).max()))


@pytest.mark.golden("diffsegmenter_aggregate")
def test_aggregate(golden):
    parts = []
    for side in SIDES:
        queries, keys = golden[f"in_cq{side}"], golden[f"in_ck{side}"]
        for number, (q, k) in enumerate(zip(queries, keys, strict=True)):
            at = layer("cross", side, number, q.shape[0], q.shape[-1])
            parts.append((at, torch.from_numpy(q)[None], torch.from_numpy(k)[None]))
        parts += self_layers(golden[f"in_sf{side}"], golden[f"in_sa{side}"], side)
    tokens = tuple(golden["param_token"].tolist())
    record = record_of(parts, tokens)
    for side in SIDES:
        maps = record.cross_attention((side, side))[0].unflatten(0, (side, side))
        if f"out_cross{side}" in golden:
            relative(golden, f"out_cross{side}", maps)
        if f"out_cross{side}_tok" in golden:
            relative(golden, f"out_cross{side}_tok", maps[..., list(tokens)].mean(-1))
    whole = record.self_attention((64, 64))[0]
    relative(golden, "out_self64_rows", whole[golden["param_rows"].tolist()])
    relative(golden, "out_self16", record.self_attention((16, 16))[0, ::16])

    levels = tuple(64 // side for side in SIDES)
    given = tuple(golden["param_weights"].tolist())
    for name, completed in (("out_cross_fused", "none"), ("out_scores", "finest")):
        method = DiffSegmenter(levels=levels, weights=given, self_attention=completed)
        relative(golden, name, maps_of(method, record))


def maps_of(method, record):
    """The class map before it is stretched."""
    from diffuseg.methods import diffsegmenter

    filled = method._filled({})
    places = diffsegmenter._places(record)
    return diffsegmenter._completed(record, places, (64, 64), 100, filled)[0, 0]


@pytest.mark.golden("diffsegmenter_chain")
def test_chain(golden):
    hw = tuple(golden["param_hw"].tolist())
    parts = list(self_layers(golden["in_sf64"], golden["in_sa64"], 64))
    means = [
        ReducedMap(
            kind="cross",
            hw=(side, side),
            count=1,
            values=torch.from_numpy(golden[f"in_cross{side}"]).flatten(0, 1)[None],
        )
        for side in SIDES
    ]
    finals = []
    for case in cases(golden, "in_prompt"):
        tokens = rule(
            text_of(golden[f"in_mode_{case}"]),
            text_of(golden[f"in_prompt_{case}"]),
            int(golden["param_word_len"][case]),
            int(golden["param_token_len"][case]),
        )
        record = record_of(parts, tokens, reduced=means, hw=hw)
        fused = maps_of(DiffSegmenter(self_attention="none"), record)
        relative(golden, f"out_fused_{case}", fused)
        relative(golden, f"out_att_{case}", maps_of(DiffSegmenter(), record))
        scores = DiffSegmenter()(record, scores=True).scores
        assert scores is not None
        finals.append(255 * scores[1])
    relative(golden, "out_final255", np.stack(finals))


def rule(mode, prompt, words, pieces):
    """The tokens read for a class that stands fourth, by the authors' code."""
    reading: Reading = "coco-legacy" if mode == "coco" else mode
    named = range(4, 4 + pieces)
    behind = "".join(prompt.split(" ")[3 + words : 4 + words])
    following = (named[-1] + 1,) if behind.endswith("ing") else ()
    return pick_tokens(named, reading, following)


def prompts_of(golden):
    for case in cases(golden, "in_mode"):
        mode, name, caption = (
            text_of(golden[f"in_{part}_{case}"]) for part in ("mode", "class", "caption")
        )
        yield case, mode, name, stressed_prompt(mode, name, caption)


@pytest.mark.golden("diffsegmenter_prompt")
def test_prompt(golden):
    for case, _, _, prompt in prompts_of(golden):
        golden.check(f"out_prompt_{case}", np.frombuffer(prompt.encode(), dtype=np.uint8))


@pytest.mark.golden("diffsegmenter_prompt")
def test_prompt_tokens(golden):
    clip = Clip()
    for case, mode, name, prompt in prompts_of(golden):
        pieces = len(clip.tokenize(name))
        golden.check(f"out_tokens_{case}", rule(mode, prompt, len(name.split(" ")), pieces))


@pytest.mark.golden("diffsegmenter_reweight")
def test_reweight(golden):
    for case in cases(golden, "in_prompt"):
        plain, empty, weights = (
            torch.from_numpy(golden[f"{part}_{case}"])[None]
            for part in ("in_plain", "in_empty", "out_weights")
        )
        relative(golden, f"out_emb_{case}", reweight(plain, empty, weights)[0])


@pytest.mark.golden("diffsegmenter_reweight")
def test_weights_of_tokens(golden):
    clip = Clip()
    for case in cases(golden, "in_prompt"):
        text, parts = read_emphasis(text_of(golden[f"in_prompt_{case}"]))
        ids = [int(one) for one in clip.tokenize(text)][: CONTEXT - 2]
        padded = [START, *ids, END] + [END] * (CONTEXT - 2 - len(ids))
        golden.check(f"out_ids_{case}", padded)
        weights = token_weights(clip, [text], [parts], CONTEXT)
        golden.check(f"out_weights_{case}", weights[0], atol=1e-6)


@pytest.mark.golden("diffsegmenter_eval")
def test_eval(golden):
    ious, figures = [], []
    for threshold in golden["param_thr"].tolist():
        matrix = ConfusionMatrix(golden["out_class_iou"].shape[1])
        for case in cases(golden, "in_gt"):
            maps = torch.from_numpy(golden[f"in_cam255_{case}"]) / 255
            background = torch.full_like(maps[0], threshold)
            labels, _ = best_plane([background, *maps])
            classes = np.array([0, *(golden[f"in_present_{case}"] + 1)])
            matrix.update(golden[f"in_gt_{case}"], classes[labels])
        ious.append(100 * matrix.iou_eps())
        hit = np.diag(matrix.counts)
        predicted, truth = matrix.counts.sum(0), matrix.truth
        whole = truth + predicted - hit + 1e-10
        over, missed = (predicted - hit) / whole, (truth - hit) / whole
        figures.append([100 * matrix.miou("all_eps"), 100 * over.mean(), 100 * missed.mean()])
    golden.check("out_class_iou", ious, atol=1e-3)
    golden.check("out_miou_fp_fn", figures, atol=1e-3)
