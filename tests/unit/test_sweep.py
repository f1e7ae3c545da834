"""Many settings at once: the same figures as one by one, resuming, choosing, drawing."""

import json

import numpy as np
import PIL.Image
import pytest
from typer.testing import CliRunner

import diffuseg as ds
from diffuseg.attention import layers_of
from diffuseg.cli import app
from diffuseg.errors import InputError
from diffuseg.eval import sweep as module
from diffuseg.eval.curves import draw_curves
from diffuseg.eval.datasets import Sample
from diffuseg.eval.grid import Bare, parse_grid, plan
from diffuseg.eval.sweep_report import curves
from diffuseg.image import Image
from support.folders import write_sd15
from support.image_folders import write_own, write_picture, write_voc

PRESET = {"attend": {"timestep": 100, "levels": [2], "heads": [0]}}


class Small:
    """Pictures of 48 pixels, which cost next to nothing to score."""

    name, split, seed, ignore = "small", "all", None, 255
    classes = ("sky", "grass", "car")
    groups = {"things": ("car",)}  # noqa: RUF012

    def __len__(self):
        return 3

    def __getitem__(self, index):
        rng = np.random.default_rng(index)
        truth = np.repeat(np.repeat(rng.integers(0, 3, (4, 4)), 12, axis=0), 12, axis=1)
        pixels = rng.integers(0, 256, (48, 48, 3), dtype=np.uint8)
        return Sample(id=str(index), image=Image(pixels=pixels), truth=truth)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return ds.load(write_sd15(tmp_path_factory.mktemp("models") / "tiny"), device="cpu")


def settings_of(found):
    return [row["settings"] for row in found.rows]


def test_the_figures_are_those_of_separate_runs(model):
    grid = {
        "timestep": [50, 400],
        "levels": [(1,), (1, 2)],
        "refine": [0, 1],
        "prompt": ["joint", "per_class"],
    }
    found = ds.sweep(Small(), grid, model=model, limit=2, size=64)
    assert len(found.rows) == 16
    for row in (found.rows[0], found.rows[6], found.rows[11], found.rows[15]):
        method = ds.Attend(**row["settings"] | {"levels": tuple(row["settings"]["levels"])})
        alone = ds.evaluate(Small(), method=method, model=model, limit=2, size=64, batch_size=1)
        assert row["miou"] == alone.miou
        assert row["acc"] == alone.acc
        assert row["miou_things"] == alone.metrics["miou_things"]
    assert len({row["miou"] for row in found.rows}) > 8


def test_the_model_sees_each_image_once_for_each_prompt(model, monkeypatch):
    calls = []

    def counted(image, model, needs, *rest, **options):
        calls.append((needs.prompt, needs.timesteps))
        return ds.capture(image, model, needs, *rest, **options)

    monkeypatch.setattr(module, "capture", counted)
    grid = {"timestep": [50, 400], "levels": [(1,), (2,)], "prompt": ["joint", "per_class"]}
    ds.sweep(Small(), grid, model=model, limit=2, size=64)
    assert calls == [("joint", (50, 400)), ("per_class", (50, 400))] * 2


def test_every_single_layer_and_head(model):
    cross = [one for one in layers_of(model.unet) if one.kind == "cross"]
    heads = max(one.heads for one in cross)
    grid = {"layers": "each", "heads": ["each", (0, 1)]}
    found = ds.sweep(Small(), grid, model=model, limit=1, size=64)
    assert len(found.rows) == len(cross) * (heads + 1)
    assert {row["settings"]["layers"][0] for row in found.rows} == {one.name for one in cross}
    levels = ds.sweep(Small(), {"levels": "each"}, model=model, limit=1, size=64)
    assert [row["levels"] for row in settings_of(levels)] == [[1], [2], [4]]


def test_any_choice_of_some_parts(model):
    settings, _ = plan(ds.Attend(), Bare(unet=model.unet), {"levels": "any:1+2+4"})
    found = [one.values["levels"] for one in settings]
    assert found == [(1,), (2,), (4,), (1, 2), (1, 4), (2, 4), (1, 2, 4)]


def test_combinations_that_cannot_be_are_left_out_and_told(model):
    grid = {"layers": "each", "levels": [(1,), (2,), (4,)]}
    found = ds.sweep(Small(), grid, model=model, limit=1, size=64)
    assert len(found.rows) == len([one for one in layers_of(model.unet) if one.kind == "cross"])
    assert len(found.rows) + len(found.left_out) == 3 * len(found.rows)
    assert "levels and layers must select" in found.left_out[0]["reason"]
    assert "do not fit the model" in found.to_markdown()


def test_the_preset_can_be_left_aside(model):
    preset = Bare(unet=model.unet, preset=PRESET)
    bare = Bare(unet=model.unet)
    [kept], _ = plan(ds.Attend(), preset, {"refine": [0]})
    [all_layers], _ = plan(ds.Attend(), bare, {"refine": [0]})
    assert len(kept.needs.layers) < len(all_layers.needs.layers)


def test_report_resumes_and_names_the_best(model, tmp_path):
    grid = {"timestep": [50, 200, 800]}

    class Stop(Exception):
        pass

    def stop(done, total):
        if done == 2:
            raise Stop

    def run(folder, **options):
        found = ds.sweep(Small(), grid, model=model, limit=3, size=64, report=folder, **options)
        rows = [{k: v for k, v in row.items() if k != "seconds"} for row in found.rows]
        return found, rows

    whole, expected = run(tmp_path / "whole")
    with pytest.raises(Stop):
        run(tmp_path / "cut", progress=stop)
    state = tmp_path / "cut" / "images.jsonl"
    assert len(state.read_text().splitlines()) == 1 + 2 * 3
    state.write_text(state.read_text()[:-20])  # in the middle of an image's settings
    assert run(tmp_path / "cut")[1] == expected
    assert whole.best["miou"] == max(row["miou"] for row in whole.rows)
    assert whole.preset == {"attend": whole.best["settings"]}
    names = sorted(path.name for path in (tmp_path / "whole").iterdir())
    assert names == ["images.jsonl", "sweep.json", "sweep.md", "timestep.png"]
    held = json.loads((tmp_path / "whole" / "sweep.json").read_text())
    assert [row["settings"] for row in held["rows"]] == [{"timestep": t} for t in grid["timestep"]]
    assert held["best"]["settings"] == whole.best["settings"]
    assert f"timestep={whole.best['settings']['timestep']}" in whole.to_markdown()
    with PIL.Image.open(tmp_path / "whole" / "timestep.png") as plot:
        assert len(plot.getcolors(1 << 20)) > 4


def test_another_figure_can_decide(model):
    found = ds.sweep(Small(), {"levels": "each"}, model=model, limit=1, size=64, by="acc")
    assert found.best["acc"] == max(row["acc"] for row in found.rows)
    assert found.ranked[0] is found.best


def test_curves_of_several_fields(model):
    grid = {"timestep": [50, 400], "levels": [(1,), (2,)]}
    found = ds.sweep(Small(), grid, model=model, limit=1, size=64)
    lines = curves(found, "timestep")
    assert sorted(lines) == ["levels=1", "levels=2"]
    assert [x for x, _ in lines["levels=1"]] == [50, 400]
    assert curves(found, "levels") == {}


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ({"timestep": []}, "a field that varies needs values"),
        ({"timesteps": [1]}, "a setting must be a field of Attend"),
        ({"timestep": ["soon"]}, "timestep must be"),
        ({"timestep": "each"}, '"each" stands for the single layers'),
        ({"levels": [(1,), (3,)]}, "levels and layers must select"),
        ({"levels": "any:1++2"}, "any: takes 1 to 6 parts"),
        ({"heads": "any:0+1+2+3+4+5+6"}, "any: takes 1 to 6 parts"),
        ({"heads": [(99,)]}, "heads must be there in every layer used"),
    ],
)
def test_impossible_values_are_refused(model, grid, message):
    with pytest.raises(InputError, match=message):
        ds.sweep(Small(), grid, model=model, limit=1, size=64)


def test_an_unknown_figure_is_refused_at_once(model):
    with pytest.raises(InputError, match="compared by a figure"):
        ds.sweep(Small(), {"timestep": [50]}, model=model, limit=1, by="best")


def test_values_as_typed():
    assert parse_grid(["levels=1, 1+2", "prompt=joint"]) == {
        "levels": ["1", "1+2"],
        "prompt": ["joint"],
    }
    with pytest.raises(InputError, match="each name once"):
        parse_grid(["levels=1", "levels=2"])


def test_a_plot_without_points_is_refused():
    with pytest.raises(InputError, match="a plot needs points"):
        draw_curves({}, x_label="x", y_label="y")


def test_plots_of_one_value_and_of_negative_ones():
    for points in ([(1.0, 5.0)], [(0.0, 0.0)], [(-3.0, -1e-9), (2e6, 4.0)]):
        plot = draw_curves({"a": points}, x_label="x", y_label="y", fill=True)
        assert plot.size[0] >= 640


def test_command_line(tmp_path):
    folder = write_sd15(tmp_path / "tiny")
    preset = tmp_path / "preset.json"
    done = CliRunner().invoke(
        app,
        [
            *("sweep", "scenes", "--model", str(folder), "--limit", "1", "--split", "val"),
            *("--set", "timestep=50,100", "--set", "levels=1+2", "--size", "64", "--device", "cpu"),
            *("--no-preset", "--report", str(tmp_path / "report"), "--json", "--quiet"),
            *("--write-preset", str(preset)),
        ],
    )
    assert done.exit_code == 0, done.output
    held = json.loads(done.stdout)
    assert held["fields"] == ["timestep"]
    assert held["fixed"] == {"levels": [1, 2]}
    assert json.loads(preset.read_text()) == held["preset"]
    assert held["preset"]["attend"]["levels"] == [1, 2]
    assert (tmp_path / "report" / "timestep.png").is_file()


def test_any_data_set_can_be_swept(model, tmp_path, monkeypatch):
    write_voc(tmp_path)
    monkeypatch.setenv("COLUMNS", "60")
    words = ["sweep", "voc12", "--root", str(tmp_path), "--names", "plain", "--limit", "1"]
    words += [
        "--model",
        model.source,
        "--device",
        "cpu",
        "--size",
        "64",
        "--set",
        "timestep=50,100",
    ]
    report = tmp_path / "report"
    done = CliRunner().invoke(app, [*words, "--report", str(report)])
    assert done.exit_code == 0, done.output
    held = json.loads((report / "sweep.json").read_text())
    assert (held["dataset"], held["split"], held["n_images"]) == ("voc21", "val", 1)
    assert "size of the image" in held["geometry"]
    assert "- Data: scored at the size of the image" in (report / "sweep.md").read_text()
    # Broken to the width of the terminal, not cut off.
    assert " ".join(done.stdout.split()).endswith(str(report / "sweep.json"))
    said = " ".join(done.stdout.split())
    assert "score it on another split before you quote it." in said


def test_another_folder_is_another_sweep(model, tmp_path):
    write_own(tmp_path / "a")
    write_own(tmp_path / "b")
    write_picture(tmp_path / "b/images/one.jpg", (40, 50))
    (tmp_path / "b/masks/one.png").write_bytes((tmp_path / "b/masks/two.png").read_bytes())
    found = [
        ds.sweep(
            "folder", {"timestep": [50]}, model=model, size=64, root=tmp_path / one,
            report=tmp_path / "report",
        )
        for one in ("a", "b")
    ]  # fmt: skip
    alone = ds.sweep("folder", {"timestep": [50]}, model=model, size=64, root=tmp_path / "b")
    assert found[1].rows[0]["miou"] == alone.rows[0]["miou"] != found[0].rows[0]["miou"]


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["scenes", "--root", "here"], "scenes is drawn, not read"),
        (["voc21"], "voc21 is read from its folder"),
        (["voc21", "--root", "nowhere"], "no folder nowhere"),
        (["folder", "--root", "own", "--geometry", "diffseg"], "has but one choice of geometry"),
        (["folder", "--root", "own", "--names", "ovdiff"], "has but one choice of names"),
        (["bsds500", "--root", "own"], "must have classes"),
    ],
)
@pytest.mark.parametrize("command", [["sweep", "--set", "timestep=50"], ["ablate"]])
def test_data_sets_asked_for_wrongly(model, tmp_path, monkeypatch, command, words, why):
    monkeypatch.chdir(tmp_path)
    write_own(tmp_path / "own")
    method = ["--method", "diffsegmenter"] if command == ["ablate"] else []
    rest = ["--model", model.source, "--device", "cpu", *method]
    done = CliRunner().invoke(app, [command[0], *words, *command[1:], *rest])
    assert done.exit_code == 2, done.output
    assert why in " ".join(done.stderr.split())
    assert done.stderr.count("error:") == 1
    assert not done.stdout
