"""Which classes a picture shows, by texts."""

from itertools import combinations

import pytest
import torch

from diffuseg.errors import InputError
from diffuseg.methods.ovdiff.prefilter import (
    best_subset,
    cosines,
    enough,
    first_stage,
    name_shares,
    subsets_of,
)


def test_names_above_the_mean_pass():
    generator = torch.Generator().manual_seed(0)
    image, names = torch.randn(16, generator=generator), torch.randn(30, 16, generator=generator)
    found = first_stage(image, names, candidates=30)
    powers = cosines(image, names).exp()
    assert found == (powers >= powers.mean()).nonzero()[:, 0].tolist()
    assert found == sorted(found)


def test_of_too_many_the_best_stay():
    generator = torch.Generator().manual_seed(0)
    image, names = torch.randn(16, generator=generator), torch.randn(30, 16, generator=generator)
    found = first_stage(image, names, candidates=4)
    assert found == name_shares(image, names).argsort(descending=True)[:4].tolist()


def test_lengths_of_embeddings_do_not_matter():
    image, names = torch.tensor([1.0, 0.2, 0.0]), torch.eye(3)
    assert first_stage(image, names) == first_stage(9 * image, names * torch.rand(3, 1).add(0.1))


def test_equal_names_leave_the_first():
    same = torch.ones(3, 4)
    assert first_stage(torch.ones(4), same, "paper", 2) == [0, 1]
    assert not enough(torch.full((4,), 0.25), "paper").any()
    assert enough(torch.full((4,), 0.25), "release").all()


def test_a_single_name_stays():
    for rule in ("release", "paper"):
        assert first_stage(torch.ones(4), -torch.ones(1, 4), rule) == [0]


def test_every_subset_is_asked_about_once():
    found = subsets_of([5, 2, 9])
    assert found == [(5,), (2,), (9,), (5, 2), (5, 9), (2, 9), (5, 2, 9)]
    assert len(set(subsets_of(range(10)))) == 1023


def test_the_best_subset_wins_and_the_first_on_ties():
    names = torch.eye(6)

    def texts(subsets):
        return torch.stack([names[list(one)].sum(0) for one in subsets])

    for size in (1, 2, 3):
        for wanted in combinations([0, 2, 3, 5], size):
            assert best_subset(texts([wanted])[0], texts, [0, 2, 3, 5]) == wanted
    same = torch.ones(1, 6)
    assert best_subset(names[0], lambda subsets: same.expand(len(subsets), 6), [4, 1]) == (4,)


def test_bad_input_is_refused():
    with pytest.raises(InputError, match="finite embeddings"):
        first_stage(torch.full((4,), torch.nan), torch.ones(2, 4))
    with pytest.raises(InputError, match="finite embeddings"):
        first_stage(torch.ones(4), torch.ones(0, 4))
    for candidates in ([], range(40)):
        with pytest.raises(InputError, match="candidates can be combined"):
            best_subset(torch.ones(4), lambda subsets: torch.ones(len(subsets), 4), candidates)
