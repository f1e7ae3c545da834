"""The embedded video miniature from nothing but the image one: render, train, export.

Every stage writes into the work folder and is skipped or resumed when its output is there, so the
same call continues a run that was stopped anywhere.
"""

from pathlib import Path

import torch
from accelerate import Accelerator

import diffuseg.world
from diffuseg.errors import InputError
from diffuseg.train.log import TrainLog
from diffuseg.train.mini import flush_denormals
from diffuseg.train.video_bundle import export_video, load_lent_vae
from diffuseg.train.video_data import load_clips, render_clips
from diffuseg.train.video_denoiser import train_video_unet
from diffuseg.train.video_recipe import VideoRecipe
from diffuseg.train.work import Meter

VIDEO_STAGES = ("render", "unet", "export")
MINI = Path(diffuseg.world.__file__).parent / "mini"
"""The image miniature that is shipped."""


def train_video_mini(
    out: Path,
    work: Path,
    *,
    stage: str = "all",
    recipe: VideoRecipe | None = None,
    image_model: Path = MINI,
    device: str | None = None,
    workers: int = 2,
    meter: Meter,
) -> None:
    """Train the embedded video miniature, or go on with it, and write it as a diffusers folder.

    Args:
        out: The folder to write; replaced only when the export is complete.
        work: Where clips and checkpoints are kept between calls (about 1 GB).
        stage: One of `VIDEO_STAGES`, or "all"; a stage needs the ones before it.
        recipe: The numbers; the shipped ones by default.
        image_model: Folder of the image miniature, which lends its parts.
        device: "cpu", "cuda", ...; accelerate's choice when None.
        workers: Processes that render and encode.
        meter: Opens a progress bar for a stage's title; yields a (done, total) callback.

    Raises:
        InputError: The stage is unknown, or one before it has not been run.
    """
    if stage != "all" and stage not in VIDEO_STAGES:
        raise InputError(
            f"the stage must be one of {', '.join(VIDEO_STAGES)} or all",
            got=stage,
            remedy="name one",
        )
    recipe = recipe or VideoRecipe()
    wanted = VIDEO_STAGES if stage == "all" else (stage,)
    with flush_denormals():
        if "render" in wanted:
            with meter("rendering and encoding clips") as progress:
                render_clips(
                    recipe, image_model, work / "clips", workers=workers, progress=progress
                )
        if "unet" in wanted:
            _train(recipe, image_model, work, device=device, meter=meter)
        if "export" in wanted:
            export_video(recipe, image_model, work, out)


def _train(
    recipe: VideoRecipe, image_model: Path, work: Path, *, device: str | None, meter: Meter
) -> None:
    shards = load_clips(recipe, work / "clips")
    place: torch.device = Accelerator(cpu=device == "cpu").device
    scaling = float(load_lent_vae(image_model).config["scaling_factor"])
    with meter("training the video U-Net") as progress:
        train_video_unet(
            recipe,
            shards,
            work,
            scaling=scaling,
            device=place,
            log=TrainLog(work / "log.jsonl"),
            progress=progress,
        )
