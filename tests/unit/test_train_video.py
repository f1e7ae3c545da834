"""The video miniature's recipe at toy size: end to end, stopped and resumed; its pieces alone."""

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.pipelines.stable_video_diffusion.pipeline_stable_video_diffusion import (
    StableVideoDiffusionPipeline,
)
from PIL import Image
from safetensors.torch import load_file

from diffuseg.errors import InputError
from diffuseg.train import loop
from diffuseg.train.data import Progress
from diffuseg.train.video import MINI, train_video_mini
from diffuseg.train.video_data import draw_moments, load_clips, render_clips, render_moments
from diffuseg.train.video_denoiser import (
    VideoBatch,
    axes_of,
    draw_frames,
    draw_sigmas,
    draw_video_batch,
    find_axes,
    likeness_loss,
    v_target,
)
from diffuseg.train.video_encoders import (
    CLIP_SIDE,
    embed_pictures,
    encode_means,
    enlarge_encoder,
)
from diffuseg.train.video_recipe import VideoPhase, VideoRecipe
from diffuseg.world.videos import Clips

SHIPPED = MINI.with_name("mini-svd")
TOY = VideoRecipe(
    size=64,
    clips=3,
    frames=3,
    shard=2,
    channels=(32, 32, 32, 32),
    heads=2,
    time_width=8,
    phases=(
        VideoPhase(steps=2, batch=2, frames=3, side=8, learning_rate=1e-3, warmup=1),
        VideoPhase(steps=2, batch=1, frames=3, side=8, learning_rate=1e-3, warmup=1),
    ),
)


class Stopped(Exception):
    """Raised by a test where a run would be cut off."""


def meter_until(stop: int | None) -> Callable[[str], object]:
    @contextmanager
    def meter(title: str) -> Iterator[Progress]:
        def progress(done: int, total: int) -> None:
            if "U-Net" in title and done == stop:
                raise Stopped

        yield progress

    return meter


def run(folder: Path, *, stage: str = "all", stop: int | None = None) -> None:
    train_video_mini(
        folder / "out",
        folder / "work",
        stage=stage,
        recipe=TOY,
        device="cpu",
        workers=1,
        meter=meter_until(stop),
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained without a stop."""
    folder = tmp_path_factory.mktemp("video")
    run(folder)
    return folder


def test_recipe_gives_a_folder_diffusers_reads(trained):
    pipe = StableVideoDiffusionPipeline.from_pretrained(trained / "out", dtype=torch.float32)
    assert pipe.unet.config.num_frames == 3
    assert pipe.scheduler.config.prediction_type == "v_prediction"
    pipe.scheduler.set_timesteps(25)
    assert pipe.scheduler.sigmas[0] == pytest.approx(700)
    assert pipe.scheduler.sigmas[17] == pytest.approx(1.2732, abs=1e-3)
    assert pipe.scheduler.sigmas[24] == pytest.approx(0.002)
    pipe.set_progress_bar_config(disable=True)
    picture = np.full((64, 64, 3), 128, np.uint8)
    drawn = pipe(
        Image.fromarray(picture),
        height=64,
        width=64,
        num_inference_steps=2,
        output_type="np",
        generator=torch.Generator().manual_seed(0),
    ).frames
    assert drawn.shape == (1, 3, 64, 64, 3)
    assert np.isfinite(drawn).all()


def test_folder_is_complete_and_sealed(trained):
    sums = json.loads((trained / "out" / "checksums.json").read_text())
    assert {name.split("/")[0] for name in sums} == {
        *("unet", "vae", "image_encoder", "feature_extractor", "scheduler"),
        *("model_index.json", "diffuseg.json"),
    }
    weights = load_file(trained / "out" / "unet" / "diffusion_pytorch_model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.float16}
    assert all(torch.isfinite(weight).all() for weight in weights.values())


def test_autoencoder_is_that_of_the_image_miniature(trained):
    ours, theirs = (
        AutoencoderKL.from_pretrained(folder / "vae", torch_dtype=torch.float32)
        for folder in (trained / "out", MINI)
    )
    latents = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(ours.decode(latents).sample, theirs.decode(latents).sample)


def test_card_stays(trained, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "README.md").write_text("a card")
    (tmp_path / "work").symlink_to(trained / "work")
    run(tmp_path, stage="export")
    assert (tmp_path / "out" / "README.md").read_text() == "a card"


def test_resumed_run_gives_the_same_weights(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "_SAVE_EVERY", 1)
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "clips").symlink_to(trained / "work" / "clips")
    with pytest.raises(Stopped):
        run(tmp_path, stop=4)  # the second phase's first step is kept
    run(tmp_path)
    name = "out/unet/diffusion_pytorch_model.safetensors"
    ours, theirs = load_file(tmp_path / name), load_file(trained / name)
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_stage_must_be_known_and_in_order(tmp_path):
    with pytest.raises(InputError, match="render, unet, export"):
        run(tmp_path, stage="vae")
    with pytest.raises(InputError, match="--stage render"):
        run(tmp_path, stage="unet")
    with pytest.raises(InputError, match="--stage unet"):
        run(tmp_path, stage="export")


def test_rendering_goes_on_where_it_stopped(trained, tmp_path):
    kept = trained / "work" / "clips" / "clips-0001.safetensors"
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / kept.name).symlink_to(kept)
    told = []
    render_clips(TOY, MINI, tmp_path / "clips", workers=1, progress=lambda *done: told.append(done))
    assert told == [(1, 2), (2, 2)]
    ours = load_clips(TOY, tmp_path / "clips")
    theirs = load_clips(TOY, trained / "work" / "clips")
    assert [len(shard.paces) for shard in ours] == [2, 1]
    assert torch.equal(ours[0].latents, theirs[0].latents)


def test_rendered_moments_are_frames_of_the_clip():
    clips = Clips("train", seed=2, hw=(64, 64), frames=5)
    rendered = render_moments(clips, 1, np.linspace(0, 1, 5))
    np.testing.assert_array_equal(rendered, clips[1].frames)


def test_moments_stay_in_the_clip():
    for index in range(30):
        moments = draw_moments(VideoRecipe(), index)
        assert len(moments) == 14
        assert moments[0] >= 0
        assert moments[-1] <= 1 + 1e-9


def test_frames_are_evenly_spaced_both_ways():
    rng = np.random.default_rng(0)
    drawn = [draw_frames(14, 7, rng) for _ in range(60)]
    steps = {int(step) for frames in drawn for step in np.diff(frames)}
    assert steps == {-2, -1, 1, 2}
    assert all(len(set(np.diff(frames).tolist())) == 1 for frames in drawn)
    assert all(0 <= frame < 14 for frames in drawn for frame in frames)


def test_noise_is_faint_as_often_as_asked():
    sigmas = draw_sigmas(VideoRecipe(), 20000, np.random.default_rng(0))
    usual = draw_sigmas(replace(VideoRecipe(), faint=0.0), 20000, np.random.default_rng(0))
    assert (usual < 0.01).mean() < 0.01
    assert (sigmas < 0.01).mean() == pytest.approx(0.3 * 0.25, abs=0.02)


def test_axes_give_unit_variance_and_keep_angles():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2000, 5, generator=generator) * torch.tensor([1, 2, 3, 4, 50.0]) + 7
    found = find_axes(features, 5)(features.T[:, None]).squeeze(1).T
    scaled = (features - features.mean(0)) / features.std(0)
    torch.testing.assert_close(found @ found.T, scaled @ scaled.T, atol=1e-2, rtol=1e-3)


def draw(trained: Path, **changes: Any) -> VideoBatch:
    shards = load_clips(TOY, trained / "work" / "clips")
    axes = {name: axes_of(shards, name, 32) for name in ("coarse", "fine")}
    phase = replace(TOY.phases[0], side=4)
    return draw_video_batch(
        shards, replace(TOY, **changes), phase, key=(0, 1, 2), scaling=0.5, axes=axes
    )


def test_batch_tells_the_first_frame_as_diffusers_does(trained):
    batch = draw(trained, augment=(-20.0, 0.0), dropout=0.0)
    torch.testing.assert_close(batch.first, batch.clean[:, 0] / 0.5)
    assert batch.embeddings.shape == (2, 1, 128)
    assert (batch.embeddings.norm(dim=-1) > 0).all()
    assert batch.coarse.shape[-2:] == (2, 2)
    assert batch.fine.shape[-2:] == (4, 4)


def test_dropped_condition_is_zero_as_in_guidance(trained):
    batch = draw(trained, dropout=1.0)
    assert not batch.first.any()
    assert not batch.embeddings.any()


def test_target_gives_back_the_clean_latents(trained):
    batch = draw(trained)
    sigma = batch.sigmas[:, None, None, None, None]
    noisy = batch.clean + sigma * batch.noise
    found = noisy / (sigma**2 + 1) - v_target(batch) * sigma / (sigma**2 + 1).sqrt()
    torch.testing.assert_close(found, batch.clean, atol=1e-4, rtol=1e-4)


def test_likeness_is_nothing_for_queries_that_lie_as_the_features_do(trained):
    batch = draw(trained)
    queries = {
        block: 3 * features.flatten(0, 1).flatten(2).transpose(1, 2)
        for block, features in ((7, batch.coarse), (9, batch.fine))
    }
    assert likeness_loss(batch, queries) == pytest.approx(0, abs=1e-5)
    away = {block: -found for block, found in queries.items()}
    assert likeness_loss(batch, away) > 0.1


def test_enlarged_encoder_sees_what_the_old_one_sees():
    from transformers import CLIPModel

    pair = CLIPModel.from_pretrained(MINI / "clip", dtype=torch.float32).eval()
    frames = [Clips("train", hw=(256, 256), frames=2)[index].frames[0] for index in range(4)]
    pixels = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.inference_mode():
        ours = embed_pictures(enlarge_encoder(MINI / "clip").eval(), pixels)
        small = torch.nn.functional.interpolate(
            pixels, size=(96, 96), mode="bicubic", antialias=True
        )
        states = pair.vision_model(small).pooler_output
        theirs = pair.visual_projection(states)
    assert CLIP_SIDE == 224
    likeness = torch.nn.functional.cosine_similarity(ours[:, None], theirs[None], dim=-1)
    assert (likeness.argmax(1) == torch.arange(4)).all()


def test_resumed_phase_needs_the_same_recipe(trained, tmp_path):
    (tmp_path / "work").symlink_to(trained / "work")
    with pytest.raises(InputError, match="same recipe"):
        train_video_mini(
            tmp_path / "out",
            tmp_path / "work",
            stage="unet",
            recipe=replace(TOY, channels=(32, 32, 32, 64)),
            device="cpu",
            workers=1,
            meter=meter_until(None),
        )


def test_two_frames_are_refused(trained, tmp_path):
    (tmp_path / "work").symlink_to(trained / "work")
    with pytest.raises(InputError, match="3 frames or more"):
        train_video_mini(
            tmp_path / "out",
            tmp_path / "work",
            stage="unet",
            recipe=replace(TOY, phases=(replace(TOY.phases[0], frames=2),)),
            device="cpu",
            workers=1,
            meter=meter_until(None),
        )


@pytest.mark.skipif(not SHIPPED.is_dir(), reason="the embedded video model is not trained yet")
def test_shipped_folder_is_small_and_whole():
    sums = json.loads((SHIPPED / "checksums.json").read_text())
    files = [path for path in SHIPPED.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 25e6
    for name, held in sums.items():
        assert hashlib.sha256((SHIPPED / name).read_bytes()).hexdigest() == held
    named = {path.relative_to(SHIPPED).as_posix() for path in files}
    assert named == {*sums, "checksums.json", "README.md"}
    ours, theirs = (
        load_file(folder / "vae" / "diffusion_pytorch_model.safetensors")
        for folder in (SHIPPED, MINI)
    )
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


@pytest.mark.skipif(not SHIPPED.is_dir(), reason="the embedded video model is not trained yet")
def test_shipped_model_denoises_clips_it_never_saw():
    pipe = StableVideoDiffusionPipeline.from_pretrained(SHIPPED, dtype=torch.float32)
    frames = Clips("val", seed=5, hw=(256, 256), frames=28)[0].frames[:4]
    pixels = torch.from_numpy(frames).permute(0, 3, 1, 2).float().div(127.5).sub(1)
    noise = torch.randn(1, 4, 4, 32, 32, generator=torch.Generator().manual_seed(0))
    sigma = 1.2732
    with torch.inference_mode():
        clean = encode_means(pipe.vae, pixels)[None]
        first = clean[:, :1] / pipe.vae.config.scaling_factor
        noisy = clean + sigma * noise
        output = pipe.unet(
            torch.cat([noisy / (sigma**2 + 1) ** 0.5, first.expand_as(noisy)], dim=2),
            torch.tensor(np.log(sigma) / 4, dtype=torch.float32),
            embed_pictures(pipe.image_encoder, pixels[:1])[None],
            torch.tensor([[14.0, 127.0, 0.02]]),
        ).sample
    found = noisy / (sigma**2 + 1) - output * sigma / (sigma**2 + 1) ** 0.5
    assert (found - clean).square().mean() < 0.3 * clean.var()
