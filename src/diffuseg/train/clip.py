"""The miniature's CLIP pair: image and text tower trained by contrast on pictures and captions.

Two contrasts are summed. Pictures against whole captions, as CLIP does it. And pictures against the
prompts of single nouns ("a photo of a car", "grass", "a red car"): those that the picture's own
caption names are the positives. It is the caption taken word by word, and makes up for a data set
that is small for the first contrast alone. The image tower comes from its first lesson (see
`diffuseg.train.priming`), and its patches go on naming what they see.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor, nn
from torch.nn import functional

from diffuseg.errors import InputError
from diffuseg.train.captioned import (
    COLOR_OF_PAIR,
    PAIRS,
    draw_views,
    fullest_nouns,
    noun_table,
    recolor,
    to_pixels,
)
from diffuseg.train.checkpoint import load_checkpoint
from diffuseg.train.data import Pictures, Progress
from diffuseg.train.denoiser import tokenize
from diffuseg.train.log import TrainLog
from diffuseg.train.loop import train_steps, turn_layers
from diffuseg.train.priming import (
    NOUNS,
    Primer,
    best_patches,
    noun_loss,
    start_layers,
    vision_config,
    window_states,
)
from diffuseg.train.recipe import ClipRecipe, MiniRecipe
from diffuseg.world.captions import VOCABULARY
from diffuseg.world.scenes import COLORS, STUFF, THINGS
from diffuseg.world.tokenizer import END, START, build_tokenizer

if TYPE_CHECKING:
    from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTextConfig, CLIPTokenizer
    from transformers.modeling_outputs import BaseModelOutputWithPooling

_TEMPLATES = ("{}", "a {}", "a photo of a {}", "a picture of a {}", "there is a {}", "the {}")
_STUFF_TEMPLATES = ("{}", "a photo of {}", "a picture of {}", "there is {}", "the {}")


def build_clip(recipe: ClipRecipe, tokenizer: "CLIPTokenizer") -> "CLIPModel":
    """An untrained pair of towers of the recipe's shape."""
    from transformers import CLIPConfig, CLIPModel, CLIPTextConfig

    start, end = (tokenizer.get_vocab()[token] for token in (START, END))
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.text_width,
        intermediate_size=4 * recipe.text_width,
        projection_dim=recipe.projection,
        num_hidden_layers=recipe.text_layers,
        num_attention_heads=recipe.text_heads,
        max_position_embeddings=tokenizer.model_max_length,
        hidden_act="gelu",
        bos_token_id=start,
        eos_token_id=end,
        pad_token_id=end,
    )
    config = CLIPConfig(
        text_config=text.to_dict(),
        vision_config=vision_config(recipe).to_dict(),
        projection_dim=recipe.projection,
    )
    return CLIPModel(config)


@dataclass(frozen=True, kw_only=True, slots=True)
class Captioned:
    """A training set: pictures, phrasings, and what the fullest phrasing of each names."""

    images: UInt8[np.ndarray, "n h w 3"]
    tokens: Int[Tensor, "n k t"]
    kinds: Bool[Tensor, "n things"]
    stuff: Bool[Tensor, "n stuff"]
    pairs: Bool[Tensor, "n pairs"]
    colors: Bool[Tensor, "n colors"]
    colored: Bool[Tensor, " n"]
    single: Int[Tensor, " m"]


def prepare_captioned(pictures: Pictures, tokenizer: "CLIPTokenizer") -> Captioned:
    """Tokenize the phrasings and read their nouns."""
    nouns = [fullest_nouns(captions) for captions in pictures.captions]
    kinds, stuff, pairs = noun_table(nouns)
    return Captioned(
        images=pictures.images,
        tokens=tokenize(tokenizer, pictures.captions),
        kinds=kinds,
        stuff=stuff,
        pairs=pairs,
        colors=(pairs.float() @ COLOR_OF_PAIR) > 0,
        colored=torch.tensor([one.colored for one in nouns]),
        single=(kinds.sum(1) == 1).nonzero().flatten(),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompts:
    """Token ids of the prompts of every noun, by template: [templates, nouns, tokens]."""

    kinds: Int[Tensor, "p things t"]
    pairs: Int[Tensor, "p pairs t"]
    colors: Int[Tensor, "p colors t"]
    stuff: Int[Tensor, "q stuff t"]


def prepare_prompts(tokenizer: "CLIPTokenizer") -> Prompts:
    """Tokenize every noun in every template."""
    objects = [f"{color} object" for color in COLORS]

    def ids(templates: tuple[str, ...], names: list[str]) -> Int[Tensor, "p n t"]:
        rows = [tuple(_article(one.format(name)) for name in names) for one in templates]
        return tokenize(tokenizer, rows)

    return Prompts(
        kinds=ids(_TEMPLATES, list(THINGS)),
        pairs=ids(_TEMPLATES, [" ".join(pair) for pair in PAIRS]),
        colors=ids(_TEMPLATES, objects),
        stuff=ids(_STUFF_TEMPLATES, list(STUFF)),
    )


def _article(phrase: str) -> str:
    return phrase.replace("a orange", "an orange")


def train_clip(
    recipe: MiniRecipe,
    pictures: Pictures,
    work: Path,
    *,
    device: torch.device,
    log: TrainLog,
    progress: Progress | None = None,
    primer: Primer | None = None,
) -> "CLIPModel":
    """Train (or resume) the pair.

    Args:
        recipe: Of the whole miniature; `recipe.clip` is read.
        pictures: Square, of any size, for instance of `load_captioned`.
        work: Folder of the checkpoint `clip.safetensors`.
        device: Where to train.
        log: The journal.
        progress: Told (done, total) after every step.
        primer: Of `train_priming`, whose image tower to begin with; from nothing when None.

    Returns:
        The averaged weights, frozen.

    Raises:
        InputError: None of the pictures shows a single thing.
    """
    settings = recipe.clip
    tokenizer = build_tokenizer(VOCABULARY)
    data, prompts = prepare_captioned(pictures, tokenizer), prepare_prompts(tokenizer)
    if not len(data.single):
        raise InputError(
            "some pictures must show a single thing",
            got=f"{len(data.images)} pictures, none of them",
            remedy="render more scenes",
        )
    torch.manual_seed(recipe.seed)
    pupil = Pupil(settings, tokenizer)
    if primer is not None:
        pupil.clip.vision_model.load_state_dict(primer.tower.state_dict())
        pupil.patches.load_state_dict(primer.patches.state_dict())
    pupil.to(device)

    def losses(model: Pupil, step: int) -> dict[str, Float[Tensor, ""]]:
        rng = np.random.default_rng([recipe.seed, 10, step])
        with torch.autocast(device.type, torch.bfloat16):
            return clip_losses(model, data, prompts, settings, rng)

    average = train_steps(
        pupil,
        settings,
        losses,
        checkpoint=work / "clip.safetensors",
        log=log,
        progress=progress,
        slow=lambda name: settings.tower_rate if "vision_model" in name else 1.0,
        turn=turn_layers(settings.turn),
    )
    return average.clip


class Pupil(nn.Module):
    """The pair, and what reads nouns off the patches of its image tower."""

    def __init__(self, recipe: ClipRecipe, tokenizer: "CLIPTokenizer") -> None:
        super().__init__()
        self.clip = build_clip(recipe, tokenizer)
        start_layers(self.clip)
        self.patches = nn.Linear(recipe.width, len(NOUNS))


def clip_losses(
    pupil: Pupil, data: Captioned, prompts: Prompts, recipe: ClipRecipe, rng: np.random.Generator
) -> dict[str, Float[Tensor, ""]]:
    """The losses of one batch; a share of `recipe.single` of it shows a single thing.

    Recoloured pictures ask for the kinds of things alone: no caption tells their colours now.
    """
    model = pupil.clip
    device = model.logit_scale.device
    singles = round(recipe.single * recipe.batch)
    rows = torch.cat(
        [
            data.single[torch.from_numpy(rng.integers(len(data.single), size=singles))],
            torch.from_numpy(rng.integers(len(data.images), size=recipe.batch - singles)),
        ]
    )
    phrasing = torch.from_numpy(rng.integers(data.tokens.shape[1], size=len(rows)))
    captions = data.tokens[rows, phrasing]
    template, place = (int(rng.integers(len(_TEMPLATES))), int(rng.integers(len(_STUFF_TEMPLATES))))
    families = (
        prompts.kinds[template],
        prompts.pairs[template],
        prompts.colors[template],
        prompts.stuff[place],
    )
    views = draw_views(data.images[rows.numpy()], rng, side=recipe.size, least=recipe.least)
    pixels, plain = recolor(to_pixels(views), rng, share=recipe.recolored)
    states = window_states(model.vision_model, pixels.to(device), (0, 0))
    plain = plain.to(device)
    seen = functional.normalize(model.visual_projection(states[:, 0]).float(), dim=-1)
    captions = captions.to(device)[plain]
    told = embed_tokens(model, captions)
    named = embed_tokens(model, torch.cat(families).to(device))
    scale = model.logit_scale.clamp(max=float(np.log(100))).exp()
    with torch.autocast(device.type, enabled=False):
        logits, by_noun = scale * seen[plain] @ told.T, scale * seen @ named.T
    kinds, pairs, colors, stuff = (
        table[rows].to(device) for table in (data.kinds, data.pairs, data.colors, data.stuff)
    )
    colored = data.colored[rows].to(device) & plain
    truths = {
        "kinds": kinds,
        "pairs": pairs & colored[:, None],
        "colors": colors & colored[:, None],
        "stuff": stuff & plain[:, None],
    }
    found = by_noun.split([len(family) for family in families], dim=1)
    parts = {
        name: recipe.nouns * _match(scores, truth)
        for scores, (name, truth) in zip(found, truths.items(), strict=True)
    }
    same = (captions[:, None] == captions[None]).all(-1)
    parts["captions"] = (_match(logits, same) + _match(logits.T, same)) / 2
    named_ones = torch.cat([kinds, colors, stuff], dim=1).float()
    by_patch = best_patches(pupil.patches(states[:, 1:]))
    parts["patches"] = noun_loss(by_patch, named_ones, colored) / 2
    return parts


def embed_tokens(model: "CLIPModel", tokens: Int[Tensor, "b t"]) -> Float[Tensor, "b d"]:
    """Unit text embeddings; positions after the longest text's end are not computed."""
    end = cast("CLIPTextConfig", model.config.text_config).eos_token_id
    longest = int(tokens.ne(cast(int, end)).sum(1).max()) + 1
    output = model.get_text_features(input_ids=tokens[:, :longest])
    features = cast("BaseModelOutputWithPooling", output).pooler_output
    return functional.normalize(cast(Tensor, features).float(), dim=-1)


def _match(logits: Float[Tensor, "b n"], positives: Bool[Tensor, "b n"]) -> Float[Tensor, ""]:
    """Cross-entropy against the positives of each row in equal shares; empty rows left out."""
    shares = positives.float()
    count = shares.sum(1, keepdim=True)
    shares = shares / count.clamp(min=1)
    kept = (count > 0).sum().clamp(min=1)
    return -(shares * logits.log_softmax(1)).sum() / kept


def load_clip_average(recipe: MiniRecipe, work: Path) -> "CLIPModel":
    """The averaged pair of a work folder.

    Raises:
        InputError: It has not been trained.
    """
    checkpoint = work / "clip.safetensors"
    if not checkpoint.exists():
        raise InputError(
            "the CLIP pair must have been trained",
            got=f"no {checkpoint}",
            remedy="run --stage clip with the same work folder first",
        )
    pupil = Pupil(recipe.clip, build_tokenizer(VOCABULARY))
    load_checkpoint(checkpoint, {"average": pupil})
    return pupil.clip.eval().requires_grad_(False)


def export_clip(recipe: MiniRecipe, work: Path, out: Path) -> None:
    """Write the averaged pair as an ordinary transformers folder in fp16.

    Raises:
        InputError: It has not been trained.
    """
    tokenizer = build_tokenizer(VOCABULARY)
    load_clip_average(recipe, work).half().save_pretrained(out)
    facts = {"vocabulary": sorted(VOCABULARY)}
    (out / "diffuseg.json").write_text(json.dumps(facts, indent=2) + "\n")
    tokenizer.save_pretrained(out)
    image_processor(recipe.clip.size).save_pretrained(out)


def image_processor(side: int) -> "CLIPImageProcessorPil":
    """Shows the towers the whole picture, brought to `side` pixels square, in [-1, 1]."""
    from transformers import CLIPImageProcessorPil

    return CLIPImageProcessorPil(
        size={"height": side, "width": side},
        do_center_crop=False,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
