"""The miniature's self-supervised ViT: hidden patches' shapes are foretold, without labels.

Patches of a view are hidden and for every patch, hidden or not, the histograms of oriented
gradients around it are predicted (MaskFeat, arXiv 2112.09133, with windows in place of single
patches, so that what is seen has to be put together from its surroundings too). Colours are changed
at random in what the transformer sees and not in what it foretells: things come in all colours, and
their shape has to tell them apart. Neither captions nor labels are used.

Tried before, for about 100 steps each, and then no better than an untrained network in the probe of
keys: naming Sinkhorn-balanced clusters of patches across two views (SwAV, iBOT), and redundancy
reduction between the patches of two views (Barlow Twins), with and without each scene's mean. That
is too short to say what they reach in hours.
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
from diffuseg.train.loop import train_steps
from diffuseg.train.recipe import MiniRecipe, VitRecipe

if TYPE_CHECKING:
    from transformers import ViTModel

MEAN: tuple[float, float, float] = (0.5, 0.5, 0.5)
STD: tuple[float, float, float] = (0.25, 0.25, 0.25)
"""Of the pixels, as written into the preprocessor's configuration."""
_BINS = 8


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
    """The transformer with the head and the token that only training needs."""

    def __init__(self, recipe: VitRecipe) -> None:
        super().__init__()
        self.vit = build_vit(recipe)
        self.hidden = nn.Parameter(torch.zeros(recipe.width))
        self.foretell = nn.Linear(recipe.width, recipe.window**2 * (_BINS + 1))

    def forward(
        self,
        pixels: Float[Tensor, "v 3 s s"],
        corners: Int[Tensor, "v 2"],
        masks: Bool[Tensor, "v n"],
    ) -> Float[Tensor, "v n t"]:
        """What is foretold around each patch, those of `masks` being hidden.

        `corners` are the row and column of each view in the grid of a whole picture: views are
        smaller, and are put anywhere, so that every position is learned at its own scale.
        """
        embeddings = self.vit.embeddings
        positions = embeddings.position_embeddings[0]
        tokens = embeddings.patch_embeddings(pixels)
        tokens = torch.where(masks[..., None], self.hidden.to(tokens.dtype), tokens)
        side, grid = math.isqrt(tokens.shape[1]), math.isqrt(len(positions) - 1)
        rows = corners[:, 0, None] + torch.arange(side, device=corners.device)
        columns = corners[:, 1, None] + torch.arange(side, device=corners.device)
        tokens = tokens + positions[1 + rows[:, :, None] * grid + columns[:, None]].flatten(1, 2)
        first = (embeddings.cls_token + positions[0]).expand(len(tokens), -1, -1)
        tokens = torch.cat([first, tokens], dim=1)
        for layer in self.vit.layers:
            tokens = layer(tokens)
        return self.foretell(self.vit.layernorm(tokens)[:, 1:])


@dataclass(frozen=True, kw_only=True, slots=True)
class Views:
    """Recoloured views of random scenes.

    Args:
        pixels: Normalised.
        targets: Gradient histograms around each patch before recolouring, standardised.
        corners: Row and column of each view in the grid of positions.
        masks: The patches that are hidden.
    """

    pixels: Float[Tensor, "v 3 s s"]
    targets: Float[Tensor, "v n t"]
    corners: Int[Tensor, "v 2"]
    masks: Bool[Tensor, "v n"]


def draw_views(
    images: UInt8[np.ndarray, "n h w 3"], recipe: VitRecipe, rng: np.random.Generator
) -> Views:
    """Cut one view out of each of `recipe.batch` random scenes."""
    count, side = recipe.batch, images.shape[1]
    rows = rng.integers(len(images), size=count)
    scenes = torch.from_numpy(images[rows]).permute(0, 3, 1, 2).float().div_(255)
    maps = _draw_maps(rng.uniform(-0.8, 0.8, size=(count, 2)), recipe, side, rng)
    grid = functional.affine_grid(
        torch.from_numpy(maps[:, :2]).float(),
        [count, 3, recipe.crop, recipe.crop],
        align_corners=False,
    )
    views = functional.grid_sample(scenes, grid, padding_mode="reflection", align_corners=False)
    targets = describe_patches(views, recipe.patch, recipe.window)
    mean, std = (torch.tensor(value)[:, None, None] for value in (MEAN, STD))
    room = (recipe.size - recipe.crop) // recipe.patch + 1
    share = rng.uniform(0, recipe.most_hidden, size=(count, 1))
    return Views(
        pixels=(_recolor(views, rng) - mean) / std,
        targets=targets,
        corners=torch.from_numpy(rng.integers(room, size=(count, 2))),
        masks=torch.from_numpy(rng.random(targets.shape[:2]) < share),
    )


def describe_patches(
    views: Float[Tensor, "v 3 s s"], patch: int, window: int
) -> Float[Tensor, "v n t"]:
    """Histograms of oriented gradients in the `window` x `window` patches around each patch.

    Unsigned directions in 8 bins, of the channel with the strongest gradient (Dalal and Triggs
    2005), relative to the strength of the 3 x 3 patches around; and the logarithm of the strength.
    Standardised over all patches given.
    """
    across = functional.pad(views[..., 2:] - views[..., :-2], (1, 1))
    down = functional.pad(views[..., 2:, :] - views[..., :-2, :], (0, 0, 1, 1))
    strength = (across.square() + down.square()).sqrt()
    best = strength.argmax(dim=1, keepdim=True)
    across, down, strength = (one.gather(1, best)[:, 0] for one in (across, down, strength))
    angle = (torch.atan2(down, across) % torch.pi) / torch.pi * _BINS
    lower = angle.floor()
    upper_share = angle - lower
    first = lower.long() % _BINS
    planes = strength.new_zeros(len(views), _BINS, *strength.shape[1:])
    planes.scatter_add_(1, first[:, None], (strength * (1 - upper_share))[:, None])
    planes.scatter_add_(1, ((first + 1) % _BINS)[:, None], (strength * upper_share)[:, None])
    cells = functional.avg_pool2d(planes, patch)
    whole = functional.avg_pool2d(strength[:, None], patch)
    around = functional.avg_pool2d(whole.square(), 3, 1, 1, count_include_pad=False).sqrt() + 0.02
    cells = torch.cat([cells / around, (whole + 0.02).log()], dim=1)
    padded = functional.pad(cells, (window // 2,) * 4, mode="reflect")
    windows = functional.unfold(padded, window).mT
    return (windows - windows.mean((0, 1))) / (windows.std((0, 1)) + 1e-3)


def _draw_maps(
    point: Float[np.ndarray, "b 2"], recipe: VitRecipe, side: int, rng: np.random.Generator
) -> Float[np.ndarray, "b 3 3"]:
    """View to scene coordinates: scaled, turned, mirrored, with `point` somewhere inside."""
    count = len(point)
    low, high = recipe.zoom
    extent = recipe.crop / side * np.exp(rng.uniform(np.log(low), np.log(high), size=(count, 1)))
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
    torch.manual_seed(recipe.seed)
    learner = Learner(settings).to(device)

    def losses(model: Learner, step: int) -> dict[str, Float[Tensor, ""]]:
        rng = np.random.default_rng([recipe.seed, 20, step])
        views = draw_views(images, settings, rng)
        with torch.autocast(device.type, torch.bfloat16):
            found = model(views.pixels.to(device), views.corners.to(device), views.masks.to(device))
        return {"error": functional.smooth_l1_loss(found.float(), views.targets.to(device))}

    average = train_steps(
        learner,
        settings,
        losses,
        checkpoint=work / "vit.safetensors",
        log=log,
        progress=progress,
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
