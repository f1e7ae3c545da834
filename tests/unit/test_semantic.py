"""Semantic DiffSeg on attention that was made up, and through a tiny random model."""

import logging
from dataclasses import replace

import numpy as np
import pytest
import torch

import diffuseg as ds
from diffuseg import models
from diffuseg.attention import AttentionRecord, LayerId, RecordHeader
from diffuseg.attention.captured import Contents, ReducedMap
from diffuseg.errors import InputError, WeightsError
from diffuseg.methods import (
    DiffSeg,
    SemanticDiffSeg,
    find_method,
    method_name,
    read_caption,
    with_settings,
)
from diffuseg.prompts import TokenSpan
from support.folders import write_mini, write_sd15

IMAGE_HW = (50, 90)
TOKENS = 8


def layer(kind):
    return LayerId(
        name=kind, stage="down", block=0, index=0, depth=0, kind=kind, heads=1, width=1, scale=1.0,
        factor=1,
    )  # fmt: skip


def halves(share=1.0):
    """Left cells look left and right cells look right; the more, the larger `share`."""
    side = torch.arange(16) % 4 // 2
    maps = (side[:, None] == side).float() * share + 0.01
    return maps / maps.sum(-1, keepdim=True)


def thirds():
    side = torch.tensor([0, 1, 2, 2]).repeat(4)
    maps = (side[:, None] == side).float() + 0.01
    return maps / maps.sum(-1, keepdim=True)


def looks(**columns):
    """Cross-attention of 4 x 4 cells: tokens attended to by the left (l), the right (r), all."""
    maps = torch.full((16, TOKENS), 0.01)
    left = torch.arange(16) % 4 < 2
    for token, where in columns.items():
        number = int(token.removeprefix("t"))
        maps[:, number] += {"l": left, "r": ~left, "all": left | True}[where] * 0.5
    return maps / maps.sum(-1, keepdim=True)


def made_up(cross, spans, *, own=None, prompts=("a caption",), caption="a caption", **header):
    """A record of one row a prompt; spans are (name, tokens) or (name, row, tokens)."""
    own = torch.stack([halves()] * len(prompts)) if own is None else own
    cross = cross if cross.ndim == 3 else cross[None]
    full = [one if len(one) == 3 else (one[0], 0, one[1]) for one in spans]
    head = RecordHeader(
        model="made up",
        prompts=prompts,
        spans=tuple(TokenSpan(name=name, row=row, tokens=at) for name, row, at in full),
        names=tuple(dict.fromkeys(name for name, _, _ in full)),
        provenance={} if caption is None else {"caption": caption},
        **{"input_hw": (32, 32), "image_hw": IMAGE_HW, **header},
    )
    means = [
        ReducedMap(kind=kind, hw=(4, 4), count=1, values=values)
        for kind, values in (("self", own), ("cross", cross))
    ]
    layers = [layer("self"), layer("cross")]
    grids = {"self": (4, 4), "cross": (4, 4)}
    return AttentionRecord(Contents(header=head, layers=layers, grids=grids, reduced=means))


def left_of(seg):
    return seg.names[seg.labels[10, 10]]


def right_of(seg):
    return seg.names[seg.labels[10, -10]]


# ---- what it needs


class Model:
    unet = torch.nn.Module()

    def __init__(self, **preset):
        self.preset = {name.replace("_", "-"): one for name, one in preset.items()}


def test_needs_both_kinds_under_the_caption():
    needs = SemanticDiffSeg().needs(Model())
    assert (needs.timesteps, needs.kinds, needs.noise) == ((300,), ("self", "cross"), False)
    assert needs.prompt == "caption"
    assert SemanticDiffSeg(masks_from="empty").needs(Model()).prompt == "caption_and_empty"


def test_presets_of_both_names():
    model = Model(diffseg={"timestep": 50}, semantic_diffseg={"timestep": 70})
    assert SemanticDiffSeg().needs(Model(diffseg={"timestep": 50})).timesteps == (50,)
    assert SemanticDiffSeg().needs(model).timesteps == (70,)
    assert SemanticDiffSeg(timestep=7).needs(model).timesteps == (7,)


def test_found_by_name_and_set_from_text():
    assert find_method("semantic-diffseg") == SemanticDiffSeg()
    assert method_name(SemanticDiffSeg()) == "semantic-diffseg"
    assert with_settings(SemanticDiffSeg(), {"tau": "auto"}).tau == "auto"
    changed = with_settings(SemanticDiffSeg(), {"tau": "0.5", "skip": "group,scene", "fold": "yes"})
    assert (changed.tau, changed.skip, changed.fold) == (0.5, ("group", "scene"), True)


# ---- naming


def test_each_half_gets_its_noun():
    record = made_up(looks(t2="l", t4="r"), [("car", (2,)), ("grass", (4,))])
    seg = SemanticDiffSeg()(record)
    assert seg.hw == IMAGE_HW
    assert (left_of(seg), right_of(seg)) == ("car", "grass")
    assert (seg.labels == (np.arange(90) >= 45)[None]).all()
    assert seg.provenance.method == "semantic-diffseg"
    assert seg.provenance.caption == "a caption"
    assert with_settings(SemanticDiffSeg(), seg.provenance.parameters).tau == 1.0


def test_names_the_image_does_not_show_are_kept():
    record = made_up(looks(t2="l", t4="r"), [("sky", (6,)), ("car", (2,)), ("grass", (4,))])
    seg = SemanticDiffSeg()(record)
    assert seg.names == ("sky", "car", "grass")
    assert seg.present == ("car", "grass")


def test_a_noun_is_the_mean_of_its_tokens():
    # Token 2 alone speaks for the left, but the second half of the word for the right.
    cross = looks(t2="l", t3="r", t4="l", t5="r")
    seg = SemanticDiffSeg()(made_up(cross, [("hydrant", (3, 5)), ("car", (2, 4))]))
    assert (left_of(seg), right_of(seg)) == ("car", "hydrant")


def test_one_noun_twice_is_one_label():
    own = thirds()[None]
    record = made_up(looks(t2="l", t6="r"), [("car", (2,)), ("car", (6,))], own=own)
    assert len(DiffSeg()(record)) == 3
    seg = SemanticDiffSeg()(record, scores=True)
    assert seg.names == ("car",)
    assert (seg.labels == 0).all()
    assert seg.scores.shape == (1, *IMAGE_HW)


def test_singular_and_plural_are_folded_on_request():
    record = made_up(looks(t2="l", t4="r"), [("cars", (2,)), ("car", (4,))])
    assert SemanticDiffSeg()(record).names == ("cars", "car")
    assert SemanticDiffSeg(fold=True)(record).names == ("cars",)


def test_words_about_the_picture_do_not_vote():
    record = made_up(looks(t1="all", t2="l"), [("photo", (1,)), ("car", (2,)), ("sky", (3,))])
    assert "photo" not in SemanticDiffSeg()(record).names
    assert "photo" in SemanticDiffSeg(skip=())(record).names
    named = made_up(looks(t1="r", t2="l"), [("photo", (1,)), ("car", (2,))], caption=None)
    assert SemanticDiffSeg()(named).names == ("photo", "car")


@pytest.mark.parametrize("voting", ["mean", "sum", "majority"])
@pytest.mark.parametrize("norm", ["l2", "sum"])
@pytest.mark.parametrize("cross_norm", ["pixel", "none"])
def test_scores_decide(voting, norm, cross_norm):
    method = SemanticDiffSeg(voting=voting, norm=norm, cross_norm=cross_norm)
    spans = [("car", (2,)), ("grass", (4,)), ("sky", (5,))]
    seg = method(made_up(looks(t2="l", t4="r"), spans), scores=True)
    assert (left_of(seg), right_of(seg)) == ("car", "grass")
    assert seg.scores is not None
    assert np.array_equal(seg.scores.argmax(0), seg.labels)
    assert len(np.unique(seg.scores[0])) == 2


def test_segments_of_the_empty_prompt():
    own = torch.stack([halves(), torch.full((16, 16), 1 / 16)])
    cross = torch.stack([looks(t2="l", t4="r")] * 2)
    spans = [("car", (2,)), ("grass", (4,))]
    record = made_up(cross, spans, own=own, prompts=("a caption", ""))
    assert len(SemanticDiffSeg()(record)) == 2
    assert len(SemanticDiffSeg(masks_from="empty")(record)) == 1
    with pytest.raises(InputError, match='masks_from="empty" needs a record under that prompt'):
        SemanticDiffSeg(masks_from="empty")(record.rows(0))
    with pytest.raises(InputError, match='masks_from="caption" needs'):
        SemanticDiffSeg()(record.rows(1))


def test_classes_dealt_out_over_prompts():
    cross = torch.stack([looks(t2="l"), looks(t2="r")])
    spans = [("car", 0, (2,)), ("grass", 1, (2,))]
    record = made_up(cross, spans, prompts=("car", "grass"), caption=None)
    seg = SemanticDiffSeg()(record)
    assert (left_of(seg), right_of(seg)) == ("car", "grass")


def test_no_noun(caplog):
    for spans in ([], [("photo", (1,))]):
        seg = SemanticDiffSeg()(made_up(looks(), spans))
        assert seg.names == ("segment 0", "segment 1")
        assert seg.provenance.method == "semantic-diffseg"
        assert "no noun to name segments by" in caplog.text
        caplog.clear()


@pytest.mark.parametrize("kind", ["self", "cross"])
def test_attention_that_is_not_finite(kind):
    own, cross = halves(), looks(t2="l")
    (own if kind == "self" else cross)[3, 2] = float("nan")
    with pytest.raises(InputError, match="attention must be finite"):
        SemanticDiffSeg()(made_up(cross, [("car", (2,))], own=own[None]))


def test_settings_that_cannot_be():
    for weights in ((0.0, 0.0), (1.0, -1.0), ()):
        with pytest.raises(InputError, match="cross_weights must not be negative"):
            SemanticDiffSeg(cross_weights=weights)
    with pytest.raises(InputError, match="one weight a resolution"):
        SemanticDiffSeg(cross_weights=(1.0, 1.0))(made_up(looks(t2="l"), [("car", (2,))]))
    with pytest.raises(InputError, match="there must be cross-attention"):
        SemanticDiffSeg(cross_layers=("up_blocks.*",))(made_up(looks(), [("car", (2,))]))


# ---- with a model


@pytest.fixture(scope="module")
def closed(tmp_path_factory):
    return ds.load(write_mini(tmp_path_factory.mktemp("models") / "tiny"), device="cpu")


@pytest.fixture(scope="module")
def open_(tmp_path_factory):
    """A model that reads any word."""
    return ds.load(write_sd15(tmp_path_factory.mktemp("models") / "reader"), device="cpu")


METHOD = SemanticDiffSeg(tau=1e-9, rounds=1, anchors=2)


def picture(seed=0, hw=(80, 100)):
    return np.random.default_rng(seed).integers(0, 256, (*hw, 3), dtype=np.uint8)


def describe(images):
    return [f"a photo of a cat and a dog {i}" for i, _ in enumerate(images)]


def test_a_caption_given(closed):
    seg = ds.segment(picture(), model=closed, method=METHOD, caption="a photo of a Cat on grass")
    assert seg.hw == (80, 100)
    assert seg.names == ("cat", "grass")
    assert seg.provenance.caption == "a photo of a Cat on grass"
    assert set(seg.provenance.seconds) == {"read", "caption", "encode", "denoise", "method"}


def test_words_of_several_tokens_move_those_behind(open_):
    text = "an extraordinary hydrant by a cat"
    segmenter = ds.build_segmenter(open_, METHOD, caption=text, size=64)
    record = segmenter.capture(picture())
    tokens = record.header.tokens[0]
    spelled = {
        span.name: "".join(tokens[i] for i in span.tokens).replace("</w>", "")
        for span in record.header.spans
    }
    assert spelled == {"hydrant": "hydrant", "cat": "cat"}
    assert [len(span.tokens) > 1 for span in record.header.spans] == [True, False]
    assert record.header.spans[1].tokens[0] > 6  # its place in words, and the start token


def test_classes_name_segments(closed):
    seg = ds.segment(picture(), "dog, sky|tree, photo", model=closed, method=METHOD)
    assert seg.names == ("dog", "sky", "photo")
    assert seg.provenance.caption == ""


def test_a_saved_record_gives_the_same(closed, tmp_path):
    segmenter = ds.build_segmenter(closed, METHOD, caption="a cat on grass", keep_scores=True)
    segmenter.capture(picture(), everything=True).save(tmp_path / "a.safetensors")
    again = METHOD(AttentionRecord.load(tmp_path / "a.safetensors"), scores=True)
    now = segmenter(picture())
    assert np.array_equal(again.labels, now.labels)
    assert np.array_equal(again.scores, now.scores)
    assert again.provenance.caption == now.provenance.caption == "a cat on grass"


def test_segments_of_the_empty_prompt_are_those_of_diffseg(closed):
    plain = DiffSeg(tau=1e-9, rounds=1, anchors=2)
    method = replace(METHOD, masks_from="empty")
    alone = ds.segment(picture(), model=closed, method=plain)
    record = ds.build_segmenter(closed, method, caption="a cat on grass").capture(picture())
    assert record.header.prompts == ("a cat on grass", "")
    seg = method(record)
    assert seg.names == ("cat", "grass")
    pairs = set(zip(alone.labels.flatten().tolist(), seg.labels.flatten().tolist(), strict=True))
    assert len(pairs) == len(alone)  # every segment lies in one name


def test_captions_are_written_where_nothing_is_said(closed):
    seen = []

    def captioner(images):
        seen.append([image.hw for image in images])
        return ["a cat on grass"] * (len(images) - 1) + [read_caption("a dog and sky")]

    find = ds.build_segmenter(closed, METHOD, captioner=captioner)
    find.check()
    images = [picture(0), picture(1, (120, 60)), picture(2), picture(3)]
    results = find.many(images, [None, "tree", None, None], ["my car", None, None, None])
    assert seen == [[(80, 100), (80, 100)]]
    assert [one.names for one in results] == [("car",), ("tree",), ("cat", "grass"), ("dog", "sky")]
    many = ds.segment_many(images, model=closed, method=METHOD, captioner=captioner, batch_size=3)
    assert [one.provenance.caption for one in many][2:] == ["a dog and sky", "a dog and sky"]


def test_many_images_give_what_each_gives_alone(closed):
    find = ds.build_segmenter(closed, METHOD, caption="a cat on grass", keep_scores=True)
    images = [picture(0), picture(1, (120, 60)), picture(2)]
    for image, seg in zip(images, find.many(images), strict=True):
        alone = find(image)
        assert seg.hw == image.shape[:2]
        np.testing.assert_allclose(seg.scores, alone.scores, rtol=1e-3, atol=1e-5)


def test_another_caption_for_one_call(closed):
    find = ds.build_segmenter(closed, METHOD, "cat, dog")
    assert find(picture(), caption="my car").names == ("car",)
    assert find(picture()).names == ("cat", "dog")


@pytest.mark.parametrize("text", ["red and blue", "a photo of"])
def test_a_caption_without_nouns(closed, caplog, text):
    seg = ds.segment(picture(), model=closed, method=METHOD, caption=text)
    assert seg.names[0] == "segment 0"
    assert "no noun to name segments by" in caplog.text


def test_a_captioner_with_nothing_to_say(closed, caplog):
    seg = ds.segment(
        picture(), model=closed, method=METHOD, captioner=lambda images: [""] * len(images)
    )
    assert seg.names[0] == "segment 0"
    assert "no noun" in caplog.text


def test_a_long_caption_loses_its_end(open_, caplog):
    text = " ".join(["a red cat"] * 30) + " and a dog"
    with caplog.at_level(logging.WARNING):
        seg = ds.segment(picture(), model=open_, method=METHOD, caption=text, size=64)
    assert seg.names == ("cat",)
    assert seg.provenance.caption == text
    assert "too long for the model" in caplog.text
    assert caplog.text.rstrip().endswith("and a dog")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"caption": "a cat", "classes": "cat"}, "by classes or by a caption"),
        ({"caption": "a giraffe on grass"}, "knows only these words"),
        ({"caption": "a cat", "method": "attend"}, "a caption is for methods that look for"),
        ({"caption": "a cat", "method": "diffseg"}, "'a cat' for diffseg, which finds segments"),
        ({"classes": "cat", "method": "attend", "captioner": "mini"}, "a captioner is for methods"),
        ({"captioner": lambda images: []}, "0 texts for 1 images"),
        ({"captioner": lambda images: [3]}, "a caption must be text"),
        ({"captioner": 3}, "the captioner must be a name"),
        ({"caption": "x" * 500}, "knows only these words"),
        ({"caption": ""}, "a caption must be text with words"),
    ],
)
def test_errors(closed, options, message):
    with pytest.raises(InputError, match=message):
        ds.segment(picture(), **{"model": closed, "method": METHOD, **options})


def test_a_word_too_long_to_be_read(open_):
    with pytest.raises(InputError, match="first word of a caption must fit"):
        ds.segment(picture(), model=open_, method=METHOD, caption="qwxz" * 100, size=64)


def test_the_wrong_number_of_captions(closed):
    find = ds.build_segmenter(closed, METHOD)
    with pytest.raises(InputError, match="for every image"):
        find.many([picture()], captions=["a cat", "a dog"])


def test_which_captioner_a_model_has(closed, open_, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(models.loaded, "get", lambda name, **options: asked.append(name) or print)
    for source in ("embedded", str(tmp_path), "someone/model"):
        models.find_captioner(None, replace(closed, source=source))
    (tmp_path / "captioner").mkdir()
    (tmp_path / "captioner/config.json").write_text("{}")
    models.find_captioner(None, replace(closed, source=str(tmp_path)))
    assert asked == ["mini", models.CAPTIONER, models.CAPTIONER, str(tmp_path)]


def test_blip_is_not_on_this_machine(closed, monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(WeightsError, match="blip") as caught:
        ds.segment(picture(), model=closed, method=METHOD)
    assert "caption" in caught.value.remedy


# ---- odd images


@pytest.mark.parametrize(
    "image",
    [
        np.full((64, 64, 3), 127, dtype=np.uint8),
        np.full((64, 64, 3), (255, 0, 0), dtype=np.uint8),
        np.zeros((16, 300, 3), dtype=np.uint8),
        np.random.default_rng(0).integers(0, 256, (1200, 1600, 3), dtype=np.uint8),
    ],
    ids=["grey", "red", "narrow", "large"],
)
def test_odd_images(closed, image):
    for method in (METHOD, SemanticDiffSeg(), SemanticDiffSeg(tau="auto")):
        seg = ds.segment(image, model=closed, method=method, caption="a cat on grass")
        assert seg.hw == image.shape[:2]
        assert set(seg.present) <= {"cat", "grass"}
        assert (seg.labels != seg.ignore).all()
