"""The embedded miniature from nothing: render, autoencoder, latents, denoiser, companions, export.

Every stage writes into the work folder and is skipped or resumed when its output is there, so the
same call continues a run that was stopped anywhere.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file

from diffuseg.errors import InputError
from diffuseg.files import atomic_path
from diffuseg.train.bundle import export_mini
from diffuseg.train.companions import COMPANIONS, train_companion
from diffuseg.train.data import (
    load_pictures,
    render_pictures,
    shard_count,
    shard_path,
)
from diffuseg.train.denoiser import Denoiser, Latents, tokenize, train_phase
from diffuseg.train.grounding import find_words, read_tiles
from diffuseg.train.log import TrainLog
from diffuseg.train.processes import accelerated
from diffuseg.train.recipe import MiniRecipe
from diffuseg.train.vae import encode_pictures, train_vae
from diffuseg.train.work import Meter, load_vae, require_stage, save_vae
from diffuseg.world.captions import VOCABULARY
from diffuseg.world.tokenizer import build_tokenizer

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from transformers import CLIPTokenizer

STAGES = ("render", "vae", "latents", "unet", *COMPANIONS, "export")
_VAE_SHARDS = 8  # at 500 scenes each, more than the autoencoder needs for its crops


def train_mini(
    out: Path,
    work: Path,
    *,
    stage: str = "all",
    recipe: MiniRecipe | None = None,
    device: str | None = None,
    workers: int = 2,
    meter: Meter,
) -> None:
    """Train the embedded miniature, or go on with it, and write it as a diffusers folder.

    Args:
        out: The folder to write; replaced only when the export is complete.
        work: Where pictures, latents and checkpoints are kept between calls (about 4 GB).
        stage: One of `STAGES`, or "all"; a stage needs the ones before it.
        recipe: The numbers; the shipped ones by default.
        device: "cpu", "cuda", ...; accelerate's choice when None.
        workers: Processes that render.
        meter: Opens a progress bar for a stage's title; yields a (done, total) callback.

    Raises:
        InputError: The stage is unknown, or one before it has not been run.
    """
    if stage != "all" and stage not in STAGES:
        raise InputError(
            f"the stage must be one of {', '.join(STAGES)} or all", got=stage, remedy="name one"
        )
    cpu = device == "cpu"
    with flush_denormals(), accelerated(cpu=cpu, precision="bf16") as accelerator:
        _run_stages(
            out,
            work,
            stage=stage,
            recipe=recipe or MiniRecipe(),
            accelerator=accelerator,
            workers=workers,
            meter=meter,
        )


@contextmanager
def flush_denormals() -> Iterator[None]:
    """Denormals count as zero inside: they make small nets up to three times slower on a CPU.

    The setting belongs to the whole process, so it is put back as it was.
    """
    smallest = torch.tensor(torch.finfo(torch.float32).tiny)
    before = (smallest / 2).item() == 0
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)


def _run_stages(
    out: Path,
    work: Path,
    *,
    stage: str,
    recipe: MiniRecipe,
    accelerator: Accelerator,
    workers: int,
    meter: Meter,
) -> None:
    journal = TrainLog(work / "log.jsonl")
    wanted = STAGES if stage == "all" else (stage,)
    if "render" in wanted and accelerator.is_main_process:
        with meter("rendering scenes") as progress:
            render_pictures(recipe, work / "pictures", workers=workers, progress=progress)
    if "vae" in wanted and accelerator.is_main_process:
        shards = range(min(_VAE_SHARDS, shard_count(recipe)))
        require_stage(shard_path(work / "pictures", "scenes", shards[-1]), "render")
        images = load_pictures(work / "pictures", "scenes", shards).images
        with meter("training the autoencoder") as progress:
            vae = train_vae(
                recipe, images, work, device=accelerator.device, log=journal, progress=progress
            )
        save_vae(vae, work)
    accelerator.wait_for_everyone()
    tokenizer = build_tokenizer(VOCABULARY)
    if "latents" in wanted and accelerator.is_main_process:
        vae = load_vae(recipe, work).to(accelerator.device)
        for pictures in sorted(_kinds(recipe)):
            _cache_latents(vae, tokenizer, work, pictures, meter)
    accelerator.wait_for_everyone()
    if "unet" in wanted:
        _train_denoiser(recipe, tokenizer, work, accelerator, journal, meter)
    for companion in COMPANIONS:
        if companion in wanted and accelerator.is_main_process:
            require_stage(shard_path(work / "pictures", "scenes", 0), "render")
            train_companion(
                companion, recipe, work, device=accelerator.device, log=journal, meter=meter
            )
    if "export" in wanted and accelerator.is_main_process:
        export_mini(recipe, work, out)


def _cache_latents(
    vae: "AutoencoderKL", tokenizer: "CLIPTokenizer", work: Path, kind: str, meter: Meter
) -> None:
    require_stage(shard_path(work / "pictures", kind, 0), "render")
    shards = sorted((work / "pictures").glob(f"{kind}-*.npz"))
    for number, path in enumerate(shards):
        target = work / f"latents-{path.stem}.safetensors"
        if target.exists():
            continue
        pictures = load_pictures(work / "pictures", kind, [number])
        with meter(f"encoding {path.stem}") as progress:
            values = encode_pictures(vae, pictures.images, progress=progress)
        tensors = {"values": values.half(), "tokens": tokenize(tokenizer, pictures.captions)}
        with atomic_path(target) as temporary:
            save_file(tensors, temporary)


def _kinds(recipe: MiniRecipe) -> set[str]:
    """The kinds of pictures that the U-Net is shown."""
    phases = recipe.denoiser.phases
    tiles = {kind for phase in phases for part in phase.grounding for kind in part.pictures}
    turns = {kind for phase in phases for kind, _ in phase.turns}
    return tiles | turns | {phase.pictures for phase in phases}


def load_latents(work: Path, *kinds: str) -> Latents:
    """The cached latents of pictures of one size, all shards of the kinds given."""
    for kind in kinds:
        require_stage(work / f"latents-{kind}-0000.safetensors", "latents")
    paths = [path for kind in kinds for path in sorted(work.glob(f"latents-{kind}-*.safetensors"))]
    parts = [load_file(path) for path in paths]
    return Latents(
        values=torch.cat([part["values"] for part in parts]),
        tokens=torch.cat([part["tokens"] for part in parts]),
    )


def _train_denoiser(
    recipe: MiniRecipe,
    tokenizer: "CLIPTokenizer",
    work: Path,
    accelerator: Accelerator,
    journal: TrainLog,
    meter: Meter,
) -> None:
    torch.manual_seed(recipe.seed)
    model = Denoiser(recipe.denoiser, tokenizer, side=recipe.size // 8)
    average = copy.deepcopy(model).requires_grad_(False)
    words = find_words(tokenizer)
    for number, phase in enumerate(recipe.denoiser.phases):
        kinds = [phase.pictures, *(kind for kind, _ in phase.turns)]
        data = [load_latents(work, kind) for kind in kinds]
        shown = [load_latents(work, *part.pictures) for part in phase.grounding]
        with meter(f"training the U-Net, {number + 1} ({', '.join(kinds)})") as progress:
            train_phase(
                model,
                average,
                data,
                recipe,
                number,
                work,
                tokenizer=tokenizer,
                accelerator=accelerator,
                log=journal,
                progress=progress if accelerator.is_main_process else None,
                tiles=[read_tiles(one.values, one.tokens, words) for one in shown],
            )
