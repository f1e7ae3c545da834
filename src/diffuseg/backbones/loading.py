"""Loading a model part by part: no safety checker, no feature extractor, no pickle."""

import json
import logging
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar, get_args

import torch
from torch import nn

from diffuseg.backbones.adapters import apply_adapter, read_adapter
from diffuseg.backbones.components import load_component, load_tokenizer
from diffuseg.backbones.facts import read_facts
from diffuseg.backbones.folder import (
    Layout,
    bad_adapter,
    bad_folder,
    inspect_folder,
    verify_checksums,
)
from diffuseg.backbones.protocols import Prediction
from diffuseg.backbones.sampling import cumulative_alphas
from diffuseg.backbones.sd import StableDiffusion
from diffuseg.backbones.sdxl import TwoTowers
from diffuseg.backbones.svd import StableVideoDiffusion
from diffuseg.backbones.text import ClipTower, Tower
from diffuseg.backbones.weights import ModelFolder, find_base, find_model
from diffuseg.errors import InputError

_DTYPES = {
    "fp32": torch.float32,
    "float32": torch.float32,
    "fp16": torch.float16,
    "float16": torch.float16,
    "bf16": torch.bfloat16,
    "bfloat16": torch.bfloat16,
}
_USUAL_SIZE = 512
# What Stable Diffusion was trained with, for folders that do not say.
_USUAL_SCHEDULE: Mapping[str, object] = {
    "_class_name": "DDIMScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
_PROCESSOR = "preprocessor_config.json"
_Part = TypeVar("_Part", bound=nn.Module)
log = logging.getLogger(__name__)


def load(
    name_or_path: str | os.PathLike[str] = "mini",
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    offline: bool | None = None,
    variant: str | None = None,
    compile: bool | str = False,
) -> StableDiffusion | StableVideoDiffusion:
    """Load a Stable Diffusion 1.x, 2.x or XL, one made to denoise masks, or a Stable Video one.

    Args:
        name_or_path: A catalog name ("mini", "sd1.5", "svd", ...; `list_models` has them all), a
            hub id "owner/name", or a folder in diffusers format. A folder may also hold only the
            adapter that makes a base model denoise masks, see the page on segdiffusion.
        device: For instance "cpu" or "cuda:1"; by default the first there is of CUDA, Apple's GPU
            and the CPU.
        dtype: "fp32", "fp16" or "bf16"; by default fp32 on the CPU and fp16 elsewhere. The
            autoencoders of SDXL and SVD, which overflow in fp16, and those masks are decoded with
            are kept in fp32.
        offline: Never use the network; by default as HF_HUB_OFFLINE says.
        variant: Of the weight files; by default the plain ones or "fp16", as suits `dtype`.
        compile: Compile the U-Net (True, or the name of a backend of torch). Sets
            `torch._dynamo.config.skip_nnmodule_hook_guards` to False for the whole process: else a
            compiled U-Net leaves recording out, silently.

    Raises:
        InputError: No such name, device or dtype.
        WeightsError: The weights are not to be had, damaged, or of another kind.

    Example:
        >>> model = load("mini", device="cpu")  # doctest: +SKIP
        >>> model.size, model.prediction  # doctest: +SKIP
        (256, 'epsilon')
    """
    place = pick_device(device)
    precision = pick_dtype(dtype, place)
    half = precision == torch.float16
    found = find_model(name_or_path, offline=offline, variant=variant, half=half)
    layout = inspect_folder(found.folder, variant=variant, half=half)
    verify_checksums(found.folder)
    if layout.kind == "adapter":
        model = _assemble_adapted(found, layout, precision, place, offline=offline, variant=variant)
    else:
        assemble = _assemble_video if layout.kind == "svd" else _assemble
        model = assemble(found, layout, precision, place)
    log.info("model %s from %s (%s on %s)", model.name, model.source, precision, place)
    if compile:
        # By default a compiled module does not look for hooks attached after compiling.
        torch._dynamo.config.skip_nnmodule_hook_guards = False
        model.unet.compile(backend=compile if isinstance(compile, str) else "inductor")
    return model


def pick_device(device: str | torch.device | None) -> torch.device:
    """The device asked for, or the first there is of CUDA, Apple's GPU and the CPU.

    Raises:
        InputError: torch cannot use it here.
    """
    if device is None:
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        wanted = torch.device(device)
        torch.empty(0, device=wanted)
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:
        raise InputError(
            "the device must be one that torch can use here",
            got=f"{device} ({str(error).splitlines()[0]})",
            remedy='use "cpu", or leave it out',
        ) from error
    return wanted


def pick_dtype(dtype: str | torch.dtype | None, device: torch.device) -> torch.dtype:
    """The precision asked for, or fp32 on the CPU and fp16 elsewhere.

    Raises:
        InputError: It is none of fp32, fp16 and bf16.
    """
    if dtype is None:
        return torch.float32 if device.type == "cpu" else torch.float16
    found = _DTYPES.get(dtype.lower()) if isinstance(dtype, str) else dtype
    if found is None or found not in _DTYPES.values():
        raise InputError("the dtype must be fp32, fp16 or bf16", got=dtype, remedy="leave it out")
    return found


def _assemble(
    found: ModelFolder, layout: Layout, dtype: torch.dtype, device: torch.device
) -> StableDiffusion:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    folder = found.folder

    def part(kind: type[_Part], component: str) -> _Part:
        variant = layout.variants[component]
        return load_component(kind, folder / component, variant=variant, dtype=dtype, device=device)

    facts = read_facts(folder / "diffuseg.json", layout.facts)
    schedule = _read_schedule(folder, layout)
    unet, vae = part(UNet2DConditionModel, "unet"), part(AutoencoderKL, "vae")
    overflows = layout.kind == "sdxl" and vae.config.get("force_upcast")
    if dtype == torch.float16 and (layout.masks or overflows):
        vae.float()
    if layout.masks:
        _check_schedule(folder, schedule)
        _check_finite(folder, unet)
    tokenizer, encoder = load_tokenizer(folder / "tokenizer"), part(CLIPTextModel, "text_encoder")
    if layout.kind == "sdxl":
        tower: Tower = TwoTowers(
            tokenizer=tokenizer,
            encoder=encoder,
            tokenizer_2=load_tokenizer(folder / "tokenizer_2"),
            encoder_2=part(CLIPTextModelWithProjection, "text_encoder_2"),
            zero_negative=bool(layout.index.get("force_zeros_for_empty_prompt", True)),
        )
    else:
        tower = ClipTower(tokenizer=tokenizer, encoder=encoder, mask_padding=facts.mask_padding)
    _check_fit(folder, unet.config, vae.config, tower, masks=layout.masks)
    cells, scale = unet.config["sample_size"], 2 ** (len(vae.config["block_out_channels"]) - 1)
    return StableDiffusion(
        name=found.name,
        source=found.source,
        unet=unet,
        vae=vae,
        tower=tower,
        scheduler=schedule,
        alphas=cumulative_alphas(schedule),
        size=facts.size or (cells * scale if isinstance(cells, int) else _USUAL_SIZE),
        prediction=_read_prediction(folder, schedule),
        vocabulary=facts.vocabulary,
        preset=facts.preset,
    )


def _assemble_adapted(
    found: ModelFolder,
    layout: Layout,
    dtype: torch.dtype,
    device: torch.device,
    *,
    offline: bool | None,
    variant: str | None,
) -> StableDiffusion:
    """The base model, changed; what the adapter's folder does not say is as it was."""
    folder, half = found.folder, dtype == torch.float16
    # All that can be wrong with the adapter alone is noticed before its base is looked for.
    facts = read_facts(folder / "diffuseg.json", layout.facts)
    schedule = _read_schedule(folder, layout)
    prediction = _read_prediction(folder, schedule)
    _check_schedule(folder, schedule)
    adapter = read_adapter(folder / "adapter")
    under = find_base(
        folder, str(layout.facts["base"]), offline=offline, variant=variant, half=half
    )
    plain = inspect_folder(under.folder, variant=variant, half=half)
    if plain.masks or plain.kind not in ("sd", "sdxl"):
        what = "denoises masks itself" if plain.masks else "is of videos"
        raise bad_adapter(under.folder, f"is named as a base and {what}")
    verify_checksums(under.folder)
    base = _assemble(under, plain, dtype, device)
    apply_adapter(base.unet, adapter)
    _check_finite(folder, base.unet)
    if half:
        base.vae.float()
    return replace(
        base,
        name=found.name,
        source=found.source,
        base=base.source,
        scheduler=schedule,
        alphas=cumulative_alphas(schedule),
        size=facts.size or base.size,
        prediction=prediction,
        vocabulary=facts.vocabulary or base.vocabulary,
        preset={**base.preset, **facts.preset},
    )


def _check_schedule(folder: Path, schedule: Mapping[str, object]) -> None:
    noise = schedule.get("prediction_type", "epsilon") == "epsilon"
    if noise and schedule.get("rescale_betas_zero_snr"):
        raise bad_folder(
            folder / "scheduler" / "scheduler_config.json",
            "has prediction_type 'epsilon' with rescale_betas_zero_snr: where no signal is left, "
            "nothing can be told from the noise",
        )


def _check_finite(folder: Path, unet: nn.Module) -> None:
    """What training can leave behind, and no loader sees."""
    for name, weights in unet.named_parameters():
        if not bool(weights.isfinite().all()):
            raise bad_folder(folder, f"has values that are not finite in {name} of the U-Net")


def _assemble_video(
    found: ModelFolder, layout: Layout, dtype: torch.dtype, device: torch.device
) -> StableVideoDiffusion:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.autoencoders.autoencoder_kl_temporal_decoder import (
        AutoencoderKLTemporalDecoder,
    )
    from diffusers.models.unets.unet_spatio_temporal_condition import (
        UNetSpatioTemporalConditionModel,
    )
    from transformers import CLIPVisionModelWithProjection

    folder = found.folder

    def part(kind: type[_Part], component: str) -> _Part:
        variant = layout.variants[component]
        return load_component(kind, folder / component, variant=variant, dtype=dtype, device=device)

    facts = read_facts(folder / "diffuseg.json", layout.facts)
    if layout.scheduler and _read_prediction(folder, _read_schedule(folder, layout)) == "epsilon":
        path = folder / "scheduler" / "scheduler_config.json"
        raise bad_folder(path, "has prediction_type 'epsilon'; of videos it must be v_prediction")
    means, deviations = _read_colours(folder / "feature_extractor" / _PROCESSOR)
    unet = part(UNetSpatioTemporalConditionModel, "unet")
    told = json.loads((folder / "vae" / "config.json").read_text(encoding="utf-8"))
    plain = told.get("_class_name") == "AutoencoderKL"
    vae = part(AutoencoderKL, "vae") if plain else part(AutoencoderKLTemporalDecoder, "vae")
    if dtype == torch.float16 and vae.config.get("force_upcast"):
        vae.float()
    seeing = part(CLIPVisionModelWithProjection, "image_encoder")
    _check_video_fit(folder, unet.config, vae.config, int(seeing.config.projection_dim))
    cells, scale = unet.config["sample_size"], 2 ** (len(vae.config["block_out_channels"]) - 1)
    return StableVideoDiffusion(
        name=found.name,
        source=found.source,
        unet=unet,
        vae=vae,
        image_encoder=seeing,
        means=means,
        deviations=deviations,
        size=facts.size or (cells * scale if isinstance(cells, int) else _USUAL_SIZE),
        preset=facts.preset,
    )


def _read_colours(path: Path) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """What colours are centred by and divided by before CLIP sees them."""
    held = json.loads(path.read_text(encoding="utf-8"))
    found = []
    for name in ("image_mean", "image_std"):
        one = held.get(name)
        if not isinstance(one, list) or len(one) != 3 or not all(map(_is_number, one)):
            raise bad_folder(path, f"has {name} {one!r}; it must be three numbers")
        found.append(tuple(float(value) for value in one))
    return found[0], found[1]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float)


def _check_video_fit(
    folder: Path, unet: Mapping[str, Any], vae: Mapping[str, Any], width: int
) -> None:
    cells = vae["latent_channels"]
    if unet["in_channels"] != 2 * cells or unet["out_channels"] != cells:
        raise bad_folder(
            folder / "unet",
            f"takes {unet['in_channels']} channels and gives {unet['out_channels']}; with an "
            f"autoencoder of {cells} it must be {2 * cells} and {cells}",
        )
    if unet["cross_attention_dim"] != width:
        raise bad_folder(
            folder / "unet",
            f"attends to vectors {unet['cross_attention_dim']} wide, the image encoder gives "
            f"{width}",
        )
    if unet["projection_class_embeddings_input_dim"] != 3 * unet["addition_time_embed_dim"]:
        raise bad_folder(folder / "unet", "is not told of frames a second, motion and noise alone")


def _check_fit(
    folder: Path, unet: Mapping[str, Any], vae: Mapping[str, Any], tower: Tower, *, masks: bool
) -> None:
    """Parts that load may still not belong together."""
    cells = vae["latent_channels"]
    if masks and (unet["in_channels"] != 2 * cells or unet["out_channels"] != cells):
        raise bad_folder(
            folder / "unet",
            f"takes {unet['in_channels']} channels and gives {unet['out_channels']}; to denoise "
            f"masks with an autoencoder of {cells} it must be {2 * cells} and {cells}",
        )
    if not masks and (unet["in_channels"] != cells or unet["out_channels"] != cells):
        raise bad_folder(
            folder / "unet",
            f"takes {unet['in_channels']} channels and gives {unet['out_channels']}, the "
            f"autoencoder has {cells}; inpainting, depth and editing models cannot be used",
        )
    wanted = unet["cross_attention_dim"]
    widths = set(wanted) if isinstance(wanted, list | tuple) else {wanted}
    if widths != {tower.width}:
        raise bad_folder(
            folder / "unet", f"attends to text {wanted} wide, the text encoder gives {tower.width}"
        )
    if len(tower.tokenizer) > tower.vocabulary_size:
        raise bad_folder(
            folder / "tokenizer",
            f"has {len(tower.tokenizer)} tokens, the text encoder only {tower.vocabulary_size}",
        )


def _read_schedule(folder: Path, layout: Layout) -> Mapping[str, object]:
    if not layout.scheduler:
        log.warning("%s has no scheduler/: taking Stable Diffusion's usual schedule", folder)
        return _USUAL_SCHEDULE
    return json.loads((folder / "scheduler" / "scheduler_config.json").read_text(encoding="utf-8"))


def _read_prediction(folder: Path, schedule: Mapping[str, object]) -> Prediction:
    found = schedule.get("prediction_type", "epsilon")
    for known in get_args(Prediction):
        if found == known:
            return known
    path = folder / "scheduler" / "scheduler_config.json"
    raise bad_folder(path, f"has prediction_type {found!r}; it must be epsilon or v_prediction")
