"""VidSeg's clusters, names, votes and chain: against plain forms, and what must always hold."""

from fractions import Fraction
from math import floor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import KNeighborsClassifier

from diffuseg.errors import InputError
from diffuseg.methods.settings import with_settings
from diffuseg.methods.vidseg import nearest
from diffuseg.methods.vidseg.batching import Batch, batches, label_batch, start_context
from diffuseg.methods.vidseg.context import (
    UNNAMED,
    ContextModel,
    cluster_cells,
    name_clusters,
    shrink_labels,
)
from diffuseg.methods.vidseg.features import aggregate_queries
from diffuseg.methods.vidseg.settings import ABLATIONS, DATASETS, EMERDIFF, VidSeg, ablate

HALF = Fraction(1, 2)
HW = (6, 8)
C = 12
LABELS = (0, 3, 17, 255)


def scene(frames, seed=0, noise=0.05):
    """Frames of four regions with a direction each, and what each cell is."""
    generator = torch.Generator().manual_seed(seed)
    rows, columns = torch.meshgrid(torch.arange(HW[0]), torch.arange(HW[1]), indexing="ij")
    places = 2 * (rows >= HW[0] // 2) + (columns >= HW[1] // 2)
    directions = torch.linalg.qr(torch.randn(C, C, generator=torch.Generator().manual_seed(9)))[0]
    clean = directions[places.flatten()].expand(frames, -1, -1)
    features = clean + noise * torch.randn(frames, HW[0] * HW[1], C, generator=generator)
    return features, torch.tensor(LABELS)[places]


def chosen(**changes):
    return VidSeg(clusters=4, **changes).ready("sd")


# ---- features


def test_features_are_the_mean_of_blocks_over_its_largest_channel():
    queries = [torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(one)) for one in (1, 2)]
    mean = (queries[0] + queries[1]) / 2
    expected = mean / mean.abs().max(2, keepdim=True).values
    torch.testing.assert_close(aggregate_queries(queries), expected)
    assert aggregate_queries(queries).abs().amax(2).eq(1).all()


def test_features_are_made_in_float32_and_of_zeros_stay_zeros():
    high = torch.full((1, 2, 3), 60000.0).half()
    high[0, 1] = 0
    found = aggregate_queries([high, high, high])
    assert found.dtype == torch.float32
    assert found.tolist() == [[[1.0] * 3, [0.0] * 3]]


def test_one_block_is_enough_and_bad_ones_are_refused():
    assert aggregate_queries([torch.ones(1, 2, 3)]).eq(1).all()
    for queries in ([], [torch.ones(1, 2, 3), torch.ones(1, 4, 3)]):
        with pytest.raises(InputError, match="same grid"):
            aggregate_queries(queries)
    with pytest.raises(InputError, match="finite"):
        aggregate_queries([torch.full((1, 2, 3), torch.nan)])


# ---- names


@settings(max_examples=40, deadline=None)
@given(
    size=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    hw=st.tuples(st.integers(1, 20), st.integers(1, 20)),
)
def test_masks_shrink_to_the_pixel_at_a_cells_centre(size, hw):
    mask = torch.arange(size[0] * size[1]).reshape(size)
    expected = [
        [
            mask[floor((i + HALF) * size[0] / hw[0]), floor((j + HALF) * size[1] / hw[1])].item()
            for j in range(hw[1])
        ]
        for i in range(hw[0])
    ]
    assert shrink_labels(mask, hw).tolist() == expected


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), drop=st.sampled_from([(), (255,), (0, 255)]))
def test_names_are_a_loop_over_clusters(seed, drop):
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.randint(6, (30,), generator=generator)
    labels = torch.tensor(LABELS)[torch.randint(4, (30,), generator=generator)]
    names = name_clusters(numbers, labels.to(torch.uint8), 7, drop=drop)
    for cluster in range(7):
        votes = [one for one in labels[numbers == cluster].tolist() if one not in drop]
        best = min(votes, key=lambda one: (-votes.count(one), one), default=UNNAMED)
        assert names[cluster] == best


def test_clusters_are_the_same_for_the_same_seed_and_few_where_cells_are_few():
    features = scene(2)[0]
    first, second = (cluster_cells(features, 4, seed=3) for _ in range(2))
    assert torch.equal(first.numbers, second.numbers)
    assert first.numbers.shape == (2, 48)
    assert len(cluster_cells(features[:1, :3], 20).centres) == 3
    grey = torch.ones(2, 5, 3)  # frames of one colour
    assert cluster_cells(grey, 3).numbers.unique().numel() == 1


# ---- votes


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    m=st.sampled_from([1, 3, 37, 700]),
    neighbours=st.integers(1, 7),
    room=st.sampled_from([1, 5000, 1 << 24]),
)
def test_votes_are_scikit_learns(seed, m, neighbours, room):
    generator = torch.Generator().manual_seed(seed)
    references = torch.randn(m, 9, generator=generator) + 30  # far from zero: digits get lost
    cells = torch.randn(23, 9, generator=generator) + 30
    labels = torch.tensor(LABELS)[torch.randint(4, (m,), generator=generator)]
    with pytest.MonkeyPatch.context() as patch:  # however little fits at once
        patch.setattr(nearest, "_PRODUCT_BYTES", room)
        got = nearest.vote_nearest(cells, references, labels, neighbours=neighbours)
    plain = KNeighborsClassifier(min(neighbours, m), algorithm="brute")
    plain.fit(references.double().numpy(), labels.numpy())
    assert got.tolist() == plain.predict(cells.double().numpy()).tolist()


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), m=st.integers(1, 900), count=st.integers(1, 9))
def test_the_smallest_are_found_group_by_group(seed, m, count):
    values = torch.rand(5, m, generator=torch.Generator().manual_seed(seed))
    count = min(count, m)
    least, places = nearest._smallest(values, count)
    assert torch.equal(least, values.sort(1).values[:, :count])
    assert torch.equal(values.gather(1, places), least)


def test_equal_votes_go_to_the_smallest_label_and_equal_distances_to_the_first():
    at = torch.tensor([[1.0], [-1.0], [1.0], [-1.0]])
    zero = torch.zeros(1, 1)
    assert nearest.vote_nearest(zero, at, torch.tensor([9, 9, 4, 4])).item() == 4
    assert nearest.vote_nearest(zero, at, torch.tensor([9, 8, 7, 6])).item() == 6
    one = nearest.vote_nearest(zero, at, torch.tensor([9, 8, 7, 6]), neighbours=1)
    assert one.item() == 9


def test_votes_ask_for_references_that_fit():
    cells = torch.zeros(2, 3)
    for references, labels in (
        (torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64)),
        (torch.zeros(2, 3), torch.zeros(1, dtype=torch.int64)),
        (torch.zeros(2, 4), torch.zeros(2, dtype=torch.int64)),
        (torch.full((2, 3), torch.nan), torch.zeros(2, dtype=torch.int64)),
    ):
        with pytest.raises(InputError, match="references with a label"):
            nearest.vote_nearest(cells, references, labels)


# ---- the model


@pytest.mark.parametrize("classifier", ["knn", "mlp", "forest", "adaboost"])
def test_every_classifier_labels_an_easy_scene(classifier):
    features, mask = scene(3)
    model = start_context(chosen(classifier=classifier), features, HW, mask=mask)
    found = model.predict(features)
    assert found.shape == (3, 48)
    assert (found == mask.flatten()).float().mean() > 0.95
    assert torch.equal(found, model.predict(features))  # seeded
    one = model.fit(features[0], torch.full((48,), 255))
    assert one.predict(features).eq(255).all()


@pytest.mark.parametrize("classifier", ["kmeans", "centroids"])
def test_centres_carry_names_and_do_not_wander(classifier):
    features, mask = scene(4)
    given_ = chosen(classifier=classifier, refine=False)
    model = start_context(given_, features[:2], HW, mask=mask)
    found = label_batch(given_, model, features[2:], HW)
    assert torch.equal(found.labels, mask.expand(2, -1, -1))
    assert found.model is model


def test_emerdiff_names_every_frames_clusters_by_the_anchors():
    features, mask = scene(3, noise=0.1)
    given_ = VidSeg(clusters=4).ready("sd", EMERDIFF)
    model = start_context(given_, features[:1], HW, mask=mask)
    for one in range(3):
        found = label_batch(given_, model, features[one : one + 1], HW)
        assert torch.equal(found.labels[0], mask)
        model = found.model


def test_an_unfitted_model_is_refused():
    with pytest.raises(InputError, match="must be fitted"):
        ContextModel().predict(torch.zeros(1, 2, 3))
    with pytest.raises(InputError, match="a label for every cell"):
        ContextModel().fit(torch.zeros(2, 3), torch.zeros(3, dtype=torch.int64))


# ---- the bank


def test_without_memory_only_the_last_batch_counts():
    first = ContextModel().fit(torch.zeros(5, 2), torch.full((5,), 3))
    second = first.update(torch.ones(1, 4, 2), torch.full((1, 4), 8))
    assert second.known == (8,)
    assert first.known == (3,)
    assert second.bank is None


def test_the_bank_remembers_what_left_the_picture():
    away, here = torch.zeros(5, 2), torch.ones(1, 40, 2)
    model = ContextModel(memory=6).fit(away, torch.full((5,), 3))
    for _ in range(10):
        model = model.update(here, torch.full((1, 40), 8))
        assert model.bank is not None
        assert len(model.bank) <= 6
    assert model.known == (3, 8)
    assert model.predict(torch.zeros(1, 1, 2)).item() == 3


def test_the_bank_keeps_as_many_of_every_label_as_can_be():
    model = ContextModel(memory=30).fit(torch.zeros(1, 2), torch.zeros(1, dtype=torch.int64))
    labels = torch.tensor([0] * 500 + [1] * 4 + [2] * 90)
    features = torch.randn(594, 2, generator=torch.Generator().manual_seed(0))
    for _ in range(4):
        model = model.update(features, labels)
    counts = torch.bincount(model.bank_labels).tolist()
    assert sum(counts) == 30
    assert max(counts) - min(counts) <= 1
    again = ContextModel(memory=30).fit(torch.zeros(1, 2), torch.zeros(1, dtype=torch.int64))
    for _ in range(4):
        again = again.update(features, labels)
    assert torch.equal(again.bank, model.bank)


def test_the_bank_is_of_all_batches_alike():
    model = ContextModel(memory=100, seed=5).fit(torch.zeros(100, 1), torch.zeros(100).long())
    for batch in range(1, 10):
        model = model.update(torch.full((100, 1), float(batch)), torch.zeros(100).long())
    assert model.bank is not None
    counts = torch.bincount(model.bank[:, 0].long(), minlength=9)
    assert counts.min() >= 3  # about 11 of each


def test_what_is_added_stays_with_memory_and_counts_once_without():
    base, ones = torch.zeros(5, 2), torch.ones(1, 40, 2)
    for memory, still in ((0, False), (8, True)):
        model = ContextModel(memory=memory, neighbours=1).fit(base, torch.full((5,), 3))
        model = model.add(torch.full((2, 2), 5.0), torch.tensor([7, UNNAMED]))
        assert model.known == (3, 7)
        for _ in range(5):
            model = model.update(ones, torch.full((1, 40), 3))
        assert (7 in model.known) == still
    assert ContextModel().add(base, torch.full((5,), 3)).known == (3,)


def test_a_batch_without_labels_leaves_the_references():
    model = ContextModel().fit(torch.zeros(5, 2), torch.full((5,), 3))
    after = model.update(torch.ones(1, 4, 2), torch.full((1, 4), UNNAMED))
    assert after.known == (3,)


# ---- naming


def test_void_is_a_label_unless_dropped():
    features, mask = scene(2)
    assert start_context(chosen(), features, HW, mask=mask).known == LABELS
    dropped = chosen(drop_void=True)
    assert start_context(dropped, features, HW, mask=mask).known == (3, 17)
    kept = chosen(drop_void=True, void=(255,), naming="mask")
    assert start_context(kept, features, HW, mask=mask).known == (0, 3, 17)
    with pytest.raises(InputError, match="must have a label"):
        start_context(dropped, features, HW, mask=torch.zeros_like(mask))


def test_a_mask_can_name_cell_by_cell():
    features, mask = scene(2)
    fine = mask.clone()
    fine[0, 0] = 99  # one cell: outvoted in its cluster
    assert 99 not in start_context(chosen(), features, HW, mask=fine).known
    model = start_context(chosen(naming="mask"), features, HW, mask=fine, anchor=1)
    assert 99 in model.known
    assert torch.equal(model.references, features[1])


def test_without_a_mask_clusters_are_labels_also_those_of_later_frames():
    features, _ = scene(2)
    features[0, 24:] = features[0, :24]  # two of the regions come with the second frame
    model = start_context(chosen(naming="clusters"), features, HW)
    assert model.known == (0, 1, 2, 3)
    old = start_context(chosen(naming="clusters", compat="reference"), features, HW)
    assert len(old.known) == 2


def test_words_name_clusters():
    features, mask = scene(2)
    clusters = cluster_cells(features, 4)
    names = name_clusters(clusters.numbers[0], mask.flatten(), 4)
    given_ = chosen(naming="text")
    model = start_context(given_, features, HW, names=names, clusters=clusters)
    assert torch.equal(model.predict(features)[1], mask.flatten())
    with pytest.raises(InputError, match="every cluster"):
        start_context(given_, features, HW, names=names[:2], clusters=clusters)
    with pytest.raises(InputError, match="needs names"):
        start_context(given_, features, HW)
    with pytest.raises(InputError, match="needs a mask"):
        start_context(chosen(), features, HW)
    with pytest.raises(InputError, match="grid of 4 x 4"):
        start_context(chosen(), features, (4, 4), mask=mask)


# ---- the chain


@pytest.mark.parametrize("frames", [4, 6])
def test_a_clip_that_stands_still_has_the_same_labels_everywhere(frames):
    still = scene(1, noise=0.3)[0].expand(frames, -1, -1)
    tracked = torch.randn(1, 48, 7, generator=torch.Generator().manual_seed(1))
    given_ = chosen()
    model = start_context(given_, still, HW, mask=scene(1)[1])
    found = []
    for _ in range(3):
        one = label_batch(given_, model, still, HW, tracked=tracked.expand(frames, -1, -1))
        found.append(one.labels)
        model = one.model
    assert (torch.cat(found) == found[0][0]).all()


def test_refining_needs_features_to_follow():
    features, mask = scene(2)
    model = start_context(chosen(), features, HW, mask=mask)
    with pytest.raises(InputError, match="features to follow"):
        label_batch(chosen(), model, features, HW)


@settings(max_examples=100, deadline=None)
@given(n=st.integers(1, 60), size=st.integers(1, 20), anchor=st.integers(0, 59))
def test_every_frame_is_kept_once(n, size, anchor):
    anchor %= n
    plan = batches(n, size, anchor=anchor)
    assert len(plan) == -(-n // size)
    assert sorted(one for batch in plan for one in batch.kept) == list(range(n))
    for place, batch in enumerate(plan):
        assert len(batch.frames) == min(size, n)
        assert 0 <= batch.frames.start <= batch.frames.stop - 1 < n
        assert set(batch.kept) <= set(batch.frames)
        if place == 0:
            assert batch.after is None
            assert anchor in batch.kept
        else:  # learns from a neighbour that has been
            assert batch.after is not None
            assert batch.after < place
            before = plan[batch.after].frames
            assert before.stop >= batch.frames.start
            assert before.start <= batch.frames.stop


@pytest.mark.parametrize("n", [1, 5, 14, 28, 30])
def test_batches_of_fourteen(n):
    plan = batches(n, 14)
    assert [one.after for one in plan] == [None, 0, 1][: len(plan)]
    assert [one.frames.start for one in plan] == {30: [0, 14, 16], 28: [0, 14]}.get(n, [0])
    if n == 30:  # the last one overwrites what it shares
        assert plan[1].kept == range(14, 16)
        assert plan[2].kept == range(16, 30)


def test_from_an_anchor_the_chain_goes_both_ways():
    plan = batches(30, 14, anchor=15)
    assert plan[0] == Batch(frames=range(14, 28), kept=range(14, 16), after=None)
    assert [(one.frames.start, one.after) for one in plan[1:]] == [(16, 0), (0, 0)]
    with pytest.raises(InputError, match="anchor is one of them"):
        batches(3, 2, anchor=3)


# ---- settings


def test_settings_follow_the_kind_of_model_and_the_steps():
    sd, svd = VidSeg().ready("sd"), VidSeg().ready("svd")
    assert (sd.modulate_step, sd.modulate_block, sd.modulated) == (22, 7, ("cross",))
    assert (svd.modulate_step, svd.modulate_block, svd.modulated) == (17, 8, ("self", "temporal"))
    assert (sd.blended, svd.blended) == (range(22, 24), range(17, 25))
    assert (sd.guidance_first, svd.guidance_first, svd.guidance) == (5, 1, 2.5)
    assert VidSeg(guidance=3.0).ready("sd").guidance_first == 3
    assert VidSeg(compat="reference").ready("sd").signed
    assert not VidSeg(compat="reference", signed=False).ready("sd").signed
    few = VidSeg(steps=5).ready("sd")
    assert (few.modulate_step, few.feature_step) == (4, 4)
    assert VidSeg(blend=False).ready("sd").blended == range(22, 22)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"steps": 0}, "steps must be 1"),
        ({"batch": 0}, "batch must be 1"),
        ({"memory": -1}, "memory must be 0"),
        ({"feature_blocks": (2,)}, "blocks are numbered"),
        ({"feature_blocks": (7, 7)}, "none of them twice"),
        ({"modulate_block": 12}, "blocks are numbered"),
        ({"blur_side": 4}, "must be odd"),
        ({"size": (3,)}, "a height and a width"),
        ({"strength": float("nan")}, "strength must be finite"),
    ],
)
def test_settings_out_of_range_are_refused(changes, said):
    with pytest.raises(InputError, match=said):
        VidSeg(**changes)


def test_settings_that_exclude_each_other_are_refused():
    with pytest.raises(InputError, match="one of the 25 steps"):
        VidSeg(modulate_step=25).ready("sd")
    with pytest.raises(InputError, match="must not come before"):
        VidSeg(modulate_step=5, feature_step=4)
    with pytest.raises(InputError, match="kind of model"):
        VidSeg(backbone_kind="svd").ready("sd")


def test_every_row_of_the_ablations_is_a_setting():
    rows = [(table, row) for table, rows in ABLATIONS.items() for row in rows]
    ready = {one: ablate(VidSeg(), *one).ready("sd") for one in rows}
    assert ready["modulated block", "block 3"].modulate_block == 3
    assert ready["crf", "EmerDiff + CRF"].batch == 1
    assert [ready["batch", f"{size} frames"].batch for size in (5, 10, 14, 20)] == [5, 10, 14, 20]
    for changes in DATASETS.values():
        assert with_settings(VidSeg(), changes).ready("sd").clusters in (20, 30)
    for table, row in (("crf", "KNN"), ("colour", "red")):
        with pytest.raises(InputError, match="a table and a row"):
            ablate(VidSeg(), table, row)
