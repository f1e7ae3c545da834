"""Writers of tiny random models as ordinary diffusers folders, and of a small real CLIP tokenizer.

Weights are random with fixed seeds. The files are what the real repositories hold, down to the
tokenizer's padding: Stable Diffusion 2 pads with "!", which only `special_tokens_map.json` says.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.autoencoder_kl_temporal_decoder import (
    AutoencoderKLTemporalDecoder,
)
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.models.unets.unet_spatio_temporal_condition import UNetSpatioTemporalConditionModel
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from diffusers.schedulers.scheduling_pndm import PNDMScheduler
from tokenizers.pre_tokenizers import ByteLevel
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from diffuseg.world.tokenizer import learn_merges

_SENTENCES = """a photo of my red car and blue house
a cat and dog on grass
sky tree sofa fire hydr ant"""
WORDS = tuple(dict.fromkeys(_SENTENCES.split()))
CONTEXT = 77
TEXT_WIDTH = 16


def _seeded(build: Callable[[], nn.Module], seed: int) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build().eval().requires_grad_(False)


def write_tokenizer(folder: Path, *, pad: str = "<|endoftext|>", context: int = CONTEXT) -> int:
    """Write vocab.json and merges.txt as CLIP's, with every byte; returns the number of tokens."""
    folder.mkdir(parents=True, exist_ok=True)
    merges = learn_merges(WORDS)
    letters = sorted(ByteLevel.alphabet())
    symbols = [*letters, *(letter + "</w>" for letter in letters)]
    symbols += dict.fromkeys("".join(merge) for merge in merges)
    symbols += ["<|startoftext|>", "<|endoftext|>"]
    vocab = {symbol: index for index, symbol in enumerate(symbols)}
    lines = ["#version: 0.2", *(" ".join(merge) for merge in merges)]
    (folder / "vocab.json").write_text(json.dumps(vocab))
    (folder / "merges.txt").write_text("\n".join(lines) + "\n")
    end = {"content": "<|endoftext|>", "lstrip": False, "normalized": True, "rstrip": False}
    start = end | {"content": "<|startoftext|>"}
    special = {"bos_token": start, "eos_token": end, "pad_token": pad, "unk_token": end}
    config = {
        "add_prefix_space": False,
        "do_lower_case": True,
        "model_max_length": context,
        "pad_token": "<|endoftext|>",
        "tokenizer_class": "CLIPTokenizer",
    }
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return len(vocab)


def _text_config(tokens: int, *, seed_width: int = TEXT_WIDTH, layers: int = 2) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=tokens,
        hidden_size=seed_width,
        intermediate_size=2 * seed_width,
        projection_dim=seed_width,
        num_hidden_layers=layers,
        num_attention_heads=2,
        max_position_embeddings=CONTEXT,
        bos_token_id=tokens - 2,
        eos_token_id=tokens - 1,
        pad_token_id=0,
    )


def _write_vae(folder: Path, *, scaling: float = 0.18215, seed: int = 1) -> None:
    vae = _seeded(
        lambda: AutoencoderKL(
            block_out_channels=(8, 8, 16, 16),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=1,
            latent_channels=4,
            norm_num_groups=4,
            scaling_factor=scaling,
        ),
        seed,
    )
    vae.save_pretrained(folder / "vae")


def _unet(width: int, seed: int, **config: Any) -> UNet2DConditionModel:
    settings: dict[str, Any] = {
        "sample_size": 8,
        "block_out_channels": (8, 16, 16),
        "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        "layers_per_block": 1,
        "attention_head_dim": 2,
        "cross_attention_dim": width,
        "norm_num_groups": 4,
    }
    return _seeded(lambda: UNet2DConditionModel(**(settings | config)), seed)


_SCHEDULE: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
    "set_alpha_to_one": False,
}

_SCHEDULE_SVD: dict[str, Any] = {
    key: _SCHEDULE[key] for key in ("beta_start", "beta_end", "beta_schedule", "steps_offset")
}


def _write_index(folder: Path, name: str, scheduler: str, *, two: bool = False) -> None:
    index: dict[str, Any] = {
        "_class_name": name,
        "_diffusers_version": "0.20.0",
        "feature_extractor": [None, None],
        "safety_checker": [None, None],
        "scheduler": ["diffusers", scheduler],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    if two:
        del index["safety_checker"]
        index |= {
            "force_zeros_for_empty_prompt": True,
            "image_encoder": [None, None],
            "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
            "tokenizer_2": ["transformers", "CLIPTokenizer"],
        }
    (folder / "model_index.json").write_text(json.dumps(index))


def write_sd15(folder: Path) -> Path:
    """Like Stable Diffusion 1.5: epsilon, one head count, PNDM, pads with the end token."""
    tokens = write_tokenizer(folder / "tokenizer")
    _seeded(lambda: CLIPTextModel(_text_config(tokens)), 2).save_pretrained(folder / "text_encoder")
    _write_vae(folder)
    _unet(TEXT_WIDTH, 3).save_pretrained(folder / "unet")
    PNDMScheduler(**_SCHEDULE, skip_prk_steps=True).save_pretrained(folder / "scheduler")
    _write_index(folder, "StableDiffusionPipeline", "PNDMScheduler")
    return folder


def write_sd21(folder: Path) -> Path:
    """Like Stable Diffusion 2.1 at 768: v-prediction, DDIM, linear projections, pads with "!"."""
    tokens = write_tokenizer(folder / "tokenizer", pad="!")
    config = _text_config(tokens, layers=3)
    _seeded(lambda: CLIPTextModel(config), 4).save_pretrained(folder / "text_encoder")
    _write_vae(folder)
    unet = _unet(
        TEXT_WIDTH,
        5,
        sample_size=12,
        use_linear_projection=True,
        attention_head_dim=(2, 4, 4),
        upcast_attention=True,
    )
    unet.save_pretrained(folder / "unet")
    scheduler = DDIMScheduler(**_SCHEDULE, clip_sample=False, prediction_type="v_prediction")
    scheduler.save_pretrained(folder / "scheduler")
    _write_index(folder, "StableDiffusionPipeline", "DDIMScheduler")
    return folder


def write_sdxl(folder: Path) -> Path:
    """Like Stable Diffusion XL: two text encoders, pooled vector and sizes, force_upcast VAE."""
    tokens = write_tokenizer(folder / "tokenizer")
    write_tokenizer(folder / "tokenizer_2", pad="!")
    first, second = _text_config(tokens), _text_config(tokens, seed_width=24)
    _seeded(lambda: CLIPTextModel(first), 6).save_pretrained(folder / "text_encoder")
    two = _seeded(lambda: CLIPTextModelWithProjection(second), 7)
    two.save_pretrained(folder / "text_encoder_2")
    _write_vae(folder, scaling=0.13025)
    unet = _unet(
        TEXT_WIDTH + 24,
        8,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        transformer_layers_per_block=(1, 2),
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=4 * 6 + 24,
    )
    unet.save_pretrained(folder / "unet")
    scheduler = DDIMScheduler(**_SCHEDULE, clip_sample=False)
    scheduler.save_pretrained(folder / "scheduler")
    _write_index(folder, "StableDiffusionXLPipeline", "DDIMScheduler", two=True)
    return folder


_SVD_WIDTH = 16
_SVD_PARTS = {
    "feature_extractor": ["transformers", "CLIPImageProcessor"],
    "image_encoder": ["transformers", "CLIPVisionModelWithProjection"],
    "scheduler": ["diffusers", "EulerDiscreteScheduler"],
    "unet": ["diffusers", "UNetSpatioTemporalConditionModel"],
    "vae": ["diffusers", "AutoencoderKLTemporalDecoder"],
}


def write_svd(folder: Path) -> Path:
    """Like Stable Video Diffusion: 4 pixels a cell, all twelve blocks, no text, v-prediction.

    Widths are multiples of 32, whose number of groups diffusers does not let one choose.
    """
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, projection_dim=_SVD_WIDTH, num_hidden_layers=2,
        num_attention_heads=2, image_size=224, patch_size=56,
    )  # fmt: skip
    seeing = _seeded(lambda: CLIPVisionModelWithProjection(vision), 20)
    seeing.save_pretrained(folder / "image_encoder")
    vae = _seeded(
        lambda: AutoencoderKLTemporalDecoder(
            block_out_channels=(32, 32, 32),
            down_block_types=("DownEncoderBlock2D",) * 3,
            layers_per_block=1,
            latent_channels=4,
            scaling_factor=0.18215,
        ),
        21,
    )
    vae.save_pretrained(folder / "vae")
    unet = _seeded(
        lambda: UNetSpatioTemporalConditionModel(
            sample_size=16,
            block_out_channels=(32, 32, 64, 64),
            num_attention_heads=(2, 2, 2, 2),
            cross_attention_dim=_SVD_WIDTH,
            addition_time_embed_dim=4,
            projection_class_embeddings_input_dim=3 * 4,
            num_frames=3,
        ),
        22,
    )
    unet.save_pretrained(folder / "unet")
    scheduler = EulerDiscreteScheduler(
        **_SCHEDULE_SVD, prediction_type="v_prediction", sigma_min=0.002, sigma_max=700.0,
        timestep_spacing="leading", timestep_type="continuous", use_karras_sigmas=True,
    )  # fmt: skip
    scheduler.save_pretrained(folder / "scheduler")
    (folder / "feature_extractor").mkdir()
    colours = {
        "crop_size": {"height": 224, "width": 224},
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_processor_type": "CLIPImageProcessor",
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "size": {"shortest_edge": 224},
    }
    (folder / "feature_extractor/preprocessor_config.json").write_text(json.dumps(colours))
    index = {"_class_name": "StableVideoDiffusionPipeline", "_diffusers_version": "0.24.0"}
    (folder / "model_index.json").write_text(json.dumps(index | _SVD_PARTS))
    return folder


def write_mini(folder: Path) -> Path:
    """Like the embedded miniature: closed vocabulary, end and padding hidden, a preset."""
    write_sd15(folder)
    facts = {
        "size": 64,
        "vocabulary": sorted(WORDS),
        "mask_padding": True,
        "preset": {"attend": {"timestep": 50}},
    }
    (folder / "diffuseg.json").write_text(json.dumps(facts))
    return folder


def edit(path: Path, **changes: object) -> None:
    content = json.loads(path.read_text())
    content.update(changes)
    path.write_text(json.dumps({key: one for key, one in content.items() if one is not None}))
