"""Runs side by side and beside what papers print; unlike protocols are never set so silently."""

import json

import pytest
from typer.testing import CliRunner

from diffuseg.cli import app
from diffuseg.errors import InputError
from diffuseg.eval.comparing import compare_reports, find_differences
from diffuseg.eval.dataset_facts import find_facts
from diffuseg.eval.metrics import AVERAGES
from diffuseg.eval.protocols import ORACLES, PROTOCOLS, VIDEO_PROTOCOLS
from diffuseg.eval.published_rows import FIGURES, published_rows


def report(**changes):
    held = {
        "dataset": "voc21",
        "split": "val",
        "seed": None,
        "n_images": 1449,
        "pixels_scored": 1000,
        "miou": 0.68,
        "acc": 0.9,
        "average": "gt_present",
        "metrics": {"miou": 0.68, "acc": 0.9, **{f"miou_{one}": 0.5 for one in AVERAGES}},
        "intervals": {"miou": [0.66, 0.7]},
        "per_class": {"background": 0.9, "cat": 0.4},
        "protocol": PROTOCOLS[True, "vocabulary"],
        "given": "vocabulary",
        "oracles": [],
        "method": "iseg",
        "model": {"name": "sd2.1-base", "source": "hub", "unet_sha256": 64 * "0"},
    }
    return held | changes


CLASSES = {"given": "classes", "protocol": PROTOCOLS[True, "classes"], "uses_gt_image_labels": True}


def test_alike_runs_stand_side_by_side_and_beside_papers():
    found = compare_reports([report(), report(method="attend", metrics={"miou": 0.5, "acc": 0.8})])
    assert found.runs == ("iseg, sd2.1-base", "attend, sd2.1-base")
    assert found.figures["miou"] == (0.68, 0.5)
    assert found.intervals["miou"] == ((0.66, 0.7), (0.66, 0.7))
    assert not found.differences
    iseg = next(one for one in found.published if one.method == "iSeg")
    assert iseg.values == {"miou": 68.2}
    assert not iseg.differs
    assert "iSeg" in iseg.source
    assert "Table 2" in iseg.source
    assert {one.method for one in found.published} >= {"OVDiff", "DiffSegmenter", "TCL"}
    text = found.to_markdown()
    assert "68.0 (66.0 to 70.0)" in text
    assert "| iSeg | Diffusion-based | 68.2 |" in text
    assert "Unlike" not in text
    assert json.loads(found.to_json())["figures"]["acc"] == [0.9, 0.8]


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"dataset": "context60"}, "data set"),
        ({"split": "train"}, "split"),
        ({"seed": 3}, "stream"),
        ({"n_images": 100}, "images"),
        ({"pixels_scored": 5}, "pixels scored"),
        ({"average": "all_eps"}, "averaging rule"),
        ({"geometry": "centre square"}, "scored at"),
        ({"label_source": "somebody else's"}, "labels"),
        ({"chosen_on": "train"}, "settings chosen on"),
        ({"chosen_on": "val"}, "oracle"),
        ({"threshold": {"value": 0.4, "chosen_on": "eval split (oracle)"}}, "oracle"),
        ({"shard": [1, 2]}, "part"),
        ({"per_class": {"cat": 0.4}}, "classes"),
        (CLASSES, "given"),
        (CLASSES, "oracle"),
    ],
)
def test_unlike_protocols_are_refused_and_named(changes, what):
    pair = [report(), report(**changes)]
    assert what in [one.what for one in find_differences(pair)]
    with pytest.raises(InputError, match="one protocol") as caught:
        compare_reports(pair)
    assert what in str(caught.value.got)
    found = compare_reports(pair, anyway=True)
    assert what in [one.what for one in found.differences]
    assert found.to_markdown().startswith("**Unlike protocols")


def test_other_models_methods_and_settings_are_no_difference():
    other = report(
        method="attend", model={"name": "mini", "source": "embedded"}, parameters={"a": 1}
    )
    assert not find_differences([report(), other])


def test_one_rule_for_all():
    pair = [report(), report(average="all_eps")]
    found = compare_reports(pair, average="all_zero")
    assert found.figures["miou"] == (0.5, 0.5)
    assert found.intervals["miou"] == (None, None)
    with pytest.raises(InputError, match="average must be one of"):
        compare_reports(pair, average="mean")


def test_printed_rows_say_from_which_run_they_differ():
    pair = [report(), report(n_images=100, average="all_eps")]
    found = compare_reports(pair, anyway=True)
    flags = {one.method: one.differs for one in found.published}
    assert flags["iSeg"] == (
        "the run is of 100 of 1449 (run 2)",
        "averaging rule: gt_present, the run all_eps (run 2)",
    )
    tuned = "oracle: tuned-on-split, the run none"
    assert tuned in flags["DiffSegmenter"]
    assert "averaging rule: all_eps, the run gt_present (run 1)" in flags["DiffSegmenter"]


def regions(**changes):
    figures = {"covering": 0.4, "rand": 0.7, "voi": 2.5, "ods": 0.3, "ois": 0.35}
    held = {
        "dataset": "bsds500",
        "split": "test",
        "n_images": 4,
        "metrics": figures,
        "tolerance": 0.0075,
        "boundaries": "the release's own",
        "protocol": "in words",
        "given": "nothing",
        "oracles": [],
        "method": "diffseg",
        "model": {"name": "mini", "source": "embedded", "unet_sha256": 64 * "0"},
    }
    return held | changes


def test_runs_over_regions_stand_side_by_side():
    text = compare_reports([regions(), regions(method="kmeans")]).to_markdown()
    assert "| covering | 40.0 | 40.0 |" in text
    assert "| F of boundaries, ODS | 30.0 | 30.0 |" in text
    assert "| variation of information, bits | 2.50 | 2.50 |" in text
    many = regions(uses_gt_scale=True)
    assert [one.what for one in find_differences([regions(), many])] == ["oracle"]
    for changes in ({"tolerance": 0.01}, {"boundaries": "thinned from their regions"}):
        found = find_differences([regions(), regions(**changes)])
        assert [one.what for one in found] == ["boundaries"]


def test_printed_rows_say_in_what_they_differ():
    found = compare_reports([report(n_images=100, **CLASSES)])
    flags = {one.method: one.differs for one in found.published}
    assert "the run is of 100 of 1449" in flags["iSeg"]
    assert "given: vocabulary, the run classes" in flags["iSeg"]
    assert "oracle: none, the run image-labels" in flags["iSeg"]
    assert any("tuned-on-split" in one for one in flags["DiffSegmenter"])
    assert any("averaging rule: all_eps" in one for one in flags["DiffSegmenter"])
    assert "protocol not stated" in flags["TCL"]
    only = compare_reports([report()], papers=["OVDiff"])
    assert only.published
    assert all("OVDiff (" in one.source for one in only.published)
    assert not compare_reports([report()], published=False).published


def test_videos_compare_too():
    held = {
        "dataset": "davis2017",
        "split": "val",
        "n_videos": 30,
        "n_frames": 1999,
        "metrics": {"j": 0.5, "f": 0.6, "j_and_f": 0.55},
        "per_class": {},
        "protocol": VIDEO_PROTOCOLS["anchor"],
        "method": "vidseg",
        "model": {"name": "sd2.1", "source": "hub", "unet_sha256": 64 * "0"},
    }
    found = compare_reports([held])
    mine = [one for one in found.published if one.method == "VidSeg" and one.backbone == "SD 2.1"]
    assert mine[0].values == {"j": 57.6, "f": 62.6, "j_and_f": 60.1}
    assert not mine[0].differs


def test_files_and_folders(tmp_path):
    (tmp_path / "report.json").write_text(json.dumps(report()))
    assert compare_reports([tmp_path, tmp_path / "report.json"]).runs[0].endswith("(1)")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(InputError, match="a report is a JSON file"):
        compare_reports([tmp_path / "bad.json"])
    with pytest.raises(InputError, match="a report is a JSON file"):
        compare_reports([tmp_path / "none.json"])
    (tmp_path / "other.json").write_text("[]")
    with pytest.raises(InputError, match="must have what evaluate writes"):
        compare_reports([tmp_path / "other.json"])
    with pytest.raises(InputError, match="there must be reports"):
        compare_reports([])


def test_command(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    for name, changes in (("a", {}), ("b", {"n_images": 100})):
        (tmp_path / f"{name}.json").write_text(json.dumps(report(**changes)))
    a, b = str(tmp_path / "a.json"), str(tmp_path / "b.json")
    assert CliRunner().invoke(app, ["compare", a, a]).exit_code == 0
    refused = CliRunner().invoke(app, ["compare", a, b])
    assert refused.exit_code == 2
    assert "images: 1449 | 100" in refused.output
    page = tmp_path / "page.md"
    done = CliRunner().invoke(app, ["compare", a, b, "--anyway", "--json", "-o", str(page)])
    assert done.exit_code == 0
    assert json.loads(done.stdout)["differences"]["images"] == ["1449", "100"]
    assert page.read_text().startswith("**Unlike")


def test_every_printed_row_has_a_source_and_a_known_data_set():
    rows = published_rows()
    assert len(rows) == 478
    for row in rows:
        assert row.paper in row.source
        assert row.table in row.source
        if row.metric in FIGURES:
            assert 0 < row.value < 100
            assert row.dataset is not None
            find_facts(row.dataset)
        if row.protocol is not None:
            assert row.protocol.average in AVERAGES
            assert set(row.protocol.oracles) <= set(ORACLES)


def test_j_and_f_is_the_mean_of_both_in_every_printed_row():
    rows = [one for one in published_rows() if one.metric in ("J", "F", "J&F")]
    groups = {}
    for one in rows:
        key = one.method, one.backbone, one.dataset, one.paper, one.table
        groups.setdefault(key, {})[one.metric] = one.value
    assert groups
    for held in groups.values():
        assert held["J&F"] == pytest.approx((held["J"] + held["F"]) / 2, abs=0.051)
