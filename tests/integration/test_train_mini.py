"""The miniature's recipe, end to end at toy size, stopped and resumed."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from diffuseg.backbones import load
from diffuseg.errors import InputError
from diffuseg.train import denoiser
from diffuseg.train.bundle import export_mini
from diffuseg.train.companions import COMPANIONS
from diffuseg.train.data import Progress, crop_scene, frame_pair, frame_scene
from diffuseg.train.denoiser import (
    Denoiser,
    color_ids,
    drop_tokens,
    phase_path,
    scaled_linear_alphas,
    tokenize,
)
from diffuseg.train.mini import flush_denormals, train_mini
from diffuseg.train.recipe import (
    CaptionerRecipe,
    ClipRecipe,
    DenoiserRecipe,
    GroundingRecipe,
    MiniRecipe,
    PhaseRecipe,
    PrimingRecipe,
    VaePhase,
    VaeRecipe,
    VitRecipe,
)
from diffuseg.train.vae import random_crops
from diffuseg.world.captions import VOCABULARY
from diffuseg.world.scenes import Scenes
from diffuseg.world.tokenizer import build_tokenizer

TOY = MiniRecipe(
    size=128,
    scenes=6,
    shard=4,
    crops=1,
    crop_size=128,
    vae=VaeRecipe(
        channels=(8, 8, 8, 8),
        crop=32,
        batch=2,
        phases=(VaePhase(steps=2), VaePhase(steps=1, kl=2e-4, busy=0.5)),
    ),
    clip=ClipRecipe(
        size=64,
        width=16,
        layers=2,
        heads=2,
        text_width=16,
        text_layers=1,
        text_heads=2,
        projection=8,
        steps=2,
        batch=2,
        warmup=1,
        priming=PrimingRecipe(steps=2, batch=2, warmup=1),
    ),
    captioner=CaptionerRecipe(width=16, layers=1, heads=2, steps=2, batch=2, warmup=1),
    vit=VitRecipe(
        size=64,
        crop=48,
        width=16,
        layers=2,
        heads=2,
        shapes=2,
        textures=2,
        steps=2,
        batch=2,
        warmup=1,
    ),
    denoiser=DenoiserRecipe(
        channels=(16, 16, 16, 16),
        heads=2,
        text_width=16,
        text_heads=2,
        phases=(
            PhaseRecipe(pictures="crops", steps=3, batch=2, learning_rate=1e-3),
            PhaseRecipe(
                pictures="scenes",
                steps=2,
                batch=2,
                learning_rate=1e-3,
                turns=(("windows", 3),),
                grounding=(
                    GroundingRecipe(
                        pictures=("crops",), batch=1, alone=1, wordless=1, edges=1.0, every=2
                    ),
                ),
            ),
        ),
    ),
)


@contextmanager
def quiet(title: str) -> Iterator[Progress]:
    yield lambda done, total: None


def run(out: Path, work: Path, recipe: MiniRecipe = TOY, stage: str = "all") -> None:
    train_mini(out, work, stage=stage, recipe=recipe, device="cpu", workers=1, meter=quiet)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("mini")
    run(base / "mini", base / "work")
    return base


def test_folder_loads_as_any_stable_diffusion(trained: Path) -> None:
    model = load(str(trained / "mini"), device="cpu")
    text = model.embed(["a red car on grass"])
    latents = model.encode(torch.rand(1, 3, 128, 128))
    assert model.denoise(latents, 100, text).shape == (1, 4, 16, 16)
    assert model.size == 128
    assert set(model.vocabulary) == set(VOCABULARY)


def test_companions_lie_in_it(trained: Path) -> None:
    for name in COMPANIONS:
        assert (trained / "mini" / name / "model.safetensors").is_file()


def test_latents_have_unit_spread(trained: Path) -> None:
    values = load_file(trained / "work" / "latents-scenes-0000.safetensors")["values"]
    assert values.shape == (4, 2, 4, 16, 16)
    assert 0.5 < values.float().std() < 2


def test_checksums_cover_every_file(trained: Path) -> None:
    folder = trained / "mini"
    listed = set(json.loads((folder / "checksums.json").read_text()))
    present = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    assert present - {"checksums.json"} == listed


def test_stopped_run_ends_where_an_unbroken_one_does(trained: Path, tmp_path: Path) -> None:
    first, _ = TOY.denoiser.phases
    # The rate depends on how many steps a phase has, so a run is stopped by making the second
    # phase as long as it was and only the first complete.
    short = replace(TOY, denoiser=replace(TOY.denoiser, phases=(first,)))
    for stage in ("render", "vae"):
        run(tmp_path / "mini", tmp_path / "work", stage=stage)
    run(tmp_path / "mini", tmp_path / "work", stage="latents")
    run(tmp_path / "mini", tmp_path / "work", short, stage="unet")
    assert not phase_path(tmp_path / "work", 1).exists()
    run(tmp_path / "mini", tmp_path / "work")
    ours = load_file(tmp_path / "mini" / "unet" / "diffusion_pytorch_model.safetensors")
    unbroken = load_file(trained / "mini" / "unet" / "diffusion_pytorch_model.safetensors")
    assert all(torch.equal(ours[name], unbroken[name]) for name in unbroken)


def test_export_replaces_the_folder_whole(trained: Path) -> None:
    (trained / "mini" / "stray.txt").write_text("left over")
    export_mini(TOY, trained / "work", trained / "mini")
    assert not (trained / "mini" / "stray.txt").exists()
    assert sorted(p.name for p in trained.iterdir()) == ["mini", "work"]


def test_a_stage_without_the_one_before_says_so(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--stage render"):
        run(tmp_path / "mini", tmp_path / "work", stage="vae")
    with pytest.raises(InputError, match="--stage vae"):
        run(tmp_path / "mini", tmp_path / "work", stage="latents")
    with pytest.raises(InputError, match="the stage must be one of"):
        run(tmp_path / "mini", tmp_path / "work", stage="unets")


def test_checkpoint_of_another_recipe_is_refused(trained: Path, tmp_path: Path) -> None:
    wider = replace(TOY, denoiser=replace(TOY.denoiser, text_width=32))
    with pytest.raises(InputError, match="same recipe"):
        export_mini(wider, trained / "work", tmp_path / "mini")
    assert not (tmp_path / "mini").exists()


@pytest.mark.parametrize("cut", [crop_scene, frame_scene, frame_pair])
def test_parts_are_captioned_by_what_they_show(cut) -> None:
    scenes = Scenes(split="train", seed=3)
    for index in range(20):
        scene = scenes[index]
        picture, phrases = cut(scene, np.random.default_rng(index), side=64)
        kinds = {thing.kind for thing in scene.things}
        assert picture.shape == (64, 64, 3)
        named = {word for phrase in phrases for word in phrase.split()}
        assert named & (kinds | set(scene.stuff))
        assert not named & (set(scenes_things()) - kinds)


def test_windows_show_a_thing_at_its_own_size() -> None:
    shares = []
    for index in range(20):
        scene = Scenes(split="train", seed=3)[index]
        picture, phrases = frame_scene(scene, np.random.default_rng(index), side=128)
        rows = [row.tobytes() for row in scene.image.reshape(256, -1)]
        assert any(picture[0].tobytes() in row for row in rows)
        words = {word for phrase in phrases[:-1] for word in phrase.split()}
        shares.append(bool(words & {thing.kind for thing in scene.things}))
    assert np.mean(shares) > 0.9


def test_pairs_show_two_things_where_there_are_two() -> None:
    shown = []
    for index in range(30):
        scene = Scenes(split="train", seed=3)[index]
        picture, phrases = frame_pair(scene, np.random.default_rng(index), side=128)
        assert picture.shape == (128, 128, 3)
        words = [word for word in phrases[0].split() if word in scenes_things()]
        if len(scene.things) > 1:
            shown.append(len(words) > 1)
    assert len(shown) > 10
    assert np.mean(shown) > 0.9


def test_colours_left_out_of_captions() -> None:
    tokenizer = build_tokenizer(VOCABULARY)
    tokens = tokenize(tokenizer, [("a red car on grass", "a blue tree", "sky")])[0]
    end = int(tokens[0, -1])
    left = drop_tokens(tokens, torch.isin(tokens, color_ids(tokenizer)), end=end)
    assert (left == tokenize(tokenizer, [("a car on grass", "a tree", "sky")])[0]).all()


def scenes_things() -> tuple[str, ...]:
    from diffuseg.world.scenes import THINGS

    return THINGS


def test_training_leaves_the_processor_as_it_was() -> None:
    smallest = torch.tensor(torch.finfo(torch.float32).tiny)
    assert (smallest / 2).item() > 0
    with flush_denormals():
        assert (smallest / 2).item() == 0
        with flush_denormals():
            pass
        assert (smallest / 2).item() == 0
    assert (smallest / 2).item() > 0


def test_busy_crops_have_more_contrast() -> None:
    rng = np.random.default_rng(0)
    images = np.full((4, 64, 64, 3), 90, np.uint8)
    images[0] = rng.integers(0, 256, (64, 64, 3))
    plain = random_crops(images, 64, 32, np.random.default_rng(1))
    busy = random_crops(images, 64, 32, np.random.default_rng(1), busy=0.5)
    assert busy.shape == plain.shape == (64, 3, 32, 32)
    assert (busy.std((1, 2, 3)) > 0.1).sum() > 1.5 * (plain.std((1, 2, 3)) > 0.1).sum()


def test_hidden_padding_keeps_the_caption_from_leaking() -> None:
    """With end and padding tokens hidden, they cannot change what the U-Net says."""
    torch.manual_seed(0)
    tokenizer = build_tokenizer(VOCABULARY)
    model = Denoiser(TOY.denoiser, tokenizer, side=8).eval()
    ids = tokenizer("a red car", padding="max_length", return_tensors="pt").input_ids
    latents, step = torch.randn(1, 4, 16, 16), torch.tensor([100])
    with torch.no_grad():
        long, _ = model(latents, step, ids, True)
        short, _ = model(latents, step, ids[:, :6], True)
        open_, _ = model(latents, step, ids, False)
    torch.testing.assert_close(long, short)
    assert not torch.allclose(long, open_)


def test_schedule_is_stable_diffusions() -> None:
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    theirs = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    torch.testing.assert_close(scaled_linear_alphas(), theirs.alphas_cumprod)


def test_steps_take_turns_and_mosaics_come_every_second(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = tmp_path / "work"
    shutil.copytree(trained / "work", work)
    phase_path(work, 1).unlink()
    counts: list[int] = []
    mosaics: list[tuple[int, ...]] = []
    draw_batch, draw_mosaics = denoiser.draw_batch, denoiser.draw_mosaics

    def batches(*args: Any, count: int, **options: Any) -> denoiser.Batch:
        counts.append(count)
        return draw_batch(*args, count=count, **options)

    def mosaic(*args: Any, key: tuple[int, ...]) -> Any:
        mosaics.append(key)
        return draw_mosaics(*args, key=key)

    monkeypatch.setattr(denoiser, "draw_batch", batches)
    monkeypatch.setattr(denoiser, "draw_mosaics", mosaic)
    run(tmp_path / "mini", work, stage="unet")
    assert counts == [2, 3]
    assert [key[2] for key in mosaics] == [0]
