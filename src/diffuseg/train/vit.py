"""The miniature's self-supervised ViT: patches learn to name the clusters their regions fell in.

What stands out in a scene, and what does not, is clustered by shape and by texture from the
pictures alone (`diffuseg.train.silhouettes`); the transformer tells every patch's cluster from
views that are cut, turned, mirrored and recoloured at random (DeepCluster, arXiv 1807.05520, with
given features in place of learned ones). Colours change in what it sees and not in the names, so
that shape has to tell things apart; it names merged, cut and half-hidden things as well, of which
the clusters know nothing. What stands out around each patch is told as well, from the middle of
the layers. Neither captions nor masks are used.

Tried before: foretelling the gradients of hidden patches (MaskFeat, arXiv 2112.09133), whose keys
reach 0.27 in the probe and know nothing of things; and for about 100 steps each, too few to say
what they reach in hours, Sinkhorn-balanced clusters of patches across two views and redundancy
reduction between them.
"""

import copy
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor, nn
from torch.nn import functional

from diffuseg.errors import InputError
from diffuseg.train.data import Progress
from diffuseg.train.log import TrainLog
from diffuseg.train.loop import train_steps, turn_layers
from diffuseg.train.recipe import MiniRecipe, VitRecipe
from diffuseg.train.silhouettes import UNKNOWN, name_regions

if TYPE_CHECKING:
    from transformers import ViTModel

MEAN: tuple[float, float, float] = (0.5, 0.5, 0.5)
STD: tuple[float, float, float] = (0.25, 0.25, 0.25)
"""Of the pixels, as written into the preprocessor's configuration."""
_STUFF = 0.25  # weight of what is no silhouette
_AROUND = 3.0  # weight of the silhouettes around
_AIMED = 0.85  # share of views that hold a point of a silhouette


def build_vit(recipe: VitRecipe) -> "ViTModel":
    """An untrained transformer of the recipe's shape."""
    from transformers import ViTConfig, ViTModel

    config = ViTConfig(
        hidden_size=recipe.width,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        intermediate_size=4 * recipe.width,
        image_size=recipe.size,
        patch_size=recipe.patch,
        hidden_act="gelu",
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    model = ViTModel(config, add_pooling_layer=False)
    for module in model.modules():
        # transformers' deviation of 0.02 suits a width of 768 and starts this one all but silent.
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
    with torch.no_grad():
        # Waves of many lengths, so that what is near looks near from the first step on.
        waves = _wave_positions(recipe.size // recipe.patch, recipe.width)
        model.embeddings.position_embeddings[0, 1:] = waves
        model.embeddings.position_embeddings[0, 0] = 0
        nn.init.trunc_normal_(model.embeddings.cls_token, std=0.02)
    return model


def _wave_positions(grid: int, width: int) -> Float[Tensor, "n d"]:
    """Sines and cosines of the row and of the column (MAE, arXiv 2111.06377), at half height."""
    rates = 32.0 ** -torch.linspace(0, 1, width // 4)
    angles = torch.arange(grid)[:, None] * rates
    waves = 0.5 * torch.cat([angles.sin(), angles.cos()], dim=1)
    rows, columns = waves[:, None].expand(-1, grid, -1), waves[None].expand(grid, -1, -1)
    return torch.cat([rows, columns], dim=-1).flatten(0, 1)


class Learner(nn.Module):
    """The transformer with the heads that only training needs.

    Names are read off the last layer's keys too, which methods use, and not only off its output.
    """

    def __init__(self, recipe: VitRecipe) -> None:
        super().__init__()
        self.vit = build_vit(recipe)
        for module in self.vit.modules():
            config = getattr(module, "config", None)
            if config is not None:
                config._attn_implementation = "eager"  # see `diffuseg.train.priming.start_layers`
        names = recipe.shapes + recipe.textures
        self.around = nn.Linear(recipe.width, (2 * recipe.window) ** 2)
        self.from_keys = nn.Linear(recipe.width, names)
        self.from_tokens = nn.Linear(recipe.width, names)

    def forward(
        self, pixels: Float[Tensor, "v 3 s s"], corners: Int[Tensor, "v 2"]
    ) -> tuple[Float[Tensor, "v n a"], Float[Tensor, "v n c"], Float[Tensor, "v n c"]]:
        """Scores of what stands out around each patch, and of its names, from keys and output.

        `corners` are the row and column of each view in the grid of a whole picture: views may be
        smaller, and are put anywhere, so that every position is learned at its own scale.
        """
        embeddings = self.vit.embeddings
        positions = embeddings.position_embeddings[0]
        tokens = embeddings.patch_embeddings(pixels)
        side, grid = math.isqrt(tokens.shape[1]), math.isqrt(len(positions) - 1)
        rows = corners[:, 0, None] + torch.arange(side, device=corners.device)
        columns = corners[:, 1, None] + torch.arange(side, device=corners.device)
        tokens = tokens + positions[1 + rows[:, :, None] * grid + columns[:, None]].flatten(1, 2)
        first = (embeddings.cls_token + positions[0]).expand(len(tokens), -1, -1)
        tokens = torch.cat([first, tokens], dim=1)
        *others, last = self.vit.layers
        middle = tokens
        for place, layer in enumerate(others):
            tokens = layer(tokens)
            middle = tokens if place < len(self.vit.layers) // 2 else middle
        project = cast(nn.Module, cast(nn.Module, last.attention).k_proj)
        keys = project(cast(nn.Module, last.layernorm_before)(tokens))
        tokens = self.vit.layernorm(last(tokens))
        return (
            self.around(middle[:, 1:]),
            self.from_keys(keys[:, 1:]),
            self.from_tokens(tokens[:, 1:]),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Views:
    """Recoloured views of random scenes.

    Args:
        pixels: Normalised.
        shares: How much of each patch has each name; what has none is missing.
        around: What share of each quarter of the patches around each patch is a silhouette; -1
            where that is not known.
        corners: Row and column of each view in the grid of positions.
    """

    pixels: Float[Tensor, "v 3 s s"]
    shares: Float[Tensor, "v n c"]
    around: Float[Tensor, "v n a"]
    corners: Int[Tensor, "v 2"]


def draw_views(
    images: UInt8[np.ndarray, "n h w 3"],
    maps: UInt8[np.ndarray, "n s s"],
    recipe: VitRecipe,
    rng: np.random.Generator,
    *,
    crop: int,
) -> Views:
    """Cut views of `crop` pixels out of random scenes, as many patches as the recipe's views have.

    Args:
        images: Square scenes.
        maps: The names in them at half size, as `name_regions` gives them.
        recipe: The numbers.
        rng: Source of all choices.
        crop: Side of a view.
    """
    count, side = max(recipe.batch * recipe.crop**2 // crop**2, 1), images.shape[1]
    rows = rng.integers(len(images), size=count)
    scenes = torch.from_numpy(images[rows]).permute(0, 3, 1, 2).float().div_(255)
    names = torch.from_numpy(maps[rows])[:, None].float()
    points = _draw_points(maps[rows] < recipe.shapes, rng)
    cuts = torch.from_numpy(_draw_maps(points, recipe, crop / side, rng)[:, :2]).float()
    grid = functional.affine_grid(cuts, [count, 3, crop, crop], align_corners=False)
    views = functional.grid_sample(scenes, grid, padding_mode="reflection", align_corners=False)
    half = functional.affine_grid(cuts, [count, 1, crop // 2, crop // 2], align_corners=False)
    names = functional.grid_sample(
        names, half, mode="nearest", padding_mode="reflection", align_corners=False
    )
    mean, std = (torch.tensor(value)[:, None, None] for value in (MEAN, STD))
    room = (recipe.size - crop) // recipe.patch + 1
    return Views(
        pixels=(_recolor(views, rng) - mean) / std,
        shares=patch_shares(names[:, 0].long(), recipe.patch // 2, recipe.shapes + recipe.textures),
        around=silhouettes_around(names, recipe),
        corners=torch.from_numpy(rng.integers(room, size=(count, 2))),
    )


def patch_shares(names: Int[Tensor, "v s s"], patch: int, count: int) -> Float[Tensor, "v n c"]:
    """Share of each of `count` names in each patch; pixels of `UNKNOWN` have none.

    Example:
        >>> patch_shares(torch.tensor([[[0, 1], [1, 255]]]), 2, 3)
        tensor([[[0.2500, 0.5000, 0.0000]]])
    """
    views, side = names.shape[0], names.shape[1] // patch
    blocks = names.unflatten(2, (side, patch)).unflatten(1, (side, patch)).transpose(2, 3)
    blocks = blocks.reshape(views, side * side, patch * patch)
    weight = (blocks != UNKNOWN).float() / patch**2
    shares = torch.zeros(views, side * side, count)
    return shares.scatter_add_(2, blocks.where(blocks != UNKNOWN, 0), weight)


def silhouettes_around(
    names: Float[Tensor, "v 1 s s"], recipe: VitRecipe
) -> Float[Tensor, "v n a"]:
    """Share of silhouette in each quarter of `window` x `window` patches; -1 if hardly known."""
    patch, window = recipe.patch // 2, recipe.window
    known = functional.avg_pool2d((names != UNKNOWN).float(), patch // 2)
    share = functional.avg_pool2d((names < recipe.shapes).float(), patch // 2)
    share = torch.where(known > 0.5, share / known.clamp(min=0.5), -1.0)
    edge = (window // 2 * 2,) * 4
    return functional.unfold(functional.pad(share, edge, value=-1.0), 2 * window, stride=2).mT


def around_loss(
    scores: Float[Tensor, "v n a"], around: Float[Tensor, "v n a"]
) -> Float[Tensor, ""]:
    """Binary cross-entropy of what is known."""
    missed = functional.binary_cross_entropy_with_logits(
        scores.float(), around.clamp(min=0), reduction="none"
    )
    known = (around >= 0).float()
    return (missed * known).sum() / known.sum().clamp(min=1)


def naming_loss(
    scores: Float[Tensor, "v n c"], shares: Float[Tensor, "v n c"], shapes: int
) -> Float[Tensor, ""]:
    """Cross-entropy of the named part of the patches; the first `shapes` names are silhouettes'.

    Means over these and over the rest are taken apart: there is far more stuff than things, it is
    learned within a few hundred steps, and nothing else would be.
    """
    missed = -(shares * scores.float().log_softmax(-1)).sum((0, 1))
    area = shares.sum((0, 1))
    things = missed[:shapes].sum() / area[:shapes].sum().clamp(min=1)
    stuff = missed[shapes:].sum() / area[shapes:].sum().clamp(min=1)
    return things + _STUFF * stuff


def _draw_points(
    masks: Bool[np.ndarray, "b s s"], rng: np.random.Generator
) -> Float[np.ndarray, "b 2"]:
    """A place (x, y) in each picture, most of them in its mask."""
    points = rng.uniform(-0.8, 0.8, size=(len(masks), 2))
    aimed = rng.random(len(masks)) < _AIMED
    for place, mask in enumerate(masks):
        inside = np.flatnonzero(mask)
        if aimed[place] and len(inside):
            row, column = divmod(int(rng.choice(inside)), mask.shape[1])
            points[place] = (column, row)
            points[place] = (points[place] + 0.5) / mask.shape[1] * 2 - 1
    return points


def _draw_maps(
    point: Float[np.ndarray, "b 2"], recipe: VitRecipe, share: float, rng: np.random.Generator
) -> Float[np.ndarray, "b 3 3"]:
    """View to scene coordinates: scaled, turned, mirrored, with `point` somewhere inside.

    `share` is a view's side by the scene's, unscaled.
    """
    count = len(point)
    low, high = recipe.zoom
    extent = share * np.exp(rng.uniform(np.log(low), np.log(high), size=(count, 1)))
    stretch = np.exp(rng.uniform(-0.15, 0.15, size=(count, 1)))
    scale = np.concatenate([extent * stretch, extent / stretch], axis=1)
    angle = np.radians(recipe.turn) * rng.uniform(-1, 1, size=count)
    mirror = np.where(rng.random(count) < 0.5, -1.0, 1.0)
    turn = np.stack(
        [
            np.stack([np.cos(angle), -np.sin(angle)], axis=-1),
            np.stack([np.sin(angle), np.cos(angle)], axis=-1),
        ],
        axis=1,
    )
    linear = turn * np.stack([scale[:, 0] * mirror, scale[:, 1]], axis=-1)[:, None]
    inside = rng.uniform(-0.5, 0.5, size=(count, 2))
    centre = point - np.einsum("bij,bj->bi", linear, inside)
    reach = np.maximum(1 - scale, 0)
    centre = np.clip(centre, -reach, reach)
    maps = np.zeros((count, 3, 3))
    maps[:, :2, :2], maps[:, :2, 2], maps[:, 2, 2] = linear, centre, 1
    return maps


_TO_YIQ = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])


def _recolor(views: Float[Tensor, "v 3 s s"], rng: np.random.Generator) -> Float[Tensor, "v 3 s s"]:
    """Turn the hue, scale saturation, contrast and brightness, bend the tone curve."""
    count = len(views)
    angle = np.where(rng.random(count) < 0.85, rng.uniform(-np.pi, np.pi, count), 0.0)
    saturation = np.where(rng.random(count) < 0.2, 0.0, rng.uniform(0.3, 1.3, count))
    inner = np.zeros((count, 3, 3))
    inner[:, 0, 0] = 1
    inner[:, 1, 1] = inner[:, 2, 2] = saturation * np.cos(angle)
    inner[:, 1, 2] = -saturation * np.sin(angle)
    inner[:, 2, 1] = saturation * np.sin(angle)
    matrix = torch.from_numpy(np.linalg.inv(_TO_YIQ) @ inner @ _TO_YIQ).float()
    views = torch.einsum("vij,vjhw->vihw", matrix, views)
    gamma = np.exp(rng.uniform(-0.4, 0.4, count))
    contrast, shift = rng.uniform(0.6, 1.3, count), rng.uniform(-0.15, 0.15, count)
    bend, gain, offset = (
        torch.from_numpy(one).float()[:, None, None, None] for one in (gamma, contrast, shift)
    )
    views = views.clamp(0, 1).pow(bend)
    return ((views - 0.5) * gain + 0.5 + offset).clamp(0, 1)


def train_vit(
    recipe: MiniRecipe,
    images: UInt8[np.ndarray, "n h w 3"],
    work: Path,
    *,
    device: torch.device,
    log: TrainLog,
    progress: Progress | None = None,
) -> "ViTModel":
    """Train (or go on with) the transformer on whole scenes and return its averaged weights.

    Args:
        recipe: Of the whole miniature; `recipe.vit` is read.
        images: Square scenes, larger than `recipe.vit.crop`.
        work: Folder of the checkpoint `vit.safetensors`.
        device: Where to train.
        log: The journal.
        progress: Told (done, total) after every step.

    Raises:
        InputError: The scenes are not square, or smaller than a view.
    """
    settings = recipe.vit
    height, width = images.shape[1:3]
    if height != width or height < settings.crop:
        raise InputError(
            f"the scenes must be square and at least {settings.crop} pixels a side",
            got=f"{height}x{width}",
            remedy='load them with load_pictures(folder, "scenes")',
        )
    images = images[: settings.scenes]
    maps = name_regions(
        images,
        shapes=settings.shapes,
        textures=settings.textures,
        typical=settings.typical,
        seed=recipe.seed,
    )
    torch.manual_seed(recipe.seed)
    learner = Learner(settings).to(device)
    last = round(settings.steps * (1 - settings.whole))

    def losses(model: Learner, step: int) -> dict[str, Float[Tensor, ""]]:
        rng = np.random.default_rng([recipe.seed, 20, step])
        crop = settings.crop if step < last else settings.size
        views = draw_views(images, maps, settings, rng, crop=crop)
        shares = views.shares.to(device)
        with torch.autocast(device.type, torch.bfloat16):
            around, keys, tokens = model(views.pixels.to(device), views.corners.to(device))
        return {
            "around": _AROUND * around_loss(around, views.around.to(device)),
            "keys": naming_loss(keys, shares, settings.shapes),
            "tokens": naming_loss(tokens, shares, settings.shapes),
        }

    average = train_steps(
        learner,
        settings,
        losses,
        checkpoint=work / "vit.safetensors",
        log=log,
        progress=progress,
        turn=turn_layers(settings.muon),
    )
    return average.vit


def export_vit(model: "ViTModel", folder: Path) -> None:
    """Write the transformer in fp16 with its image processor, as transformers reads them."""
    from transformers import ViTImageProcessorPil

    side = cast(int, model.config.image_size)
    copy.deepcopy(model).half().save_pretrained(folder, safe_serialization=True)
    ViTImageProcessorPil(
        size={"height": side, "width": side}, image_mean=list(MEAN), image_std=list(STD)
    ).save_pretrained(folder)
