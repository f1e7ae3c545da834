"""Names of classes that may lie on the same pixels, and that none is asked for beside another."""

from importlib import resources

import numpy as np
import pytest

from diffuseg.errors import InputError
from diffuseg.train.segdiffusion.queries import QuerySampler
from diffuseg.train.segdiffusion.relations import read_lines, read_relations, spoken
from diffuseg.world import CLASSES


def related(one, other, lines=()):
    return bool(read_relations(lines).table([one, other])[0, 1])


@pytest.mark.parametrize(
    ("one", "other"),
    [("person", "rider"), ("vegetation", "tree"), ("car", "vehicle"), ("sofa", "couch"),
     ("pedestrian", "person"), ("grass-merged", "grass"), ("Vegetation", "palm"),
     ("wall-brick", "building"), ("water", "sea"), ("door-stuff", "door"), ("chair", "furniture"),
     ("bicyclist", "bicycle"), ("clothes", "person"), ("tvmonitor", "television receiver")],
)  # fmt: skip
def test_synonyms_kinds_and_parts_are_related_both_ways(one, other):
    assert related(one, other)
    assert related(other, one)


@pytest.mark.parametrize(
    ("one", "other"),
    [("person", "bicycle"), ("car", "bus"), ("dog", "cat"), ("tree", "grass"), ("sky", "tree"),
     ("road", "sidewalk"), ("cup", "fork"), ("moon", "sky")],
)  # fmt: skip
def test_kinds_of_one_thing_and_neighbours_are_not(one, other):
    assert not related(one, other)
    assert not related(other, one)


def test_nothing_in_scenes_is_related():
    # What the embedded model was trained on; its draws must stay what they were.
    table = read_relations().table(CLASSES)
    assert (table == np.eye(len(CLASSES), dtype=bool)).all()


def test_lines_of_ones_own_are_added():
    lines = ["bobcat = lynx", "wildlife: lynx, animal", "lynx ~ fur"]
    assert related("bobcat", "wildlife", lines)
    assert related("wildlife", "dog", lines)  # through animal, which is shipped
    assert related("fur", "bobcat", lines)
    assert not related("fur", "wildlife", lines)
    assert not related("bobcat", "wildlife")


def test_groups_of_synonyms_that_meet_are_one():
    relations = read_relations(["aa = bb", "cc = dd", "bb = cc"])
    assert len({relations.head(one) for one in ("aa", "bb", "cc", "dd")}) == 1


def test_a_file_of_ones_own(tmp_path):
    path = tmp_path / "related.txt"
    path.write_text("# mine\n\nlynx: bobcat\n", encoding="utf-8")
    assert read_lines(path) == ("lynx: bobcat",)
    path.write_text("lynx bobcat\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"told as a = b"):
        read_lines(path)
    with pytest.raises(InputError, match="text file"):
        read_lines(tmp_path / "none.txt")


@pytest.mark.parametrize("line", ["a", "a =", ": b", "a: b,,c", "a = b: c", "a ~ "])
def test_lines_that_say_nothing_are_refused(line):
    with pytest.raises(InputError, match="related names"):
        read_relations([line])


def test_the_shipped_file_has_no_line_twice():
    text = (resources.files("diffuseg.train.segdiffusion") / "related.txt").read_text("utf-8")
    lines = [one for one in text.splitlines() if one and not one.startswith("#")]
    assert len(lines) == len(set(lines)) > 50


@pytest.mark.parametrize(
    ("name", "said"), [("sky-other-merged", "sky"), ("mirror-stuff", "mirror"), ("a_b|c", "a b")]
)
def test_classes_are_said_as_one_would(name, said):
    assert spoken(name) == said


# --- asking ---------------------------------------------------------------------------------------

NAMES = ("person", "rider", "car", "sky")


def asked(related):
    """All that is asked for of a picture of a rider under the sky, and what of it is absent."""
    shown = np.array([[False, True, False, True], [True, False, True, False]])
    sampler = QuerySampler(NAMES, shown, negatives=0.5, queries=4, related=related)
    labels = np.full((16, 16), 1, np.uint8)
    labels[:8] = 3
    drawn = [sampler.draw_classes(0, labels, np.random.default_rng(n)) for n in range(80)]
    return {NAMES[one] for row in drawn for one in row}


def test_no_class_is_asked_for_as_absent_where_a_related_one_is_shown():
    assert asked(None) == {"person", "rider", "car", "sky"}
    assert asked(read_relations().table(NAMES)) == {"rider", "car", "sky"}


def test_where_all_absent_classes_are_related_something_true_is_asked_for():
    names = ("person", "rider")
    shown = np.array([[False, True], [True, False]])
    sampler = QuerySampler(names, shown, related=read_relations().table(names))
    unknown = np.full((16, 16), 255, np.uint8)
    for seed in range(30):
        assert sampler.draw_classes(0, unknown, np.random.default_rng(seed)) == [1]
