"""OVDiff from text to masks on the miniature: a tiny bank, every way a picture meets it."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from typer.testing import CliRunner

import diffuseg as ds
from diffuseg.api import Segmenter, build_segmenter
from diffuseg.cli import app
from diffuseg.errors import InputError
from diffuseg.eval.datasets import open_dataset
from diffuseg.file_runs import settings_key
from diffuseg.methods import OVDiff
from diffuseg.methods.ovdiff.windows import window_boxes
from diffuseg.models import find_model
from diffuseg.ovdiff.bank import Bank
from diffuseg.ovdiff.building import build_bank
from diffuseg.ovdiff.explanation import explain
from diffuseg.ovdiff.segmenter import BankSegmenter, open_segmenter

NAMES = ("ball", "grass", "sky")
TINY = OVDiff(
    number=2, steps=2, size=128, parts=3, cut_size=128, extractors=("sd", "dino"),
    side=128, crops=(128, 96), stride=64, prefilter="none",
)  # fmt: skip
PICTURE = np.random.default_rng(0).integers(0, 255, (128, 160, 3), dtype=np.uint8)


@pytest.fixture(scope="session")
def bank(tmp_path_factory: pytest.TempPathFactory) -> Bank:
    # With the fallback, a few steps make no clean masks, but some.
    settings = replace(TINY, proposals="none", fallback="otsu")
    return build_bank(list(NAMES), tmp_path_factory.mktemp("bank") / "tiny", "mini", settings)


@pytest.fixture(scope="session")
def find(bank: Bank) -> BankSegmenter:
    return open_segmenter(bank, "mini", matching(), list(NAMES))


def matching(**settings: Any) -> OVDiff:
    """Settings of matching alone: those of the pictures are the bank's."""
    usual = OVDiff(
        side=128, crops=(128, 96), stride=64, whole=True, prefilter="none",
        background="prototypes", pamr=0,
    )  # fmt: skip
    return replace(usual, **settings)


def test_a_picture_is_compared_with_the_bank(find, bank):
    seg = find(PICTURE)
    assert seg.names == ("background", *NAMES)
    assert seg.hw == (128, 160)
    assert seg.provenance.method == "ovdiff"
    assert seg.provenance.parameters["bank"] == str(bank.path)
    assert seg.provenance.parameters["parts"] == 3  # taken up from the bank
    assert seg.provenance.working_hw == (128, 160)
    assert set(seg.provenance.seconds) == {"choose", "match", "label"}
    assert np.array_equal(find(PICTURE).labels, seg.labels)


def test_several_pictures_are_what_they_are_alone(find):
    other = PICTURE[:, ::-1].copy()
    both = find.many([PICTURE, other], [["sky", "ball"], None])
    assert both[0].names == ("background", "sky", "ball")
    for seg, picture, names in zip(both, (PICTURE, other), (["sky", "ball"], None), strict=True):
        alone = find(picture, names)
        assert (seg.labels != alone.labels).mean() < 0.001
    with pytest.raises(InputError, match="one class list for every image"):
        find.many([PICTURE], [None, None])


def test_every_window_is_seen_once_and_counts_as_often_as_it_comes(find):
    [view] = find.view([PICTURE[:, :128]])
    assert view.boxes[0, 0, 128, 128] == 2  # a window, and the whole picture
    assert len(view.boxes) == 1 + len(window_boxes((128, 128), 96, 64))
    seen = [(name, box) for _, box, name, _ in find.features([view])]
    assert len(seen) == len(set(seen)) == 2 * len(view.boxes)


def test_scores_decide_labels(bank):
    find = open_segmenter(bank, "mini", matching(), "sky, grass", keep_scores=True)
    seg = find(PICTURE)
    assert seg.scores is not None
    best = np.where(seg.scores > 0, seg.scores, 0).argmax(0)
    assert (best == seg.labels).mean() > 0.999
    assert abs(seg.scores).max() <= 1


@pytest.mark.parametrize("background", ["none", "threshold"])
def test_other_backgrounds(bank, background):
    how = matching(background=background, threshold=1.0, pamr=2)
    seg = open_segmenter(bank, "mini", how, "sky, grass", keep_scores=True)(PICTURE)
    if background == "none":
        assert seg.names == ("sky", "grass")
        assert seg.labels.max() <= 1
    else:
        assert seg.areas["background"] == seg.labels.size
    with pytest.raises(InputError, match=r"must be in the bank|either a class of yours"):
        open_segmenter(bank, "mini", how, "sky, background")


def test_clip_chooses_things_and_leaves_stuff(bank):
    find = open_segmenter(bank, "mini", matching(prefilter="release", candidates=2), list(NAMES))
    [view] = find.view([PICTURE])
    assert {1, 2} <= set(view.selected)  # grass and sky
    assert find.prefilter is not None
    told = find.prefilter([PICTURE, PICTURE], ["ball", "car", "tree"], [False] * 3)
    assert told[0] == told[1]
    assert 1 <= len(told[0]) <= 2


def test_by_name_everywhere(bank):
    method = matching(bank=str(bank.path))
    found = build_segmenter("mini", method, "sky, grass")
    assert isinstance(found, Segmenter)
    assert isinstance(found, BankSegmenter)
    assert settings_key(found) != settings_key(replace(found, classes=None))
    seg = ds.segment(PICTURE, "sky, grass", model="mini", method=method)
    assert np.array_equal(seg.labels, found(PICTURE).labels)
    everything = build_segmenter("mini", method)(PICTURE)
    assert everything.names == ("background", *NAMES)


@pytest.mark.parametrize(
    "options", [{"seed": 3}, {"size": 128}, {"caption": "a ball"}, {"fit": "square"}]
)
def test_what_is_set_elsewhere_is_refused(bank, options):
    with pytest.raises(InputError, match="settings of its own"):
        build_segmenter("mini", matching(bank=str(bank.path)), **options)


def test_records_are_refused(find):
    with pytest.raises(InputError, match="work from one"):
        find.capture(PICTURE)
    record = build_segmenter("mini", "attend", "ball").capture(PICTURE)
    with pytest.raises(InputError, match="pictures and a bank"):
        OVDiff()(record)


def test_unknown_classes_and_other_networks_are_refused(bank, find):
    with pytest.raises(InputError, match=r"must be in the bank(.|\n)*bank add"):
        find(PICTURE, "car")
    with pytest.raises(InputError, match=r"must be in the bank"):
        open_segmenter(bank, "mini", matching(), "car")
    with pytest.raises(InputError, match=r"made with the networks and settings"):
        open_segmenter(bank, "mini", matching(timestep=300))
    model = find_model("mini")
    unet = model.unet
    weight = next(iter(unet.parameters()))
    held = weight.detach().clone()
    try:
        with torch.no_grad():
            weight.add_(1.0)
        with pytest.raises(InputError, match=r"model.unet"):
            open_segmenter(bank, model, matching())
    finally:
        weight.data.copy_(held)


def test_scenes_are_scored_with_the_whole_vocabulary(bank, tmp_path):
    class Three:
        """Scenes whose truth is told by three names."""

        def __init__(self) -> None:
            self.all = open_dataset("scenes", seed=1, limit=2)
            self.name, self.split, self.seed = "scenes", self.all.split, 1
            self.ignore = self.all.ignore
            self.classes = NAMES
            self.groups: dict[str, tuple[str, ...]] = {}

        def __len__(self) -> int:
            return 2

        def __getitem__(self, index: int) -> Any:
            sample = self.all[index]
            truth = np.full_like(sample.truth, self.ignore)
            for number, name in enumerate(NAMES):
                truth[sample.truth == self.all.classes.index(name)] = number
            return replace(sample, truth=truth)

    method = matching(bank=str(bank.path))
    report = ds.evaluate(Three(), model="mini", method=method, report=tmp_path, batch_size=2)
    assert report.method == "ovdiff"
    assert not report.uses_gt_image_labels
    assert "class_filter" not in report.config
    told = ds.evaluate(Three(), model="mini", method=method, given="classes", batch_size=2)
    assert told.uses_gt_image_labels
    assert (tmp_path / "report.json").exists()


def test_folders_and_the_command_line(bank, tmp_path):
    (tmp_path / "in").mkdir()
    PIL.Image.fromarray(PICTURE).save(tmp_path / "in" / "a.png")
    flags = [f"--set={one}" for one in ("side=128", "crops=128,96", "stride=64", "prefilter=none")]
    asked = ["segment", str(tmp_path / "in"), "--classes", "sky, grass", "--method", "ovdiff"]
    out = ["--output", str(tmp_path / "out"), "--set", f"bank={bank.path}", *flags]
    done = CliRunner().invoke(app, [*asked, *out])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "out" / "a.png").exists()


def test_what_decided_is_found_and_drawn(find, bank, tmp_path):
    why = explain(PICTURE, ["ball", "grass", "sky"], find, reasons_each=2, pictures=2)
    assert 1 <= len({row.mask.tobytes() for row in why.rows}) <= 8
    for row in why.rows:
        assert row.mask.shape == (128, 160)
        assert set(np.unique(why.segmentation.labels[row.mask])) == {
            why.segmentation.names.index(row.name)
        }
        assert row.owner == row.name or row.name == "background"
        assert 0 < row.vote <= 1
        assert -1 <= row.similarity <= 1 + 1e-5
        assert row.masks.shape == (len(row.pictures), 128, 128)
        assert row.kind != "instance" or row.pictures == (row.source,)
    with PIL.Image.open(why.save(tmp_path / "why.png")) as written:
        assert written.size == why.sheet.size
    assert [one["name"] for one in why.table()] == [row.name for row in why.rows]
    with pytest.raises(InputError, match="written as a picture"):
        why.save(tmp_path / "why.txt")


def test_the_command_line_explains(bank, tmp_path):
    PIL.Image.fromarray(PICTURE).save(tmp_path / "a.png")
    flags = [f"--set={one}" for one in ("side=128", "crops=128", "stride=64", "prefilter=none")]
    asked = ["bank", "explain", str(bank.path), str(tmp_path / "a.png"), "--json", *flags]
    done = CliRunner().invoke(app, [*asked, "--output", str(tmp_path / "why.png")])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["regions"]
    assert (tmp_path / "why.png").exists()


def test_without_pictures_nothing_can_be_explained(bank, tmp_path):
    bare = Bank.create(tmp_path / "bare", bank.recipe, settings=bank.settings)
    bare.add(bank.get("sky"))
    with pytest.raises(InputError, match="must have kept its pictures"):
        explain(PICTURE, None, open_segmenter(bare, "mini", matching()))


def test_a_bank_of_one_s_own_grows_as_it_is_asked(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    settings = replace(TINY, proposals="none", fallback="otsu", number=1, extractors=("sd",))
    find = open_segmenter(None, "mini", settings, "sky")
    assert find.bank.names == ("sky",)
    assert find.bank.path.is_relative_to(tmp_path / "diffuseg" / "ovdiff")


def halves(pictures):
    """Two masks for every picture: its left half, and its right one."""
    left = torch.zeros(pictures[0].shape[:2], dtype=torch.bool)
    left[:, : left.shape[1] // 2] = True
    return [torch.stack([left, ~left]) for _ in pictures]


def test_proposals_may_come_from_any_function(tmp_path):
    settings = replace(TINY, number=1, extractors=("sd",), template="a {}")
    made = build_bank("ball", tmp_path / "bank", "mini", settings, proposer=halves)
    entry = made.get("ball", pictures=True)
    assert entry.fg is not None
    shares = [entry.fg[..., :64].float().mean(), entry.fg[..., 64:].float().mean()]
    assert sorted(shares) == [0, 1]
    assert made.recipe.values["masks"]["proposer"] == {"name": "halves"}
    # Without the function nothing can be added; with another one nothing may.
    with pytest.raises(InputError, match="proposer="):
        build_bank("grass", tmp_path / "bank", "mini")
    with pytest.raises(InputError, match=r"proposer\.name"):
        build_bank("grass", tmp_path / "bank", "mini", proposer=lambda pictures: halves(pictures))
    found = open_segmenter(made, "mini", matching(), "ball")(PICTURE)
    assert found.names == ("background", "ball")
