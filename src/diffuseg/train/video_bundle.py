"""The video miniature's bundle: trained weights and what is lent, as the folder that ships."""

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from diffuseg.train.checkpoint import load_checkpoint
from diffuseg.train.clip import image_processor
from diffuseg.train.folder import model_folder, write_json
from diffuseg.train.video_denoiser import VideoDenoiser, video_phase_path
from diffuseg.train.video_encoders import CLIP_SIDE, enlarge_encoder
from diffuseg.train.video_recipe import VideoRecipe
from diffuseg.train.work import require_stage

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL


def load_lent_vae(folder: Path) -> "AutoencoderKL":
    """The image miniature's autoencoder, from its folder."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    return AutoencoderKL.from_pretrained(folder / "vae", torch_dtype=torch.float32)


def load_video_average(recipe: VideoRecipe, work: Path, *, embedding: int) -> VideoDenoiser:
    """The averaged weights of the newest phase there is.

    Raises:
        InputError: None has been trained.
    """
    average = VideoDenoiser(recipe, embedding=embedding)
    paths = [video_phase_path(work, number) for number in range(len(recipe.phases))]
    newest = [path for path in paths if path.exists()]
    load_checkpoint(newest[-1] if newest else require_stage(paths[0], "unet"), {"average": average})
    return average.eval().requires_grad_(False)


def export_video(recipe: VideoRecipe, image_model: Path, work: Path, out: Path) -> None:
    """Write an ordinary Stable Video Diffusion folder in fp16, with checksums.

    A model card that is there already stays.

    Args:
        recipe: The numbers.
        image_model: Folder of the image miniature, which lends autoencoder and image encoder.
        work: Folder of the checkpoints.
        out: Replaced when all is written.
    """
    from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler

    encoder = enlarge_encoder(image_model / "clip")
    embedding = int(encoder.config.projection_dim)
    average = load_video_average(recipe, work, embedding=embedding)
    with model_folder(out) as folder:
        average.unet.half().save_pretrained(folder / "unet", safe_serialization=True)
        load_lent_vae(image_model).half().save_pretrained(folder / "vae", safe_serialization=True)
        encoder.half().save_pretrained(folder / "image_encoder", safe_serialization=True)
        image_processor(CLIP_SIDE).save_pretrained(folder / "feature_extractor")
        EulerDiscreteScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            interpolation_type="linear",
            prediction_type="v_prediction",
            sigma_min=0.002,
            sigma_max=700.0,
            steps_offset=1,
            timestep_spacing="leading",
            timestep_type="continuous",
            use_karras_sigmas=True,
        ).save_pretrained(folder / "scheduler")
        write_json(folder / "model_index.json", _model_index())
        write_json(folder / "diffuseg.json", {"size": recipe.size, "preset": VIDEO_PRESET})


VIDEO_PRESET: dict[str, dict[str, object]] = {
    "vidseg": {
        "side": 256,
        "feature_blocks": [7, 9],
        "join": "concat",
        "naming": "mask",
        "track_block": 9,
        "modulate": False,
        "modulate_step": 24,
        "guidance": 1.0,
        "guidance_first": 1.0,
        "shares": True,
        "edges": 24,
    },
}
"""Settings written into the exported folder, by method.

Chosen on two validation clips among blocks and noise levels, the rest as the image miniature's.
"""


def _model_index() -> dict[str, object]:
    import diffusers

    return {
        "_class_name": "StableVideoDiffusionPipeline",
        "_diffusers_version": diffusers.__version__,
        "feature_extractor": ["transformers", "CLIPImageProcessor"],
        "image_encoder": ["transformers", "CLIPVisionModelWithProjection"],
        "scheduler": ["diffusers", "EulerDiscreteScheduler"],
        "unet": ["diffusers", "UNetSpatioTemporalConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
