"""iSeg against its formula written out once more, on records of tiny random U-Nets."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

from diffuseg.attention import AttentionRecord, RecordHeader, layers_of, record
from diffuseg.errors import InputError
from diffuseg.methods import ISeg, find_method
from diffuseg.methods.iseg_profiles import ISEG_PRESETS, VOC_HEADS
from diffuseg.prompts import TokenSpan
from support.models import CROSS_DIM, TOKENS, sd15, sd21

NAMES = ("car", "tree", "sky")
SPANS = tuple(
    TokenSpan(name=name, row=0, tokens=tokens)
    for name, tokens in zip(NAMES, [(1,), (3, 4), (5,)], strict=True)
)
IMAGE_HW = (50, 90)
# Without what random attention makes a lottery of.
PLAIN = ISeg(clusters=0, background="none", self_heads="all")


@cache
def built(build, **options):
    return build(**options)


class Model:
    def __init__(self, unet=None, preset=None):
        self.unet = unet or built(sd15)
        self.preset = preset or {}


def real_heads():
    """Stable Diffusion 2.1-base with its numbers of heads, 5, 10, 20, 20, and narrow ones."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return UNet2DConditionModel(
            sample_size=16,
            block_out_channels=(20, 40, 80, 80),
            attention_head_dim=(5, 10, 20, 20),
            cross_attention_dim=CROSS_DIM,
            norm_num_groups=4,
            layers_per_block=2,
            use_linear_projection=True,
        ).eval()


def recorded(unet=None, header=None, batch=1, kinds=("self", "cross")) -> AttentionRecord:
    unet = unet or built(sd15)
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(batch, 4, 16, 24, generator=generator)
    text = 3 * torch.randn(batch, TOKENS, CROSS_DIM, generator=generator)
    base = RecordHeader(
        model="tiny",
        prompts=("",) * batch,
        spans=SPANS,
        names=NAMES,
        image_hw=IMAGE_HW,
        input_hw=(64, 96),
        seed=0,
    )
    with torch.no_grad(), record(unet, kinds=kinds, header=header or base) as held:
        unet(latents, 100, text)
    return held


@pytest.fixture(scope="module")
def held():
    return recorded()


def scores_of(method, held):
    scores = method(held, scores=True).scores
    assert scores is not None
    return scores


def resized(maps, hw):
    return torch.nn.functional.interpolate(maps[None], hw, mode="bilinear")[0]


def cross_maps(held, level, names, heads=None):
    """Mean of all heads of the layers at a level, of a list [t, h, w], by hand."""
    layers = [one for one in held.layers if one.kind == "cross" and one.factor == level]
    layers = [one for one in layers if any(part in one.name for part in names)]
    maps = torch.cat([held.head_maps(one)[0] for one in layers])
    maps = maps[list(heads)] if heads else maps
    return maps.mean(0).T.unflatten(1, held.grid(layers[0]))


USED = {
    4: ("down_blocks.2", "up_blocks.1"),
    2: ("down_blocks.1.attentions.1", "up_blocks.2.attentions.0", "up_blocks.2.attentions.1"),
}
OWN = "up_blocks.3.attentions.1.transformer_blocks.0.attn1"


def by_hand(held, weights=(0.7, 0.3), ent=0.015, times=10, heads=None, own_heads=None):
    """The score of every class, in [0, 1], without prototypes."""
    total = 0
    for level, weight in zip((4, 2), weights, strict=True):
        maps = cross_maps(held, level, USED[level], None if heads is None else heads[level])
        total = total + weight * resized(maps / maps.sum((1, 2), keepdim=True), (16, 24))
    x = torch.stack([total[list(span.tokens)].mean(0).flatten() for span in SPANS], dim=1)
    own = held.head_maps(OWN)[0]
    a = (own if own_heads is None else own[list(own_heads)]).mean(0).double()
    a = a / a.amax(0)
    a = (a + ent * torch.log10(np.e * a)).clamp(min=0)
    a = a / a.sum(1, keepdim=True)
    x = x.double()
    for number in range(times + 1):
        x = a @ x if number else x
        x = x - x.amin(0)
        x = x / x.sum(0)
    planes = resized(x.T.unflatten(1, (16, 24)), (64, 96))
    for size in ((64, 96), IMAGE_HW):
        planes = resized(planes, size)
        planes = planes - planes.amin((1, 2), keepdim=True)
        planes = planes / planes.amax((1, 2), keepdim=True)
    return planes.numpy()


# ---- the formula


@pytest.mark.parametrize(
    ("settings", "changes"),
    [
        ({}, {}),
        ({"ent": 0.002, "iterations": 3}, {"ent": 0.002, "times": 3}),
        ({"ent": 0.0}, {"ent": 0.0}),
        ({"levels": (4, 2), "weights": (1.0, 2.0)}, {"weights": (1.0, 2.0)}),
        ({"log_base": "e", "ent": 0.0065}, {"ent": 0.0065 * np.log(10)}),
    ],
)
def test_formula(held, settings, changes):
    method = replace(PLAIN, **settings)
    expected = by_hand(held, **changes)
    np.testing.assert_allclose(scores_of(method, held), expected, atol=1e-3)
    assert (method(held).labels == scores_of(method, held).argmax(0)).mean() == 1


def test_the_authors_heads():
    unet = built(real_heads)
    held = recorded(unet)
    method = ISeg(clusters=0, background="none", heads="voc")
    expected = by_hand(held, heads=VOC_HEADS, own_heads=(1, 2))
    np.testing.assert_allclose(scores_of(method, held), expected, atol=1e-3)
    assert {len(heads) for heads in VOC_HEADS.values()} == {9, 41}
    # and what it would be with all
    different = scores_of(replace(method, heads="all", self_heads="all"), held)
    assert np.abs(different - expected).max() > 0.01


@pytest.mark.parametrize("unet", [sd15, sd21, real_heads])
def test_layers_of_stable_diffusion(unet):
    needs = ISeg().needs(Model(built(unet)))
    short = [name.replace(".transformer_blocks.0", "") for name in needs.layers]
    assert short == [
        "down_blocks.1.attentions.1.attn2",
        "down_blocks.2.attentions.0.attn2",
        "down_blocks.2.attentions.1.attn2",
        "up_blocks.1.attentions.0.attn2",
        "up_blocks.1.attentions.1.attn2",
        "up_blocks.1.attentions.2.attn2",
        "up_blocks.2.attentions.0.attn2",
        "up_blocks.2.attentions.1.attn2",
        "up_blocks.3.attentions.1.attn1",
    ]
    assert needs.timesteps == (100,)
    assert needs.emphasis == 1.6
    assert needs.emphasis_rule == "scale"


def test_layers_of_other_models():
    unet = built(sd15, levels=3, layers=1)
    needs = ISeg().needs(Model(unet))
    there = layers_of(unet)
    cross = {one.name for one in there if one.kind == "cross" and one.factor in (2, 4)}
    own = {one.name for one in there if one.kind == "self" and one.factor == 1}
    assert set(needs.layers) == cross | own


def test_a_full_record_gives_what_a_record_of_the_needs_does(held):
    needs = ISeg().needs(Model())
    assert np.array_equal(scores_of(ISeg(), held), scores_of(ISeg(), held.only(needs.layers)))


def test_classes_do_not_touch_each_other(held):
    header = replace(held.header, names=(NAMES[2], NAMES[0]))
    other = scores_of(PLAIN, held.with_header(header))
    np.testing.assert_allclose(other, scores_of(PLAIN, held)[[2, 0]], atol=1e-6)


def test_the_order_of_levels_does_not_matter(held):
    there = replace(PLAIN, levels=(2, 4), weights=(0.3, 0.7))
    np.testing.assert_allclose(scores_of(there, held), scores_of(PLAIN, held), atol=1e-5)
    alone = replace(PLAIN, levels=(4,), weights=(1.0,))
    without = replace(PLAIN, levels=(4, 2), weights=(1.0, 0.0))
    assert np.array_equal(scores_of(alone, held), scores_of(without, held))


def test_without_reduction_one_product_with_the_attention_as_it_is(held):
    method = replace(PLAIN, ent_self=False, normalise="none")
    again = replace(method, iterations=7, ent=0.2)
    assert np.array_equal(scores_of(method, held), scores_of(again, held))
    # Neither shifted nor scaled, a map keeps its sum under the average of all attention.
    own = held.self_attention((16, 24), layers=OWN)[0]
    start = scores_of(replace(PLAIN, iterations=0, normalise="sum"), held)
    assert start.shape == (3, *IMAGE_HW)
    assert own.shape == (384, 384)


def test_normalise(held):
    none = scores_of(replace(PLAIN, normalise="none", iterations=1), held)
    summed = scores_of(replace(PLAIN, normalise="sum", iterations=1), held)
    # More of them would leave random attention nothing to be seen in float32.
    # The steps between only shift and scale: what comes out is alike but for that.
    for one, other in zip(none, summed, strict=True):
        assert np.corrcoef(one.ravel(), other.ravel())[0, 1] > 0.9999
    assert summed.min() >= 0


def test_prototypes_make_pixels_alike(held):
    # Refined zero times, as many values as there are clusters remain.
    method = ISeg(clusters=4, iterations=0, background="none", normalise="sum")
    header = replace(held.header, image_hw=(16, 24), input_hw=(16, 24))
    planes = scores_of(method, held.with_header(header))
    assert len(np.unique(planes[0].round(9))) <= 6
    half = scores_of(replace(method, kl_dtype="float16"), held.with_header(header))
    assert half.shape == planes.shape


# ---- background


def test_backgrounds(held):
    plain = scores_of(PLAIN, held)
    best = plain.max(0)
    square = replace(PLAIN, background="square")(held, scores=True)
    assert square.names == ("background", *NAMES)
    assert square.scores is not None
    np.testing.assert_allclose(square.scores[0], (1 - best) ** 2, atol=1e-6)
    assert np.array_equal(square.labels == 0, best <= square.scores[0])
    cut = replace(PLAIN, background="threshold", threshold=0.5)(held)
    assert np.array_equal(cut.labels == 0, best < 0.5)
    assert np.array_equal(cut.labels[best >= 0.5], plain.argmax(0)[best >= 0.5] + 1)


def test_flat_maps_are_background():
    held = recorded()
    same = tuple(replace(span, tokens=(0, 1, 2, 3, 4, 5, 6)) for span in SPANS)
    header = replace(held.header, spans=same)
    result = ISeg(clusters=0, gamma=1.0)(held.with_header(header))
    assert result.labels.shape == IMAGE_HW


# ---- several prompts


def test_classes_spread_over_prompts():
    prompts = ("a", "b")
    spans = (SPANS[0], replace(SPANS[1], row=1), replace(SPANS[2], row=1), replace(SPANS[2], row=0))
    header = RecordHeader(
        model="tiny", prompts=prompts, spans=spans, names=NAMES, image_hw=IMAGE_HW, seed=0
    )
    held = recorded(header=header, batch=2)
    result = PLAIN(held, scores=True)
    assert result.names == NAMES
    assert result.scores is not None
    assert np.isfinite(result.scores).all()


# ---- settings


def test_what_is_left_open_comes_from_the_model():
    preset = {"iseg": {"ent": 1.5, "levels": [2], "layers": ["up_blocks.*"], "gamma": 1.0}}
    needs = ISeg().needs(Model(preset=preset))
    assert all(name.startswith("up_blocks") for name in needs.layers)
    assert needs.emphasis == 1
    assert ISeg(gamma=2.0).needs(Model(preset=preset)).emphasis == 2


def test_a_profile_overrules_the_models_preset(held):
    preset = '{"iseg": {"ent": 1.5, "timestep": 50, "background": "none"}}'
    header = replace(held.header, provenance={"preset": preset})
    held = held.with_header(header)
    tuned = ISeg()(held).provenance.parameters
    assert (tuned["ent"], tuned["timestep"], tuned["background"]) == (1.5, 50, "none")
    told = ISeg(profile="open-vocabulary-context")(held).provenance.parameters
    assert (told["ent"], told["iterations"], told["background"]) == (0.002, 5, "square")
    assert told["timestep"] == 50
    own = ISeg(profile="open-vocabulary-context", ent=0.5)(held).provenance.parameters
    assert own["ent"] == 0.5


def test_levels_of_ones_own_leave_a_presets_weights(held):
    preset = '{"iseg": {"levels": [4, 2, 1], "weights": [1.0, 1.0, 1.0]}}'
    held = held.with_header(replace(held.header, provenance={"preset": preset}))
    assert ISeg(levels=(2,))(held).provenance.parameters["weights"] is None


@pytest.mark.parametrize("profile", list(ISEG_PRESETS))
def test_profiles(profile):
    unet = built(real_heads)
    needs = ISeg(profile=profile).needs(Model(unet))
    assert needs.template.startswith("a photograph of {} and other object and background")
    assert needs.dialect is not None
    assert profile.endswith(needs.dialect.name)
    longer = ISeg(profile=profile, wording="intended").needs(Model(unet)).template
    assert longer.endswith("sign") or profile == "open-vocabulary-context"


def test_defaults():
    assert find_method("iseg") == ISeg()
    needs = ISeg().needs(Model())
    assert needs.template.endswith("and background, ground, land, grass, tree, building, wall, "
                                   "sky, lake, water")  # fmt: skip
    assert needs.dialect is None
    assert ISeg(scale="key").needs(Model()).emphasis_rule == "key"
    assert ISeg(gamma=1.0).needs(Model()).emphasis == 1


# ---- refusals


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        ({"legacy_token_table": True}, "classes of a profile"),
        ({"timestep": -1}, "timestep must be 0 or more"),
        ({"gamma": -0.1}, "gamma must be 0 or more"),
        ({"levels": ()}, "levels must be 1 or more"),
        ({"levels": (2, 2)}, "every level must be named once"),
        ({"weights": (0.0, 0.0)}, "weights must not be negative, nor all zero"),
        ({"levels": (2,), "weights": (1.0, 2.0)}, "one weight a level"),
        ({"heads": ()}, "heads are numbers"),
        ({"self_heads": (-1,)}, "self_heads are numbers"),
        ({"clusters": -1}, "clusters must be 0 or more"),
        ({"rounds": 0}, "rounds must be 1 or more"),
        ({"ent": -0.1}, "ent must be 0 or more"),
        ({"iterations": -1}, "iterations must be 0 or more"),
        ({"normalise": "sum", "background": "square"}, 'needs normalise="minmax"'),
        ({"threshold": 1.5}, "threshold must lie between 0 and 1"),
    ],
)
def test_settings_that_cannot_be(settings, part):
    with pytest.raises(InputError, match=part):
        ISeg(**settings)


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        ({"levels": (16,)}, "must select cross-attention layers"),
        ({"levels": (4, 16)}, "every level must have cross-attention layers"),
        ({"layers": ("nowhere",)}, "must select cross-attention layers"),
        ({"self_layers": ("nowhere",)}, "self_layers must match"),
        ({"heads": (2,)}, "heads must be there in every layer"),
        ({"self_heads": (5,)}, "self_heads must be there in every layer"),
        ({"heads": "voc"}, "Stable Diffusion 2.1-base"),
        ({"profile": "pseudo-mask-voc"}, "Stable Diffusion 2.1-base"),
        ({"weights": (1.0,)}, "one weight a level"),
    ],
)
def test_settings_a_model_cannot_do(held, settings, part):
    method = ISeg(**settings)
    with pytest.raises(InputError, match=part):
        method(held)
    if "weights" not in settings:
        with pytest.raises(InputError, match=part):
            method.needs(Model())


def test_records_it_cannot_use(held):
    with pytest.raises(InputError, match="which tokens name which class"):
        ISeg()(held.with_header(replace(held.header, names=(), spans=())))
    named = tuple(replace(span, name="background") for span in SPANS[:1])
    header = replace(held.header, names=("background",), spans=named)
    with pytest.raises(InputError, match="background is either a class of yours"):
        ISeg()(held.with_header(header))
    assert ISeg(background="none")(held.with_header(header)).names == ("background",)
    with pytest.raises(InputError, match="self_layers must match"):
        ISeg()(recorded(kinds=("cross",)))


def test_attention_that_is_not_finite():
    held = recorded()
    held.keys(OWN)[...] = float("nan")
    with pytest.raises(InputError, match="attention must be finite"):
        ISeg(clusters=0)(held)
