"""Means taken while recording are those of the stored queries and keys."""

import pytest
import torch
from torch.nn import functional as F

from diffuseg.attention import HeadMean, TokenColumns, record
from diffuseg.attention.captured import ReducedMap
from diffuseg.errors import InputError
from support import models


@pytest.fixture(scope="module")
def unet():
    return models.sd15()


def passes(unet, **kwargs):
    return [models.inputs(unet, timestep=t, seed=t, **kwargs) for t in (300, 200)]


def record_passes(unet, *, hw=(18, 30), batch=2, **choice):
    with torch.no_grad(), record(unet, **choice) as rec:
        for call in passes(unet, hw=hw, batch=batch):
            unet(**call)
    return rec


@pytest.fixture(scope="module")
def whole(unet):
    return record_passes(unet)


def test_head_mean_equals_the_stored(unet, whole):
    rec = record_passes(unet, reduce=HeadMean())
    assert rec.timesteps == (300, 200)
    assert [(one.kind, one.count) for one in rec.reduced] == [
        ("self", 20 * 1),
        ("self", 20),
        ("self", 20),
        ("self", 4),
    ]
    for level in (1, 2, 4, 8):
        mean = rec.self_attention(level=level)
        assert torch.equal(mean, whole.self_attention(level=level))
        torch.testing.assert_close(mean.sum(-1), torch.ones(mean.shape[:2]))
    # Layers of other kinds are stored as ever.
    for layer in (one for one in rec.layers if one.kind == "cross"):
        assert torch.equal(rec.maps(layer, 200), whole.maps(layer, 200))


def test_head_mean_of_both_kinds(unet, whole):
    rec = record_passes(unet, reduce=HeadMean(kinds=("self", "cross"), chunk=50))
    assert rec.cross_attention(level=2).shape == (2, 9 * 15, models.TOKENS)
    for level in (1, 8):
        found = rec.cross_attention(level=level)
        torch.testing.assert_close(found, whole.cross_attention(level=level))
    torch.testing.assert_close(rec.cross(2), whole.cross(2))
    torch.testing.assert_close(rec.cross(2, levels=(2, 4)), whole.cross(2, levels=(2, 4)))


def test_token_columns_equal_the_stored(unet, whole):
    rec = record_passes(unet, reduce=TokenColumns((4, 2)))
    for token in (2, 4, (2, 4)):
        torch.testing.assert_close(rec.cross(token), whole.cross(token), rtol=1e-5, atol=1e-8)
    found = rec.cross(2, (36, 60), levels=2)
    torch.testing.assert_close(found, whole.cross(2, (36, 60), levels=2), rtol=1e-5, atol=1e-8)
    with pytest.raises(InputError, match=r"recorded: \[4, 2\]"):
        rec.cross(3)
    with pytest.raises(InputError, match="TokenColumns"):
        rec.cross_attention(level=1)


def test_token_columns_at_one_size_are_daam(unet, whole):
    rec = record_passes(unet, reduce=TokenColumns((2, 4), size=(32, 32)))
    total, count = torch.zeros(2, 2, 32, 32), 0
    for layer in (one for one in whole.layers if one.kind == "cross"):
        for step in whole.timesteps:
            maps = whole.head_maps(layer, step)[..., [2, 4]].permute(0, 1, 3, 2)  # [b, h, t, n]
            for head in maps.unflatten(-1, whole.grid(layer)).unbind(1):
                large = F.interpolate(head, size=(32, 32), mode="bicubic", align_corners=False)
                total += large.clamp(min=0)
                count += 1
    [mean] = rec.reduced
    assert (mean.pooled, mean.count, mean.hw, mean.tokens) == (True, count, (32, 32), (2, 4))
    expected = total / count
    torch.testing.assert_close(mean.values.transpose(1, 2).unflatten(2, (32, 32)), expected)
    torch.testing.assert_close(rec.cross(4), expected[:, 1])
    torch.testing.assert_close(rec.cross((2, 4)), expected.mean(1))


def test_both_at_once_keep_no_queries(unet):
    rec = record_passes(unet, reduce=(HeadMean(), TokenColumns((2,))))
    assert len(rec.reduced) == 8
    assert rec._contents.stored("self") == rec._contents.stored("cross") == []
    assert rec.batch == 2
    with pytest.raises(InputError, match="was reduced to a mean"):
        rec.maps(rec.layers[0])


def test_a_mean_cannot_be_split(unet):
    rec = record_passes(unet, reduce=HeadMean())
    with pytest.raises(InputError, match="split by head or step"):
        rec.self_attention(level=1, step=300)
    with pytest.raises(InputError, match="split by head or step"):
        rec.self_attention(level=1, heads=(0,))
    with pytest.raises(InputError, match="has no layers"):
        rec.self_attention(level=1, layers="up_blocks.*")
    with torch.no_grad(), record(unet, kinds="self", reduce=HeadMean()) as once:
        unet(**models.inputs(unet, timestep=300))
    assert torch.equal(once.self_attention(level=8, step=300), once.self_attention(level=8))


def test_what_is_returned_is_the_callers(unet):
    rec = record_passes(unet, reduce=HeadMean())
    before = rec.self_attention(level=8)
    rec.self_attention(level=8).zero_()
    assert torch.equal(rec.self_attention(level=8), before)


def test_a_reduction_starts_afresh(unet):
    reduction = HeadMean()
    first = record_passes(unet, reduce=reduction)
    with pytest.raises(ZeroDivisionError), record(unet, reduce=reduction):
        fail_after(unet)
    second = record_passes(unet, reduce=reduction)
    assert torch.equal(first.self_attention(level=1), second.self_attention(level=1))


@torch.no_grad()
def fail_after(unet):
    unet(**models.inputs(unet, hw=(18, 30), batch=2))
    raise ZeroDivisionError


def test_a_mean_goes_on_through_gradient_modes(unet, whole):
    first, second = passes(unet, hw=(18, 30), batch=2)
    with record(unet, reduce=HeadMean()) as rec:
        with torch.inference_mode():
            unet(**first)
        with torch.no_grad():
            unet(**second)
    assert torch.equal(rec.self_attention(level=2), whole.self_attention(level=2))
    assert not rec.reduced[0].values.is_inference()


def test_one_half_one_head(unet):
    call = models.inputs(unet, batch=2)
    choice = {"kinds": "self", "half": "cond", "heads": (1,)}
    with torch.no_grad(), record(unet, reduce=HeadMean(), **choice) as rec:
        unet(**call)
    with torch.no_grad(), record(unet, kinds="self") as whole:
        unet(**call)
    expected = whole.rows(1).self_attention(level=1, heads=(1,))
    torch.testing.assert_close(rec.self_attention(level=1), expected)


def test_a_reduction_of_ones_own(unet):
    class Peak:
        """The largest probability of any layer."""

        def reset(self):
            self.peak = 0.0

        def takes(self, layer):
            return layer.kind == "cross"

        def update(self, layer, step, q, k, hw, bias=None):
            self.peak = max(self.peak, float((q @ k.mT * layer.scale).softmax(-1).max()))

        def finish(self):
            values = torch.full((1, 1, 1), self.peak)
            return [ReducedMap(kind="cross", hw=(1, 1), pooled=True, count=1, values=values)]

        def nbytes(self, shapes):
            return 4

    rec = record_passes(unet, reduce=Peak(), batch=1)
    assert 1 / models.TOKENS < rec.reduced[0].values.item() < 1


@pytest.mark.parametrize("tokens", [(), (-1,), (2, 2), "dog"])
def test_tokens_that_cannot_be(tokens):
    with pytest.raises(InputError, match="different indices"):
        TokenColumns(tokens)


@torch.no_grad()
def test_tokens_past_the_prompt(unet):
    with pytest.raises(InputError, match="among the 7"), record(unet, reduce=TokenColumns((7,))):
        unet(**models.inputs(unet))


@pytest.mark.parametrize("make", [HeadMean, lambda kinds: TokenColumns((1,), kinds=kinds)])
def test_temporal_layers_are_not_reduced(make):
    with pytest.raises(InputError, match="some of self, cross"):
        make(kinds=("temporal",))
