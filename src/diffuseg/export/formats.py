"""Files other tools open, and back: indexed PNG, one mask a class, npz, COCO, polygons.

`save` and `load` go by the suffix. Every file is written whole or not at all. Labels, names and
provenance survive each of the four formats; scores and uncertainty are kept in `.npz` only.
"""

import json
import os
import re
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import PIL.Image
from jaxtyping import Int

from diffuseg.errors import InputError, MissingExtra
from diffuseg.export.polygons import fill_polygons, trace_polygons
from diffuseg.export.rle import decode_rle, encode_rle
from diffuseg.files import atomic_path
from diffuseg.palettes import UNDECIDED, name_palette
from diffuseg.provenance import Provenance
from diffuseg.result import Segmentation

if TYPE_CHECKING:
    import supervision  # pyright: ignore[reportMissingImports]

# The largest pixel value means "undecided", as in PASCAL VOC.
_UNDECIDED_8, _UNDECIDED_16 = 255, 65535


def save(seg: Segmentation, path: str | os.PathLike[str]) -> Path:
    """Write a segmentation in the format of the suffix: .png, .npz, .json (COCO) or .geojson.

    Returns:
        The path. Beside a PNG lies its sidecar, see `sidecar_path`.

    Raises:
        InputError: The suffix is none of these, or the folder cannot be written to.

    Example:
        >>> import tempfile
        >>> seg = Segmentation(labels=np.array([[0, 1]]), names=("car", "tree"))
        >>> load(save(seg, tempfile.mkdtemp() + "/street.png")) == seg
        True
    """
    path = Path(path)
    match path.suffix.lower():
        case ".png":
            _save_png(seg, path)
        case ".npz":
            _save_npz(seg, path)
        case ".json":
            _write_json(path, to_coco(seg))
        case ".geojson":
            _write_json(path, to_geojson(seg))
        case _:
            raise _unknown_suffix(path)
    return path


def load(path: str | os.PathLike[str]) -> Segmentation:
    """Read what `save` wrote.

    Raises:
        InputError: The file, or the sidecar of a PNG, is missing, damaged or of another kind.
    """
    path = Path(path)
    readers = {
        ".png": _load_png,
        ".npz": _load_npz,
        ".json": _load_coco,
        ".geojson": _load_geojson,
    }
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise _unknown_suffix(path)
    if not path.is_file():
        raise InputError("the file must exist", got=f"no file at {path}", remedy="check the path")
    try:
        return reader(path)
    except InputError:
        raise
    # A damaged file can fail anywhere in the readers of three libraries.
    except Exception as error:
        raise InputError(
            "the file must be a complete segmentation saved by diffuseg",
            got=f"{path}: {type(error).__name__}: {error}",
            remedy="save the segmentation again",
        ) from error


def sidecar_path(path: str | os.PathLike[str]) -> Path:
    """Return where the names and the provenance of an indexed PNG are kept.

    Example:
        >>> sidecar_path("out/street.png").name
        'street.names.json'
    """
    return Path(path).with_suffix(".names.json")


def save_masks(seg: Segmentation, folder: str | os.PathLike[str]) -> tuple[Path, ...]:
    """Write one black and white PNG for every name, also the absent ones; return the paths.

    Files are called after the classes; what a file name cannot hold becomes an underscore.

    Raises:
        InputError: The folder cannot be made or written to.

    Example:
        >>> import tempfile
        >>> seg = Segmentation(labels=np.array([[0, 1]]), names=("car", "tree/bush"))
        >>> [path.name for path in save_masks(seg, tempfile.mkdtemp())]
        ['car.png', 'tree_bush.png']
    """
    paths: list[Path] = []
    with ExitStack() as stack:
        for index, name in enumerate(seg.names):
            stem = re.sub(r"[^\w .-]+", "_", name).strip(" .")[:80] or "class"
            # File systems that ignore case would let "Car" overwrite "car".
            taken = {path.name.lower() for path in paths}
            if f"{stem}.png".lower() in taken:
                stem = f"{stem}_{index}"
            path = Path(folder) / f"{stem}.png"
            temporary = stack.enter_context(atomic_path(path))
            PIL.Image.fromarray(seg[name]).save(temporary)
            paths.append(path)
    return tuple(paths)


def to_coco(seg: Segmentation) -> dict[str, object]:
    """Return the segmentation as a COCO object: one image, one run-length mask a class present.

    Category ids are the index of the name plus one, since COCO tools take 0 for the background.

    Example:
        >>> seg = Segmentation(labels=np.array([[0, 1]]), names=("car", "tree"))
        >>> [category["name"] for category in to_coco(seg)["categories"]]
        ['car', 'tree']
    """
    height, width = seg.hw
    annotations: list[dict[str, object]] = []
    for region in seg:
        y0, x0, y1, x1 = region.bbox
        annotation: dict[str, object] = {
            "id": len(annotations) + 1,
            "image_id": 1,
            "category_id": seg.names.index(region.name) + 1,
            "segmentation": encode_rle(region.mask),
            "area": region.area,
            "bbox": [x0, y0, x1 - x0, y1 - y0],
            "iscrowd": 0,
        }
        if region.score is not None:
            annotation["score"] = region.score
        annotations.append(annotation)
    return {
        "info": {"description": "made by diffuseg", "diffuseg": _header(seg)},
        "images": [{"id": 1, "file_name": seg.provenance.image, "height": height, "width": width}],
        "categories": [
            {"id": index + 1, "name": name, "supercategory": ""}
            for index, name in enumerate(seg.names)
        ],
        "annotations": annotations,
    }


def to_geojson(seg: Segmentation) -> dict[str, object]:
    """Return the segmentation as a GeoJSON feature collection, one multi-polygon a class present.

    Coordinates are pixels, `[x, y]`, the origin at the top left corner of the image, y downwards.
    The outlines follow the pixel edges and so lose nothing.

    Example:
        >>> seg = Segmentation(labels=np.array([[0, 0]]), names=("sky",))
        >>> to_geojson(seg)["features"][0]["geometry"]["coordinates"]
        [[[[0, 0], [2, 0], [2, 1], [0, 1], [0, 0]]]]
    """
    features: list[dict[str, object]] = []
    for region in seg:
        red, green, blue = name_palette([region.name])[0]
        polygons = trace_polygons(region.mask)
        features.append(
            {
                "type": "Feature",
                "properties": {
                    "name": region.name,
                    "color": f"#{red:02x}{green:02x}{blue:02x}",
                    "area": region.area,
                    "score": region.score,
                },
                "geometry": {
                    "type": "MultiPolygon",
                    "coordinates": [[ring.tolist() for ring in rings] for rings in polygons],
                },
            }
        )
    return {"type": "FeatureCollection", "features": features, "diffuseg": _header(seg)}


def to_supervision(seg: Segmentation) -> "supervision.Detections":
    """Return the regions as `supervision.Detections`, one a class present.

    Raises:
        MissingExtra: The package `supervision` is not installed.
    """
    try:
        import supervision  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise MissingExtra(
            "supervision", extra="supervision", purpose="to_supervision()"
        ) from error
    regions = list(seg)
    masks = np.array([region.mask for region in regions], dtype=bool).reshape(-1, *seg.hw)
    names = [region.name for region in regions]
    scores = [region.score for region in regions]
    return supervision.Detections(
        xyxy=supervision.mask_to_xyxy(masks).astype(float),
        mask=masks,
        class_id=np.array([seg.names.index(name) for name in names], dtype=int),
        confidence=None if seg.scores is None else np.array(scores, dtype=float),
        data={"class_name": np.array(names)},
    )


def _save_png(seg: Segmentation, path: Path) -> None:
    undecided = seg.labels == seg.ignore
    if len(seg.names) <= _UNDECIDED_8:
        undecided_pixel = _UNDECIDED_8
        palette = np.zeros((256, 3), dtype=np.uint8)
        palette[: len(seg.names)] = name_palette(seg.names)
        palette[_UNDECIDED_8] = UNDECIDED
        pixels = np.where(undecided, _UNDECIDED_8, seg.labels).astype(np.uint8)
        picture = PIL.Image.fromarray(pixels)
        picture.putpalette(palette.tobytes())
    else:
        undecided_pixel = _UNDECIDED_16
        pixels = np.where(undecided, _UNDECIDED_16, seg.labels).astype(np.uint16)
        picture = PIL.Image.fromarray(pixels)
    colors = {name: name_palette([name])[0].tolist() for name in seg.names}
    header = {**_header(seg), "undecided_pixel": undecided_pixel, "colors": colors}
    # The picture is moved into place last: a PNG that is there has its names.
    with atomic_path(path) as temporary:
        picture.save(temporary)
        _write_json(sidecar_path(path), header, indent=1)


def _save_npz(seg: Segmentation, path: Path) -> None:
    arrays = {
        "labels": seg.labels,
        "names": np.array(seg.names),
        "header": np.array(json.dumps(_header(seg))),
    }
    if seg.scores is not None:
        arrays["scores"] = seg.scores
    if seg.uncertainty is not None:
        arrays["uncertainty"] = seg.uncertainty
    with atomic_path(path) as temporary:
        np.savez_compressed(temporary, **arrays)  # type: ignore[arg-type]


def _load_png(path: Path) -> Segmentation:
    sidecar = sidecar_path(path)
    if not sidecar.is_file():
        raise InputError(
            "the names of an indexed PNG must lie beside it",
            got=f"no file {sidecar}",
            remedy="copy it along with the PNG, or save as .npz, which is one file",
        )
    header = _read_json(sidecar)
    with PIL.Image.open(path) as picture:
        if picture.mode not in ("P", "L", "I;16", "I"):
            raise InputError(
                "the PNG must hold one class index a pixel",
                got=f"{path}: a picture of mode {picture.mode}",
                remedy="load the indexed PNG, not an overlay",
            )
        pixels = np.asarray(picture).astype(np.int32)
    labels = np.where(pixels == header["undecided_pixel"], header["ignore"], pixels)
    return _restored(header, labels)


def _load_npz(path: Path) -> Segmentation:
    # NumPy leaves a file it opened itself open when the archive is damaged.
    with path.open("rb") as stream, np.load(stream, allow_pickle=False) as held:
        maps = {name: held[name] for name in ("scores", "uncertainty") if name in held.files}
        return _restored(json.loads(str(held["header"])), held["labels"], **maps)


def _load_coco(path: Path) -> Segmentation:
    held = _read_json(path)
    header = held["info"]["diffuseg"]
    labels = _undecided_map(header)
    for annotation in held["annotations"]:
        labels[decode_rle(annotation["segmentation"])] = annotation["category_id"] - 1
    return _restored(header, labels)


def _load_geojson(path: Path) -> Segmentation:
    held = _read_json(path)
    header = held["diffuseg"]
    labels = _undecided_map(header)
    for feature in held["features"]:
        mask = fill_polygons(feature["geometry"]["coordinates"], (len(labels), len(labels[0])))
        labels[mask] = header["names"].index(feature["properties"]["name"])
    return _restored(header, labels)


def _header(seg: Segmentation) -> dict[str, object]:
    return {
        "names": list(seg.names),
        "hw": list(seg.hw),
        "ignore": seg.ignore,
        "provenance": seg.provenance.to_dict(),
    }


def _undecided_map(header: dict) -> Int[np.ndarray, "h w"]:
    height, width = header["hw"]
    return np.full((height, width), header["ignore"], dtype=np.int32)


def _restored(header: dict, labels: Int[np.ndarray, "h w"], **maps: np.ndarray) -> Segmentation:
    if list(labels.shape) != header["hw"]:
        raise InputError(
            "labels and header of a saved segmentation must belong together",
            got=f"labels of {list(labels.shape)}, a header for {header['hw']}",
            remedy="save the segmentation again; keep a PNG with its own sidecar",
        )
    return Segmentation(
        labels=labels,
        names=tuple(header["names"]),
        ignore=header["ignore"],
        provenance=Provenance.from_dict(header["provenance"]),
        **maps,
    )


def _write_json(path: Path, held: Mapping[str, object], indent: int | None = None) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(held, indent=indent), encoding="utf-8")


def _read_json(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def _unknown_suffix(path: Path) -> InputError:
    return InputError(
        "a segmentation is saved as .png, .npz, .json (COCO) or .geojson",
        got=f"{path.name!r}",
        remedy="use one of those suffixes; seg.overlay(image).save(...) writes a picture",
    )
