"""Class maps that follow the picture's edges."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

import diffuseg as ds
from diffuseg import ops
from diffuseg.api import capture
from diffuseg.attention import AttentionRecord
from diffuseg.attention.captured import Contents
from diffuseg.errors import InputError
from diffuseg.methods import Attend, DiffSegmenter, ISeg
from diffuseg.methods.edges import follow_edges, guided_filter
from diffuseg.world.scenes import Scenes


def plainly_filtered(plane: Tensor, picture: Tensor, radius: int, regular: float) -> Tensor:
    """Equations 19 to 21, window by window and in double precision."""
    guide, plane = picture.double() / 255, plane.double()
    height, width = plane.shape
    slopes, offsets = torch.zeros(3, height, width).double(), torch.zeros(height, width).double()

    def window(row: int, column: int) -> tuple[slice, slice]:
        return (
            slice(max(0, row - radius), row + radius + 1),
            slice(max(0, column - radius), column + radius + 1),
        )

    for row in range(height):
        for column in range(width):
            at = window(row, column)
            colours, values = guide[:, *at].flatten(1), plane[at].flatten()
            mean = colours.mean(1)
            spread = colours @ colours.T / colours.shape[1] - mean[:, None] * mean[None]
            shared = (colours * values).mean(1) - mean * values.mean()
            slope = torch.linalg.solve(spread + regular * torch.eye(3).double(), shared)
            slopes[:, row, column] = slope
            offsets[row, column] = values.mean() - slope @ mean
    result = torch.zeros(height, width).double()
    for row in range(height):
        for column in range(width):
            at = window(row, column)
            slope = slopes[:, *at].flatten(1).mean(1)
            result[row, column] = slope @ guide[:, row, column] + offsets[at].mean()
    return result


@pytest.mark.parametrize("radius", [1, 3, 20])
def test_guided_filter_is_the_papers(radius: int) -> None:
    torch.manual_seed(0)
    picture = torch.randint(0, 256, (3, 9, 7), dtype=torch.uint8)
    maps = torch.rand(2, 9, 7)
    found = guided_filter(maps, picture, radius=radius, regular=1e-2)
    for one, plane in zip(found, maps, strict=True):
        wanted = plainly_filtered(plane, picture, radius, 1e-2)
        assert torch.allclose(one.double(), wanted, atol=1e-4)


def test_no_radius_leaves_maps_alone() -> None:
    maps = torch.rand(2, 4, 4)
    assert follow_edges(AttentionRecord(Contents()), maps, 0) is maps


def test_a_record_without_its_picture_is_refused() -> None:
    with pytest.raises(InputError, match="picture the model saw"):
        follow_edges(AttentionRecord(Contents()), torch.rand(1, 2, 2), 4)


@pytest.mark.parametrize("method", [Attend, DiffSegmenter, ISeg])
def test_negative_radii_are_refused(method: type) -> None:
    with pytest.raises(InputError, match="edges must be 0 or more"):
        method(edges=-1)


@pytest.mark.parametrize("method", [Attend, DiffSegmenter, ISeg])
def test_a_saved_record_keeps_the_picture(method: type, tmp_path) -> None:
    image = Scenes("val", hw=(128, 128))[0].image
    model = ds.load("mini")
    extra = {} if method is Attend else {"background": "none", "template": "a photo of {}"}
    chosen = method(edges=6, **extra)
    record = capture(image, model, chosen.needs(model), "ball, grass", size=128)
    record.save(tmp_path / "record.safetensors")
    held = AttentionRecord.load(tmp_path / "record.safetensors")
    assert held.picture is not None
    assert torch.equal(held.picture, torch.from_numpy(image).permute(2, 0, 1))
    found, plain = chosen(held, scores=True), replace(chosen, edges=0)(held, scores=True)
    assert np.array_equal(found.labels, chosen(record).labels)
    assert not np.array_equal(found.labels, plain.labels)
    if method is Attend:  # the others stretch their maps afterwards
        filtered = guided_filter(torch.from_numpy(plain.scores.copy()), held.picture, radius=6)
        assert np.allclose(found.scores, filtered.numpy(), atol=1e-5)


def test_enlarged_maps_have_the_size_the_model_saw() -> None:
    picture = torch.zeros(3, 16, 24, dtype=torch.uint8)
    record = AttentionRecord(Contents()).with_picture(picture)
    maps = torch.rand(2, 4, 6)
    # In a plain picture the filter is a mean over windows, twice.
    found = follow_edges(record, maps, 1)
    assert found.shape == (2, 16, 24)
    assert (found - ops.resize(maps[None], (16, 24))[0]).abs().max() < 0.2
