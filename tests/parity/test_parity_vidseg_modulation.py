"""VidSeg's changes to attention against the authors' transformers, with weights of the files."""

import re

import numpy as np
import pytest
import torch
from torch import nn

from diffuseg.attention import AttentionRecord, intervene, record
from diffuseg.methods.vidseg.modulation import (
    Kept,
    attention_of,
    frame_strengths,
    injection_edits,
    keeping_edits,
    modulation_edits,
)
from diffuseg.methods.vidseg.network import Call

SPATIAL = attention_of([0], ["self", "cross"])
TEMPORAL = attention_of([0], ["temporal"])
CLOSE = {False: 2e-5, True: 5e-5}


def tensor(array):
    return torch.from_numpy(np.ascontiguousarray(array)).float()


class Host(nn.Module):
    """A transformer at the place of a U-Net's decoder block 0."""

    def __init__(self, transformer):
        super().__init__()
        block = nn.Module()
        block.attentions = nn.ModuleList([transformer])
        self.up_blocks = nn.ModuleList([block])

    def forward(self, sample, timestep, encoder_hidden_states, **more):
        transformer = self.up_blocks[0].attentions[0]
        return transformer(sample, encoder_hidden_states, return_dict=False, **more)[0]


def build(golden):
    from diffusers.models.transformers.transformer_2d import Transformer2DModel
    from diffusers.models.transformers.transformer_temporal import TransformerSpatioTemporalModel

    renames = {
        "time_stack.": "temporal_transformer_blocks.",
        "time_pos_embed.0.": "time_pos_embed.linear_1.",
        "time_pos_embed.2.": "time_pos_embed.linear_2.",
    }
    weights = {}
    for name, array in golden.arrays.items():
        if "__" in name and name.startswith("param_"):
            path = name.removeprefix("param_").replace("__", ".")
            for old, new in renames.items():
                path = path.replace(old, new)
            weights[path] = tensor(array)
    heads, width = golden.scalar("param_heads"), len(weights["norm.weight"])
    sizes = (heads, width // heads, width)
    context = golden["in_context"].shape[-1]
    if "param_frames" in golden:
        # Called with tensors it has no dropout, and normalises as the other one does.
        transformer = TransformerSpatioTemporalModel(*sizes, cross_attention_dim=context)
    else:
        transformer = Transformer2DModel(
            *sizes, cross_attention_dim=context, use_linear_projection=True
        )
    transformer.load_state_dict(weights)
    return Host(transformer.eval())


@pytest.mark.golden("vidseg_modulation")
@torch.no_grad()
def test_modulation(golden):
    host, masks = build(golden), tensor(golden["in_masks"])
    frames, video = len(masks), "param_frames" in golden
    close = CLOSE[video]
    frame_ids = torch.arange(frames)
    strength = golden.scalar("param_lambda")
    more = {"image_only_indicator": torch.zeros(2, frames)} if video else {}

    def call(added=None):
        return Call(index=0, time=0, frames=frame_ids, clip=frames if video else 1, added=added)

    def run(x, *edits):
        inputs = tensor(golden[x]), 0, tensor(golden["in_context"])
        if not edits:
            return host(*inputs, **more)
        with intervene(host, edits):
            return host(*inputs, **more)

    golden.check("out_plain", run("in_x"), atol=close)
    layers = {
        "out_cross_attn": attention_of([0], ["cross"]),
        "out_self_attn": attention_of([0], ["self"]),
        "out_spatial": attention_of([0], ["self"]),
        "out_temporal": TEMPORAL,
        "out_both": attention_of([0], ["self", "temporal"]),
    }
    for sign, factor in (("pos", 1), ("neg", -1)):
        added = call(factor * strength * masks)
        for name, wanted in layers.items():
            if f"{name}_{sign}" in golden:
                edits = modulation_edits(added, wanted)
                golden.check(f"{name}_{sign}", run("in_x", *edits), atol=close)

    kept = Kept(frames)
    every = (*SPATIAL, *(TEMPORAL if video else ()))
    run("in_x", *keeping_edits(kept, call(), every))
    with record(host) as rec:
        run("in_x")
    check_queries(golden, rec, kept)

    pushed = call(strength * masks)
    if video:
        temporal = injection_edits(kept, call(), TEMPORAL)
        both = modulation_edits(pushed, layers["out_both"])
        golden.check("out_injected_temporal", run("in_x2", *temporal), atol=close)
        found = run("in_x2", *temporal, *both)
        golden.check("out_injected_temporal_both_pos", found, atol=close)
        paper = injection_edits(kept, call(), every)
        golden.check("out_injected_spatial_temporal", run("in_x2", *paper), atol=close)
        return
    injected = injection_edits(kept, call(), SPATIAL)
    cross = layers["out_cross_attn"]
    golden.check("out_injected", run("in_x2", *injected), atol=close)
    found = run("in_x2", *injected, *modulation_edits(pushed, cross))
    golden.check("out_injected_cross_pos", found, atol=close)
    rising = frame_strengths(frames, 50.0, 10.0).view(-1, 1, 1) * masks
    found = run("in_x", *modulation_edits(call(rising), cross))
    golden.check("out_cross_linear", found, atol=close)


def check_queries(golden, rec: AttentionRecord, kept: Kept):
    for layer in rec.layers:
        name = "temporal_self" if layer.kind == "temporal" else layer.kind
        if layer.kind == "temporal" and not re.search(r"attn1$", layer.name):
            continue
        for side, read in (("q", rec.queries), ("k", rec.keys)):
            if f"out_{name}_{side}" in golden:
                found = read(layer, 0)
                golden.check(f"out_{name}_{side}", found.transpose(1, 2).flatten(2), atol=2e-5)
        if f"out_{name}_q" in golden and layer.kind != "temporal":
            conditional = golden[f"out_{name}_q"][len(golden["in_masks"]) :]
            assert np.allclose(kept.queries(0, layer.name), conditional, atol=2e-5)
