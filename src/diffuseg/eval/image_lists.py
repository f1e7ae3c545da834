"""Which images a data set has: its folders, its lists of names, pictures and masks in pairs."""

import os
from collections.abc import Sequence
from pathlib import Path

from diffuseg.errors import InputError
from diffuseg.eval.image_files import ImageFiles
from diffuseg.eval.video_files import find_pictures, missing, need_file, need_folder, read_lines
from diffuseg.image import SUFFIXES

PathLike = str | os.PathLike[str]


def first_folder(root: Path, names: Sequence[str], what: str, layout: str) -> Path:
    """Return the first of some folders that exists.

    Raises:
        InputError: None does.
    """
    for name in names:
        if (root / name).is_dir():
            return root / name
    need_folder(root, what, layout)
    others = f", nor {', '.join(names[1:])}" if len(names) > 1 else ""
    raise missing(
        f"{what} as published ({layout})", f"no folder {root / names[0]}{others}", "check the path"
    )


def inside(root: Path, nested: Sequence[str], markers: Sequence[str]) -> Path:
    """Return the folder a release lies in: the root, or one below it that has all the markers."""
    for name in ("", *nested):
        if all((root / name / one).exists() for one in markers):
            return root / name
    return root


def by_stem(folder: Path) -> dict[str, Path]:
    """Return the pictures of a folder by their names without suffix, in natural order.

    Raises:
        InputError: Two have the same.
    """
    found: dict[str, Path] = {}
    for path in find_pictures(folder):
        if path.stem in found:
            raise InputError(
                "every picture of a folder must have a name of its own",
                got=f"{found[path.stem].name} and {path.name} in {folder}",
                remedy="remove one of them",
            )
        found[path.stem] = path
    return found


def paired_files(
    pictures: Path, masks: Path, stems: Sequence[str] | None = None
) -> list[ImageFiles]:
    """Files of two folders by their stems: all that either has, or those listed."""
    seen, held = by_stem(pictures), by_stem(masks)
    chosen = stems if stems is not None else [*seen, *(one for one in held if one not in seen)]
    return [
        ImageFiles(
            id=one,
            picture=seen.get(one, pictures / f"{one}.jpg"),
            mask=held.get(one, masks / f"{one}.png"),
        )
        for one in chosen
    ]


def listed_names(folder: Path, name: str) -> list[str]:
    """The names of a list, in its order; a line may be a path, or paths of picture and mask."""
    found: list[str] = []
    for line in read_lines(need_file(folder, name)):
        last = line.split()[0].rpartition("/")[2]
        stem, dot, suffix = last.rpartition(".")
        found.append(stem if dot and f".{suffix.lower()}" in SUFFIXES else last)
    return found


def first_items(items: list, limit: int | None) -> list:
    if limit is not None and (isinstance(limit, bool) or limit < 1):
        raise InputError("the number of images must be at least 1", got=limit, remedy="use 1")
    return items[:limit]


_SYNONYMS = {"airplane": "aeroplane", "plant": "pottedplant", "monitor": "tvmonitor"}


def values_by_name(
    path: Path, classes: Sequence[str], others: int | None = None
) -> tuple[list[int], dict[int, int]]:
    """Labels of the values that a file names, one a line, in order or as "NUMBER: NAME"."""
    rows: dict[int, str] = {}
    for i, line in enumerate(read_lines(path)):
        number, colon, name = line.rpartition(":")
        rows[int(number) if colon and number.strip().isdigit() else i] = name.strip()
    labels: dict[int, int] = {}
    for value, name in rows.items():
        known = _SYNONYMS.get(name, name)
        if known in classes:
            labels[value] = classes.index(known)
        elif others is not None:
            labels[value] = others
    lacking = [name for i, name in enumerate(classes) if i and i not in labels.values()]
    unknown = [name for value, name in rows.items() if value not in labels]
    if lacking or unknown:
        raise missing(
            f"a list of names that has all {len(classes)} classes",
            f"{path} without {', '.join(lacking[:3])}"
            if lacking
            else f"{path} with {', '.join(unknown[:3])}",
            "use the list the masks were made with",
        )
    return [0], {0: 0} | labels
