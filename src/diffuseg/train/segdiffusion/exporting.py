"""A fine-tuned model as a folder: a whole one of diffusers, or the adapter that makes it one."""

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, cast

from safetensors.torch import save_file
from torch import nn

from diffuseg.backbones.folder import MASKS
from diffuseg.backbones.sd import StableDiffusion
from diffuseg.backbones.text import ClipTower
from diffuseg.train.folder import CARD, model_folder, stable_diffusion_index, write_json
from diffuseg.train.segdiffusion.lora import WHOLE, updates_at
from diffuseg.train.segdiffusion.recipe import SegRecipe
from diffuseg.train.segdiffusion.state import RunFacts

if TYPE_CHECKING:
    from peft import PeftModel


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Trained:
    """What is written.

    Attributes:
        model: The model that was fine-tuned; its U-Net as it is called in training.
        network: What learned, with the weights to write: that U-Net, or peft's model around it.
        recipe: The numbers.
        facts: How the training went.
        pictures: The data set, in words.
        preset: Settings of the method that suit the model, beside the template.
    """

    model: StableDiffusion
    network: nn.Module
    recipe: SegRecipe
    facts: RunFacts
    pictures: str
    preset: Mapping[str, object] = field(default_factory=dict)


def base_name(model: StableDiffusion) -> str:
    """How a folder names the model it was made of: a name, a hub id, or where its folder is."""
    folder = Path(model.source)
    local = folder.is_dir() and model.source != "embedded"
    return str(folder.resolve()) if local else model.name


def export_whole(trained: Trained, out: Path) -> None:
    """Write an ordinary diffusers folder in half precision, low-rank updates merged.

    Args:
        trained: What is written.
        out: Replaced when all is there.
    """
    model, tower = trained.model, cast(ClipTower, trained.model.tower)
    network = copy.deepcopy(trained.network)
    if trained.recipe.weights == "lora":
        with updates_at(network, trained.recipe.kept):
            peft = cast("PeftModel", network)
            network = peft.merge_and_unload()  # pyright: ignore[reportCallIssue]
    with model_folder(out) as folder:
        for part, held in (("unet", network), ("vae", model.vae), ("text_encoder", tower.encoder)):
            _save_half(held, folder / part)
        tower.tokenizer.save_pretrained(folder / "tokenizer")
        write_json(folder / "model_index.json", stable_diffusion_index())
        facts: dict[str, object] = {"mask_padding": True} if tower.mask_padding else {}
        _write_common(trained, folder, facts)


def export_adapter(trained: Trained, out: Path) -> None:
    """Write low-rank updates and the layers that learned as a whole, in half precision.

    Args:
        trained: What is written; its weights are "lora".
        out: Replaced when all is there.
    """
    from peft import get_peft_model_state_dict

    held = get_peft_model_state_dict(cast("PeftModel", trained.network))
    recipe = trained.recipe
    with model_folder(out) as folder:
        adapter = folder / "adapter"
        adapter.mkdir()
        halves = {name: value.detach().cpu().half().contiguous() for name, value in held.items()}
        save_file(halves, adapter / "adapter_model.safetensors", metadata={"format": "pt"})
        config = {
            "base_model_name_or_path": base_name(trained.model),
            "bias": "none",
            "fan_in_fan_out": False,
            "lora_alpha": recipe.rank * recipe.kept,
            "lora_dropout": 0.0,
            "modules_to_save": list(WHOLE),
            "peft_type": "LORA",
            "r": recipe.rank,
            "target_modules": sorted(
                name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
                for name in held
                if name.endswith(".lora_A.weight")
            ),
            "task_type": None,
        }
        write_json(adapter / "adapter_config.json", config)
        _write_common(trained, folder, {"base": base_name(trained.model)})


def _write_common(trained: Trained, folder: Path, facts: dict[str, object]) -> None:
    model, recipe = trained.model, trained.recipe
    write_json(folder / "scheduler" / "scheduler_config.json", dict(trained.facts.scheduler))
    facts |= {"masks": MASKS, "size": model.size}
    if model.vocabulary is not None:
        facts["vocabulary"] = list(model.vocabulary)
    preset: dict[str, object] = {"template": recipe.templates[0], **trained.preset}
    if recipe.objective == "one-step":
        preset["profile"] = "one-step"
    write_json(folder / "diffuseg.json", {**facts, "preset": {"segdiffusion": preset}})
    (folder / CARD).write_text(_card(trained), encoding="utf-8")


def _save_half(module: nn.Module, folder: Path) -> None:
    half = copy.deepcopy(module).cpu().half()
    half.save_pretrained(folder, safe_serialization=True)  # pyright: ignore[reportCallIssue]


_PLAIN = "| {name} | {value} |"


def _card(trained: Trained) -> str:
    """The model card: what it was made of and how, what it was measured at, what it is not."""
    facts, recipe = trained.facts, trained.recipe
    rows = "\n".join(_PLAIN.format(name=f"`{n}`", value=_told(v)) for n, v in facts.recipe.items())
    hidden = f"\nNever learned: {', '.join(recipe.without)}.\n" if recipe.without else ""
    return f"""# A denoiser of masks

`{base_name(trained.model)}`, fine-tuned to denoise the mask of a class it is named, beside the
picture (Seg-diffusion). It draws no pictures any more.

- Data: {trained.pictures}
- Begun from: {facts.start or "the base model's weights"}
- Updates: {facts.step}, {facts.skipped} of them left out as they were no number
- What learned: {"the whole U-Net" if recipe.weights == "full" else "low-rank updates of the U-Net"}
- Kept: the moving average of the weights, in half precision
- Time: {facts.seconds / 60:.0f} min
{hidden}
## Measured while it was trained

{_measured(facts)}

## Limits

It knows masks as its data drew them. Classes it never learned it finds as far as its base model
knows the word; a class that is not in the picture should come out empty, and may not. Licence and
limits of the base model hold for it, too.

## Recipe

| number | value |
|---|---|
{rows}
"""


def _measured(facts: RunFacts) -> str:
    if not facts.validation:
        return "Nothing: there were no pictures to validate on."
    rows = [
        _PLAIN.format(name=name, value="-" if value is None else f"{value:.3f}")
        for name, value in facts.validation.items()
    ]
    head = ["On a few fixed pictures, in few steps and one run; an evaluation says more.", ""]
    return "\n".join([*head, "| figure | value |", "|---|---|", *rows])


def _told(value: object) -> str:
    return json.dumps(value) if isinstance(value, Mapping | list) else str(value)
