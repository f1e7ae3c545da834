"""What lies in a work folder between the stages of the miniature's training."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import safe_open
from safetensors.torch import load_file, save_file

from diffuseg.errors import InputError
from diffuseg.files import atomic_path
from diffuseg.train.data import Progress
from diffuseg.train.recipe import MiniRecipe
from diffuseg.train.vae import build_vae

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

Meter = Callable[[str], AbstractContextManager[Progress]]
"""Opens a progress bar for a stage's title; yields a (done, total) callback."""


def require_stage(path: Path, stage: str) -> Path:
    """The path, if the stage that writes it has been run."""
    if not path.exists():
        raise InputError(
            f"the stage before must have written {path.name}",
            got=f"no {path}",
            remedy=f"run --stage {stage} (or all) with the same work folder first",
        )
    return path


def save_vae(vae: "AutoencoderKL", work: Path) -> None:
    """Keep the trained autoencoder with its scaling factor."""
    tensors = {key: value.cpu().contiguous() for key, value in vae.state_dict().items()}
    with atomic_path(work / "vae-final.safetensors") as temporary:
        save_file(tensors, temporary, metadata={"scaling": str(vae.config["scaling_factor"])})


def load_vae(recipe: MiniRecipe, work: Path) -> "AutoencoderKL":
    """The trained autoencoder of a work folder, frozen."""
    path = require_stage(work / "vae-final.safetensors", "vae")
    vae = build_vae(recipe.vae, size=recipe.size)
    vae.load_state_dict(load_file(path))
    with safe_open(path, framework="pt") as file:
        vae.register_to_config(scaling_factor=float(file.metadata()["scaling"]))
    return vae.eval().requires_grad_(False)
