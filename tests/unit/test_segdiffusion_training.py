"""What Seg-diffusion's training draws: crops, classes, batches; and what a step makes of them."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffuseg.errors import InputError
from diffuseg.image import Image
from diffuseg.train.segdiffusion.batches import BatchSource
from diffuseg.train.segdiffusion.pictures import (
    IGNORE,
    Crop,
    KeptPictures,
    LabelledPictures,
    count_labels,
    draw_crop,
)
from diffuseg.train.segdiffusion.queries import QuerySampler
from diffuseg.train.segdiffusion.recipe import SegRecipe

CLASSES = ("car", "road", "sky", "fish", "tent")


@dataclass(frozen=True)
class Labelled:
    id: str
    image: Image
    truth: np.ndarray


class Pictures:
    """Pictures with stripes of classes; number 4 has a fish."""

    name, classes, ignore = "stripes", CLASSES, 254

    def __init__(self, count=5, side=64):
        self.count, self.side, self.read = count, side, []

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        self.read.append(index)
        truth = np.full((self.side, self.side + 16), index % 3, np.int64)
        truth[: self.side // 2] = (index + 1) % 3
        truth[:, :4] = self.ignore
        if index == 4:
            truth[-24:, -24:] = 3
        colours = np.array([[200, 10, 10], [90, 90, 90], [10, 10, 220], [10, 220, 10]], np.uint8)
        pixels = colours[np.where(truth == self.ignore, 1, truth)]
        return Labelled(id=f"p{index}", image=Image(pixels=pixels, source=""), truth=truth)


def shown_of(pictures):
    kept = KeptPictures(pictures)
    table = np.zeros((len(pictures), len(pictures.classes)), bool)
    for index in range(len(pictures)):
        table[index, list(count_labels(kept[index].labels))] = True
    return table


def rng(seed=0):
    return np.random.default_rng(seed)


def test_the_test_data_are_what_is_asked_for():
    assert isinstance(Pictures(), LabelledPictures)


# --- pictures -------------------------------------------------------------------------------------


def test_what_is_not_known_has_one_label_whatever_the_data_set_calls_it():
    kept = KeptPictures(Pictures())
    assert (kept[0].labels[:, :4] == IGNORE).all()
    assert count_labels(kept[4].labels).keys() == {1, 2, 3}


def test_the_latest_pictures_are_kept_as_far_as_there_is_room():
    pictures = Pictures()
    one = 64 * 80 * 4
    kept = KeptPictures(pictures, gibibytes=2.5 * one / 2**30)
    for index in (0, 1, 0, 2, 0, 1):
        _ = kept[index]
    assert pictures.read == [0, 1, 2, 1]


def test_labels_of_another_size_are_refused():
    class Bad(Pictures):
        def __getitem__(self, index):
            held = super().__getitem__(index)
            return replace(held, truth=held.truth[:-1])

    with pytest.raises(InputError, match="same size") as error:
        KeptPictures(Bad())[3]
    assert "p3: 64x80 pixels, 63x80 labels" in str(error.value)


@pytest.mark.parametrize("label", [5, 253, -1, 1000])
def test_labels_that_are_no_class_are_refused(label):
    class Bad(Pictures):
        def __getitem__(self, index):
            held = super().__getitem__(index)
            held.truth[3, 3] = label
            return held

    with pytest.raises(InputError, match=r"0 to 4, or 254") as error:
        KeptPictures(Bad())[2]
    assert f"p2: {label}" in str(error.value)


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(9, 90), width=st.integers(9, 90), side=st.sampled_from([16, 32, 56]),
    seed=st.integers(0, 999), flip=st.booleans(),
)  # fmt: skip
def test_pixels_and_labels_of_a_crop_lie_on_each_other(height, width, side, seed, flip):
    draw = rng(seed)
    labels = np.kron(draw.integers(0, 2, (height // 8 + 1, width // 8 + 1)), np.ones((8, 8)))
    labels = labels[:height, :width].astype(np.uint8)
    whole = Crop(pixels=(labels[..., None] * np.uint8(200)).repeat(3, 2), labels=labels)
    crop = draw_crop(whole, draw, side=side, flip=flip, jitter=0.0)
    assert crop.pixels.shape == (side, side, 3)
    known = crop.labels != IGNORE
    assert set(np.unique(crop.labels)) <= {0, 1, IGNORE}
    # Away from edges, which are blurred, a pixel says its label.
    sure = np.isin(crop.pixels[..., 0], (0, 200)) & known
    assert (crop.pixels[..., 0] > 100)[sure].astype(int).tolist() == crop.labels[sure].tolist()


def test_beyond_the_picture_all_is_grey_and_not_known():
    whole = Crop(pixels=np.zeros((40, 40, 3), np.uint8), labels=np.zeros((40, 40), np.uint8))
    crop = draw_crop(whole, rng(), side=32, zoom=(0.4, 0.4), flip=False, jitter=0.0)
    beyond = crop.labels == IGNORE
    assert 0.5 < beyond.mean() < 0.9
    inner = (crop.pixels == 127).all(2)
    assert (inner == beyond).mean() > 0.9


def test_a_square_filled_by_one_class_is_drawn_again():
    labels = np.zeros((256, 256), np.uint8)
    labels[:, :24] = 1
    whole = Crop(pixels=np.zeros((256, 256, 3), np.uint8), labels=labels)
    found = [
        (draw_crop(whole, rng(seed), side=32, zoom=(1.0, 1.0)).labels == 1).mean()
        for seed in range(80)
    ]
    # A single draw has a quarter of the class in one case of fifteen.
    assert np.mean(np.array(found) >= 0.25) > 0.3


def test_half_of_the_crops_are_mirrored():
    labels = np.tile(np.arange(4, dtype=np.uint8), (32, 8))
    labels = np.sort(labels, 1)
    whole = Crop(pixels=np.zeros((32, 32, 3), np.uint8), labels=labels)
    turned = [
        bool(draw_crop(whole, rng(seed), side=32, zoom=(1.0, 1.0)).labels[0, 0] == 3)
        for seed in range(60)
    ]
    assert 0.3 < np.mean(turned) < 0.7
    never = [draw_crop(whole, rng(s), side=32, zoom=(1.0, 1.0), flip=False) for s in range(20)]
    assert all(one.labels[0, 0] == 0 for one in never)


def test_jitter_changes_colours_and_no_label():
    whole = KeptPictures(Pictures())[0]
    plain = draw_crop(whole, rng(3), side=32, jitter=0.0)
    other = draw_crop(whole, rng(3), side=32, jitter=0.4)
    assert (plain.labels == other.labels).all()
    assert (plain.pixels != other.pixels).any()


# --- queries --------------------------------------------------------------------------------------


def sampler(pictures=None, **options):
    return QuerySampler(CLASSES, shown_of(pictures or Pictures()), **options)


def test_absent_classes_are_in_no_part_of_the_whole_picture():
    drawn = sampler(queries=4, negatives=0.5)
    absent = 0
    for seed in range(200):
        number = drawn.draw_picture(rng(seed))
        labels = np.full((16, 16), IGNORE, np.uint8)
        labels[:, :8] = np.flatnonzero(drawn.shown[number])[0]
        asked = drawn.draw_classes(number, labels, rng(seed))
        assert len(asked) == len(set(asked))
        here = set(count_labels(labels))
        for one in asked:
            assert one in here or not drawn.shown[number, one]
        absent += sum(one not in here for one in asked)
    assert absent


def test_the_share_of_absent_classes_is_the_one_asked_for():
    shown = np.zeros((1, 20), bool)
    shown[0, :10] = True
    drawn = QuerySampler(tuple("abcdefghijklmnopqrst"), np.vstack([shown, ~shown]), queries=4)
    labels = np.repeat(np.arange(10, dtype=np.uint8), 16)[None].repeat(16, 0)
    asked = [drawn.draw_classes(0, labels, rng(seed)) for seed in range(400)]
    assert all(len(one) == 4 for one in asked)
    share = np.mean([one >= 10 for row in asked for one in row])
    assert 0.2 < share < 0.3


def test_classes_left_out_are_neither_shown_nor_asked_for():
    drawn = sampler(without=("fish",), negatives=0.5)
    assert 4 not in drawn.pictures
    for seed in range(100):
        number = drawn.draw_picture(rng(seed))
        labels = KeptPictures(Pictures())[number].labels
        assert number != 4
        assert 3 not in drawn.draw_classes(number, labels, rng(seed))


def test_the_background_is_shown_and_never_asked_for():
    drawn = sampler(unasked=("road",), negatives=0.5)
    assert drawn.pictures.tolist() == [0, 1, 2, 3, 4]
    labels = KeptPictures(Pictures())[0].labels
    asked = {one for seed in range(60) for one in drawn.draw_classes(0, labels, rng(seed))}
    assert 1 not in asked
    assert 0 in asked


def test_specks_are_not_asked_for_and_something_always_is():
    drawn = sampler()
    labels = np.full((64, 64), 0, np.uint8)
    labels[0, :40] = 1
    asked = [drawn.draw_classes(0, labels, rng(seed)) for seed in range(50)]
    assert all(1 not in one for one in asked)
    everything = QuerySampler(("a", "b"), np.array([[True, True]]))
    unknown = np.full((16, 16), IGNORE, np.uint8)
    assert len(everything.draw_classes(0, unknown, rng())) == 1


def test_rare_classes_are_drawn_more_often_than_they_come():
    shown = np.zeros((100, 2), bool)
    shown[:, 0] = True
    shown[:4, 1] = True
    drawn = QuerySampler(("common", "rare"), shown)
    share = np.mean([shown[drawn.draw_picture(rng(seed)), 1] for seed in range(400)])
    assert 0.2 < share < 0.7


@pytest.mark.parametrize(
    ("options", "match"),
    [({"without": ("dog",)}, "data set's"), ({"without": CLASSES}, "must be a picture")],
)
def test_what_cannot_be_left_out(options, match):
    with pytest.raises(InputError, match=match):
        sampler(**options)


# --- batches --------------------------------------------------------------------------------------


def source(**options):
    recipe = SegRecipe(crop=32, **options)
    return BatchSource(wholes=KeptPictures(Pictures()), sampler=sampler(), recipe=recipe)


def same(one, other):
    names = ("pixels", "known", "owners", "masks", "timesteps", "noise")
    return one.classes == other.classes and all(
        getattr(one, name).shape == getattr(other, name).shape
        and bool((getattr(one, name) == getattr(other, name)).all())
        for name in names
    )


def test_a_batch_is_a_function_of_seed_step_process_and_part():
    drawn = source().draw(7, images=2, rank=1, part=3)
    _ = torch.rand(3), np.random.default_rng().random()
    assert same(drawn, source().draw(7, images=2, rank=1, part=3))
    others = [
        source().draw(8, images=2, rank=1, part=3),
        source().draw(7, images=2, rank=0, part=3),
        source().draw(7, images=2, rank=1, part=2),
        source(seed=1).draw(7, images=2, rank=1, part=3),
    ]
    assert not any(same(drawn, other) for other in others)


def test_masks_are_those_of_the_classes_asked_for():
    batch = source(negatives=0.5).draw(0, images=8)
    assert batch.masks.shape == (len(batch.classes), 32, 32)
    assert batch.owners.tolist() == sorted(batch.owners.tolist())
    assert not (batch.masks & ~batch.known[batch.owners]).any()
    assert batch.masks.flatten(1).any(1).any()
    assert (~batch.masks.flatten(1).any(1)).any()


def test_timesteps_are_even_or_noisier():
    def mean(power):
        drawn = [source(timestep_power=power).draw(n, images=8).timesteps for n in range(25)]
        found = torch.cat(drawn)
        assert 0 <= found.min() <= found.max() <= 999
        return found.float().mean().item()

    assert 440 < mean(1.0) < 560
    assert mean(0.5) > 610  # two thirds


def test_a_single_step_begins_at_zeros_and_the_last_timestep():
    batch = source(objective="one-step").draw(0, images=2)
    assert (batch.timesteps == 999).all()
    assert (batch.noise == 0).all()


# --- recipe ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [{"steps": 0}, {"warmup": 25_000}, {"zoom": (2.0, 1.0)}, {"templates": ("a photo",)},
     {"templates": ("a {}", "a {}")}, {"related": ("car",)}, {"negatives": 1.5},
     {"learning_rate": -1.0}, {"final": 0.0}],
)  # fmt: skip
def test_numbers_out_of_range_are_refused(wrong):
    with pytest.raises(InputError):
        SegRecipe(**wrong)
