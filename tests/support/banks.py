"""A bank's entries made of random numbers, and what lies in its folder."""

import os
import time

import numpy as np
import torch

from diffuseg.methods.ovdiff.prototypes import ClassPrototypes, Prototypes
from diffuseg.ovdiff import BankEntry, Recipe
from diffuseg.ovdiff.stock import stem_of

RECIPE = Recipe(
    values={
        "format": 1,
        "model": {"unet": "abc"},
        "pictures": {"number": 2, "template": "a {}"},
        "features": {"sd": {"timestep": 200}, "dino": {"layer": -1}},
    }
)


def prototypes(seed=0, width=5, negatives=3):
    rng = torch.Generator().manual_seed(seed)

    def some(count):
        kinds = torch.tensor(([0, 1, 1] + [2] * count)[:count], dtype=torch.int64)
        return Prototypes(
            vectors=torch.randn(count, width, generator=rng),
            kinds=kinds,
            sources=torch.arange(count) - 1,
        )

    cells = torch.randint(-4, 4, (2, 4, 4), generator=rng).short()
    return ClassPrototypes(positive=some(5), negative=some(negatives), cells=cells)


def entry(name="dog", seed=0, pictures=True):
    rng = np.random.default_rng(seed)
    masks = torch.from_numpy(rng.random((2, 2, 9, 13)) > 0.5)
    return BankEntry(
        name=name,
        prompt=f"a {name}",
        prototypes={"sd": prototypes(seed), "dino": prototypes(seed + 1, width=3, negatives=0)},
        images=rng.integers(0, 256, (2, 9, 13, 3), np.uint8) if pictures else None,
        fg=masks[0] if pictures else None,
        bg=masks[1] if pictures else None,
    )


def same(one, other):
    for name, held in one.prototypes.items():
        twin = other.prototypes[name]
        assert torch.equal(held.cells, twin.cells)
        for a, b in ((held.positive, twin.positive), (held.negative, twin.negative)):
            assert a.vectors.dtype == b.vectors.dtype == torch.float32
            assert torch.equal(a.vectors, b.vectors)
            assert torch.equal(a.kinds, b.kinds)
            assert torch.equal(a.sources, b.sources)
    return (one.name, one.prompt, one.words) == (other.name, other.prompt, other.words)


def files(bank):
    return sorted((bank.path / "classes").iterdir())


def grow_old(bank):
    for file in files(bank):
        os.utime(file, (time.time() - 7200,) * 2)


def tensors_of(bank, name):
    [file] = (bank.path / "classes").glob(f"{stem_of(name)}.*.safetensors")
    return file


def json_of(bank, name):
    return bank.path / "classes" / f"{stem_of(name)}.json"
