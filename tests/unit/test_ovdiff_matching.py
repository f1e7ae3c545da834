"""OVDiff's matching against a plain loop, and what must always hold."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffuseg import ops
from diffuseg.errors import InputError
from diffuseg.methods.ovdiff import matching
from diffuseg.methods.ovdiff.matching import assemble, label_scores, match, similarities
from diffuseg.methods.ovdiff.prototypes import (
    CLASS,
    INSTANCE,
    PART,
    ClassPrototypes,
    Prototypes,
    pool_prototypes,
)
from diffuseg.methods.ovdiff.windows import Merge, window_boxes

D = 12


def rows(count, seed, width=D):
    generator = torch.Generator().manual_seed(seed)
    kinds = [CLASS, INSTANCE, INSTANCE, *[PART] * (count - 3)][:count]
    return Prototypes(
        vectors=torch.randn(count, width, generator=generator),
        kinds=torch.tensor(kinds, dtype=torch.int64),
        sources=torch.arange(count),
    )


def entry(seed, positives=6, negatives=5):
    return ClassPrototypes(
        positive=rows(positives, 2 * seed),
        negative=rows(negatives, 2 * seed + 1),
        cells=torch.full((1, 1, 1), -1, dtype=torch.int16),
    )


def things(count=5):
    return assemble([entry(one) for one in range(count)], [False] * count)


def cells(batch=1, seed=99, hw=(4, 5)):
    return torch.randn(batch, *hw, D, generator=torch.Generator().manual_seed(seed))


def plainly(features, vocabulary, selected, background=True):
    """A loop over prototypes, in double precision."""
    unit = torch.nn.functional.normalize(features.double(), dim=3, eps=1e-6)
    result = torch.full((len(features), 1 + len(vocabulary.spans), *features.shape[1:3]), -1.0)
    for row, (owner, negative) in enumerate(
        zip(vocabulary.owners.tolist(), vocabulary.negative.tolist(), strict=True)
    ):
        if owner not in selected or (negative and not background):
            continue
        found = (unit * vocabulary.vectors[row].double()).sum(3)
        place = 0 if negative else 1 + owner
        result[:, place] = torch.maximum(result[:, place].double(), found).float()
    return result


# ---- comparing


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    selected=st.sets(st.integers(0, 4), min_size=1),
    background=st.booleans(),
    room=st.sampled_from([1, 400, 1 << 20]),
    at_once=st.sampled_from([3, 4096]),
)
def test_matching_is_a_loop_over_prototypes(seed, selected, background, room, at_once):
    features, vocabulary = 10 * cells(2, seed), things()
    chosen = sorted(selected, reverse=bool(seed % 2))
    with pytest.MonkeyPatch.context() as patch:  # however little fits at once
        patch.setattr(matching, "_PRODUCT_BYTES", room)
        patch.setattr(matching, "_CELLS", at_once)
        got = similarities(features, vocabulary, selected=chosen, background=background)
        few = match(features, vocabulary, selected=chosen, background=background)
    want = plainly(features, vocabulary, chosen, background)
    torch.testing.assert_close(got, want, atol=1e-5, rtol=0)
    assert torch.equal(few, got[:, [0, *(1 + one for one in chosen)]])


def test_batches_do_not_show():
    features, vocabulary = cells(3), things()
    together = match(features, vocabulary, selected=[0, 3])
    alone = torch.cat([match(one[None], vocabulary, selected=[0, 3]) for one in features])
    torch.testing.assert_close(together, alone, atol=1e-6, rtol=0)


def test_order_of_classes_does_not_matter():
    order, features = [3, 0, 4, 1, 2], cells()
    found = similarities(features, things(), selected=range(5))
    other = assemble([entry(one) for one in order], [False] * 5)
    shuffled = similarities(features, other, selected=range(5))
    torch.testing.assert_close(shuffled[:, 0], found[:, 0])
    torch.testing.assert_close(shuffled[:, 1:], found[:, 1:][:, order])


def test_lengths_of_prototypes_do_not_matter():
    entries = [entry(one) for one in range(3)]
    found = similarities(cells(), assemble(entries, [False] * 3), selected=range(3))
    for one in entries:
        one.positive.vectors.mul_(torch.rand(6, 1) * 1000 + 0.01)
        one.negative.vectors.mul_(torch.rand(5, 1) * 1000 + 0.01)
    scaled = similarities(cells(), assemble(entries, [False] * 3), selected=range(3))
    torch.testing.assert_close(scaled, found, atol=1e-5, rtol=0)


def test_a_class_that_is_not_selected_changes_nothing():
    found = match(cells(), things(4), selected=[0, 2])
    assert torch.equal(match(cells(), things(5), selected=[0, 2]), found)


def test_a_negative_never_makes_the_background_less_alike():
    entries = [entry(one) for one in range(3)]
    found = match(cells(), assemble(entries, [False] * 3), selected=[0, 1])[:, 0]
    more = ClassPrototypes(
        positive=entries[0].positive, negative=rows(9, 1), cells=entries[0].cells
    )
    more.negative.vectors[:5] = entries[0].negative.vectors
    after = match(cells(), assemble([more, *entries[1:]], [False] * 3), selected=[0, 1])[:, 0]
    assert (after >= found - 1e-6).all()
    assert (after > found + 1e-3).any()


def test_no_negatives_and_no_background_are_absent():
    vocabulary = assemble([entry(0, negatives=0), entry(1)], [False, False])
    assert (match(cells(), vocabulary, selected=[0])[:, 0] == -1).all()
    assert (match(cells(), vocabulary, selected=[0, 1])[:, 0] > -1).all()
    assert (match(cells(), vocabulary, selected=[1], background=False)[:, 0] == -1).all()


def test_features_of_zeros_are_like_nothing():
    assert not match(torch.zeros(1, 2, 2, D), things(), selected=[0, 1])[:, 1:].any()


# ---- stuff


def test_without_stuff_all_negatives_stay():
    for threshold in (-1.0, 0.85, 1.0):
        vocabulary = assemble([entry(0), entry(1)], [False, False], stuff_threshold=threshold)
        assert int(vocabulary.negative.sum()) == 10


def test_negatives_like_stuff_go_and_so_do_those_of_stuff():
    thing, sky = entry(0), entry(1)
    thing.negative.vectors[2] = 7 * sky.positive.vectors[4]
    vocabulary = assemble([thing, sky], [False, True])
    assert vocabulary.sources[vocabulary.negative].tolist() == [0, 1, 3, 4]
    assert (vocabulary.owners[vocabulary.negative] == 0).all()
    everything = assemble([thing, sky], [False, True], stuff_threshold=1.0)
    assert int(everything.negative.sum()) == 10


def test_the_only_negative_of_a_class_stays():
    thing, sky = entry(0, negatives=1), entry(1)
    thing.negative.vectors[0] = sky.positive.vectors[4]
    vocabulary = assemble([thing, sky], [False, True])
    assert int(vocabulary.negative.sum()) == 1


def test_a_vocabulary_of_stuff_has_labels():
    vocabulary = assemble([entry(0), entry(1)], [True, True])
    assert not vocabulary.negative.any()
    scores = similarities(cells(), vocabulary, selected=[0, 1])[0]
    labels = label_scores(scores)
    below = (scores[1:] <= 0).all(0)
    assert torch.equal(labels == 0, below)


def test_stuff_is_compared_in_parts(monkeypatch):
    thing, sky = entry(0), entry(1)
    thing.negative.vectors[2] = 7 * sky.positive.vectors[4]
    monkeypatch.setattr(matching, "_PRODUCT_BYTES", 1)
    vocabulary = assemble([thing, sky], [False, True])
    assert vocabulary.sources[vocabulary.negative].tolist() == [0, 1, 3, 4]


@pytest.mark.parametrize("kinds", [["class"], ["instance", "part"], ["part", "class"]])
def test_kinds_are_chosen(kinds):
    numbers = {"class": CLASS, "instance": INSTANCE, "part": PART}
    vocabulary = assemble([entry(0), entry(1)], [False, True], kinds=kinds)
    assert set(vocabulary.kinds.tolist()) == {numbers[one] for one in kinds}


def test_rows_that_are_not_finite_are_left_out():
    one = entry(0)
    one.positive.vectors[1] = torch.nan
    one.negative.vectors[0, 3] = torch.inf
    vocabulary = assemble([one], [False])
    assert vocabulary.sources.tolist() == [0, 2, 3, 4, 5, 1, 2, 3, 4]
    assert vocabulary.vectors.isfinite().all()


# ---- labels


def test_the_first_of_equal_rows_wins():
    scores = torch.tensor(
        [[[0.5, 0.1, 0.0, -0.5]], [[0.5, 0.3, 0.0, -0.1]], [[0.5, 0.3, 0.0, 0.0]]]
    )
    assert label_scores(scores).tolist() == [[0, 1, 0, 0]]
    assert label_scores(scores, classes=[4, 9]).tolist() == [[0, 5, 0, 0]]
    assert label_scores(scores, background="none").tolist() == [[1, 1, 1, 2]]
    assert label_scores(scores, background="threshold", threshold=0.4).tolist() == [[1, 0, 0, 0]]


def test_labels_are_chosen_after_enlarging():
    scores = torch.rand(6, 5, 7) - 0.4
    enlarged = ops.resize(scores[None], (21, 30))[0]
    want = torch.where(enlarged > 0, enlarged, 0.0).argmax(0)
    assert torch.equal(label_scores(scores, size=(21, 30)), want)


# ---- windows


@settings(max_examples=60, deadline=None)
@given(
    hw=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    crop=st.integers(1, 60),
    share=st.integers(1, 60),
)
def test_windows_cover_every_pixel(hw, crop, share):
    stride = min(share, crop)
    merge = Merge(1, hw)
    for y0, x0, y1, x1 in window_boxes(hw, crop, stride):
        assert (y1 - y0, x1 - x0) == (min(crop, hw[0]), min(crop, hw[1]))
        merge.add(torch.full((1, 1, 1), 0.5), (y0, x0, y1, x1))
    assert (merge.counts >= 1).all()
    torch.testing.assert_close(merge.mean(), torch.full((1, *hw), 0.5))


def test_the_papers_windows():
    assert len(window_boxes((448, 597), 448, 224)) == 2
    assert len(window_boxes((448, 597), 336, 224)) == 6
    assert window_boxes((30, 40), 100, 7) == [(0, 0, 30, 40)]


def test_merging_is_the_mean_of_windows():
    merge = Merge(2, (6, 9))
    one, other = torch.rand(2, 3, 3), torch.rand(2, 2, 5)
    merge.add(one, (0, 0, 6, 6))
    merge.add(other, (0, 3, 6, 9))
    left, right = (ops.resize(plane[None], (6, 6))[0] for plane in (one, other))
    torch.testing.assert_close(merge.mean()[:, :, :3], left[:, :, :3])
    torch.testing.assert_close(merge.mean()[:, :, 6:], right[:, :, 3:])
    torch.testing.assert_close(merge.mean()[:, :, 3:6], (left[:, :, 3:] + right[:, :, :3]) / 2)


# ---- the whole of it


def test_flat_colours_are_segmented_exactly():
    red, blue, ground = torch.eye(D)[:3]
    entries = []
    for number, colour in enumerate((red, blue)):
        drawn = ground.expand(3, 8, 8, D).clone()
        inside = torch.zeros(3, 8, 8, dtype=torch.bool)
        inside[:, 2:5, 1 + number : 6] = True
        drawn[inside] = colour * torch.rand(int(inside.sum()), 1).add(0.5)
        entries.append(pool_prototypes(drawn, inside, ~inside, parts=4))
    vocabulary = assemble(entries, [False, False])
    truth = torch.tensor([[0, 0, 1, 1], [0, 2, 2, 1], [0, 0, 2, 0]])
    scene = torch.stack([ground, red, blue])[truth]
    scores = match(scene[None], vocabulary, selected=[0, 1])[0]
    merge = Merge(3, (3, 4))
    for box in window_boxes((3, 4), 2, 1):
        y0, x0, y1, x1 = box
        merge.add(scores[:, y0:y1, x0:x1], box)
    assert torch.equal(label_scores(merge.mean()), truth)


# ---- bad input


def test_bad_input_is_refused():
    vocabulary = things()
    with pytest.raises(InputError, match="features must be finite"):
        match(cells().fill_(torch.nan), vocabulary, selected=[0])
    for selected in ([], [5], [-1]):
        with pytest.raises(InputError, match="numbers from 0 to 4"):
            match(cells(), vocabulary, selected=selected)
    with pytest.raises(InputError, match="of one extractor"):
        match(torch.zeros(1, 2, 2, D + 1), vocabulary, selected=[0])
    with pytest.raises(InputError, match="one class or more"):
        assemble([], [])
    with pytest.raises(InputError, match="one class or more"):
        assemble([entry(0)], [True, False])
    with pytest.raises(InputError, match="positive prototypes"):
        assemble([entry(0), entry(1, positives=1)], [False, False], kinds=["part"])
    with pytest.raises(InputError, match="row for the background"):
        label_scores(torch.zeros(3, 2, 2), classes=[0])
    with pytest.raises(InputError, match="a pixel or more"):
        window_boxes((4, 4), 2, 0)
