"""What every report says of its protocol, in JSON and in Markdown, whichever runner wrote it."""

import json

import numpy as np
import pytest

from diffuseg.eval.assembling import RunFacts, assemble
from diffuseg.eval.metrics import AVERAGES
from diffuseg.eval.protocols import ORACLES, VIDEO_PROTOCOLS, find_given, find_oracles
from diffuseg.eval.region_report import RegionReport
from diffuseg.eval.state import ImageScore
from diffuseg.eval.video_report import VideoReport

MODEL = {"name": "mini", "source": "embedded", "unet_sha256": 64 * "0"}


def of_images(named, told, chosen_on=None):
    facts = RunFacts(
        dataset="scenes", split="test", seed=1, classes=("a", "b", "c"), ignore=255, groups={},
        geometry="as it is", label_source="its own", note="", n_images=1, named=named, given=told,
        average="gt_present", chosen_on=chosen_on, resamples=0, shard=None, model=MODEL,
        method="attend", config={}, versions={}, hardware={},
    )  # fmt: skip
    counts = facts.empty()
    truth, found = np.array([[0, 0, 1]]), np.array([[0, 1, 1]])
    counts.update(truth, found)
    return assemble(facts, {0: ImageScore.of(0, counts, 0.5)})


def of_videos(told):
    rules = {f"miou_{rule}": 0.1 * n for n, rule in enumerate(AVERAGES)}
    return VideoReport(
        dataset="scenes-clips", split="test", n_videos=1, n_frames=2, metrics={"miou": 0.0} | rules,
        per_class={"a": 0.5}, per_video={"one": 0.5}, protocol=VIDEO_PROTOCOLS[told], given=told,
        oracles=find_oracles({"protocol": VIDEO_PROTOCOLS[told]}), parameters={}, method="vidseg",
        uses_gt_first_frame=told == "anchor",
        model=MODEL, versions={},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("report", "told", "oracles"),
    [
        (of_images(True, "classes"), "classes", ["image-labels"]),
        (of_images(True, "nothing"), "nothing", []),
        (of_images(True, "vocabulary", "test"), "vocabulary", ["tuned-on-split"]),
        (of_images(False, "count"), "count", ["class-count", "image-hungarian"]),
        (of_videos("anchor"), "anchor", ["first-frame"]),
        (of_videos("classes"), "classes", ["first-frame-labels"]),
    ],
)
def test_averages_and_oracles_are_named(report, told, oracles):
    held, text = json.loads(report.to_json()), report.to_markdown()
    assert (held["given"], held["oracles"], held["average"]) == (told, oracles, "gt_present")
    assert (find_given(held), list(find_oracles(held))) == (told, oracles)
    assert f"averaging rule `{held['average']}`" in text
    for rule in AVERAGES:
        assert f"miou_{rule}" in held["metrics"]
        assert f"`{rule}`" in text
    assert held["protocol"] in text
    line = next(one for one in text.splitlines() if one.startswith("- Oracle: "))
    assert [name for name in ORACLES if f"`{name}`, {ORACLES[name]}" in line] == oracles
    assert bool(oracles) != ("none" in line)


def of_regions(scales):
    figures = {"covering": 0.5, "f": 0.3, "f_recall": 0.4, "f_precision": 0.2, "segments": 3.0}
    return RegionReport(
        dataset="bsds500", split="test", n_images=2, metrics=figures | {"ods": 0.3, "ois": 0.35},
        scales=[{"settings": {"tau": 0.1 * n}, "metrics": figures} for n in range(1, scales + 1)],
        uses_gt_scale=scales > 1, oracles=find_oracles({"uses_gt_scale": scales > 1}),
        boundaries="the release's own", model=MODEL, method="diffseg",
    )  # fmt: skip


def test_regions_have_no_mean_iou_and_say_who_chose_the_scale():
    one, many = of_regions(1), of_regions(3)
    for report, oracles in ((one, []), (many, ["best-scale"])):
        held, text = json.loads(report.to_json()), report.to_markdown()
        assert (held["average"], held["given"]) == ("none", "nothing")
        assert held["oracles"] == list(find_oracles(held)) == oracles
        assert "no averaging rule" in text
        assert "matched one to one within 0.0075" in text
        assert held["protocol"] in text
    assert "ODS and OIS are the same F" in one.to_markdown()
    assert "Oracle: none" in one.to_markdown()
    assert "Oracle: `best-scale`" in many.to_markdown()
    assert "| tau=0.2 | 0.300 | 0.400 | 0.200 | 0.500 | 3.000 |" in many.to_markdown()


def test_objects_of_videos_have_no_mean_iou():
    report = VideoReport(
        dataset="davis2017", split="val", n_videos=1, n_frames=3, metrics={"j": 0.5, "f": 0.5},
        per_class={}, per_video={"one": 0.5}, protocol=VIDEO_PROTOCOLS["anchor"], method="vidseg",
        parameters={}, model=MODEL, versions={},
    )  # fmt: skip
    assert "- mIoU: none, and no averaging rule" in report.to_markdown()
