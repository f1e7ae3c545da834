"""The bundle: trained weights as the folder that ships, with checksums."""

import logging
import shutil
from pathlib import Path

from diffuseg.train.checkpoint import load_checkpoint
from diffuseg.train.companions import COMPANIONS
from diffuseg.train.denoiser import Denoiser, phase_path
from diffuseg.train.folder import model_folder, stable_diffusion_index, write_json
from diffuseg.train.presets import PRESET, VIT_PRESET
from diffuseg.train.recipe import MiniRecipe
from diffuseg.train.work import load_vae, require_stage
from diffuseg.world.captions import VOCABULARY
from diffuseg.world.tokenizer import build_tokenizer

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
    with model_folder(out) as folder:
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
        write_json(folder / "model_index.json", stable_diffusion_index())
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
    log.info("wrote %s", out)
