"""What to record: layers, heads, features, dtype, memory; stopping early; what the header says."""

import gc
import json
import weakref
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from diffuseg.attention import HeadMean, RecordHeader, estimate_bytes, layers_of, record, recorder
from diffuseg.errors import CaptureError, InputError
from support import models


@pytest.fixture
def unet():
    return models.sd15()


@pytest.fixture
def small():
    return models.sd15(levels=2, layers=1)


def names(rec):
    return [layer.name for layer in rec.layers]


@pytest.mark.parametrize(
    ("choice", "count"),
    [
        ({}, 32),
        ({"layers": "up_blocks.*"}, 18),
        ({"layers": ("down_blocks.2.*", "mid_block.*")}, 6),
        ({"layers": "*.attn1"}, 16),
        ({"kinds": "cross"}, 16),
        ({"levels": 8}, 2),
        ({"levels": (1, 4), "kinds": ("self",)}, 10),
        ({"layers": "up_blocks.*", "levels": [2], "kinds": "self"}, 3),
    ],
)
@torch.no_grad()
def test_selection_by_name_kind_and_level(unet, choice, count):
    with record(unet, **choice) as rec:
        unet(**models.inputs(unet))
    assert len(rec.layers) == count
    assert len(rec._contents.passes[0].queries) == count


@pytest.mark.parametrize(
    ("choice", "text"),
    [
        (
            {"layers": "up_block"},
            "attention is in down_blocks.0, down_blocks.1, down_blocks.2, mid",
        ),
        ({"layers": ()}, "at levels 1, 2, 4, 8"),
        ({"kinds": "temporal"}, "of kinds self, cross"),
        ({"kinds": "colour"}, "kinds must be some of self, cross, temporal"),
        ({"kinds": ()}, "kinds must be some of"),
        ({"levels": 3}, "factors this model has: 1, 2, 4, 8"),
        ({"levels": ()}, "factors this model has"),
        ({"heads": (2,)}, "among the 2 that every selected layer has"),
        ({"heads": ()}, "heads must be among"),
        ({"steps": ()}, "name a timestep"),
        ({"half": "left"}, "half must be one of auto, all, cond, uncond"),
        ({"features": "up_blocks.7"}, "for example up_blocks."),
        ({"reduce": object()}, "reduce must be a HeadMean"),
        ({"reduce": HeadMean(), "kinds": "cross"}, "HeadMean takes none of 16 layers"),
    ],
)
def test_a_selection_that_cannot_be(unet, choice, text):
    with pytest.raises(InputError) as error:
        record(unet, **choice)
    assert text in str(error.value)


@pytest.mark.parametrize("model", [3, nn.Linear(2, 2), SimpleNamespace(unet="a path")])
def test_what_is_no_unet(model):
    with pytest.raises(InputError, match="U-Net"):
        layers_of(model)


@torch.no_grad()
def test_heads(unet):
    call = models.inputs(unet)
    with record(unet) as whole:
        unet(**call)
    with record(unet, heads=(1,)) as rec:
        unet(**call)
    layer = rec.layers[0]
    assert torch.equal(rec.queries(layer), whole.queries(layer)[:, 1:])
    assert torch.equal(rec.maps(layer), whole.maps(layer, heads=(1,)))
    assert torch.equal(rec.maps(layer), whole.head_maps(layer)[:, 1])
    assert rec.nbytes == estimate_bytes(unet, (16, 16), tokens=models.TOKENS, heads=(1,))


@torch.no_grad()
def test_features_are_outputs_of_modules(unet):
    paths = ("down_blocks.0", "mid_block.attentions.0", "up_blocks.1.resnets.0", "time_embedding")
    seen = {}
    for path in paths:

        def keep(module, args, output, path=path):
            seen[path] = output[0] if isinstance(output, tuple) else output

        unet.get_submodule(path).register_forward_hook(keep)
    with record(unet, kinds=(), features=paths) as rec:
        unet(**models.inputs(unet, batch=2))
    assert rec.layers == ()
    assert rec.batch == 2
    for path in paths:
        assert torch.equal(rec.features(path), seen[path])
    assert "features time_embedding, down_blocks.0, mid_block.attentions.0" in repr(rec)
    with pytest.raises(InputError, match=r"recorded: time_embedding, down_blocks\.0, "):
        rec.features("up_blocks.1")


@torch.no_grad()
def test_a_feature_that_does_not_come(small):
    with (
        pytest.raises(CaptureError, match="missing down_blocks"),
        record(
            small,
            features="down_blocks",  # a list of blocks is never called
        ),
    ):
        small(**models.inputs(small))


@torch.no_grad()
def test_a_feature_that_is_no_tensor(small):
    small.mid_block.attentions[0].register_forward_hook(lambda *args: {"states": args[2]})
    with (
        pytest.raises(CaptureError, match="returns a tensor"),
        record(small, features="mid_block.attentions.0"),
    ):
        small(**models.inputs(small))


@torch.no_grad()
def test_dtype_and_device(small):
    call = models.inputs(small)
    with record(small, dtype=torch.float16, device=None, features="mid_block") as rec:
        small(**call)
    with record(small) as whole:
        small(**call)
    layer = rec.layers[0]
    assert rec.queries(layer).dtype == rec.features("mid_block").dtype == torch.float16
    assert torch.equal(rec.keys(layer), whole.keys(layer).half())
    torch.testing.assert_close(rec.maps(layer), whole.maps(layer), rtol=1e-2, atol=1e-4)


@torch.no_grad()
def test_nothing_is_copied_that_need_not_be(small):
    seen = {}
    [first, *_] = layers_of(small)
    module = small.get_submodule(first.name).to_q
    module.register_forward_hook(lambda *args: seen.setdefault("q", args[2]))
    with record(small) as rec:
        small(**models.inputs(small))
    assert rec.queries(first).data_ptr() == seen["q"].data_ptr()


# ---- memory


@pytest.mark.parametrize("layout", sorted(models.LAYOUTS))
@torch.no_grad()
def test_the_estimate_is_exact(layout):
    unet = models.LAYOUTS[layout]()
    kinds = tuple(dict.fromkeys(layer.kind for layer in layers_of(unet)))
    video = layout == "svd"
    sizes = {"frames": models.FRAMES, "tokens": 1} if video else {"tokens": models.TOKENS}
    with record(unet, kinds=kinds) as rec:
        for timestep in (300, 200):
            unet(**models.inputs(unet, batch=2, hw=(18, 30), timestep=timestep))
    expected = estimate_bytes(unet, (18, 30), batch=2, steps=2, kinds=kinds, **sizes)
    assert rec.nbytes == expected


@torch.no_grad()
def test_the_estimate_of_a_reduction_is_exact(unet):
    with record(unet, kinds="self", reduce=HeadMean()) as rec:
        unet(**models.inputs(unet, hw=(18, 30)))
    assert rec.nbytes == estimate_bytes(unet, (18, 30), kinds="self", reduce=HeadMean())


def test_the_estimate_for_stable_diffusion():
    # Same shapes as the real U-Net, an eighth of the width: 46 MB and 25 MB in half precision.
    unet = models.sd15()
    own = estimate_bytes(unet, (64, 64), kinds="self", dtype=torch.float16)
    assert own * 40 == pytest.approx(46e6, rel=0.02)
    mean = estimate_bytes(unet, (64, 64), kinds="self", reduce=HeadMean())
    assert mean == 4 * (4096**2 + 1024**2 + 256**2 + 64**2) == 71_581_696


@torch.no_grad()
def test_a_record_that_does_not_fit_fails_before_the_pass(small):
    ran = []
    small.conv_in.register_forward_hook(lambda *args: ran.append(1))
    with pytest.raises(CaptureError) as error, record(small, memory_limit=1000):
        small(**models.inputs(small))
    needed = estimate_bytes(small, (16, 16), tokens=models.TOKENS)
    assert "must fit in 1.0 kB" in str(error.value)
    assert f"got: {needed / 1000:.1f} kB" in str(error.value)
    assert "reduce=HeadMean()" in str(error.value)
    assert ran == []


@torch.no_grad()
def test_the_limit_counts_all_steps(small):
    once = estimate_bytes(small, (16, 16), tokens=models.TOKENS)
    call = models.inputs(small)
    with record(small, memory_limit=once):
        small(**call)
    with (
        pytest.raises(CaptureError, match="must fit in"),
        record(small, memory_limit=once, steps=(500, 400)),
    ):
        small(**call)
    taking = record(small, memory_limit=once)
    with pytest.raises(CaptureError, match="must fit in"), taking:
        [small(**call) for _ in range(2)]


@torch.no_grad()
def test_features_count_when_they_come(small):
    with (
        pytest.raises(CaptureError, match="must fit in"),
        record(small, kinds=(), features="up_blocks.1", memory_limit=1000),
    ):
        small(**models.inputs(small))


@torch.no_grad()
def test_the_default_limit_is_half_of_what_is_free(small, monkeypatch):
    needed = estimate_bytes(small, (16, 16), tokens=models.TOKENS)
    monkeypatch.setattr(recorder, "available_bytes", lambda device: 2 * needed)
    with record(small):
        small(**models.inputs(small))
    monkeypatch.setattr(recorder, "available_bytes", lambda device: 2 * needed - 2)
    with pytest.raises(CaptureError, match="must fit in"), record(small):
        small(**models.inputs(small))
    monkeypatch.setattr(recorder, "available_bytes", lambda device: None)
    with record(small):
        small(**models.inputs(small))


# ---- stopping early


@pytest.fixture
def reached(unet):
    """The blocks that began to run."""
    found = []
    for path in ("down_blocks.0", "mid_block", "up_blocks.1", "up_blocks.2", "conv_out"):
        module = unet.get_submodule(path)
        module.register_forward_pre_hook(lambda *args, path=path: found.append(path))
    return found


@torch.no_grad()
def test_the_unet_stops_after_the_last_wanted_layer(unet, reached):
    call = models.inputs(unet)
    after = []
    with record(unet, layers="up_blocks.1.*", early_exit=True) as rec:
        unet(**call)
        after.append("the rest of the body")
    assert reached == ["down_blocks.0", "mid_block", "up_blocks.1"]
    assert after == []
    with record(unet, layers="up_blocks.1.*") as whole:
        unet(**call)
    for layer in whole.layers:
        assert torch.equal(rec.maps(layer), whole.maps(layer))
    assert rec.header.timesteps == (500,)
    assert not any(m._forward_hooks for m in unet.up_blocks[1].modules())


@torch.no_grad()
def test_earlier_steps_run_to_the_end(unet, reached):
    outputs = []
    with record(unet, layers="mid_block.*", steps=(300, 100), early_exit=True) as rec:
        for timestep in (300, 200, 100, 0):
            output = unet(**models.inputs(unet, timestep=timestep))
            outputs.append(output)
    assert len(outputs) == 2
    assert reached.count("conv_out") == 2
    assert rec.timesteps == (300, 100)


@torch.no_grad()
def test_a_record_is_let_go_of_with_its_last_name(small):
    gc.collect()
    gc.disable()  # tensors must not stay until circles are looked for
    try:
        with record(small) as rec:
            small(**models.inputs(small))
        kept = [weakref.ref(one) for one in rec._contents.passes[0].queries.values()]
        del rec
        assert [one() for one in kept] == [None] * len(kept)
    finally:
        gc.enable()


@torch.no_grad()
def test_run_stops_every_pass(unet, reached):
    taking = record(unet, layers="mid_block.*", steps=(300, 100), early_exit=True)
    outputs = []
    with taking as rec:
        for timestep in (300, 200, 100):
            call = models.inputs(unet, timestep=timestep)
            outputs.append(taking.run(lambda call=call: unet(**call).sample))
    assert [output is None for output in outputs] == [True, False, True]
    assert reached.count("conv_out") == 1
    assert rec.timesteps == (300, 100)


@torch.no_grad()
def test_run_without_early_exit_returns_the_output(small):
    call = models.inputs(small)
    taking = record(small)
    with taking:
        output = taking.run(lambda: small(**call).sample)
    assert torch.equal(output, small(**call).sample)


@torch.no_grad()
def test_early_exit_waits_for_features(unet, reached):
    with record(unet, layers="mid_block.*", features="up_blocks.1", early_exit=True) as rec:
        unet(**models.inputs(unet))
    assert reached[-1] == "up_blocks.1"
    assert rec.features("up_blocks.1").shape == (1, 32, 8, 8)


@torch.no_grad()
def test_early_exit_leaves_no_other_record_incomplete(unet):
    call = models.inputs(unet)
    early = {"layers": "mid_block.*", "early_exit": True}
    with record(unet, **early) as outer, record(unet, layers="down_blocks.*") as inner:
        unet(**call)  # stopped by the outer one, when the inner one has all
    assert outer.timesteps == inner.timesteps == (500,)
    with pytest.raises(CaptureError, match="run to its end"), record(unet, **early), record(unet):
        unet(**call)
    with pytest.raises(CaptureError, match="run to its end"), record(unet), record(unet, **early):
        unet(**call)
    taking = record(unet, layers="up_blocks.1.*", early_exit=True)
    with pytest.raises(CaptureError, match="run to its end"), record(unet, **early), taking:
        taking.run(lambda: unet(**call))  # lets the outer one's stop through


# ---- the header


@torch.no_grad()
def test_the_header_is_completed(small):
    given = RecordHeader(prompts=("a dog",), seed=3, image_hw=(120, 130))
    with record(small, header=given) as rec:
        small(**models.inputs(small, hw=(8, 16)))
    header = rec.header
    assert (header.prompts, header.seed, header.image_hw) == (("a dog",), 3, (120, 130))
    assert header.timesteps == (500,)
    assert header.latent_hw == (8, 16)
    assert header.model == "UNet2DConditionModel"
    assert header.version
    assert header.provenance["torch"] == torch.__version__
    json.dumps(dict(header.provenance))


@torch.no_grad()
def test_a_model_is_called_by_its_name(small):
    backbone = SimpleNamespace(unet=small, name="mini")
    with record(backbone) as rec:
        small(**models.inputs(small))
    assert rec.header.model == "mini"
    assert repr(rec) == (
        "AttentionRecord(mini: 4 self, 4 cross layers, grids 16x16 8x8, steps 500, batch 1, 0.1 MB)"
    )
