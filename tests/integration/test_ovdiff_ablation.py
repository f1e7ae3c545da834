"""OVDiff's tables measured: a bank for every setting, pictures drawn once; things alone as VOC."""

from pathlib import Path

import numpy as np
import pytest

from diffuseg.errors import InputError
from diffuseg.eval import building
from diffuseg.eval.ablation import ablate, find_tables
from diffuseg.eval.datasets import SceneSet, open_dataset
from diffuseg.eval.scoring import Rules, named_classes
from diffuseg.methods import OVDiff, with_settings
from diffuseg.ovdiff.building import build_bank
from diffuseg.world import STUFF, THINGS

TINY = OVDiff(
    number=1, steps=1, size=64, parts=2, proposals="none", fallback="fixed", extractors=("dino",),
    side=64, crops=(64,), stride=64, prefilter="none", template="a {}",
)  # fmt: skip


class Three(SceneSet):
    """Scenes of few classes, that little has to be drawn."""

    def __init__(self) -> None:
        super().__init__(split="val", n=1, hw=(64, 64))
        self.classes = ("ball", "grass", "sky")
        self.groups = {}
        self._labels = np.full(len(THINGS) + len(STUFF), self.ignore, dtype=np.uint8)
        self._labels[[0, 12, 17]] = [0, 1, 2]


def test_every_setting_has_its_bank_and_nothing_is_drawn_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[int] = []

    def spy(*args: object, **options: object) -> object:
        drawn.append(len(list((tmp_path / "drawings").glob("*"))))
        return build_bank(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(building, "build_bank", spy)
    found = ablate(Three(), method=TINY, tables=["kinds", "parts"], model="mini", report=tmp_path)
    rows = len(find_tables("ovdiff", ["kinds", "parts"])["kinds"].rows) + 4
    assert len(found.sweep.rows) == len(drawn) == rows
    assert set(drawn[1:]) == {3}  # all there after the first
    assert len(list((tmp_path / "banks").iterdir())) == 5  # K; kinds are chosen at matching
    for table in found.tables.values():
        assert all(found.figures(row) is not None for row in table.rows)
    assert found.sweep.fixed["template"] == "a {}"
    text = (tmp_path / "ablation.md").read_text()
    assert "paper: Context" in text
    again = ablate(Three(), method=TINY, tables=["kinds", "parts"], model="mini", report=tmp_path)
    assert again.to_json() == found.to_json()


def test_what_ovdiff_cannot_be_told_is_refused() -> None:
    with pytest.raises(InputError, match="given=classes"):
        ablate("scenes", method="ovdiff", model="mini", given="classes")


def test_rows_are_settings_of_the_method() -> None:
    for table in find_tables("ovdiff").values():
        for row in table.rows:
            assert with_settings(OVDiff(), row.settings)
    assert [len(row.settings["layers"]) for row in find_tables("ovdiff")["layers"].rows] == [
        5, 4, 4, 4, 4, 4,
    ]  # fmt: skip


def test_stuff_is_background_where_things_alone_are_classes() -> None:
    whole, things = (open_dataset(name, limit=3) for name in ("scenes", "scenes-things"))
    assert things.classes == ("background", *THINGS)
    assert things.groups == {"things": THINGS}
    for index in range(3):
        one, other = whole[index].truth, things[index].truth
        stuff = one >= len(THINGS)
        assert np.array_equal(stuff, other == 0)
        assert np.array_equal(one[~stuff], other[~stuff] - 1)


def test_nobody_is_told_to_look_for_background() -> None:
    data = open_dataset("scenes-things", limit=1)
    sample = data[0]
    told = {
        given: named_classes(sample, data, Rules(given=given, named=True, count=None))
        for given in ("vocabulary", "classes", "nothing")
    }
    assert told["vocabulary"] == list(THINGS)
    assert told["nothing"] is None
    present = sample.present(len(data.classes))
    assert told["classes"] == [data.classes[i] for i in present if i]
