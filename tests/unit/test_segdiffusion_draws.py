"""What is drawn in training stays what it was: figures of runs that are done depend on it."""

import hashlib
from dataclasses import replace
from itertools import product

import pytest
import torch

from diffuseg.eval.datasets import open_dataset
from diffuseg.train.segdiffusion.batches import BatchSource
from diffuseg.train.segdiffusion.indexing import index_pictures
from diffuseg.train.segdiffusion.mini import STAGES
from diffuseg.train.segdiffusion.pictures import KeptPictures
from diffuseg.train.segdiffusion.queries import QuerySampler
from diffuseg.train.segdiffusion.recipe import SegRecipe
from support.labelled import Blocks


def build(pictures, recipe):
    kept = KeptPictures(pictures)
    sampler = QuerySampler(
        pictures.classes, index_pictures(kept), without=recipe.without, queries=recipe.queries,
        negatives=recipe.negatives, least=recipe.least,
    )  # fmt: skip
    return BatchSource(wholes=kept, sampler=sampler, recipe=recipe)


def digest(batches):
    """Of all that is counted in whole numbers, which is the same on every machine."""
    found = hashlib.sha256()
    for one in batches:
        found.update(repr(one.classes).encode())
        for held in (one.pixels, one.known, one.owners, one.masks, one.timesteps):
            found.update(held.to(torch.int64).numpy().tobytes())
    return found.hexdigest()[:16]


def test_the_first_batches_of_a_tiny_data_set():
    recipe = SegRecipe(crop=32, images=2, negatives=0.5, jitter=0.0, seed=3)
    source = build(Blocks(7), recipe)
    batches = [
        source.draw(step, images=2, rank=rank, part=part)
        for step, rank, part in product(range(5), range(2), range(2))
    ]
    assert digest(batches) == "d0e1b749cf7f5753"
    noise = [float(one.noise.double().sum()) for one in batches[:3]]
    assert noise == pytest.approx([35.931677, 42.099123, -1.873172], abs=1e-3)


@pytest.mark.parametrize(
    ("stage", "told", "mean"),
    [(0, "44204d0b7263bfe3", 144.1264), (1, "7f25283686c52602", 129.3608)],
)
def test_the_first_batches_of_mini_seg(stage, told, mean):
    scenes = open_dataset("scenes", split="train", seed=5, limit=6)
    recipe = STAGES[stage]
    source = build(scenes, replace(recipe, jitter=0.0))
    assert digest([source.draw(step, images=4) for step in range(8)]) == told
    jittered = replace(source, recipe=recipe).draw(0, images=2).pixels
    assert float(jittered.double().mean()) == pytest.approx(mean, abs=0.02)
