"""Many files: what was named becomes a list of images, each result goes to its place, runs resume.

Folders come out as they went in. A file that cannot be used does not stop the others.
"""

import glob
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from diffuseg import render
from diffuseg.api import Segmenter, check_number
from diffuseg.errors import DiffusegError, InputError
from diffuseg.export import save, save_masks, sidecar_path
from diffuseg.file_runs import Input, Outcome, Work, run_files, settings_key
from diffuseg.files import atomic_path
from diffuseg.image import SUFFIXES as PICTURES
from diffuseg.result import Segmentation

SUFFIXES = {".png": "png", ".npz": "npz", ".json": "coco", ".geojson": "geojson"}
FORMATS = ("png", "npz", "coco", "geojson", "masks")
"""What a result can be written as: indexed PNG with its names, arrays, COCO, polygons, one binary
PNG a class."""


def find_images(named: Sequence[str | os.PathLike[str]], out: Path) -> list[Input]:
    """Return the image files meant by files, folders and patterns, and where results go.

    Folders are searched through, hidden files left out, and their tree is kept; so is that of a
    pattern below its fixed part. Files named one by one lie side by side in the output. Files whose
    results would have one name are told apart by their suffix, then by a number.

    Args:
        named: Files, folders and patterns such as "photos/**/*.jpg". A file that does not exist
            stays in the list, to fail by itself.
        out: The output folder. If it lies inside a folder named, it is left out of the search.

    Raises:
        InputError: A folder or pattern without images, or an output folder that is searched itself.

    Example:
        >>> [one.stem for one in find_images(["a.jpg", "b/a.png"], Path("out"))]
        ['a_jpg', 'a_png']
    """
    found: dict[Path, Path] = {}
    folders = [Path(one) for one in named if Path(one).is_dir()]
    for one in named:
        path = Path(one)
        if path.is_dir():
            inside = Path(path.resolve().name) if len(folders) > 1 else Path()
            for file in _search(path, out):
                found.setdefault(file, inside / file.relative_to(path))
        elif not path.exists() and glob.has_magic(os.fspath(one)):
            base = _fixed_part(path)
            for file in _matching(os.fspath(one)):
                found.setdefault(file, file.relative_to(base))
        else:
            found.setdefault(path, Path(path.name))
    stems = _stems(list(found.values()))
    return [Input(path, stem) for path, stem in zip(found, stems, strict=True)]


def _search(folder: Path, out: Path) -> list[Path]:
    excluded = out.resolve()
    if excluded == folder.resolve():
        raise InputError(
            "the output folder must not be the folder of the images",
            got=str(folder),
            remedy=f"use -o {folder / 'out'}, for example",
        )
    files = [
        file
        for file in sorted(folder.rglob("*"))
        if file.suffix.lower() in PICTURES
        and not any(part.startswith(".") for part in file.relative_to(folder).parts)
        and excluded not in file.resolve().parents
        and file.is_file()
    ]
    if not files:
        raise InputError(
            "the folder must contain images",
            got=f"none in {folder}",
            remedy=f"files are found by their suffix: {', '.join(PICTURES)}",
        )
    return files


def _matching(pattern: str) -> list[Path]:
    files = [Path(one) for one in sorted(glob.glob(pattern, recursive=True))]
    files = [file for file in files if file.is_file()]
    if not files:
        raise InputError(
            "the pattern must match a file", got=pattern, remedy="try it with ls; ** spans folders"
        )
    return files


def _fixed_part(pattern: Path) -> Path:
    parts: list[str] = []
    for part in pattern.parts[:-1]:
        if glob.has_magic(part):
            break
        parts.append(part)
    return Path(*parts)


def _stems(places: Sequence[Path]) -> list[str]:
    # File systems that ignore case would let results of "A.jpg" and "a.jpg" overwrite each other.
    plain = Counter(str(one.with_suffix("")).lower() for one in places)
    taken: Counter[str] = Counter()
    stems: list[str] = []
    for one in places:
        stem = one.with_suffix("").as_posix()
        if plain[str(one.with_suffix("")).lower()] > 1:
            stem += one.suffix.replace(".", "_")
        taken[stem.lower()] += 1
        number = taken[stem.lower()]
        stems.append(stem if number == 1 else f"{stem}-{number}")
    return stems


def segment_files(
    inputs: Sequence[Input],
    out: Path,
    segmenter: Segmenter,
    *,
    formats: Sequence[str] = ("png",),
    overlay: bool = True,
    resume: bool = False,
    batch_size: int = 4,
) -> Iterator[Outcome]:
    """Segment files and write the results, yielding what became of each, in order.

    Args:
        inputs: From `find_images`.
        out: The output folder.
        segmenter: With its classes.
        formats: Some of `FORMATS`.
        overlay: Whether the image with its classes in colour is written too, `NAME.overlay.png`.
        resume: Skip images whose results are there, from the same file with the same settings.
        batch_size: Images that go through the model together.

    Raises:
        InputError: No such format, no classes where the method needs some, or a result would
            overwrite an image.

    Example:
        >>> from diffuseg.api import build_segmenter
        >>> segmenter = build_segmenter("mini", classes="ball, grass")  # doctest: +SKIP
        >>> inputs = find_images(["photos"], Path("out"))  # doctest: +SKIP
        >>> for outcome in segment_files(inputs, Path("out"), segmenter):  # doctest: +SKIP
        ...     print(outcome.path, outcome.outputs, outcome.error)
    """
    check_formats(formats)
    check_number("batch_size", batch_size, least=1)
    segmenter.check()
    sources = {one.path.resolve() for one in inputs}
    for one in inputs:
        for path in _outputs(out / one.stem, formats, overlay):
            if path.resolve() in sources:
                raise InputError(
                    "results must not overwrite images",
                    got=str(path),
                    remedy="choose another output folder",
                )
    work = Work(
        settings=settings_key(segmenter, formats=sorted(formats), overlay=overlay),
        segment=lambda _, images: segmenter.many(images),
        outputs=lambda one: _outputs(out / one.stem, formats, overlay),
        write=lambda seg, one, image: write_result(seg, out / one.stem, formats, image, overlay),
    )
    return run_files(inputs, out, work, resume=resume, batch_size=batch_size)


def check_formats(formats: Sequence[str]) -> None:
    """Make sure all formats are known.

    Raises:
        InputError: One is not.
    """
    for one in formats:
        if one not in FORMATS:
            raise InputError(
                "a format must be a known one",
                got=one,
                remedy=f"use one of {', '.join(FORMATS)}, or all",
            )


def write_result(
    seg: Segmentation,
    stem: Path,
    formats: Sequence[str],
    image: object = None,
    overlay: bool = False,
) -> tuple[Path, ...]:
    """Write a result in several formats, all of them or none.

    Args:
        seg: The result.
        stem: Path of the files without suffix.
        formats: Some of `FORMATS`.
        image: The image, for the overlay.
        overlay: Whether it is written.

    Returns:
        The files, and the folder of the masks.
    """
    outputs = _outputs(stem, formats, overlay)
    written: list[Path] = []
    try:
        for path in outputs:
            if path.suffix == ".masks":
                save_masks(seg, path)
            elif path.name.endswith(".overlay.png"):
                with atomic_path(path) as temporary:
                    render.overlay(image, seg).save(temporary)
            else:
                save(seg, path)
            written.append(path)
    except BaseException as error:
        for path in written:
            with suppress(OSError):
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
                sidecar_path(path).unlink(missing_ok=True)
        if isinstance(error, OSError) and not isinstance(error, DiffusegError):
            raise InputError(
                "the results must be writable",
                got=f"{stem}: {error.strerror or error}",
                remedy="free some space, or choose another output folder",
            ) from error
        raise
    return outputs


def _outputs(stem: Path, formats: Sequence[str], overlay: bool) -> tuple[Path, ...]:
    suffixes = {name: suffix for suffix, name in SUFFIXES.items()} | {"masks": ".masks"}
    endings = [suffixes[one] for one in dict.fromkeys(formats)]
    endings += [".overlay.png"] if overlay else []
    return tuple(stem.with_name(stem.name + ending) for ending in endings)
