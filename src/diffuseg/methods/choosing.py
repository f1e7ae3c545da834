"""Which layers and resolutions of a model a method reads, chosen by its settings."""

from collections.abc import Sequence
from fnmatch import fnmatchcase

from diffuseg.attention import LayerId
from diffuseg.errors import InputError

LEVEL_WEIGHTS = {8: 0.3, 4: 0.5, 2: 0.1, 1: 0.1}
"""By latent side over grid side; DiffSegmenter's 0.3, 0.5, 0.1, 0.1 for grids of 8, 16, 32, 64."""


def level_weight(level: int) -> float:
    """DiffSegmenter's weight of a level; those finer or coarser count as little as its finest.

    Example:
        >>> level_weight(4), level_weight(16)
        (0.5, 0.1)
    """
    return LEVEL_WEIGHTS.get(level, 0.1)


def matches(layer: LayerId, patterns: tuple[str, ...] | None) -> bool:
    """Whether a layer's name matches one of the patterns; None matches all."""
    return patterns is None or any(fnmatchcase(layer.name, one) for one in patterns)


def choose_cross(
    layers: Sequence[LayerId],
    levels: tuple[int, ...] | None,
    patterns: tuple[str, ...] | None,
) -> list[LayerId]:
    """Return the cross-attention layers of some levels whose names match.

    Raises:
        InputError: There is none.
    """
    found = [
        layer
        for layer in layers
        if layer.kind == "cross"
        and (levels is None or layer.factor in levels)
        and matches(layer, patterns)
    ]
    if not found:
        raise InputError(
            "levels and layers must select cross-attention layers of the model",
            got=f"levels={levels}, layers={patterns}",
            remedy="levels here are "
            + ", ".join(map(str, sorted({one.factor for one in layers})))
            + f"; a layer is called, for example, {layers[-1].name}",
        )
    return found


def choose_self(
    layers: Sequence[LayerId], patterns: tuple[str, ...] | None, *, finest: bool = True
) -> list[LayerId]:
    """Return the self-attention layers whose names match, only the finest of them if asked.

    Raises:
        InputError: There is none.
    """
    found = [layer for layer in layers if layer.kind == "self" and matches(layer, patterns)]
    if not found:
        raise InputError(
            "self_layers must match self-attention layers of the model",
            got=patterns,
            remedy="leave it out, or use a pattern such as up_blocks.3.*",
        )
    least = min(layer.factor for layer in found)
    return [layer for layer in found if layer.factor == least] if finest else found


def weigh_levels(
    recorded: Sequence[LayerId],
    levels: tuple[int, ...] | None,
    weights: tuple[float, ...] | None,
) -> list[tuple[int, float]]:
    """Return the levels used and how much each counts, coarse to fine if nobody has said.

    Args:
        recorded: The cross-attention layers a record has of those chosen.
        levels: Asked for; None: all.
        weights: One a level; None: DiffSegmenter's.

    Raises:
        InputError: There is not one weight a level.
    """
    found = sorted({one.factor for one in recorded if one.kind == "cross"}, reverse=True)
    used = found if levels is None else levels
    if weights is None:
        return [(level, level_weight(level)) for level in used]
    if len(weights) != len(used):
        raise InputError(
            "there must be one weight a level",
            got=f"{len(weights)} weights for levels {', '.join(map(str, used))}",
            remedy="give levels and weights together",
        )
    return [pair for pair in zip(used, weights, strict=True) if pair[1] > 0]
