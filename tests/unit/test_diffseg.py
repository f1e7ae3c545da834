"""DiffSeg on records of a tiny random U-Net and on attention that was made up, and by its glue."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import diffuseg as ds
from diffuseg.attention import AttentionRecord, LayerId, RecordHeader, record
from diffuseg.attention.captured import Contents, ReducedMap
from diffuseg.errors import InputError
from diffuseg.methods import DiffSeg, KMeans, find_method, merging, method_name, with_settings
from diffuseg.methods.diffseg import PRESETS
from support.folders import write_mini
from support.models import CROSS_DIM, TOKENS, sd15

IMAGE_HW = (50, 90)
GRID = (16, 24)


class Model:
    def __init__(self, preset=None):
        self.unet = sd15()
        self.preset = preset or {}


@pytest.fixture(scope="module")
def held() -> AttentionRecord:
    latents = torch.randn(2, 4, *GRID, generator=torch.Generator().manual_seed(0))
    header = RecordHeader(model="tiny", prompts=("", ""), image_hw=IMAGE_HW)
    unet = sd15()
    with torch.no_grad(), record(unet, kinds=("self",), header=header) as held:
        unet(latents, 300, torch.zeros(2, TOKENS, CROSS_DIM))
    return held


@pytest.fixture(scope="module")
def one(held):
    return held.rows(0)


def made_up(values, hw=(4, 4), image_hw=None) -> AttentionRecord:
    """A record of the mean of one layer."""
    layer = LayerId(
        name="x", stage="down", block=0, index=0, depth=0, kind="self", heads=1, width=1, scale=1.0,
        factor=1,
    )  # fmt: skip
    mean = ReducedMap(kind="self", hw=hw, count=1, values=values)
    header = RecordHeader(model="made up", image_hw=image_hw)
    contents = Contents(header=header, layers=[layer], grids={"x": hw}, reduced=[mean])
    return AttentionRecord(contents)


def halves():
    """Left cells look left, right cells look right."""
    side = torch.arange(16) % 4 // 2
    maps = (side[:, None] == side).float() + 0.01
    return (maps / maps.sum(-1, keepdim=True))[None]


# ---- what it needs


def test_needs_self_attention_of_the_clean_image_under_an_empty_prompt():
    needs = DiffSeg().needs(Model())
    assert (needs.timesteps, needs.kinds, needs.prompt) == ((300,), ("self",), "empty")
    assert not needs.noise
    assert (needs.layers, needs.levels) == ("*", None)


def test_the_models_preset_fills_what_is_open(one):
    preset = {"diffseg": {"timestep": 50, "tau": 0.02}}
    assert DiffSeg().needs(Model(preset)).timesteps == (50,)
    assert DiffSeg(timestep=7).needs(Model(preset)).timesteps == (7,)


def test_a_chosen_weighting_is_not_overruled_by_the_models_weights():
    preset = {"weights": [0.0, 1.0], "timestep": 50}
    assert DiffSeg()._filled(preset).weights == (0.0, 1.0)
    chosen = DiffSeg(weighting="equal")._filled(preset)
    assert (chosen.weights, chosen.weighting, chosen.timestep) == (None, "equal", 50)
    assert KMeans(weighting="equal")._filled(preset, {}).weights is None
    assert KMeans()._filled(preset, {}).weights == (0.0, 1.0)


def test_presets_are_the_papers():
    assert {name: DiffSeg.preset(name).tau for name in PRESETS} == {
        "coco-stuff": 1.1,
        "cityscapes": 0.9,
        "wild": 1.0,
    }
    with pytest.raises(InputError, match="coco-stuff, cityscapes, wild"):
        DiffSeg.preset("voc")


def test_parameters_left_open_are_the_papers(one):
    parameters = DiffSeg()(one).provenance.parameters
    kept = {name: parameters[name] for name in ("timestep", "anchors", "rounds", "tau")}
    assert kept == {"timestep": 300, "anchors": 16, "rounds": 3, "tau": 1.0}
    assert with_settings(DiffSeg(), parameters) == DiffSeg()._filled({})


# ---- what comes out


@pytest.mark.parametrize("scores", [False, True])
def test_labels_cover_the_users_image(one, scores):
    seg = DiffSeg(tau=1e-9, rounds=1, anchors=4)(one, scores=scores)
    assert seg.hw == IMAGE_HW
    assert (seg.labels != seg.ignore).all()
    assert seg.names == tuple(f"segment {i}" for i in range(16))
    assert seg.provenance.method == "diffseg"
    assert seg.provenance.seed is None
    if scores:
        assert np.array_equal(seg.scores.argmax(0), seg.labels)
    else:
        assert seg.scores is None


def test_the_steps_are_those_of_merging(one):
    grids = one.grids("self")
    fused = merging.aggregate([one.self_attention(hw) for hw in grids], grids)
    points = merging.anchor_grid(GRID, 4)
    apart = merging.anchor_distances(fused, torch.from_numpy(points @ [GRID[1], 1]))
    tau = float(apart[0].flatten().quantile(0.3))
    [found] = merging.merge(fused, torch.from_numpy(points @ [GRID[1], 1]), [tau] * 3)
    seg = DiffSeg(tau=tau, anchors=4)(one, scores=True)
    assert len(seg.names) == len(found.maps)
    up = torch.nn.functional.interpolate(
        found.maps.view(1, -1, *GRID), size=IMAGE_HW, mode="bilinear"
    )[0]
    np.testing.assert_allclose(seg.scores, up.numpy(), atol=1e-7)


def test_made_up_halves():
    seg = DiffSeg()(made_up(halves(), image_hw=(32, 32)))
    assert seg.names == ("segment 0", "segment 1")
    assert (seg.labels == (np.arange(32) >= 16)[None]).all()


@pytest.mark.parametrize("refine", ["kmeans", "kl"])
def test_refined_halves(refine):
    seg = DiffSeg(refine=refine)(made_up(halves(), image_hw=(32, 32)))
    assert (seg.labels == (np.arange(32) >= 16)[None]).all()


def test_pixels_fall_to_the_nearest_map_on_request(one):
    grids = one.grids("self")
    fused = merging.aggregate([one.self_attention(hw) for hw in grids], grids)
    points = torch.from_numpy(merging.anchor_grid(GRID, 3) @ [GRID[1], 1])
    seg = DiffSeg(assign="nearest", anchors=3, rounds=1, tau=1e-9)(one, scores=True)
    apart = merging.anchor_distances(fused, points)[0]
    up = torch.nn.functional.interpolate(apart.view(1, -1, *GRID), size=IMAGE_HW, mode="bilinear")
    np.testing.assert_allclose(seg.scores, -up[0].numpy(), atol=1e-5)
    assert np.array_equal(seg.scores.argmax(0), seg.labels)


def test_a_wide_segment_is_not_overflown_by_a_narrow_one():
    # The first column looks at itself, and a little further; the others look at all the rest.
    owner = torch.arange(16) % 4 > 0
    narrow = torch.tensor([0.6, 0.4, 0.0, 0.0]).repeat(4) / 4 + 1e-3
    wide = torch.tensor([0.0, 1.0, 1.0, 1.0]).repeat(4) / 12 + 1e-3
    maps = torch.where(owner[:, None], wide, narrow)
    record = made_up((maps / maps.sum(-1, keepdim=True))[None], image_hw=(4, 4))
    truth = owner.view(4, 4).numpy()
    assert (DiffSeg(assign="nearest")(record).labels == truth).all()
    assert not (DiffSeg(assign="highest")(record).labels == truth).all()


@pytest.mark.parametrize("tau", [1.0, 1e-4, "auto"])
def test_constant_attention_is_one_segment(tau):
    seg = DiffSeg(tau=tau)(made_up(torch.full((1, 16, 16), 1 / 16)))
    assert len(seg) == len(seg.names) == 1


def test_all_anchors_merge_into_one():
    seg = DiffSeg(tau=1e9)(made_up(halves(), image_hw=(32, 32)), scores=True)
    assert seg.names == ("segment 0",)
    assert (seg.labels == 0).all()
    np.testing.assert_allclose(seg.scores.sum() / 64, halves()[0].mean(0).sum(), rtol=1e-5)


def test_no_anchors_merge():
    # A map for every cell, each highest at its own: as many segments as there are anchors.
    values = torch.eye(16)[None] + 0.01 / 16
    seg = DiffSeg(tau=1e-9, anchors=4)(made_up(values / values.sum(-1, keepdim=True)))
    assert len(seg) == len(seg.names) == 16
    assert len(np.unique(seg.labels)) == 16


@pytest.mark.parametrize("scale", [1.0, 0.1])
def test_the_threshold_can_be_left_to_the_image(scale):
    maps = halves() ** scale
    record = made_up(maps / maps.sum(-1, keepdim=True), image_hw=(32, 32))
    seg = DiffSeg(tau="auto")(record)
    assert (seg.labels == (np.arange(32) >= 16)[None]).all()
    assert seg.provenance.parameters["tau"] == "auto"
    assert with_settings(DiffSeg(), {"tau": "auto"}) == DiffSeg(tau="auto")
    with pytest.raises(InputError, match="tau must be a number"):
        with_settings(DiffSeg(), {"tau": "automatic"})
    if scale < 1:
        assert len(DiffSeg()(record)) == 1  # the paper's threshold, for Stable Diffusion


def test_numbers_by_area_on_request():
    side = torch.arange(16) % 4 > 0  # three columns of four
    maps = (side[:, None] == side).float() + 0.01
    values = (maps / maps.sum(-1, keepdim=True))[None]
    plain, ranked = (
        DiffSeg(relabel=on)(made_up(values, image_hw=(32, 32))) for on in (False, True)
    )
    assert plain.areas["segment 0"] < plain.areas["segment 1"]
    assert list(ranked.areas.values()) == sorted(plain.areas.values(), reverse=True)


def test_prompts_are_averaged(held, one):
    both = DiffSeg(tau=0.01, anchors=4)(held, scores=True)
    twice = DiffSeg(tau=0.01, anchors=4)(held.rows([0, 0]), scores=True)
    alone = DiffSeg(tau=0.01, anchors=4)(one, scores=True)
    assert both.hw == IMAGE_HW
    np.testing.assert_allclose(twice.scores, alone.scores, atol=1e-7)


def test_one_resolution_alone_has_its_own_cells(one):
    grids = one.grids("self")
    weights = (0.0, 1.0, *(0.0,) * (len(grids) - 2))
    fused = merging.aggregate([one.self_attention(grids[1])], grids[1:2], [1.0])
    points = torch.from_numpy(merging.anchor_grid(grids[1], 3) @ [grids[1][1], 1])
    seg = DiffSeg(weights=weights, anchors=3, rounds=1, tau=1e-9)(one, scores=True)
    up = torch.nn.functional.interpolate(
        fused[0, points].view(1, -1, *grids[1]), size=IMAGE_HW, mode="bilinear"
    )[0]
    np.testing.assert_allclose(seg.scores, up.numpy(), atol=1e-7)


def test_weights_are_used_as_given_unless_normalised(one):
    n = len(one.grids("self"))
    common = {"rounds": 1, "anchors": 3, "tau": 1e-9}
    plain, share, even = (
        DiffSeg(**settings, **common)(one, scores=True).scores
        for settings in (
            {"weights": (1.0,) * n},
            {"weights": (1.0,) * n, "normalise": True},
            {"weighting": "equal"},
        )
    )
    np.testing.assert_allclose(plain, np.multiply(share, n), rtol=1e-5)
    np.testing.assert_allclose(share, even, rtol=1e-5)


def test_layers_count_each_under_per_map(one):
    a, b = (
        DiffSeg(weighting=how, rounds=1, anchors=3, tau=1e-9)(one, scores=True).scores
        for how in ("proportional", "per_map")
    )
    assert not np.allclose(a, b, rtol=1e-4)


def test_thresholds_for_every_round(one):
    method = with_settings(DiffSeg(), {"tau": "0.5,0.2"})
    assert method.tau == (0.5, 0.2)
    assert method(one).provenance.parameters["rounds"] == 2


# ---- what cannot be


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"timestep": -1}, "timestep must be 0"),
        ({"weights": (0.0, 0.0)}, "weights must not"),
        ({"weights": (1.0, -1.0)}, "weights must not"),
        ({"anchors": 0}, "anchors must be 1"),
        ({"rounds": 0}, "rounds must be 1"),
        ({"tau": 0.0}, "tau must be positive"),
        ({"tau": float("nan")}, "tau must be positive"),
        ({"tau": ()}, "tau must be positive"),
        ({"tau": (1.0, 0.9), "rounds": 3}, "one tau for all rounds"),
    ],
)
def test_settings_that_cannot_be(settings, message):
    with pytest.raises(InputError, match=message):
        DiffSeg(**settings)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_attention_that_is_not_finite(bad):
    values = halves()
    values[0, 3, 3] = bad
    with pytest.raises(InputError, match="must be finite"):
        DiffSeg()(made_up(values))


def test_all_lost_to_half_precision():
    values = torch.eye(16)[None]
    with pytest.raises(InputError, match="at least one anchor"):
        DiffSeg(kl_dtype="float16")(made_up(values))
    assert len(DiffSeg(anchors=4)(made_up(values))) == 16


def test_a_record_without_self_attention():
    with pytest.raises(InputError, match="self-attention"):
        DiffSeg()(AttentionRecord(Contents()))


def test_a_weight_too_many(one):
    with pytest.raises(InputError, match="one weight a resolution"):
        DiffSeg(weights=(1.0,) * 9)(one)


# ---- by name, and without classes


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return ds.load(write_mini(tmp_path_factory.mktemp("models") / "tiny"), device="cpu")


def picture(seed=0, hw=(80, 100)):
    return np.random.default_rng(seed).integers(0, 256, (*hw, 3), dtype=np.uint8)


def test_found_by_name():
    assert find_method("diffseg") == DiffSeg()
    assert method_name(DiffSeg()) == "diffseg"


def test_segment_without_classes(model):
    seg = ds.segment(picture(), model=model, method="diffseg")
    assert seg.hw == (80, 100)
    assert seg.names[0] == "segment 0"
    assert (seg.provenance.method, seg.provenance.seed) == ("diffseg", None)


def test_many_images_give_what_each_gives_alone(model):
    method = DiffSeg(tau=1e-9, rounds=1, anchors=2)
    images = [picture(0), picture(1, (120, 60)), picture(2)]
    find = ds.build_segmenter(model, method, keep_scores=True)
    for image, seg in zip(images, find.many(images), strict=True):
        alone = find(image)
        assert seg.hw == image.shape[:2]
        np.testing.assert_allclose(seg.scores, alone.scores, rtol=1e-3, atol=1e-5)


def test_the_seed_changes_nothing(model):
    a, b = (ds.segment(picture(), model=model, method="diffseg", seed=seed) for seed in (0, 1))
    origins = [replace(one.provenance, seconds={}) for one in (a, b)]
    assert (a.labels == b.labels).all()
    assert origins[0] == origins[1]


def test_classes_are_refused_not_ignored(model):
    with pytest.raises(InputError, match="cat for diffseg, which finds segments without names"):
        ds.segment(picture(), "cat", model=model, method="diffseg")


def test_a_saved_record_gives_the_same(model, tmp_path):
    kept = ds.build_segmenter(model, "diffseg").capture(picture())
    kept.save(tmp_path / "a.safetensors")
    again = DiffSeg()(AttentionRecord.load(tmp_path / "a.safetensors"))
    assert np.array_equal(again.labels, DiffSeg()(kept).labels)
