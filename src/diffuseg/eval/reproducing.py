"""A recipe checked, or run: does this library come to the printed number?"""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffuseg.backbones.catalog import KNOWN
from diffuseg.errors import InputError
from diffuseg.eval.dataset_facts import find_facts
from diffuseg.eval.datasets import open_dataset
from diffuseg.eval.metrics import AVERAGES
from diffuseg.eval.protocols import ORACLES, PROTOCOLS, VIDEO_PROTOCOLS, oracle_line
from diffuseg.eval.published_rows import FIGURES, PublishedRow, published_rows
from diffuseg.eval.recipe import Recipe
from diffuseg.eval.recipes import find_recipe
from diffuseg.eval.report import table_lines
from diffuseg.eval.video_datasets import open_video_dataset
from diffuseg.files import atomic_path
from diffuseg.methods import METHODS, find_method, with_settings
from diffuseg.methods.vidseg import VidSeg
from diffuseg.video.methods import VIDEO_METHODS


@dataclass(frozen=True, slots=True, kw_only=True)
class Reproduction:
    """What a recipe came to.

    Attributes:
        recipe: What was run.
        model: What it was run with; another than the recipe's reproduces nothing.
        measured: Per cent, by name of the figure.
        limit: How many images were scored, if not all.
    """

    recipe: Recipe
    model: str
    measured: Mapping[str, float]
    limit: int | None = None

    @property
    def verdict(self) -> str:
        """Whether the printed figures were met, in a word or two."""
        if self.model != self.recipe.model:
            return "not comparable: another model"
        if self.limit is not None and self.limit != self.recipe.limit:
            return "not comparable: not all images"
        if self.recipe.tolerance is None:
            return "nothing is claimed"
        off = [abs(self.measured[k] - v) for k, v in self.recipe.expected.items()]
        return "reproduced" if max(off) <= self.recipe.tolerance + 1e-9 else "off"

    def to_json(self) -> str:
        """Return the outcome as JSON text."""
        held = {
            "recipe": self.recipe.name,
            "model": self.model,
            "limit": self.limit,
            "expected": self.recipe.expected,
            "measured": self.measured,
            "tolerance": self.recipe.tolerance,
            "verdict": self.verdict,
            "differs": self.recipe.differs,
        }
        return json.dumps(held, indent=2) + "\n"

    def to_markdown(self) -> str:
        """Return the outcome as a page to read."""
        shown = {ours: theirs for theirs, ours in FIGURES.items()}
        rows = [
            (shown[k], f"{v:g}", f"{self.measured[k]:.1f}", f"{self.measured[k] - v:+.1f}")
            for k, v in self.recipe.expected.items()
        ]
        return "\n".join(
            [
                f"# {self.recipe.name}: {self.verdict}",
                "",
                *table_lines(("figure", "printed", "here", "difference"), rows),
                "",
                *recipe_lines(self.recipe),
                "",
            ]
        )


def recipe_lines(recipe: Recipe) -> list[str]:
    """Return what a recipe is, as lines of a page.

    Example:
        >>> recipe_lines(find_recipe("diffseg-cityscapes27"))[1]
        '- Method: diffseg, tau=0.9; model sd1.4.'
    """
    sources = sorted({one.source for one in printed_rows(recipe)})
    settings = "".join(f", {k}={v!r}" for k, v in recipe.settings.items())
    swept = "".join(f", {k} from {v[0]} to {v[-1]}" for k, v in (recipe.grid or {}).items())
    claim = "none claimed" if recipe.tolerance is None else f"{recipe.tolerance:g} points"
    part = f", the first {recipe.limit}" if recipe.limit else ""
    return [
        f"- Printed: {'; '.join(sources)}. Tolerance: {claim}.",
        f"- Method: {recipe.method}{settings}{swept}; model {recipe.model}.",
        f"- Data: {recipe.dataset}, {recipe.split}{part}; given: {recipe.given or 'as needed'}; "
        f"averaging rule `{recipe.average}`.",
        f"- {oracle_line(recipe.oracles)}",
        *([f"- Differs: {recipe.differs}."] if recipe.differs else []),
    ]


def printed_rows(recipe: Recipe) -> tuple[PublishedRow, ...]:
    """Return the rows of the papers a recipe is of."""
    return tuple(
        row
        for row in published_rows(recipe.dataset, recipe.split)
        if (row.paper, row.table) == (recipe.paper, recipe.table)
        and recipe.expected.get(FIGURES.get(row.metric, "")) == row.value
    )


def check_recipe(recipe: Recipe, *, root: str | os.PathLike[str] | None = None) -> None:
    """Make sure of everything but the weights: settings, model, data set, split, figures, rows.

    Args:
        recipe: What is to be run.
        root: Folder of the data set; if it is given, the data set is opened.

    Raises:
        InputError: Something is not right.

    Example:
        >>> check_recipe(find_recipe("iseg-voc-val"))
    """
    if recipe.model not in KNOWN:
        raise InputError("the model must be known", got=recipe.model, remedy="see diffuseg models")
    make_method(recipe)
    for name, values in (recipe.grid or {}).items():
        for value in values:
            with_settings(find_method(recipe.method), {name: value})
    facts = find_facts(recipe.dataset, recipe.kind)
    if recipe.split not in facts.splits and recipe.split != "train2014":
        raise InputError(
            f"{facts.name} has the splits {', '.join(facts.splits)}",
            got=recipe.split,
            remedy="name one of these",
        )
    told = VIDEO_PROTOCOLS if recipe.kind == "videos" else {given for _, given in PROTOCOLS}
    for what, got, known in (
        ("figure", tuple(recipe.expected), FIGURES.values()),
        ("rule of averaging", (recipe.average,), AVERAGES),
        ("oracle", recipe.oracles, ORACLES),
        ("thing that is given", (recipe.given,), (None, *told)),
    ):
        if unknown := [one for one in got if one not in known]:
            raise InputError(f"a {what} must be known", got=unknown, remedy="use one that is")
    found = {FIGURES[row.metric] for row in printed_rows(recipe)}
    if not recipe.expected or found != set(recipe.expected):
        raise InputError(
            "the numbers of a recipe must be printed where it says",
            got=f"{dict(recipe.expected)}, of which {sorted(found)} are in {recipe.table}",
            remedy="correct the recipe",
        )
    if root is not None:
        open_data(recipe, root)


def make_method(recipe: Recipe) -> Any:
    """Return the method of a recipe with its settings.

    Raises:
        InputError: The method has no such setting, or it cannot have that value.
    """
    if recipe.kind == "videos":
        if recipe.method not in VIDEO_METHODS:
            raise InputError(
                f"methods of videos are {', '.join(VIDEO_METHODS)}",
                got=recipe.method,
                remedy="use one of these",
            )
        chosen = with_settings(VidSeg(), recipe.settings)
        chosen.ready("svd" if KNOWN[recipe.model].video else "sd", VIDEO_METHODS[recipe.method])
        return chosen
    if recipe.method not in METHODS:
        raise InputError(
            f"methods are {', '.join(METHODS)}", got=recipe.method, remedy="use one of these"
        )
    return with_settings(find_method(recipe.method), recipe.settings)


def open_data(recipe: Recipe, root: str | os.PathLike[str]) -> Any:
    """Return the data set of a recipe.

    Raises:
        InputError: Its folder lacks something.
    """
    if recipe.kind == "videos":
        return open_video_dataset(recipe.dataset, root, split=recipe.split)
    return open_dataset(recipe.dataset, root=root, split=recipe.split, names=recipe.names)


def reproduce(
    name: str,
    *,
    root: str | os.PathLike[str],
    model: str | None = None,
    loaded: object = None,
    labels: str | os.PathLike[str] | None = None,
    limit: int | None = None,
    report: str | os.PathLike[str] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Reproduction:
    """Run a recipe, and say whether it came to the printed number.

    Args:
        name: Of the recipe.
        root: Folder of its data set.
        model: Another model than the recipe's, to try it out.
        loaded: The model, where it is in memory already; `model` says which it is.
        labels: A file that says which classes each image shows, in place of CLIP's filter.
        limit: Only the first so many images.
        report: A folder for the report, the state of the run and `reproduction.json` and `.md`.
        progress: Called with (done, all).

    Raises:
        InputError: No such recipe, or its folder lacks something.
        WeightsError: The model's weights are not to be had.

    Example:
        >>> reproduce("iseg-voc-val", root="VOCdevkit").verdict  # doctest: +SKIP
        'reproduced'
    """
    recipe = find_recipe(name)
    check_recipe(recipe)
    data, method = open_data(recipe, root), make_method(recipe)
    chosen = recipe.model if model is None else model
    common: dict[str, Any] = {
        "model": chosen if loaded is None else loaded,
        "limit": recipe.limit if limit is None else limit,
        "report": report,
        "progress": progress,
    }
    if recipe.task == "video":
        from diffuseg.eval.video_runner import evaluate_video

        figures = evaluate_video(data, method=recipe.method, settings=method, **common).metrics
    else:
        common |= {"given": recipe.given, "average": recipe.average}
        common |= {"noise_seed": recipe.noise_seed}
        common |= {"class_filter": "clip" if labels is None else str(labels)}
        if recipe.task == "sweep":
            from diffuseg.eval.sweep import sweep

            grid = {name: list(values) for name, values in (recipe.grid or {}).items()}
            figures = sweep(data, grid, method=method, **common).best
        else:
            from diffuseg.eval.runner import evaluate

            figures = evaluate(data, method=method, **common).metrics
    found = Reproduction(
        recipe=recipe,
        model=chosen,
        measured={one: 100 * float(figures[one]) for one in recipe.expected},
        limit=limit,
    )
    if report is not None:
        for end, text in (("json", found.to_json()), ("md", found.to_markdown())):
            with atomic_path(Path(report) / f"reproduction.{end}") as temporary:
                temporary.write_text(text, encoding="utf-8")
    return found
