"""Completion of masks by something that sees the image, and a tiny random SAM that does it."""

import numpy as np
import pytest
import torch

import diffuseg as ds
from diffuseg.backbones.sam import Sam, load_sam
from diffuseg.completion import RegionCompleter, complete_regions
from diffuseg.errors import InputError, WeightsError
from support.refusal import refused

HW = (24, 40)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from transformers import SamConfig, SamImageProcessor, SamModel

    root = tmp_path_factory.mktemp("sam")
    config = SamConfig(
        vision_config={
            "hidden_size": 16,
            "output_channels": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 64,
            "patch_size": 16,
            "mlp_dim": 32,
            "global_attn_indexes": [0],
            "window_size": 2,
            "num_pos_feats": 8,
        },
        prompt_encoder_config={
            "hidden_size": 16,
            "image_size": 64,
            "patch_size": 16,
            "mask_input_channels": 4,
        },
        mask_decoder_config={
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "mlp_dim": 32,
            "iou_head_hidden_dim": 16,
        },
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        SamModel(config).save_pretrained(root)
    SamImageProcessor(
        size={"longest_edge": 64},
        pad_size={"height": 64, "width": 64},
        mask_size={"longest_edge": 16},
        mask_pad_size={"height": 16, "width": 16},
    ).save_pretrained(root)
    return root


@pytest.fixture
def picture():
    return np.random.default_rng(0).integers(0, 256, (*HW, 3), dtype=np.uint8)


@pytest.fixture
def seg():
    rows = np.linspace(0, 1, HW[0], dtype=np.float32)[:, None] * np.ones(HW, dtype=np.float32)
    scores = np.stack([np.full(HW, 0.45, dtype=np.float32), rows, rows[::-1]])
    return ds.Segmentation(
        labels=scores.argmax(0), names=("background", "car", "tree"), scores=scores
    )


def test_labels_follow_the_completed_scores(seg, picture):
    def swap(image, scores):
        assert image.hw == HW
        return scores[[0, 2, 1]]

    found = complete_regions(seg, picture, swap)
    assert (found.labels == 0).sum() == (seg.labels == 0).sum()
    assert ((found.labels == 1) == (seg.labels == 2)).all()
    assert "swap" in str(found.provenance.parameters["completer"])
    assert isinstance(swap, RegionCompleter)


def test_undecided_pixels_stay_so(seg, picture):
    labels = seg.labels.copy()
    labels[:3] = seg.ignore
    part = ds.Segmentation(labels=labels, names=seg.names, scores=seg.scores)
    found = complete_regions(part, picture, lambda image, scores: scores)
    assert (found.labels == labels).all()


@pytest.mark.parametrize(
    ("completer", "message"),
    [
        (lambda image, scores: scores[:1], "a finite score for every class and pixel"),
        (lambda image, scores: scores * np.nan, "a finite score for every class and pixel"),
    ],
)
def test_completers_that_will_not_do(seg, picture, completer, message):
    with refused(message):
        complete_regions(seg, picture, completer)


def test_what_cannot_be_completed(seg, picture):
    bare = ds.Segmentation(labels=seg.labels, names=seg.names)
    with refused("completing needs the score maps"):
        complete_regions(bare, picture, lambda image, scores: scores)
    with refused("image and segmentation must have one size"):
        complete_regions(seg, picture[:20], lambda image, scores: scores)


def test_a_sam_from_a_folder(folder, seg, picture):
    sam = load_sam(folder, device="cpu")
    image = ds.read_image(picture)
    assert seg.scores is not None
    region = seg.labels == 1
    [masks] = sam.masks(image, [seg.scores[1]], [region])
    assert masks.shape[1:] == HW
    assert masks.dtype == bool
    found = complete_regions(seg, picture, sam)
    assert found.hw == HW
    assert found.scores is not None
    np.testing.assert_array_equal(found.scores[0], seg.scores[0])  # a constant stays


def test_a_mask_that_agrees_fills_holes_and_one_that_does_not_is_left(folder, seg, picture):
    loaded = load_sam(folder, device="cpu")
    whole = np.zeros((3, *HW), dtype=bool)
    whole[1, HW[0] // 2 :] = True  # most of what "car" has

    class Drawn(Sam):
        def masks(self, image, scores, regions):
            return [whole] * len(regions)

    drawn = Drawn(name="x", source="x", model=loaded.model, processor=loaded.processor)
    scores = seg.scores.copy()
    scores[1, -4:-2, 5:9] = 0.1  # a hole
    holed = ds.Segmentation(labels=scores.argmax(0), names=seg.names, scores=scores)
    assert (holed.labels[-4:-2, 5:9] != 1).all()
    found = complete_regions(holed, picture, drawn)
    assert found.scores is not None
    assert (found.labels[-4:-2, 5:9] == 1).all()
    np.testing.assert_array_equal(found.scores[2], scores[2])  # "tree" agrees with no mask


def test_sams_that_are_not_to_be_had(folder, tmp_path):
    with refused("the miniature has no SAM"):
        load_sam("mini")
    with pytest.raises(InputError, match="the sam model must be"):
        load_sam("nothing")
    with pytest.raises(WeightsError, match="folder in transformers format"):
        load_sam(tmp_path / "nowhere")
    sam = load_sam(folder, device="cpu")
    with refused("agreement and share must be from 0 to 1"):
        Sam(name="x", source="x", model=sam.model, processor=sam.processor, share=2.0)
