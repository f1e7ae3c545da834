"""Several data sets in one training: classes in common, what is absent of what, whose turn."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
from accelerate import Accelerator

from diffuseg.errors import InputError
from diffuseg.image import Image
from diffuseg.train.segdiffusion.batches import BatchSource
from diffuseg.train.segdiffusion.mixing import MixedSource, Mixture, as_mixture, merge_sets
from diffuseg.train.segdiffusion.recipe import SegRecipe
from diffuseg.train.segdiffusion.relations import read_relations
from diffuseg.train.segdiffusion.running import Running, silent
from diffuseg.train.segdiffusion.sources import Latents, describe_data, prepare_sources
from support.labelled import Blocks


@dataclass(frozen=True)
class Labelled:
    id: str
    image: Image
    truth: np.ndarray


class Halves:
    """Every picture has two classes, one beside the other; labels are none above 240."""

    def __init__(self, name, classes, pairs, *, ignore=240, side=32):
        self.name, self.classes, self.ignore = name, tuple(classes), ignore
        self.pairs, self.side = pairs, side

    def __len__(self):
        return len(self.pairs)

    def __getitem__(self, index):
        left, right = (self.classes.index(one) for one in self.pairs[index])
        truth = np.full((self.side, self.side), left, np.int64)
        truth[:, self.side // 2 :] = right
        truth[0] = self.ignore
        pixels = np.full((self.side, self.side, 3), 9, np.uint8)
        return Labelled(id=f"{self.name}{index}", image=Image(pixels=pixels), truth=truth)


def streets():
    pairs = [("car", "sky"), ("person", "background"), ("rider", "sky"), ("car", "person")]
    return Halves("streets", ("background", "car", "person", "sky", "rider"), pairs)


def rooms():
    return Halves("rooms", ("sofa", "human", "lamp"), [("sofa", "human"), ("lamp", "sofa")],
                  ignore=254)  # fmt: skip


def merged(*sets, weights=None, lines=()):
    return merge_sets(Mixture(sets=sets, weights=weights), read_relations(lines))


def drawn_from(tmp_path, found, **options):
    recipe = SegRecipe(crop=32, zoom=(1.0, 1.0), **options)
    return prepare_sources(
        found, tmp_path, recipe, Accelerator(cpu=True), Running(),
        Latents(channels=4, scale=8, timesteps=1000), silent,
    )  # fmt: skip


# --- classes --------------------------------------------------------------------------------------


def test_classes_of_the_same_name_or_of_synonyms_are_one():
    found = merged(streets(), rooms())
    assert found.classes == ("background", "car", "person", "sky", "rider", "sofa", "lamp")
    assert found.places == ((0, 1, 2, 3, 4), (5, 2, 6))


def test_classes_of_one_set_stay_apart_and_the_same_word_comes_first():
    both = Halves("both", ("couch", "sofa"), [("couch", "sofa")])
    found = merged(both, rooms())
    assert found.classes == ("couch", "sofa", "human", "lamp")
    assert found.places == ((0, 1), (1, 2, 3))
    assert merged(rooms(), both).places == ((0, 1, 2), (3, 0))


def test_one_set_is_what_it_was():
    found = merge_sets(as_mixture(streets()), read_relations())
    assert found.classes == streets().classes
    assert found.places == ((0, 1, 2, 3, 4),)
    assert found.related[0] is not None
    assert found.related[0][2, 4]
    blocks = merge_sets(as_mixture(Blocks()), read_relations())
    assert blocks.related == (None,)
    assert "related" not in describe_data(blocks)
    assert ", 1 related pairs" in describe_data(found)
    more = merge_sets(as_mixture(streets()), read_relations(["sky ~ car"]))
    assert describe_data(more) != describe_data(found)


def test_what_is_left_out_is_so_under_every_name():
    found = merged(streets(), rooms())
    assert found.find(("person", "sky")) == (("person", "sky"), ("human",))
    assert found.find(("human",)) == (("person",), ("human",))
    with pytest.raises(InputError, match="data set's"):
        found.find(("dog",))


def test_shares_are_sizes_or_weights_and_tell_mixtures_apart():
    found = merged(streets(), rooms())
    assert found.mixture.shares == pytest.approx((2 / 3, 1 / 3))
    other = merged(streets(), rooms(), weights=(1.0, 3.0))
    assert other.mixture.shares == (0.25, 0.75)
    assert describe_data(found) != describe_data(other)
    assert Mixture(sets=(rooms(), streets(), rooms())).labels == ("rooms", "streets", "rooms-2")


@pytest.mark.parametrize("weights", [(1.0,), (1.0, 0.0), (1.0, float("inf")), (1.0, float("nan"))])
def test_weights_that_are_none_are_refused(weights):
    with pytest.raises(InputError, match="weight above 0"):
        Mixture(sets=(streets(), rooms()), weights=weights)


# --- drawing --------------------------------------------------------------------------------------


def batches(drawn, count=50):
    return [drawn.source.draw(step, images=1) for step in range(count)]


def test_no_class_is_absent_of_a_picture_whose_data_set_does_not_know_it(tmp_path):
    found = merged(streets(), rooms())
    drawn = drawn_from(tmp_path, found, negatives=0.7, queries=3)
    assert isinstance(drawn.source, MixedSource)
    seen: list[set[str]] = [set(), set()]
    for step, batch in enumerate(batches(drawn)):
        number = drawn.source.choose(step)
        names = {found.classes[one] for one in batch.classes}
        assert set(batch.classes) <= set(found.places[number])
        seen[number] |= names
        absent = {
            found.classes[one]
            for one, mask in zip(batch.classes, batch.masks, strict=True)
            if not mask.any()
        }
        # A rider is a person: where one is, the other is not asked for.
        assert len(names & {"rider", "person"} & absent) in (0, len(names & {"rider", "person"}))
    assert seen == [{"car", "person", "sky", "rider"}, {"sofa", "person", "lamp"}]
    assert drawn.learned == ("car", "person", "sky", "rider", "sofa", "lamp")


def test_masks_lie_where_the_data_set_has_the_class(tmp_path):
    found = merged(streets(), rooms(), weights=(0.001, 1.0))
    drawn = drawn_from(tmp_path, found, flip=False, negatives=0.0, queries=2)
    for batch in batches(drawn, 12):
        masks = dict(zip((found.classes[one] for one in batch.classes), batch.masks, strict=True))
        if {"sofa", "person"} <= masks.keys():
            assert masks["sofa"][5, :16].all()
            assert masks["person"][5, 16:].all()
            assert not masks["person"][5, :16].any()
            break
    else:
        pytest.fail("no such picture was drawn")


def test_sets_are_drawn_by_their_shares_as_a_function_of_the_step(tmp_path):
    found = merged(streets(), rooms(), weights=(1.0, 3.0))
    source = drawn_from(tmp_path, found).source
    chosen = [source.choose(step) for step in range(400)]
    assert 0.68 < np.mean(chosen) < 0.82
    again = drawn_from(tmp_path, found).source
    assert [again.choose(step) for step in range(399, -1, -1)] == chosen[::-1]
    assert len({tuple(source.choose(s, rank=r) for s in range(20)) for r in range(4)}) == 4
    ours, theirs = source.draw(7, images=2, part=1), again.draw(7, images=2, part=1)
    assert ours.classes == theirs.classes
    assert bool((ours.pixels == theirs.pixels).all() and (ours.noise == theirs.noise).all())


def test_classes_are_balanced_by_how_often_they_come_in_all_sets(tmp_path):
    many = Halves("many", ("sofa", "lamp"), [("sofa", "sofa")] * 9 + [("lamp", "lamp")])
    few = Halves("few", ("lamp", "sofa"), [("lamp", "lamp")] * 9 + [("sofa", "sofa")])
    source = drawn_from(tmp_path, merged(many, few)).source
    assert all(np.allclose(one.sampler.counts, 0.5) for one in source.sources)
    alone = drawn_from(tmp_path / "alone", merged(many)).source
    assert isinstance(alone, BatchSource)
    assert alone.sampler.counts.tolist() == [9, 1]


def test_what_is_wrong_is_said_of_the_set_at_fault(tmp_path):
    class Odd(Halves):
        def __getitem__(self, index):
            held = super().__getitem__(index)
            held.truth[3, 3] = 77
            return held

    odd = Odd("attics", ("sofa", "lamp"), [("sofa", "lamp")])
    with pytest.raises(InputError, match="labels must be") as error:
        drawn_from(tmp_path, merged(streets(), odd))
    assert "attics, attics0: 77" in str(error.value)
    empty = Halves("cellars", ("sofa", "lamp"), [])
    with pytest.raises(InputError, match="classes in cellars"):
        drawn_from(tmp_path, merged(streets(), empty))
    with pytest.raises(InputError, match="2 pictures of rooms without any"):
        drawn_from(tmp_path, merged(streets(), rooms()), without=("sofa",))


# --- templates ------------------------------------------------------------------------------------


def test_a_template_is_drawn_for_every_query_and_changes_nothing_else(tmp_path):
    one = drawn_from(tmp_path, merged(streets())).source
    recipe = replace(one.recipe, templates=("a photo of a {}", "a {}", "{}"))
    several = replace(one, recipe=recipe)
    found = []
    for step in range(25):
        plain, batch = one.draw(step, images=2), several.draw(step, images=2)
        assert plain.templates == ()
        assert batch.classes == plain.classes
        assert bool((batch.pixels == plain.pixels).all() and (batch.noise == plain.noise).all())
        assert len(batch.templates) == len(batch.classes)
        assert batch.templates == several.draw(step, images=2).templates
        found += batch.templates
    shares = np.bincount(found, minlength=3) / len(found)
    assert shares == pytest.approx([0.5, 0.25, 0.25], abs=0.1)
