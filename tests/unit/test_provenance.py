import json
import pickle
from importlib import metadata

import numpy as np
import pytest

from diffuseg.errors import InputError
from diffuseg.provenance import Provenance

FULL = Provenance(
    model="mini",
    method="attend",
    parameters={"power": 2.0, "levels": (8, 16), "template": None, "deep": {"a": [True]}},
    seed=3,
    seconds={"encode": 0.1, "denoise": 0.5},
    image="a.png",
    image_hw=(480, 640),
    working_hw=(448, 576),
)


def test_round_trip_through_json():
    held = json.loads(json.dumps(FULL.to_dict()))
    assert Provenance.from_dict(held) == FULL
    assert pickle.loads(pickle.dumps(FULL)) == FULL


def test_it_holds_the_version_that_made_it():
    assert Provenance().version == metadata.version("diffuseg")
    assert Provenance.from_dict({"version": "9.9"}).version == "9.9"


def test_fields_of_later_versions_are_left_out():
    assert Provenance.from_dict({"method": "attend", "mood": "good"}) == Provenance(method="attend")


def test_values_become_plain():
    plain = Provenance(parameters={"a": np.float32(0.5), "b": np.int64(3), "c": (1, 2)})
    assert plain.parameters == {"a": 0.5, "b": 3, "c": [1, 2]}


def test_it_keeps_its_own_copy():
    given = {"a": [1]}
    held = Provenance(parameters=given)
    given["a"].append(2)
    assert held.parameters == {"a": [1]}


@pytest.mark.parametrize("values", [{"a": object()}, {"a": float("inf")}, {"a": np.zeros(2)}])
def test_other_values_are_refused(values):
    with pytest.raises(InputError) as caught:
        Provenance.from_dict({"parameters": values})
    assert "must be named plain JSON values" in caught.value.expected
    assert caught.value.got
    assert "store numbers" in caught.value.remedy
