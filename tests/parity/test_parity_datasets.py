"""Classes, stored values, colours and sizes of splits against the published ones, as collected."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from diffuseg.eval.dataset_facts import find_facts
from diffuseg.eval.label_sets import UNKNOWN, read_facts, read_labels
from diffuseg.palettes import voc_palette

REPOSITORY = Path(__file__).resolve().parents[2]
FILE = (
    Path(os.environ.get("DIFFUSEG_SPECS", REPOSITORY / ".." / "shared" / "specs"))
    / "evaluation_classes.json"
)
SETS = json.loads(FILE.read_text()) if FILE.is_file() else {}
NAMED = [name for name, one in SETS.items() if "names" in one and name != "vspw124"]

pytestmark = pytest.mark.skipif(not SETS, reason=f"no {FILE}")


@pytest.mark.parametrize("name", NAMED)
def test_classes_and_stored_values(name):
    want, have = SETS[name], read_labels(name)
    assert list(have.classes) == want["names"]
    assert have.ignore == want["ignore"]
    raw = want.get("raw_to_train") or list(range(len(want["names"])))
    assert have.table[: len(raw)].tolist() == raw
    beyond = set(have.table[len(raw) :].tolist())
    assert beyond <= {UNKNOWN, want["ignore"]}


@pytest.mark.parametrize("name", NAMED)
def test_palettes(name):
    palette, k = SETS[name]["palette"], len(SETS[name]["names"])
    want = palette["colors"] if "colors" in palette else voc_palette(palette["n"])[-k:]
    assert np.array_equal(read_labels(name).palette, np.array(want))


@pytest.mark.parametrize("name", [name for name in NAMED if "splits" in SETS[name]])
def test_sizes_of_splits(name):
    ours = dict(find_facts(name, "images").splits)
    named = {"val_curated7": "val2017"}
    theirs = {named.get(split, split): n for split, n in SETS[name]["splits"].items()}
    shared = ours.keys() & theirs.keys()
    assert shared
    assert {split: ours[split] for split in shared} == {split: theirs[split] for split in shared}


@pytest.mark.parametrize("name", [name for name in NAMED if "prompt_names" in SETS[name]])
def test_names_of_prompts(name):
    labels = read_labels(name)
    for key, names in SETS[name]["prompt_names"].items():
        system = key.split()[0]
        renamed = labels.renamed(system).classes
        assert [names.get(one, one) for one in labels.classes] == list(renamed)


def test_what_masks_of_coco_and_context_are_besides():
    coco = SETS["coco_object81"]
    assert read_facts("coco_object81")["stuffthingmaps"] == coco["raw_to_train_from_stuffthingmaps"]
    context = SETS["context60"]
    assert read_facts("context60")["alphabetical"] == context["alphabetical_order"]
    known = {
        context["alphabetical_synonyms"].get(one, one) for one in context["alphabetical_order"]
    }
    assert known == set(context["names"])
    assert list(read_labels("vspw124").classes) == SETS["vspw124"]["names"]
