"""The stages that train the miniature's companions, each ending in a folder of its own."""

import shutil
from collections.abc import Callable
from pathlib import Path

import torch

from diffuseg.train.captioned import load_captioned
from diffuseg.train.captioner import export_captioner, train_captioner
from diffuseg.train.clip import export_clip, load_clip_average, train_clip
from diffuseg.train.data import load_pictures
from diffuseg.train.log import TrainLog
from diffuseg.train.priming import train_priming
from diffuseg.train.recipe import MiniRecipe
from diffuseg.train.vit import export_vit, train_vit
from diffuseg.train.work import Meter, require_stage

COMPANIONS = ("clip", "captioner", "vit")
"""The stages, and the folders they write in the work folder and in the bundle."""


def train_companion(
    name: str, recipe: MiniRecipe, work: Path, *, device: torch.device, log: TrainLog, meter: Meter
) -> None:
    """Train (or go on with) one of `COMPANIONS` and write it to `work / name`."""
    train = {"clip": _train_clip, "captioner": _train_captioner, "vit": _train_vit}[name]
    export = train(recipe, work, device=device, log=log, meter=meter)
    folder = work / f"{name}.partial"
    shutil.rmtree(folder, ignore_errors=True)
    export(folder)
    shutil.rmtree(work / name, ignore_errors=True)
    folder.rename(work / name)


def _train_clip(
    recipe: MiniRecipe, work: Path, *, device: torch.device, log: TrainLog, meter: Meter
) -> Callable[[Path], None]:
    windows = load_pictures(work / "pictures", "windows")
    with meter("priming the image tower of CLIP") as progress:
        primer = train_priming(recipe, windows, work, device=device, log=log, progress=progress)
    del windows
    pictures = load_captioned(work / "pictures", recipe.crop_size)
    with meter("training CLIP") as progress:
        train_clip(recipe, pictures, work, device=device, log=log, progress=progress, primer=primer)
    return lambda folder: export_clip(recipe, work, folder)


def _train_captioner(
    recipe: MiniRecipe, work: Path, *, device: torch.device, log: TrainLog, meter: Meter
) -> Callable[[Path], None]:
    require_stage(work / "clip.safetensors", "clip")
    clip = load_clip_average(recipe, work)
    pictures = load_captioned(work / "pictures", recipe.crop_size)
    scenes = load_captioned(work / "pictures", recipe.crop_size, kinds=("scenes",))
    with meter("training the captioner") as progress:
        train_captioner(
            recipe,
            pictures,
            work,
            device=device,
            log=log,
            progress=progress,
            clip=clip,
            scenes=scenes,
        )
    return lambda folder: export_captioner(recipe, work, folder)


def _train_vit(
    recipe: MiniRecipe, work: Path, *, device: torch.device, log: TrainLog, meter: Meter
) -> Callable[[Path], None]:
    images = load_pictures(work / "pictures", "scenes").images
    with meter("training the ViT") as progress:
        vit = train_vit(recipe, images, work, device=device, log=log, progress=progress)
    return lambda folder: export_vit(vit, folder)
