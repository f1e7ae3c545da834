"""Recording and torch.compile, the rows of the capture rules on compilation.

Dynamo keeps process-wide state, so every test starts from a clean one. The backend is "eager":
what is tested is which hooks run, and that does not depend on the code generator.
"""

import pytest
import torch

from diffuseg.attention import AddToOutput, HeadMean, intervene, record
from diffuseg.errors import CaptureError
from support import models

pytestmark = pytest.mark.compile


@pytest.fixture(autouse=True)
def _fresh_dynamo():
    torch._dynamo.reset()
    # load(compile=True) anywhere in the process turns this off; dynamo's default is on.
    with torch._dynamo.config.patch(skip_nnmodule_hook_guards=True):
        yield
    torch._dynamo.reset()


@pytest.fixture
def unet():
    return small(0)


def small(seed):
    return models.sd15(seed, levels=2, layers=1)


def compiled(unet):
    return torch.compile(unet, backend="eager", fullgraph=True)


def tensor_step(unet, timestep, **kwargs):
    # A whole number is a constant to the compiler: every new one would be traced again.
    return models.inputs(unet, **kwargs) | {"timestep": torch.tensor(timestep)}


@torch.no_grad()
def test_hooks_first(unet):
    call = models.inputs(unet)
    plain = compiled(unet)(**call).sample
    with record(unet) as expected:
        unet(**call)
    torch._dynamo.reset()
    with record(unet) as rec:
        recorded = compiled(unet)(**call).sample
    assert torch.equal(recorded, plain)
    assert rec.timesteps == (500,)
    for layer in expected.layers:
        assert rec.grid(layer) == expected.grid(layer)
        assert torch.equal(rec.queries(layer), expected.queries(layer))
        assert torch.equal(rec.maps(layer), expected.maps(layer))


@torch.no_grad()
def test_compiled_module_several_passes(unet):
    model = compiled(unet)
    with record(model, reduce=HeadMean(), kinds="self") as rec:
        for timestep in (300, 200, 100):
            model(**tensor_step(unet, timestep))
    with record(unet, reduce=HeadMean(), kinds="self") as expected:
        for timestep in (300, 200, 100):
            unet(**tensor_step(unet, timestep))
    assert rec.timesteps == (300, 200, 100)
    assert torch.equal(rec.self_attention(level=1), expected.self_attention(level=1))


@torch.no_grad()
def test_another_instance_compiled_earlier_is_noticed(unet):
    compiled(small(1))(**models.inputs(unet))
    with pytest.raises(CaptureError, match="skip_nnmodule_hook_guards = False"), record(unet):
        compiled(unet)(**models.inputs(unet))


@torch.no_grad()
def test_hooks_after_compilation_are_noticed(unet):
    model = compiled(unet)
    model(**models.inputs(unet))
    with pytest.raises(CaptureError, match="skip_nnmodule_hook_guards = False"), record(model):
        model(**models.inputs(unet))
    with pytest.raises(CaptureError, match="0 of 8 at timestep 500"), record(model):
        model(**models.inputs(unet))


@pytest.mark.parametrize("order", ["other instance first", "compiled first"])
@torch.no_grad()
@torch._dynamo.config.patch(skip_nnmodule_hook_guards=False)
def test_hook_guards_allow_every_order(unet, order):
    call = models.inputs(unet)
    model = compiled(unet)
    if order == "compiled first":
        model(**call)
    else:
        compiled(small(1))(**call)
    with record(model) as rec:
        model(**call)
    assert len(rec.layers) == 8
    with record(model) as again:
        model(**call)
    assert torch.equal(rec.maps(rec.layers[0]), again.maps(again.layers[0]))


@torch.no_grad()
def test_repeated_blocks(unet):
    call = models.inputs(unet)
    with record(unet) as expected:
        unet(**call)
    with record(unet, early_exit=True) as rec:  # cannot stop inside compiled code, but is no error
        unet.compile_repeated_blocks(backend="eager", fullgraph=True)
        unet(**call)
    for layer in expected.layers:
        assert torch.equal(rec.maps(layer), expected.maps(layer))


@torch.no_grad()
def test_repeated_blocks_with_several_passes(unet):
    unet.compile_repeated_blocks(backend="eager", fullgraph=True)
    with record(unet, steps=(200, 100)) as rec:
        for timestep in (300, 200, 100):
            unet(**tensor_step(unet, timestep))
    assert rec.timesteps == (200, 100)
    layer = rec.layers[0]
    assert not torch.equal(rec.queries(layer, 200), rec.queries(layer, 100))


@torch.no_grad()
def test_several_passes_of_the_inner_unet_are_noticed(unet):
    with pytest.raises(CaptureError, match=r"2 passes\n.*result of torch\.compile"), record(unet):
        call_twice(unet, compiled(unet))


@torch.no_grad()
def test_passes_before_and_in_compiled_code_are_noticed(unet):
    with pytest.raises(CaptureError, match="2 passes"), record(unet):
        call_both(unet)


def call_both(unet):
    call = models.inputs(unet)
    unet(**call)
    compiled(unet)(**call)


def call_twice(unet, model):
    for timestep in (300, 200):
        model(**tensor_step(unet, timestep))


@torch.no_grad()
def test_writing_into_compiled_code_is_refused(unet):
    edit = AddToOutput(value=torch.zeros(1))
    with pytest.raises(CaptureError, match="must not be compiled"), intervene(compiled(unet), edit):
        pass
    unet.compile_repeated_blocks(backend="eager")
    with pytest.raises(CaptureError, match="must not be compiled"), intervene(unet, edit):
        pass


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # inductor's own imports
@torch.no_grad()
def test_inductor_computes_the_same_with_and_without_hooks(unet):
    call = models.inputs(unet)
    plain = torch.compile(unet)(**call).sample
    with record(unet) as expected:
        eager = unet(**call).sample
    torch._dynamo.reset()
    with record(unet) as rec:
        recorded = torch.compile(unet)(**call).sample
    assert torch.equal(recorded, plain)
    torch.testing.assert_close(recorded, eager, rtol=1e-3, atol=1e-4)
    for layer in expected.layers:
        torch.testing.assert_close(rec.maps(layer), expected.maps(layer), rtol=1e-3, atol=1e-5)
