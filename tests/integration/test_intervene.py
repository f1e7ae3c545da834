"""Changing attention: what is written arrives, everything else stays, nothing is left behind."""

import pytest
import torch

from diffuseg.attention import (
    AddToOutput,
    InjectQK,
    ReplaceOutput,
    intervene,
    layers_of,
    record,
)
from diffuseg.attention.layers import sites_of
from diffuseg.errors import CaptureError, InputError
from support import models


@pytest.fixture
def unet():
    return models.sd15(levels=2, layers=1)


def n_hooks(unet):
    return sum(
        len(module._forward_hooks) + len(module._forward_pre_hooks) for module in unet.modules()
    )


def own(_, __, tensor):
    return tensor


@pytest.mark.parametrize("layout", sorted(models.LAYOUTS))
@torch.inference_mode()
def test_writing_the_same_changes_no_bit(layout):
    unet = models.LAYOUTS[layout]()
    call = models.inputs(unet, batch=2)
    plain = unet(**call).sample
    kinds = tuple(dict.fromkeys(layer.kind for layer in layers_of(unet)))
    edits = [
        InjectQK(q=own, k=own, kinds=kinds),
        AddToOutput(value=lambda layer, step, output: torch.zeros_like(output), kinds=kinds),
        ReplaceOutput(modules=("mid_block", "down_blocks.0", "up_blocks.1"), value=own),
    ]
    with intervene(unet, edits) as changes:
        changed = unet(**call).sample
    assert torch.equal(changed, plain)
    n_layers = len(layers_of(unet))
    assert changes.counts == (2 * n_layers, n_layers, 3)
    assert n_hooks(unet) == 0


@torch.no_grad()
def test_injected_queries_and_keys_are_used(unet):
    source, call = models.inputs(unet, seed=1), models.inputs(unet)
    with record(unet) as other:
        unet(**source)
    edit = InjectQK(
        q=lambda layer, step, q: other.queries(layer, step),
        k=lambda layer, step, k: other.keys(layer, step),
        layers="up_blocks.*",
    )
    with intervene(unet, edit), record(unet) as rec:
        changed = unet(**call).sample
    assert not torch.equal(changed, unet(**call).sample)
    for layer in rec.layers:
        same = torch.equal(rec.maps(layer), other.maps(layer))
        assert same == layer.name.startswith("up_blocks.")


@torch.no_grad()
def test_injecting_a_tensor_in_either_shape(unet):
    call = models.inputs(unet)
    [layer, *_] = layers_of(unet)
    heads = torch.randn(1, layer.heads, 256, layer.width)
    results = []
    for q in (heads, heads.transpose(1, 2).flatten(2)):
        with intervene(unet, InjectQK(q=q, layers=layer.name)), record(unet) as rec:
            results.append(unet(**call).sample)
        assert torch.equal(rec.queries(layer), heads)
    assert torch.equal(*results)


@torch.no_grad()
def test_adding_after_the_projection_before_the_residual(unet):
    call = models.inputs(unet, batch=2)
    [site] = [
        s
        for s in sites_of(unet)
        if s.layer.name.endswith("mid_block.attentions.0.transformer_blocks.0.attn2")
    ]
    outputs = []
    handle = site.attention.register_forward_hook(lambda *args: outputs.append(args[2]))
    added = torch.rand(1, 64, 1)  # one number for each position, both halves of the batch
    unet(**call)
    with intervene(unet, AddToOutput(value=50 * added, layers="mid_block.*", kinds="cross")):
        unet(**call)
    handle.remove()
    torch.testing.assert_close(outputs[1], outputs[0] + 50 * added, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_replacing_an_output(unet):
    call = models.inputs(unet)
    value = torch.randn(1, 16, 8, 8)
    edit = ReplaceOutput(modules="mid_block", value=value)
    with intervene(unet, edit), record(unet, kinds=(), features="mid_block") as inside:
        unet(**call)
    assert torch.equal(inside.features("mid_block"), value)
    # Of a down block the states change, and the skip connections stay.
    with record(unet, features=("down_blocks.0", "down_blocks.1.resnets.0")) as plain:
        unet(**call)
    zero = ReplaceOutput(modules="down_blocks.0", value=lambda path, step, x: torch.zeros_like(x))
    with intervene(unet, zero), record(unet, features=("down_blocks.0",)) as changed:
        unet(**call)
    assert not changed.features("down_blocks.0").any()
    assert plain.features("down_blocks.0").any()
    # The U-Net itself returns an object with a sample.
    whole = ReplaceOutput(modules="conv_out", value=lambda path, step, x: x * 0)
    with intervene(unet, whole):
        assert not unet(**call).sample.any()


@torch.no_grad()
def test_steps_and_arguments_of_a_function(unet):
    seen = []

    def value(place, step, tensor):
        seen.append((place if isinstance(place, str) else place.name, step, tuple(tensor.shape)))
        return torch.zeros_like(tensor)

    edits = [
        AddToOutput(value=value, layers="mid_block.*", kinds="self", steps=(200, 100)),
        ReplaceOutput(modules="mid_block", value=value, steps=300),
    ]
    with intervene(unet, edits) as changes:
        for timestep in (300, torch.tensor(200), 100):
            unet(**models.inputs(unet) | {"timestep": timestep})
    name = "mid_block.attentions.0.transformer_blocks.0.attn1"
    assert seen == [
        ("mid_block", 300, (1, 16, 8, 8)),
        (name, 200, (1, 64, 16)),
        (name, 100, (1, 64, 16)),
    ]
    assert changes.counts == (2, 1)


@torch.no_grad()
def test_edits_of_one_layer_act_in_order(unet):
    edits = [
        ReplaceOutput(modules="mid_block", value=lambda path, step, x: torch.full_like(x, 2.0)),
        ReplaceOutput(modules="mid_block", value=lambda path, step, x: x * 3),
    ]
    with intervene(unet, edits), record(unet, kinds=(), features="mid_block") as rec:
        unet(**models.inputs(unet))
    assert (rec.features("mid_block") == 6).all()


@torch.no_grad()
def test_a_record_inside_sees_the_changes_one_around_does_not(unet):
    call = models.inputs(unet)
    with record(unet) as plain:
        unet(**call)
    first = plain.layers[0]
    edit = InjectQK(q=lambda layer, step, q: q * 2, layers=first.name)
    with record(unet) as around, intervene(unet, edit), record(unet) as inside:
        unet(**call)
    assert torch.equal(around.queries(first), plain.queries(first))
    assert torch.equal(inside.queries(first), plain.queries(first) * 2)
    assert n_hooks(unet) == 0


@torch.no_grad()
def test_a_dtype_of_the_value_does_not_matter(unet):
    unet.to(torch.bfloat16)
    call = models.inputs(unet, dtype=torch.bfloat16)
    added = torch.ones(1, dtype=torch.float64)
    with intervene(unet, AddToOutput(value=added)), record(unet, features="mid_block") as rec:
        assert unet(**call).sample.dtype == torch.bfloat16
    assert rec.features("mid_block").dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("edit", "place"),
    [
        (InjectQK(q=torch.zeros(2, 2, 64, 8), layers="mid_block.*"), "mid_block"),
        (InjectQK(k=torch.zeros(1, 64, 8), layers="mid_block.*"), "mid_block"),
        (AddToOutput(value=torch.zeros(3, 1, 1)), "down_blocks.0"),
        (AddToOutput(value=torch.zeros(1, 1, 1, 1)), "down_blocks.0"),
        (ReplaceOutput(modules="mid_block", value=torch.zeros(1, 16, 4, 4)), "mid_block"),
    ],
)
@torch.no_grad()
def test_values_of_the_wrong_shape(unet, edit, place):
    with pytest.raises(CaptureError, match=f"own at {place}"), intervene(unet, edit):
        unet(**models.inputs(unet))
    assert n_hooks(unet) == 0


@torch.no_grad()
def test_an_edit_that_never_acts_is_noticed(unet):
    edit = AddToOutput(value=torch.zeros(1), steps=10)
    with pytest.raises(CaptureError, match=r"steps=10.* timesteps: 500"), intervene(unet, edit):
        unet(**models.inputs(unet))
    with pytest.raises(CaptureError, match="none at all"), intervene(unet, edit):
        pass
    unused = ReplaceOutput(modules="up_blocks", value=own)
    with pytest.raises(CaptureError, match="never did on up_blocks"), intervene(unet, unused):
        unet(**models.inputs(unet))
    with pytest.raises(ZeroDivisionError), intervene(unet, edit):
        raise ZeroDivisionError
    assert n_hooks(unet) == 0


@pytest.mark.parametrize(
    ("edits", "text"),
    [
        ([], "at least one"),
        (["q"], "edits must be"),
        (InjectQK(), "must inject something"),
        (InjectQK(q=own, layers="sideways.*"), "at least one attention layer"),
        (AddToOutput(value=own, steps=()), "name a timestep"),
        (ReplaceOutput(modules="mid_blok", value=own), "mid_block"),
    ],
)
def test_edits_that_cannot_be(unet, edits, text):
    with pytest.raises(InputError, match=text):
        intervene(unet, edits)
    assert n_hooks(unet) == 0


def test_fused_projections_are_refused(unet):
    unet.fuse_qkv_projections()
    with pytest.raises(CaptureError, match="unfuse"), intervene(unet, InjectQK(q=own)):
        pass
    assert n_hooks(unet) == 0


def test_gradients_flow_through_changes(unet):
    added = torch.zeros(1, 64, 1, requires_grad=True)
    with intervene(unet, AddToOutput(value=added, layers="mid_block.*")):
        unet(**models.inputs(unet)).sample.sum().backward()
    assert added.grad is not None
    assert added.grad.any()
