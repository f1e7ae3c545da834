"""Models of every kind, tiny and random, against diffusers' own pipelines."""

import inspect

import pytest
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import (
    StableDiffusionXLPipeline,
)
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_euler_ancestral_discrete import (
    EulerAncestralDiscreteScheduler,
)

from diffuseg.backbones import Diffusion, StableDiffusion, TextEmbedding, load, seeded_noise
from diffuseg.backbones.sampling import cumulative_alphas
from diffuseg.backbones.text import reweight
from diffuseg.errors import InputError, WeightsError
from diffuseg.prompts import ClassPrompts, build_prompts
from support import folders
from support.refusal import refused

KINDS = ("sd15", "sd21", "sdxl")


@pytest.fixture(scope="module")
def homes(tmp_path_factory):
    """One folder of each kind."""
    root = tmp_path_factory.mktemp("models")
    return {kind: getattr(folders, f"write_{kind}")(root / kind) for kind in (*KINDS, "mini")}


@pytest.fixture(scope="module")
def models(homes):
    """Each of them loaded."""
    return {kind: load(home, device="cpu") for kind, home in homes.items()}


@pytest.fixture(scope="module")
def pipes(homes, models):
    """diffusers' own pipelines around our copies of the networks.

    Two copies of a network may differ in the last bit: kernels depend on where weights lie in
    memory.
    """
    made = {}
    for kind in KINDS:
        pipeline = StableDiffusionXLPipeline if kind == "sdxl" else StableDiffusionPipeline
        parts = {"unet": models[kind].unet, "vae": models[kind].vae}
        parts["text_encoder"] = models[kind].tower.encoder
        if kind == "sdxl":
            parts["text_encoder_2"] = models[kind].tower.encoder_2
        made[kind] = pipeline.from_pretrained(homes[kind], **parts)
        made[kind].set_progress_bar_config(disable=True)
    return made


@pytest.fixture(params=KINDS)
def kind(request) -> str:
    return request.param


def picture(seed: int = 0, hw: tuple[int, int] = (64, 96), rows: int = 1) -> torch.Tensor:
    return torch.rand(rows, 3, *hw, generator=torch.Generator().manual_seed(seed))


def reference(pipe, prompts, *, seeds, **options) -> torch.Tensor:
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return pipe(list(prompts), generator=generators, output_type="pt", **options).images


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


# -- text -----------------------------------------------------------------------------------------


def test_embed_is_the_pipeline_s(models, pipes, kind):
    prompts = ["a photo of a red car", "", "fire hydrant, Sofa!"]
    text = models[kind].embed(prompts)
    encoded = pipes[kind].encode_prompt(
        prompts, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False
    )
    assert torch.equal(text.vectors, encoded[0])
    if kind == "sdxl":
        assert torch.equal(text.pooled, encoded[2])
    else:
        assert text.pooled is None
    assert text.mask is None
    assert (text.prompts, len(text)) == (tuple(prompts), 3)


def test_padding_is_what_the_model_was_trained_with(models):
    assert models["sd15"].embed("a dog").tokens[0][:5] == (
        "<|startoftext|>",
        "a</w>",
        "dog</w>",
        "<|endoftext|>",
        "<|endoftext|>",
    )
    assert models["sd21"].embed("a dog").tokens[0][3:6] == ("<|endoftext|>", "!", "!")
    assert len(models["sd21"].embed("").tokens[0]) == folders.CONTEXT


def test_one_prompt_may_be_a_plain_text(models):
    assert torch.equal(
        models["sd15"].embed("a dog").vectors, models["sd15"].embed(["a dog"]).vectors
    )
    with pytest.raises(InputError, match="there must be a prompt"):
        models["sd15"].embed([])
    with refused("a prompt must be text"):
        models["sd15"].embed(["a dog", None])


def test_a_prompt_that_is_too_long_says_what_would_be_lost(models, kind):
    model = models[kind]
    fitting = " ".join(["dog"] * 75)
    assert model.fits(fitting)
    model.embed(fitting)
    assert not model.fits(fitting + " red car")
    with pytest.raises(InputError, match="77 tokens; cut off would be 'red car'"):
        model.embed(["", fitting + " red car"])
    with pytest.raises(InputError, match="cut off would be 'sky'"):
        model.sample("a dog", negative=fitting + " sky", steps=1)


def test_weights_stretch_the_way_from_the_empty_prompt(models, kind):
    model = models[kind]
    prompts = ["a fire hydrant and a fire", "a dog", "a cat"]
    plain, empty = model.embed(prompts).vectors, model.embed("").vectors[0]
    heavy = model.embed(prompts, weights=[{"fire hydrant": 1.21}, None, {"cat": 0.5, "a": 2.0}])
    expected = plain.clone()
    spans = model.token_spans(build_prompts("fire hydrant", "a {} and a fire"))
    for token in spans[0].tokens:
        expected[0, token] = empty[token] + 1.21 * (plain[0, token] - empty[token])
    expected[2, 2] = empty[2] + 0.5 * (plain[2, 2] - empty[2])
    expected[2, 1] = empty[1] + 2 * (plain[2, 1] - empty[1])
    torch.testing.assert_close(heavy.vectors, expected)
    assert torch.equal(heavy.vectors[1], plain[1])
    assert not torch.allclose(heavy.vectors[0], plain[0])
    assert heavy.tokens == model.embed(prompts).tokens


def test_weights_may_be_one_number_a_token(models):
    model = models["sd15"]
    table = torch.ones(1, folders.CONTEXT)
    assert torch.equal(model.embed("a dog", weights=table).vectors, model.embed("a dog").vectors)
    table[0, 2] = 1.5
    by_word = model.embed("a dog", weights=[{"dog": 1.5}])
    assert torch.equal(model.embed("a dog", weights=table).vectors, by_word.vectors)
    assert torch.equal(
        by_word.vectors,
        reweight(model.embed("a dog").vectors, model.embed("").vectors, table),
    )


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([{"cat": 1.2}], "a weighted word must stand in its prompt"),
        ([{"do": 1.2}], "a weighted word must stand in its prompt"),
        ([{"dog": "much"}], "its weight be a number"),
        ([None, None], "one {word: weight}"),
        ({"dog": 1.2}, "one {word: weight}"),
        (torch.ones(1, 5), r"shape \(1, 77\)"),
    ],
)
def test_weights_that_fit_nothing_are_refused(models, weights, message):
    with refused(message):
        models["sd15"].embed("a dog", weights=weights)


def test_class_words_are_found_to_the_token(models, kind):
    model = models[kind]
    prompts = build_prompts(["photo", "Fire Hydrant", ("sofa", "café"), "x-ray"], "a photo of {}!")
    text = model.embed(prompts.prompts)
    found = {
        span.name: "".join(text.tokens[span.row][token] for token in span.tokens)
        for span in model.token_spans(prompts)
    }
    assert {name: spelt.replace("</w>", " ") for name, spelt in found.items()} == {
        "photo": "photo ",
        "Fire Hydrant": "fire hydrant ",
        "sofa": "sofa cafÃ© ",
        "x-ray": "x - ray ",
    }
    # "photo" also stands at token 2.
    assert model.token_spans(prompts)[0].tokens == (4,)


def test_class_words_behind_the_end_are_an_error_and_splitting_helps(models):
    model = models["sd15"]
    classes = [f"sofa {number}" for number in range(40)]
    with pytest.raises(InputError, match="within the 75 tokens"):
        model.token_spans(build_prompts(classes))
    prompts = build_prompts(classes, fits=model.fits)
    spans = model.token_spans(prompts)
    assert [span.name for span in spans] == classes
    assert len(prompts.prompts) == 3
    model.embed(prompts.prompts)


class WithoutOffsets:
    """A real tokenizer that does not tell which characters a token stands for."""

    def __init__(self, tokenizer) -> None:
        self.tokenizer = tokenizer
        self.is_fast = False

    def tokenize(self, text: str) -> list[str]:
        return self.tokenizer.tokenize(text)

    def __call__(self, *args, **options):
        assert "return_offsets_mapping" not in options
        return self.tokenizer(*args, **options)

    def __getattr__(self, name: str):
        return getattr(self.tokenizer, name)

    def __len__(self) -> int:
        return len(self.tokenizer)


def test_a_tokenizer_without_offsets_gives_the_same_tokens(models):
    from dataclasses import replace

    model = models["sd15"]
    slow = replace(
        model, tower=replace(model.tower, tokenizer=WithoutOffsets(model.tower.tokenizer))
    )
    prompts = build_prompts("photo, fire hydrant, sofa|couch, x-ray")
    assert slow.token_spans(prompts) == model.token_spans(prompts)
    assert torch.equal(
        slow.embed("a fire hydrant", weights=[{"hydrant": 2.0}]).vectors,
        model.embed("a fire hydrant", weights=[{"hydrant": 2.0}]).vectors,
    )
    with pytest.raises(InputError, match="cut off would be"):
        slow.embed(" ".join(["dog"] * 77))
    with pytest.raises(InputError, match="words of their own"):
        slow.token_spans(build_prompts("dog", "{}s"))


# -- the miniature's own facts --------------------------------------------------------------------


def test_a_folder_may_close_the_vocabulary(models):
    model = models["mini"]
    assert model.vocabulary == tuple(sorted(folders.WORDS))
    assert model.preset["attend"] == {"timestep": 50}
    model.check_words(["red car", "Dog"])
    with pytest.raises(InputError) as caught:
        model.check_words(["car", "giraffe", "red hose"])
    error = caught.value
    assert "knows only these words: a, and, ant, blue" in error.expected
    assert error.got == "giraffe, hose"
    assert "did you mean house?" in error.remedy
    assert "sd1.5" in error.remedy
    models["sd15"].check_words(["giraffe"])


def test_a_folder_may_hide_end_and_padding(models):
    model, open_model = models["mini"], models["sd15"]
    prompts = ["a red car", ""]
    text = model.embed(prompts)
    assert text.mask is not None
    assert text.mask.sum(1).tolist() == [4, 1]
    assert text.mask[0, :4].all()
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    hidden = model.denoise(latents, 300, text)
    # The same weights, told by hand what is hidden.
    expected = open_model.unet(
        latents,
        300,
        encoder_hidden_states=open_model.embed(prompts).vectors,
        encoder_attention_mask=text.mask,
    ).sample
    assert torch.equal(hidden, expected)
    assert not torch.allclose(hidden, open_model.denoise(latents, 300, open_model.embed(prompts)))
    # What is hidden cannot matter.
    other = TextEmbedding(
        vectors=torch.where(text.mask[..., None], text.vectors, torch.randn_like(text.vectors)),
        prompts=text.prompts,
        tokens=text.tokens,
        mask=text.mask,
    )
    torch.testing.assert_close(model.denoise(latents, 300, other), hidden)


def test_sampling_hides_them_on_both_sides_of_guidance(models):
    seen = []
    model = models["mini"]
    handle = model.unet.register_forward_pre_hook(
        lambda module, args, options: seen.append(
            options["encoder_attention_mask"].sum(1).tolist()
        ),
        with_kwargs=True,
    )
    try:
        model.sample(["a red car", "a dog"], steps=2, negative="sky")
    finally:
        handle.remove()
    assert seen[0] == [2, 2, 4, 3]


# -- noise, denoising -----------------------------------------------------------------------------


def test_noise_levels_are_the_scheduler_s(models, pipes, kind):
    latents, noise = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    for timestep in (0, 1, 300, 999):
        expected = pipes[kind].scheduler.add_noise(latents, noise, torch.tensor([timestep]))
        noisy = models[kind].add_noise(latents, timestep, noise)
        torch.testing.assert_close(noisy, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "config",
    [
        {"beta_schedule": "linear"},
        {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
        {"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 50},
        {"trained_betas": [0.1, 0.2, 0.3], "num_train_timesteps": 3},
        {"beta_schedule": "scaled_linear", "rescale_betas_zero_snr": True},
    ],
)
def test_every_schedule_agrees_with_diffusers(config):
    expected = DDIMScheduler(**config).alphas_cumprod
    torch.testing.assert_close(cumulative_alphas(config), expected, rtol=2e-5, atol=1e-7)


def test_an_unknown_schedule_is_refused():
    with pytest.raises(WeightsError, match="linear, scaled_linear or squaredcos_cap_v2"):
        cumulative_alphas({"beta_schedule": "sigmoid"})


@pytest.mark.parametrize("timestep", [-1, 1000, 2.5, True, None])
def test_a_timestep_outside_the_schedule_is_refused(models, timestep):
    latents = torch.zeros(1, 4, 8, 8)
    with refused("whole number from 0 to 999"):
        models["sd15"].add_noise(latents, timestep, latents)
    with refused("whole number from 0 to 999"):
        models["sd15"].denoise(latents, timestep, models["sd15"].embed(""))


def test_denoise_is_the_u_net_s_own_output(models, pipes, kind):
    model = models[kind]
    latents = torch.randn(1, 4, 8, 12, generator=torch.Generator().manual_seed(0))
    text = model.embed("a dog")
    extra = None
    if kind == "sdxl":
        sizes = torch.tensor([[64.0, 96.0, 0.0, 0.0, 64.0, 96.0]])
        extra = {"text_embeds": text.pooled, "time_ids": sizes}
    with torch.no_grad():
        expected = pipes[kind].unet(
            latents, 50, encoder_hidden_states=text.vectors, added_cond_kwargs=extra
        )
    assert torch.equal(model.denoise(latents, 50, text), expected.sample)


def test_one_picture_meets_many_prompts_and_the_other_way_round(models, kind):
    model = models[kind]
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    text = model.embed(["a dog", "a cat"])
    pairs = [model.denoise(latents[row : row + 1], 50, text[row : row + 1]) for row in (0, 1)]
    torch.testing.assert_close(model.denoise(latents, 50, text), torch.cat(pairs))
    broad = model.denoise(latents[:1], 50, text)
    torch.testing.assert_close(broad[0], pairs[0][0])
    torch.testing.assert_close(model.denoise(latents, 50, text[1:])[1], pairs[1][0])
    with pytest.raises(InputError, match="as many, or one of either"):
        model.denoise(latents, 50, TextEmbedding.concat([text, text[:1]]))


def test_both_predictions_tell_noise_and_picture_apart(models, kind):
    model = models[kind]
    clean, noise = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    noisy = model.add_noise(clean, 400, noise)
    signal = model.alphas[400].sqrt()
    rest = (1 - model.alphas[400]).sqrt()
    perfect = noise if model.prediction == "epsilon" else signal * noise - rest * clean
    torch.testing.assert_close(model.predict_x0(noisy, 400, perfect), clean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        model.predict_epsilon(noisy, 400, perfect), noise, rtol=1e-4, atol=1e-5
    )


def test_predictions_agree_with_the_scheduler(models, pipes, kind):
    output, noisy = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    driver = DDIMScheduler.from_config(pipes[kind].scheduler.config, clip_sample=False)
    driver.set_timesteps(1000)
    expected = driver.step(output, 400, noisy).pred_original_sample
    torch.testing.assert_close(
        models[kind].predict_x0(noisy, 400, output), expected, rtol=1e-4, atol=1e-4
    )


# -- sampling -------------------------------------------------------------------------------------


@pytest.mark.parametrize("negative", ["", "red sky"])
def test_sampling_is_the_pipeline_s(models, pipes, kind, negative):
    drawn = models[kind].sample(
        ["a dog", "a red car"], steps=3, guidance=5.0, negative=negative, seed=7
    )
    expected = reference(
        pipes[kind],
        ["a dog", "a red car"],
        seeds=(7, 8),
        num_inference_steps=3,
        guidance_scale=5.0,
        negative_prompt=[negative] * 2 if negative else None,
    )
    assert torch.equal(drawn, expected)


def test_sampling_takes_any_scheduler_and_size(models, pipes, kind):
    pipe, model = pipes[kind], models[kind]
    own = pipe.scheduler
    options = {"num_inference_steps": 3, "guidance_scale": 1.0, "height": 64, "width": 96}
    for name, made in (
        ("DPMSolverMultistepScheduler", DPMSolverMultistepScheduler),
        # Draws noise at every step.
        ("EulerAncestralDiscrete", EulerAncestralDiscreteScheduler),
    ):
        pipe.scheduler = made.from_config(own.config)
        expected = reference(pipe, ["a dog"], seeds=(3,), **options)
        drawn = model.sample("a dog", steps=3, guidance=1.0, seed=3, hw=(64, 96), scheduler=name)
        assert drawn.shape == (1, 3, 64, 96)
        assert torch.equal(drawn, expected), name
    pipe.scheduler = own


def test_a_scheduler_of_the_user_s_own_is_left_alone(models):
    mine = DPMSolverMultistepScheduler.from_config(models["sd15"].scheduler, use_karras_sigmas=True)
    drawn = models["sd15"].sample("a dog", steps=3, scheduler=mine)
    again = models["sd15"].sample("a dog", steps=3, scheduler=mine)
    assert torch.equal(drawn, again)
    assert mine.num_inference_steps is None
    plain = models["sd15"].sample("a dog", steps=3, scheduler="DPMSolverMultistep")
    assert not torch.equal(drawn, plain)


def test_an_image_depends_on_its_own_seed_alone(models):
    model = models["sd15"]
    both = model.sample(["a dog", "a dog"], steps=2, seed=[5, 9])
    torch.testing.assert_close(model.sample("a dog", steps=2, seed=9), both[1:])
    assert not torch.allclose(both[0], both[1])


def test_every_step_is_reported_and_can_be_watched(models):
    seen, batches = [], []
    model = models["sd15"]
    handle = model.unet.register_forward_hook(
        lambda module, args, output: batches.append(output[0].shape[0])
    )
    try:
        model.sample(
            ["a dog"],
            steps=3,
            scheduler="DDIM",
            on_step=lambda index, timestep, latents: seen.append((index, timestep, latents.shape)),
        )
        model.sample(["a dog"], steps=2, scheduler="DDIM", guidance=1.0)
    finally:
        handle.remove()
    assert seen == [(0, 667, (1, 4, 8, 8)), (1, 334, (1, 4, 8, 8)), (2, 1, (1, 4, 8, 8))]
    assert batches == [2, 2, 2, 1, 1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scheduler": "DPMSolver++"}, "name of a diffusers scheduler"),
        ({"scheduler": 3}, "name of a diffusers scheduler"),
        ({"scheduler": "StableDiffusionPipeline"}, "name of a diffusers scheduler"),
        ({"steps": 0}, "steps must be a whole number above 0"),
        ({"steps": 2.5}, "steps must be a whole number above 0"),
        ({"seed": -1}, "a seed must be"),
        ({"seed": [1, 2]}, "a seed must be"),
        ({"seed": 1.5}, "a seed must be"),
        ({"seed": 2**63}, "a seed must be"),
    ],
)
def test_sampling_refuses_what_makes_no_sense(models, options, message):
    with refused(message):
        models["sd15"].sample("a dog", **({"steps": 1} | options))


def test_noise_is_the_same_wherever_a_row_stands():
    noise = seeded_noise((4, 8, 8), 3, count=3)
    assert torch.equal(noise[2:], seeded_noise((4, 8, 8), 5))
    assert torch.equal(noise[0], torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(3)))
    assert torch.equal(noise[[0, 2]], seeded_noise((4, 8, 8), [3, 5], count=2))


def test_an_empty_negative_prompt_is_zeros_for_sdxl_unless_told_otherwise(models):
    from dataclasses import replace

    tower = models["sdxl"].tower
    assert not tower.negative("", 1).vectors.any()
    assert not tower.negative("", 1).pooled.any()
    told = replace(tower, zero_negative=False)
    assert torch.equal(told.negative("", 1).vectors, told.embed([""]).vectors)
    assert torch.equal(tower.negative("sky", 1).vectors, tower.embed(["sky"]).vectors)


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


def test_half_precision_samples_from_the_same_noise(homes, models):
    small = load(homes["sd15"], device="cpu", dtype="bf16")
    drawn = small.sample("a dog", steps=2, seed=1, guidance=2.0)
    torch.testing.assert_close(
        drawn, models["sd15"].sample("a dog", steps=2, seed=1, guidance=2.0), rtol=0.1, atol=0.1
    )


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
