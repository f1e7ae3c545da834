"""The papers' ablation tables, as data: which settings make every row, and what was published.

A setting that is not named in a row is the method's own: what the model's preset says, else the
paper's value. Figures are mIoU in per cent on photographs with real weights; only their order can
be compared with another data set's.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from diffuseg.methods.ovdiff.settings import ABLATIONS, SD_LAYERS


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One row of a table.

    Attributes:
        cells: What the paper's table says of it, one text a column.
        settings: Fields of the method.
        published: Its figures, one a data set; None where the paper has none.
    """

    cells: tuple[str, ...]
    settings: Mapping[str, object]
    published: tuple[float | None, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """One table of a paper.

    Attributes:
        title: What is varied.
        columns: Heads of the cells.
        published: What the published figures are of.
        rows: The rows.
        numbers: The number every row stands for, to be plotted over; () for settings that are none.
        note: What has to be known to read it.
    """

    title: str
    columns: tuple[str, ...]
    published: tuple[str, ...] = ()
    rows: tuple[Row, ...]
    numbers: tuple[float, ...] = ()
    note: str = ""


def vary(
    title: str,
    name: str,
    values: Sequence[object],
    published: Mapping[str, Sequence[float | None]] | None = None,
    *,
    cells: Sequence[str] | None = None,
    note: str = "",
    **fixed: object,
) -> Table:
    """Return the table of one field that varies.

    Args:
        title: What the field is.
        name: The field.
        values: Its values.
        published: Figures by data set, one a value.
        cells: How the values are shown; else as they are.
        note: What has to be known to read it.
        fixed: Other fields that go with it.

    Example:
        >>> vary("Refinements", "iterations", [1, 2], {"VOC": [71.0, 72.9]}).rows[1].published
        (72.9,)
    """
    known = published or {}
    shown = [str(value) for value in values] if cells is None else cells
    numbers = [float(value) for value in values if isinstance(value, int | float)]
    return Table(
        title=title,
        columns=(f"`{name}`",),
        published=tuple(known),
        rows=tuple(
            Row(
                cells=(cell,),
                settings={name: value, **fixed},
                published=tuple(figures[number] for figures in known.values()),
            )
            for number, (value, cell) in enumerate(zip(values, shown, strict=True))
        ),
        numbers=tuple(numbers) if len(numbers) == len(values) else (),
        note=note,
    )


_YES, _NO = "✓", "-"
_VOC_TRAIN = "VOC train"


def _iseg_parts(ent_self: bool, cat_cross: bool, *published: float | None) -> Row:
    settings: dict[str, object] = {} if ent_self else {"ent_self": False}
    # The paper's gamma, whatever a model's preset says: else there might be nothing to compare.
    settings |= {"gamma": 1.6 if cat_cross else 1.0}
    cells = tuple(_YES if one else _NO for one in (ent_self, cat_cross))
    return Row(cells=cells, settings=settings, published=published)


_ISEG = {
    "components": Table(
        title="Components",
        columns=("Ent-Self", "Cat-Cross"),
        published=(_VOC_TRAIN, "COCO train", "VOC", "Context", "COCO-Object"),
        rows=(
            _iseg_parts(False, False, 68.2, 40.1, 63.7, 26.4, 36.6),
            _iseg_parts(True, False, 72.0, 42.5, 67.1, 28.2, 37.5),
            _iseg_parts(True, True, 75.2, 45.5, 68.2, 30.9, 38.4),
        ),
        note="Without Ent-Self maps are multiplied once by the self-attention as it is.",
    ),
    "n": vary(
        "Refinements, N",
        "iterations",
        (1, 2, 4, 6, 8, 10, 12),
        {_VOC_TRAIN: (71.0, 72.9, 74.5, 75.0, 75.1, 75.2, 74.9)},
    ),
    "lambda": vary(
        "Entropy reduction, lambda",
        "ent",
        (0.0, 0.001, 0.005, 0.01, 0.05, 0.1),
        {_VOC_TRAIN: (69.1, 74.3, 75.0, 75.2, 74.6, 74.1)},
        log_base="e",
        note="In the paper's natural units. 0 is not Ent-Self off: the self-attention is still "
        "divided by each key's maximum, and the maps are refined N times.",
    ),
    "gamma": vary(
        "Emphasis of class words, gamma",
        "gamma",
        (1.0, 1.2, 1.4, 1.6, 1.8, 2.0),
        {_VOC_TRAIN: (72.0, 73.6, 74.7, 75.2, 75.2, 74.9)},
    ),
    "levels": vary(
        "Resolutions of cross-attention",
        "levels",
        ((4,), (2,), (4, 2)),
        {_VOC_TRAIN: (74.8, 56.9, 75.2)},
        cells=("16 (level 4)", "32 (level 2)", "both"),
        note="Grids are those of an image of 512 pixels.",
    ),
    "layers": vary(
        "Layer of self-attention",
        "self_layers",
        tuple((f"up_blocks.3.attentions.{number}.*",) for number in range(3)),
        {_VOC_TRAIN: (68.5, 71.1, 75.2)},
        cells=("#-3 (up 3.0)", "#-2 (up 3.1)", "#-1 (up 3.2)"),
        note="The paper's best is the last; the authors' code takes the one in the middle.",
    ),
    "timesteps": vary(
        "Noise level, t",
        "timestep",
        (1, 50, 100, 150, 200),
        {_VOC_TRAIN: (73.2, 74.6, 75.2, 74.5, 74.3)},
    ),
}


def _diffsegmenter_parts(
    weights: bool, completed: str, caption: bool, emphasis: bool, published: float
) -> Row:
    flags = (weights, completed == "all", completed == "finest", caption, emphasis)
    settings: dict[str, object] = {} if weights else {"weights": "uniform"}
    return Row(
        cells=tuple(_YES if one else _NO for one in flags),
        settings={
            **settings,
            "self_attention": completed,
            "caption": caption,
            "emphasis": 1.21 if emphasis else 1.0,
        },
        published=(published,),
    )


_DIFFSEGMENTER = {
    "components": Table(
        title="Components",
        columns=("w", "A self, all", "A self", "BLIP", "++"),
        published=(_VOC_TRAIN,),
        rows=(
            _diffsegmenter_parts(False, "none", True, True, 61.25),
            _diffsegmenter_parts(False, "all", True, True, 65.01),
            _diffsegmenter_parts(False, "finest", True, True, 67.89),
            _diffsegmenter_parts(True, "finest", False, False, 65.32),
            _diffsegmenter_parts(True, "finest", True, False, 67.99),
            _diffsegmenter_parts(True, "finest", False, True, 69.46),
            _diffsegmenter_parts(True, "finest", True, True, 70.49),
        ),
        note="w: levels count unequally. BLIP: a captioner continues the prompts. ++: the class "
        "word counts 1.21 times. The paper averages over four noise levels.",
    ),
    "timesteps": vary(
        "Noise levels",
        "timesteps",
        ((1,), (50,), (100,), (150,), (1, 50, 100, 150)),
        {_VOC_TRAIN: (69.10, 69.94, 70.30, 69.69, 70.49)},
        cells=("1", "50", "100", "150", "mean of the four"),
    ),
}

_DIFFSEG = {
    "timesteps": vary("Noise level, t", "timestep", (1, 100, 200, 300, 400, 500)),
    "anchors": vary("Anchors a side, M", "anchors", (4, 8, 16, 32)),
    "rounds": vary("Rounds of merging, N", "rounds", (2, 3, 4, 5, 6, 7)),
    "tau": vary("Threshold, tau", "tau", (0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.2)),
}

_ABLATED: Mapping[str, tuple[float | None, float | None]] = {
    "full": (64.4, 29.4),
    "w/o bg prototypes": (53.2, 28.9),
    "w/o category filter": (54.4, 25.2),
    "w/o stuff filter": (None, 26.9),
    "w/o proposals": (60.4, 27.6),
    "w/o sliding window": (62.2, 28.6),
    "only class average": (62.5, 28.4),
}


def _without(*numbers: int) -> tuple[str, ...]:
    return tuple(one for place, one in enumerate(SD_LAYERS) if place not in numbers)


_OVDIFF = {
    "components": Table(
        title="Components",
        columns=("",),
        published=("VOC", "Context"),
        rows=tuple(
            Row(cells=(name,), settings=ABLATIONS[name], published=figures)
            for name, figures in _ABLATED.items()
        ),
        note="Table A.1. VOC has things only and a background, Context stuff as well.",
    ),
    "number": vary(
        "Pictures of a class, N",
        "number",
        (2, 4, 8, 16, 32),
        note="Figure A.1, without numbers in print: it rises with N and saturates near 32.",
    ),
    "parts": vary(
        "Part prototypes, K",
        "parts",
        (8, 16, 32, 64),
        {"VOC": (63.8, 64.0, 64.4, 64.3), "Context": (29.2, 29.3, 29.4, 28.0)},
    ),
    "kinds": vary(
        "Kinds of prototypes",
        "kinds",
        (
            ("class", "instance", "part"),
            ("class", "part"),
            ("class", "instance"),
            ("instance", "part"),
            ("part",),
            ("instance",),
            ("class",),
        ),
        {
            "VOC": (64.4, 61.7, 63.5, 62.5, 63.7, 60.0, 62.5),
            "Context": (29.4, 29.3, 29.4, 28.4, 28.8, 29.0, 28.4),
        },
        cells=(
            *("all", "class and part", "class and instance", "instance and part"),
            *("part", "instance", "class"),
        ),
    ),
    "extractors": vary(
        "Features",
        "extractors",
        (("mae",), ("dino",), ("clip-tokens",), ("clip",), ("sd",), ("sd", "dino", "clip")),
        {"VOC": (54.9, 59.1, 51.4, 61.8, 64.4, 66.4)},
        cells=("MAE", "DINO", "CLIP token", "CLIP keys", "SD", "SD, DINO and CLIP"),
    ),
    "layers": vary(
        "Layers of SD left out",
        "layers",
        (SD_LAYERS, *(_without(place) for place in range(len(SD_LAYERS)))),
        {"Context": (29.4, 29.4, 29.2, 27.3, 28.9, 29.3)},
        cells=("none", "the first", "the middle", "up 1", "up 2", "the last"),
    ),
}

TABLES: dict[str, dict[str, Table]] = {
    "iseg": _ISEG,
    "diffsegmenter": _DIFFSEGMENTER,
    "diffseg": _DIFFSEG,
    "ovdiff": _OVDIFF,
}
"""By method, then by the name a table is asked for."""
