"""The base model's attention beside the masks of an adapter of it."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

from diffuseg.api import build_segmenter
from diffuseg.backbones import load
from diffuseg.errors import InputError
from diffuseg.methods import Attend, SegDiffusion
from diffuseg.models import find_base, loaded
from diffuseg.segdiffusion.opening import open_segmenter
from support import adapters, folders

NAMES = ("cat", "dog", "tree")
QUICK = SegDiffusion(steps=1, background="none", learned=("cat", "tree"))
PICTURE = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("attending")
    base = folders.write_sd15(root / "base")
    unet = UNet2DConditionModel.from_pretrained(base / "unet")
    adapters.write_adapter(root / "seg", unet, base="base", scheduler=base, size=64)
    adapters.write_whole(root / "whole", base)
    return root


@pytest.fixture(scope="module")
def model(root):
    return load(root / "seg")


@pytest.fixture(scope="module")
def parts(model, root) -> Any:
    """The scores of masks alone, and of attention alone: pictures of the size both work at."""
    masks = open_segmenter(model, QUICK, list(NAMES), keep_scores=True)(PICTURE).scores
    attend = Attend(normalise="minmax")
    base = build_segmenter(root / "base", attend, list(NAMES), size=64, keep_scores=True)
    return masks, base(PICTURE).scores


def scores(model, classes=NAMES, **settings) -> Any:
    find = open_segmenter(model, replace(QUICK, **settings), list(classes), keep_scores=True)
    assert find.attending is not None
    # Of the folder, which says no size, the base would take 512 pixels.
    find = replace(find, attending=replace(find.attending, size=64))
    return find(PICTURE).scores


@pytest.mark.parametrize(
    ("attention", "new", "shares"),
    [
        (0.25, 0.75, (0.25, 0.75, 0.25)),
        (0.25, None, (0.25, 0.25, 0.25)),
        (0.0, 1.0, (0.0, 1.0, 0.0)),
    ],
)
def test_attention_has_its_share(model, parts, attention, new, shares):
    masks, attended = parts
    share = np.float32(shares)[:, None, None]
    found = scores(model, attention=attention, attention_new=new)
    assert np.abs(found - ((1 - share) * masks + share * attended)).max() < 1e-5
    assert np.abs(found - masks).max() > 1e-2


def test_without_learned_names_all_are_alike(model, parts):
    masks, attended = parts
    found = scores(model, attention=0.5, attention_new=1.0, learned=NAMES)
    assert np.abs(found - (masks + attended) / 2).max() < 1e-5


def test_classes_with_several_words(model, root):
    classes = ("tree", ("cat", "kitten"))
    find = build_segmenter(
        root / "base", Attend(normalise="minmax"), list(classes), size=64, keep_scores=True
    )
    found = scores(model, classes, attention=1.0, attention_new=1.0)
    assert np.abs(found - find(PICTURE).scores).max() < 1e-5


def test_time_is_told(model):
    find = open_segmenter(model, replace(QUICK, attention=0.5), list(NAMES))
    assert find(PICTURE).provenance.seconds["attend"] > 0
    plain = open_segmenter(model, QUICK, list(NAMES))
    assert plain.attending is None


def test_the_base_is_loaded_once_and_beside(model, root):
    loaded.clear()
    named = loaded.get(str(root / "seg"))
    assert find_base(named) is find_base(named)
    assert loaded.get(str(root / "seg")) is named
    assert not find_base(named).denoises_masks


def test_what_is_refused(root):
    with pytest.raises(InputError, match="takes an adapter") as error:
        open_segmenter(root / "whole", replace(QUICK, attention=0.5))
    assert "leave attention out" in error.value.remedy
    for wrong in ({"attention": 1.5}, {"attention_new": -0.1}):
        with pytest.raises(InputError, match=f"{next(iter(wrong))} must lie in"):
            replace(QUICK, **wrong)
