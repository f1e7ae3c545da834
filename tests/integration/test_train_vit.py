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
from diffuseg.train.vit import Learner, describe_patches, draw_views, export_vit, train_vit
from diffuseg.world.scenes import Scenes

TOY = VitRecipe(size=64, crop=48, width=16, layers=2, heads=2, steps=4, batch=4, warmup=1)
SCENES = np.stack([Scenes("train", hw=(64, 64))[i].image for i in range(6)])


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
        assert (vit.patch, vit.size, vit.depth) == (16, 64, 2)
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
    learner = Learner(replace(TOY, most_hidden=0.0))
    views = draw_views(SCENES, TOY, np.random.default_rng(0))
    optimizer = torch.optim.AdamW(learner.parameters(), 3e-3)
    errors = []
    for _ in range(30):
        found = learner(views.pixels, views.corners, views.masks)
        error = torch.nn.functional.smooth_l1_loss(found, views.targets)
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
        errors.append(error.item())
    assert errors[-1] < 0.8 * errors[0]


def test_views_follow_from_the_generator_and_fit_the_recipe() -> None:
    one, two = (draw_views(SCENES, TOY, np.random.default_rng(7)) for _ in range(2))
    assert torch.equal(one.pixels, two.pixels)
    assert one.pixels.shape == (4, 3, 48, 48)
    assert one.targets.shape == (4, 9, 225)
    assert one.masks.shape == (4, 9)
    assert one.corners.min() >= 0
    assert one.corners.max() <= 1


def test_targets_do_not_know_which_colour_a_shape_has() -> None:
    shape = torch.zeros(1, 1, 48, 48)
    shape[..., 12:30, 20:40] = 1
    red = torch.cat([shape, 0 * shape, 0 * shape], dim=1)
    green = torch.cat([0 * shape, shape, 0 * shape], dim=1)
    torch.testing.assert_close(describe_patches(red, 16, 3), describe_patches(green, 16, 3))


def test_scenes_of_another_shape_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"at least 80 pixels a side\n  got: 64x64"):
        train(tmp_path, replace(TOY, size=96, crop=80))


def test_the_shipped_transformer_loads_and_gives_keys() -> None:
    vit = load_vit("mini", device="cpu")
    keys = vit.features(torch.rand(1, 3, 128, 256))
    assert keys.shape == (1, 8, 16, 128)
    assert keys.isfinite().all()


@pytest.mark.xfail(reason="shipped after 150 steps; its keys do not tell things apart", strict=True)
def test_the_shipped_keys_tell_classes_apart() -> None:
    vit = load_vit("mini", device="cpu")
    train_scenes, test_scenes = (
        [Scenes(split, seed=3)[i] for i in range(count)]
        for split, count in (("train", 40), ("val", 12))
    )
    found = nearest_prototype_probe(vit_extract(vit), train_scenes, test_scenes)
    assert found.miou > 0.5
