"""Tiny vision transformers with random weights, in transformers' folder format."""

from pathlib import Path

import torch
from transformers import (
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    PreTrainedModel,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessorPil,
    ViTModel,
)

_SHAPE = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}
KINDS = ("vit", "classifier", "dinov2", "registers")


def build_vit_model(kind: str) -> PreTrainedModel:
    """A network of one of `KINDS`, the same every time."""
    torch.manual_seed(0)
    if kind == "vit":
        return ViTModel(ViTConfig(intermediate_size=32, **_SHAPE), add_pooling_layer=False).eval()
    if kind == "classifier":
        return ViTForImageClassification(ViTConfig(intermediate_size=32, **_SHAPE)).eval()
    if kind == "dinov2":
        return Dinov2Model(Dinov2Config(mlp_ratio=2, **_SHAPE)).eval()
    return Dinov2WithRegistersModel(
        Dinov2WithRegistersConfig(mlp_ratio=2, num_register_tokens=3, **_SHAPE)
    ).eval()


def write_vit(folder: Path, kind: str) -> PreTrainedModel:
    """Write a network of one of `KINDS` with its preprocessor and return it."""
    model = build_vit_model(kind)
    model.save_pretrained(folder, safe_serialization=True)
    ViTImageProcessorPil(
        size={"height": 32, "width": 32}, image_mean=[0.4, 0.5, 0.6], image_std=[0.2, 0.25, 0.3]
    ).save_pretrained(folder)
    return model
