"""The papers' ablation tables, measured on any data set beside what was published."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from diffuseg.errors import InputError
from diffuseg.eval.building import sweep_banks
from diffuseg.eval.curves import draw_curves
from diffuseg.eval.datasets import Dataset
from diffuseg.eval.grid import shown
from diffuseg.eval.published import TABLES, Row, Table
from diffuseg.eval.report import weights_line
from diffuseg.eval.sweep import sweep
from diffuseg.eval.sweep_report import Sweep, data_lines
from diffuseg.files import atomic_path
from diffuseg.methods import OVDiff, find_method, method_name


@dataclass(frozen=True, slots=True, kw_only=True)
class Ablation:
    """What the settings of a paper's tables reach.

    Attributes:
        tables: By name.
        sweep: The figures of every setting, each measured once.
    """

    tables: Mapping[str, Table]
    sweep: Sweep

    def figures(self, row: Row) -> Mapping[str, Any] | None:
        """Return the figures of a row, or None if the model cannot do its settings."""
        wanted = _plain(row.settings)
        return next((one for one in self.sweep.rows if one["settings"] == wanted), None)

    def best(self, table: Table) -> tuple[Row | None, Row | None]:
        """Return the best row here, and the best one published by the first data set."""
        scored = [(self.figures(row), row) for row in table.rows]
        known = [(one[self.sweep.by], row) for one, row in scored if one is not None]
        known = [pair for pair in known if pair[0] is not None]
        told = [(row.published[0], row) for row in table.rows if row.published]
        told = [pair for pair in told if pair[0] is not None]
        here, there = (max(some, key=lambda pair: pair[0], default=None) for some in (known, told))
        return here and here[1], there and there[1]

    def to_json(self) -> str:
        """Return everything as JSON text."""
        tables = {
            name: {
                "title": table.title,
                "columns": table.columns,
                "published": table.published,
                "note": table.note,
                "text": self.table_text(table),
                "rows": [
                    {
                        "cells": row.cells,
                        "settings": _plain(row.settings),
                        "published": row.published,
                        "figures": self._plain_figures(row),
                    }
                    for row in table.rows
                ],
            }
            for name, table in self.tables.items()
        }
        held = json.loads(self.sweep.to_json())
        for name in ("best", "preset", "rows", "fields", "one_by_one"):
            held.pop(name)
        return json.dumps({**held, "tables": tables}, indent=2, ensure_ascii=False) + "\n"

    def to_markdown(self) -> str:
        """Return the tables to read."""
        found = self.sweep
        seed = "" if found.seed is None else f", stream {found.seed}"
        lines = [
            f"# Ablations of {found.method} with {found.model.get('name')} on {found.dataset}, "
            f"{found.split}{seed}: {found.n_images} images",
            "",
        ]
        for name, table in self.tables.items():
            lines += [f"## {table.title} (`{name}`)", "", self.table_text(table), ""]
        fixed = ", ".join(f"{k}={shown(v)}" for k, v in found.fixed.items()) or "the method's own"
        lines += [
            f"- Here: {_label(found.by)}. Published: mIoU on photographs, with real weights.",
            f"- Other settings: {fixed}.",
            f"- Protocol: {found.protocol}.",
            *data_lines(found),
            f"- Model: {weights_line(found.model)}.",
            "- Versions: " + ", ".join(f"{k} {v}" for k, v in found.versions.items()) + ".",
            "",
        ]
        return "\n".join(lines)

    def table_text(self, table: Table) -> str:
        """Return one table in Markdown, with what is best and what has to be known."""
        others = [name for name in ("acc", "segments") if name in self.sweep.best]
        head = (*table.columns, _label(self.sweep.by), *map(_label, others),
                *(f"paper: {one}" for one in table.published))  # fmt: skip
        lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
        missing = []
        for row in table.rows:
            figures = self.figures(row)
            if figures is None:
                missing.append(", ".join(row.cells))
            cells = [*row.cells, *(_shown(figures, name) for name in (self.sweep.by, *others))]
            cells += ["" if one is None else f"{one:g}" for one in row.published]
            lines.append(f"| {' | '.join(cells)} |")
        here, there = self.best(table)
        notes = []
        if here is not None:
            told = "" if there is None else f" The paper's: {_named(table, there)}."
            notes.append(f"Best: {_named(table, here)}.{told}")
        if table.note:
            notes.append(table.note)
        if missing:
            notes.append(f"Not possible with this model: {'; '.join(missing)}.")
        return "\n".join([*lines, "", " ".join(notes)])

    def curves(self, table: Table) -> dict[str, list[tuple[float, float]]]:
        """Return the lines of a plot over a table's numbers, none if it has no two."""
        lines: dict[str, list[tuple[float, float]]] = {}
        for number, row in zip(table.numbers, table.rows, strict=False):
            figures = self.figures(row)
            if figures is not None and figures[self.sweep.by] is not None:
                point = (number, 100 * figures[self.sweep.by])
                lines.setdefault(f"{self.sweep.by}, {self.sweep.dataset}", []).append(point)
            for name, value in zip(table.published, row.published, strict=False):
                if value is not None:
                    lines.setdefault(f"paper, {name}", []).append((number, value))
        first = next(iter(lines.values()), [])
        return {k: sorted(v) for k, v in lines.items()} if len(first) > 1 else {}

    def _plain_figures(self, row: Row) -> object:
        figures = self.figures(row)
        return None if figures is None else {k: v for k, v in figures.items() if k != "settings"}


def ablate(
    dataset: str | Dataset = "scenes",
    *,
    method: object = "iseg",
    tables: Sequence[str] | None = None,
    model: object = None,
    report: str | os.PathLike[str] | None = None,
    progress: Callable[[int, int], None] | None = None,
    **options: Any,
) -> Ablation:
    """Measure the tables of a method's paper; an image goes through the model as seldom as it can.

    Args:
        dataset: A name, such as "scenes", or a data set of your own.
        method: A name, or a method object whose settings hold in all rows that do not change them.
        tables: Names of tables, see `TABLES`; None: all of the method.
        model: As for `segment`.
        report: A folder for `ablation.json`, `ablation.md`, a plot of every table over a number,
            and the state of the run: called again with the same settings, it goes on.
        progress: Called with (done, all) after every image.
        options: As for `sweep`: `root`, `geometry`, `names`, `split`, `limit`, `seed`, `size`,
            `use_preset`, `given`, `by`, …; for OVDiff as for `sweep_banks`.

    Raises:
        InputError: The method has no tables, or none of that name; and as `sweep`.
        WeightsError: The model's weights are not to be had.

    Example:
        >>> found = ablate("scenes", method="iseg", tables=["n"], limit=8)  # doctest: +SKIP
        >>> found.best(found.tables["n"])[0].settings  # doctest: +SKIP
        {'iterations': 10}
    """
    chosen = find_method(method)
    known = find_tables(method_name(chosen), tables)
    different: dict[str, Mapping[str, object]] = {}
    for table in known.values():
        for row in table.rows:
            different.setdefault(json.dumps(_plain(row.settings), sort_keys=True), row.settings)
    folder = None if report is None else Path(report)
    with ExitStack() as leaving:
        if isinstance(chosen, OVDiff):
            _check_options(options)
            work = folder or Path(leaving.enter_context(TemporaryDirectory()))
            found = sweep_banks(
                dataset,
                list(different.values()),
                method=chosen,
                model=model,
                report=work,
                progress=progress,
                **options,
            )
        else:
            found = sweep(
                dataset,
                list(different.values()),
                method=chosen,
                model=model,
                report=None if folder is None else folder / "sweep",
                progress=progress,
                **options,
            )
    result = Ablation(tables=known, sweep=found)
    if folder is not None:
        write_ablation(result, folder)
    return result


def find_tables(method: str, names: Sequence[str] | None = None) -> dict[str, Table]:
    """Return the tables of a method's paper.

    Raises:
        InputError: There are none, or not of that name.

    Example:
        >>> list(find_tables("diffsegmenter"))
        ['components', 'timesteps']
    """
    if method not in TABLES:
        raise InputError(
            "tables are known of some papers",
            got=method,
            remedy=f"use one of {', '.join(TABLES)}; diffuseg sweep varies any setting",
        )
    known = TABLES[method]
    for name in names or ():
        if name not in known:
            raise InputError(
                f"the tables of {method} are {', '.join(known)}",
                got=name,
                remedy="use one of these",
            )
    return {name: known[name] for name in names or known}


def write_ablation(found: Ablation, folder: Path) -> list[Path]:
    """Write `ablation.json`, `ablation.md` and a plot of every table over a number."""
    written = []
    for name, text in (
        ("ablation.json", found.to_json()), ("ablation.md", found.to_markdown()),
    ):  # fmt: skip
        with atomic_path(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
        written.append(folder / name)
    for name, table in found.tables.items():
        if lines := found.curves(table):
            with atomic_path(folder / f"{name}.png") as temporary:
                draw_curves(lines, x_label=table.title, y_label="per cent").save(temporary)
            written.append(folder / f"{name}.png")
    return written


def _check_options(options: Mapping[str, object]) -> None:
    known = ("root", "geometry", "names", "split", "limit", "seed", "batch_size", "by")
    unknown = [name for name in options if name not in known]
    if unknown:
        raise InputError(
            "OVDiff is always told the whole vocabulary, and looks at pictures in its own way",
            got=", ".join(f"{name}={options[name]}" for name in unknown),
            remedy=f"leave it out; what can be said is {', '.join(known)}",
        )


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value))


def _named(table: Table, row: Row) -> str:
    if len(row.cells) == 1:
        return row.cells[0]
    on = [name for name, cell in zip(table.columns, row.cells, strict=True) if cell == "✓"]
    return " + ".join(on) or "none of them"


def _label(figure: str) -> str:
    return {"miou": "mIoU", "acc": "ACC"}.get(figure, figure)


def _shown(figures: Mapping[str, Any] | None, name: str) -> str:
    value = None if figures is None else figures[name]
    if value is None:
        return "-"
    return f"{value:.1f}" if name == "segments" else f"{100 * value:.1f}"
