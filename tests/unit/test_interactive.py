"""Selecting what belongs to clicks, on made-up attention and records of a tiny random U-Net."""

import numpy as np
import pytest
import torch

from diffuseg.attention import AttentionRecord, RecordHeader, record
from diffuseg.attention.captured import CapturedPass, Contents
from diffuseg.errors import InputError
from diffuseg.image import Image
from diffuseg.methods.clicks import Clicks
from diffuseg.methods.interactive import Interactive
from diffuseg.methods.refinement import fold, join_columns, minsum, reduce_entropy, refine
from diffuseg.prompts import TokenSpan
from support.models import CROSS_DIM, TOKENS, sd15

IMAGE_HW = (48, 80)


class Model:
    def __init__(self, preset=None):
        self.unet = sd15()
        self.preset = preset or {}


def recorded(needs, *, batch=1, spans=()):
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(batch, 4, 16, 24, generator=generator)
    text = 3 * torch.randn(batch, TOKENS, CROSS_DIM, generator=generator)
    header = RecordHeader(
        model="tiny",
        prompts=("",) * batch,
        spans=spans,
        names=tuple(dict.fromkeys(one.name for one in spans)),
        image_hw=IMAGE_HW,
        seed=0,
    )
    unet = sd15()
    with torch.no_grad(), record(unet, kinds=needs.kinds, layers=needs.layers, header=header) as on:
        unet(latents, 100, text)
    return on


@pytest.fixture(scope="module")
def held():
    return recorded(Interactive().needs(Model()))


def random_attention(n=40, seed=0):
    scores = 4 * torch.randn(n, n, generator=torch.Generator().manual_seed(seed))
    return reduce_entropy(scores.softmax(1), ent=0.1, clamp=True)


# ---- steps on tensors


@pytest.mark.parametrize("iterations", [0, 1, 2, 7, 50])
def test_folded_products_are_the_step_by_step_ones(iterations):
    attention = random_attention()
    seeds = torch.rand(40, 3, generator=torch.Generator().manual_seed(1))
    seeds[:, 0] = torch.eye(40)[7]
    step_by_step = refine(seeds, attention, iterations=iterations)
    together = minsum(fold(attention.double(), iterations).float() @ seeds)
    torch.testing.assert_close(together, step_by_step, atol=2e-5, rtol=1e-3)


def test_nothing_leaks_between_blocks_without_links():
    attention = torch.block_diag(random_attention(20, 1), random_attention(20, 2))
    seed = torch.eye(40)[:, [3]]
    found = join_columns(minsum(fold(attention, 50) @ seed), torch.tensor([True]))[0]
    assert found[20:].max() < 1e-4
    assert found[:20].max() == 1


def test_columns_count_the_same_however_high_they_are():
    maps = torch.tensor([[100.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 5.0]])
    planes = join_columns(maps, torch.tensor([True, True, False]))
    assert planes.tolist() == [[1, 1, 0], [0, 0, 1]]


# ---- the method


def test_formula(held):
    clicks = Clicks.read(points=[(10, 10), (70, 40)])
    found = Interactive(iterations=5)(held, clicks, scores=True)
    [layer] = held.layers
    assert (layer.stage, layer.block, layer.index, layer.factor) == ("up", 3, 1, 1)
    grid = held.grid(layer)
    attention = held.head_maps(layer)[0].mean(0)
    seeds = torch.zeros(len(attention), 2)
    for column, (x, y) in enumerate([(10, 10), (70, 40)]):
        seeds[(y * grid[0] // 48) * grid[1] + x * grid[1] // 80, column] = 1
    maps = refine(seeds, reduce_entropy(attention, ent=0.1, clamp=True), iterations=5)
    mean = (maps / maps.amax(0)).mean(1)
    plane = (mean / mean.max()).view(1, 1, *grid)
    score = torch.nn.functional.interpolate(plane, IMAGE_HW, mode="bilinear")[0, 0].numpy()
    assert found.scores is not None
    np.testing.assert_allclose(found.scores[1], score, atol=1e-4)
    assert found.names == ("rest", "selected")
    assert (found.labels == found.scores.argmax(0)).all()


def test_what_is_not_wanted_takes_pixels_away(held):
    # Without a product, a seed is its own map.
    method = Interactive(iterations=0, threshold=0.05)
    wide = method(held, Clicks.read(boxes=(0, 0, 80, 40)))
    less = method(held, Clicks.read(boxes=(0, 0, 80, 40), negative_points=(71, 19)), scores=True)
    assert less.areas["selected"] < wide.areas["selected"]
    assert not (less["selected"] & ~wide["selected"]).any()
    assert less["selected"][20, 20]
    assert not less["selected"][19, 71]
    assert less.scores is not None
    assert (less.scores[0] >= np.float32(0.05)).all()


def test_a_box_over_everything_selects_everything(held):
    for iterations in (0, 5):
        found = Interactive(iterations=iterations)(held, Clicks.read(boxes=(0, 0, 80, 48)))
        assert found["selected"].all()


def test_an_image_is_prepared_once(held):
    prepared = Interactive(iterations=5).prepare(held)
    clicks = Clicks.read(points=(20, 20), boxes=(0, 0, 30, 30))
    again = Interactive(iterations=5)(held, clicks)
    assert prepared.select(clicks) == again == prepared.select(clicks)


def test_words_join_what_is_pointed_at():
    spans = (
        TokenSpan(name="car", row=0, tokens=(1, 2)),
        TokenSpan(name="tree", row=0, tokens=(4,)),
    )
    method = Interactive(iterations=2)
    needs = method.needs(Model(), words=True)
    assert needs.kinds == ("self", "cross")
    assert (needs.emphasis, needs.emphasis_on, needs.emphasis_rule) == (1.6, "classes", "scale")
    held = recorded(needs, spans=spans)
    prepared = method.prepare(held)
    assert prepared.words.shape[1] == 2
    alone = prepared.select(Clicks(), scores=True)
    joined = prepared.select(Clicks.read(points=(3, 3)), scores=True)
    assert alone.names == joined.names == ("rest", "selected")
    assert not np.array_equal(alone.scores, joined.scores)

    # By hand: each level's maps, every token summing to 1 over the image, 0.7 and 0.3.
    [used] = [one for one in held.layers if one.kind == "self"]
    grid = held.grid(used)
    total = 0
    for level, weight in ((4, 0.7), (2, 0.3)):
        layers = [one for one in held.layers if one.kind == "cross" and one.factor == level]
        maps = torch.cat([held.head_maps(one)[0] for one in layers]).mean(0)
        maps = (maps / maps.sum(0)).T.unflatten(1, held.grid(layers[0]))
        total = total + weight * torch.nn.functional.interpolate(maps[None], grid, mode="bilinear")
    total = total[0].flatten(1)
    columns = torch.stack([total[[1, 2]].mean(0), total[4]], 1)
    attention = held.head_maps(used)[0].mean(0)
    maps = refine(columns, reduce_entropy(attention, ent=0.1, clamp=True), iterations=2)
    torch.testing.assert_close(prepared.words, maps, atol=1e-6, rtol=1e-3)


# ---- by likeness


def two_halves(hw=IMAGE_HW):
    """Red on the left, blue on the right."""
    pixels = np.zeros((*hw, 3), dtype=np.uint8)
    pixels[:, : hw[1] // 2] = (200, 30, 30)
    pixels[:, hw[1] // 2 :] = (30, 30, 200)
    return Image(pixels=pixels)


@pytest.fixture(scope="module")
def halves():
    """An image whose queries, keys and colours are one thing on the left, another on the right."""
    method = Interactive(spread="likeness")
    held = recorded(method.needs(Model()))
    generator = torch.Generator().manual_seed(1)
    tensors: dict[str, torch.Tensor] = {}
    for layer in held.layers:
        height, width = held.grid(layer)
        side = (torch.arange(height * width) % width >= width // 2).float()
        way = torch.randn(2, layer.heads, 1, layer.width, generator=generator)
        noise = torch.randn(layer.heads, len(side), layer.width, generator=generator)
        tensors[layer.name] = (way[0] + side[:, None] * way[1] + 0.1 * noise)[None]
    contents = Contents(
        header=held.header,
        layers=held.layers,
        grids={one.name: held.grid(one) for one in held.layers},
        passes=[CapturedPass(100, tensors, dict(tensors))],
    )
    return method.prepare(AttentionRecord(contents), two_halves())


@pytest.mark.parametrize(
    ("clicks", "left", "right"),
    [
        ({"boxes": (40, 0, 80, 48)}, False, True),
        ({"lines": [(5, 5), (30, 40)], "negative_lines": [(50, 5), (70, 40)]}, True, False),
        ({"lines": [(50, 5), (70, 40)], "negative_lines": [(5, 5), (30, 40)]}, False, True),
        ({"points": (10, 20)}, True, False),
        ({"points": (70, 20), "negative_points": (10, 20)}, False, True),
    ],
)
def test_likeness_keeps_to_what_is_alike(halves, clicks, left, right):
    found = halves.select(Clicks.read(**clicks))["selected"]
    assert found[:, :36].mean() == pytest.approx(float(left), abs=0.1)
    assert found[:, 44:].mean() == pytest.approx(float(right), abs=0.1)


def test_likeness_gives_the_same_every_time():
    method = Interactive(spread="likeness", cells=24)
    clicks = Clicks.read(points=(20, 20), negative_masks=np.eye(48, 80))
    held = recorded(method.needs(Model()))
    first, second = (method(held, clicks, two_halves(), scores=True) for _ in range(2))
    assert first == second
    assert first.provenance.parameters["threshold"] == 0.35
    plain = method(held, clicks, scores=True)  # without the image
    assert not np.array_equal(plain.scores, first.scores)
    colourless = Interactive(spread="likeness", cells=24, colour=False)
    assert np.array_equal(colourless(held, clicks, two_halves(), scores=True).scores, plain.scores)


def test_likeness_takes_words():
    spans = (TokenSpan(name="car", row=0, tokens=(1, 2)),)
    method = Interactive(spread="likeness", cells=24)
    held = recorded(method.needs(Model(), words=True), spans=spans)
    found = method(held, Clicks(), two_halves())
    assert found.hw == IMAGE_HW
    less = method(held, Clicks.read(negative_boxes=(0, 0, 80, 48)), two_halves())
    assert not less["selected"].any()


# ---- settings


def test_settings_left_open_come_from_the_model():
    model = Model({"interactive": {"timestep": 300, "self_layers": ["down_blocks.0.*"]}})
    needs = Interactive().needs(model)
    assert needs.timesteps == (300,)
    assert all(name.startswith("down_blocks.0.") for name in needs.layers)
    assert Interactive(timestep=5).needs(model).timesteps == (5,)
    plain = Interactive().needs(Model())
    assert (plain.timesteps, plain.prompt, plain.emphasis_on) == ((100,), "empty", "start")


@pytest.mark.parametrize(
    "settings",
    [
        {"timestep": -1},
        {"ent": -0.1},
        {"iterations": -1},
        {"threshold": 1.0},
        {"cells": 4},
        {"reach": 0.0},
        {"cross_levels": (4,), "cross_weights": (0.7, 0.3)},
    ],
)
def test_values_out_of_range_are_refused(settings):
    with pytest.raises(InputError):
        Interactive(**settings)


def test_layers_that_are_not_there_are_refused(held):
    with pytest.raises(InputError, match="self_layers must match"):
        Interactive(self_layers=("nowhere",)).needs(Model())
    with pytest.raises(InputError, match="cross_levels must be levels"):
        Interactive(cross_levels=(16, 2)).needs(Model(), words=True)
    with pytest.raises(InputError, match="at least one mark"):
        Interactive()(held, Clicks())
    with pytest.raises(InputError, match="must lie in the image"):
        Interactive()(held, Clicks.read(points=(80, 0)))
