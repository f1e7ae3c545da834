"""Modulated denoising on real U-Net classes: batching changes nothing, nothing changes nothing."""

import gc
import weakref
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from diffuseg.attention.layers import layers_of
from diffuseg.errors import InputError
from diffuseg.methods.vidseg.denoising import Plain, Responses, denoise_modulated, denoise_plain
from diffuseg.methods.vidseg.modulation import Changing, Kept, attention_of, label_masks
from diffuseg.methods.vidseg.network import Counted
from diffuseg.methods.vidseg.prefix import find_prefix
from diffuseg.methods.vidseg.schedule import Schedule, guidance_scales, sd_schedule, svd_schedule
from diffuseg.methods.vidseg.settings import BLOCKS
from support import models

CLOSE = 1e-5
QUERIES = "up_blocks.2.attentions.1.transformer_blocks.0.attn1"
FRAMES = models.FRAMES


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@dataclass
class Scene:
    """A tiny model with the noisy latents of three frames, and where two labels are in them."""

    network: Counted
    unet: Any
    kept: Kept
    schedule: Schedule
    start: int
    scales: torch.Tensor
    clip: bool
    noisy: torch.Tensor
    masks: torch.Tensor

    def plain(self, noisy=None, rows=None) -> Plain:
        return denoise_plain(
            self.network,
            self.noisy if noisy is None else noisy,
            self.schedule,
            start=self.start,
            scales=self.scales,
            clip=self.clip,
            rows=rows,
        )

    def responses(
        self, plain, *, masks=None, strength=50.0, blended=None, rows=None, grid=None
    ) -> list[Responses]:
        strengths = torch.as_tensor(strength).expand(FRAMES)
        every = range(self.start, self.schedule.steps)
        return list(
            denoise_modulated(
                self.network,
                plain,
                self.masks if masks is None else masks,
                self.schedule,
                strengths=strengths,
                blended=every if blended is None else blended,
                rows=rows,
                grid=grid,
            )
        )


def called(unet):
    """How often the U-Net's outermost and first blocks run from now on."""
    ran = {"down_blocks.0": 0, "up_blocks.3": 0}
    for name in ran:

        def count(*_, name=name):
            ran[name] += 1

        unet.get_submodule(name).register_forward_hook(count)
    return ran


def joined(parts):
    """Latents [2 p c h w] of all calls, and their pairs."""
    pairs = [torch.stack([one.labels, one.frames], 1) for one in parts]
    return (
        torch.stack([torch.cat([getattr(one, name) for one in parts]) for name in SIGNS]),
        torch.cat(pairs).tolist(),
    )


SIGNS = ("positive", "negative")


@pytest.fixture(params=["sd", "svd"])
def scene(request):
    return build(request.param)


@pytest.fixture
def image_scene():
    return build("sd")


@pytest.fixture
def video_scene():
    return build("svd")


def build(kind, hw=(16, 16), **changes):
    video = kind == "svd"
    h, w = hw
    unet = models.svd() if video else models.sd15()
    width = models.CROSS_DIM
    text = torch.stack([torch.zeros(1 if video else 7, width), draw(1 if video else 7, width)])
    condition = draw(FRAMES, 4, h, w, seed=3)

    def network(x, call):
        halves = range(2 - call.halves, 2)
        if not video:
            rows = torch.cat([text[half].expand(len(x), -1, -1) for half in halves])
            inputs = x.repeat(call.halves, 1, 1, 1)
            return unet(inputs, call.time, rows, return_dict=False)[0]
        sample = torch.cat(
            [torch.cat([x, half * condition[call.frames]], 1) for half in halves]
        ).unflatten(0, (-1, call.clip))
        clips = len(sample) // call.halves
        rows = torch.cat([text[half].expand(clips, -1, -1) for half in halves])
        ids = torch.tensor([[13.0, 127.0, 0.02]]).expand(len(sample), -1)
        return unet(sample, call.time, rows, added_time_ids=ids, return_dict=False)[0].flatten(0, 1)

    changing = Changing(
        network,
        unet,
        **{
            "kept": Kept(FRAMES),
            "injected": attention_of(BLOCKS, ["temporal"] if video else ["self", "cross"]),
            "modulated": attention_of(
                *(([8], ["self", "temporal"]) if video else ([7], ["cross"]))
            ),
            "features": attention_of([6, 7, 8], ["self"]),
            "feature_step": 24,
            **changes,
        },
    )
    start = 22 if video else 23
    schedule = svd_schedule(25) if video else sd_schedule(25)
    labels = torch.zeros(FRAMES, h // 2, w // 2, dtype=torch.int64)
    labels[:, 2:6, 2:6] = 5
    labels[1] = 5  # so that label 0 is not in frame 1
    return Scene(
        network=Counted(changing),
        unet=unet,
        kept=changing.kept,
        schedule=schedule,
        start=start,
        scales=guidance_scales(FRAMES, (1.0, 2.5) if video else 5.0),
        clip=video,
        noisy=schedule.add_noise(draw(FRAMES, 4, h, w), draw(FRAMES, 4, h, w, seed=1), start),
        masks=label_masks(labels, [0, 5, 9]),
    )


# ---- same results, less work


def test_any_number_of_rows_gives_the_same(scene):
    plain = scene.plain()
    together, pairs = joined(scene.responses(plain))
    for rows in (1, 12):
        parts = scene.responses(plain, rows=rows)
        apart, same = joined(parts)
        assert same == pairs
        assert len(parts) > 1
        assert (apart - together).abs().max() < CLOSE
    # Label 9 is nowhere and label 0 not in frame 1.
    assert pairs == [[0, 0], [0, 2], [1, 0], [1, 1], [1, 2]]


def test_the_unmodulated_pass_may_be_cut_too(image_scene):
    whole = image_scene.plain()
    queries = image_scene.kept.queries(24, QUERIES)
    cut = image_scene.plain(rows=2)
    assert (whole.states[-1] - cut.states[-1]).abs().max() < CLOSE
    assert (image_scene.kept.queries(24, QUERIES) - queries).abs().max() < CLOSE
    assert queries.shape == (FRAMES, 64, 16)


def test_empty_masks_cost_nothing(image_scene):
    plain = image_scene.plain()
    before = image_scene.network.rows
    image_scene.responses(plain)
    steps = image_scene.schedule.steps - image_scene.start
    assert image_scene.network.rows - before == 2 * 2 * 5 * steps
    assert image_scene.responses(plain, masks=image_scene.masks[2:]) == []


def test_without_guidance_half_is_left_out(image_scene):
    image_scene.scales = torch.ones(FRAMES)
    before = image_scene.network.rows
    plain = image_scene.plain()
    assert image_scene.network.rows - before == 2 * FRAMES
    found, _ = joined(image_scene.responses(plain, strength=0.0))
    assert found[0].equal(found[1])


def test_a_clip_goes_together(video_scene):
    plain = video_scene.plain()
    before = video_scene.network.rows
    blended = video_scene.responses(plain)
    steps = video_scene.schedule.steps - video_scene.start
    assert video_scene.network.rows - before == 2 * 2 * 2 * FRAMES * steps
    # Unless put back, all frames of a clip change with one of them.
    every = video_scene.responses(plain, blended=range(0))
    assert joined(blended)[1] == [[0, 0], [0, 2], [1, 0], [1, 1], [1, 2]]
    assert joined(every)[1] == [[label, frame] for label in range(2) for frame in range(FRAMES)]
    for part in every:
        assert (part.positive[1] - part.negative[1]).abs().max() > 1e-4


# ---- what is before the modulated layers is computed once


@pytest.mark.parametrize("hw", [(16, 16), (18, 22), (24, 10)])
@pytest.mark.parametrize("block", [5, 7, 9])
def test_starting_again_before_the_modulated_layers_gives_the_same(hw, block):
    names = [f"up_blocks.{block // 3}.attentions.{block % 3}.transformer_blocks.0.attn2"]
    found = []
    for restart in (None, 23):
        changes = {"modulated": attention_of([block], ["cross"]), "restart_step": restart}
        scene = build("sd", hw, **changes)
        plain = scene.plain(rows=4)  # two calls
        ran = called(scene.unet)
        grid = next(one for one in layers_of(scene.unet) if one.name == names[0]).hw(hw)
        found.append(joined(scene.responses(plain, rows=12, grid=grid))[0])
        # Of two steps, one begins in the middle.
        assert ran["down_blocks.0"] == ran["up_blocks.3"] // (1 if restart is None else 2)
    assert (found[0] - found[1]).abs().max() < CLOSE
    assert (found[0][0] - found[0][1]).abs().max() > 1e-3


def test_models_that_cannot_be_started_in_the_middle(video_scene):
    scene = build("svd", restart_step=22)
    found, _ = joined(scene.responses(scene.plain()))
    expected, _ = joined(video_scene.responses(video_scene.plain()))
    assert found.equal(expected)
    assert find_prefix(models.svd(), 2, FRAMES) is None
    assert find_prefix(models.sd15(), 2, FRAMES) is not None
    assert find_prefix(models.sd15(), 4, FRAMES) is None
    moved = models.sd15()
    moved.forward = moved.forward  # as accelerate does
    assert find_prefix(moved, 2, FRAMES) is None


def test_a_model_is_itself_again_afterwards():
    scene = build("sd", restart_step=23)
    scene.responses(scene.plain())
    assert "forward" not in vars(scene.unet)
    assert not any(one._forward_pre_hooks for one in scene.unet.up_blocks)


def test_what_was_kept_is_let_go_at_once(scene):
    gc.collect()
    gc.disable()  # a batch must not stay until circles are looked for
    try:
        found = joined(scene.responses(scene.plain()))
        kept, scene.kept, scene.network = weakref.ref(scene.kept), None, None
        assert kept() is None
    finally:
        gc.enable()
    assert found[0].isfinite().all()


# ---- nothing changes nothing


def test_nothing_added_gives_equal_images_and_the_unmodulated_pass(scene):
    plain = scene.plain()
    parts = scene.responses(plain, strength=0.0, blended=range(0))
    found, pairs = joined(parts)
    assert found[0].equal(found[1])
    frames = [frame for _, frame in pairs]
    assert (found[0] - plain.states[-1][frames]).abs().max() < CLOSE


def test_a_frame_with_an_empty_mask_stays_as_it_is(image_scene):
    plain = image_scene.plain()
    found, pairs = joined(image_scene.responses(plain, strength=[50.0, 0.0, 50.0]))
    same = [plus.equal(minus) for plus, minus in zip(*found, strict=True)]
    assert same == [frame == 1 for _, frame in pairs]


def test_latents_outside_the_mask_are_put_back(scene):
    plain = scene.plain()
    found, pairs = joined(scene.responses(plain))
    for place, (label, frame) in enumerate(pairs):
        inside = scene.masks[label, frame].repeat_interleave(2, 0).repeat_interleave(2, 1)
        for sign in found:
            assert sign[place][:, ~inside].equal(plain.states[-1][frame][:, ~inside])
    assert (found[0] - found[1]).abs().amax((1, 2, 3)).min() > 1e-3


def test_blending_inside_a_mask_of_everything_does_nothing(scene):
    plain = scene.plain()
    everywhere = torch.ones(1, FRAMES, 8, 8, dtype=torch.bool)
    blended, _ = joined(scene.responses(plain, masks=everywhere))
    free, _ = joined(scene.responses(plain, masks=everywhere, blended=range(0)))
    assert blended.equal(free)


def test_frames_of_an_image_model_do_not_see_each_other(image_scene):
    plain = image_scene.plain()
    queries = image_scene.kept.queries(24, QUERIES)
    order = [2, 0, 1]
    moved = image_scene.plain(image_scene.noisy[order])
    assert (moved.states[-1] - plain.states[-1][order]).abs().max() < CLOSE
    assert (image_scene.kept.queries(24, QUERIES) - queries[order]).abs().max() < CLOSE


# ---- what cannot be


def test_queries_that_were_not_kept(image_scene):
    plain = image_scene.plain()
    other = build("sd")
    with pytest.raises(InputError, match="kept in the unmodulated pass"):
        other.responses(plain)


def test_masks_of_other_frames(image_scene):
    with pytest.raises(InputError, match="of 3 frames"):
        image_scene.responses(image_scene.plain(), masks=image_scene.masks[:, :2])


def test_there_is_no_such_step(image_scene):
    image_scene.start = 25
    with pytest.raises(InputError, match="from 0 to 24"):
        image_scene.plain()


def test_kept_in_less_memory(image_scene):
    exact, _ = joined(image_scene.responses(image_scene.plain()))
    halved = build("sd", kept=Kept(FRAMES, dtype=torch.float16))
    near, _ = joined(halved.responses(halved.plain()))
    assert halved.kept.bytes == image_scene.kept.bytes // 2
    assert 0 < (near - exact).abs().max() < 0.05 * exact.abs().max()
