"""iSeg against the outputs of the authors' own functions."""

import re

import numpy as np
import pytest
import torch

from diffuseg import ops
from diffuseg.methods import refinement

CLOSE = 1e-4  # of the largest value


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
