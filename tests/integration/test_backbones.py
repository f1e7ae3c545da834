"""Models of every kind, tiny and random: their weights, latents, precision, compilation."""

import inspect

import pytest
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import (
    StableDiffusionXLPipeline,
)

from diffuseg.backbones import Diffusion, StableDiffusion, load
from diffuseg.errors import InputError
from diffuseg.prompts import ClassPrompts, build_prompts
from diffuseg.segdiffusion.autoencoder import decode_channel, encode_pixels
from support.pipelines import KINDS, picture

# -- what a model is ------------------------------------------------------------------------------


def test_models_know_what_they_are(models, homes):
    facts = {name: (m.size, m.scale, m.prediction, m.timesteps) for name, m in models.items()}
    assert facts == {
        "sd15": (64, 8, "epsilon", 1000),
        "sd21": (96, 8, "v_prediction", 1000),
        "sdxl": (64, 8, "epsilon", 1000),
        "mini": (64, 8, "epsilon", 1000),
    }
    model = models["sd15"]
    assert (model.name, model.source) == ("sd15", str(homes["sd15"]))
    assert (model.device, model.dtype) == (torch.device("cpu"), torch.float32)
    assert (model.vocabulary, dict(model.preset)) == (None, {})
    assert repr(model) == f"sd15 from {homes['sd15']} (torch.float32 on cpu)"


def test_the_protocol_is_satisfied(models):
    for name, member in inspect.getmembers(Diffusion):
        if name.startswith("_") or not (callable(member) or isinstance(member, property)):
            continue
        assert hasattr(models["sd15"], name), name
        if callable(member):
            promised = inspect.signature(member).parameters
            given = inspect.signature(getattr(StableDiffusion, name)).parameters
            assert list(promised) == list(given), name


@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_the_ones_diffusers_loads(homes, kind):
    ours = load(homes[kind], device="cpu")
    pipeline = StableDiffusionXLPipeline if kind == "sdxl" else StableDiffusionPipeline
    theirs = pipeline.from_pretrained(homes[kind])
    pairs = [(ours.unet, theirs.unet), (ours.vae, theirs.vae)]
    pairs.append((ours.tower.encoder, theirs.text_encoder))
    if kind == "sdxl":
        pairs.append((ours.tower.encoder_2, theirs.text_encoder_2))
    for mine, other in pairs:
        state = mine.state_dict()
        assert state.keys() == other.state_dict().keys()
        assert all(torch.equal(state[key], value) for key, value in other.state_dict().items())


def test_weights_are_frozen_and_in_evaluation(models, kind):
    for part in (models[kind].unet, models[kind].vae, models[kind].tower.encoder):
        assert not part.training
        assert not any(value.requires_grad for value in part.parameters())


# -- encode, decode -------------------------------------------------------------------------------


def test_encode_is_the_mean_times_the_factor(models, pipes, kind):
    image = picture(rows=3)
    latents = models[kind].encode(image, max_batch=2)
    vae = pipes[kind].vae
    with torch.no_grad():
        expected = vae.encode(image * 2 - 1).latent_dist.mode() * vae.config.scaling_factor
    assert latents.shape == (3, 4, 8, 12)
    torch.testing.assert_close(latents, expected, rtol=1e-5, atol=1e-5)
    one = models[kind].encode(image[:1])
    with torch.no_grad():
        mean = vae.encode(image[:1] * 2 - 1).latent_dist.mean * vae.config.scaling_factor
    assert torch.equal(one, mean)


def test_decode_is_the_pipeline_s(models, pipes, kind):
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    vae = pipes[kind].vae
    with torch.no_grad():
        raw = vae.decode(latents / vae.config.scaling_factor).sample
    expected = pipes[kind].image_processor.postprocess(raw, output_type="pt")
    decoded = models[kind].decode(latents)
    assert torch.equal(decoded, expected)
    assert 0 <= decoded.min() < decoded.max() <= 1


def test_latents_with_a_mean_and_a_deviation_go_there_and_back(homes):
    model = load(homes["sdxl"], device="cpu")
    plain = model.encode(picture())
    model.vae.register_to_config(latents_mean=[0.5] * 4, latents_std=[2.0, 1.0, 1.0, 4.0])
    moved = model.encode(picture())
    factor = 0.13025 / torch.tensor([2.0, 1.0, 1.0, 4.0]).view(1, 4, 1, 1)
    torch.testing.assert_close(moved, (plain / 0.13025 - 0.5) * factor)
    # Masks go the same way as pictures, but for what is cut off.
    with torch.no_grad():
        torch.testing.assert_close(encode_pixels(model.vae, picture() * 2 - 1), moved)
        raw = model.vae.decode(moved / factor + 0.5).sample
        torch.testing.assert_close(decode_channel(model.vae, moved), raw.mean(1))
    model.vae.register_to_config(latents_mean=None, latents_std=None, shift_factor=0.1)
    shifted = model.encode(picture())
    torch.testing.assert_close(shifted, plain - 0.1 * 0.13025)
    torch.testing.assert_close(model.decode(shifted), load(homes["sdxl"]).decode(plain))


@pytest.mark.parametrize("hw", [(60, 64), (64, 63), (4, 8)])
def test_sides_that_do_not_fit_the_grid_are_refused(models, hw):
    with pytest.raises(InputError, match="multiples of 8"):
        models["sd15"].encode(torch.rand(1, 3, *hw))
    with pytest.raises(InputError, match="multiples of 8"):
        models["sd15"].sample("a dog", hw=hw, steps=1)


def test_a_graph_is_kept_only_when_asked_for(models):
    model = models["sd15"]
    text = model.embed("a dog")
    assert not model.encode(picture()).requires_grad
    latents = torch.randn(1, 4, 8, 8)
    assert not model.denoise(latents, 10, text).requires_grad
    asked = latents.clone().requires_grad_()
    model.denoise(asked, 10, text).sum().backward()
    assert asked.grad is not None
    assert not model.encode(picture()).is_inference()
    with torch.no_grad():
        assert not model.denoise(asked, 10, text).requires_grad


# -- precision, compilation -----------------------------------------------------------------------


def test_half_precision_keeps_the_autoencoder_that_overflows_in_full(homes):
    small = load(homes["sdxl"], device="cpu", dtype="fp16")
    assert (small.dtype, small.vae.dtype) == (torch.float16, torch.float32)
    latents = small.encode(picture())
    assert latents.dtype == torch.float16
    assert small.decode(latents).dtype == torch.float32
    plain = load(homes["sd15"], device="cpu", dtype=torch.bfloat16)
    assert (plain.dtype, plain.vae.dtype) == (torch.bfloat16, torch.bfloat16)
    assert plain.embed("a dog").vectors.dtype == torch.bfloat16
    assert torch.isfinite(plain.sample("a dog", steps=2)).all()


@pytest.mark.compile
def test_a_compiled_u_net_sees_hooks_attached_later(homes, models):
    torch.compiler.reset()
    model = load(homes["sd15"], device="cpu", compile="eager")
    text, latents = model.embed("a dog"), torch.ones(1, 4, 8, 8)
    before = model.denoise(latents, 50, text)
    torch.testing.assert_close(before, models["sd15"].denoise(latents, 50, text))
    fired = []
    block = model.unet.mid_block.attentions[0].transformer_blocks[0].attn1
    handle = block.to_q.register_forward_hook(lambda *_: fired.append(1))
    after = model.denoise(latents, 50, text)
    handle.remove()
    assert fired == [1]
    assert torch.equal(before, after)


def test_prompts_are_plain_data():
    prompts = build_prompts("dog, cat", "a {}")
    assert isinstance(prompts, ClassPrompts)
    assert prompts == build_prompts(["dog", "cat"], "a {}")
