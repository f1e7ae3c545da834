"""The miniature's captioner: the CLIP pair's image tower with a small text decoder on top.

It learns one way of saying things, built from the nouns of a picture's own captions: things in the
order of `THINGS`, then the ground, then the sky. So there is one right next word, and what is said
tells what is left to say.
"""

from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from diffuseg.errors import InputError
from diffuseg.train.captioned import Nouns, draw_views, fullest_nouns, to_pixels
from diffuseg.train.checkpoint import load_checkpoint
from diffuseg.train.clip import build_clip, image_processor
from diffuseg.train.data import Pictures, Progress
from diffuseg.train.log import TrainLog
from diffuseg.train.loop import train_steps, turn_layers
from diffuseg.train.priming import start_layers
from diffuseg.train.recipe import CaptionerRecipe, ClipRecipe, MiniRecipe
from diffuseg.world.captions import VOCABULARY
from diffuseg.world.scenes import STUFF, THINGS
from diffuseg.world.tokenizer import END, START, build_tokenizer

if TYPE_CHECKING:
    from transformers import CLIPModel, CLIPTokenizer, CLIPVisionConfig, VisionEncoderDecoderModel

_IGNORED = -100  # labels transformers leaves out of the loss
_LONGEST = 40  # tokens of a caption; four things and two regions take 24


def build_captioner(
    recipe: CaptionerRecipe, clip: ClipRecipe, tokenizer: "CLIPTokenizer"
) -> "VisionEncoderDecoderModel":
    """An untrained captioner: the pair's image tower and a decoder of the recipe's shape."""
    from transformers import (
        CLIPVisionModel,
        GenerationConfig,
        GPT2Config,
        GPT2LMHeadModel,
        VisionEncoderDecoderModel,
    )

    start, end = (tokenizer.get_vocab()[token] for token in (START, END))
    decoder = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=tokenizer.model_max_length,
        n_embd=recipe.width,
        n_layer=recipe.layers,
        n_head=recipe.heads,
        add_cross_attention=True,
        # Without dropout a resumed run is the same run.
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=start,
        eos_token_id=end,
        pad_token_id=end,
    )
    decoder.is_decoder = True
    vision = cast("CLIPVisionConfig", build_clip(clip, tokenizer).config.vision_config)
    model = VisionEncoderDecoderModel(
        encoder=CLIPVisionModel(vision), decoder=GPT2LMHeadModel(decoder)
    )
    model.config.decoder_start_token_id = start
    model.config.eos_token_id = end
    model.config.pad_token_id = end
    model.generation_config = GenerationConfig(
        bos_token_id=start,
        decoder_start_token_id=start,
        eos_token_id=end,
        pad_token_id=end,
        max_new_tokens=_LONGEST,
        do_sample=False,
        num_beams=1,
    )
    return model


def plain_caption(nouns: Nouns) -> str:
    """The one phrasing the captioner learns.

    Example:
        >>> plain_caption(Nouns(things=(("blue", "car"), ("red", "ball")), stuff=("sky", "grass")))
        'a red ball and a blue car on grass under a sky'
    """
    ordered = sorted(nouns.things, key=lambda thing: THINGS.index(thing[1]))
    things = " and ".join(_noun(color, kind) for color, kind in ordered)
    ground = " and ".join(name for name in STUFF if name in nouns.stuff and name != "sky")
    sky = "sky" in nouns.stuff
    if not things:
        return f"{ground} under a sky" if ground and sky else ground or "a sky"
    place = f" on {ground}" if ground else ""
    return (
        f"{things}{place}{' under a sky' if ground else ' in the sky'}" if sky else things + place
    )


def _noun(color: str | None, kind: str) -> str:
    words = kind if color is None else f"{color} {kind}"
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def caption_labels(
    pictures: Pictures, tokenizer: "CLIPTokenizer"
) -> tuple[Int[np.ndarray, " m"], Int[Tensor, "m t"]]:
    """Which pictures tell the colour of everything they show, and their captions as labels."""
    nouns = [fullest_nouns(captions) for captions in pictures.captions]
    rows = [i for i, one in enumerate(nouns) if one.colored]
    if not rows:
        raise InputError(
            "some captions must tell all colours",
            got=f"{len(pictures.images)} pictures, none of them",
            remedy="render more scenes",
        )
    ids = tokenizer([plain_caption(nouns[i]) for i in rows], padding=True, return_tensors="pt")
    tokens, mask = (ids.input_ids[:, 1:], ids.attention_mask[:, 1:])  # the start is the model's
    return np.array(rows, dtype=np.int64), tokens.masked_fill(mask == 0, _IGNORED)


def train_captioner(
    recipe: MiniRecipe,
    pictures: Pictures,
    work: Path,
    *,
    device: torch.device,
    log: TrainLog,
    progress: Progress | None = None,
    clip: "CLIPModel | None" = None,
    scenes: Pictures | None = None,
) -> "VisionEncoderDecoderModel":
    """Train (or resume) the captioner.

    Args:
        recipe: Of the whole miniature; `recipe.captioner` and `recipe.clip` are read.
        pictures: Square, of any size, for instance of `load_captioned`.
        work: Folder of the checkpoint `captioner.safetensors`.
        device: Where to train.
        log: The journal.
        progress: Told (done, total) after every step.
        clip: The trained pair whose image tower to begin with; from nothing when None.
        scenes: What to show after `recipe.captioner.mixed` steps: whole scenes, of which everything
            is told, while crops leave out what they cut. The same pictures when None.

    Returns:
        The averaged weights, frozen.

    Raises:
        InputError: No picture's captions tell all colours.
    """
    settings = recipe.captioner
    tokenizer = build_tokenizer(VOCABULARY)
    shown = [
        (part.images, *caption_labels(part, tokenizer))
        for part in ([pictures] if scenes is None else [pictures, scenes])
    ]
    torch.manual_seed(recipe.seed)
    model = build_captioner(settings, recipe.clip, tokenizer)
    start_layers(cast(nn.Module, model))
    if clip is not None:
        cast(nn.Module, model.encoder).load_state_dict(vision_state(clip))
    nn.Module.to(model, device)

    def losses(model: "VisionEncoderDecoderModel", step: int) -> dict[str, Float[Tensor, ""]]:
        rng = np.random.default_rng([recipe.seed, 11, step])
        images, rows, labels = shown[-1 if step >= settings.mixed else 0]
        picked = rng.integers(len(rows), size=settings.batch)
        chosen = images[rows[picked]]
        views = draw_views(chosen, rng, side=recipe.clip.size, least=recipe.clip.least)
        pixels = to_pixels(views).to(device)
        told = labels[torch.from_numpy(picked)]
        told = told[:, : int((told != _IGNORED).sum(1).max())].to(device)
        words = (told != _IGNORED).long()
        with torch.autocast(device.type, torch.bfloat16):
            output = model(pixel_values=pixels, labels=told, decoder_attention_mask=words)
        return {"words": output.loss}

    return train_steps(
        model,
        settings,
        losses,
        checkpoint=work / "captioner.safetensors",
        log=log,
        progress=progress,
        slow=lambda name: settings.tower_rate if name.startswith("encoder") else 1.0,
        turn=turn_layers(settings.turn),
    )


def vision_state(clip: "CLIPModel") -> dict[str, Tensor]:
    """The weights of a pair's image tower, under the names the tower has on its own."""
    return {key: value.clone() for key, value in clip.vision_model.state_dict().items()}


def export_captioner(recipe: MiniRecipe, work: Path, out: Path) -> None:
    """Write the averaged captioner as an ordinary transformers folder in fp16.

    Raises:
        InputError: It has not been trained.
    """
    checkpoint = work / "captioner.safetensors"
    if not checkpoint.exists():
        raise InputError(
            "the captioner must have been trained",
            got=f"no {checkpoint}",
            remedy="run --stage captioner with the same work folder first",
        )
    tokenizer = build_tokenizer(VOCABULARY)
    average = build_captioner(recipe.captioner, recipe.clip, tokenizer)
    load_checkpoint(checkpoint, {"average": average})
    average.half().save_pretrained(out)
    tokenizer.save_pretrained(out)
    image_processor(recipe.clip.size).save_pretrained(out)
