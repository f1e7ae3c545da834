"""The embedded miniature from nothing: render, autoencoder, latents, denoiser, export.

Every stage writes into the work folder and is skipped or resumed when its output is there, so the
same call continues a run that was stopped anywhere.
"""

import copy
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from accelerate import Accelerator
from jaxtyping import Int
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from diffuseg.errors import InputError
from diffuseg.files import atomic_path
from diffuseg.train.checkpoint import load_checkpoint
from diffuseg.train.data import (
    Progress,
    load_pictures,
    render_pictures,
    shard_count,
    shard_path,
)
from diffuseg.train.denoiser import Denoiser, Latents, phase_path, tokenize, train_phase
from diffuseg.train.log import TrainLog
from diffuseg.train.recipe import PRESET, MiniRecipe
from diffuseg.train.vae import build_vae, encode_pictures, train_vae
from diffuseg.world.captions import VOCABULARY
from diffuseg.world.tokenizer import build_tokenizer

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from transformers import CLIPTokenizer

STAGES = ("render", "vae", "latents", "unet", "export")
Meter = Callable[[str], AbstractContextManager[Progress]]
_VAE_SHARDS = 8  # at 500 scenes each, more than the autoencoder needs for its crops
log = logging.getLogger(__name__)


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
    with flush_denormals():
        _run_stages(
            out,
            work,
            stage=stage,
            recipe=recipe or MiniRecipe(),
            device=device,
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
    device: str | None,
    workers: int,
    meter: Meter,
) -> None:
    accelerator = Accelerator(cpu=device == "cpu", mixed_precision="bf16")
    journal = TrainLog(work / "log.jsonl")
    wanted = STAGES if stage == "all" else (stage,)
    if "render" in wanted and accelerator.is_main_process:
        with meter("rendering scenes") as progress:
            render_pictures(recipe, work / "pictures", workers=workers, progress=progress)
    if "vae" in wanted and accelerator.is_main_process:
        shards = range(min(_VAE_SHARDS, shard_count(recipe)))
        _require(shard_path(work / "pictures", "scenes", shards[-1]), "render")
        images = load_pictures(work / "pictures", "scenes", shards).images
        with meter("training the autoencoder") as progress:
            vae = train_vae(
                recipe, images, work, device=accelerator.device, log=journal, progress=progress
            )
        _save_vae(vae, work)
    accelerator.wait_for_everyone()
    tokenizer = build_tokenizer(VOCABULARY)
    if "latents" in wanted and accelerator.is_main_process:
        vae = _load_vae(recipe, work).to(accelerator.device)
        for pictures in sorted({phase.pictures for phase in recipe.denoiser.phases}):
            _cache_latents(vae, tokenizer, work, pictures, meter)
    accelerator.wait_for_everyone()
    if "unet" in wanted:
        _train_denoiser(recipe, tokenizer, work, accelerator, journal, meter)
    if "export" in wanted and accelerator.is_main_process:
        export_mini(recipe, work, out)


def _require(path: Path, stage: str) -> Path:
    if not path.exists():
        raise InputError(
            f"the stage before must have written {path.name}",
            got=f"no {path}",
            remedy=f"run --stage {stage} (or all) with the same work folder first",
        )
    return path


def _save_vae(vae: "AutoencoderKL", work: Path) -> None:
    tensors = {key: value.cpu().contiguous() for key, value in vae.state_dict().items()}
    with atomic_path(work / "vae-final.safetensors") as temporary:
        save_file(tensors, temporary, metadata={"scaling": str(vae.config["scaling_factor"])})


def _load_vae(recipe: MiniRecipe, work: Path) -> "AutoencoderKL":
    path = _require(work / "vae-final.safetensors", "vae")
    vae = build_vae(recipe.vae, size=recipe.size)
    vae.load_state_dict(load_file(path))
    with safe_open(path, framework="pt") as file:
        vae.register_to_config(scaling_factor=float(file.metadata()["scaling"]))
    return vae.eval().requires_grad_(False)


def _cache_latents(
    vae: "AutoencoderKL", tokenizer: "CLIPTokenizer", work: Path, kind: str, meter: Meter
) -> None:
    _require(shard_path(work / "pictures", kind, 0), "render")
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


def load_latents(work: Path, kind: str) -> Latents:
    """The cached latents of one kind of pictures, all shards."""
    paths = sorted(work.glob(f"latents-{kind}-*.safetensors"))
    _require(work / f"latents-{kind}-0000.safetensors", "latents")
    parts = [load_file(path) for path in paths]
    return Latents(
        values=torch.cat([part["values"] for part in parts]),
        tokens=torch.cat([part["tokens"] for part in parts]),
    )


def _empty_caption(tokenizer: "CLIPTokenizer") -> Int[Tensor, " t"]:
    return tokenizer("", padding="max_length", return_tensors="pt").input_ids[0]


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
    for number, phase in enumerate(recipe.denoiser.phases, start=1):
        data = load_latents(work, phase.pictures)
        with meter(f"training the U-Net, {number} ({phase.pictures})") as progress:
            train_phase(
                model,
                average,
                data,
                recipe,
                phase,
                work,
                empty=_empty_caption(tokenizer),
                accelerator=accelerator,
                log=journal,
                progress=progress if accelerator.is_main_process else None,
            )


def export_mini(recipe: MiniRecipe, work: Path, out: Path) -> None:
    """Write the averaged weights as an ordinary diffusers folder in fp16, with checksums."""
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    tokenizer = build_tokenizer(VOCABULARY)
    average = Denoiser(recipe.denoiser, tokenizer, side=recipe.size // 8)
    newest = [
        path
        for number in range(len(recipe.denoiser.phases))
        if (path := phase_path(work, number)).exists()
    ]
    if not newest:
        _require(phase_path(work, 0), "unet")
    load_checkpoint(newest[-1], {"average": average})
    folder = out.with_name(out.name + ".partial")
    average.unet.half().save_pretrained(folder / "unet", safe_serialization=True)
    average.text.half().save_pretrained(folder / "text_encoder", safe_serialization=True)
    _load_vae(recipe, work).half().save_pretrained(folder / "vae", safe_serialization=True)
    tokenizer.save_pretrained(folder / "tokenizer")
    DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    ).save_pretrained(folder / "scheduler")
    _write_json(folder / "model_index.json", _model_index())
    _write_json(
        folder / "diffuseg.json",
        {
            "size": recipe.size,
            "vocabulary": sorted(VOCABULARY),
            "mask_padding": True,
            "preset": PRESET,
        },
    )
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


def _write_json(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n")


def write_checksums(folder: Path) -> None:
    """Write `checksums.json`: the SHA-256 of every other file of a model folder."""
    sums = {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "checksums.json"
    }
    _write_json(folder / "checksums.json", sums)
