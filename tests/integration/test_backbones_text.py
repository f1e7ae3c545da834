"""Prompts as models of every kind read them, against diffusers' own pipelines."""

import pytest
import torch

from diffuseg.backbones import TextEmbedding
from diffuseg.backbones.text import reweight
from diffuseg.errors import InputError
from diffuseg.prompts import build_prompts
from support import folders
from support.refusal import refused


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
