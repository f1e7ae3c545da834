"""What the miniature's features and self-attention know of classes and objects, untrained."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from diffuseg.api import capture
from diffuseg.attention import layers_of
from diffuseg.backbones import Diffusion
from diffuseg.backbones.vit import VisionTransformer
from diffuseg.eval.probe import (
    Extract,
    attention_rows,
    nearest_prototype_probe,
    pair_divergences,
    vit_extract,
)
from diffuseg.methods import Needs
from diffuseg.world.scenes import Scene, Scenes

TIMESTEPS = (20, 100, 250)
"""Noise levels among which the U-Net's features are chosen."""

_CHOOSE = (40, 20)  # training and val scenes by which a layer is chosen
_BINS = 40

Progress = Callable[[int, int], None]


def measure_sharpness(
    model: Diffusion, *, number: int = 100, seed: int = 1, progress: Progress | None = None
) -> dict[str, Any]:
    """Compare the finest self-attention of two pixels of one object, and of two different ones.

    See `pair_divergences`. The picture is shown with an empty prompt, at the preset's timestep.

    Returns:
        Median divergence "same" and "different", "ratio" of the two, "separated": the chance that
        a pair of two objects diverges more than a pair of one. "histogram": edges of the bins and
        shares of both kinds.
    """
    timestep = int(str(model.preset.get("attend", {}).get("timestep") or 100))
    scenes = _first("test", seed, number, progress)
    found = pair_divergences(attention_rows(model, timestep), scenes, seed=seed)
    least, most = np.quantile(np.concatenate([found.same, found.different]), [0.002, 0.998])
    edges = np.geomspace(max(float(least), 1e-9), max(float(most), 1e-8), _BINS + 1)
    same, different = found.medians
    return {
        "same": same,
        "different": different,
        "ratio": found.ratio,
        "separated": found.separation,
        "timestep": timestep,
        "scenes": float(number),
        "histogram": {
            "edges": edges.tolist(),
            "same": (np.histogram(found.same, edges)[0] / len(found.same)).tolist(),
            "different": (np.histogram(found.different, edges)[0] / len(found.different)).tolist(),
        },
    }


def measure_query_probe(
    model: Diffusion,
    *,
    number: int = 200,
    seed: int = 1,
    choose: tuple[int, int] = _CHOOSE,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Score the queries of one cross-attention layer, as OVDiff reads them, by nearest class means.

    Layer and timestep are chosen on a few scenes of train and val, then the means are taken over
    `number` scenes of train, and as many of test are scored.

    Returns:
        "miou", "miou_things", "layer", "timestep", and what each "choice" had on val.
    """
    layers = [
        one.name for one in layers_of(model.unet) if one.kind == "cross" and one.stage == "up"
    ]
    known = _Recorded(model, layers, TIMESTEPS)
    some = [list(_first(split, seed, n)) for split, n in zip(("train", "val"), choose, strict=True)]
    choices = {
        (layer, timestep): nearest_prototype_probe(known.extract(layer, timestep), *some).miou
        for layer in layers
        for timestep in TIMESTEPS
    }
    layer, timestep = max(choices, key=lambda one: choices[one])
    extract = _Recorded(model, [layer], (timestep,)).extract(layer, timestep)
    found = _probe(extract, number, seed, progress)
    told = {f"{one} at {t}": miou for (one, t), miou in choices.items()}
    return found | {"layer": layer, "timestep": timestep, "choices": told}


def measure_key_probe(
    vit: VisionTransformer,
    *,
    number: int = 200,
    seed: int = 1,
    choose: tuple[int, int] = _CHOOSE,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Score the keys of one layer of a ViT by nearest class means; as `measure_query_probe`."""
    some = [list(_first(split, seed, n)) for split, n in zip(("train", "val"), choose, strict=True)]
    choices = {
        layer: nearest_prototype_probe(vit_extract(vit, layer=layer), *some).miou
        for layer in range(vit.depth)
    }
    layer = max(choices, key=lambda one: choices[one])
    found = _probe(vit_extract(vit, layer=layer), number, seed, progress)
    return found | {"layer": layer, "choices": {str(k): miou for k, miou in choices.items()}}


class _Recorded:
    """The queries of several layers and timesteps: a picture is shown once, not once for each."""

    def __init__(self, model: Diffusion, layers: list[str], timesteps: tuple[int, ...]) -> None:
        self._model = model
        self._needs = Needs(
            timesteps=timesteps, kinds=("cross",), layers=tuple(layers), prompt="empty"
        )
        self._kept: dict[bytes, dict[tuple[str, int], Tensor]] = {}

    def extract(self, layer: str, timestep: int) -> Extract:
        def queries(image: UInt8[np.ndarray, "h w 3"]) -> Float[Tensor, "gh gw d"]:
            key = image.tobytes()
            several = len(self._needs.layers) * len(self._needs.timesteps) > 1
            found = self._kept.get(key) or self._show(image)
            if several:
                self._kept[key] = found
            return found[layer, timestep]

        return queries

    def _show(self, image: UInt8[np.ndarray, "h w 3"]) -> dict[tuple[str, int], Tensor]:
        side = round((image.shape[0] * image.shape[1]) ** 0.5)
        record = capture(image, self._model, self._needs, size=side)
        found: dict[tuple[str, int], Tensor] = {}
        for layer in record.layers:
            for step in self._needs.timesteps:
                q = record.queries(layer, step)[0]  # [h, n, d]
                grid = record.grid(layer)
                found[layer.name, step] = q.transpose(0, 1).flatten(1).unflatten(0, grid)
        return found


def _probe(extract: Extract, number: int, seed: int, progress: Progress | None) -> dict[str, Any]:
    def counted(done: int, total: int, offset: int) -> None:
        if progress is not None:
            progress(offset + done, 2 * total)

    with torch.no_grad():
        found = nearest_prototype_probe(
            extract,
            _first("train", seed, number, lambda done, total: counted(done, total, 0)),
            _first("test", seed, number, lambda done, total: counted(done, total, number)),
        )
    return {"miou": found.miou, "miou_things": found.things_miou, "scenes": float(number)}


def _first(split: str, seed: int, number: int, progress: Progress | None = None) -> Iterator[Scene]:
    scenes = Scenes(split, seed=seed)
    for index in range(number):
        yield scenes[index]
        if progress is not None:
            progress(index + 1, number)
