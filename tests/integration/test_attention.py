"""Recording changes nothing and misses nothing: the capture rules on real (tiny, random) U-Nets."""

import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import nn

from diffuseg.attention import layers_of, record
from diffuseg.attention.layers import sites_of
from diffuseg.errors import CaptureError
from diffuseg.ops import head_maps
from support import models

EVERY_KIND = ("self", "cross", "temporal")
LAYOUTS = sorted(models.LAYOUTS)


def kinds_of(unet):
    return tuple(dict.fromkeys(layer.kind for layer in layers_of(unet)))


@pytest.fixture
def unet():
    return models.sd15()


@pytest.fixture
def small():
    return models.sd15(levels=2, layers=1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("layout", LAYOUTS)
@torch.inference_mode()
def test_the_output_is_the_same_to_the_last_bit(layout, dtype):
    unet = models.LAYOUTS[layout]().to(dtype)
    call = models.inputs(unet, batch=2, dtype=dtype)
    processors = dict(unet.attn_processors)
    plain = unet(**call).sample
    with record(unet, kinds=kinds_of(unet), features=("mid_block", "up_blocks.1")) as rec:
        recorded = unet(**call).sample
    assert torch.equal(recorded, plain)
    assert torch.equal(unet(**call).sample, plain)
    assert models.n_hooks(unet) == 0
    assert unet.attn_processors == processors
    assert rec.layers == layers_of(unet)
    assert rec.queries(rec.layers[0]).dtype == dtype
    assert rec.maps(rec.layers[0]).dtype == torch.float32


@pytest.mark.parametrize("layout", LAYOUTS)
@torch.no_grad()
def test_maps_are_those_the_model_attends_with(layout):
    unet = models.LAYOUTS[layout]()
    call = models.inputs(unet, batch=2)
    inputs: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    handles = []
    for site in sites_of(unet):

        def keep(module, args, kwargs, name=site.layer.name):
            text = kwargs.get("encoder_hidden_states")
            inputs[name] = (args[0], args[0] if text is None else text)

        handles.append(site.attention.register_forward_pre_hook(keep, with_kwargs=True))
    with record(unet, kinds=kinds_of(unet)) as rec:
        unet(**call)
    for handle in handles:
        handle.remove()
    for site in sites_of(unet):
        attention, (states, text) = site.attention, inputs[site.layer.name]
        q, k = attention.to_q(states), attention.to_k(text)
        q, k = attention.head_to_batch_dim(q), attention.head_to_batch_dim(k)
        scores = attention.get_attention_scores(q, k).unflatten(0, (-1, attention.heads))
        torch.testing.assert_close(rec.head_maps(site.layer), scores, rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(rec.maps(site.layer), scores.mean(1), rtol=1e-5, atol=1e-7)


def test_layers_of_sd15(unet):
    layers = layers_of(unet)
    own = [layer for layer in layers if layer.kind == "self"]
    assert [(one.stage, one.block, one.factor) for one in own] == [
        *[("down", block, 2**block) for block in (0, 0, 1, 1, 2, 2)],
        ("mid", 0, 8),
        *[("up", block, 2 ** (3 - block)) for block in (1, 1, 1, 2, 2, 2, 3, 3, 3)],
    ]
    assert [layer.kind for layer in layers] == ["self", "cross"] * 16
    assert layers[18].name == "up_blocks.1.attentions.2.transformer_blocks.0.attn1"
    assert (layers[18].index, layers[18].depth, layers[18].heads, layers[18].width) == (2, 0, 2, 16)
    assert layers[18].scale == 0.25


def test_layers_of_other_layouts():
    sd21 = [layer.heads for layer in layers_of(models.sd21()) if layer.kind == "self"]
    assert sd21 == [1, 1, 2, 2, 4, 4, 4, 4, 4, 4, 2, 2, 2, 1, 1, 1]
    sdxl = [layer for layer in layers_of(models.sdxl()) if layer.kind == "cross"]
    assert [layer.depth for layer in sdxl[:7]] == [0, 1, 0, 1, 0, 1, 2]
    assert {layer.factor for layer in sdxl} == {2, 4}
    svd = layers_of(models.svd())
    assert [layer.kind for layer in svd[:4]] == ["self", "cross", "temporal", "temporal"]
    assert sum(layer.kind == "temporal" for layer in svd) == 32


def test_kind_follows_what_is_attended_to():
    # With only_cross_attention both attentions of a block attend to the text.
    unet = UNet2DConditionModel(
        block_out_channels=(8, 8),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        attention_head_dim=2,
        cross_attention_dim=models.CROSS_DIM,
        norm_num_groups=4,
        only_cross_attention=True,  # but for the middle block
    )
    outer = [layer for layer in layers_of(unet) if layer.stage != "mid"]
    assert {layer.kind for layer in outer} == {"cross"}
    with torch.no_grad(), record(unet) as rec:
        unet(**models.inputs(unet))
    for layer in outer:
        assert rec.maps(layer).shape[-1] == models.TOKENS


@pytest.mark.parametrize("layout", LAYOUTS)
@torch.no_grad()
def test_grids_of_a_latent_that_is_not_square(layout):
    unet = models.LAYOUTS[layout]()
    with record(unet, kinds=kinds_of(unet)) as rec:
        unet(**models.inputs(unet, hw=(18, 30)))
    grids = {1: (18, 30), 2: (9, 15), 4: (5, 8), 8: (3, 4)}
    for layer in rec.layers:
        assert rec.grid(layer) == layer.hw((18, 30)) == grids[layer.factor]
    factors = sorted({layer.factor for layer in rec.layers})
    assert rec.grids("self") == tuple(grids[factor] for factor in factors)
    assert rec.header.latent_hw == (18, 30)


@pytest.mark.parametrize(
    ("timestep", "step"),
    [(300, 300), (torch.tensor(300), 300), (torch.tensor([300, 300]), 300), (1.5, 1.5), (7.0, 7)],
)
@pytest.mark.parametrize("positional", [True, False])
@torch.no_grad()
def test_the_step_is_the_timestep_of_the_call(small, timestep, step, positional):
    call = models.inputs(small, batch=2) | {"timestep": timestep}
    with record(small) as rec:
        if positional:
            small(call["sample"], timestep, call["encoder_hidden_states"])
        else:
            small(**call)
    assert rec.timesteps == rec.header.timesteps == (step,)
    assert type(rec.timesteps[0]) is type(step)


@torch.no_grad()
def test_rows_at_different_timesteps_are_refused(small):
    call = models.inputs(small, batch=2) | {"timestep": torch.tensor([300, 200])}
    with pytest.raises(CaptureError, match="same timestep"), record(small):
        small(**call)
    assert models.n_hooks(small) == 0


@torch.no_grad()
def test_fused_projections_are_refused(small):
    call = models.inputs(small)
    with record(small) as expected:
        small(**call)
    small.fuse_qkv_projections()
    with pytest.raises(CaptureError, match="unfuse_qkv_projections"), record(small):
        pass
    assert models.n_hooks(small) == 0
    small.unfuse_qkv_projections()
    with record(small) as rec:
        small(**call)
    assert torch.equal(rec.maps(rec.layers[0]), expected.maps(rec.layers[0]))
    with pytest.raises(CaptureError, match="fused projections in"), record(small):
        fuse_and_call(small, call)


def fuse_and_call(unet, call):
    unet.fuse_qkv_projections()
    unet(**call)


class Adapted(nn.Module):
    """What LoRA makes of a projection: a module around it that adds to its output."""

    def __init__(self, base):
        super().__init__()
        self.base = base
        self.delta = nn.Linear(base.in_features, base.out_features, bias=False)

    def forward(self, states):
        return self.base(states) + self.delta(states)


@torch.no_grad()
def test_adapters_loaded_before_are_part_of_what_is_recorded(small):
    [site, *_] = sites_of(small)
    site.attention.to_q = Adapted(site.attention.to_q)
    seen = []
    handle = site.attention.to_q.register_forward_hook(lambda *args: seen.append(args[2]))
    with record(small) as rec:
        small(**models.inputs(small))
    handle.remove()
    assert torch.equal(rec.queries(site.layer).transpose(1, 2).flatten(2), seen[0])


@torch.no_grad()
def test_adapters_loaded_inside_are_noticed(small):
    [site, *_] = sites_of(small)
    with pytest.raises(CaptureError, match="before entering record"), record(small):
        adapt_and_call(site, small)
    assert models.n_hooks(small) == 0


def adapt_and_call(site, unet):
    site.attention.to_q = Adapted(site.attention.to_q)
    unet(**models.inputs(unet))


@torch.no_grad()
def test_lora_of_peft(unet):
    peft = pytest.importorskip("peft")
    call = models.inputs(unet)
    with record(unet) as plain:
        unet(**call)
    names = ["to_q", "to_k"]
    unet.add_adapter(peft.LoraConfig(r=2, target_modules=names, init_lora_weights=False))
    seen = {}
    for site in sites_of(unet):

        def keep(module, args, output, name=site.layer.name):
            seen[name] = output

        site.attention.to_q.register_forward_hook(keep)
    with record(unet) as rec:
        unet(**call)
    assert rec.layers == plain.layers
    for layer in rec.layers:
        assert torch.equal(rec.queries(layer).transpose(1, 2).flatten(2), seen[layer.name])
    assert not torch.equal(rec.queries(rec.layers[0]), plain.queries(rec.layers[0]))


@torch.no_grad()
def test_temporal_layers_have_a_kind_of_their_own():
    unet = models.svd()
    call = models.inputs(unet, batch=2)
    with record(unet, kinds="temporal") as rec:
        unet(**call)
    assert len(rec.layers) == 32
    for layer in rec.layers:
        height, width = rec.grid(layer)
        frames = 1 if layer.name.endswith("attn2") else models.FRAMES
        assert rec.maps(layer).shape == (2 * height * width, models.FRAMES, frames)
    with record(unet, kinds="temporal", half="cond") as half:
        unet(**call)
    first = rec.layers[0]
    assert torch.equal(half.queries(first), rec.queries(first)[16 * 16 :])


@torch.no_grad()
def test_maps_honour_a_mask_of_the_text(unet):
    call = models.inputs(unet, batch=2)
    mask = torch.ones(2, models.TOKENS, dtype=torch.bool)
    mask[0, 3:], mask[1, 5:] = False, False
    with record(unet) as rec:
        unet(**call, encoder_attention_mask=mask)
    for layer in rec.layers:
        maps = rec.maps(layer)
        torch.testing.assert_close(maps.sum(-1), torch.ones(maps.shape[:2]))
        if layer.kind == "cross":
            assert (maps[0, :, 3:] == 0).all()
            assert (maps[1, :, 5:] == 0).all()
            assert (maps[1, :, :5] > 0).all()
    hidden = rec.cross_attention(level=1)
    assert (hidden[0, :, 3:] == 0).all()
    layer = next(one for one in rec.layers if one.kind == "cross")
    unmasked = head_maps(rec.queries(layer), rec.keys(layer), scale=layer.scale)
    assert (unmasked[0, ..., 3:] > 0).all()
    with record(unet, half="cond") as cond:
        unet(**call, encoder_attention_mask=mask)
    assert torch.equal(cond.maps(layer), rec.maps(layer)[1:])


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_every_gradient_mode(small, mode):
    small.requires_grad_(True)
    with record(small, features=("mid_block",)) as rec, mode():
        small(**models.inputs(small))
    layer = rec.layers[0]
    assert not rec.queries(layer).requires_grad
    assert not rec.features("mid_block").requires_grad
    maps = rec.maps(layer)
    maps.mul_(2.0)  # the caller's own
    assert not maps.requires_grad


@torch.no_grad()
def test_gradient_checkpointing_does_not_disturb(small):
    small.train().enable_gradient_checkpointing()
    small.requires_grad_(True)
    call = models.inputs(small)
    with torch.enable_grad(), record(small) as rec:
        small(**call).sample.sum().backward()  # recomputes every block
    small.eval()
    with record(small) as expected:
        small(**call)
    assert rec.timesteps == (500,)
    layer = rec.layers[0]
    assert torch.equal(rec.queries(layer), expected.queries(layer))
