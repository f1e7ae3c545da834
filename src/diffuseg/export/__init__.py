"""Results in the files of other tools: palette PNG, one mask a class, npz, COCO, GeoJSON."""

from diffuseg.export.formats import (
    load,
    save,
    save_masks,
    sidecar_path,
    to_coco,
    to_geojson,
    to_supervision,
)

__all__ = [
    "load",
    "save",
    "save_masks",
    "sidecar_path",
    "to_coco",
    "to_geojson",
    "to_supervision",
]
