"""The VidSeg paper's ablations on videos, as data: the settings of every row and what was printed.

Figures are per cent on photographs with Stable Diffusion 2.1; only their order can be compared with
another data set's.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from diffuseg.eval.published import Row, Table
from diffuseg.eval.report import table_lines
from diffuseg.methods.vidseg.settings import ABLATIONS

FIGURES: Mapping[str, str] = {"miou": "mIoU", "mvc8": "mVC8", "mvc16": "mVC16"}
"""What the tables print, by the name it has in a report."""

SHOWN: Mapping[str, str] = {**FIGURES, "j": "J", "f": "F"}
"""What is measured."""

AS_PUBLISHED: Mapping[str, object] = {
    "feature_blocks": (6, 7, 8),
    "join": "mean",
    "naming": "anchor",
    "track_block": 7,
    "modulate": True,
    "modulate_step": 22,
    "guidance": 5.0,
    "shares": False,
    "edges": 0,
}
"""The settings from which rows differ, whatever a model's preset says; of Stable Diffusion."""

EMERDIFF_BLOCKS: Mapping[str, object] = {"feature_blocks": (6,), "modulate_block": 8}
"""EmerDiff's first and third layer where an image of half its size has as many cells."""

UNMODULATED = ("classifier", "batch", "clusters")
"""Tables about coarse labels alone: their rows are measured without modulation."""


def base_settings(table: str) -> dict[str, object]:
    """Return what holds in all rows of a table that do not change it.

    Example:
        >>> base_settings("batch")["modulate"], base_settings("crf")["modulate"]
        (False, True)
    """
    return {**AS_PUBLISHED, "modulate": table not in UNMODULATED}


def _table(
    name: str,
    title: str,
    figures: Mapping[str, Sequence[float]] | None = None,
    *,
    of: Sequence[str] = ("miou", "mvc8", "mvc16"),
    note: str = "",
) -> Table:
    known = figures or {}
    return Table(
        title=title,
        columns=("row",),
        published=tuple(of) if known else (),
        rows=tuple(
            Row(
                cells=(row,),
                settings={**settings, **(EMERDIFF_BLOCKS if row.startswith("EmerDiff") else {})},
                published=tuple(known.get(row, ())),
            )
            for row, settings in ABLATIONS[name].items()
        ),
        note=note,
    )


_VSPW = "the first 30 videos of VSPW val"

TABLES: Mapping[str, Table] = {
    "crf": _table(
        "crf",
        "EmerDiff, with a CRF, and VidSeg",
        {
            "EmerDiff": (31.0, 68.8, 64.0),
            "EmerDiff + CRF": (31.8, 75.5, 71.0),
            "VidSeg": (47.2, 89.4, 87.9),
        },
        note=f"Table 5, {_VSPW}.",
    ),
    "classifier": _table(
        "classifier",
        "What carries labels on",
        {
            "AdaBoost": (34.1, 82.4, 79.2),
            "random forest": (47.9, 90.5, 89.0),
            "MLP": (47.1, 89.1, 87.6),
            "KNN": (46.5, 89.8, 88.4),
        },
        note=f"Table 6, {_VSPW}. Of time it says: MLP and KNN 240 times as fast as AdaBoost, the "
        "random forest 148 times.",
    ),
    "modulated block": _table(
        "modulated block",
        "Where attention is pushed and pulled",
        {
            "block 3": (45.6, 89.4, 88.2),
            "block 4": (47.0, 88.4, 86.9),
            "block 5": (47.0, 87.1, 85.5),
            "block 6": (45.1, 82.3, 79.9),
            "block 7": (47.2, 90.1, 88.7),
            "block 8": (44.5, 83.7, 81.3),
            "block 9": (46.2, 90.2, 88.9),
            "block 10": (43.7, 91.1, 89.8),
            "block 11": (47.7, 87.3, 85.6),
        },
        note=f"Table 7, {_VSPW}.",
    ),
    "batch": _table(
        "batch",
        "Frames taken together",
        {"5 frames": (32.9,), "10 frames": (34.9,), "14 frames": (34.4,), "20 frames": (31.8,)},
        of=("miou",),
        note="A subset of Cityscapes.",
    ),
    "clusters": _table(
        "clusters",
        "Clusters of the anchor's batch",
        note="In the paper a figure without numbers: from 5 to 20 small objects are found; what 20 "
        "to 30 part is mostly merged again by its name.",
    ),
    "parts": _table("parts", "One part left out", note="Ours; the paper has no such table."),
}
"""By the name `ablate` of `diffuseg.methods.vidseg.settings` knows them by."""


def same_order(mine: Sequence[float], published: Sequence[float]) -> tuple[int, int]:
    """Return how many pairs are in the published order, and how many pairs there are.

    Pairs that are equal on either side count as not in order, unless they are on both.

    Example:
        >>> same_order([0.5, 0.7, 0.6], [31.0, 32.0, 47.0])
        (2, 3)
    """
    held = list(combinations(zip(mine, published, strict=True), 2))
    same = [_sign(a[0] - b[0]) == _sign(a[1] - b[1]) for a, b in held]
    return sum(same), len(held)


def _sign(value: float) -> int:
    return (value > 0) - (value < 0)


def compared(name: str, measured: Mapping[str, Any]) -> str:
    """Return a table measured on clips beside the printed figures, and what their order says.

    Args:
        name: One of `TABLES`.
        measured: The table's part of what `scripts/video_tables.py` writes: `clips`, `frames` and
            `rows`, with `metrics` and `seconds_per_frame`; {}: not measured at all. A row that is
            missing reads "not run".
    """
    table, rows = TABLES[name], measured.get("rows", {})
    cells = [(*row.cells, *_measured(rows.get(row.cells[0])), *_printed(row)) for row in table.rows]
    head = ("row", *SHOWN.values(), "s a frame", *(f"paper: {FIGURES[k]}" for k in table.published))
    words = [
        *(_order(table, rows, place) for place in range(len(table.published))),
        _clips(measured),
        table.note,
    ]
    return "\n".join([*table_lines(head, cells), "", " ".join(one for one in words if one)])


def _measured(row: Mapping[str, Any] | None) -> tuple[str, ...]:
    if row is None:
        return ("not run", *[""] * len(SHOWN))
    values = (row["metrics"][name] for name in SHOWN)
    shown = ("-" if one is None else f"{100 * one:.1f}" for one in values)
    return (*shown, f"{row['seconds_per_frame']:.1f}")


def _printed(row: Row) -> tuple[str, ...]:
    return tuple("" if one is None else f"{one:.1f}" for one in row.published)


def _order(table: Table, rows: Mapping[str, Any], place: int) -> str:
    """How the order of the rows that were run compares with the printed one, of one figure."""
    figure = table.published[place]
    held: list[tuple[str, float, float]] = []
    for row in table.rows:
        [label] = row.cells
        value = rows[label]["metrics"][figure] if label in rows else None
        printed = row.published[place]
        if value is not None and printed is not None:
            held.append((label, value, printed))
    if len(held) < 2:
        return ""
    same, pairs = same_order([one[1] for one in held], [one[2] for one in held])
    best, theirs = (max(held, key=lambda one, i=i: one[i])[0] for i in (1, 2))
    noun = "pair" if pairs == 1 else "pairs"
    return (
        f"{FIGURES[figure]}: {same} of {pairs} {noun} of rows in the paper's order; best here "
        f"{best}, in the paper {theirs}."
    )


def _clips(measured: Mapping[str, Any]) -> str:
    if not measured:
        return ""
    count = measured["clips"]
    noun = "clip" if count == 1 else "clips"
    return f"Measured on {count} {noun} of {measured['frames']} frames."
