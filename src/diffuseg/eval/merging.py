"""Parts of a run that were scored apart, put together to what one run would have written."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from diffuseg.errors import InputError
from diffuseg.eval.assembling import RunFacts, assemble
from diffuseg.eval.report import Report, write_classes, write_report
from diffuseg.eval.runner import STATE
from diffuseg.eval.state import ImageScore, read_scores, write_scores


def merge_runs(
    parts: Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str] | None = None,
    *,
    partial: bool = False,
) -> Report:
    """Return the report of a run whose images were scored in parts.

    Counts are integers, and batches are those of one run: the report equals that of one run, to
    the last bit; seconds and memory aside, which are those of the parts. Where parts ran with
    different versions or on different machines, the report names all.

    Args:
        parts: Folders `evaluate` wrote with `shard=`, in any order.
        output: Folder for `report.json`, `report.md`, `classes.png` and the state of the run.
            `evaluate` called with it and the same settings, without `shard`, scores nothing anew
            and adds pictures.
        partial: Whether images may be missing.

    Raises:
        InputError: There are no parts, one is no run, they are parts of different runs, or images
            are missing.

    Example:
        >>> merge_runs(["part1", "part2"], "whole").n_images  # doctest: +SKIP
        200
    """
    if not parts:
        raise InputError("there must be parts to merge", got="none", remedy="name their folders")
    folders = [Path(one) for one in parts]
    heads, scores = _read(folders)
    held = [RunFacts.from_dict(one["facts"]) for one in heads]
    facts = _joined(folders, heads, held)
    missing = [index for index in range(facts.n_images) if index not in scores]
    if missing and not partial:
        raise InputError(
            "the parts must hold all images of the run",
            got=f"{len(missing)} of {facts.n_images} missing, image {missing[0]} the first",
            remedy="finish all parts, name the ones left out, or allow that some are missing",
        )
    report = assemble(facts, scores, peak_memory_mb=_peak(folders))
    if output is not None:
        folder = Path(output)
        ordered = [scores[index] for index in sorted(scores)]
        write_scores(folder / STATE, heads[0]["settings"], facts.to_dict(), ordered)
        write_report(report, folder)
        write_classes(report, folder)
    return report


def _read(folders: Sequence[Path]) -> tuple[list[Mapping[str, Any]], dict[int, ImageScore]]:
    heads: list[Mapping[str, Any]] = []
    scores: dict[int, ImageScore] = {}
    for folder in folders:
        head, some = read_scores(folder / STATE)
        if "facts" not in head:
            raise InputError(
                f"a part is a folder of evaluate --report, with {STATE}",
                got=str(folder),
                remedy="score it with this version of diffuseg",
            )
        heads.append(head)
        for index, one in some.items():
            if index in scores and scores[index].row != one.row:
                raise InputError(
                    "an image that is in several parts must have the same counts in all",
                    got=f"image {index} of {folder} has others",
                    remedy="leave one of the parts out",
                )
            kept = scores.setdefault(index, one)
            if kept.parameters is None and one.parameters is not None:
                scores[index] = one
    return heads, scores


def _joined(
    folders: Sequence[Path], heads: Sequence[Mapping[str, Any]], held: Sequence[RunFacts]
) -> RunFacts:
    first = held[0]
    for folder, head, one in zip(folders, heads, held, strict=True):
        names = ("dataset", "split", "n_images", "method", "given", "average", "chosen_on")
        unlike = [name for name in (*names, "config") if getattr(one, name) != getattr(first, name)]
        if head["settings"] != heads[0]["settings"] or unlike:
            told = ", ".join(
                f"{name} {getattr(first, name)!r} and {getattr(one, name)!r}" for name in unlike
            )
            raise InputError(
                "parts must be of one run: same data, model, method and settings",
                got=f"{folders[0]} and {folder} differ in {told or 'model, method or settings'}",
                remedy="merge parts of one run only",
            )
    return replace(
        first,
        shard=None,
        versions=_all_of([one.versions for one in held]),
        hardware=_all_of([one.hardware for one in held]),
    )


def _all_of(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the parts say by name; where they differ, all of it."""
    names = dict.fromkeys(name for part in parts for name in part)
    out: dict[str, Any] = {}
    for name in names:
        values = list(dict.fromkeys(part.get(name) for part in parts))
        out[name] = values[0] if len(values) == 1 else " or ".join(map(str, values))
    return out


def _peak(folders: Sequence[Path]) -> dict[str, float]:
    """The greatest memory of any part, of those that were finished."""
    peak: dict[str, float] = {}
    for folder in folders:
        path = folder / "report.json"
        if path.is_file():
            held = json.loads(path.read_text(encoding="utf-8")).get("peak_memory_mb", {})
            for name, value in held.items():
                peak[name] = max(peak.get(name, 0.0), value)
    return peak
