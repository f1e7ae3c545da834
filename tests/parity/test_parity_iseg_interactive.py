"""iSeg's interactive mode against the outputs of the authors' own functions."""

import math

import numpy as np
import pytest
import torch

from diffuseg import ops
from diffuseg.methods.clicks import Clicks, Mark
from diffuseg.methods.refinement import join_columns, reduce_entropy, refine

SHAPES = {1: "point", 2: "line", 3: "box"}
TEXT = 0


def seeds_of(golden, case, grid, hw):
    """A column a seed: where the user has pointed, or the map of a class."""
    if golden["param_mode"][case] == TEXT:
        return torch.from_numpy(golden[f"in_cross_{case}"]).float()
    at = tuple((int(x), int(y)) for x, y in golden[f"in_points_{case}"])
    mark = Mark(shape=SHAPES[int(golden["param_mode"][case])], at=at)
    seeds, wanted = Clicks(marks=(mark,)).seeds(hw, grid)
    assert wanted.all()
    return seeds


def shown(seeds, grid, hw):
    """Seeds as the authors draw them: scaled, added up, the cell of each pixel."""
    plane = (seeds / seeds.amax(0)).sum(1).view(grid).numpy()
    rows, columns = np.arange(hw[0]) * grid[0] // hw[0], np.arange(hw[1]) * grid[1] // hw[1]
    return plane[rows][:, columns]


@pytest.mark.golden("iseg_interactive")
def test_interactive(golden):
    q, k = (torch.from_numpy(golden[name]).float()[None] for name in ("in_q", "in_k"))
    attention = ops.attention_maps(q, k, scale=1.0)[0]
    side = math.isqrt(len(attention))
    grid, hw = (side, side), tuple(int(one) for one in golden["param_hw"])
    for case in range(len(golden["param_mode"])):
        seeds = seeds_of(golden, case, grid, hw)
        golden.check(f"out_seed_{case}", shown(seeds, grid, hw), rtol=1e-5)

        reduced = reduce_entropy(attention, ent=float(golden["param_ent"][case]), clamp=True)
        spread = refine(seeds, reduced, iterations=int(golden["param_iter"][case]))
        wanted = torch.ones(spread.shape[1], dtype=torch.bool)
        plane = join_columns(spread, wanted)[0]
        score = ops.resize(plane.view(1, 1, *grid), hw)[0, 0].numpy()
        golden.check(f"out_score_{case}", score, atol=1e-4)

        threshold = float(golden["param_thr"][case])
        close = np.abs(score - threshold) < 1e-4
        mask = np.where(close, golden[f"out_mask_{case}"], score > threshold)
        golden.check(f"out_mask_{case}", mask)
        assert close.mean() < 1e-3
