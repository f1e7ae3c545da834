"""Drawn pictures kept for other banks: found again, cut short, damaged, of other models."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from diffuseg.backbones import Diffusion, load
from diffuseg.methods import OVDiff
from diffuseg.ovdiff.drawings import Drawings, draw_or_find
from diffuseg.ovdiff.recipe import drawn_with
from diffuseg.ovdiff.supports import draw_supports
from diffuseg.prompts import parse_classes

SETTINGS = OVDiff(number=3, steps=2, size=64, template="a {}", guidance=2.0).ready()
CLASSES = parse_classes("car, grass")


@pytest.fixture(scope="module")
def model():
    return load("mini", device="cpu")


@pytest.fixture(scope="module")
def drawings(model: Diffusion, tmp_path_factory: pytest.TempPathFactory) -> Drawings:
    kept = Drawings(path=tmp_path_factory.mktemp("drawings"))
    assert [one.name for one in draw_or_find(model, CLASSES, SETTINGS, kept)] == ["car", "grass"]
    return kept


def test_what_is_kept_is_what_was_drawn(model: Diffusion, drawings: Drawings) -> None:
    way = drawn_with(model, SETTINGS)
    for drawn, one in zip(draw_supports(model, CLASSES, SETTINGS), CLASSES, strict=True):
        kept = drawings.find(one, way)
        assert kept is not None
        assert kept.prompt == drawn.prompt
        assert np.array_equal(kept.images, drawn.images)
        assert torch.equal(kept.attribution, drawn.attribution)


def test_the_first_of_more_pictures_will_do(model: Diffusion, drawings: Drawings) -> None:
    told: list[tuple[int, int]] = []
    fewer = replace(SETTINGS, number=2)
    progress = lambda *done: told.append(done)  # noqa: E731
    found = list(draw_or_find(model, CLASSES, fewer, drawings, progress=progress))
    assert [len(one.images) for one in found] == [2, 2]
    assert told == []  # nothing was drawn
    assert drawings.find(CLASSES[0], drawn_with(model, replace(SETTINGS, number=4))) is None


@pytest.mark.parametrize(
    "change", [{"steps": 3}, {"size": 128}, {"seed": 1}, {"profile": "release"}]
)
def test_other_ways_of_drawing_are_others(
    model: Diffusion, drawings: Drawings, change: dict[str, object]
) -> None:
    assert drawings.find(CLASSES[0], drawn_with(model, replace(SETTINGS, **change))) is None  # type: ignore[arg-type]


def test_masks_and_prototypes_do_not_count(model: Diffusion, drawings: Drawings) -> None:
    other = replace(SETTINGS, proposals="none", parts=2, extractors=("sd",))
    assert drawings.find(CLASSES[0], drawn_with(model, other)) is not None


def test_damaged_pictures_are_drawn_again(
    model: Diffusion, drawings: Drawings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    few = replace(SETTINGS, number=1)
    mine = Drawings(path=tmp_path)
    list(draw_or_find(model, CLASSES[:1], few, mine))
    [file] = tmp_path.iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    [again] = draw_or_find(model, CLASSES[:1], few, mine)
    assert "drawn again" in caplog.text
    assert file.read_bytes() == whole
    assert len(again.images) == 1
