"""How well the miniature reconstructs, attends and draws, on scenes it never saw."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from jaxtyping import Bool, Int

from diffuseg import render
from diffuseg.attention import layers_of
from diffuseg.backbones import Diffusion
from diffuseg.backbones.clip import Clip
from diffuseg.eval.datasets import SceneSet
from diffuseg.eval.mini_language import single_scenes, zero_shot_accuracy
from diffuseg.eval.runner import evaluate
from diffuseg.eval.sweep import sweep
from diffuseg.files import atomic_path
from diffuseg.image import Image, to_tensor
from diffuseg.methods.choosing import LEVEL_WEIGHTS
from diffuseg.world.scenes import Scene, Scenes

SIZES: tuple[tuple[int, int], ...] = (
    (128, 128), (192, 192), (256, 256), (384, 384), (512, 512), (192, 320), (384, 256),
)  # fmt: skip
"""Heights and widths at which the miniature is judged; it was trained at 256 x 256."""

_EDGE = 2  # pixels on either side of a border that belong to it
_SHEET = 24

Progress = Callable[[int, int], None]


def measure_reconstruction(
    model: Diffusion,
    *,
    number: int = 200,
    seed: int = 1,
    hw: tuple[int, int] = (256, 256),
    progress: Progress | None = None,
) -> dict[str, float]:
    """Encode and decode held-out scenes.

    Returns:
        "psnr": mean over scenes of the peak signal-to-noise ratio, decibels. "least": that of the
        worst scene. "edges": the mean over pixels near the border of a thing or region. "scenes".
    """
    whole, edges = [], []
    for _, scene in _first(Scenes("test", seed=seed, hw=hw), number, progress):
        pixels = to_tensor(Image(pixels=scene.image), hw).to(model.device, model.dtype)
        with torch.no_grad():
            drawn = model.decode(model.encode(pixels))
        error = (drawn.float() - pixels.float()).square().mean(dim=1)[0].cpu().numpy()
        whole.append(_decibels(float(error.mean())))
        edges.append(_decibels(float(error[_border(scene)].mean())))
    return {
        "psnr": float(np.mean(whole)),
        "least": float(np.min(whole)),
        "edges": float(np.mean(edges)),
        "scenes": float(number),
    }


def measure_attend(
    model: Diffusion,
    *,
    number: int = 200,
    seed: int = 1,
    report: Path | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Score `attend` with the model's preset, and what completion by self-attention changes.

    Returns:
        "preset", "plain" and "completed" (no product, one product with the finest self-attention,
        all else as in the preset), each with miou, miou_things, miou_stuff, acc. "gain": of the one
        product, in mIoU. "settings": the preset. "paper_plain", "paper_completed", "paper_gain":
        the same with DiffSegmenter's levels and weights, which are coarse.
    """
    preset = dict(model.preset.get("attend", {}))
    usual = int(str(preset.get("refine") or 0))
    times = sorted({0, 1, usual})
    grid: list[dict[str, object]] = [{"refine": count} for count in times]
    there = {one.factor for one in layers_of(model.unet) if one.kind == "cross"}
    paper = {level: weight for level, weight in LEVEL_WEIGHTS.items() if level in there}
    coarse_maps = {"levels": tuple(paper), "weights": tuple(paper.values())}
    grid += [{**coarse_maps, "refine": count} for count in (0, 1)]
    found = sweep(
        "scenes", grid, model=model, limit=number, seed=seed, report=report, progress=progress
    )
    names = ("miou", "miou_things", "miou_stuff", "acc")
    rows = [(row["settings"], {name: row[name] for name in names}) for row in found.rows]
    figures = {one["refine"]: row for one, row in rows if "weights" not in one}
    coarse = {one["refine"]: row for one, row in rows if "weights" in one}
    return {
        "paper_plain": coarse[0],
        "paper_completed": coarse[1],
        "paper_gain": coarse[1]["miou"] - coarse[0]["miou"],
        "preset": figures[usual],
        "plain": figures[0],
        "completed": figures[1],
        "gain": figures[1]["miou"] - figures[0]["miou"],
        "settings": preset,
        "scenes": float(number),
    }


def measure_sizes(
    model: Diffusion,
    *,
    number: int = 20,
    seed: int = 1,
    sizes: Sequence[tuple[int, int]] = SIZES,
    progress: Progress | None = None,
) -> dict[str, dict[str, float]]:
    """Reconstruct and segment pictures of several sizes, square and not.

    Returns:
        For each "HxW": "psnr"; "miou", the picture brought to the area the model was trained at,
        as `segment` does; "own_miou", the model seeing the picture's own area.
    """
    found: dict[str, dict[str, float]] = {}
    for done, hw in enumerate(sizes):
        data = SceneSet(seed=seed, n=number, hw=hw)
        usual = evaluate(data, model=model)
        own = evaluate(data, model=model, size=round((hw[0] * hw[1]) ** 0.5), batch_size=1)
        psnr = measure_reconstruction(model, number=number, seed=seed, hw=hw)["psnr"]
        found[f"{hw[0]}x{hw[1]}"] = {"psnr": psnr, "miou": usual.miou, "own_miou": own.miou}
        if progress is not None:
            progress(done + 1, len(sizes))
    return found


def measure_sampling(
    model: Diffusion,
    clip: Clip,
    folder: Path,
    *,
    number: int = 200,
    seed: int = 1,
    steps: int = 30,
    guidance: float = 7.5,
    batch_size: int = 8,
    progress: Progress | None = None,
) -> dict[str, float]:
    """Draw held-out captions and let the CLIP pair say what it sees.

    Args:
        model: What draws.
        clip: What judges, trained on the same world.
        folder: For the pictures and the sheet of the first ones; pictures there are not drawn
            again.
        number: Of captions, each of a single thing on one or two regions of stuff.
        seed: Of the stream of scenes, and of the noise.
        steps: Of the sampler.
        guidance: Classifier-free guidance.
        batch_size: Pictures at a time.
        progress: Called with (done, all).

    Returns:
        As `zero_shot_accuracy`, with "steps" and "guidance".
    """
    hw = (model.size, model.size)
    scenes = single_scenes(number, split="test", seed=seed, hw=hw)
    paths = [folder / f"{index:04d}.png" for index in range(number)]
    for start in range(0, number, batch_size):
        part = range(start, min(start + batch_size, number))
        if not all(paths[index].is_file() for index in part):
            drawn = model.sample(
                [scenes[index].caption for index in part],
                steps=steps,
                guidance=guidance,
                hw=hw,
                seed=[seed * 1_000_000 + index for index in part],
            )
            pixels = (drawn.permute(0, 2, 3, 1) * 255).round().to(torch.uint8).cpu().numpy()
            for index, one in zip(part, pixels, strict=True):
                with atomic_path(paths[index]) as temporary:
                    PIL.Image.fromarray(one).save(temporary)
        if progress is not None:
            progress(part.stop, number)
    seen = []
    for scene, path in zip(scenes, paths, strict=True):
        with PIL.Image.open(path) as picture:
            seen.append(replace(scene, image=np.asarray(picture.convert("RGB"))))
    titles = [scene.caption for scene in seen[:_SHEET]]
    sheet = render.strip([scene.image for scene in seen[:_SHEET]], titles, columns=6, height=192)
    with atomic_path(folder.parent / "samples.jpg") as temporary:
        sheet.save(temporary, quality=88)
    return zero_shot_accuracy(clip, seen) | {"steps": float(steps), "guidance": float(guidance)}


def _first(stream: Scenes, number: int, progress: Progress | None) -> Iterator[tuple[int, Scene]]:
    for index in range(number):
        yield index, stream[index]
        if progress is not None:
            progress(index + 1, number)


def _decibels(error: float) -> float:
    return float(-10.0 * np.log10(max(error, 1e-10)))


def _objects(scene: Scene) -> Int[np.ndarray, "h w"]:
    """A number for every thing and every region of stuff."""
    things = scene.instances.astype(np.int64)
    return np.where(things > 0, 1000 + things, scene.labels)


def _border(scene: Scene) -> Bool[np.ndarray, "h w"]:
    from scipy.ndimage import maximum_filter, minimum_filter

    side, held = 2 * _EDGE + 1, _objects(scene)
    return maximum_filter(held, side) != minimum_filter(held, side)
