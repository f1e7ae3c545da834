"""Pixel-adaptive refinement against its definition with all neighbours laid out."""

import pytest
import torch
from torch.nn import functional as F

from diffuseg.errors import InputError
from diffuseg.methods import pamr as module
from diffuseg.methods.pamr import affinities, pamr


def shifted(planes, dilations, centre):
    """Copies of planes [c, H, W] for every neighbour, [c, m, H, W]."""
    height, width = planes.shape[1:]
    found = []
    for far in dilations:
        for dy in (-far, 0, far):
            for dx in (-far, 0, far):
                if dy or dx or centre:
                    rows = (torch.arange(height) + dy).clamp(0, height - 1)
                    columns = (torch.arange(width) + dx).clamp(0, width - 1)
                    found.append(planes[:, rows][:, :, columns])
    return torch.stack(found, 1)


def plainly(scores, image, iterations, dilations):
    image = image.double()
    size = tuple(image.shape[1:])
    found = F.interpolate(scores[None].double(), size=size, mode="bilinear", align_corners=True)[0]
    sigma = shifted(image, dilations, centre=True).std(1, keepdim=True)
    apart = (image[:, None] - shifted(image, dilations, centre=False)).abs()
    weights = torch.softmax((-apart / (1e-8 + 0.1 * sigma)).mean(0), dim=0)
    for _ in range(iterations):
        found = (shifted(found, dilations, centre=False) * weights).sum(1)
    return found


@pytest.mark.parametrize("dilations", [(1,), (1, 2, 4), (3, 30)])
@pytest.mark.parametrize("strip", [1, 1 << 20])
def test_refinement_is_its_definition(monkeypatch, dilations, strip):
    monkeypatch.setattr(module, "_STRIP_BYTES", strip)
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (3, 19, 23), generator=generator).float()
    image[:, 4:12, 5:14] = 77  # flat, where nothing deviates
    scores = torch.rand(4, 7, 6, generator=generator)
    for iterations in (0, 1, 5):
        got = pamr(scores, image, iterations=iterations, dilations=dilations)
        want = plainly(scores, image, iterations, dilations).float()
        torch.testing.assert_close(got, want, atol=2e-5, rtol=0)


def test_weights_sum_to_one_and_scores_stay_within_range():
    image = torch.rand(3, 20, 30) * 255
    weights = affinities(image, (1, 2))
    torch.testing.assert_close(weights.sum(0), torch.ones(20, 30))
    scores = torch.rand(2, 5, 5)
    refined = pamr(scores, image)
    assert refined.min() >= scores.min() - 1e-5
    assert refined.max() <= scores.max() + 1e-5


def test_scores_do_not_cross_a_border_of_colours():
    image = torch.zeros(3, 16, 16)
    image[:, :, 8:] = 255
    scores = torch.zeros(1, 16, 16)
    scores[:, :, :8] = 1
    refined = pamr(scores, image, dilations=(1, 2))
    assert refined[0, :, :8].min() > 0.9
    assert refined[0, :, 8:].max() < 0.1


def test_planes_do_not_touch_each_other_and_the_callers_stay():
    image, scores = torch.rand(3, 12, 9) * 255, torch.rand(3, 12, 9)
    before = scores.clone()
    together = pamr(scores, image, iterations=0), pamr(scores, image)
    assert torch.equal(scores, before)
    assert torch.equal(together[0], scores)
    alone = torch.cat([pamr(one[None], image) for one in scores])
    torch.testing.assert_close(together[1], alone)


def test_bad_input_is_refused():
    image, scores = torch.zeros(3, 4, 4), torch.zeros(1, 4, 4)
    for settings in ({"iterations": -1}, {"dilations": ()}, {"dilations": (0, 1)}):
        with pytest.raises(InputError, match="iterations must be"):
            pamr(scores, image, **settings)
    with pytest.raises(InputError, match="must be finite"):
        pamr(scores.fill_(torch.nan), image)
