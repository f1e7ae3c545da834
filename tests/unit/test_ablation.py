"""The papers' tables: every row possible, measured once, told beside what was published."""

import json

import numpy as np
import PIL.Image
import pytest
from typer.testing import CliRunner

import diffuseg as ds
from diffuseg.cli import app
from diffuseg.errors import InputError
from diffuseg.eval import ablation as module
from diffuseg.eval import sweep as sweeping
from diffuseg.eval.ablation import ablate, find_tables
from diffuseg.eval.datasets import Sample
from diffuseg.eval.published import TABLES, Row, Table, vary
from diffuseg.image import Image
from diffuseg.methods import METHODS, with_settings
from support.folders import write_sd15
from support.image_folders import write_own

ATTEND = {
    "timesteps": vary("Noise level", "timestep", (50, 100, 400), {"VOC": (1.0, 3.0, 2.0)}),
    "components": Table(
        title="Components",
        columns=("refined", "coarse"),
        published=("VOC", "COCO"),
        rows=(
            Row(cells=("-", "-"), settings={"refine": 0}, published=(50.0, None)),
            Row(cells=("✓", "-"), settings={"refine": 1}, published=(60.0, 40.0)),
            Row(cells=("-", "✓"), settings={"levels": (9,)}, published=(70.0, 30.0)),
        ),
        note="A note.",
    ),
    "again": vary("The same", "refine", (1,)),
}


class Small:
    """Pictures of 48 pixels, which cost next to nothing to score."""

    name, split, seed, ignore = "small", "all", None, 255
    classes = ("sky", "grass", "car")
    groups = {}  # noqa: RUF012

    def __len__(self):
        return 2

    def __getitem__(self, index):
        rng = np.random.default_rng(index)
        truth = np.repeat(np.repeat(rng.integers(0, 3, (4, 4)), 12, axis=0), 12, axis=1)
        pixels = rng.integers(0, 256, (48, 48, 3), dtype=np.uint8)
        return Sample(id=str(index), image=Image(pixels=pixels), truth=truth)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return ds.load(write_sd15(tmp_path_factory.mktemp("models") / "tiny"), device="cpu")


@pytest.fixture
def tables(monkeypatch):
    monkeypatch.setitem(TABLES, "attend", ATTEND)


@pytest.mark.parametrize(
    ("method", "name"), [(method, name) for method, known in TABLES.items() for name in known]
)
def test_every_row_is_of_settings_the_method_has(method, name):
    table = TABLES[method][name]
    assert table.rows
    different = {str(with_settings(METHODS[method](), row.settings)) for row in table.rows}
    assert len(different) == len(table.rows)
    for row in table.rows:
        assert len(row.cells) == len(table.columns)
        assert len(row.published) == len(table.published)
    assert len(table.numbers) in (0, len(table.rows))


def test_published_figures_are_the_papers():
    components = TABLES["iseg"]["components"]
    assert [row.published for row in components.rows][-1] == (75.2, 45.5, 68.2, 30.9, 38.4)
    best = max(TABLES["iseg"]["n"].rows, key=lambda row: row.published)
    assert best.settings == {"iterations": 10}
    parts = {row.cells: row.published[0] for row in TABLES["diffsegmenter"]["components"].rows}
    assert parts["✓", "-", "✓", "✓", "✓"] == max(parts.values()) == 70.49


def figure(found, row, name="miou"):
    figures = found.figures(row)
    assert figures is not None
    return figures[name]


def test_rows_have_the_figures_of_separate_runs(model, tables, monkeypatch):
    calls = []

    def counted(image, model, needs, *rest, **options):
        calls.append(needs.timesteps)
        return ds.capture(image, model, needs, *rest, **options)

    monkeypatch.setattr(sweeping, "capture", counted)
    found = ablate(Small(), method="attend", model=model, size=64)
    assert len(calls) == 2
    assert len(found.sweep.rows) == 5  # "again" has no setting of its own
    for table, number, method in (
        ("timesteps", 2, ds.Attend(timestep=400)),
        ("components", 1, ds.Attend(refine=1)),
        ("again", 0, ds.Attend(refine=1)),
    ):
        alone = ds.evaluate(Small(), method=method, model=model, size=64, batch_size=1)
        assert figure(found, found.tables[table].rows[number]) == alone.miou


def test_what_is_told(model, tables, tmp_path):
    found = ablate(Small(), method="attend", model=model, size=64, report=tmp_path)
    text = (tmp_path / "ablation.md").read_text(encoding="utf-8")
    assert "| refined | coarse | mIoU | ACC | paper: VOC | paper: COCO |" in text
    assert "| - | ✓ | - | - | 70 | 30 |" in text
    assert "The paper's: coarse. A note. Not possible with this model: -, ✓." in text
    held = json.loads((tmp_path / "ablation.json").read_text(encoding="utf-8"))
    rows = held["tables"]["components"]["rows"]
    assert rows[0]["figures"]["miou"] == figure(found, ATTEND["components"].rows[0])
    assert rows[2]["figures"] is None
    assert held["left_out"][0]["settings"] == {"levels": [9]}
    with PIL.Image.open(tmp_path / "timesteps.png") as plot:
        assert len(plot.getcolors(1 << 20)) > 4
    assert not (tmp_path / "components.png").exists()
    here, there = found.best(ATTEND["timesteps"])
    assert there.settings == {"timestep": 100}
    assert figure(found, here) == max(figure(found, row) for row in ATTEND["timesteps"].rows)


def test_it_goes_on_where_it_was_stopped(model, tables, tmp_path, monkeypatch):
    def run():
        return ablate(Small(), method="attend", tables=["again"], model=model, size=64,
                      report=tmp_path)  # fmt: skip

    def figures(found):  # times are kept rounded
        return [{**row, "seconds": None} for row in found.sweep.rows]

    first = run()
    monkeypatch.setattr(sweeping, "capture", None)  # would fail if it were called
    assert figures(run()) == figures(first)


def test_what_there_is_no_table_of(model):
    with pytest.raises(InputError, match=r"tables are known of some papers(.|\n)*kmeans"):
        ablate(Small(), method="kmeans", model=model)
    with pytest.raises(InputError, match="the tables of iseg are components, n, lambda"):
        find_tables("iseg", ["w_l"])


def test_rows_of_fields_that_are_not_there(model, monkeypatch):
    wrong = {"a": vary("Wrong", "timesteps", (1,))}
    monkeypatch.setitem(TABLES, "attend", wrong)
    with pytest.raises(InputError, match="must be a field of Attend"):
        ablate(Small(), method="attend", model=model)
    with pytest.raises(InputError, match="rows of settings must be given"):
        ds.sweep(Small(), [], model=model)


def test_command_line(model, tables, tmp_path):
    assert module.TABLES is TABLES
    words = ["ablate", "scenes", "--method", "attend", "--model", model.source, "--limit", "1"]
    words += ["--split", "val", "--size", "64", "--device", "cpu", "--table", "timesteps"]
    done = CliRunner().invoke(app, [*words, "--report", str(tmp_path / "a"), "--json", "--quiet"])
    assert done.exit_code == 0, done.output
    assert list(json.loads(done.stdout)["tables"]) == ["timesteps"]
    assert (tmp_path / "a" / "ablation.md").is_file()
    done = CliRunner().invoke(app, [*words, "--table", "gamma"])
    assert done.exit_code == 2


def test_any_data_set_can_be_measured(model, tables, tmp_path):
    write_own(tmp_path / "own")
    words = ["ablate", "folder", "--root", str(tmp_path / "own"), "--method", "attend", "--limit"]
    words += ["1", "--model", model.source, "--size", "64", "--device", "cpu", "--quiet"]
    done = CliRunner().invoke(app, [*words, "--table", "timesteps", "--json"])
    assert done.exit_code == 0, done.output
    held = json.loads(done.stdout)
    assert (held["dataset"], held["n_images"]) == ("folder", 1)
    assert "size of the image" in held["geometry"]
