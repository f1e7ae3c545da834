"""Which attention layers a U-Net has, and which of them a caller means.

Layer names are diffusers' module paths. What a path does not say — head count, scale, by how much
the layer's grid is smaller than the latent — is read from the modules.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase

from torch import nn

from diffuseg.errors import InputError

KINDS = ("self", "cross", "temporal")

_STAGES = {"down_blocks": "down", "mid_block": "mid", "up_blocks": "up"}
_FORWARD_ORDER = {"down": 0, "mid": 1, "up": 2}
_SPATIAL = "transformer_blocks"
_TEMPORAL = "temporal_transformer_blocks"
_COMPILED = "_orig_mod"


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerId:
    """One attention layer of a U-Net.

    Attributes:
        name: diffusers' module path, such as "up_blocks.1.attentions.2.transformer_blocks.0.attn1".
        stage: "down", "mid" or "up".
        block: Number of the block in its stage (0 for mid).
        index: Number of the transformer in its block.
        depth: Number of the transformer block in its transformer.
        kind: "self" (among the image's positions), "cross" (to the text) or "temporal" (any
            attention of a video model's temporal blocks).
        heads: Attention heads.
        width: Channels of one head.
        scale: Factor on the scores before the softmax.
        factor: Side of the latent divided by side of this layer's grid: 1, 2, 4, 8.
    """

    name: str
    stage: str
    block: int
    index: int
    depth: int
    kind: str
    heads: int
    width: int
    scale: float
    factor: int

    def hw(self, latent_hw: tuple[int, int]) -> tuple[int, int]:
        """Return the layer's grid (h, w) for a latent: every halving rounds up, as the U-Net's.

        Example:
            >>> layer = LayerId(name="x", stage="down", block=2, index=0, depth=0, kind="self",
            ...                 heads=8, width=160, scale=0.079, factor=4)
            >>> layer.hw((18, 30))
            (5, 8)
        """
        height, width = latent_hw
        return math.ceil(height / self.factor), math.ceil(width / self.factor)


@dataclass(frozen=True, slots=True)
class Site:
    """A layer and the modules of it that hooks are attached to."""

    layer: LayerId
    transformer: nn.Module
    attention: nn.Module


def unet_of(model: object) -> tuple[nn.Module, nn.Module]:
    """Return the U-Net of a pipeline, backbone or U-Net: as it is called, and without compilation.

    Raises:
        InputError: `model` is none of these.
    """
    called = getattr(model, "unet", model)
    if not isinstance(called, nn.Module):
        raise InputError(
            "model must be a U-Net, a diffusers pipeline or a diffuseg backbone",
            got=type(model).__name__,
            remedy="pass pipe.unet, pipe, or the result of diffuseg.load()",
        )
    return called, getattr(called, _COMPILED, called)


def layers_of(model: object) -> tuple[LayerId, ...]:
    """Return every attention layer of a model's transformers, in the order a forward pass has them.

    Args:
        model: A diffusers U-Net (2D conditional or spatio-temporal, also compiled), or anything
            with one as `.unet`.

    Raises:
        InputError: `model` is no U-Net or has no transformer blocks.

    Example:
        >>> from diffusers import UNet2DConditionModel
        >>> unet = UNet2DConditionModel(
        ...     block_out_channels=(8, 8), attention_head_dim=2, norm_num_groups=4,
        ...     cross_attention_dim=4, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        ...     up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"))
        >>> [(layer.stage, layer.kind, layer.factor) for layer in layers_of(unet)][3:6]
        [('down', 'cross', 1), ('mid', 'self', 2), ('mid', 'cross', 2)]
    """
    return tuple(site.layer for site in sites_of(unet_of(model)[1]))


def sites_of(unet: nn.Module) -> tuple[Site, ...]:
    """Return every attention layer of an uncompiled U-Net with its modules, in forward order."""
    factors = _block_factors(unet)
    found: list[tuple[tuple[int | bool | str, ...], Site]] = []
    for path, attention in unet.named_modules():
        # A part compiled on its own adds a segment that uncompiled paths do not have.
        parts = [part for part in path.split(".") if part != _COMPILED]
        if parts[-1] not in ("attn1", "attn2") or len(parts) < 5 or parts[0] not in _STAGES:
            continue
        temporal = _TEMPORAL in parts
        if parts[-3] not in (_SPATIAL, _TEMPORAL):
            continue
        stage = _STAGES[parts[0]]
        block = 0 if stage == "mid" else int(parts[1])
        cross = bool(getattr(attention, "is_cross_attention", parts[-1] == "attn2"))
        heads = int(attention.heads)  # pyright: ignore[reportArgumentType]
        layer = LayerId(
            name=".".join(parts),
            stage=stage,
            block=block,
            index=next(int(part) for part in parts[2:] if part.isdigit()),
            depth=int(parts[-2]),
            kind="temporal" if temporal else "cross" if cross else "self",
            heads=heads,
            width=int(attention.inner_dim) // heads,  # pyright: ignore[reportArgumentType]
            scale=float(attention.scale),  # pyright: ignore[reportArgumentType]
            factor=factors[stage, block],
        )
        transformer = unet.get_submodule(_owner(path))
        order = (_FORWARD_ORDER[stage], block, layer.index, layer.depth, temporal, parts[-1])
        found.append((order, Site(layer, transformer, attention)))
    if not found:
        raise InputError(
            "the model must be a U-Net with transformer blocks",
            got=f"{type(unet).__name__} without any",
            remedy="pass the U-Net of Stable Diffusion 1.x, 2.x, XL or Stable Video Diffusion",
        )
    return tuple(site for _, site in sorted(found, key=lambda item: item[0]))


def _owner(path: str) -> str:
    parts = path.split(".")
    return ".".join(parts[: next(i for i, p in enumerate(parts) if p in (_SPATIAL, _TEMPORAL))])


def _block_factors(unet: nn.Module) -> dict[tuple[str, int], int]:
    factors: dict[tuple[str, int], int] = {}
    factor = 1
    for number, block in enumerate(getattr(unet, "down_blocks", ())):
        factors["down", number] = factor
        factor *= 2 if getattr(block, "downsamplers", None) else 1
    factors["mid", 0] = factor
    for number, block in enumerate(getattr(unet, "up_blocks", ())):
        factors["up", number] = factor
        factor //= 2 if getattr(block, "upsamplers", None) else 1
    return factors


def select_layers(
    layers: Sequence[LayerId],
    *,
    names: object = "*",
    kinds: object = KINDS,
    levels: object = None,
) -> tuple[LayerId, ...]:
    """Return the layers meant by name patterns, kinds and levels.

    Args:
        layers: All there are.
        names: A shell pattern on the name, or several; "*" also matches dots.
        kinds: Some of "self", "cross", "temporal"; one as plain text will do.
        levels: Factors (1, 2, 4, 8), or None for all.

    Raises:
        InputError: A kind or level that does not exist, or a selection that matches no layer.
    """
    patterns = as_tuple(names, str, "layers must be a pattern on module paths, or several")
    wanted = check_kinds(kinds, KINDS)
    factors = sorted({layer.factor for layer in layers})
    chosen = factors if levels is None else as_tuple(levels, int, "levels must be whole numbers")
    if not chosen or not set(chosen) <= set(factors):
        raise InputError(
            f"levels must be factors this model has: {', '.join(map(str, factors))}",
            got=levels,
            remedy="a level is the side of the latent divided by the side of the layer's grid",
        )
    selected = tuple(
        layer
        for layer in layers
        if layer.kind in wanted
        and layer.factor in chosen
        and any(fnmatchcase(layer.name, pattern) for pattern in patterns)
    )
    if not selected:
        blocks = dict.fromkeys(".".join(layer.name.split(".")[:2]) for layer in layers)
        raise InputError(
            "the selection must match at least one attention layer",
            got=f"layers={names!r}, kinds={kinds!r}, levels={levels!r}",
            remedy=f"attention is in {', '.join(blocks)} (a pattern must match the whole path, "
            f'for example "{next(iter(blocks))}.*"), of kinds '
            f"{', '.join(dict.fromkeys(layer.kind for layer in layers))}, at levels "
            f"{', '.join(map(str, factors))}",
        )
    return selected


def check_kinds(kinds: object, allowed: Sequence[str]) -> tuple[str, ...]:
    """Return kinds of layers as a tuple.

    Raises:
        InputError: None is given, or one that is not allowed.
    """
    expected = f"kinds must be some of {', '.join(allowed)}"
    chosen = as_tuple(kinds, str, expected)
    if not chosen or not set(chosen) <= set(allowed):
        raise InputError(expected, got=kinds, remedy=f'for example ("{allowed[0]}",)')
    return chosen


def as_tuple(value: object, kind: type, expected: str) -> tuple:
    """Return one value or a collection of values as a tuple, all of type `kind`.

    Raises:
        InputError: Anything else.
    """
    items: object = (value,) if isinstance(value, kind) else value
    if isinstance(items, Collection) and not isinstance(items, str | bytes):
        found = tuple(items)
        if all(isinstance(item, kind) and not isinstance(item, bool) for item in found):
            return found
    raise InputError(expected, got=value, remedy=f"pass one {kind.__name__} or a tuple of them")


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerShape:
    """Sizes of a layer's attention for one call of the U-Net.

    Attributes:
        layer: The layer.
        hw: Its grid.
        rows: Rows of the batch as the layer has them (temporal layers: one for each position).
        heads: Heads that are recorded.
        queries: n, the positions that look.
        keys: m, what they look at.
    """

    layer: LayerId
    hw: tuple[int, int]
    rows: int
    heads: int
    queries: int
    keys: int

    @property
    def elements(self) -> int:
        """Numbers in the layer's queries and keys together."""
        return self.rows * self.heads * (self.queries + self.keys) * self.layer.width


def shape_of(
    layer: LayerId,
    latent_hw: tuple[int, int],
    *,
    batch: int,
    frames: int,
    tokens: int,
    heads: int | None = None,
) -> LayerShape:
    """Return the sizes of a layer's attention; `batch` counts videos for a video model."""
    hw = layer.hw(latent_hw)
    positions = hw[0] * hw[1]
    temporal = layer.kind == "temporal"
    queries = frames if temporal else positions
    cross = layer.kind == "cross" or (temporal and layer.name.endswith("attn2"))
    return LayerShape(
        layer=layer,
        hw=hw,
        rows=batch * (positions if temporal else frames),
        heads=heads or layer.heads,
        queries=queries,
        keys=tokens if cross else queries,
    )


def find_module(unet: nn.Module, path: str) -> nn.Module:
    """Return the module at a path.

    Raises:
        InputError: There is none; names the closest paths.
    """
    modules = dict(unet.named_modules())
    if path not in modules or not path:
        near = get_close_matches(path, modules, n=3, cutoff=0.3) or list(modules)[1:4]
        raise InputError(
            "a feature must be the path of a module of the U-Net",
            got=path,
            remedy=f"for example {', '.join(near)}",
        )
    return modules[path]
