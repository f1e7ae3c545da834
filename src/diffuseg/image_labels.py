"""Which classes are in which image: from PASCAL VOC annotations, JSON, CSV, or a dict.

Images are known by the end of their path without the suffix, so that labels made where the images
lay in another folder still fit.
"""

import csv
import json
import os
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from diffuseg.errors import InputError
from diffuseg.image import SUFFIXES

_HEADS = frozenset({"image", "images", "file", "filename", "file_name", "name", "path", "id"})
_LISTS = ("labels", "names", "classes")


@dataclass(frozen=True, slots=True)
class ImageLabels:
    """The class names of images.

    Attributes:
        by_image: Names in the order they were given, by the image's path without suffix.
        source: The file or folder they come from, for messages.

    Example:
        >>> labels = ImageLabels({"train/a": ("car", "sky"), "b": ()})
        >>> labels.of("photos/train/a.jpg"), labels.of("c.png"), labels.names
        (('car', 'sky'), None, ('car', 'sky'))
    """

    by_image: Mapping[str, tuple[str, ...]]
    source: str = "the labels given"
    _by_stem: dict[str, list[str]] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        for key in self.by_image:
            self._by_stem.setdefault(PurePosixPath(key).name, []).append(key)

    def __len__(self) -> int:
        return len(self.by_image)

    @property
    def names(self) -> tuple[str, ...]:
        """Every name that occurs, sorted."""
        return tuple(sorted({name for names in self.by_image.values() for name in names}))

    def key_of(self, image: str | os.PathLike[str]) -> str | None:
        """Return under which key an image's labels are, or None if there are none.

        Raises:
            InputError: Several images of its name are labelled, and its path does not say which.
        """
        path = image_key(image)
        keys = self._by_stem.get(PurePosixPath(path).name, [])
        if len(keys) < 2:
            return keys[0] if keys else None
        common = [_common_end(path, key) for key in keys]
        best = [key for key, n in zip(keys, common, strict=True) if n == max(common)]
        if len(best) > 1:
            raise InputError(
                "labels must say which image they belong to",
                got=f"{path}: could be {' or '.join(best)} in {self.source}",
                remedy="give the images with their folder, or labels with longer paths",
            )
        return best[0]

    def of(self, image: str | os.PathLike[str]) -> tuple[str, ...] | None:
        """Return the names of an image by its path or file name, or None if it has no labels.

        Raises:
            InputError: As `key_of`.
        """
        key = self.key_of(image)
        return None if key is None else self.by_image[key]


def read_image_labels(source: object) -> ImageLabels:
    """Read which classes are in which image.

    Args:
        source: A folder with VOC annotations (`*.xml`; also the folder above `Annotations`), a
            `.json` file {image: [names]}, a `.csv` file whose rows are an image and its names
            (several cells, or one with ";" between them; rows of one image add up), or a dict as
            the JSON file.

    Raises:
        InputError: There is no such file, or it is not what its suffix says.

    Example:
        >>> read_image_labels({"a.jpg": ["car", "sky", "car"]}).by_image
        {'a': ('car', 'sky')}
    """
    if isinstance(source, ImageLabels):
        return source
    if isinstance(source, Mapping):
        return ImageLabels(_from_mapping(source, "the labels given"))
    if not isinstance(source, str | os.PathLike):
        raise InputError(
            "labels of images must be a file, a folder or a dict",
            got=type(source).__name__,
            remedy='pass {"a.jpg": ["car", "tree"]}, labels.json, labels.csv or Annotations',
        )
    path = Path(source)
    if path.is_dir():
        return ImageLabels(_from_xml(path), str(path))
    if not path.is_file():
        raise InputError(
            "the file or folder of labels must exist", got=str(path), remedy="check the path"
        )
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix.lower() == ".csv":
            return ImageLabels(_from_csv(text, path), str(path))
        if path.suffix.lower() == ".json":
            return ImageLabels(_from_mapping(json.loads(text), str(path)), str(path))
    except InputError:
        raise
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(
            "the file of labels must be whole and of the kind its suffix says",
            got=f"{path}: {error}",
            remedy='JSON is {"a.jpg": ["car", "tree"]}; a row of CSV is a.jpg,car,tree',
        ) from error
    raise InputError(
        "labels of images are read from .json, .csv or a folder of .xml files",
        got=str(path),
        remedy="rename or convert the file",
    )


def image_key(image: str | os.PathLike[str]) -> str:
    """Return a path as labels are kept under: with forward slashes, without a picture's suffix.

    Example:
        >>> image_key("a\\\\b.JPG"), image_key("./2007_000032"), image_key("v1.2")
        ('a/b', '2007_000032', 'v1.2')
    """
    path = PurePosixPath(re.sub(r"[\\/]+", "/", os.fspath(image)))
    return str(path.with_suffix("") if path.suffix.lower() in SUFFIXES else path)


def _common_end(one: str, other: str) -> int:
    parts = zip(reversed(PurePosixPath(one).parts), reversed(PurePosixPath(other).parts),
                strict=False)  # fmt: skip
    count = 0
    for mine, theirs in parts:
        if mine != theirs:
            break
        count += 1
    return count


def _from_mapping(held: object, source: str) -> dict[str, tuple[str, ...]]:
    if not isinstance(held, Mapping):
        raise _not_labels(f"{source}: {type(held).__name__}")
    found: dict[str, tuple[str, ...]] = {}
    for image, names in held.items():
        if isinstance(names, Mapping):
            names = next((names[one] for one in _LISTS if one in names), names)
        listed = names.split(",") if isinstance(names, str) else names
        if isinstance(listed, Mapping | bytes) or not isinstance(listed, Iterable):
            raise _not_labels(f"{source}: {image}: {names!r}")
        listed = list(listed)
        if not isinstance(image, str) or not all(isinstance(one, str) for one in listed):
            raise _not_labels(f"{source}: {image}: {names!r}")
        _add(found, image, listed)
    return found


def _from_csv(text: str, path: Path) -> dict[str, tuple[str, ...]]:
    try:
        separators = csv.Sniffer().sniff(text[:2000], delimiters=",\t").delimiter
    except csv.Error:
        separators = ","
    found: dict[str, tuple[str, ...]] = {}
    for number, row in enumerate(csv.reader(text.splitlines(), delimiter=separators)):
        cells = [cell.strip() for cell in row]
        if not any(cells) or (number == 0 and cells[0].lower() in _HEADS):
            continue
        if not cells[0]:
            raise _not_labels(f"{path}, line {number + 1}: no image")
        _add(found, cells[0], [name for cell in cells[1:] for name in cell.split(";")])
    return found


def _from_xml(folder: Path) -> dict[str, tuple[str, ...]]:
    inner = folder / "Annotations"
    folder = inner if inner.is_dir() else folder
    files = sorted(folder.rglob("*.xml"))
    if not files:
        raise InputError(
            "a folder of labels must hold VOC annotations",
            got=f"no .xml file in {folder}",
            remedy="name the folder Annotations, or a .json or .csv file",
        )
    found: dict[str, tuple[str, ...]] = {}
    for file in files:
        try:
            root = ElementTree.parse(file).getroot()
        except (OSError, ElementTree.ParseError) as error:
            raise InputError(
                "an annotation must be a whole XML file", got=f"{file}: {error}",
                remedy="copy it again, or take it out of the folder",
            ) from error  # fmt: skip
        names = [one.findtext("name", "").strip() for one in root.iter("object")]
        if not all(names):
            raise InputError(
                "every object of an annotation must have a name",
                got=str(file),
                remedy="add <name>…</name>, or take the object out",
            )
        # VOC calls an image after its annotation; its <filename> is not always kept up.
        _add(found, file.relative_to(folder).with_suffix("").as_posix(), names)
    return found


def _add(found: dict[str, tuple[str, ...]], image: str, names: Iterable[str]) -> None:
    clean = [" ".join(name.split()) for name in names]
    key = image_key(image)
    found[key] = tuple(dict.fromkeys((*found.get(key, ()), *(name for name in clean if name))))


def _not_labels(got: str) -> InputError:
    return InputError(
        "labels must be the names of the classes of every image",
        got=got,
        remedy='JSON is {"a.jpg": ["car", "tree"]}; a row of CSV is a.jpg,car,tree',
    )
