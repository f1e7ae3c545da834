"""Attend against its formula written out once more, on records of a tiny random U-Net."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from diffuseg.attention import AttentionRecord, RecordHeader, layers_of, record
from diffuseg.errors import InputError
from diffuseg.methods import METHODS, Attend, find_method, method_name
from diffuseg.methods.attend import best_class
from diffuseg.prompts import TokenSpan
from support.models import CROSS_DIM, TOKENS, sd15

NAMES = ("car", "tree", "sky")
SPANS = tuple(
    TokenSpan(name=name, row=0, tokens=tokens)
    for name, tokens in zip(NAMES, [(1,), (3, 4), (5,)], strict=True)
)
IMAGE_HW = (50, 90)


class Model:
    def __init__(self, preset=None):
        self.unet = sd15()
        self.preset = preset or {}


def recorded(header=None, batch=1, kinds=("self", "cross")) -> AttentionRecord:
    unet = sd15()
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(batch, 4, 16, 24, generator=generator)
    text = 3 * torch.randn(batch, TOKENS, CROSS_DIM, generator=generator)
    base = RecordHeader(
        model="tiny", prompts=("",) * batch, spans=SPANS, names=NAMES, image_hw=IMAGE_HW, seed=0
    )
    with torch.no_grad(), record(unet, kinds=kinds, header=header or base) as held:
        unet(latents, 100, text)
    return held


@pytest.fixture(scope="module")
def held():
    return recorded()


def scores_of(method, held) -> np.ndarray:
    scores = method(held, scores=True).scores
    assert scores is not None
    return scores


def level_maps(held, level):
    """The mean over all heads of all layers of a level, one class map a column, by hand."""
    layers = [one for one in held.layers if one.kind == "cross" and one.factor == level]
    heads = torch.cat([held.head_maps(one) for one in layers], dim=1)[0].mean(dim=0)
    columns = [heads[:, list(span.tokens)].mean(dim=1) for span in SPANS]
    return torch.stack(columns).unflatten(1, held.grid(layers[0]))


def by_hand(held, levels, weights, refine=0):
    grids = [level_maps(held, level) for level in levels]
    finest = max(tuple(maps.shape[1:]) for maps in grids)
    finest = held.grids("self")[0] if refine else finest
    total = sum(
        weight * torch.nn.functional.interpolate(maps[None], finest, mode="bilinear")[0]
        for weight, maps in zip(weights, grids, strict=True)
    ) / sum(weights)
    for _ in range(refine):
        attention = held.self_attention(finest)[0]
        total = (attention @ total.flatten(1).T).T.unflatten(1, finest)
    return torch.nn.functional.interpolate(total[None], IMAGE_HW, mode="bilinear")[0].numpy()


@pytest.mark.parametrize(
    ("levels", "weights", "refine"),
    [
        ((4,), (1.0,), 0),
        ((4, 2), (0.7, 0.3), 0),
        ((2, 4, 1), (1.0, 2.0, 3.0), 1),
        ((4,), (2.0,), 3),
    ],
)
def test_formula(held, levels, weights, refine):
    method = Attend(levels=levels, weights=weights, refine=refine)
    result = method(held, scores=True)
    expected = by_hand(held, levels, weights, refine)
    np.testing.assert_allclose(result.scores, expected, rtol=1e-4, atol=1e-6)
    assert (result.labels == result.scores.argmax(axis=0)).all()
    assert result.hw == IMAGE_HW
    assert result.names == NAMES


def test_weights_of_levels_left_open_are_diffsegmenters(held):
    # This U-Net has levels 1, 2, 4 and, in its middle, 8.
    assert {one.factor for one in held.layers} == {1, 2, 4, 8}
    open_ = Attend()(held, scores=True)
    given = Attend(levels=(8, 4, 2, 1), weights=(0.3, 0.5, 0.1, 0.1))(held, scores=True)
    np.testing.assert_allclose(open_.scores, given.scores, rtol=1e-6)


def test_result_without_scores_has_the_same_labels(held):
    assert Attend()(held).scores is None
    assert (Attend()(held).labels == Attend()(held, scores=True).labels).all()


def test_order_of_classes_permutes_the_labels(held):
    order = (2, 0, 1)
    names = tuple(NAMES[i] for i in order)
    other = held.with_header(replace(held.header, names=names))
    a, b = Attend()(held), Attend()(other)
    assert b.names == names
    for name in NAMES:
        assert (a[name] == b[name]).all()


def test_one_prompt_a_class():
    spans = tuple(TokenSpan(name=name, row=i, tokens=(2,)) for i, name in enumerate(NAMES))
    header = RecordHeader(prompts=NAMES, spans=spans, names=NAMES, image_hw=(16, 24))
    held = recorded(header, batch=3)
    result = Attend(levels=(1,), refine=1)(held, scores=True)
    layers = [one for one in held.layers if one.kind == "cross" and one.factor == 1]
    maps = torch.stack([held.head_maps(one).mean(1) for one in layers]).mean(0)[:, :, 2]
    spread = held.self_attention((16, 24)).mean(0) @ maps.T
    np.testing.assert_allclose(
        result.scores, spread.T.unflatten(1, (16, 24)).numpy(), rtol=1e-4, atol=1e-6
    )


def test_synonyms_in_prompts_of_their_own_are_averaged():
    spans = (
        TokenSpan(name="sofa", row=0, tokens=(2,)),
        TokenSpan(name="sofa", row=1, tokens=(3,)),
        TokenSpan(name="wall", row=2, tokens=(2,)),
    )
    header = RecordHeader(prompts=("",) * 3, spans=spans, names=("sofa", "wall"))
    held = recorded(replace(header, input_hw=(16, 24)), batch=3)
    result = scores_of(Attend(levels=(1,)), held)
    maps = held.cross_attention(level=1)
    expected = (maps[0, :, 2] + maps[1, :, 3]) / 2
    np.testing.assert_allclose(result[0].ravel(), expected.numpy(), rtol=1e-5)


def test_heads_and_layers(held):
    layers = [one for one in held.layers if one.kind == "cross" and one.factor == 1]
    chosen = layers[-1]
    method = Attend(levels=(1,), layers=(chosen.name,), heads=(1,))
    result = scores_of(method, held)
    expected = held.head_maps(chosen)[0, 1][:, 1].unflatten(0, held.grid(chosen))
    resized = torch.nn.functional.interpolate(expected[None, None], IMAGE_HW, mode="bilinear")
    np.testing.assert_allclose(result[0], resized[0, 0].numpy(), rtol=1e-4, atol=1e-6)


def test_layers_of_a_full_record_leave_the_other_levels_out(held):
    layers = [one for one in held.layers if one.kind == "cross" and one.factor == 1]
    names = tuple(one.name for one in layers)
    assert {one.factor for one in held.layers if one.kind == "cross"} > {1}
    with_levels = scores_of(Attend(layers=names, levels=(1,)), held)
    np.testing.assert_array_equal(scores_of(Attend(layers=names), held), with_levels)


def test_normalisations(held):
    # At the grid itself, so that nothing is interpolated afterwards.
    at_grid = held.with_header(replace(held.header, image_hw=(16, 24)))
    plain = Attend(levels=(1,))(at_grid, scores=True).scores

    def scores(**settings):
        return Attend(levels=(1,), **settings)(at_grid, scores=True).scores

    minmax = scores(normalise="minmax")
    assert minmax.min(axis=(1, 2)).tolist() == [0, 0, 0]
    assert minmax.max(axis=(1, 2)).tolist() == [1, 1, 1]
    np.testing.assert_allclose(scores(normalise="sum").sum(axis=(1, 2)), 1, rtol=1e-5)
    share = scores(normalise="softmax")
    np.testing.assert_allclose(share, plain / plain.sum(axis=0), rtol=1e-4)
    assert scores(normalise="softmax", temperature=0.1).max() > share.max()


def test_background_threshold(held):
    def areas(threshold):
        return Attend(background="threshold", threshold=threshold)(held).areas

    assert Attend(background="threshold")(held).names == ("background", *NAMES)
    assert areas(1.01)["background"] == IMAGE_HW[0] * IMAGE_HW[1]
    assert areas(-0.01)["background"] == 0
    assert areas(0.3)["background"] < areas(0.6)["background"]


def test_background_words(held):
    spans = (*SPANS, TokenSpan(name="background", row=0, tokens=(6,)))
    names = (*NAMES, "background")
    other = held.with_header(replace(held.header, names=names, spans=spans))
    method = Attend(background="words", background_words=("grass",))
    assert method.needs(Model()).background == ("grass",)
    result = method(other)
    assert result.names == ("background", *NAMES)
    assert (result["background"] == Attend()(other)["background"]).all()


def test_needs():
    model = Model()
    layers = layers_of(model.unet)
    everything = Attend().needs(model)
    assert everything.kinds == ("cross",)
    assert set(everything.layers) == {one.name for one in layers if one.kind == "cross"}
    assert (everything.timesteps, everything.prompt) == ((100,), "joint")
    refined = Attend(levels=(4,), refine=1, prompt="per_class", timestep=7).needs(model)
    assert (refined.timesteps, refined.prompt, refined.kinds) == (
        (7,),
        "per_class",
        ("self", "cross"),
    )
    chosen = [one for one in layers if one.name in refined.layers]
    assert {(one.kind, one.factor) for one in chosen} == {("cross", 4), ("self", 1)}
    up = Attend(layers=("up_blocks.*",), refine=1, self_layers=("up_blocks.2.*",)).needs(model)
    assert {name.split(".attentions")[0] for name in up.layers if "attn1" in name} == {
        "up_blocks.2"
    }
    assert all(name.startswith("up_blocks") for name in up.layers)


def test_what_is_left_open_comes_from_the_models_preset(held):
    preset = {"attend": {"timestep": 50, "levels": [4], "refine": 1, "normalise": "sum"}}
    assert Attend().needs(Model(preset)).timesteps == (50,)
    assert Attend(timestep=9).needs(Model(preset)).timesteps == (9,)
    provenance = {"preset": '{"attend": {"levels": [4], "refine": 1, "normalise": "sum"}}'}
    other = held.with_header(replace(held.header, provenance=provenance))
    explicit = Attend(levels=(4,), refine=1, normalise="sum")(held, scores=True)
    filled = Attend()(other, scores=True)
    assert (filled.scores == explicit.scores).all()
    assert filled.provenance.parameters["levels"] == [4]
    assert filled.provenance.parameters == explicit.provenance.parameters
    assert Attend(refine=0)(other).provenance.parameters["refine"] == 0


def test_provenance(held):
    origin = Attend(threshold=0.25)(held).provenance
    assert (origin.model, origin.method, origin.seed) == ("tiny", "attend", 0)
    assert origin.parameters["threshold"] == 0.25
    assert origin.parameters["template"] == "a photo of {}"
    assert origin.image_hw == IMAGE_HW


def test_saved_record_gives_the_same(held, tmp_path):
    held.save(tmp_path / "a.safetensors")
    again = AttentionRecord.load(tmp_path / "a.safetensors")
    method = Attend(refine=1)
    a, b = method(held, scores=True), method(again, scores=True)
    assert (a.scores == b.scores).all()
    assert a.provenance == b.provenance


def test_best_class_takes_the_lowest_index_on_ties():
    maps = torch.tensor([[[0.0, 1.0]], [[0.5, 1.0]], [[0.5, 0.0]]])
    labels, planes = best_class(maps, (1, 2))
    assert labels.tolist() == [[1, 0]]
    assert planes is None
    assert best_class(torch.zeros(3, 4, 4), (9, 7))[0].max() == 0


def test_one_class_is_everywhere(held):
    one = replace(held.header, names=NAMES[:1], spans=SPANS[:1])
    result = Attend()(held.with_header(one))
    assert result.areas == {"car": IMAGE_HW[0] * IMAGE_HW[1]}


def test_methods_by_name():
    assert find_method("Attend") == Attend()
    own = Attend(refine=2)
    assert find_method(own) is own
    assert method_name(own) == "attend"
    assert list(METHODS) == [
        *("attend", "diffsegmenter", "iseg", "iseg-unsupervised"),
        *("diffseg", "semantic-diffseg", "dinoseg", "kmeans", "dbscan", "ovdiff"),
        "segdiffusion",
    ]
    for wrong in ("atend", Attend, 3, None):
        with pytest.raises(InputError, match="the method must be a known name"):
            find_method(wrong)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"timestep": -1}, "timestep must be 0 or more"),
        ({"levels": ()}, "levels must be 1 or more"),
        ({"levels": (0,)}, "levels must be 1 or more"),
        ({"weights": (0.0, 0.0)}, "weights must not be negative"),
        ({"weights": (-1.0,)}, "weights must not be negative"),
        ({"levels": (4,), "weights": (1.0, 1.0)}, "one weight a level"),
        ({"refine": -1}, "refine must be 0 or more"),
        ({"temperature": 0.0}, "temperature must be positive"),
        ({"background": "words"}, "needs background_words"),
        ({"background": "threshold", "normalise": "sum"}, "a background threshold needs"),
    ],
)
def test_settings_that_cannot_be(settings, message):
    with pytest.raises(InputError, match=message):
        Attend(**settings)


def test_records_that_lack_something(held):
    def call(method, header=held.header, record=held):
        return method(record.with_header(header))

    with pytest.raises(InputError, match="which tokens name which class"):
        call(Attend(), replace(held.header, spans=()))
    with pytest.raises(InputError, match="one weight a level"):
        call(Attend(weights=(1.0,)))
    with pytest.raises(InputError, match="background words must have been recorded"):
        call(Attend(background="words", background_words=("sky",)))
    taken = (TokenSpan(name="background", row=0, tokens=(1,)), SPANS[1])
    with pytest.raises(InputError, match="either a class of yours or found by threshold"):
        call(
            Attend(background="threshold"),
            replace(held.header, names=("background", "tree"), spans=taken),
        )
    with pytest.raises(InputError, match="recorded self-attention"):
        call(Attend(refine=1), record=recorded(kinds=("cross",)))
    with pytest.raises(InputError, match="must have been recorded"):
        call(Attend(levels=(16,)))


def test_a_model_without_the_layers():
    with pytest.raises(InputError, match="must select cross-attention layers"):
        Attend(levels=(16,)).needs(Model())
    with pytest.raises(InputError, match="self_layers must match"):
        Attend(refine=1, self_layers=("left_blocks.*",)).needs(Model())
