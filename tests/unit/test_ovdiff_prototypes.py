"""Prototypes of a class, the layers features come from, and what a prototype stands for."""

import pytest
import torch

from diffuseg import ops
from diffuseg.errors import InputError
from diffuseg.methods.ovdiff.explaining import reasons, support_cells, winners
from diffuseg.methods.ovdiff.features import join_queries
from diffuseg.methods.ovdiff.matching import assemble, label_scores, match
from diffuseg.methods.ovdiff.prototypes import (
    CLASS,
    INSTANCE,
    PART,
    cluster,
    pool_prototypes,
    shrink_masks,
)

D = 6


def drawn(pictures=5, side=8, seed=0):
    """Features, foreground and background at four times the grid's size."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(pictures, side, side, D, generator=generator)
    fg = torch.rand(pictures, 4 * side, 4 * side, generator=generator) < 0.1
    return features, fg, ~fg & (torch.rand(fg.shape, generator=generator) < 0.2)


# ---- pooling


def test_the_class_is_the_mean_of_its_instances_by_size():
    features, fg, bg = drawn()
    pooled = pool_prototypes(features, fg, bg, parts=4)
    for found, masks in ((pooled.positive, fg), (pooled.negative, bg)):
        sizes = shrink_masks(masks, (8, 8)).flatten(1).sum(1)
        instances = found.vectors[found.kinds == INSTANCE]
        want = (sizes[:, None] * instances).sum(0) / sizes.sum()
        torch.testing.assert_close(found.vectors[found.kinds == CLASS][0], want)


def test_parts_are_means_of_their_cells():
    features, fg, bg = drawn()
    pooled = pool_prototypes(features, fg, bg, parts=4)
    for part in range(4):
        here = support_cells(pooled, kind=PART, source=part)
        centroid = pooled.positive.vectors[pooled.positive.sources == part][-1]
        torch.testing.assert_close(features[here].mean(0), centroid, atol=1e-5, rtol=1e-4)


def test_pooling_again_is_the_same():
    one, other = (pool_prototypes(*drawn(), parts=4, seed=3) for _ in range(2))
    assert torch.equal(one.positive.vectors, other.positive.vectors)
    assert torch.equal(one.cells, other.cells)


def test_features_that_come_in_half_precision_are_pooled_in_single():
    features, fg, bg = drawn()
    half = pool_prototypes(features.half(), fg, bg, parts=1)
    full = pool_prototypes(features, fg, bg, parts=1)
    assert half.positive.vectors.dtype == torch.float32
    torch.testing.assert_close(half.positive.vectors, full.positive.vectors, atol=2e-3, rtol=0)


def test_a_picture_without_foreground_is_left_out():
    features, fg, bg = drawn()
    fg[1] = False
    bg[3] = False
    pooled = pool_prototypes(features, fg, bg, parts=4)
    positive, negative = pooled.positive, pooled.negative
    assert positive.sources[positive.kinds == INSTANCE].tolist() == [0, 2, 3, 4]
    assert negative.sources[negative.kinds == INSTANCE].tolist() == [0, 2, 4]
    assert (pooled.cells[1] == -1).all()
    rest = [0, 2, 3, 4]
    without = pool_prototypes(features[rest], fg[rest], bg[rest], parts=4)
    assert torch.equal(without.positive.vectors, positive.vectors)
    assert torch.equal(without.negative.vectors, negative.vectors)


def test_no_background_gives_no_negatives():
    features, fg, bg = drawn()
    pooled = pool_prototypes(features, fg, torch.zeros_like(bg))
    assert pooled.negative.vectors.shape == (0, D)
    assert len(pooled.negative.kinds) == len(pooled.negative.sources) == 0
    assert (pooled.cells >= -1).all()


def test_with_fewer_cells_than_parts_every_cell_is_one():
    features, fg, bg = drawn(pictures=1)
    fg[:] = False
    fg[0, :8, :12] = True  # 2 x 3 cells
    pooled = pool_prototypes(features, fg, bg, parts=6)
    parts = pooled.positive.vectors[pooled.positive.kinds == PART]
    assert torch.equal(parts, features[0, :2, :3].flatten(0, 1))
    assert pooled.cells[0, :2, :3].tolist() == [[0, 1, 2], [3, 4, 5]]


def test_flat_features_have_finite_prototypes():
    _, fg, bg = drawn()
    pooled = pool_prototypes(torch.ones(5, 8, 8, D), fg, bg, parts=4)
    assert torch.equal(pooled.positive.vectors, torch.ones_like(pooled.positive.vectors))


def test_a_start_of_ones_own_is_followed_to_the_end():
    samples = torch.randn(300, 3, generator=torch.Generator().manual_seed(1))
    centroids, index = cluster(samples, 5, init=samples[:5])
    for number in range(5):
        torch.testing.assert_close(samples[index == number].mean(0), centroids[number])
    assert torch.equal(torch.cdist(samples, centroids).argmin(1), index)


def test_masks_are_looked_at_where_cells_have_their_centres():
    mask = torch.zeros(1, 16, 16, dtype=torch.bool)
    mask[0, 3, 12] = True  # one of the middle four of its 8 x 8 cell
    mask[0, 8, 0] = True  # a corner
    assert shrink_masks(mask, (2, 2)).int().tolist() == [[[0, 1], [0, 0]]]
    assert torch.equal(shrink_masks(mask, (16, 16)), mask)


def test_bad_pictures_are_refused():
    features, fg, bg = drawn()
    with pytest.raises(InputError, match=r"of 'yak' must show it[\s\S]*draw more"):
        pool_prototypes(features, torch.zeros_like(fg), bg, name="yak")
    features[2] = torch.nan
    with pytest.raises(InputError, match=r"'yak' must be finite[\s\S]*float32"):
        pool_prototypes(features, fg, bg, name="yak")
    with pytest.raises(InputError, match="for each picture"):
        pool_prototypes(features[:4], fg, bg)
    with pytest.raises(InputError, match="parts must lie in"):
        pool_prototypes(features, fg, bg, parts=0)


# ---- layers


def test_layers_lie_side_by_side():
    queries = [torch.randn(2, 16, 3), torch.randn(2, 4, 5), torch.randn(2, 6, 2)]
    grids = [(4, 4), (2, 2), (3, 2)]
    joined = join_queries(queries, grids, 4)
    assert joined.shape == (2, 4, 4, 10)
    assert torch.equal(joined[..., :3], queries[0].unflatten(1, (4, 4)))
    for part, one, grid in ((slice(3, 8), queries[1], (2, 2)), (slice(8, 10), queries[2], (3, 2))):
        planes = ops.resize(one.mT.contiguous().unflatten(2, grid), (4, 4))
        torch.testing.assert_close(joined[..., part], planes.permute(0, 2, 3, 1))
    alone = join_queries([one[1:] for one in queries], grids, 4)
    torch.testing.assert_close(alone[0], joined[1])
    assert join_queries([one.half() for one in queries], grids, 4).dtype == torch.float32


def test_queries_that_do_not_fill_their_grid_are_refused():
    for queries, grids in (([], []), ([torch.zeros(1, 4, 2)], [(2, 3)]), ([], [(1, 1)])):
        with pytest.raises(InputError, match="fill its grid"):
            join_queries(queries, grids, 4)


# ---- reasons


def two_classes():
    entries = [pool_prototypes(*drawn(seed=one), parts=4) for one in range(2)]
    return entries, assemble(entries, [False, False])


def test_the_winner_has_the_score_of_the_label():
    _, vocabulary = two_classes()
    cells = torch.randn(7, 9, D)
    scores = match(cells[None], vocabulary, selected=[0, 1])[0]
    won = winners(cells, vocabulary, selected=[0, 1])
    assert torch.equal(won.labels, label_scores(scores))
    positive = scores.amax(0) > 0
    torch.testing.assert_close(won.similarity[positive], scores.amax(0)[positive])
    owners, negative = vocabulary.owners[won.rows], vocabulary.negative[won.rows]
    assert torch.equal(negative, won.labels == 0)
    assert torch.equal(owners[~negative], won.labels[~negative] - 1)


def test_a_prototype_wins_where_it_is():
    entries, vocabulary = two_classes()
    known = entries[1].positive
    cells = 5 * known.vectors[None]
    won = winners(cells, vocabulary, selected=[0, 1], labels=torch.full((1, len(known.kinds)), 2))
    assert torch.equal(vocabulary.kinds[won.rows[0]], known.kinds)
    assert torch.equal(vocabulary.sources[won.rows[0]], known.sources)


def test_reasons_are_weighed_over_windows():
    _, vocabulary = two_classes()
    some = [winners(torch.randn(4, 4, D), vocabulary, selected=[0, 1]) for _ in range(3)]
    region = [torch.rand(4, 4) < 0.7 for _ in some]
    found = reasons([(one, vocabulary) for one in some], region)
    assert sum(one.cells for one in found) == sum(int(one.sum()) for one in region)
    weights = [one.weight for one in found]
    assert weights == sorted(weights, reverse=True)
    total = sum(float(one.similarity[at].clamp_min(0).sum()) for one, at in zip(some, region))  # noqa: B905
    assert sum(weights) == pytest.approx(total, rel=1e-4)


def test_what_has_no_prototype_has_no_winner():
    features, fg, bg = drawn()
    only = assemble([pool_prototypes(features, fg, torch.zeros_like(bg), parts=2)], [False])
    labels = torch.tensor([[0, 1]])
    for background in (True, False):
        won = winners(
            torch.randn(1, 2, D), only, selected=[0], background=background, labels=labels
        )
        assert won.rows[0, 0] == -1
        assert won.rows[0, 1] >= 0
        assert won.similarity[0, 0] == -1
    with pytest.raises(InputError, match="classes compared"):
        winners(torch.randn(1, 2, D), only, selected=[0], labels=labels + 1)


def test_supports_of_a_class_are_those_of_its_parts():
    features, fg, bg = drawn()
    pooled = pool_prototypes(features, fg, bg, parts=3)
    for negative in (False, True):
        whole = support_cells(pooled, kind=CLASS, source=-1, negative=negative)
        for kind, count in ((PART, 3), (INSTANCE, 5)):
            parts = [
                support_cells(pooled, kind=kind, source=one, negative=negative)
                for one in range(count)
            ]
            assert torch.equal(torch.stack(parts).sum(0), whole.long())
    assert torch.equal(support_cells(pooled, kind=CLASS, source=-1), shrink_masks(fg, (8, 8)))
