"""Videos segmented by a tiny random Stable Video Diffusion: all frames together, end to end."""

import json
from dataclasses import replace

import numpy as np
import PIL.Image
import pytest
import torch
from typer.testing import CliRunner

from diffuseg.backbones import load
from diffuseg.cli import app
from diffuseg.errors import InputError
from diffuseg.eval.video_datasets import SceneClips
from diffuseg.eval.video_runner import evaluate_video
from diffuseg.methods.vidseg import VidSeg
from diffuseg.methods.vidseg.denoising import denoise_modulated, denoise_plain
from diffuseg.methods.vidseg.modulation import frame_strengths, label_masks
from diffuseg.methods.vidseg.network import Counted
from diffuseg.video.seeing import look
from diffuseg.video.segmenter import open_video_segmenter, segment_video
from support import folders
from support.linear import LinearDiffusion, shapes

CLOSE = 1e-4
# Two steps with noise a random network can do something about.
SETTINGS = VidSeg(clusters=4, starts=1, steps=6, modulate_step=4)
READY = replace(SETTINGS, multiple=32).ready("svd")
COARSE = replace(SETTINGS, modulate=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return folders.write_svd(tmp_path_factory.mktemp("models") / "svd-tiny")


@pytest.fixture(scope="module")
def model(folder):
    return load(folder, device="cpu")


@pytest.fixture(scope="module")
def clip():
    frames, truth = shapes(3, side=64)
    return list(frames), truth


@pytest.fixture(scope="module")
def seen(model, clip):
    return look(model, READY, clip[0])


@pytest.fixture
def masks():
    labels = torch.zeros(3, 8, 8, dtype=torch.int64)
    labels[:, 2:6, 2:6] = 5
    labels[1] = 5  # so that label 0 is not in frame 1
    return label_masks(labels, [0, 5])


def responses(seen, masks, *, strength=50.0, blended=None, rows=None):
    parts = list(
        denoise_modulated(
            seen.network,
            seen.plain,
            masks,
            seen.schedule,
            strengths=frame_strengths(3, strength),
            blended=READY.blended if blended is None else blended,
            grid=seen.modulated_grid,
            rows=rows,
        )
    )
    pairs = torch.cat([torch.stack([one.labels, one.frames], 1) for one in parts]).tolist()
    signs = [torch.cat([getattr(one, sign) for one in parts]) for sign in ("positive", "negative")]
    return signs, pairs


def labels_of(found):
    return np.stack([one.labels for one in found])


# ---- what the model is shown


def test_noise_is_drawn_in_order(model, clip):
    frames = torch.stack([torch.tensor(one).permute(2, 0, 1).float() / 255 for one in clip[0]])
    generator = torch.Generator().manual_seed(1)
    posterior, condition, start = (
        torch.randn(shape, generator=generator)
        for shape in ((3, 4, 16, 16), (1, 3, 64, 64), (3, 4, 16, 16))
    )
    rows = []
    hook = model.unet.register_forward_pre_hook(lambda _, given: rows.append(given))
    seen = look(model, READY, clip[0])
    hook.remove()
    latents = model.encode(frames, noise=posterior)
    sigma = float(seen.schedule.sigmas[4])
    assert torch.allclose(seen.plain.noisy, latents + sigma * start, atol=1e-5)
    told = model.condition(
        frames[:1], fps_id=14, motion_bucket=127, noise_level=0.02, noise=condition
    )
    sample, time = rows[0]
    assert sample.shape == (2, 3, 8, 16, 16)
    assert not sample[0, :, 4:].any()
    assert torch.allclose(sample[1, :, 4:], told.latents.expand(3, -1, -1, -1), atol=1e-6)
    assert float(time) == pytest.approx(np.log(sigma) / 4, abs=1e-5)
    assert seen.plain.scales.tolist() == [1.0, 1.75, 2.5]
    assert seen.plain.clip
    assert len(rows) == 2


def test_features_are_spatial_queries_of_the_conditional_half(model, clip, seen):
    queries = []
    layer = model.unet.up_blocks[2].attentions[1].transformer_blocks[0].attn1.to_q
    hook = layer.register_forward_hook(lambda _m, _i, output: queries.append(output))
    look(model, READY, clip[0])
    hook.remove()
    assert torch.allclose(seen.tracked, queries[-1][3:], atol=1e-6)
    assert seen.features.shape == (3, 64, 32)
    assert seen.grid == seen.modulated_grid == (8, 8)


def test_the_same_seed_gives_the_same(model, clip, seen):
    again = look(model, READY, clip[0])
    assert again.features.equal(seen.features)
    other = look(model, replace(READY, seed=2), clip[0])
    assert not other.features.equal(seen.features)
    moved = look(model, replace(READY, motion_bucket=10), clip[0])
    assert not moved.features.equal(seen.features)


def test_frames_see_each_other(model, clip, seen):
    changed = [clip[0][0], clip[0][1], 255 - clip[0][2]]
    assert not torch.allclose(look(model, READY, changed).features[0], seen.features[0], atol=1e-5)


def test_noise_may_come_from_the_sampler_backwards(model, clip, seen):
    inverted = look(model, replace(READY, noise="inversion"), clip[0])
    assert inverted.plain.noisy.isfinite().all()
    assert not torch.allclose(inverted.plain.noisy, seen.plain.noisy, atol=1e-2)


# ---- modulation


def test_nothing_added_changes_nothing(seen, masks):
    (plus, minus), pairs = responses(seen, masks, strength=0.0, blended=range(0))
    assert plus.equal(minus)
    frames = [frame for _, frame in pairs]
    assert (plus - seen.plain.states[-1][frames]).abs().max() < CLOSE


@pytest.mark.parametrize("injected", ["code", "paper"])
def test_labels_change_what_is_inside_their_masks(model, clip, masks, injected):
    seen = look(model, replace(READY, injected=injected), clip[0])
    (plus, minus), pairs = responses(seen, masks)
    assert pairs == [[0, 0], [0, 2], [1, 0], [1, 1], [1, 2]]
    for place, (label, frame) in enumerate(pairs):
        inside = masks[label, frame].repeat_interleave(2, 0).repeat_interleave(2, 1)
        for sign in (plus, minus):
            assert sign[place][:, ~inside].equal(seen.plain.states[-1][frame][:, ~inside])
    assert (plus - minus).abs().amax((1, 2, 3)).min() > 1e-3
    still, _ = responses(seen, masks, strength=0.0, blended=range(0))
    assert (still[0][0] - seen.plain.states[-1][0]).abs().max() < CLOSE


def test_any_number_of_rows_gives_the_same(seen, masks):
    together, pairs = responses(seen, masks)
    apart, same = responses(seen, masks, rows=1)
    assert same == pairs
    assert (
        max((one - other).abs().max() for one, other in zip(apart, together, strict=True)) < CLOSE
    )


def test_fewer_rows_are_fewer_at_a_time(seen, masks):
    counted = Counted(seen.network)
    smaller = replace(seen, network=counted)
    responses(smaller, masks, rows=1)
    assert counted.rows / counted.calls == 2 * 2 * 3


def test_blending_inside_a_mask_of_everything_does_nothing(seen):
    everywhere = torch.ones(1, 3, 8, 8, dtype=torch.bool)
    blended, _ = responses(seen, everywhere)
    free, _ = responses(seen, everywhere, blended=range(0))
    assert all(one.equal(other) for one, other in zip(blended, free, strict=True))


def test_the_whole_pass_may_be_run_again(seen):
    plain = denoise_plain(
        seen.network, seen.plain.noisy, seen.schedule, start=4, scales=seen.plain.scales, clip=True
    )
    assert plain.states[-1].equal(seen.plain.states[-1])


# ---- videos


def test_labels_are_the_anchor_s(model):
    frames, truth = shapes(2, side=32)
    found = [
        labels_of(segment_video(frames, model, settings=SETTINGS, anchor=truth[0]))
        for _ in range(2)
    ]
    assert np.array_equal(*found)
    assert found[0].shape == (2, 32, 32)
    assert set(np.unique(found[0])) <= {2, 5, 9}


@pytest.mark.parametrize(("n", "batch"), [(1, 14), (5, 3), (14, 4)])
def test_every_frame_comes_once(model, n, batch):
    frames, truth = shapes(n, side=32)
    settings = replace(COARSE, batch=batch)
    found = list(segment_video(iter(frames), model, settings=settings, anchor=truth[0]))
    assert [one.index for one in found] == list(range(n))
    assert all(one.labels.shape == (32, 32) for one in found)


def test_frames_of_any_size(model):
    frames = np.random.default_rng(0).integers(0, 256, (2, 50, 77, 3), dtype=np.uint8)
    found = list(segment_video(frames, model, settings=replace(SETTINGS, clusters=2)))
    assert labels_of(found).shape == (2, 50, 77)
    assert labels_of(found).max() < 2


def test_emerdiff_s_settings_run_too(model):
    frames, truth = shapes(2, side=32)
    found = segment_video(
        frames, model, settings=SETTINGS, method="emerdiff", anchor=truth[0], rows=2
    )
    assert set(np.unique(labels_of(found))) <= {2, 5, 9}


def test_sides_are_multiples_of_the_coarsest_cell(model):
    assert open_video_segmenter(model, SETTINGS).settings.multiple == 32
    assert open_video_segmenter(model, SETTINGS).settings.backbone_kind == "svd"
    with pytest.raises(InputError, match="32 pixels a cell"):
        open_video_segmenter(model, replace(SETTINGS, multiple=16))


# ---- words


def test_words_are_found_by_another_model(model):
    with pytest.raises(InputError, match="words need a model that reads them"):
        open_video_segmenter(model, classes="ball, grass")
    with pytest.raises(InputError, match="one of images, which reads words"):
        open_video_segmenter(model, classes="ball, grass", namer_model=model)
    with pytest.raises(InputError, match="is for classes"):
        open_video_segmenter(model, namer_model="mini")
    frames, _ = shapes(2, side=32)
    found = list(
        segment_video(frames, model, settings=COARSE, classes="ball, grass", namer_model="mini")
    )
    assert set(found[0].names) >= {"ball", "grass"}


# ---- models and settings that do not fit


def test_settings_of_the_other_kind(model):
    with pytest.raises(InputError, match="for the kind of model they are used with"):
        open_video_segmenter(LinearDiffusion(scale=2), VidSeg(backbone_kind="svd"))
    with pytest.raises(InputError, match="for the kind of model they are used with"):
        open_video_segmenter(model, VidSeg(backbone_kind="sd"))


def test_models_without_the_blocks(tmp_path):
    sdxl = load(folders.write_sdxl(tmp_path / "sdxl"), device="cpu")
    with pytest.raises(InputError, match="self-attention in decoder block 6"):
        open_video_segmenter(sdxl)


# ---- commands


def test_the_commands(folder, tmp_path):
    frames, truth = shapes(2, side=32)
    (tmp_path / "in").mkdir()
    for i, pixels in enumerate(frames):
        PIL.Image.fromarray(pixels).save(tmp_path / "in" / f"{i}.png")
    PIL.Image.fromarray(truth[0].astype(np.uint8)).save(tmp_path / "mask.png")
    words = ["video", tmp_path / "in", "-o", tmp_path / "masks", "--model", folder, "--quiet"]
    words += [one for pair in ("steps=6", "modulate_step=4", "starts=1", "clusters=4")
              for one in ("--set", pair)]  # fmt: skip
    done = CliRunner().invoke(app, [*map(str, words), "--anchor", str(tmp_path / "mask.png")])
    assert done.exit_code == 0, done.output
    labels = np.stack([np.array(PIL.Image.open(tmp_path / f"masks/0000{i}.png")) for i in range(2)])
    assert set(np.unique(labels)) <= {2, 5, 9}
    words[3] = tmp_path / "named"
    words += ["--set", "modulate=false", "--classes", "ball, grass"]
    done = CliRunner().invoke(app, list(map(str, words)))
    assert done.exit_code == 2
    assert "--namer-model" in done.output
    done = CliRunner().invoke(app, [*map(str, words), "--namer-model", "mini"])
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize("told", [{"given": "anchor"}, {"given": "classes", "namer_model": "mini"}])
def test_it_is_scored(model, tmp_path, told):
    data = SceneClips(n=1, frames=3, hw=(64, 64))
    found = evaluate_video(data, model=model, settings=COARSE, frames=3, report=tmp_path, **told)
    assert 0 <= found.metrics["miou"] <= 1
    kept = json.loads((tmp_path / "report.json").read_text())
    assert kept["parameters"]["backbone_kind"] == "svd"
    assert kept["model"]["name"] == "svd-tiny"
