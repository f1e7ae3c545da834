"""How the figures that papers print would be made again: model, settings, data, number, tolerance.

A recipe names what is known; nothing here was run with real weights. Where the paper used something
that is not part of this library, `differs` says so.
"""

import difflib
import re
from collections.abc import Iterator, Mapping
from functools import cache

from diffuseg.errors import InputError
from diffuseg.eval import video_published
from diffuseg.eval.published import TABLES, Row
from diffuseg.eval.recipe import CUTLER, NO_NUMBER, READING, SWEPT, TAGS, Recipe


@cache
def list_recipes() -> Mapping[str, Recipe]:
    """Return every recipe by name.

    Example:
        >>> list_recipes()["iseg-voc-val"].expected
        {'miou': 68.2}
    """
    found: dict[str, Recipe] = {}
    for one in (*_diffseg(), *_diffsegmenter(), *_iseg(), *_ovdiff(), *_vidseg()):
        found[one.name] = one
    return found


def find_recipe(name: str) -> Recipe:
    """Return a recipe by name.

    Raises:
        InputError: There is none.

    Example:
        >>> find_recipe("diffseg-cityscapes27").settings
        {'tau': 0.9}
    """
    known = list_recipes()
    if name in known:
        return known[name]
    if name in NO_NUMBER:
        raise InputError("a recipe is of a printed number", got=name, remedy=NO_NUMBER[name])
    near = difflib.get_close_matches(name, known, n=3)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    raise InputError(
        "the recipe must be a known one", got=name, remedy=f"{hint}`diffuseg reproduce` lists them"
    )


# ---- the papers' own tables

_COCO = "coco_object81"
_PLACES: Mapping[str, tuple[str, str, str]] = {
    "voc-train": ("voc21", "train", "VOC train"),
    "coco-train": (_COCO, "train2014", "COCO train"),
    "voc-val": ("voc21", "val", "VOC"),
    "context-val": ("context60", "val", "Context"),
    "coco-object-val": (_COCO, "val2017", "COCO-Object"),
}
"""Short names of where a figure is of: data set, split, column of `published.TABLES`."""


def _diffseg() -> Iterator[Recipe]:
    for dataset, split, tau, acc, miou in (
        ("coco_stuff27", "val2017", 1.1, 72.5, 43.6),
        ("cityscapes27", "val", 0.9, 76.0, 21.2),
    ):
        yield Recipe(
            name=f"diffseg-{dataset.replace('_', '-')}",
            task="evaluate",
            method="diffseg",
            settings={"tau": tau},
            model="sd1.4",
            dataset=dataset,
            split=split,
            expected={"acc": acc, "miou": miou},
            tolerance=0.5,
            paper="iSeg",
            table="Table 3 (unsupervised)",
            average="union_present",
            oracles=("image-hungarian",),
        )
    for place, miou in (("voc-val", 39.4), ("context-val", 16.7), ("coco-object-val", 19.1)):
        dataset, split, _ = _PLACES[place]
        yield Recipe(
            name=f"semantic-diffseg-{place}",
            task="evaluate",
            method="semantic-diffseg",
            settings={},
            model="sd1.4",
            dataset=dataset,
            split=split,
            expected={"miou": miou},
            tolerance=None,
            paper="DiffSegmenter",
            table="open vocabulary",
            given="vocabulary",
            average="all_eps",
            differs="DiffSegmenter's authors named DiffSeg's segments in a way they do not tell",
        )


def _diffsegmenter() -> Iterator[Recipe]:
    swept = {"threshold": tuple(round(0.30 + 0.01 * i, 2) for i in range(45))}

    def recipe(
        name: str, place: str, miou: float, table: str, settings: Mapping[str, object]
    ) -> Recipe:
        dataset, split, _ = _PLACES[place]
        trained_on = place == "voc-train"
        return Recipe(
            name=f"diffsegmenter-{name}",
            task="sweep",
            method="diffsegmenter",
            settings={"background": "threshold", **settings},
            model="sd1.5",
            dataset=dataset,
            split=split,
            expected={"miou": miou},
            tolerance=0.5,
            paper="DiffSegmenter",
            table=table,
            given="classes" if trained_on else "vocabulary",
            average="all_eps",
            names="diffsegmenter" if dataset == "voc21" else None,
            grid=swept,
            oracles=("image-labels", "tuned-on-split") if trained_on else ("tuned-on-split",),
            differs=SWEPT if trained_on else f"{TAGS}; {SWEPT}",
        )

    for place, miou in (("voc-val", 60.1), ("context-val", 27.5), ("coco-object-val", 37.9)):
        yield recipe(place, place, miou, "open vocabulary", {})
    yield recipe("voc-train", "voc-train", 70.5, "Table 2 (pseudo masks)", {})
    for name, table in (
        ("components", "ablation (components)"), ("timesteps", "Table 5 (timesteps)"),
    ):  # fmt: skip
        for number, row in enumerate(TABLES["diffsegmenter"][name].rows):
            end = _slug(row, name, number)
            for place, _, miou in _printed(row, TABLES["diffsegmenter"][name].published):
                yield recipe(f"{place}-{end}", place, miou, table, row.settings)


def _iseg() -> Iterator[Recipe]:
    profiles = {
        "voc-train": "pseudo-mask-voc",
        "coco-train": "pseudo-mask-coco",
        "voc-val": "open-vocabulary-voc",
        "context-val": "open-vocabulary-context",
        "coco-object-val": "open-vocabulary-coco",
    }

    def recipe(
        name: str, place: str, miou: float, table: str, settings: Mapping[str, object]
    ) -> Recipe:
        dataset, split, _ = _PLACES[place]
        train = place.endswith("train")
        return Recipe(
            name=f"iseg-{name}",
            task="evaluate",
            method="iseg",
            settings={"profile": profiles[place], **settings},
            model="sd2.1-base",
            dataset=dataset,
            split=split,
            expected={"miou": miou},
            tolerance=0.5,
            paper="iSeg",
            table=table,
            given="classes" if train else "vocabulary",
            noise_seed=1101,
            oracles=("image-labels",) if train else (),
            differs="" if train else TAGS,
        )

    for place, miou, table in (
        ("voc-val", 68.2, "Table 2 (open vocabulary)"),
        ("context-val", 30.9, "Table 2 (open vocabulary)"),
        ("coco-object-val", 38.4, "Table 2 (open vocabulary)"),
        ("voc-train", 75.2, "Table 1 (pseudo masks)"),
        ("coco-train", 45.5, "Table 1 (pseudo masks)"),
    ):
        yield recipe(place, place, miou, table, {})
    for name, held in TABLES["iseg"].items():
        table = "ablation (components)" if name == "components" else "ablation"
        for number, row in enumerate(held.rows):
            end = _slug(row, name, number)
            for place, _, miou in _printed(row, held.published):
                yield recipe(f"{place}-{end}", place, miou, table, row.settings)
    for dataset, split, tau, figures in (
        ("coco_stuff27", "val2017", 1.1, ({"acc": 74.5, "miou": 45.2}, {"miou": 44.4})),
        ("cityscapes27", "val", 0.9, ({"acc": 78.7, "miou": 25.0}, {"miou": 22.8})),
    ):
        for which, expected in zip(("", "-baseline"), figures, strict=True):
            yield Recipe(
                name=f"iseg-unsupervised-{dataset.replace('_', '-')}{which}",
                task="evaluate",
                method="iseg-unsupervised",
                settings={"tau": tau, **({"ent": 0.0} if which else {})},
                model="sd2.1-base",
                dataset=dataset,
                split=split,
                expected=expected,
                tolerance=None,
                paper="iSeg",
                table="ablation (components)" if which else "Table 3 (unsupervised)",
                average="union_present",
                oracles=("image-hungarian",),
                differs=READING,
            )


def _ovdiff() -> Iterator[Recipe]:
    def recipe(
        name: str,
        dataset: str,
        split: str,
        miou: float,
        table: str,
        settings: Mapping[str, object],
        names: str | None = None,
    ) -> Recipe:
        own = settings.get("proposals") == "none"
        return Recipe(
            name=f"ovdiff-{name}",
            task="evaluate",
            method="ovdiff",
            settings=settings,
            model="sd1.5",
            dataset=dataset,
            split=split,
            expected={"miou": miou},
            tolerance=0.6,
            paper="OVDiff",
            table=table,
            given="vocabulary",
            average="all_zero",
            names=names,
            differs="" if own else CUTLER,
        )

    without = {"proposals": "none", "fallback": "otsu"}
    for place, whole, plain, unlike in (
        ("voc-val", 66.3, 62.8, 66.1),
        ("context-val", 29.7, 28.6, 29.5),
        ("coco-object-val", 34.6, 34.9, 34.9),
    ):
        dataset, split, _ = _PLACES[place]
        names = "ovdiff" if dataset == "voc21" else None
        yield recipe(place, dataset, split, whole, "Table 1", {}, names)
        yield recipe(f"{place}-no-proposals", dataset, split, plain, "Table 1", without, names)
        table = "Table A.4 (prompt correction)"
        yield recipe(f"{place}-names-as-they-are", dataset, split, unlike, table, {})
    yield recipe(
        "voc-val-no-filter", "voc21", "val", 56.2, "Table A.2 (category filter)",
        {"prefilter": "none"}, "ovdiff",
    )  # fmt: skip
    yield recipe(
        "voc-val-filter", "voc21", "val", 66.4, "Table A.2 (category filter)", {}, "ovdiff"
    )
    for dataset, split, miou in (
        ("voc20", "val", 80.9),
        ("context59", "val", 32.9),
        ("ade150", "validation", 14.1),
        ("coco_stuff171", "val2017", 20.3),
        ("cityscapes19", "val", 23.4),
    ):
        table, settings = "Table A.8 (no background)", {"background": "none"}
        names = "ovdiff" if dataset in ("voc20", "ade150") else None
        name = dataset.replace("_", "-")
        yield recipe(name, dataset, split, miou, table, settings, names)
    tables = {
        "components": "Table A.1",
        "parts": "Table A.5 (K)",
        "kinds": "Table A.7",
        "extractors": "Table 2",
        "layers": "Table A.6",
    }
    for name, table in tables.items():
        held = TABLES["ovdiff"][name]
        for number, row in enumerate(held.rows):
            end = _slug(row, name, number)
            for place, (dataset, split, _), miou in _printed(row, held.published):
                settings = {"extractors": ("sd",), **row.settings}
                names = "ovdiff" if dataset == "voc21" else None
                yield recipe(f"{place}-{end}", dataset, split, miou, table, settings, names)


def _vidseg() -> Iterator[Recipe]:
    def recipe(
        name: str,
        dataset: str,
        split: str,
        expected: Mapping[str, float],
        table: str,
        *,
        method: str = "vidseg",
        model: str = "sd2.1",
        settings: Mapping[str, object] | None = None,
        limit: int | None = None,
        differs: str = "",
        tolerance: float | None = 1.0,
    ) -> Recipe:
        return Recipe(
            name=name,
            task="video",
            method=method,
            settings=settings or {},
            model=model,
            dataset=dataset,
            split=split,
            expected=expected,
            tolerance=tolerance,
            paper="VidSeg",
            table=table,
            given="anchor",
            limit=limit,
            oracles=("first-frame",),
            differs=differs,
        )

    objects = {
        ("davis2016", "val", "Table 3 (DAVIS)"): {
            ("emerdiff", "sd2.1"): (20.3, 23.9, 22.1),
            ("vidseg", "svd"): (67.7, 64.6, 66.1),
            ("vidseg", "sd2.1"): (70.5, 69.3, 69.9),
        },
        ("davis2017", "val", "Table 3 (DAVIS)"): {
            ("emerdiff", "sd2.1"): (15.9, 21.3, 18.6),
            ("vidseg", "svd"): (40.9, 40.4, 40.7),
            ("vidseg", "sd2.1"): (57.6, 62.6, 60.1),
        },
        ("clvos23", "all", "Table 4 (CLVOS)"): {
            ("emerdiff", "sd2.1"): (0.7, 0.9, 0.8),
            ("vidseg", "svd"): (22.1, 24.3, 23.2),
            ("vidseg", "sd2.1"): (46.8, 46.5, 46.7),
        },
    }
    for (dataset, split, table), rows in objects.items():
        for (method, model), (j, f, both) in rows.items():
            name = f"{method}-{dataset}" + ("-svd" if model == "svd" else "")
            expected = {"j": j, "f": f, "j_and_f": both}
            yield recipe(name, dataset, split, expected, table, method=method, model=model)
    vspw = {
        "crf": "Table 5 (CRF)",
        "classifier": "Table 6 (classifier)",
        "modulated block": "Table 7 (modulation block)",
    }
    for name, table in vspw.items():
        held = video_published.TABLES[name]
        for row in held.rows:
            method = "emerdiff" if row.cells[0].startswith("EmerDiff") else "vidseg"
            printed = {
                figure: value
                for figure, value in zip(held.published, row.published, strict=True)
                if value is not None
            }
            # EmerDiff's blocks there are those of the miniature's grids; the paper's are its own.
            changes = {"crf": True} if row.cells[0].endswith("CRF") else {}
            yield recipe(
                f"{method}-vspw-{_word(name)}-{_word(row.cells[0])}",
                "vspw124",
                "val",
                printed,
                table,
                method=method,
                settings=changes if method == "emerdiff" else row.settings,
                limit=30,
            )
    for row in video_published.TABLES["batch"].rows:
        [miou] = row.published
        yield recipe(
            f"vidseg-cityscapes-batch-{row.settings['batch']}",
            "cityscapes19",
            "val",
            {} if miou is None else {"miou": miou},
            "Section K (text)",
            settings={**row.settings, "clusters": 30},
            tolerance=None,
            differs="the paper takes a subset of the clips and does not say which",
        )


def _printed(
    row: Row, columns: tuple[str, ...]
) -> Iterator[tuple[str, tuple[str, str, str], float]]:
    """Where a row's figures are of, and the figures."""
    for column, value in zip(columns, row.published, strict=True):
        if value is not None:
            place = next(name for name, one in _PLACES.items() if one[2] == column)
            yield place, _PLACES[place], value


def _slug(row: Row, table: str, number: int) -> str:
    """A name for a row: its table and what its cell says, or its place where that says nothing."""
    word = _word(row.cells[0]) if len(row.cells) == 1 else ""
    return f"{_word(table)}-{word or number + 1}"


def _word(text: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-.")
