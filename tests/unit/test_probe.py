"""Probes on constructed features and attention, where the answer is known."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from diffuseg.errors import InputError
from diffuseg.eval.probe import (
    PairDivergences,
    nearest_prototype_probe,
    pair_divergences,
    symmetric_kl,
)
from diffuseg.world.scenes import CLASSES, Scene, Scenes
from support.refusal import refused

SCENES = [Scenes("train", seed=5, hw=(64, 64))[i] for i in range(24)]
TRUTH = {scene.image.tobytes(): scene for scene in SCENES}


def one_hot(image: np.ndarray) -> torch.Tensor:
    """Features that are the truth itself, a cell a pixel."""
    labels = torch.from_numpy(TRUTH[image.tobytes()].labels).long()
    return torch.nn.functional.one_hot(labels, len(CLASSES)).float()


def drowned(image: np.ndarray) -> torch.Tensor:
    """The truth, under one direction that says nothing and is a hundred times as strong."""
    labels = one_hot(image)
    noise = np.random.default_rng(int(image.sum())).normal(size=(*labels.shape[:2], 1)) * 100
    return torch.cat([torch.from_numpy(noise).float(), labels], dim=-1)


def test_features_that_are_the_truth_score_one() -> None:
    for space in ("raw", "centred", "whitened"):
        found = nearest_prototype_probe(one_hot, SCENES, SCENES, space=space)
        assert found.miou == pytest.approx(1.0)
    present = {name for scene in SCENES for name in scene.names}
    assert {name for name, iou in found.iou.items() if iou == 1} == present
    assert found.prototypes.shape == (18, 18)


def test_whitening_finds_what_a_strong_direction_hides() -> None:
    raw = nearest_prototype_probe(drowned, SCENES, SCENES, space="raw")
    white = nearest_prototype_probe(drowned, SCENES, SCENES, space="whitened")
    assert raw.miou < 0.2
    assert white.miou > 0.5


def test_features_that_say_nothing_score_like_one_class() -> None:
    def nothing(image: np.ndarray) -> torch.Tensor:
        return torch.ones(4, 4, 3)

    found = nearest_prototype_probe(nothing, SCENES, SCENES, space="raw")
    assert found.miou < 0.1
    assert np.isnan(found.iou["ball"]) or 0 <= found.things_miou < 0.1


def test_classes_without_training_cells_are_never_chosen() -> None:
    few = [scene for scene in SCENES if "water" not in scene.names]
    found = nearest_prototype_probe(one_hot, few, SCENES)
    water = CLASSES.index("water")
    assert found.prototypes[water].isnan().all()
    assert found.matrix.counts[:, water].sum() == 0


def test_the_probe_refuses_what_it_cannot_use() -> None:
    with refused("space must be one of raw, centred, whitened"):
        nearest_prototype_probe(one_hot, SCENES, SCENES, space="grey")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="training scenes"):
        nearest_prototype_probe(one_hot, [], SCENES)
    with pytest.raises(InputError, match="test scenes"):
        nearest_prototype_probe(one_hot, SCENES, [])
    with pytest.raises(InputError, match="features must be numbers"):
        nearest_prototype_probe(lambda _: torch.full((2, 2, 2), torch.nan), SCENES, SCENES)


def objects(scene: Scene) -> np.ndarray:
    return np.where(scene.instances > 0, scene.instances + 100, scene.labels)


def by_object(image: np.ndarray) -> torch.Tensor:
    """Every pixel looks at its own object only, a tenth of it at everything."""
    ids = torch.from_numpy(objects(TRUTH[image.tobytes()]).astype(np.int64)).flatten()
    rows = (ids[:, None] == ids[None]).float()
    rows = 0.9 * rows / rows.sum(1, keepdim=True) + 0.1 / len(ids)
    return rows.unflatten(0, image.shape[:2])


def test_attention_within_objects_diverges_between_them_only() -> None:
    found = pair_divergences(by_object, SCENES[:4], pairs=20)
    assert len(found.same) == len(found.different) == 80
    assert found.same.max() == 0
    assert found.different.min() > 1
    assert found.ratio == float("inf")
    assert found.separation == 1


def test_even_attention_tells_no_objects_apart() -> None:
    found = pair_divergences(lambda _: torch.full((16, 16, 9), 1 / 9), SCENES[:4], pairs=5)
    assert found.medians == (0, 0)
    assert found.separation == 0.5


def test_pairs_are_the_same_for_the_same_seed() -> None:
    rows = torch.rand(16, 16, 9, generator=torch.Generator().manual_seed(0))
    rows = rows / rows.sum(-1, keepdim=True)
    one, two = (pair_divergences(lambda _: rows, SCENES[:2], pairs=5, seed=3) for _ in range(2))
    assert np.array_equal(one.same, two.same)
    assert np.array_equal(one.different, two.different)


def test_scenes_with_one_object_give_no_pairs() -> None:
    bare = replace(
        SCENES[0],
        things=(),
        instances=np.zeros_like(SCENES[0].instances),
        labels=np.full_like(SCENES[0].labels, 17),
    )
    with pytest.raises(InputError, match=r"of one object and of two\n  got: 5 of one, 0 of two"):
        pair_divergences(lambda _: torch.ones(8, 8, 1), [bare], pairs=5)


def test_medians_ratio_and_histogram() -> None:
    found = PairDivergences(same=np.array([0.0, 1.0, 2.0]), different=np.array([2.0, 4.0]))
    assert found.medians == (1, 3)
    assert found.ratio == 3
    assert found.separation == pytest.approx(5.5 / 6)
    edges, same, different = found.histogram(4)
    assert edges.tolist() == [0, 1, 2, 3, 4]
    assert (same.tolist(), different.tolist()) == ([1, 1, 1, 0], [0, 0, 1, 1])


def test_symmetric_kl_is_the_mean_of_both_directions() -> None:
    p, q = torch.tensor([[0.8, 0.2]]), torch.tensor([[0.5, 0.5]])
    expected = sum(
        torch.nn.functional.kl_div(b.log(), a, reduction="sum") for a, b in ((p, q), (q, p))
    )
    torch.testing.assert_close(symmetric_kl(p, q)[0], 0.5 * expected)
