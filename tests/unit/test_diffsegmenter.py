"""DiffSegmenter against its formula written out once more, and its prompts, on tiny models."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

import diffuseg as ds
from diffuseg import batch
from diffuseg.attention import AttentionRecord, RecordHeader, join_rows, layers_of, record, spread
from diffuseg.errors import InputError
from diffuseg.methods import DiffSegmenter, Needs, with_settings
from diffuseg.methods.completing import complete
from diffuseg.prompts import TokenSpan
from support.folders import write_mini, write_sd15
from support.models import CROSS_DIM, TOKENS, sd15
from support.refusal import refused

NAMES = ("car", "tree")
STEPS = (50, 100)
IMAGE_HW = (50, 90)


class Model:
    def __init__(self, preset=None):
        self.unet = sd15()
        self.preset = preset or {}


def recorded(batch=2, hw=(16, 24), kinds=("self", "cross"), steps=STEPS) -> AttentionRecord:
    unet = sd15()
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(1, 4, *hw, generator=generator).repeat(batch, 1, 1, 1)
    text = 3 * torch.randn(batch, TOKENS, CROSS_DIM, generator=generator)
    spans = tuple(
        TokenSpan(name=NAMES[row % 2], row=row, tokens=(2, 3) if row else (2,))
        for row in range(batch)
    )
    header = RecordHeader(
        model="tiny", prompts=("",) * batch, spans=spans, names=NAMES, image_hw=IMAGE_HW
    )
    with torch.no_grad(), record(unet, kinds=kinds, header=header) as held:
        for step in steps:
            unet(latents, step, text)
    # Random weights attend to everything alike; sharper, so that no difference is of rounding.
    for layer in held.layers:
        for step in steps:
            held.queries(layer, step).mul_(20)
    return held


def scored(found):
    assert found.scores is not None
    return found.scores


@pytest.fixture(scope="module")
def held():
    return recorded()


def by_hand(held, weights, steps=STEPS, power=1, normalise=True):
    """All heads' maps in full, one class after the other."""
    size = held.grids("self")[0]
    finals = []
    for row, span in enumerate(held.header.spans):
        total = 0
        for step in steps:
            fused = 0
            for level, weight in weights.items():
                layers = [a for a in held.layers if a.kind == "cross" and a.factor == level]
                heads = torch.cat([held.head_maps(a, step)[row] for a in layers])
                one = heads[..., list(span.tokens)].mean((0, 2)).view(1, 1, *held.grid(layers[0]))
                one = interpolate(one, size, mode="bilinear")
                low, high = one.min(), one.max()
                fused = fused + weight * ((one - low) / (high - low) if normalise else one)
            layers = [a for a in held.layers if a.kind == "self" and held.grid(a) == size]
            attention = torch.cat([held.head_maps(a, step)[row] for a in layers]).mean(0)
            fused = fused.flatten()
            for _ in range(power):
                fused = attention @ fused
            total = total + fused / len(steps)
        one = interpolate(total.view(1, 1, *size), IMAGE_HW, mode="bilinear")[0, 0]
        finals.append((one - one.min()) / (one.max() - one.min()))
    return torch.stack(finals).numpy()


PAPER = {8: 0.3, 4: 0.5, 2: 0.1, 1: 0.1}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, {"weights": PAPER}),
        ({"weights": "uniform"}, {"weights": dict.fromkeys(PAPER, 0.25)}),
        ({"levels": (4, 2), "weights": (3.0, 1.0)}, {"weights": {4: 0.75, 2: 0.25}}),
        ({"power": 3}, {"weights": PAPER, "power": 3}),
        ({"self_attention": "none"}, {"weights": PAPER, "power": 0}),
        ({"power": 0}, {"weights": PAPER, "power": 0}),
        ({"normalise": "none"}, {"weights": PAPER, "normalise": False}),
        ({"timesteps": (50,)}, {"weights": PAPER, "steps": (50,)}),
    ],
)
def test_the_formula(held, changes, expected):
    method = DiffSegmenter(**{"timesteps": STEPS, "threshold": 0.5} | changes)
    seg = method(held, scores=True)
    maps = by_hand(held, **expected)
    assert seg.names == ("background", *NAMES)
    np.testing.assert_allclose(scored(seg)[1:], maps, atol=5e-4)
    planes = np.concatenate([np.full((1, *IMAGE_HW), 0.5), maps])
    assert (seg.labels == planes.argmax(0)).mean() > 0.998
    assert seg.provenance.method == "diffsegmenter"
    assert seg.provenance.parameters["timesteps"] == list(method.timesteps or ())


def test_without_background_the_best_class_has_every_pixel(held):
    seg = DiffSegmenter(timesteps=STEPS, background="none")(held, scores=True)
    assert seg.names == NAMES
    assert (seg.labels == scored(seg).argmax(0)).all()


def test_the_background_wins_ties_and_takes_what_is_below(held):
    assert DiffSegmenter(timesteps=STEPS, threshold=1.0)(held).present == ("background",)
    assert "background" not in DiffSegmenter(timesteps=STEPS, threshold=-1.0)(held)


def test_factors_on_scores(held):
    plain = DiffSegmenter(timesteps=STEPS)(held, scores=True)
    method = DiffSegmenter(timesteps=STEPS, calibration=("car=0.5", "nobody = 3"))
    seg = method(held, scores=True)
    np.testing.assert_allclose(scored(seg)[1], scored(plain)[1] / 2)
    np.testing.assert_array_equal(scored(seg)[2], scored(plain)[2])
    assert seg["car"].sum() < plain["car"].sum()


def test_every_resolution_of_self_attention(held):
    all_, finest = (
        DiffSegmenter(timesteps=STEPS, self_attention=one)(held, scores=True).scores
        for one in ("all", "finest")
    )
    assert np.isfinite(all_).all()
    assert not np.allclose(all_, finest)


def test_synonyms_are_averaged():
    method = DiffSegmenter(timesteps=(50,), background="none", normalise="none")
    twice = recorded(batch=4, steps=(50,))
    whole = method(twice, scores=True).scores
    assert whole is not None
    # By hand: both rows of a class, averaged before they are stretched.
    size = twice.grids("self")[0]
    for index, name in enumerate(NAMES):
        rows = [span.row for span in twice.header.spans if span.name == name]
        maps = [diffsegmenter_map(twice.rows(row), size) for row in rows]
        one = interpolate(torch.stack(maps).mean(0)[None, None], IMAGE_HW, mode="bilinear")[0, 0]
        one = (one - one.min()) / (one.max() - one.min())
        np.testing.assert_allclose(whole[index], one.numpy(), atol=1e-4)


def diffsegmenter_map(one, size):
    """The completed map of a record of one prompt, without any stretching."""
    [span] = one.header.spans
    fused = 0
    for level, weight in PAPER.items():
        maps = one.cross_attention(level=level)[0][:, list(span.tokens)].mean(-1)
        grid = one.grid(next(a for a in one.layers if a.kind == "cross" and a.factor == level))
        fused = fused + weight * interpolate(maps.view(1, 1, *grid), size, mode="bilinear")
    return (one.self_attention(size)[0] @ fused.flatten()).view(size)


def test_classes_of_one_prompt_are_read_too():
    joint = recorded(batch=1)
    spans = tuple(TokenSpan(name=name, row=0, tokens=(2 + i,)) for i, name in enumerate(NAMES))
    joint = joint.with_header(replace(joint.header, spans=spans))
    seg = DiffSegmenter(timesteps=STEPS, background="none")(joint, scores=True)
    for index, span in enumerate(spans):
        alone = joint.with_header(replace(joint.header, spans=(span,), names=(span.name,)))
        one = DiffSegmenter(timesteps=STEPS, background="none")(alone, scores=True)
        np.testing.assert_allclose(scored(one)[0], scored(seg)[index], atol=1e-5)


def test_the_product_that_makes_no_maps(held):
    values = torch.rand(2, held.grids("self")[0][0] * held.grids("self")[0][1], 3)
    hw = held.grids("self")[0]
    for options in ({"step": 50}, {"step": None}, {"heads": (1,)}, {"layers": "up_blocks.3.*"}):
        whole = held.self_attention(hw, **options) @ values
        torch.testing.assert_close(spread(held, values, hw, **options), whole)
    twice = complete(held, values, hw, step=50, power=2)
    attention = held.self_attention(hw, step=50)
    torch.testing.assert_close(twice, attention @ (attention @ values))


def test_what_is_recorded():
    model = Model()
    needs = DiffSegmenter(timesteps=STEPS, levels=(4,), self_layers=("up_blocks.*",)).needs(model)
    assert (needs.timesteps, needs.prompt, needs.emphasis) == (STEPS, "per_class", 1.21)
    assert (needs.emphasis_rule, needs.reading, needs.continued) == ("blend", "attributes", False)
    found = {layer.name: layer for layer in layers_of(model.unet)}
    read = [found[name] for name in needs.layers]
    assert {one.factor for one in read if one.kind == "cross"} == {4}
    selves = [one for one in read if one.kind == "self"]
    assert {(one.stage, one.factor) for one in selves} == {("up", 1)}
    assert DiffSegmenter(self_attention="none").needs(model).kinds == ("cross",)
    all_ = DiffSegmenter(self_attention="all").needs(model)
    assert {found[name].factor for name in all_.layers if found[name].kind == "self"} == set(PAPER)
    legacy = DiffSegmenter(tokens="coco", legacy_coco_ing=True).needs(model)
    assert (legacy.reading, legacy.template) == ("coco-legacy", "a photography of {}")
    assert DiffSegmenter(tokens="voc12").needs(model).template == "a photograph of {}"


def test_presets_fill_what_is_open():
    model = Model({"diffsegmenter": {"timesteps": [20], "levels": [4, 2], "weights": [1.0, 2.0]}})
    assert DiffSegmenter().needs(model).timesteps == (20,)
    assert DiffSegmenter(timesteps=(5,)).needs(model).timesteps == (5,)
    # A preset's numbers are not put on levels they were not found for.
    assert DiffSegmenter(levels=(8,)).needs(model)
    assert DiffSegmenter(weights=(1.0, 1.0, 1.0, 1.0)).needs(model)


def test_settings_are_read_from_text():
    text = {"timesteps": "1,50", "weights": "uniform", "caption": "yes", "calibration": "a=1,b=2"}
    method = with_settings(DiffSegmenter(), text | {"self_attention": "none"})
    assert (method.timesteps, method.weights, method.caption) == ((1, 50), "uniform", True)
    assert method.calibration == ("a=1", "b=2")
    assert method.self_attention == "none"
    assert with_settings(DiffSegmenter(), {"weights": "1,2"}).weights == (1.0, 2.0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"timesteps": ()}, "timesteps must be 0 or more"),
        ({"timesteps": (1, 1)}, "each named once"),
        ({"levels": (0,)}, "levels must be 1 or more"),
        ({"weights": (0.0,)}, "weights must not be negative, nor all zero"),
        ({"levels": (1, 2), "weights": (1.0,)}, "one weight a level"),
        ({"power": -1}, "power must be 0 or more"),
        ({"emphasis": float("nan")}, "emphasis must be a number"),
        ({"threshold": float("inf")}, "threshold must be a number"),
        ({"legacy_coco_ing": True}, "legacy_coco_ing is for"),
        ({"calibration": ("dog",)}, "calibration must be texts such as"),
        ({"calibration": ("dog=-1",)}, "calibration must be texts such as"),
    ],
)
def test_settings_that_make_no_sense(settings, message):
    with refused(message):
        DiffSegmenter(**settings)


def test_records_that_will_not_do(held):
    method = DiffSegmenter(timesteps=STEPS)
    with refused("which tokens name which class"):
        method(held.with_header(replace(held.header, spans=())))
    with refused("a recorded timestep"):
        DiffSegmenter(timesteps=(7,))(held)
    with refused("one weight a level"):
        DiffSegmenter(timesteps=STEPS, weights=(1.0, 2.0))(held)
    with refused("self-attention of the layers asked for must have been recorded"):
        method(recorded(kinds=("cross",)))
    named = replace(
        held.header,
        names=("background", "tree"),
        spans=(replace(held.header.spans[0], name="background"), held.header.spans[1]),
    )
    with refused("the background is either a class of yours or found by threshold"):
        method(held.with_header(named))
    spoilt = recorded()
    spoilt.queries(spoilt.layers[1], 50).fill_(float("nan"))
    with refused("attention must be finite"):
        method(spoilt)


# ---- the way from words to prompts


@pytest.fixture(scope="module")
def closed(tmp_path_factory):
    return ds.load(write_mini(tmp_path_factory.mktemp("models") / "tiny"), device="cpu")


@pytest.fixture(scope="module")
def open_model(tmp_path_factory):
    return ds.load(write_sd15(tmp_path_factory.mktemp("models") / "sd15"), device="cpu")


METHOD = DiffSegmenter(template="a photo of {}")


def picture(seed=0, hw=(64, 64)):
    return np.random.default_rng(seed).integers(0, 256, (*hw, 3), dtype=np.uint8)


def test_all_classes_together_are_each_alone(closed):
    names = ["cat", "dog", "fire hydr", "red house"]
    together = ds.segment(picture(), names, model=closed, method=METHOD, keep_scores=True)
    for index, name in enumerate(names, 1):
        alone = ds.segment(picture(), [name], model=closed, method=METHOD, keep_scores=True)
        np.testing.assert_allclose(scored(alone)[1], scored(together)[index], atol=2e-4)


def test_more_prompts_than_go_through_at_once(closed, monkeypatch):
    names = "cat, dog|car, tree, sky"
    needs = METHOD.needs(closed)
    whole = ds.capture(picture(), closed, needs, names)
    monkeypatch.setattr(batch, "_MAX_ROWS", 2)
    parts = ds.capture(picture(), closed, needs, names)
    assert parts.header == whole.header
    assert parts.batch == whole.batch == 5
    for layer in whole.layers:
        torch.testing.assert_close(parts.keys(layer), whole.keys(layer), atol=1e-4, rtol=1e-3)
    other = Needs(timesteps=(3,), kinds=("cross",))
    with refused("records can be joined if they have the same layers"):
        join_rows([whole, ds.capture(picture(), closed, other, "cat")])


def continued(images, prompts):
    return [f"{prompt.upper()} running on grass" for prompt in prompts]


def test_prompts_a_captioner_continues(open_model):
    method = replace(METHOD, caption=True)
    segmenter = ds.build_segmenter(open_model, method, "Cat, fire hydrant", captioner=continued)
    record = segmenter.capture(picture())
    assert record.header.prompts == (
        "a photo of Cat running on grass",
        "a photo of fire hydrant running on grass",
    )
    for span, tokens in zip(record.header.spans, record.header.tokens, strict=True):
        read = "".join(tokens[i] for i in span.tokens).replace("</w>", " ")
        assert read == {"Cat": "cat running ", "fire hydrant": "fire hydrant running "}[span.name]
    assert record.header.provenance["emphasis"] == 1.21
    words = ds.build_segmenter(
        open_model, replace(method, tokens="words"), "Cat", captioner=continued
    )
    assert len(words.capture(picture()).header.spans[0].tokens) < len(record.header.spans[0].tokens)
    assert "caption" in segmenter(picture()).provenance.seconds


def test_the_verb_behind_a_class_is_read_but_not_stressed(open_model):
    method = replace(METHOD, caption=True)
    heavy, light = (
        ds.build_segmenter(
            open_model, replace(method, emphasis=weight), "cat", captioner=continued
        ).capture(picture())
        for weight in (1.21, 1.0)
    )
    first = next(one for one in heavy.layers if one.kind == "cross")
    moved = (heavy.keys(first) != light.keys(first))[0].any(-1).any(0).nonzero().flatten().tolist()
    assert moved
    assert set(moved) < set(heavy.header.spans[0].tokens)


def test_a_long_continuation_is_cut(open_model, caplog):
    def chatty(images, prompts):
        return [prompt + " running" + " on red grass" * 40 for prompt in prompts]

    segmenter = ds.build_segmenter(
        open_model, replace(METHOD, caption=True), "cat", captioner=chatty
    )
    [prompt] = segmenter.capture(picture()).header.prompts
    assert prompt.startswith("a photo of cat running on red grass")
    assert open_model.fits(prompt)
    assert "too long for the model" in caplog.text


@pytest.mark.parametrize(
    ("captioner", "message"),
    [
        (lambda images, prompts: ["something else"] * len(prompts), "continue every prompt"),
        (lambda images, prompts: prompts[:1], "continue every prompt"),
        (lambda images, prompts: [None] * len(prompts), "continue every prompt"),
    ],
)
def test_captioners_that_do_not_continue(open_model, captioner, message):
    segmenter = ds.build_segmenter(
        open_model, replace(METHOD, caption=True), "cat, dog", captioner=captioner
    )
    with refused(message):
        segmenter(picture())


def test_a_captioner_nobody_asks_is_refused(closed):
    with refused("a captioner is for methods that work from captions"):
        ds.build_segmenter(closed, METHOD, "cat", captioner=continued)


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ("", "at least one class"),
        (None, "needs the names of the classes"),
        ("cat, Cat", "every word may stand for one class, once"),
        ("cat|sofa, sofa", "every word may stand for one class, once"),
        ("hydrant", "knows only these words"),
        ("cat " * 90, "must lie within the 75 tokens|must fit"),
    ],
)
def test_words_that_will_not_do(closed, classes, message):
    with pytest.raises(InputError, match=message):
        ds.segment(picture(), classes, model=closed, method=METHOD)


def test_a_caption_is_no_list_of_classes(closed):
    with refused("a caption is for methods that look for its nouns"):
        ds.segment(picture(), model=closed, method=METHOD, caption="a cat")


def test_needs_that_exclude_each_other():
    for changes in ({"continued": True}, {"reading": "coco"}):
        with refused("prompts are continued, and read by a profile"):
            Needs(timesteps=(1,), kinds=("cross",), **changes)
