"""How much the heads of self-attention layers disagree.

"Diffuse, Attend, and Segment" (Tian et al., CVPR 2024), table 4: the paper's argument for taking
the mean over heads is that they differ by less than the threshold at which maps are merged.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from diffuseg import ops
from diffuseg.attention import averages
from diffuseg.attention.attention_record import AttentionRecord
from diffuseg.errors import InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadDivergence:
    """Mean symmetric KL divergence of the heads of a query from each other, in nats.

    Attributes:
        mean: Over all layers, each counting the same.
        grids: Over the layers of every grid (h, w).
        layers: Of every layer, by name.
    """

    mean: float
    grids: Mapping[tuple[int, int], float]
    layers: Mapping[str, float]


def head_divergence(record: AttentionRecord, step: int | float | None = None) -> HeadDivergence:
    """Compare the heads of every recorded self-attention layer, all queries, all pairs of heads.

    The paper has 0.46 on COCO-Stuff and 0.45 on Cityscapes for Stable Diffusion, next to
    thresholds of 1.1 and 0.9, without saying how it averages; here each layer counts the same.

    Args:
        record: With queries and keys kept.
        step: A recorded timestep; None for the mean over all passes.

    Raises:
        InputError: Nothing of the kind was recorded, or no layer has two heads.

    Example:
        >>> import diffuseg as ds  # doctest: +SKIP
        >>> find = ds.build_segmenter("mini", "diffseg")  # doctest: +SKIP
        >>> head_divergence(find.capture("a.png")).mean  # doctest: +SKIP
        0.31
    """
    contents = record._contents
    layers = contents.stored("self")
    passes = contents.passes_at(step)
    found: dict[str, float] = {}
    for layer in layers:
        values: list[float] = []
        for one in passes:
            q, k = averages.pick_heads(one, layer, None)
            if q.shape[1] > 1:
                bias = one.biases.get(layer.name)
                apart = ops.head_divergence(q, k, scale=layer.scale, bias=bias)
                values.append(float(apart.mean()))
        if values:
            found[layer.name] = sum(values) / len(values)
    if not found:
        raise InputError(
            "heads can be compared where a layer of self-attention has two or more",
            got=f"{len(layers)} layers with queries and keys kept",
            remedy="record self-attention without reduce=, and more than one head",
        )
    grids: dict[tuple[int, int], list[float]] = {}
    for name, value in found.items():
        grids.setdefault(contents.grids[name], []).append(value)
    return HeadDivergence(
        mean=sum(found.values()) / len(found),
        grids={hw: sum(of) / len(of) for hw, of in sorted(grids.items(), reverse=True)},
        layers=found,
    )
