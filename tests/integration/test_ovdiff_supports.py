"""Pictures drawn of classes, and the attribution recorded while they are drawn."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import diffuseg as ds
from diffuseg.attention import record
from diffuseg.errors import InputError
from diffuseg.methods.ovdiff import OVDiff
from diffuseg.methods.ovdiff.settings import NEGATIVE_PROMPT
from diffuseg.ovdiff.supports import ClassColumns, draw_supports, negative_prompt
from diffuseg.prompts import build_prompts
from support import models

TEMPLATE = "A good picture of a {}"
SMALL = OVDiff(number=3, steps=2, size=32, template=TEMPLATE, guidance=8.0)
FIELDS = {"number": 1, "steps": 1, "size": 32, "template": TEMPLATE}


@pytest.fixture(scope="module")
def mini():
    return ds.load("mini")


@pytest.fixture(scope="module")
def drawn(mini):
    """Two classes of three pictures, four drawn at once."""
    told = []
    found = list(
        draw_supports(
            mini, "car, green ball", SMALL, batch_size=4, progress=lambda *at: told.append(at)
        )
    )
    assert told == [(4, 6), (6, 6)]
    return found


def sample(mini, prompt, seeds, **changed):
    options = {"steps": 2, "guidance": 8.0, "hw": (32, 32), "scheduler": "DPMSolverMultistep"}
    return mini.sample([prompt] * len(seeds), seed=seeds, **(options | changed))


def as_bytes(pixels):
    return pixels.permute(0, 2, 3, 1).mul(255).round().to(torch.uint8).numpy()


def test_every_class_has_its_pictures(drawn):
    assert [one.name for one in drawn] == ["car", "green ball"]
    assert [one.prompt for one in drawn] == [TEMPLATE.format("car"), TEMPLATE.format("green ball")]
    for one in drawn:
        assert one.images.shape == (3, 32, 32, 3)
        assert one.images.dtype == np.uint8
        assert one.attribution.shape == (3, 4, 4)
        assert one.attribution.dtype == torch.float32
        assert not one.attribution.is_inference()
        assert (one.attribution > 0).all()
        assert (one.attribution < 1).all()
        assert len({picture.tobytes() for picture in one.images}) == 3


def test_recording_changes_no_picture(mini):
    prompts = [TEMPLATE.format("car"), TEMPLATE.format("green ball")]
    options = {"steps": 2, "guidance": 8.0, "seed": [42, 42], "hw": (32, 32)}
    plain = mini.sample(prompts, **options)
    columns = ClassColumns([(6,), (6, 7)])
    with record(mini, kinds="cross", half="cond", reduce=columns):
        again = mini.sample(prompts, **options)
    assert torch.equal(plain, again)


def test_pictures_are_those_of_sample_and_every_class_has_the_same_noise(mini, drawn):
    alone = draw_supports(mini, "car, green ball", SMALL, batch_size=3)
    for one, before in zip(alone, drawn, strict=True):
        pixels = sample(mini, one.prompt, [42, 43, 44])
        assert np.array_equal(one.images, as_bytes(pixels))
        assert np.abs(one.images.astype(int) - before.images).max() <= 1


def test_batches_do_not_show(mini, drawn):
    again = draw_supports(mini, "car, green ball", SMALL, batch_size=1)
    for one, other in zip(drawn, again, strict=True):
        assert np.abs(one.images.astype(int) - other.images).max() <= 1
        torch.testing.assert_close(one.attribution, other.attribution, rtol=1e-3, atol=1e-6)


def test_attribution_is_daam_s_of_the_conditional_half(mini, drawn):
    prompts = build_prompts("green ball", TEMPLATE, joint=False)
    [span] = mini.token_spans(prompts)
    assert span.tokens == (6, 7)
    with record(mini, kinds="cross", half="cond") as rec:
        sample(mini, prompts.prompts[0], [42])
    total, count = torch.zeros(1, 2, 4, 4), 0
    for layer in rec.layers:
        for step in rec.timesteps:
            maps = rec.head_maps(layer, step)[..., list(span.tokens)].transpose(2, 3)
            for head in maps.unflatten(-1, rec.grid(layer)).unbind(1):
                total += F.interpolate(head, size=(4, 4), mode="bicubic").clamp(min=0)
                count += 1
    assert len(rec.layers) == 16
    expected = total.mean(1) / count
    torch.testing.assert_close(drawn[1].attribution[:1], expected, rtol=1e-3, atol=1e-6)


def test_without_guidance_all_rows_count(mini):
    one = OVDiff(number=2, steps=1, size=32, guidance=1.0, scheduler="DDIM")
    found = next(draw_supports(mini, "car", one))
    assert found.attribution.shape == (2, 4, 4)
    pixels = sample(mini, found.prompt, [42, 43], guidance=1.0, steps=1, scheduler="DDIM")
    assert np.array_equal(found.images, as_bytes(pixels))


def test_synonyms_take_turns(mini):
    two = replace(SMALL, number=2, steps=1)
    both = next(draw_supports(mini, "car|green ball", two))
    assert both.name == "car"
    assert both.prompt == f"{TEMPLATE.format('car')} | {TEMPLATE.format('green ball')}"
    for number, word in enumerate(("car", "green ball")):
        alone = next(draw_supports(mini, word, two))
        assert np.abs(both.images[number].astype(int) - alone.images[number]).max() <= 1
        torch.testing.assert_close(
            both.attribution[number], alone.attribution[number], rtol=1e-3, atol=1e-6
        )


def test_tokens_are_the_name_s_and_not_the_template_s(mini):
    """The name "picture" stands in the template too, and the authors' code takes that one."""
    one = OVDiff(**FIELDS)
    right = next(draw_supports(mini, "picture", one)).attribution
    wrong = next(draw_supports(mini, "picture", OVDiff(**FIELDS, profile="release"))).attribution
    assert not torch.allclose(right, wrong, rtol=1e-3)
    car = [
        next(draw_supports(mini, "car", method)).attribution
        for method in (one, OVDiff(**FIELDS, profile="release"))
    ]
    assert torch.equal(*car)


def test_the_release_cuts_colours(mini):
    rounded, cut = (
        next(draw_supports(mini, "car", OVDiff(**FIELDS, profile=profile))).images.astype(int)
        for profile in ("default", "release")
    )
    assert set(np.unique(rounded - cut)) == {0, 1}


# ---- poor input


def test_words_the_model_does_not_know_are_refused_before_drawing(mini, monkeypatch):
    def never(*_, **__):
        raise AssertionError("drawn")

    monkeypatch.setattr(type(mini), "sample", never)
    with pytest.raises(InputError, match="zebra"):
        draw_supports(mini, "car, zebra", SMALL)
    with pytest.raises(InputError, match="fog"):
        draw_supports(mini, "car", OVDiff(negative="fog"))
    with pytest.raises(InputError, match="batch_size"):
        draw_supports(mini, "car", SMALL, batch_size=0)
    with pytest.raises(InputError, match="at least one class"):
        draw_supports(mini, [], SMALL)
    with pytest.raises(InputError, match="tokens the model reads"):
        draw_supports(mini, " ".join(["car"] * 80), SMALL)


def test_the_authors_negative_prompt_is_left_out_where_it_is_not_known(mini):
    assert negative_prompt(mini, OVDiff()) == ""
    assert negative_prompt(mini, OVDiff(negative=NEGATIVE_PROMPT)) == ""
    assert negative_prompt(mini, OVDiff(negative="sky")) == "sky"
    assert negative_prompt(mini, OVDiff(negative="")) == ""

    reads_all = replace(mini, vocabulary=None)
    assert negative_prompt(reads_all, OVDiff()) == NEGATIVE_PROMPT


def test_a_stopped_run_leaves_no_hook(mini):
    stopped = draw_supports(mini, "car, tree", OVDiff(**FIELDS), batch_size=1)
    next(stopped)
    stopped.close()
    assert not any(module._forward_hooks for module in mini.unet.modules())


def test_rows_may_have_different_tokens():
    unet = models.sd15()
    call = models.inputs(unet, batch=2, timestep=300)
    columns = ClassColumns([(2,), (2, 4)])
    with torch.no_grad(), record(unet, kinds="cross", reduce=columns):
        unet(**call)
    for row, tokens in enumerate(columns.tokens):
        one = {name: call[name][row : row + 1] for name in ("sample", "encoder_hidden_states")}
        alone = ClassColumns([tokens])
        with torch.no_grad(), record(unet, kinds="cross", reduce=alone):
            unet(**one, timestep=300)
        torch.testing.assert_close(columns.attribution()[row : row + 1], alone.attribution())
