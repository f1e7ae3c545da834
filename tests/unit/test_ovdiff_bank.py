"""A bank keeps what it is given, whatever classes are called, whoever else writes, whoever dies."""

import contextlib
import multiprocessing
import re

import numpy as np
import pytest
import torch

from diffuseg.errors import InputError
from diffuseg.methods.ovdiff import OVDiff
from diffuseg.methods.ovdiff.prototypes import ClassPrototypes, Prototypes
from diffuseg.ovdiff import Bank, BankEntry, Recipe
from diffuseg.ovdiff.recipe import kept_settings, make_recipe
from support.banks import RECIPE, entry, files, grow_old, prototypes, same

NAMES = (
    "dog",
    "Dog",
    "DOG",
    "../../etc/passwd",
    "a/b\\c:d*?",
    "火車",
    "Bäume",
    "🐶",
    "x" * 300,
    "con",
)


@pytest.fixture
def bank(tmp_path):
    return Bank.create(tmp_path / "bank", RECIPE)


def test_what_is_added_comes_back_to_the_bit(bank):
    kept = entry()
    bank.add(kept)
    held = Bank.open(bank.path).get("dog", pictures=True)
    assert same(kept, held)
    assert np.array_equal(held.images, kept.images)
    assert torch.equal(held.fg, kept.fg)
    assert torch.equal(held.bg, kept.bg)
    assert bank.get("dog").images is None


def test_a_bank_says_what_is_in_it(bank):
    bank.add(entry("dog"))
    bank.add(entry("cat"), keep_pictures=False)
    cat, dog = bank.stock()
    assert bank.names == ("cat", "dog")
    assert (dog.pictures, dog.size, cat.pictures, cat.size) == (2, (9, 13), 0, ())
    assert dog.counts["sd"]["positive"] == {"class": 1, "instance": 2, "part": 2}
    assert dog.counts["dino"]["negative"] == {"class": 0, "instance": 0, "part": 0}
    assert (dog.counts["sd"]["width"], dog.counts["sd"]["grid"]) == (5, [4, 4])
    assert bank.missing(["dog", "fish"]) == ("fish",)
    assert bank.get("cat", pictures=True).images is None


def test_half_precision_is_half_the_size_and_close(tmp_path):
    sizes = {}
    for stored in ("float32", "float16"):
        bank = Bank.create(tmp_path / stored, RECIPE, stored=stored)
        kept = entry(pictures=False)
        big = {
            name: ClassPrototypes(
                positive=Prototypes(
                    vectors=torch.randn(400, 64), kinds=torch.zeros(400).long(),
                    sources=torch.zeros(400).long(),
                ),
                negative=Prototypes(
                    vectors=torch.zeros(0, 64), kinds=torch.zeros(0).long(),
                    sources=torch.zeros(0).long(),
                ),
                cells=held.cells,
            )
            for name, held in kept.prototypes.items()
        }  # fmt: skip
        bank.add(BankEntry(name="dog", prompt="", prototypes=big))
        got = bank.get("dog").prototypes["sd"].positive.vectors
        assert got.dtype == torch.float32
        torch.testing.assert_close(got, big["sd"].positive.vectors, atol=2e-3, rtol=1e-3)
        sizes[stored] = bank.look("dog").bytes
    assert sizes["float16"] < 0.6 * sizes["float32"]


def test_numbers_too_large_for_half_precision_are_refused(tmp_path):
    bank = Bank.create(tmp_path / "bank", RECIPE, stored="float16")
    kept = entry()
    kept.prototypes["sd"].positive.vectors[0, 0] = 1e6
    with pytest.raises(InputError, match="'dog' must be finite as float16"):
        bank.add(kept)
    assert bank.names == ()


@pytest.mark.parametrize("name", NAMES)
def test_any_name_is_safe(bank, name):
    bank.add(entry(name))
    assert bank.names == (name,)
    assert bank.get(name).name == name
    for file in files(bank):
        assert file.parent == bank.path / "classes"
        assert re.fullmatch(r"[a-z0-9-]+(\.[0-9a-f]{12})?\.(json|safetensors)", file.name)
        assert len(file.name) < 100
    assert sorted(one.name for one in bank.path.iterdir()) == ["classes", "manifest.json"]
    bank.remove(name)
    assert files(bank) == []


def test_names_that_differ_by_case_only_are_classes_of_their_own(bank):
    for number, name in enumerate(("dog", "Dog", "DOG")):
        bank.add(entry(name, seed=number))
    assert len({file.name.casefold() for file in files(bank)}) == 6
    for number, name in enumerate(("dog", "Dog", "DOG")):
        assert same(bank.get(name), entry(name, seed=number))
    with pytest.raises(InputError, match="did you mean"):
        bank.get("dOG")


def test_case_does_not_matter_where_nothing_else_differs(bank):
    bank.add(entry("Dog"))
    assert bank.get("dog").name == "Dog"
    assert bank.missing(["DOG"]) == ()
    bank.remove("dOg")
    assert bank.names == ()


def test_accents_in_two_forms_are_one_name(bank):
    bank.add(entry("Ba\u0308ume"))
    assert bank.get("B\u00e4ume").prompt == "a Ba\u0308ume"


def test_adding_touches_no_other_class(bank):
    bank.add(entry("dog"))
    before = {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in files(bank)}
    bank.add(entry("cat"))
    bank.add(entry("fish"))
    bank.remove("fish")
    assert before == {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in before}


def test_a_class_is_replaced_only_if_asked(bank):
    bank.add(entry())
    with pytest.raises(InputError, match="'dog' is in"):
        bank.add(entry(seed=5))
    bank.add(entry(seed=5), replace=True)
    assert same(bank.get("dog"), entry(seed=5))
    grow_old(bank)
    bank.tidy()
    assert len(files(bank)) == 2
    assert same(bank.get("dog"), entry(seed=5))


def test_a_class_must_have_the_banks_extractors(bank):
    kept = BankEntry(name="dog", prompt="", prototypes={"sd": prototypes()})
    with pytest.raises(InputError, match="bank's extractors"):
        bank.add(kept)


def test_entries_that_make_no_sense_are_refused():
    with pytest.raises(InputError, match="name and prototypes"):
        BankEntry(name=" ", prompt="", prototypes={"sd": prototypes()})
    with pytest.raises(InputError, match="masks of their size"):
        BankEntry(
            name="dog", prompt="", prototypes={"sd": prototypes()},
            images=np.zeros((1, 4, 4, 3), np.uint8),
        )  # fmt: skip


def test_an_unknown_class_is_named_with_what_is_near(bank):
    bank.add(entry("house"))
    with pytest.raises(InputError, match=r"did you mean 'house'\? add it"):
        bank.get("hose")


def test_a_bank_keeps_how_it_stores(bank):
    with pytest.raises(InputError, match="float32, not float16"):
        Bank.create(bank.path, RECIPE, stored="float16")
    with pytest.raises(InputError, match="float32 or float16"):
        Bank.create(bank.path, RECIPE, stored="int8")


def test_settings_left_open_are_the_banks(tmp_path):
    kept = kept_settings(OVDiff(number=4, layers=("up_blocks.1.*",), stride=64))
    assert "stride" not in kept
    bank = Bank.create(tmp_path / "bank", RECIPE, settings=kept, model="mini")
    taken = Bank.open(bank.path).adopt(OVDiff(stride=32, parts=3))
    assert (taken.number, taken.parts, taken.stride) == (4, 3, 32)
    assert taken.layers == ("up_blocks.1.*",)
    assert Bank.open(bank.path).model == "mini"


class Part:
    identity: dict[str, object] = {"weights": "123", "layers": ["a"]}  # noqa: RUF012


class Model:
    dtype, size = torch.float32, 64

    def __init__(self, seed=0):
        torch.manual_seed(seed)
        self.unet = torch.nn.Linear(2, 2)
        self.alphas = torch.linspace(1, 0, 5)


def recipe_of(model=None, **settings):
    return make_recipe(model or Model(), OVDiff(**settings).ready(), {"sd": Part()}, Part())


def test_a_recipe_tells_what_matters_from_what_does_not():
    plain = recipe_of()
    assert recipe_of(model=Model()).digest == plain.digest
    assert plain.extractors == ("sd",)
    for alike in ({"side": 64}, {"kinds": ("class",)}, {"stuff_threshold": 1.0}, {"size": 64}):
        assert recipe_of(**alike).digest == plain.digest, alike
    other = (
        {"number": 4}, {"template": "{}"}, {"negative": ""}, {"guidance": 2.0}, {"steps": 3},
        {"scheduler": "DDIM"}, {"seed": 1}, {"size": 128}, {"proposals": "none"}, {"cuts": 2},
        {"fallback": "otsu"}, {"mask_rule": "paper"}, {"cut_threshold": 0.2}, {"cut_size": 64},
        {"parts": 4}, {"prototype_seed": 1}, {"profile": "release"},
    )  # fmt: skip
    digests = {recipe_of(**one).digest for one in other}
    assert len(digests) == len(other)
    assert plain.digest not in digests
    cut = recipe_of(proposals="none", cuts=2)
    assert cut.digest == recipe_of(proposals="none").digest
    assert plain.differences(recipe_of(Model(seed=1)))[0].startswith("model.unet is")
    assert make_recipe(Model(), OVDiff().ready(), {"sd": Part()}).digest != plain.digest
    assert plain.differences(make_recipe(Model(), OVDiff().ready(), {"sd": Part()})) == []


def test_a_recipe_holds_plain_values_only():
    with pytest.raises(InputError, match="plain JSON"):
        Recipe(values={"model": object()})


def _write(folder, worker, count, start):
    start.wait(60)
    recipe = Recipe(values={**RECIPE.values, "pictures": {"number": worker}})
    with contextlib.suppress(InputError):
        Bank.create(folder / "contested", recipe)
        (folder / f"won by {worker}").touch()
    bank = Bank.create(folder / "shared", RECIPE)
    for number in range(count):
        bank.add(entry(f"class {worker} {number}", seed=number))
        bank.add(entry("everybody's", seed=number), replace=True)
        assert bank.get("everybody's").prompt == "a everybody's"


def test_several_processes_at_once_lose_nothing(tmp_path):
    spawn = multiprocessing.get_context("spawn")
    start = spawn.Event()
    workers = [spawn.Process(target=_write, args=(tmp_path, one, 6, start)) for one in range(3)]
    for worker in workers:
        worker.start()
    start.set()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    bank = Bank.open(tmp_path / "shared")
    assert len(bank.names) == 3 * 6 + 1
    assert bank.damaged() == {}
    assert not list(tmp_path.rglob(".*"))
    [won] = tmp_path.glob("won by *")
    number = Bank.open(tmp_path / "contested").recipe.values["pictures"]["number"]
    assert won.name == f"won by {number}"
