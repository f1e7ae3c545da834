"""Seg-diffusion's segmenter on tiny random models: nothing a result must not depend on changes it.

What masks look like is the matter of trained weights; here it is what goes with what, how often
networks are called, and what is held.
"""

import gc
from dataclasses import replace
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch

from diffuseg.api import build_segmenter, segment
from diffuseg.backbones import StableDiffusion, load
from diffuseg.errors import InputError
from diffuseg.methods import SegDiffusion
from diffuseg.methods.segdiffusion.codec import mask_shares
from diffuseg.methods.segdiffusion.ensemble import pool_runs
from diffuseg.methods.segdiffusion.noise import start_noise
from diffuseg.methods.segdiffusion.schedule import one_step_latents
from diffuseg.result import Segmentation
from diffuseg.segdiffusion import segmenter as room
from diffuseg.segdiffusion.autoencoder import decode_channel, encode_pixels
from diffuseg.segdiffusion.opening import open_segmenter
from diffuseg.segdiffusion.pictures import fitted_hw, padded_pixels, picture_key
from support import adapters, folders
from support.refusal import refused

NAMES = ("cat", "dog", "tree")
QUICK = SegDiffusion(steps=2, background="none")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("masks")
    adapters.write_whole(
        root / "v", folders.write_sd21(root / "sd21"), preset={"segdiffusion": {"steps": 3}}
    )
    adapters.write_whole(root / "eps", folders.write_sd15(root / "sd15"))
    return root


@pytest.fixture(scope="module")
def model(root):
    return load(root / "v")


def picture(height=48, width=64, seed=0):
    return np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)


def scored(model, settings=QUICK, classes=NAMES) -> Any:
    return open_segmenter(model, settings, list(classes), keep_scores=True)


def close(one, other):
    assert np.abs(one - other).max() < 1e-5


def test_a_picture_is_segmented(model):
    seg = segment(picture(), "cat, dog|sofa", model=model, method="segdiffusion")
    assert seg.names == ("background", "cat", "dog")
    assert seg.hw == (48, 64)
    assert seg.scores is None
    assert seg.uncertainty is None
    origin = seg.provenance
    assert origin.method == "segdiffusion"
    assert origin.working_hw == (48, 64)
    assert origin.seed == 0
    assert origin.parameters["steps"] == 3  # the model's preset
    assert origin.parameters["side"] == model.size == 64
    assert origin.parameters["template"] == "a photo of a {}"
    assert set(origin.seconds) == {"read", "text", "encode", "denoise", "decode", "label"}
    again = segment(picture(), "cat, dog|sofa", model=model, method="segdiffusion")
    assert np.array_equal(seg.labels, again.labels)


def test_scores_decide(model):
    seg = scored(model)(picture())
    assert np.array_equal(seg.labels, seg.scores.argmax(0))
    assert 0 <= seg.scores.min() < seg.scores.max() <= 1
    middle = float(np.median(seg.scores.max(0)))
    settings = replace(QUICK, background="threshold", threshold=middle)
    behind = scored(model, settings)(picture())
    assert behind.names == ("background", *NAMES)
    assert np.array_equal(behind.labels > 0, seg.scores.max(0) >= np.float32(middle))
    whole = scored(model, replace(settings, threshold=1.0))(picture())
    assert whole.areas["background"] > 0.95 * whole.labels.size


@pytest.mark.parametrize("batch", [1, 4, 64])
def test_nothing_depends_on_how_many_go_together(model, batch):
    wanted = scored(model, replace(QUICK, runs=2))(picture())
    found = scored(model, replace(QUICK, runs=2, batch=batch))(picture())
    close(found.scores, wanted.scores)
    close(found.uncertainty, wanted.uncertainty)


def test_nothing_depends_on_other_classes_or_their_order(model):
    wanted = scored(model)(picture())
    turned = scored(model, classes=NAMES[::-1])(picture())
    close(turned.scores[::-1], wanted.scores)
    alone = scored(model, classes=["dog"])(picture())
    close(alone.scores[0], wanted.scores[1])


def test_nothing_depends_on_other_pictures(model):
    find = scored(model)
    pictures = [picture(), picture(100, 30, 1), picture(seed=2), picture(24, 32, 3)]
    lists = [None, ["dog", "sofa"], ["tree"], None]
    together = find.many(pictures, lists)
    backwards = find.many(pictures[::-1], lists[::-1])[::-1]
    for seg, other, one, names in zip(together, backwards, pictures, lists, strict=True):
        alone = find(one, names)
        assert seg.names == other.names == alone.names
        assert seg.hw == one.shape[:2]
        close(seg.scores, alone.scores)
        close(other.scores, alone.scores)


def test_noise_is_of_the_pixels_and_the_seed(model, tmp_path):
    assert picture_key(room.read_image(picture())) != picture_key(room.read_image(picture(seed=1)))
    find = scored(model)
    path = tmp_path / "a.png"
    PIL.Image.fromarray(picture()).save(path)
    close(find(path).scores, find(picture()).scores)
    other = scored(model, replace(QUICK, seed=1))(picture())
    assert np.abs(other.scores - find(picture()).scores).max() > 1e-3


def test_runs_are_pooled(model, monkeypatch):
    pooled = scored(model, replace(QUICK, runs=3))(picture())
    median = scored(model, replace(QUICK, runs=3, reduction="median"))(picture())
    runs = []
    for run in range(3):
        with monkeypatch.context() as patch:
            patch.setattr(
                room,
                "start_noise",
                lambda shape, run=run, **told: start_noise(shape, **{**told, "runs": 3})[run:][:1],
            )
            runs.append(torch.from_numpy(scored(model)(picture()).scores.copy()))
    stacked = torch.stack(runs)
    mean, middle = pool_runs(stacked), pool_runs(stacked, "median")
    for seg, wanted in ((pooled, mean), (median, middle)):
        close(seg.scores, wanted.share.numpy())
        at = np.take_along_axis(wanted.uncertainty.numpy(), seg.labels[None], 0)[0]
        close(seg.uncertainty, at)
    legacy = scored(model, replace(QUICK, runs=3, reduction="legacy"))(picture())
    assert np.allclose(legacy.scores.max((1, 2)), 1)  # of every class, there or not


def test_uncertainty_is_kept(model, tmp_path):
    seg = scored(model, replace(QUICK, runs=2))(picture())
    assert seg.uncertainty.shape == seg.hw
    assert seg.uncertainty.max() > 0
    assert Segmentation.load(seg.save(tmp_path / "a.npz")) == seg
    assert replace(seg, uncertainty=None) != seg
    assert seg.resize((12, 16)).uncertainty.shape == (12, 16)
    assert np.array_equal(seg.relabel(("dog", "cat")).uncertainty, seg.uncertainty)
    with pytest.raises(ValueError, match="read-only"):
        seg.uncertainty[0, 0] = 1
    with refused("must be floating point of shape"):
        replace(seg, uncertainty=seg.uncertainty[1:])


def test_all_names_of_a_class_can_be_asked_for(model):
    pair = scored(model, replace(QUICK, names="all"), [("cat", "dog"), "tree"])(picture())
    apart = scored(model)(picture())
    assert pair.names == ("cat", "tree")
    close(pair.scores[0], apart.scores[:2].max(0))
    first = scored(model, QUICK, [("cat", "dog"), "tree"])(picture())
    close(first.scores[0], apart.scores[0])


@pytest.mark.parametrize(
    ("hw", "side", "seen"),
    [
        ((64, 64), 64, (64, 64)),
        ((17, 129), 64, (8, 64)),
        ((16, 900), 64, (1, 64)),
        ((333, 75), 64, (64, 14)),
        ((31, 30), 45, (45, 43)),
        ((16, 16), 100, (100, 100)),
    ],
)
def test_sizes(model, hw, side, seen):
    assert fitted_hw(hw, side) == seen
    seg = scored(model, replace(QUICK, side=side, steps=1))(picture(*hw))
    assert seg.hw == hw
    assert seg.scores.shape == (3, *hw)
    assert seg.provenance.working_hw == seen


def test_pictures_that_are_too_small(model):
    for one in (picture(1, 1), picture(15, 64)):
        with pytest.raises(InputError, match="at least 16 pixels"):
            scored(model)(one)


@pytest.mark.parametrize("old", [1, 2, 5, 8])
def test_padding_reflects(old):
    image = room.read_image(picture(16, 16))
    seen = padded_pixels(image, (old, 16), (8, 16))[0]
    period = max(1, 2 * old - 2)
    for row in range(8):
        place = row % period
        assert torch.equal(seen[:, row], seen[:, min(place, period - place)])


def held_maps(sides):
    """Numbers in living tensors that end in one of these sizes."""
    gc.collect()
    # Not isinstance: proxies of some libraries run code when they are asked what they are.
    tensors = [one for one in gc.get_objects() if type(one) is torch.Tensor]
    return sum(one.numel() for one in tensors if tuple(one.shape[-2:]) in sides)


def test_memory_does_not_grow_with_classes(model, monkeypatch):
    plane, batch, held, left = 43 * 57, 8, {}, []

    def watched(vae, latents, **how):
        left.pop()
        if not left:  # when the last masks of the last classes are decoded
            held[count] = held_maps({(40, 56), (39, 53), (43, 57)})
        return decode_channel(vae, latents, **how)

    monkeypatch.setattr(room, "decode_channel", watched)
    settings = SegDiffusion(steps=1, runs=2, side=53, batch=batch)
    for count in (12, 150):
        left.extend(range(-(-2 * count // batch)))
        names = [f"thing {number}" for number in range(count)]
        seg = open_segmenter(model, settings, names)(picture(43, 57))
        assert len(seg.names) == 1 + count
        assert not left
    assert 0 < held[150] < held[12] + 2 * plane < 40 * plane


def test_pictures_and_prompts_are_seen_once(model, monkeypatch):
    read, encoded = [], []
    embed = StableDiffusion.embed
    monkeypatch.setattr(
        StableDiffusion, "embed", lambda self, texts: read.extend(texts) or embed(self, texts)
    )
    monkeypatch.setattr(
        room,
        "encode_pixels",
        lambda vae, pixels, **how: encoded.append(len(pixels)) or encode_pixels(vae, pixels, **how),
    )
    find = open_segmenter(model, replace(QUICK, runs=3), list(NAMES))
    find.many([picture(), picture(seed=1)])
    find(picture(seed=2), ["sofa", "cat"])
    assert read == [f"a photo of a {name}" for name in (*NAMES, "sofa")]
    assert encoded == [2, 1]


def test_prompts_that_are_kept_are_not_many(model, monkeypatch):
    monkeypatch.setattr(room, "_KEPT", 2)
    find = open_segmenter(model, QUICK, list(NAMES))
    find(picture())
    assert len(find.texts) == 3
    find(picture(), ["sofa"])
    assert list(find.texts) == ["a photo of a tree", "a photo of a sofa"]


def test_a_single_step_from_zeros(model):
    one_step = SegDiffusion(profile="one-step", background="none")
    seg = scored(model, one_step, ["cat"])(picture(64, 64))
    assert seg.provenance.parameters["start"] == "zeros"
    image = room.read_image(picture(64, 64))
    z = encode_pixels(model.vae, padded_pixels(image, (64, 64), (64, 64)) * 2 - 1)
    text = model.embed("a photo of a cat")
    levels = open_segmenter(model).schedule.levels
    output = model.denoise(torch.cat([z, torch.zeros_like(z)], 1), len(levels) - 1, text)
    wanted = mask_shares(decode_channel(model.vae, one_step_latents(output, levels)))
    close(seg.scores, wanted.detach().numpy())


def test_settings_that_do_not_go_with_the_model(root, model):
    noise = load(root / "eps")
    assert open_segmenter(noise, QUICK, ["cat"])(picture()).names == ("cat",)
    with pytest.raises(InputError, match="must predict velocities to segment from zeros"):
        open_segmenter(noise, SegDiffusion(profile="one-step"))
    with pytest.raises(InputError, match="single step"):
        open_segmenter(model, SegDiffusion(start="zeros"))


def test_a_scheduler_that_is_not_trailing_is_said(model, caplog):
    open_segmenter(model)
    assert "timesteps" not in caplog.text
    leading = replace(model, scheduler={**model.scheduler, "timestep_spacing": "leading"})
    found = open_segmenter(leading)
    assert "comes with leading timesteps" in caplog.text
    assert found.schedule.timesteps[0] == 999


def test_masks_that_are_not_finite(root):
    spoilt = load(root / "v")
    spoilt.unet.conv_out.bias.data[0] = torch.nan
    with pytest.raises(InputError, match="latents of masks must be finite") as error:
        scored(spoilt)(picture())
    assert "bf16" in error.value.remedy


def test_built_by_name(root, model):
    find: Any = build_segmenter(root / "v", "segdiffusion", "cat", seed=3, size=72)
    assert (find.method.seed, find.method.side, find.method.steps) == (3, 72, 3)
    listed: Any = build_segmenter(
        model, QUICK, class_filter={"array": ["dog", "sofa"]}, keep_scores=True
    )
    assert listed(picture()).names == ("dog", "sofa")
    close(listed(picture()).scores[0], scored(model)(picture()).scores[1])
    with pytest.raises(InputError, match="must be said once"):
        build_segmenter(model, SegDiffusion(seed=1), "cat", seed=2)
    for told in ({"caption": "a cat"}, {"captioner": "x"}, {"fit": "square"}):
        with pytest.raises(InputError, match="keeps a picture's proportions"):
            build_segmenter(model, "segdiffusion", **told)


def test_what_is_refused(root, model):
    find = open_segmenter(model, QUICK, "cat")
    with pytest.raises(InputError, match="looks for classes"):
        find(picture(), caption="a cat")
    with pytest.raises(InputError, match="one class list for every image"):
        find.many([picture()], [None, None])
    with pytest.raises(InputError, match="a record can be had"):
        find.capture(picture())
    with pytest.raises(InputError, match="must be one that draws pictures"):
        segment(picture(), "cat", model=model, method="attend")
    with pytest.raises(InputError, match="must be told classes"):
        open_segmenter(model)(picture())
    with pytest.raises(InputError, match="either a class of yours"):
        open_segmenter(model, SegDiffusion(), "cat, background")
    assert open_segmenter(model, QUICK, "cat, background")(picture()).names == ("cat", "background")
    with pytest.raises(InputError, match="masks are denoised by Seg-diffusion"):
        replace(find, method=build_segmenter(root / "sd15", classes="cat").method).settings  # noqa: B018
    closed = replace(model, vocabulary=("a", "photo", "of", "cat"))
    with pytest.raises(InputError, match="knows only these words"):
        open_segmenter(closed, QUICK, "cat, sofa")
