"""Pictures of many sizes with the embedded model: seen at its own size, and at theirs."""

import numpy as np
import pytest
import torch

import diffuseg as ds
from diffuseg.backbones.weights import embedded_folder
from diffuseg.image import Image, to_tensor
from diffuseg.world import Scenes

pytestmark = pytest.mark.skipif(
    not embedded_folder("mini").is_dir(), reason="the embedded model is not trained yet"
)

SIZES = [(128, 128), (256, 256), (512, 512), (128, 320), (384, 256)]


@pytest.fixture(scope="module")
def model():
    return ds.load("mini", device="cpu")


@pytest.mark.parametrize("hw", SIZES)
def test_a_mask_has_the_size_of_its_picture(model, hw):
    scene = Scenes("test", seed=3, hw=hw)[2]
    names = list(scene.names)
    usual = ds.segment(scene.image, names, model=model)
    assert usual.labels.shape == hw
    working = usual.provenance.working_hw
    assert working is not None
    assert 0.6 * 256**2 <= working[0] * working[1] <= 1.6 * 256**2
    assert (working[0] > working[1]) == (hw[0] > hw[1])
    assert set(np.unique(usual.labels)) <= set(range(len(names)))


@pytest.mark.parametrize("hw", [(128, 128), (512, 512), (128, 320)])
def test_the_model_can_see_a_picture_at_its_own_size(model, hw):
    scene = Scenes("test", seed=3, hw=hw)[2]
    side = round((hw[0] * hw[1]) ** 0.5)
    seg = ds.segment(scene.image, list(scene.names), model=model, size=side)
    assert seg.labels.shape == hw
    assert seg.provenance.working_hw == hw
    assert len(np.unique(seg.labels)) > 1


@pytest.mark.parametrize("hw", [(128, 128), (320, 192)])
def test_reconstruction_and_drawing_at_other_sizes(model, hw):
    pixels = to_tensor(Image(pixels=Scenes("test", seed=3, hw=hw)[2].image), hw)
    with torch.no_grad():
        latents = model.encode(pixels)
        assert latents.shape[-2:] == (hw[0] // 8, hw[1] // 8)
        error = (model.decode(latents) - pixels).square().mean()
    assert -10 * error.log10() > 18
    drawn = model.sample("a red car on grass", steps=2, hw=hw)
    assert drawn.shape == (1, 3, *hw)
    assert torch.isfinite(drawn).all()
