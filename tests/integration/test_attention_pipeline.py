"""Recording a whole diffusers pipeline: words are found, guidance halves and repeated steps too."""

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.schedulers.scheduling_pndm import PNDMScheduler
from transformers import CLIPTextConfig, CLIPTextModel

from diffuseg.attention import layers_of, record
from diffuseg.errors import InputError
from diffuseg.world.tokenizer import build_tokenizer
from support import models


@pytest.fixture(scope="module")
def pipeline():
    tokenizer = build_tokenizer(["a", "red", "dog", "cat", "on", "grass"], max_length=10)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=models.CROSS_DIM,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=10,
        )
        vae = AutoencoderKL(block_out_channels=(8,) * 4, norm_num_groups=4, **_vae_blocks(4))
        pipe = StableDiffusionPipeline(
            vae=vae.eval(),
            text_encoder=CLIPTextModel(config).eval(),
            tokenizer=tokenizer,
            unet=models.sd15(levels=2, layers=1),
            scheduler=PNDMScheduler(skip_prk_steps=True, steps_offset=1),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _vae_blocks(count):
    return {
        "down_block_types": ("DownEncoderBlock2D",) * count,
        "up_block_types": ("UpDecoderBlock2D",) * count,
    }


def generate(pipe, prompt="a red dog on grass", **kwargs):
    generator = torch.Generator().manual_seed(0)
    options = {"num_inference_steps": 2, "height": 64, "width": 128, "output_type": "latent"}
    return pipe(prompt, generator=generator, **options | kwargs).images


def test_words_of_a_prompt(pipeline):
    plain = generate(pipeline)
    with record(pipeline) as rec:
        recorded = generate(pipeline)
    assert torch.equal(recorded, plain)
    assert len(rec.timesteps) == 3  # PNDM calls the U-Net twice at its second timestep
    assert len(set(rec.timesteps)) == 2
    assert rec.layers == layers_of(pipeline)
    assert rec.header.prompts == ("", "a red dog on grass")
    assert rec.header.tokens[1][:6] == (
        "<|startoftext|>", "a</w>", "red</w>", "dog</w>", "on</w>", "grass</w>",
    )  # fmt: skip
    found = rec.cross("dog")
    assert found.shape == (1, 8, 16)  # only the conditional row has the word
    whole = rec.cross_attention(level=1)[1, :, 3].unflatten(0, (8, 16))
    torch.testing.assert_close(rec.cross("dog", levels=1)[0], whole)
    both = rec.cross_attention(level=1)[1][:, [2, 3]].mean(-1).unflatten(0, (8, 16))
    torch.testing.assert_close(rec.cross("Red dog", levels=1)[0], both)
    with pytest.raises(InputError, match="one of: a, red, dog, on, grass"):
        rec.cross("cat")


def test_halves(pipeline):
    with record(pipeline, half="cond") as cond:
        generate(pipeline, negative_prompt="a cat")
    with record(pipeline, half="uncond") as uncond:
        generate(pipeline, negative_prompt="a cat")
    with record(pipeline) as both:
        generate(pipeline, negative_prompt="a cat")
    assert cond.header.prompts == ("a red dog on grass",)
    assert uncond.header.prompts == ("a cat",)
    assert torch.equal(cond.cross("dog"), both.cross("dog"))
    assert torch.equal(uncond.cross("cat"), both.cross("cat"))
    assert torch.equal(both.cross("a")[1:], both.rows(1).cross("a"))


def test_several_images_of_a_prompt_and_no_guidance(pipeline):
    with record(pipeline) as rec:
        generate(pipeline, ["a dog", "a cat"], num_images_per_prompt=2, guidance_scale=1.0)
    assert rec.batch == 4
    assert rec.header.prompts == ("a dog", "a cat")
    assert torch.equal(rec.cross("cat"), rec.rows([2, 3]).cross("cat"))
    assert rec.cross("a").shape[0] == 4


def test_two_calls_leave_words_open(pipeline):
    with record(pipeline) as rec:
        generate(pipeline)
        generate(pipeline, "a cat")
    assert rec.header.prompts == ()
    with pytest.raises(InputError, match="pass token indices"):
        rec.cross("dog")
    assert rec.cross(3).shape == (2, 8, 16)


def test_embeddings_given_directly(pipeline):
    embeddings, negative = pipeline.encode_prompt("a dog", "cpu", 1, True)
    with record(pipeline) as rec:
        generate(pipeline, None, prompt_embeds=embeddings, negative_prompt_embeds=negative)
    assert rec.header.tokens == ()
