"""The ViT's recipe at toy size: resumed, exported, loaded; and the shipped weights."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from diffuseg.backbones import load_vit
from diffuseg.errors import InputError
from diffuseg.eval.probe import nearest_prototype_probe, vit_extract
from diffuseg.train.log import TrainLog
from diffuseg.train.recipe import MiniRecipe, VitRecipe
from diffuseg.train.silhouettes import UNKNOWN, name_regions
from diffuseg.train.vit import (
    Learner,
    around_loss,
    draw_views,
    export_vit,
    naming_loss,
    patch_shares,
    silhouettes_around,
    train_vit,
)
from diffuseg.world.scenes import Scenes

TOY = VitRecipe(
    size=128,
    crop=64,
    width=16,
    layers=2,
    heads=2,
    shapes=3,
    textures=3,
    steps=4,
    whole=0.5,
    batch=4,
    warmup=1,
)
SCENES = np.stack([Scenes("train", hw=(128, 128))[i].image for i in range(12)])
MAPS = name_regions(SCENES, shapes=3, textures=3, typical=0.85, seed=0)


class Stopped(Exception):
    """Raised by a test where a run would be cut off."""


def train(work: Path, settings: VitRecipe = TOY, stop: int | None = None) -> torch.nn.Module:
    def progress(done: int, total: int) -> None:
        if done == stop:
            raise Stopped

    return train_vit(
        MiniRecipe(vit=settings),
        SCENES,
        work,
        device=torch.device("cpu"),
        log=TrainLog(work / "log.jsonl", every=1),
        progress=progress,
    )


def test_a_run_that_was_stopped_ends_as_one_that_was_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("diffuseg.train.loop._SAVE_EVERY", 2)
    whole = train(tmp_path / "whole")
    with pytest.raises(Stopped):
        train(tmp_path / "parts", stop=3)
    parts = train(tmp_path / "parts")
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(parts.state_dict()[name], value, rtol=0, atol=0)


def test_an_exported_transformer_loads_and_gives_the_same_keys(tmp_path: Path) -> None:
    model = train(tmp_path)
    export_vit(model, tmp_path / "mini" / "vit")
    for path in (tmp_path / "mini", tmp_path / "mini" / "vit"):
        vit = load_vit(path, device="cpu")
        assert (vit.patch, vit.size, vit.depth) == (16, 128, 2)
    image = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    caught: list[torch.Tensor] = []
    hook = model.layers[-1].attention.k_proj.register_forward_hook(
        lambda _m, _i, output: caught.append(output)
    )
    with torch.no_grad():
        model((image - 0.5) / 0.25, interpolate_pos_encoding=True)
    hook.remove()
    found = vit.features(image)
    assert found.shape == (1, 4, 6, 16)
    torch.testing.assert_close(found.flatten(1, 2), caught[0][:, 1:], atol=0.02, rtol=0.02)


def test_training_lowers_the_error() -> None:
    torch.manual_seed(0)
    learner = Learner(TOY)
    views = draw_views(SCENES, MAPS, TOY, np.random.default_rng(0), crop=64)
    optimizer = torch.optim.AdamW(learner.parameters(), 3e-3)
    errors = []
    for _ in range(30):
        around, *scores = learner(views.pixels, views.corners)
        error = torch.stack([naming_loss(one, views.shares, 3) for one in scores]).sum()
        error = error + around_loss(around, views.around)
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
        errors.append(error.item())
    assert errors[-1] < 0.8 * errors[0]


def test_the_heads_read_the_last_keys_and_the_output() -> None:
    torch.manual_seed(0)
    learner = Learner(TOY).eval()
    pixels = torch.randn(1, 3, 128, 128)
    caught: list[torch.Tensor] = []
    hook = learner.vit.layers[-1].attention.k_proj.register_forward_hook(
        lambda _m, _i, output: caught.append(output)
    )
    with torch.no_grad():
        states = learner.vit(pixels).last_hidden_state[:, 1:]
        hook.remove()
        _, keys, tokens = learner(pixels, torch.zeros(1, 2, dtype=torch.long))
        torch.testing.assert_close(keys, learner.from_keys(caught[0][:, 1:]))
        torch.testing.assert_close(tokens, learner.from_tokens(states))


@pytest.mark.parametrize(("crop", "count", "grid"), [(64, 4, 4), (128, 1, 8)])
def test_views_follow_from_the_generator_and_fit_the_recipe(
    crop: int, count: int, grid: int
) -> None:
    one, two = (
        draw_views(SCENES, MAPS, TOY, np.random.default_rng(7), crop=crop) for _ in range(2)
    )
    assert torch.equal(one.pixels, two.pixels)
    assert torch.equal(one.shares, two.shares)
    assert one.pixels.shape == (count, 3, crop, crop)
    assert one.shares.shape == (count, grid**2, 6)
    assert one.around.shape == (count, grid**2, 100)
    assert one.corners.min() >= 0
    assert one.corners.max() <= 8 - grid


def test_names_follow_the_pixels_into_a_view() -> None:
    """A picture that is dark where it has one name and light where it has the other."""
    settings = replace(TOY, batch=1, shapes=1, textures=1)
    dark = np.zeros((128, 128), bool)
    dark[:, 64:] = True
    picture = np.where(dark[..., None], 0, 255).astype(np.uint8).repeat(3, axis=2)[None]
    names = dark[None, ::2, ::2].astype(np.uint8)
    for seed in range(5):
        rng = np.random.default_rng(seed)
        view = draw_views(picture, names, settings, rng, crop=64)
        light = torch.nn.functional.avg_pool2d(view.pixels.mean(1), 16).flatten()
        sure = view.shares.amax(-1)[0] > 0.99
        ones = view.shares[0, sure, 1] > 0.5
        if 0 < ones.sum() < len(ones):
            assert light[sure][ones].max() < light[sure][~ones].min()


def test_unknown_pixels_have_no_share() -> None:
    names = torch.full((1, 4, 4), UNKNOWN)
    names[0, :2, :2] = torch.tensor([[0, 0], [2, UNKNOWN]])
    shares = patch_shares(names, 2, 3)
    assert shares[0].tolist() == [[0.5, 0.0, 0.25], [0.0] * 3, [0.0] * 3, [0.0] * 3]


def test_silhouettes_around_a_patch_are_told_by_quarters() -> None:
    names = torch.full((1, 1, 16, 16), 5.0)
    names[..., :8, :4] = 1.0
    names[..., 8:, 8:] = UNKNOWN
    settings = replace(TOY, window=3)
    found = silhouettes_around(names, settings)[0].reshape(2, 2, 6, 6)
    assert found[0, 0, 2:4, 2:4].tolist() == [[1, 0], [1, 0]]  # its own quarters
    assert found[0, 0, :2].eq(-1).all()  # beyond the view
    assert found[0, 0, 4:, 4:].eq(-1).all()
    assert found[0, 1, 2:4, :2].tolist() == [[1, 0], [1, 0]]  # its neighbour's
    right = (found.flatten(2) * 2 - 1) * 30
    assert around_loss(right, found.flatten(2)).item() == pytest.approx(0, abs=1e-6)


def test_things_and_stuff_are_weighed_apart() -> None:
    shares = torch.zeros(1, 4, 3)
    shares[0, 0, 0] = 1
    shares[0, 1:, 2] = 1
    even = torch.zeros(1, 4, 3)
    assert naming_loss(even, shares, 2).item() == pytest.approx(1.25 * np.log(3))
    right = even + 30 * shares
    right[0, 0] = 0
    assert naming_loss(right, shares, 2).item() == pytest.approx(np.log(3))
    assert naming_loss(even, 0 * shares, 2).item() == 0


def test_scenes_of_another_shape_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"at least 160 pixels a side\n  got: 128x128"):
        train(tmp_path, replace(TOY, size=192, crop=160))


def test_the_shipped_transformer_loads_and_gives_keys() -> None:
    vit = load_vit("mini", device="cpu")
    keys = vit.features(torch.rand(1, 3, 128, 256))
    assert keys.shape == (1, 8, 16, 128)
    assert keys.isfinite().all()


def test_the_shipped_keys_tell_classes_apart() -> None:
    vit = load_vit("mini", device="cpu")
    train_scenes, test_scenes = (
        [Scenes(split, seed=3)[i] for i in range(count)]
        for split, count in (("train", 40), ("val", 12))
    )
    found = nearest_prototype_probe(vit_extract(vit), train_scenes, test_scenes)
    assert found.miou > 0.35  # untrained: 0.27, of which things have hardly anything
    assert found.things_miou > 0.1
