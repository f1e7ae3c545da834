"""Passes of a U-Net in one record: batches, halves, timesteps, and those that failed."""

import pytest
import torch

from diffuseg.attention import HeadMean, layers_of, record
from diffuseg.attention.layers import sites_of
from diffuseg.errors import CaptureError
from support import models


@pytest.fixture
def unet():
    return models.sd15()


@pytest.fixture
def small():
    return models.sd15(levels=2, layers=1)


@torch.no_grad()
def test_halves_of_a_guidance_batch(unet):
    call = models.inputs(unet, batch=4)
    with record(unet) as whole:
        unet(**call)
    for half, rows in (("uncond", slice(0, 2)), ("cond", slice(2, 4))):
        with record(unet, half=half, features=("mid_block",)) as rec:
            unet(**call)
        assert rec.batch == 2
        for layer in rec.layers:
            assert torch.equal(rec.queries(layer), whole.queries(layer)[rows])
            assert torch.equal(rec.keys(layer), whole.keys(layer)[rows])
        q = rec.queries(rec.layers[0])
        assert q.untyped_storage().nbytes() == q.nbytes  # the other half is not kept alive
        assert rec.features("mid_block").shape[0] == 2


@torch.no_grad()
def test_halves_of_an_odd_batch_are_refused(small):
    with pytest.raises(CaptureError, match="must be even"), record(small, half="cond"):
        small(**models.inputs(small, batch=3))


@torch.no_grad()
def test_a_batch_of_two_equals_two_singles(unet):
    with record(unet) as pair:
        unet(**models.inputs(unet, batch=2))
    with record(unet) as single:
        unet(**models.inputs(unet, batch=1))
    for layer in single.layers:
        found = pair.rows(0).maps(layer)
        torch.testing.assert_close(found, single.maps(layer), rtol=1e-4, atol=1e-6)


@torch.no_grad()
def test_several_timesteps(small):
    with record(small) as rec:
        for timestep in (300, 200, 200, 100):  # PNDM asks twice at its second timestep
            small(**models.inputs(small, timestep=timestep))
    layer = rec.layers[0]
    assert rec.timesteps == (300, 200, 200, 100)
    each = [rec.maps(layer, step) for step in (300, 200, 200, 100)]
    torch.testing.assert_close(rec.maps(layer), torch.stack(each).mean(0))
    assert not torch.equal(each[0], each[3])


@torch.no_grad()
def test_only_some_timesteps(small):
    with record(small, steps=(100, 300)) as rec:
        for timestep in (300, 200, 100):
            small(**models.inputs(small, timestep=timestep))
    assert rec.timesteps == (300, 100)
    with pytest.raises(CaptureError, match="asked for") as error, record(small, steps=150):
        small(**models.inputs(small, timestep=300))
    assert "timesteps: 300; asked for [150]" in str(error.value)


@torch.no_grad()
def test_a_record_is_never_silently_empty(small):
    with pytest.raises(CaptureError, match="must run inside") as error, record(small):
        models.sd15(1, levels=2, layers=1)(**models.inputs(small))
    assert "none at all" in str(error.value)
    assert models.n_hooks(small) == 0


@torch.no_grad()
def test_a_layer_that_does_not_run_is_noticed(small):
    block = small.up_blocks[1].attentions[0]
    block.forward = lambda states, **_: (states,)
    with pytest.raises(CaptureError, match="every selected layer") as error, record(small):
        small(**models.inputs(small))
    text = str(error.value)
    assert "6 of 8 at timestep 500" in text
    assert "up_blocks.1.attentions.0.transformer_blocks.0.attn1" in text
    assert "skip_nnmodule_hook_guards = False" in text


@torch.no_grad()
def test_dropped_tokens_are_noticed(small):
    [site, *_] = sites_of(small)
    handle = site.attention.to_q.register_forward_hook(lambda *args: args[2][:, ::2])
    with pytest.raises(CaptureError, match="token merging"), record(small):
        small(**models.inputs(small))
    handle.remove()


@torch.no_grad()
def test_an_exception_passes_through_and_leaves_nothing(small):
    with pytest.raises(ZeroDivisionError), record(small):
        assert small(**models.inputs(small)).sample.sum().item() // 0
    assert models.n_hooks(small) == 0
    with pytest.raises(RuntimeError, match="cannot be multiplied"), record(small):
        small(**models.inputs(small) | {"encoder_hidden_states": torch.zeros(1, 7, 5)})
    assert models.n_hooks(small) == 0


@torch.no_grad()
def test_a_pass_that_failed_and_was_run_again(small):
    call = models.inputs(small)
    with record(small) as rec:
        with pytest.raises(RuntimeError):
            small(**call | {"encoder_hidden_states": torch.zeros(1, 7, 5)})
        small(**call)
    assert rec.timesteps == (500,)
    with pytest.raises(CaptureError, match="run to its end"), record(small):
        call_and_fail(small, call)
    # What a reduction has taken cannot be taken back.
    with (
        pytest.raises(CaptureError, match="reduced as they come"),
        record(small, reduce=HeadMean()),
    ):
        fail_and_call(small, call)


def fail_and_call(unet, call):
    with pytest.raises(RuntimeError):
        unet(**call | {"encoder_hidden_states": torch.zeros(1, 7, 5)})
    unet(**call)


def call_and_fail(unet, call):
    unet(**call)
    with pytest.raises(RuntimeError):
        unet(**call | {"encoder_hidden_states": torch.zeros(1, 7, 5)})


@torch.no_grad()
def test_passes_that_do_not_go_together_are_refused(small):
    for other in ({"batch": 2}, {"hw": (8, 16)}):
        calls = [models.inputs(small), models.inputs(small, **other)]
        with pytest.raises(CaptureError, match="same batch and latent size"), record(small):
            call_each(small, calls)


def call_each(unet, calls):
    for call in calls:
        unet(**call)


@torch.no_grad()
def test_passes_that_are_not_wanted_may_be_anything(small):
    with record(small, steps=100, half="cond") as rec:
        small(**models.inputs(small, batch=3, hw=(8, 16), timestep=200))
        small(**models.inputs(small, batch=2, timestep=100))
    assert (rec.batch, rec.header.latent_hw) == (1, (16, 16))


@torch.no_grad()
def test_nested_records_and_two_models(small):
    other = models.sd15(1, levels=2, layers=1)
    call = models.inputs(small)
    plain, plain_other = small(**call).sample, other(**call).sample
    with record(small, kinds="self") as outer, record(other) as second:
        with record(small, kinds="cross", dtype=torch.float16) as inner:
            assert torch.equal(small(**call).sample, plain)
        assert torch.equal(other(**call).sample, plain_other)
    assert {layer.kind for layer in outer.layers} == {"self"}
    assert {layer.kind for layer in inner.layers} == {"cross"}
    assert inner.queries(inner.layers[0]).dtype == torch.float16
    first = layers_of(small)[0]
    assert not torch.equal(outer.queries(first), second.queries(first))
    assert models.n_hooks(small) == models.n_hooks(other) == 0
