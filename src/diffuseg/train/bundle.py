"""The bundle: trained weights as the folder that ships, with checksums."""

import hashlib
import json
import logging
import os
import shutil
from pathlib import Path

from diffuseg.train.checkpoint import load_checkpoint
from diffuseg.train.companions import COMPANIONS
from diffuseg.train.denoiser import Denoiser, phase_path
from diffuseg.train.recipe import PRESET, VIT_PRESET, MiniRecipe
from diffuseg.train.work import load_vae, require_stage
from diffuseg.world.captions import VOCABULARY
from diffuseg.world.tokenizer import build_tokenizer

CARD = "README.md"
log = logging.getLogger(__name__)


def export_mini(recipe: MiniRecipe, work: Path, out: Path) -> None:
    """Write the averaged weights as an ordinary diffusers folder in fp16, with checksums.

    Companions that have been trained lie in folders of their own in it. A model card that is there
    already stays; its figures are then of the weights before, until `diffuseg quality` is run.
    """
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    tokenizer = build_tokenizer(VOCABULARY)
    average = Denoiser(recipe.denoiser, tokenizer, side=recipe.size // 8)
    newest = [
        path
        for number in range(len(recipe.denoiser.phases))
        if (path := phase_path(work, number)).exists()
    ]
    if not newest:
        require_stage(phase_path(work, 0), "unet")
    load_checkpoint(newest[-1], {"average": average})
    folder = out.with_name(out.name + ".partial")
    shutil.rmtree(folder, ignore_errors=True)
    average.unet.half().save_pretrained(folder / "unet", safe_serialization=True)
    average.text.half().save_pretrained(folder / "text_encoder", safe_serialization=True)
    load_vae(recipe, work).half().save_pretrained(folder / "vae", safe_serialization=True)
    tokenizer.save_pretrained(folder / "tokenizer")
    DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    ).save_pretrained(folder / "scheduler")
    write_json(folder / "model_index.json", _model_index())
    write_json(
        folder / "diffuseg.json",
        {
            "size": recipe.size,
            "vocabulary": sorted(VOCABULARY),
            "mask_padding": True,
            "preset": PRESET,
        },
    )
    for name in COMPANIONS:
        if (work / name).is_dir():
            shutil.copytree(work / name, folder / name)
    if (folder / "vit").is_dir():
        write_json(folder / "vit" / "diffuseg.json", {"preset": VIT_PRESET})
    if (out / CARD).is_file():
        shutil.copy(out / CARD, folder / CARD)
    write_checksums(folder)
    if out.exists():
        previous = out.with_name(out.name + ".previous")
        os.replace(out, previous)
        os.replace(folder, out)
        shutil.rmtree(previous)
    else:
        os.replace(folder, out)
    log.info("wrote %s", out)


def _model_index() -> dict[str, object]:
    import diffusers

    return {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": diffusers.__version__,
        "feature_extractor": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }


def write_json(path: Path, content: object) -> None:
    """Write a small file of a model folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n")


def write_checksums(folder: Path) -> None:
    """Write `checksums.json`: the SHA-256 of every other file of a model folder but its card,
    whose figures are filled in later."""
    sums = {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in ("checksums.json", CARD)
    }
    write_json(folder / "checksums.json", sums)
