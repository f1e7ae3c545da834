"""The tables of VidSeg's paper: every row can be run, and is set beside what was printed."""

import importlib.util
import json
from pathlib import Path

import pytest

from diffuseg.eval.video_published import (
    AS_PUBLISHED,
    TABLES,
    UNMODULATED,
    base_settings,
    compared,
    same_order,
)
from diffuseg.methods.vidseg import EMERDIFF, VidSeg
from diffuseg.methods.vidseg.settings import ABLATIONS

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


def script(name):
    spec = importlib.util.spec_from_file_location(f"{name}_", SCRIPTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def measured(**rows):
    return {
        "clips": 1,
        "frames": 14,
        "rows": {
            label.replace("_", " "): {
                "metrics": {"miou": one, "mvc8": 0.5, "mvc16": None, "j": None, "f": None},
                "seconds_per_frame": 1.25,
            }
            for label, one in rows.items()
        },
    }


def test_every_row_is_there_and_can_be():
    assert TABLES.keys() == ABLATIONS.keys()
    for name, table in TABLES.items():
        assert [row.cells for row in table.rows] == [(label,) for label in ABLATIONS[name]]
        assert {len(row.published) for row in table.rows} == {len(table.published)}
        for row in table.rows:
            ready = VidSeg(**{**base_settings(name), **row.settings}).ready("sd")
            changed = row.settings.keys() | {"modulate"}
            kept = {key: one for key, one in AS_PUBLISHED.items() if key not in changed}
            assert {key: getattr(ready, key) for key in kept} == kept


def test_the_base_is_the_papers():
    assert VidSeg(**AS_PUBLISHED).ready("sd") == VidSeg().ready("sd")
    held = VidSeg(**{**base_settings("crf"), **EMERDIFF}).ready("sd")
    assert held == VidSeg().ready("sd", EMERDIFF)
    assert [base_settings(name)["modulate"] for name in UNMODULATED] == [False] * 3


def test_a_table_beside_the_papers():
    lines = compared("crf", measured(EmerDiff=0.6, VidSeg=0.7)).splitlines()
    assert lines[2] == "| EmerDiff | 60.0 | 50.0 | - | - | - | 1.2 | 31.0 | 68.8 | 64.0 |"
    assert lines[3] == "| EmerDiff + CRF | not run |  |  |  |  |  | 31.8 | 75.5 | 71.0 |"
    assert "mIoU: 1 of 1 pair of rows" in lines[-1]
    assert "mVC8: 0 of 1 pair of rows" in lines[-1]  # equal here, not there
    assert "best here VidSeg, in the paper VidSeg" in lines[-1]
    assert "mVC16:" not in lines[-1]
    assert "1 clip of 14 frames" in lines[-1]
    assert "Measured" not in compared("crf", {})
    assert "paper" not in compared("clusters", measured(**{"5_clusters": 0.4})).splitlines()[0]


def test_order():
    assert same_order([1.0, 2.0, 3.0], [10.0, 20.0, 30.0]) == (3, 3)
    assert same_order([3.0, 2.0, 1.0], [10.0, 20.0, 30.0]) == (0, 3)
    assert same_order([1.0, 1.0], [5.0, 5.0]) == (1, 1)
    assert same_order([1.0], [5.0]) == (0, 0)


def test_tables_of_several_runs_go_into_the_page(tmp_path):
    docs = script("docs")
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    told = {"model": {"name": "mini", "unet_sha256": 64 * "0"}, "versions": {"python": "3"}}
    first = {"crf": {**measured(VidSeg=0.5), **told}}
    (tmp_path / "a" / "tables.json").write_text(json.dumps(first))
    second = {"crf": {**measured(VidSeg=0.75), **told}}
    (tmp_path / "b" / "tables.json").write_text(json.dumps(second))
    docs.take_tables([tmp_path / "a", tmp_path / "b"], tmp_path / "video" / "tables.json")
    page = docs.filled("<!-- video: crf --><!-- /video -->", assets=tmp_path)
    assert "| VidSeg | 75.0 |" in page
    page = docs.filled("<!-- video: runs --><!-- /video -->", assets=tmp_path)
    assert "since trained anew" in page


@pytest.mark.parametrize("count", [1, 2])
def test_what_a_clip_costs_is_told_once(tmp_path, count):
    tables = script("video_tables")
    path = tmp_path / "seconds.json"
    assert tables.processor_seconds(path, 1, 4.0) == [4.0]
    assert tables.processor_seconds(path, count, 6.0) == [4.0, 6.0][:count]
    assert tables.processor_seconds(path, count, 9.0) == [4.0, 6.0][:count]
