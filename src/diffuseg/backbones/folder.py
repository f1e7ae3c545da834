"""Judging a model folder before anything is loaded from it.

Only safetensors are read: a pickle runs whatever code it holds. This module imports neither torch
nor diffusers, so that the catalog can say what is on this machine in an instant.
"""

import hashlib
import json
import re
import struct
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

from diffuseg.errors import WeightsError

MASKS = "segdiffusion"
"""What `diffuseg.json` says under "masks" of a model that denoises masks."""

_STEMS = {
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
    "text_encoder_2": "model",
    "image_encoder": "model",
}
_CLASSES = {
    "unet": {"UNet2DConditionModel"},
    "vae": {"AutoencoderKL"},
    "text_encoder": {"CLIPTextModel", "CLIPTextModelWithProjection"},
    "text_encoder_2": {"CLIPTextModelWithProjection"},
    "tokenizer": {"CLIPTokenizer", "CLIPTokenizerFast"},
    "tokenizer_2": {"CLIPTokenizer", "CLIPTokenizerFast"},
}
_VIDEO_CLASSES = {
    "unet": {"UNetSpatioTemporalConditionModel"},
    "vae": {"AutoencoderKLTemporalDecoder", "AutoencoderKL"},
    "image_encoder": {"CLIPVisionModelWithProjection"},
}
_VIDEO_PIPELINE = "StableVideoDiffusionPipeline"
_PROCESSOR = "feature_extractor/preprocessor_config.json"
_SMALL_FILES = (
    "model_index.json",
    "diffuseg.json",
    "checksums.json",
    "scheduler/scheduler_config.json",
    "adapter/adapter_config.json",
    "adapter/adapter_model.safetensors",
)
_TOKENIZER_FILES = (
    "vocab.json",
    "merges.txt",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
_ADAPTER_WEIGHTS = "adapter/adapter_model.safetensors"
_PICKLES = (".bin", ".ckpt", ".pt", ".pth")
_MAX_HEADER = 100_000_000  # the limit of the safetensors format itself


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """What a folder holds, as far as can be told without loading it.

    Attributes:
        kind: "sdxl" if the U-Net wants two text encoders, "svd" if it sees frames, "adapter" if the
            folder only holds what changes another model, else "sd".
        variants: The variant of the weights to load, for each component that has weights.
        index: `model_index.json`, empty where there is none.
        facts: `diffuseg.json`, empty where there is none.
        scheduler: Whether the folder says which noise schedule the model was trained with.
        masks: Whether the U-Net denoises masks beside a picture (Seg-diffusion).
    """

    kind: Literal["sd", "sdxl", "svd", "adapter"]
    variants: Mapping[str, str | None]
    index: Mapping[str, object]
    facts: Mapping[str, object]
    scheduler: bool
    masks: bool = False


def wanted_files(names: Collection[str], variant: str | None, half: bool) -> list[str]:
    """The few files of a repository that are needed, of all the formats it offers."""
    wanted = [name for name in _SMALL_FILES if name in names]
    # Other models may have an image encoder too, and do without it here.
    video = "text_encoder/config.json" not in names
    if video and _PROCESSOR in names:
        wanted.append(_PROCESSOR)
    for component, stem in _STEMS.items():
        config = f"{component}/config.json"
        if config in names and (video or component != "image_encoder"):
            weights, _ = _pick_weights(names, component, stem, variant, half)
            wanted += [config, *weights]
    for component in ("tokenizer", "tokenizer_2"):
        files = (f"{component}/{file}" for file in _TOKENIZER_FILES)
        wanted += [file for file in files if file in names]
    return wanted


def _pick_weights(
    names: Collection[str], component: str, stem: str, variant: str | None, half: bool
) -> tuple[list[str], str | None]:
    """The safetensors files of one component and their variant.

    Raises:
        WeightsError: There are none of the variant asked, none at all, or only pickles.
    """
    if variant is not None:
        order: tuple[str | None, ...] = (variant,)
    else:
        order = ("fp16", None) if half else (None, "fp16")
    for choice in order:
        tag = f".{choice}" if choice else ""
        whole = f"{component}/{stem}{tag}.safetensors"
        if whole in names:
            return [whole], choice
        index = f"{component}/{stem}.safetensors.index{tag}.json"
        if index in names:
            # Both libraries' spellings of a shard's name.
            shard = re.compile(
                rf"{component}/{stem}({re.escape(tag)}-\d+-of-\d+|-\d+-of-\d+{re.escape(tag)})"
                r"\.safetensors"
            )
            return [index, *sorted(name for name in names if shard.fullmatch(name))], choice
    beside = [name for name in names if name.startswith(f"{component}/")]
    pickles = [name for name in beside if name.endswith(_PICKLES)]
    if pickles and not any(name.endswith(".safetensors") for name in beside):
        raise WeightsError(
            "weights must be safetensors; a pickle can run any code and is never opened",
            got=f"only {', '.join(sorted(pickles))}",
            remedy='if you trust the files, convert them once: python -c "from diffusers import '
            "StableDiffusionPipeline as P; P.from_pretrained('FOLDER', use_safetensors=False)"
            ".save_pretrained('NEW', safe_serialization=True)\"",
        )
    wanted = f"variant {variant!r} of " if variant else ""
    raise WeightsError(
        f"the model must have {wanted}the file {component}/{stem}.safetensors",
        got=f"{', '.join(sorted(beside)) or 'nothing'} in {component}/",
        remedy="leave the variant out" if variant else "fetch the model again, complete",
    )


def inspect_folder(folder: Path, *, variant: str | None = None, half: bool = False) -> Layout:
    """Check that a folder holds a whole Stable (Video) Diffusion of a kind that can be loaded.

    Reads the small files and the headers of the large ones; loads nothing.

    Raises:
        WeightsError: Names the file that is missing, damaged or of another kind.
    """
    if not folder.is_dir():
        raise bad_folder(folder, "is not a folder")
    names = {
        path.relative_to(folder).as_posix()
        for pattern in ("*", "*/*")
        for path in folder.glob(pattern)
        if path.is_file()
    }
    facts = _read_json(folder, "diffuseg.json") if "diffuseg.json" in names else {}
    masks = _denoises_masks(folder, facts)
    if "base" in facts:
        return _inspect_adapter(folder, names, facts, masks)
    index = _read_json(folder, "model_index.json") if "model_index.json" in names else {}
    video = sees_frames(folder)
    classes = _VIDEO_CLASSES if video else _CLASSES
    _check_index(folder, index, classes)
    config = _read_config(folder, names, "unet", classes)
    kind = "sdxl" if config.get("addition_embed_type") == "text_time" else "sd"
    models = ["unet", "vae", "text_encoder"] + ["text_encoder_2"] * (kind == "sdxl")
    tokenizers = ["tokenizer"] + ["tokenizer_2"] * (kind == "sdxl")
    if video:
        kind, models, tokenizers = "svd", list(_VIDEO_CLASSES), []
        _read_json(folder, _PROCESSOR)
    variants: dict[str, str | None] = {}
    for component in models:
        _read_config(folder, names, component, classes)
        weights, variants[component] = _pick_weights(
            names, component, _STEMS[component], variant, half
        )
        _check_weights(folder, names, weights)
    for component in tokenizers:
        _check_tokenizer(folder, names, component)
    scheduler = "scheduler/scheduler_config.json"
    if scheduler in names:
        _read_json(folder, scheduler)
    elif index.get("scheduler") or masks:
        raise bad_folder(folder / scheduler, "is missing")
    return Layout(
        kind=kind,
        variants=variants,
        index=index,
        facts=facts,
        scheduler=scheduler in names,
        masks=masks,
    )


def _inspect_adapter(
    folder: Path, names: Collection[str], facts: Mapping[str, object], masks: bool
) -> Layout:
    base, facts_path = facts["base"], folder / "diffuseg.json"
    if not isinstance(base, str) or not base.strip():
        raise bad_adapter(facts_path, f"has base {base!r}; it must name a model")
    if not masks:
        raise bad_adapter(facts_path, f'names a base and lacks "masks": "{MASKS}"')
    if _ADAPTER_WEIGHTS not in names:
        pickles = sorted(
            one for one in names if one.startswith("adapter/") and one.endswith(_PICKLES)
        )
        if pickles:
            raise WeightsError(
                "weights must be safetensors; a pickle can run any code and is never opened",
                got=f"only {', '.join(pickles)}",
                remedy="save the adapter again with safe_serialization=True, where you trust it",
            )
        raise bad_adapter(folder / _ADAPTER_WEIGHTS, "is missing")
    for name in ("scheduler/scheduler_config.json", "adapter/adapter_config.json"):
        _read_json(folder, name)
    _check_safetensors(folder / _ADAPTER_WEIGHTS)
    return Layout(kind="adapter", variants={}, index={}, facts=facts, scheduler=True, masks=masks)


def denoises_masks(folder: Path) -> bool:
    """Whether a model's folder is of one that denoises masks, as far as its small files say."""
    if not (folder / "diffuseg.json").is_file():
        return False
    return _denoises_masks(folder, _read_json(folder, "diffuseg.json"))


def _denoises_masks(folder: Path, facts: Mapping[str, object]) -> bool:
    told = facts.get("masks")
    if told not in (None, MASKS):
        raise bad_folder(folder / "diffuseg.json", f"has masks {told!r}; it can be {MASKS!r}")
    return told is not None


def sees_frames(folder: Path) -> bool:
    """Whether a model's folder is of Stable Video Diffusion, as far as its small files say."""
    if (folder / "model_index.json").is_file():
        return _read_json(folder, "model_index.json").get("_class_name") == _VIDEO_PIPELINE
    if not (folder / "unet/config.json").is_file():
        return False
    return _read_json(folder, "unet/config.json").get("_class_name") in _VIDEO_CLASSES["unet"]


def bad_folder(path: Path, what: str) -> WeightsError:
    return WeightsError(
        "the model folder must be whole and in diffusers format",
        got=f"{path} {what}",
        remedy="fetch or save the model again; a Stable Diffusion 1.x, 2.x or XL folder has unet/, "
        "vae/, text_encoder/, tokenizer/ and scheduler/; one of Stable Video Diffusion has unet/, "
        "vae/, image_encoder/, feature_extractor/ and scheduler/",
    )


def bad_adapter(path: Path, what: str) -> WeightsError:
    return WeightsError(
        "the folder of an adapter must be whole and fit the model it changes",
        got=f"{path} {what}",
        remedy="fetch or save it again: it has diffuseg.json (with base and masks), scheduler/ and "
        "adapter/ with adapter_config.json and adapter_model.safetensors as peft writes them",
    )


def _read_json(folder: Path, name: str) -> dict[str, object]:
    path = folder / name
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise bad_folder(path, "is missing") from error
    except (OSError, ValueError) as error:
        raise bad_folder(path, f"cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise bad_folder(path, "must hold a JSON object")
    return cast(dict[str, object], content)


def _check_index(
    folder: Path, index: Mapping[str, object], kinds: Mapping[str, Collection[str]]
) -> None:
    path = folder / "model_index.json"
    if index and "unet" not in index:
        raise bad_folder(
            path, f"describes {index.get('_class_name', 'a model')}, which has no U-Net"
        )
    for component, classes in kinds.items():
        entry = index.get(component)
        if entry is None:
            continue
        found = entry[1] if isinstance(entry, list) and len(entry) == 2 else entry
        if found is not None and found not in classes:
            raise bad_folder(path, f"has {found} as {component}; it must be {' or '.join(classes)}")


def _read_config(
    folder: Path, names: Collection[str], component: str, kinds: Mapping[str, Collection[str]]
) -> dict[str, object]:
    path = f"{component}/config.json"
    if path not in names:
        raise bad_folder(folder / path, "is missing")
    config = _read_json(folder, path)
    declared = config.get("architectures") or [config.get("_class_name")]
    found = declared[0] if isinstance(declared, list) and declared else None
    if found is not None and found not in kinds[component]:
        expected = " or ".join(sorted(kinds[component]))
        raise bad_folder(folder / path, f"is the configuration of {found}; it must be {expected}")
    return config


def _check_weights(folder: Path, names: Collection[str], files: list[str]) -> None:
    for file in files:
        if not file.endswith(".json"):
            _check_safetensors(folder / file)
            continue
        shards = _read_json(folder, file).get("weight_map")
        if not isinstance(shards, dict):
            raise bad_folder(folder / file, "must hold a weight_map")
        for shard in sorted({str(value) for value in shards.values()}):
            if f"{Path(file).parent}/{shard}" not in names:
                raise bad_folder(folder / Path(file).parent / shard, f"is missing; {file} names it")


def _check_safetensors(path: Path) -> None:
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        if start == b"version ":
            raise bad_folder(
                path, "is a git-lfs pointer and not the file itself (run: git lfs pull)"
            )
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else _MAX_HEADER + 1
        if length > min(_MAX_HEADER, size - 8):
            raise bad_folder(path, f"is truncated or no safetensors file ({size} bytes)")
        try:
            header = json.loads(file.read(length))
            end = max(
                (int(entry["data_offsets"][1]) for key, entry in header.items() if key[:2] != "__"),
                default=0,
            )
        except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
            raise bad_folder(path, "has a damaged header") from error
    if size != 8 + length + end:
        raise bad_folder(
            path, f"is truncated or damaged: {size} bytes, {8 + length + end} expected"
        )


def _check_tokenizer(folder: Path, names: Collection[str], component: str) -> None:
    vocab, merges = f"{component}/vocab.json", f"{component}/merges.txt"
    whole = f"{component}/tokenizer.json"
    if whole in names:
        _read_json(folder, whole)
    elif vocab in names and merges in names:
        _read_json(folder, vocab)
    else:
        missing = merges if vocab in names else vocab
        raise bad_folder(folder / missing, "is missing")


def verify_checksums(folder: Path) -> None:
    """Compare a folder's files with its `checksums.json`, if it has one: {file: SHA-256}.

    Raises:
        WeightsError: Names the first file that is missing or not what it was.
    """
    if not (folder / "checksums.json").is_file():
        return
    for name, expected in _read_json(folder, "checksums.json").items():
        path = folder / name
        try:
            with path.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise bad_folder(path, "is missing or unreadable; checksums.json names it") from error
        if found != expected:
            raise bad_folder(
                path, f"is damaged or was changed: SHA-256 {found}, expected {expected}"
            )
