"""What a sweep found: its table, its best settings, its curves."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffuseg.eval.curves import draw_abreast, draw_curves
from diffuseg.eval.grid import shown
from diffuseg.eval.report import weights_line
from diffuseg.files import atomic_path

_MOST_ROWS = 60  # of the table to read; sweep.json has all
_MOST_LINES = 8  # of a plot


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """What a sweep found.

    Attributes:
        dataset: Name of the data set; with `split` and `seed`.
        n_images: Pictures scored, the same for every setting.
        method: Name of the method.
        model: Name, source and checksum.
        fixed: The fields that do not vary and were set, or come from the model's preset.
        fields: The fields that vary.
        by: The figure by which settings are compared.
        protocol: In words, what the method was told and how its segments got names.
        geometry: What of a picture is shown and scored, where the data set says so; with
            `label_source` and `note`, whose labels they are and what has to be known beside them.
        one_by_one: Whether each field varied alone; a row then has only the one that did.
        rows: One a setting: `settings`, figures by name, and `seconds` an image without the model.
        left_out: Combinations the model cannot do: `settings` and `reason`.
        versions: Of everything that computes.
    """

    dataset: str
    split: str
    seed: int | None
    n_images: int
    method: str
    model: Mapping[str, object]
    fixed: Mapping[str, object]
    fields: tuple[str, ...]
    by: str
    protocol: str = ""
    geometry: str = ""
    label_source: str = ""
    note: str = ""
    one_by_one: bool = False
    rows: tuple[Mapping[str, Any], ...]
    left_out: tuple[Mapping[str, Any], ...] = ()
    versions: Mapping[str, str]

    @property
    def ranked(self) -> list[Mapping[str, Any]]:
        """The rows, the best first; the earlier one on ties."""
        return sorted(self.rows, key=lambda row: -_order(row[self.by]))

    @property
    def best(self) -> Mapping[str, Any]:
        """The best row."""
        return self.ranked[0]

    @property
    def preset(self) -> dict[str, dict[str, object]]:
        """The best settings as `preset` in a model's `diffuseg.json` has them."""
        settings = {**self.fixed, **self.best["settings"]}
        return {self.method: {name: one for name, one in settings.items() if one is not None}}

    def to_json(self) -> str:
        """Return everything as JSON text."""
        names = [name for name in self.__dataclass_fields__ if name != "rows"]
        held = {name: getattr(self, name) for name in names}
        held |= {"best": self.best, "preset": self.preset, "rows": self.rows}
        return json.dumps(held, indent=2) + "\n"

    def to_markdown(self) -> str:
        """Return a table to read, the best setting first."""
        seed = "" if self.seed is None else f", stream {self.seed}"
        usual = ("miou", "miou_things", "miou_stuff", "miou_strict", "acc")
        figures = [name for name in usual if name in self.best]
        figures += [] if self.by in figures else [self.by]
        counted = [name for name in ("segments", "seconds") if name in self.best]
        lines = [
            f"# {self.method} with {self.model.get('name')} on {self.dataset}, {self.split}{seed}: "
            f"{len(self.rows)} settings, {self.n_images} images",
            "",
            f"Best by {self.by}: {_line(self.best['settings'])}: {_percent(self.best[self.by])}.",
            "",
            f"| {' | '.join((*self.fields, *figures, *counted))} |",
            f"|{'---|' * (len(self.fields) + len(figures) + len(counted))}",
        ]
        for row in (self.rows if self.one_by_one else self.ranked)[:_MOST_ROWS]:
            set_ = row["settings"]
            cells = [_cell(set_[name]) if name in set_ else "" for name in self.fields]
            cells += [_percent(row[one]) for one in figures]
            cells += [_plain_figure(row[one]) for one in counted]
            lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
        if len(self.rows) > _MOST_ROWS:
            lines.append(f"- {len(self.rows) - _MOST_ROWS} more are in sweep.json.")
        if self.left_out:
            lines.append(f"- {len(self.left_out)} combinations do not fit the model.")
        fixed = _line(self.fixed) or "the method's own"
        lines += [
            f"- Other settings: {fixed}.",
            *([f"- Protocol: {self.protocol}."] if self.protocol else []),
            *data_lines(self),
            "- The best setting was chosen on the images its figure is of (oracle "
            "`tuned-on-split`): score it on another split before you quote it.",
            "- Seconds are of the method, without the model.",
            f"- Model: {weights_line(self.model)}.",
            "- Versions: " + ", ".join(f"{k} {v}" for k, v in self.versions.items()) + ".",
            "",
        ]
        return "\n".join(lines)


def data_facts(data: object) -> dict[str, Any]:
    """Return what a data set says of itself, as fields of `Sweep`; "" for one that is drawn."""
    return {one: getattr(data, one, "") for one in ("geometry", "label_source", "note")}


def data_lines(found: Sweep) -> list[str]:
    """Return the same in Markdown, what there is to say."""
    labels = found.label_source and f"labels: {found.label_source}"
    said = [one for one in (found.geometry, labels, found.note) if one]
    return [f"- Data: {'; '.join(said)}."] if said else []


def write_sweep(found: Sweep, folder: Path) -> list[Path]:
    """Write `sweep.json`, `sweep.md` and a curve of every numeric field that varies."""
    written = []
    for name, text in (("sweep.json", found.to_json()), ("sweep.md", found.to_markdown())):
        with atomic_path(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
        written.append(folder / name)
    for name in found.fields:
        lines = curves(found, name)
        if lines:
            plots = [draw_curves(lines, x_label=name, y_label="per cent")]
            if counted := curves(found, name, counts=True):
                plots.append(draw_curves(counted, x_label=name, y_label="segments an image"))
            with atomic_path(folder / f"{name}.png") as temporary:
                draw_abreast(plots).save(temporary)
            written.append(folder / f"{name}.png")
    return written


def curves(
    found: Sweep, name: str, *, counts: bool = False
) -> dict[str, list[tuple[float, float]]]:
    """Return the lines of a plot over a numeric field; none if it has no two numbers.

    One that varies alone gives a line for each figure. Beside others, there is a line for each of
    their combinations, the best ones only if there are many.

    Args:
        found: The sweep.
        name: The field.
        counts: Whether it is the number of segments that is plotted, where they have no names.
    """
    rows = [row for row in found.ranked if name in row["settings"]]
    values = [row["settings"][name] for row in rows]
    if not all(type(one) in (int, float) for one in values) or len(set(values)) < 2:
        return {}
    lines: dict[str, list[tuple[float, float]]] = {}
    alone = len(found.fields) == 1 or found.one_by_one
    unnamed = "segments" in found.best
    shares = ["acc", "miou"] + (["miou_strict"] if unnamed else ["miou_things", "miou_stuff"])
    figures = ["segments"] if counts else shares if alone else [found.by]
    for row in rows:
        others = {k: v for k, v in row["settings"].items() if k != name}
        for figure in figures:
            label = figure if alone else _short(_line(others))
            if row.get(figure) is None or (label not in lines and len(lines) >= _MOST_LINES):
                continue
            y = row[figure] if counts else 100 * row[figure]
            lines.setdefault(label, []).append((float(row["settings"][name]), y))
    return {label: sorted(points) for label, points in lines.items()}


def _order(value: float | None) -> float:
    return float("-inf") if value is None else value


def _line(settings: Mapping[str, object]) -> str:
    return ", ".join(f"{name}={shown(value)}" for name, value in settings.items())


def _short(text: str) -> str:
    """Layer names as short as a legend needs them: "down 1.0" for the first of down block 1."""
    tail = r"(?:\.transformer_blocks\.\d+\.attn[12])?"
    return re.sub(rf"(down|up)_blocks\.(\d+)\.attentions\.(\d+){tail}", r"\1 \2.\3", text)


def _cell(value: object) -> str:
    return shown(value).replace("|", "\\|")


def _plain_figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"
