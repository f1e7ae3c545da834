"""What there is on this machine: the page to paste into a bug report."""

import importlib.util
import os
import platform
import sys
from importlib import metadata
from pathlib import Path

_PACKAGES = (
    "torch",
    "diffusers",
    "transformers",
    "accelerate",
    "safetensors",
    "huggingface-hub",
    "numpy",
    "scipy",
    "scikit-learn",
    "pillow",
    "typer",
    "rich",
)
# Extra of the package: a module that comes with it.
_EXTRAS = {
    "video": "av",
    "app": "gradio",
    "scale": "ray",
    "coco": "pycocotools",
    "sunrgbd": "h5py",
    "train": "peft",
    "supervision": "supervision",
}


def examine() -> dict[str, dict[str, str]]:
    """Return versions, devices, extras, models and settings, by section.

    Example:
        >>> sorted(examine())
        ['devices', 'extras', 'models', 'settings', 'versions']
    """
    return {
        "versions": _versions(),
        "devices": _devices(),
        "extras": {
            extra: "installed" if importlib.util.find_spec(module) else "not installed"
            for extra, module in _EXTRAS.items()
        },
        "models": _models(),
        "settings": _settings(),
    }


def _versions() -> dict[str, str]:
    found = {"diffuseg": _version("diffuseg"), "python": sys.version.split()[0]}
    found["system"] = platform.platform()
    return found | {package: _version(package) for package in _PACKAGES}


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _devices() -> dict[str, str]:
    import torch

    found = {"cpu": f"{os.cpu_count()} cores, {torch.get_num_threads()} threads used"}
    for index in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(index)
        found[f"cuda:{index}"] = f"{about.name}, {about.total_memory / 1e9:.0f} GB"
    if torch.backends.mps.is_available():
        found["mps"] = "available"
    return found


def _models() -> dict[str, str]:
    from diffuseg.backbones import list_models

    return {
        row.model.name: row.here + (f": {row.source}" if row.source else "")
        for row in list_models()
    }


def _settings() -> dict[str, str]:
    from huggingface_hub import constants

    from diffuseg.api import MODEL_VARIABLE

    cache = Path(constants.HF_HUB_CACHE)
    return {
        MODEL_VARIABLE: os.environ.get(MODEL_VARIABLE, "not set (mini)"),
        "HF_HUB_OFFLINE": str(constants.HF_HUB_OFFLINE),
        "hub cache": f"{cache}{'' if cache.is_dir() else ' (not there yet)'}",
    }
