"""Functions on attention: against the plain formula, and properties that hold for any input."""

import pytest
import torch
from diffusers.models.attention_processor import Attention
from hypothesis import given, settings
from hypothesis import strategies as st

from diffuseg import ops


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def dense(q, k, scale, bias=None):
    scores = q.double() @ k.double().mT * scale
    if bias is not None:
        scores = scores + bias[:, None].double()
    return scores.softmax(-1)


@pytest.fixture(params=["square", "text", "one"])
def qk(request):
    b, h, n, m, d = {"square": (2, 3, 50, 50, 8), "text": (1, 8, 33, 7, 5), "one": (1,) * 5}[
        request.param
    ]
    return draw(b, h, n, d) * 3, draw(b, h, m, d, seed=1)


def test_maps_are_the_softmax_of_the_scores(qk):
    expected = dense(*qk, 0.4)
    found = ops.head_maps(*qk, scale=0.4)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-7)
    mean = ops.attention_maps(*qk, scale=0.4)
    torch.testing.assert_close(mean.double(), expected.mean(1), rtol=1e-5, atol=1e-7)


def test_maps_are_diffusers_own():
    attention = Attention(query_dim=24, heads=3, dim_head=8)
    q, k = draw(2, 40, 24), draw(2, 40, 24, seed=1)
    scores = attention.get_attention_scores(*(attention.head_to_batch_dim(one) for one in (q, k)))
    split = [ops.split_heads(one, 3) for one in (q, k)]
    found = ops.head_maps(*split, scale=attention.scale)
    torch.testing.assert_close(found.flatten(0, 1), scores, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("chunk", [1, 7, 49, 50, 1000])
@pytest.mark.parametrize("masked", [False, True])
def test_the_chunk_does_not_change_the_result(chunk, masked):
    q, k, x = draw(2, 3, 50, 8), draw(2, 3, 20, 8, seed=1), draw(2, 20, 4, seed=2)
    bias = draw(2, 50, 20, seed=3) if masked else None
    whole = {"scale": 0.4, "bias": bias}
    for function, arguments in ((ops.attention_maps, (q, k)), (ops.attend, (q, k, x))):
        expected = function(*arguments, **whole)
        found = function(*arguments, chunk=chunk, **whole)
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)
    tokens = ops.head_maps(q, k, tokens=[3, 0], chunk=chunk, **whole)
    expected = ops.head_maps(q, k, **whole)[..., [3, 0]]
    torch.testing.assert_close(tokens, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("masked", [False, True])
def test_small_maps_of_many_rows(masked, monkeypatch):
    monkeypatch.setitem(ops._SCRATCH_BYTES, "cpu", 4 * (2 * 6 * 5) * 3)  # three rows of the batch
    q, k, x = draw(8, 2, 6, 4), draw(8, 2, 5, 4, seed=1), draw(8, 5, 3, seed=2)
    bias = draw(8, 1, 5, seed=3) if masked else None
    expected = dense(q, k, 0.5, bias).float()
    choice = {"scale": 0.5, "bias": bias}
    torch.testing.assert_close(ops.head_maps(q, k, **choice), expected)
    torch.testing.assert_close(ops.attention_maps(q, k, **choice), expected.mean(1))
    torch.testing.assert_close(ops.attend(q, k, x, **choice), expected.mean(1) @ x)


@pytest.mark.parametrize("rows", [1, 50])
def test_a_bias_is_added_to_the_scores_of_every_head(rows):
    q, k, bias = draw(2, 3, 50, 8), draw(2, 3, 20, 8, seed=1), draw(2, rows, 20, seed=3)
    bias[1, :, 5:] = -10000.0
    found = ops.attention_maps(q, k, scale=0.4, bias=bias)
    expected = dense(q, k, 0.4, bias).mean(1)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-7)
    assert (found[1, :, 5:] == 0).all()


def test_half_precision_is_computed_in_full():
    q, k = draw(1, 2, 30, 8), draw(1, 2, 30, 8, seed=1)
    for dtype in (torch.float16, torch.bfloat16):
        low = q.to(dtype), k.to(dtype)
        found = ops.attention_maps(*low, scale=0.4)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.double(), dense(*low, 0.4).mean(1), rtol=1e-5, atol=1e-7)


def test_scores_that_would_overflow():
    q, k = draw(1, 1, 4, 8) * 1e4, draw(1, 1, 4, 8, seed=1) * 1e4
    found = ops.attention_maps(q, k, scale=1.0)
    assert found.isfinite().all()
    torch.testing.assert_close(found.sum(-1), torch.ones(1, 4))


def test_layout_in_memory_does_not_matter():
    q, k = draw(2, 50, 24), draw(2, 50, 24, seed=1)
    views = [ops.split_heads(one, 3) for one in (q, k)]
    copies = [one.contiguous() for one in views]
    assert torch.equal(
        ops.attention_maps(*views, scale=0.4), ops.attention_maps(*copies, scale=0.4)
    )


def test_inputs_stay_as_they_are(qk):
    before = [one.clone() for one in qk]
    bias = torch.zeros(qk[0].shape[0], 1, qk[1].shape[2])
    ops.attention_maps(*qk, scale=0.4, bias=bias)
    ops.minmax(qk[0])
    assert all(torch.equal(one, old) for one, old in zip(qk, before, strict=True))
    assert not bias.any()


def test_running_sums():
    layers = [(draw(1, 2, 9, 4, seed=s), draw(1, 2, 9, 4, seed=s + 9)) for s in range(3)]
    total = torch.zeros(1, 9, 9)
    for q, k in layers:
        ops.add_attention(total, q, k, scale=0.5)
    means = [ops.attention_maps(q, k, scale=0.5) for q, k in layers]
    torch.testing.assert_close(total / 6, ops.weighted_mean(means, [2, 2, 2]))


def test_attend_is_propagation_without_the_maps():
    q, k, x = draw(2, 3, 50, 8), draw(2, 3, 20, 8, seed=1), draw(2, 20, 4, seed=2)
    expected = ops.propagate(ops.attention_maps(q, k, scale=0.4), x)
    torch.testing.assert_close(ops.attend(q, k, x, scale=0.4), expected, rtol=1e-5, atol=1e-6)


@given(
    b=st.integers(1, 2),
    h=st.integers(1, 3),
    n=st.integers(1, 12),
    m=st.integers(1, 12),
    chunk=st.integers(1, 13),
    size=st.floats(0.0, 30.0),
)
@settings(max_examples=40, deadline=None)
def test_rows_are_distributions(b, h, n, m, chunk, size):
    q, k = draw(b, h, n, 4) * size, draw(b, h, m, 4, seed=1)
    maps = ops.attention_maps(q, k, scale=0.5, chunk=chunk)
    assert maps.shape == (b, n, m)
    assert (maps >= 0).all()
    torch.testing.assert_close(maps.sum(-1), torch.ones(b, n))


def test_permuting_positions_permutes_maps():
    q, k = draw(1, 2, 12, 4), draw(1, 2, 12, 4, seed=1)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    maps = ops.attention_maps(q, k, scale=0.5)
    moved = ops.attention_maps(q[:, :, order], k[:, :, order], scale=0.5)
    torch.testing.assert_close(moved, maps[:, order][:, :, order])


# ---- maps as pictures


def test_resizing():
    maps = torch.arange(4.0).reshape(1, 1, 2, 2)
    assert ops.resize(maps, (2, 2)).equal(maps)
    # Half-pixel centres: output pixel 0 of 4 lies a quarter before input pixel 0, and is clamped.
    row = ops.resize(maps, (4, 4))[0, 0, 0]
    torch.testing.assert_close(row, torch.tensor([0.0, 0.25, 0.75, 1.0]))
    shrunk = ops.resize(torch.eye(4)[None, None], (2, 2))  # no antialias: the inner 2 x 2 of each
    torch.testing.assert_close(shrunk[0, 0], torch.tensor([[0.5, 0.0], [0.0, 0.5]]))
    assert ops.resize(maps.half(), (3, 5), mode="bicubic").dtype == torch.float32


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_resizing_commutes_with_flipping(mode):
    maps = draw(1, 2, 5, 8)
    flipped = ops.resize(maps.flip(-1), (11, 17), mode=mode)
    torch.testing.assert_close(flipped, ops.resize(maps, (11, 17), mode=mode).flip(-1))


def test_minmax():
    maps = torch.stack([draw(3, 4) * 5, torch.full((3, 4), 2.0), torch.zeros(3, 4)])
    found = ops.minmax(maps)
    assert (found[0].min(), found[0].max()) == (0, 1)
    assert not found[1:].any()
    assert ops.minmax(maps[0]).equal(found[0])
    assert ops.minmax(found).equal(found)
    assert ops.minmax(torch.tensor([[1.0]])).equal(torch.zeros(1, 1))


def test_heads_split_and_merge():
    projected = draw(2, 5, 12)
    heads = ops.split_heads(projected, 3)
    assert heads.shape == (2, 3, 5, 4)
    assert heads[1, 2, 3].equal(projected[1, 3, 8:])
    assert ops.merge_heads(heads).equal(projected)
