"""The glue, with a tiny random model in a folder as Stable Diffusion's lie there."""

import logging
from dataclasses import replace

import numpy as np
import PIL.Image
import pytest
import torch

import diffuseg as ds
from diffuseg import api
from diffuseg.attention import AttentionRecord
from diffuseg.errors import InputError, WeightsError
from support.folders import write_mini, write_sd21


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_mini(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def model(folder):
    return ds.load(folder, device="cpu")


def picture(seed=0, hw=(80, 100)):
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 10, 3), dtype=np.uint8)
    return np.asarray(PIL.Image.fromarray(coarse).resize((hw[1], hw[0])))


def same(a, b):
    """Equal but for the time it took."""
    origins = [replace(one.provenance, seconds={}) for one in (a, b)]
    return (a.labels == b.labels).all() and origins[0] == origins[1]


def test_result_has_the_images_size_the_given_order_and_its_provenance(model):
    seg = ds.segment(picture(), ["grass", ("dog", "cat")], model=model, seed=3)
    assert seg.hw == (80, 100)
    assert seg.names == ("grass", "dog")
    assert seg.scores is None
    origin = seg.provenance
    assert origin.model == f"tiny ({model.source})"
    assert (origin.method, origin.seed, origin.image) == ("attend", 3, "array")
    assert (origin.image_hw, origin.working_hw) == ((80, 100), (64, 64))
    assert origin.parameters["timestep"] == 50  # the folder's preset
    assert set(origin.seconds) == {"read", "encode", "denoise", "method"}
    assert all(value >= 0 for value in origin.seconds.values())


def test_every_form_of_an_image_gives_the_same(model, tmp_path):
    pixels = picture()
    PIL.Image.fromarray(pixels).save(tmp_path / "a.png")
    forms = [
        pixels,
        tmp_path / "a.png",
        str(tmp_path / "a.png"),
        (tmp_path / "a.png").read_bytes(),
        PIL.Image.fromarray(pixels),
        torch.tensor(pixels),
        ds.read_image(pixels),
    ]
    results = [ds.segment(form, "cat, dog", model=model) for form in forms]
    assert all((one.labels == results[0].labels).all() for one in results)
    assert results[1].provenance.image == "a.png"


def test_every_form_of_a_model_gives_the_same(model, folder, monkeypatch):
    expected = ds.segment(picture(), "cat, dog", model=model)
    api.loaded.clear()
    assert same(ds.segment(picture(), "cat, dog", model=folder), expected)
    assert len(api.loaded) == 1
    assert api.find_model(str(folder)) is api.find_model(str(folder))
    monkeypatch.setenv("DIFFUSEG_MODEL", str(folder))
    assert same(ds.segment(picture(), "cat, dog"), expected)


def test_cache_keeps_the_latest(folder, tmp_path):
    other = write_sd21(tmp_path / "other")
    cache = api.ModelCache(limit=1)
    first = cache.get(str(folder))
    assert cache.get(str(folder)) is first
    assert cache.get(str(other)).prediction == "v_prediction"
    assert len(cache) == 1
    assert cache.get(str(folder)) is not first


def test_one_line_says_which_model_ran(model, caplog):
    with caplog.at_level(logging.INFO, logger="diffuseg.api"):
        ds.segment(picture(), "cat", model=model)
    assert [record.getMessage() for record in caplog.records] == [
        f"model tiny ({model.source}), method attend"
    ]


def test_same_seed_same_result_other_seed_other_scores(model):
    def scores(seed):
        return ds.segment(picture(), "cat, dog", model=model, seed=seed, keep_scores=True).scores

    assert (scores(1) == scores(1)).all()
    assert not np.allclose(scores(1), scores(2), rtol=1e-4)
    assert scores(1).shape == (2, 80, 100)


def test_a_batch_gives_what_its_images_give_alone(model):
    images = [picture(0), picture(1, (120, 60)), picture(2), picture(3, (60, 120))]
    find = ds.build_segmenter(model, classes="cat, dog", size=128, keep_scores=True)
    together = find.many(images)
    for image, result in zip(images, together, strict=True):
        alone = find(image)
        assert result.hw == image.shape[:2]
        np.testing.assert_allclose(result.scores, alone.scores, rtol=1e-3, atol=1e-5)
    assert {one.provenance.working_hw for one in together} == {(128, 128), (192, 64), (64, 192)}


def test_each_image_its_own_classes(model):
    find = ds.build_segmenter(model)
    results = find.many([picture(0)] * 3, ["cat, dog", ["sky", "cat", "car"], ["sky"]])
    assert [one.names for one in results] == [("cat", "dog"), ("sky", "cat", "car"), ("sky",)]
    assert (results[2].labels == 0).all()
    assert same(results[1], find(picture(0), "sky, cat, car"))


def test_many_prompts_are_split_over_several_calls(model, monkeypatch):
    monkeypatch.setattr("diffuseg.batch._MAX_ROWS", 4)
    method = ds.Attend(prompt="per_class", refine=1)
    find = ds.build_segmenter(model, method, "cat, dog, sky", keep_scores=True)
    images = [picture(i) for i in range(3)]
    split = find.many(images)
    monkeypatch.setattr("diffuseg.batch._MAX_ROWS", 16)
    for a, b in zip(split, find.many(images), strict=True):
        np.testing.assert_allclose(a.scores, b.scores, rtol=1e-3, atol=1e-6)


def test_a_long_joint_prompt_is_split_over_rows(model):
    names = ["ant", "blue", "car", "cat", "dog", "fire", "grass", "house", "my", "photo", "red"]
    names += ["sky", "sofa", "tree", "of", "on", "hydr", "a", "and"]
    many = [" ".join([one] * 6) for one in names]
    seg = ds.segment(picture(), many, model=model, method=ds.Attend(refine=1))
    assert seg.names == tuple(many)
    assert seg.hw == (80, 100)


def test_segment_many_is_lazy_and_in_order(model):
    taken = []

    def images():
        for seed in range(5):
            taken.append(seed)
            yield picture(seed)

    results = ds.segment_many(images(), "cat, dog", model=model, batch_size=2)
    first = next(results)
    assert taken == [0, 1]
    rest = list(results)
    assert taken == [0, 1, 2, 3, 4]
    assert same(first, ds.segment(picture(0), "cat, dog", model=model))
    assert len(rest) == 4
    assert list(ds.segment_many([], "cat", model=model)) == []


def test_capture_then_method_is_segment(model, tmp_path):
    method = ds.Attend(refine=1)
    held = ds.capture(picture(), model, method.needs(model), "cat, dog", seed=5)
    assert held.header.names == ("cat", "dog")
    assert held.header.image_hw == (80, 100)
    expected = ds.segment(picture(), "cat, dog", model=model, method=method, seed=5)
    assert (method(held).labels == expected.labels).all()
    held.save(tmp_path / "a.safetensors")
    again = method(AttentionRecord.load(tmp_path / "a.safetensors"))
    assert (again.labels == expected.labels).all()
    assert again.provenance.parameters == expected.provenance.parameters


def test_capture_of_everything_serves_other_settings(model):
    find = ds.build_segmenter(model, ds.Attend(levels=(1,)), "cat, dog")
    held = find.capture(picture(), everything=True)
    assert {one.kind for one in held.layers} == {"self", "cross"}
    other = ds.Attend(levels=(2,), refine=2)
    assert (
        other(held).labels == ds.segment(picture(), "cat, dog", model=model, method=other).labels
    ).all()


def test_capture_without_words_or_noise(model):
    needs = ds.Needs(timesteps=(10, 300), kinds=("self",), prompt="empty", noise=False)
    held = ds.capture(picture(), model, needs)
    assert held.timesteps == (10, 300)
    assert held.header.seed is None
    assert held.header.prompts == ("",)


def test_background(model):
    words = ds.Attend(background="words", background_words=("sky", "grass"))
    seg = ds.segment(picture(), "cat, dog", model=model, method=words)
    assert seg.names == ("background", "cat", "dog")
    threshold = ds.Attend(background="threshold", threshold=2.0)
    seg = ds.segment(picture(), "cat, dog", model=model, method=threshold)
    assert seg.present == ("background",)


def test_the_model_is_left_as_it_was(model):
    latents = torch.zeros(1, 4, 8, 8)
    text = model.embed("a cat")
    before = model.denoise(latents, 10, text)
    ds.segment(picture(), "cat", model=model)
    assert torch.equal(model.denoise(latents, 10, text), before)
    assert not any(module._forward_hooks for module in model.unet.modules())


def test_square_fit(model):
    seg = ds.segment(picture(hw=(60, 240)), "cat", model=model, fit="square", size=128)
    assert seg.provenance.working_hw == (128, 128)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "needs the names of the classes"),
        ({"classes": ""}, "at least one class"),
        ({"classes": []}, "at least one class"),
        ({"classes": "cat, Cat"}, "one class, once"),
        ({"classes": "giraffe"}, "knows only these words"),
        ({"classes": "cat", "method": "iseg2"}, "the method must be a known name"),
        ({"classes": "cat", "seed": -1}, "seed must be a whole number of at least 0"),
        ({"classes": "cat", "seed": True}, "seed must be"),
        ({"classes": "cat", "size": 8}, "size must be a whole number of at least 64"),
        ({"classes": "cat", "fit": "tall"}, "fit must be"),
        ({"classes": "cat", "model": "mimi"}, "the model must be a known name"),
        ({"classes": "cat", "model": 3}, "the model must be a name"),
        (
            {
                "classes": "background, cat",
                "method": ds.Attend(background="words", background_words=("sky",)),
            },
            "either a class of yours or found by words",
        ),
    ],
)
def test_errors(model, options, message):
    with pytest.raises(InputError, match=message):
        ds.segment(picture(), **{"model": model, **options})


def test_an_unknown_word_names_the_known_ones_and_real_models(model):
    with pytest.raises(InputError) as caught:
        ds.build_segmenter(model, classes="giraffe")
    assert "grass" in str(caught.value)
    assert "sd1.5" in caught.value.remedy


def test_a_bad_image_is_noticed_before_the_model_is_loaded(tmp_path):
    with pytest.raises(InputError, match="image file must exist"):
        ds.segment(tmp_path / "no.png", "cat", model=tmp_path / "no-model")


def test_a_corrupt_model_folder(folder, tmp_path):
    (tmp_path / "model_index.json").write_text("{")
    with pytest.raises(WeightsError):
        ds.segment(picture(), "cat", model=tmp_path)


def test_batch_size(model):
    with pytest.raises(InputError, match="batch_size must be"):
        ds.segment_many([], "cat", model=model, batch_size=0)
