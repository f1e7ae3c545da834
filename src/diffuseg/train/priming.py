"""The image tower's first lesson: which nouns the captions of windows name.

Contrast alone teaches a tower of this size colours and textures at once, and shapes hardly at all.
Here it is asked for the words of the captions one by one, on windows in which things are large,
from its first token and, so that every patch gets an answer of its own, from the best of its
patches. A window has a quarter of a whole picture's patches, and takes any place among them.
"""

import math
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from diffuseg.train.captioned import COLOR_OF_PAIR, draw_views, fullest_nouns, noun_table, to_pixels
from diffuseg.train.data import Pictures, Progress
from diffuseg.train.log import TrainLog
from diffuseg.train.loop import train_steps, turn_layers
from diffuseg.train.recipe import ClipRecipe, MiniRecipe
from diffuseg.world.scenes import COLORS, STUFF, THINGS

if TYPE_CHECKING:
    from transformers import CLIPVisionConfig, CLIPVisionModel

NOUNS = (*THINGS, *COLORS, *STUFF)
_KINDS = len(THINGS)


class Primer(nn.Module):
    """An image tower, and what reads nouns off its first token and off its patches."""

    def __init__(self, recipe: ClipRecipe) -> None:
        from transformers import CLIPVisionModel

        super().__init__()
        self.tower = CLIPVisionModel(vision_config(recipe))
        start_layers(self.tower)
        self.whole = nn.Linear(recipe.width, len(NOUNS))
        self.patches = nn.Linear(recipe.width, len(NOUNS))

    def forward(
        self, pixels: Float[Tensor, "b 3 h w"], corner: tuple[int, int] = (0, 0)
    ) -> tuple[Float[Tensor, "b nouns"], Float[Tensor, "b nouns"]]:
        """Scores of the nouns, of the first token and of the patches.

        Args:
            pixels: A window, in whole patches.
            corner: The patch of a whole picture (row, column) its first patch takes the place of.
        """
        states = window_states(self.tower, pixels, corner)
        return self.whole(states[:, 0]).float(), best_patches(self.patches(states[:, 1:]))


def vision_config(recipe: ClipRecipe) -> "CLIPVisionConfig":
    """The image tower's shape, for transformers."""
    from transformers import CLIPVisionConfig

    return CLIPVisionConfig(
        hidden_size=recipe.width,
        intermediate_size=4 * recipe.width,
        projection_dim=recipe.projection,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        image_size=recipe.size,
        patch_size=recipe.patch,
        hidden_act="gelu",  # the faster one on a CPU
    )


def start_layers(tower: nn.Module) -> None:
    """First weights by X. Glorot and Y. Bengio, and attention by plain products.

    On a CPU the fused kernel's backward pass is slow in bf16: with it steps take 1.7 times as long.
    """
    for name, weight in tower.named_parameters():
        if ".layers." in name and weight.ndim == 2:
            nn.init.xavier_uniform_(weight)
    for module in tower.modules():
        config = getattr(module, "config", None)
        if config is not None:
            config._attn_implementation = "eager"


def window_states(
    tower: "CLIPVisionModel", pixels: Float[Tensor, "b 3 h w"], corner: tuple[int, int]
) -> Float[Tensor, "b n d"]:
    """The tower's last states of a window that takes some of a picture's places."""
    embeddings = tower.embeddings
    grid = embeddings.patch_embedding(pixels)
    across = math.isqrt(embeddings.num_patches)
    rows, columns = (torch.arange(size, device=pixels.device) for size in grid.shape[2:])
    places = (rows[:, None] + corner[0]) * across + columns + corner[1] + 1
    places = torch.cat([places.new_zeros(1), places.flatten()])
    first = embeddings.class_embedding.expand(len(pixels), 1, -1)
    tokens = torch.cat([first, grid.flatten(2).transpose(1, 2).float()], dim=1)
    tokens = tower.pre_layrnorm(tokens + embeddings.position_embedding(places))
    return tower.post_layernorm(tower.encoder(inputs_embeds=tokens).last_hidden_state)


def best_patches(scores: Float[Tensor, "b n k"]) -> Float[Tensor, "b k"]:
    """The patches' answers as one, by the soft maximum: it is enough that one of them knows."""
    return scores.float().logsumexp(1)


def noun_targets(pictures: Pictures) -> tuple[Float[Tensor, "n nouns"], Bool[Tensor, " n"]]:
    """The nouns each picture's fullest caption has, and whether it tells every colour."""
    nouns = [fullest_nouns(captions) for captions in pictures.captions]
    kinds, stuff, pairs = noun_table(nouns)
    colors = (pairs.float() @ COLOR_OF_PAIR) > 0
    colored = torch.tensor([one.colored for one in nouns])
    return torch.cat([kinds, colors, stuff], dim=1).float(), colored


def noun_loss(
    scores: Float[Tensor, "b nouns"], named: Float[Tensor, "b nouns"], colored: Bool[Tensor, " b"]
) -> Float[Tensor, ""]:
    """Cross-entropy: the kinds against each other, colours and stuff each by itself."""
    kinds = named[:, :_KINDS]
    shares = kinds / kinds.sum(1, keepdim=True).clamp(min=1)
    missed = -(shares * scores[:, :_KINDS].log_softmax(1)).sum(1).mean()
    others = functional.binary_cross_entropy_with_logits(
        scores[:, _KINDS:], named[:, _KINDS:], reduction="none"
    )
    # Captions without colours say nothing on them: their pictures are left out.
    known = colored.float()
    return missed + 2 * (others.mean(1) * known).sum() / known.sum().clamp(min=1)


def train_priming(
    recipe: MiniRecipe,
    windows: Pictures,
    work: Path,
    *,
    device: torch.device,
    log: TrainLog,
    progress: Progress | None = None,
) -> Primer:
    """Train (or resume) the image tower on windows.

    Args:
        recipe: Of the whole miniature; `recipe.clip` is read.
        windows: Square, as the shards "windows" hold them.
        work: Folder of the checkpoint `priming.safetensors`.
        device: Where to train.
        log: The journal.
        progress: Told (done, total) after every step.

    Returns:
        The averaged weights, frozen.
    """
    settings, clip = recipe.clip.priming, recipe.clip
    # A window's things have the size they have in a whole picture.
    side = clip.size * windows.images.shape[1] // recipe.size
    free = (clip.size - side) // clip.patch + 1
    named, colored = noun_targets(windows)
    torch.manual_seed(recipe.seed)
    primer = Primer(clip).to(device)

    def losses(model: Primer, step: int) -> dict[str, Float[Tensor, ""]]:
        rng = np.random.default_rng([recipe.seed, 12, step])
        rows = rng.integers(len(windows.images), size=settings.batch)
        views = draw_views(windows.images[rows], rng, side=side, least=clip.least)
        corner = cast(tuple[int, int], tuple(rng.integers(free, size=2).tolist()))
        with torch.autocast(device.type, torch.bfloat16):
            whole, patches = model(to_pixels(views).to(device), corner)
        told, known = named[rows].to(device), colored[rows].to(device)
        return {"first": noun_loss(whole, told, known), "patches": noun_loss(patches, told, known)}

    return train_steps(
        primer,
        settings,
        losses,
        checkpoint=work / "priming.safetensors",
        log=log,
        progress=progress,
        turn=turn_layers(settings.turn),
    )
