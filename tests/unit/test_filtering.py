"""Of many names, those an image shows: the rules, the sources, and what a segmenter makes of it."""

import json
from dataclasses import replace

import numpy as np
import PIL.Image
import pytest
import torch
from typer.testing import CliRunner

import diffuseg as ds
from diffuseg.backbones.clip import load_clip
from diffuseg.backbones.weights import embedded_folder
from diffuseg.cli import app
from diffuseg.errors import InputError
from diffuseg.eval.datasets import Sample
from diffuseg.filtering import (
    ClassFilter,
    ClipFilter,
    ListedClasses,
    filter_classes,
    find_filter,
    run_filter,
)
from diffuseg.image import Image
from diffuseg.methods.presence import (
    at_least_one,
    in_upper_range,
    near_best,
    strongest_share,
    window_boxes,
)
from diffuseg.prompts import parse_classes
from diffuseg.world import CLASSES, Scenes
from support.folders import write_mini

needs_mini = pytest.mark.skipif(
    not embedded_folder("mini").is_dir(), reason="the embedded model is not trained yet"
)


def picture(name="a.png", seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    return Image(pixels=pixels, source=name)


def names(classes):
    return [one.name for one in classes]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return ds.load(write_mini(tmp_path_factory.mktemp("models") / "tiny"), device="cpu")


@pytest.fixture(scope="module")
def clip():
    return load_clip("mini", device="cpu")


@pytest.fixture(scope="module")
def scenes():
    stream = Scenes("val", seed=4)
    return [stream[i] for i in range(8)]


# ---- the rules


def test_rules_keep_the_best_whatever_the_numbers():
    for values in ([0.5], [0.2, 0.2, 0.2], [-0.3, -0.1, -0.2], [0.0, 0.0]):
        likeness = torch.tensor(values)
        for kept in (near_best(likeness, 0.97), in_upper_range(likeness, 0.6)):
            assert kept[likeness.argmax()]
    assert near_best(torch.tensor([-0.3, -0.1]), 0.97).tolist() == [False, True]
    assert in_upper_range(torch.tensor([0.0, 1.0, 0.61, 0.6]), 0.6).tolist() == [
        False, True, True, False,
    ]  # fmt: skip
    assert at_least_one(torch.tensor([True, False]), torch.tensor([0.0, 1.0])).tolist() == [
        True, False,
    ]  # fmt: skip


def test_a_share_is_that_of_the_window_where_it_is_largest():
    likeness = torch.tensor([[0.9, 0.1, 0.1], [0.1, 0.9, 0.1], [0.1, 0.1, 0.1]])
    share = strongest_share(likeness, 20.0)
    assert share[0] > 0.99
    assert share[1] > 0.99
    assert share[2] == pytest.approx(1 / 3)


@pytest.mark.parametrize("hw", [(256, 256), (100, 317), (317, 100), (16, 16), (17, 4000)])
@pytest.mark.parametrize("parts", [(1,), (1, 2), (3,)])
def test_windows_cover_the_image_and_overlap(hw, parts):
    boxes = window_boxes(hw, parts)
    covered = np.zeros(hw, dtype=int)
    for y0, x0, y1, x1 in boxes:
        assert 0 <= y0 < y1 <= hw[0]
        assert 0 <= x0 < x1 <= hw[1]
        assert y1 - y0 == x1 - x0
        covered[y0:y1, x0:x1] += 1
    assert covered.min() >= 1
    assert len(set(boxes)) == len(boxes)
    if hw == (256, 256):
        assert len(boxes) == {(1,): 1, (1, 2): 10, (3,): 36}[parts]


def test_windows_that_cannot_be():
    for parts in ((), (0,)):
        with pytest.raises(InputError, match="how many fit into the shorter side"):
            window_boxes((64, 64), parts)


# ---- CLIP


@needs_mini
def test_what_clip_keeps_is_mostly_there(clip, scenes):
    images = [Image(pixels=scene.image) for scene in scenes]
    kept = ClipFilter(clip=clip)(images, parse_classes(list(CLASSES)))
    right = sum(
        len(set(names(one)) & set(scene.names)) for one, scene in zip(kept, scenes, strict=True)
    )
    assert right / sum(map(len, kept)) > 0.7
    assert right / sum(len(scene.names) for scene in scenes) > 0.7
    for one in kept:
        assert names(one) == [name for name in CLASSES if name in names(one)]


@needs_mini
@pytest.mark.parametrize("rule", ["share", "diffsegmenter", "range"])
def test_every_rule_keeps_at_least_one_in_the_order_of_the_classes(clip, scenes, rule):
    images = [Image(pixels=scene.image) for scene in scenes[:3]]
    classes = parse_classes([*reversed(CLASSES)])
    told = ClipFilter(clip=clip, rule=rule, captioner=lambda images: ["a car"] * len(images))
    kept = told(images, classes)
    assert all(kept)
    for one in kept:
        assert [classes.index(item) for item in one] == sorted(map(classes.index, one))
    assert told(images, classes) == kept
    assert [told([image], classes)[0] for image in images] == kept


@needs_mini
def test_synonyms_templates_and_one_name(clip, scenes):
    image = Image(pixels=scenes[0].image)
    for classes in ("car", "sky|snow", [("car", "box"), "tree"]):
        told = ClipFilter(clip=clip, templates=("a {}", "a photo of a {}"))
        [kept] = told([image], parse_classes(classes))
        assert set(kept) <= set(parse_classes(classes))
    everything = parse_classes(list(CLASSES))
    assert ClipFilter(clip=clip, share=0.0)([image], everything) == [everything]
    [best] = ClipFilter(clip=clip, share=1.0)([image], everything)
    assert len(best) == 1


@needs_mini
def test_a_caption_can_lower_the_bar(clip, scenes):
    image, classes = Image(pixels=scenes[0].image), parse_classes(list(CLASSES))
    absent = next(name for name in CLASSES if name not in scenes[0].names)

    def say(images):
        return [f"A {absent.upper()}, it seems"] * len(images)

    options = {"clip": clip, "share": 1.0, "captioner": say}
    assert absent in names(ClipFilter(**options, caption_share=0.0)([image], classes)[0])
    assert absent not in names(ClipFilter(**options)([image], classes)[0])
    with pytest.raises(InputError, match="one text for every image"):
        ClipFilter(clip=clip, caption_share=0.0, captioner=lambda _: [])([image], classes)


@needs_mini
def test_five_hundred_names(clip, scenes):
    free = replace(clip, vocabulary=None)  # its tokenizer reads any English
    many = parse_classes([*CLASSES, *(f"thing number {i}" for i in range(482))])
    told = ClipFilter(clip=free).ready(None)
    [kept] = told([Image(pixels=scenes[0].image)], many)
    assert 1 <= len(kept) < 50


@needs_mini
def test_names_clip_cannot_know_are_named(clip):
    with pytest.raises(InputError, match=r"knows only these words(.|\n)*zebra"):
        ClipFilter(clip=clip)([picture()], parse_classes("car, zebra"))


@needs_mini
def test_settings_come_from_the_model_then_the_paper(model):
    class Preset:
        source = "embedded"
        preset = {"class-filter": {"share": 0.4, "windows": [3]}}  # noqa: RUF012

    ready = find_filter("clip", Preset())
    assert (ready.rule, ready.share, ready.windows, ready.theta) == ("share", 0.4, (3,), 0.6)
    ready = find_filter(ClipFilter(share=0.1, clip="mini"), Preset(), {"rule": "range"})
    assert (ready.rule, ready.share) == ("range", 0.1)
    assert ready.clip.name == "mini"
    ready = find_filter(ClipFilter(rule="range", clip="mini"))
    assert ready.windows == (1,)


@pytest.mark.parametrize("settings", [{"share": 1.5}, {"theta": -0.1}, {"windows": (0,)}])
def test_settings_out_of_range(settings):
    with pytest.raises(InputError, match="must"):
        ClipFilter(**settings)


# ---- lists, and objects of one's own


def test_lists():
    listed = find_filter({"x/a.png": ["Dog", "couch"], "b.png": [], "c.png": ["tiger"]})
    assert isinstance(listed, ListedClasses)
    assert isinstance(listed, ClassFilter)
    classes = parse_classes("cat, sofa|couch, dog")
    assert names(listed([picture("a.png")], classes)[0]) == ["sofa", "dog"]
    with pytest.raises(InputError, match=r"must have its classes in the list(.|\n)*no name"):
        listed([picture("b.png")], classes)
    with pytest.raises(InputError, match=r"must have its classes in the list(.|\n)*not there"):
        listed([picture("d.png")], classes)
    with pytest.raises(InputError, match=r"among the classes(.|\n)*tiger"):
        listed([picture("c.png")], classes)


def test_an_object_of_ones_own_may_give_names_in_any_order():
    classes = parse_classes("cat, sofa|couch, dog")

    def mine(images, classes):
        return [["dog", "couch", "dog"] for _ in images]

    [kept] = run_filter(mine, [picture()], [classes])
    assert names(kept) == ["sofa", "dog"]
    with pytest.raises(InputError, match="at least one class"):
        run_filter(lambda images, classes: [[]], [picture()], [classes])
    with pytest.raises(InputError, match="one list of classes for every image"):
        run_filter(lambda images, classes: [], [picture()], [classes])
    with pytest.raises(InputError, match="must be among the classes"):
        run_filter(lambda images, classes: [["cow"]], [picture()], [classes])


@pytest.mark.parametrize("given", [3, "no-such-file.json", object()])
def test_what_is_no_filter(given):
    with pytest.raises(InputError, match='must be "clip", a file of labels'):
        find_filter(given)


def test_settings_are_for_clip():
    with pytest.raises(InputError, match="settings of a filter are those of CLIP's"):
        find_filter({"a": ["car"]}, None, {"share": 0.3})
    with pytest.raises(InputError, match="must be a field of ClipFilter"):
        find_filter(ClipFilter(clip="mini"), None, {"threshold": 0.3})


# ---- in a segmenter


def test_only_what_is_kept_is_looked_for(model):
    listed = {"a.png": ["dog"], "b.png": ["dog", "cat"]}
    segmenter = ds.build_segmenter(model, classes="cat, dog, grass", class_filter=listed)
    first, second = segmenter.many([picture("a.png"), picture("b.png", 1)])
    assert first.names == ("dog",)
    assert second.names == ("cat", "dog")
    assert "filter" in first.provenance.seconds
    plain = ds.segment(picture("b.png", 1), "cat, dog", model=model)
    assert (second.labels == plain.labels).all()
    assert segmenter.capture(picture("a.png")).header.names == ("dog",)


def test_a_file_of_labels_is_the_vocabulary_too(model, tmp_path):
    path = tmp_path / "labels.json"
    path.write_text(json.dumps({"a.png": ["grass", "cat"], "b.png": ["dog"]}))
    segmenter = ds.build_segmenter(model, class_filter=path)
    segmenter.check()
    assert segmenter(picture("a.png")).names == ("cat", "grass")


def test_each_image_may_have_a_vocabulary_of_its_own(model):
    segmenter = ds.build_segmenter(model, class_filter=lambda images, classes: [classes[:1]])
    results = segmenter.many([picture(), picture(seed=1)], ["dog, cat", "grass, cat"])
    assert [one.names for one in results] == [("dog",), ("grass",)]


def test_a_filter_is_for_methods_with_classes(model):
    with pytest.raises(InputError, match="for methods that look for classes"):
        ds.build_segmenter(model, "diffseg", class_filter="clip")
    with pytest.raises(InputError, match="for methods that look for classes"):
        ds.build_segmenter(model, "semantic-diffseg", caption="a cat", class_filter="clip")


@needs_mini
def test_open_vocabulary_end_to_end(scenes):
    scene = scenes[0]
    kept = filter_classes(scene.image, list(CLASSES), model="mini")
    seg = ds.segment(scene.image, list(CLASSES), model="mini", class_filter="clip")
    assert seg.names == kept
    assert filter_classes(scene.image, "car, tree", None, model="mini") == ("car", "tree")


# ---- on the command line and in evaluation


def write_photo(path, seed=0):
    PIL.Image.fromarray(picture(seed=seed).pixels).save(path)
    return path


def test_segment_on_the_command_line(tmp_path):
    folder = write_mini(tmp_path / "tiny")
    write_photo(tmp_path / "a.png")
    (tmp_path / "labels.csv").write_text("a.png,dog\n")
    words = ["segment", str(tmp_path / "a.png"), "-o", str(tmp_path / "out"), "--device", "cpu"]
    words += ["--model", str(folder), "--classes", "cat, dog", "--json", "--quiet"]
    done = CliRunner().invoke(app, [*words, "--filter", str(tmp_path / "labels.csv")])
    assert done.exit_code == 0, done.output
    assert list(json.loads(done.stdout)["images"][0]["areas"]) == ["dog"]
    done = CliRunner().invoke(app, [*words, "--filter", "klip"])
    assert done.exit_code == 2
    assert "a class filter must be" in done.output
    done = CliRunner().invoke(app, [*words, "--filter-set", "share=0.3"])
    assert done.exit_code == 2


class Small:
    """Two pictures of three classes, of which the first has one and the second two."""

    name, split, seed, ignore = "small", "all", None, 255
    classes = ("dog", "grass", "cat")
    groups = {}  # noqa: RUF012

    def __len__(self):
        return 2

    def __getitem__(self, index):
        truth = np.zeros((64, 64), dtype=np.int64)
        truth[: 32 * index] = 2
        return Sample(id=str(index), image=picture(f"{index}.png", index), truth=truth)


def test_scoring_with_a_vocabulary(model):
    listed = {"0.png": ["dog"], "1.png": ["cat", "dog"]}
    found = ds.evaluate(
        Small(), model=model, given="vocabulary", class_filter=listed, size=64, batch_size=1
    )
    told = ds.evaluate(Small(), model=model, size=64, batch_size=1)
    assert found.miou == told.miou
    assert "names of all classes" in found.protocol
    assert not found.uses_gt_image_labels
    assert found.config["class_filter"] == "the labels given (2 images)"
    swept = ds.sweep(
        Small(), {"timestep": [100]}, model=model, given="vocabulary", class_filter=listed, size=64
    )
    assert swept.rows[0]["miou"] == told.miou
    with pytest.raises(InputError, match="methods that look for them"):
        ds.evaluate(Small(), model=model, method="diffseg", given="vocabulary")


def test_a_filter_without_a_vocabulary_is_refused(tmp_path):
    words = [
        "evaluate",
        "scenes",
        "--model",
        str(write_mini(tmp_path / "tiny")),
        "--filter",
        "clip",
    ]
    done = CliRunner().invoke(app, [*words, "--limit", "1", "--device", "cpu"])
    assert done.exit_code == 2
    assert "a filter is for a vocabulary" in done.output
