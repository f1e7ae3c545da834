"""The record of attention: queries, keys and features of a U-Net, and maps on demand.

A record does not keep attention maps (1.4 GB for Stable Diffusion at 512 x 512, in half precision)
but the queries and keys they come from (46 MB), or means taken while recording. It needs no
model, saves to one file, and gives the same maps when it is loaded again.
"""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from difflib import get_close_matches

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from diffuseg import ops
from diffuseg.attention import averages
from diffuseg.attention.captured import CapturedPass, Contents, RecordHeader, ReducedMap
from diffuseg.attention.layers import LayerId, as_tuple
from diffuseg.attention.record_file import read_record, write_record
from diffuseg.errors import InputError

__all__ = ["AttentionRecord", "RecordHeader", "ReducedMap"]


class AttentionRecord:
    """What was captured from a U-Net, by layer and timestep.

    Comes out of `with record(...)` or `AttentionRecord.load`. Maps are float32, made when asked
    for, a few query rows at a time, and averaged over heads as they are made.

    Example:
        >>> AttentionRecord(Contents())
        AttentionRecord(unnamed model: no layers, no passes, 0.0 MB)
    """

    def __init__(self, contents: Contents) -> None:
        self._contents = contents

    # ---- what there is

    @property
    def header(self) -> RecordHeader:
        """What this is a record of."""
        return self._contents.header

    @property
    def layers(self) -> tuple[LayerId, ...]:
        """The recorded layers in the order of a forward pass, reduced ones included."""
        return tuple(self._contents.layers)

    @property
    def timesteps(self) -> tuple[int | float, ...]:
        """The timestep of every pass, in order; a scheduler may repeat one (PNDM does)."""
        return self._contents.timesteps

    @property
    def batch(self) -> int:
        """Rows of the recorded batch; 0 if only temporal layers or nothing was recorded."""
        for layer in [*self._contents.stored("self"), *self._contents.stored("cross")]:
            return self._contents.passes[0].queries[layer.name].shape[0]
        if self._contents.reduced:
            return self._contents.reduced[0].values.shape[0]
        features = [one for part in self._contents.passes for one in part.features.values()]
        return features[0].shape[0] if features else 0

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors kept."""
        return sum(one.nbytes for one in self._contents.passes) + sum(
            one.values.nbytes for one in self._contents.reduced
        )

    @property
    def reduced(self) -> tuple[ReducedMap, ...]:
        """The means taken while recording (`record(reduce=...)`)."""
        return tuple(self._contents.reduced)

    def grid(self, layer: LayerId | str) -> tuple[int, int]:
        """Return the true grid (h, w) of a layer, as the model had it.

        Raises:
            InputError: No such layer was recorded.
        """
        return self._contents.grids[self._layer(layer).name]

    def grids(self, kind: str) -> tuple[tuple[int, int], ...]:
        """Return the grids (h, w) recorded for a kind of layer, largest first."""
        return averages.grids_of(self._contents, kind)

    def __repr__(self) -> str:
        kinds = Counter(layer.kind for layer in self.layers)
        layers = ", ".join(f"{count} {kind}" for kind, count in kinds.items()) or "no"
        grids = dict.fromkeys(sorted(self._contents.grids.values(), reverse=True))
        parts = [f"{layers} layers"]
        if grids:
            parts.append("grids " + " ".join(f"{h}x{w}" for h, w in grids))
        steps = self.timesteps
        parts.append(f"steps {', '.join(map(str, steps))}" if steps else "no passes")
        parts += [f"batch {self.batch}"] if steps else []
        names = dict.fromkeys(name for one in self._contents.passes for name in one.features)
        parts += [f"features {', '.join(names)}"] if names else []
        parts += [f"{len(self._contents.reduced)} reduced maps"] if self._contents.reduced else []
        parts.append(f"{self.nbytes / 1e6:.1f} MB")
        return f"AttentionRecord({self.header.model or 'unnamed model'}: {', '.join(parts)})"

    # ---- one layer

    def queries(
        self, layer: LayerId | str, step: int | float | None = None
    ) -> Float[Tensor, "b h n d"]:
        """Return the queries of a layer at a step (may be left out if there is only one).

        Raises:
            InputError: Nothing of the kind was recorded, or the step is needed and missing.
        """
        return self._one_pass(step).queries[self._stored_layer(layer).name]

    def keys(
        self, layer: LayerId | str, step: int | float | None = None
    ) -> Float[Tensor, "b h m d"]:
        """Return the keys of a layer at a step; as `queries`."""
        return self._one_pass(step).keys[self._stored_layer(layer).name]

    def features(self, name: str, step: int | float | None = None) -> Float[Tensor, "b ..."]:
        """Return the output of the module `name`, as the model computed it.

        Raises:
            InputError: No such feature was recorded, or the step is needed and missing.
        """
        features = self._one_pass(step).features
        if name not in features:
            raise InputError(
                "a feature must have been recorded",
                got=name,
                remedy=f"recorded: {', '.join(features) or 'none'}; name it in "
                "record(features=...)",
            )
        return features[name]

    def maps(
        self,
        layer: LayerId | str,
        step: int | float | None = None,
        *,
        heads: Sequence[int] | None = None,
        chunk: int | None = None,
    ) -> Float[Tensor, "b n m"]:
        """Return a layer's attention maps, averaged over heads (and over steps if none is named).

        Args:
            layer: The layer or its name.
            step: A recorded timestep; None for the mean over all passes.
            heads: Some of the recorded heads; None for all.
            chunk: Query rows at a time; changes memory, not the result.

        Raises:
            InputError: The layer, step or a head was not recorded, or the layer was reduced.
        """
        found = self._stored_layer(layer)
        grid = self._contents.grids[found.name]
        mean = averages.average(self._contents, grid, [found], step=step, heads=heads, chunk=chunk)
        return mean.values

    def head_maps(
        self,
        layer: LayerId | str,
        step: int | float | None = None,
        *,
        heads: Sequence[int] | None = None,
    ) -> Float[Tensor, "b h n m"]:
        """Return the attention maps of every head of a layer at a step; as `maps`."""
        found = self._stored_layer(layer)
        one = self._one_pass(step)
        q, k = averages.pick_heads(one, found, heads)
        return ops.head_maps(q, k, scale=found.scale, bias=one.biases.get(found.name))

    # ---- one grid

    def self_attention(
        self,
        hw: tuple[int, int] | None = None,
        *,
        level: int | None = None,
        layers: str | Sequence[str] = "*",
        step: int | float | None = None,
        heads: Sequence[int] | None = None,
    ) -> Float[Tensor, "b n n"]:
        """Return the mean of all self-attention maps of one grid, over layers, heads and steps.

        Args:
            hw: The grid (h, w); may be left out if only one was recorded.
            level: Instead of `hw`: side of the latent divided by side of the grid.
            layers: Only layers whose path matches this pattern or one of these.
            step: Only this timestep.
            heads: Only these of the recorded heads.

        Raises:
            InputError: No such grid, layer, step or head was recorded.
        """
        return self._mean("self", hw, level, layers, step, heads)

    def cross_attention(
        self,
        hw: tuple[int, int] | None = None,
        *,
        level: int | None = None,
        layers: str | Sequence[str] = "*",
        step: int | float | None = None,
        heads: Sequence[int] | None = None,
    ) -> Float[Tensor, "b n t"]:
        """Return the mean of all cross-attention maps of one grid; as `self_attention`."""
        return self._mean("cross", hw, level, layers, step, heads)

    def cross(
        self,
        word: str | int | Sequence[int],
        hw: tuple[int, int] | None = None,
        *,
        levels: int | Sequence[int] | None = None,
        layers: str | Sequence[str] = "*",
        step: int | float | None = None,
    ) -> Float[Tensor, "r h w"]:
        """Return where a word looks: its cross-attention, averaged over tokens, heads and grids.

        The grids' means are resized to `hw` (bilinear, half-pixel) and every head map counts the
        same, as in DAAM (Tang et al. 2022, arXiv 2210.04885).

        Args:
            word: A class of the header's spans, any word of its prompts, or token indices.
            hw: Size of the result; default the largest grid.
            levels: Only grids at these factors.
            layers: Only layers whose path matches this pattern or one of these.
            step: Only this timestep.

        Returns:
            One map for every row of the batch whose prompt has the word, in order of the rows.

        Raises:
            InputError: The word is in no prompt, or no such grid, layer or step was recorded.
        """
        if isinstance(word, str):
            places = self.header.places(word, self.batch)
        else:
            tokens = as_tuple(word, int, "a word must be text or token indices")
            places = [(row, tokens) for row in range(self.batch)]
        contents = self._contents
        pooled = {one.hw: [one] for one in self.reduced if one.pooled and one.kind == "cross"}
        if not pooled or self.grids("cross"):
            found = averages.sources_of(contents, "cross", levels=levels, layers=layers)
        else:
            found = pooled
        means = [averages.average(contents, grid, one, step=step) for grid, one in found.items()]
        size = hw or means[0].hw
        resized = [
            ops.resize(torch.stack([averages.column(mean, *at) for at in places])[:, None], size)
            for mean in means
        ]
        return ops.weighted_mean(resized, [mean.count for mean in means])[:, 0]

    # ---- parts, and files

    def rows(self, index: int | slice | Sequence[int]) -> "AttentionRecord":
        """Return the record of some rows of the batch; tensors are shared, not copied.

        Raises:
            InputError: A row is not there, or temporal layers were recorded (theirs are not rows
                of the batch).
        """
        batch = self.batch
        if any(layer.kind == "temporal" for layer in self.layers):
            raise InputError(
                "rows can be taken from spatial layers only",
                got="a record with temporal layers",
                remedy='record them apart: record(..., kinds=("self", "cross"))',
            )
        asked = range(batch)[index] if isinstance(index, slice) else index
        chosen = [asked] if isinstance(asked, int) else list(asked)
        if not chosen or not all(-batch <= row < batch for row in chosen):
            raise InputError(
                f"rows must be among the {batch} of the batch", got=index, remedy="count from 0"
            )
        chosen = [row % batch for row in chosen]
        run = slice(chosen[0], chosen[-1] + 1)
        at = run if chosen == list(range(batch))[run] else chosen
        contents = replace(
            self._contents,
            header=self.header.of_rows(chosen, batch),
            passes=[one.rows(at) for one in self._contents.passes],
            reduced=[replace(one, values=one.values[at]) for one in self.reduced],
        )
        return AttentionRecord(contents)

    def only(
        self, layers: str | Sequence[str] = "*", *, steps: Sequence[int | float] | None = None
    ) -> "AttentionRecord":
        """Return the record of some layers and timesteps; tensors are shared, not copied.

        What was recorded for several settings gives each the record it would have asked for.

        Args:
            layers: Patterns on the names of the layers.
            steps: Recorded timesteps; None for all.

        Raises:
            InputError: No such layer or timestep was recorded, or means were taken by `reduce=`.
        """
        patterns = as_tuple(layers, str, "layers must be a pattern on module paths, or several")
        return AttentionRecord(self._contents.only(patterns, steps))

    @property
    def picture(self) -> UInt8[Tensor, "3 H W"] | None:
        """The picture as the model saw it, where it was asked for."""
        return self._contents.picture

    def with_picture(self, picture: UInt8[Tensor, "3 H W"]) -> "AttentionRecord":
        """Return the same record with the picture the model saw; tensors are shared."""
        return AttentionRecord(replace(self._contents, picture=picture))

    def with_header(self, header: RecordHeader) -> "AttentionRecord":
        """Return the same record under another header; tensors are shared, not copied."""
        return AttentionRecord(replace(self._contents, header=header))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the record to one safetensors file, its header readable in the file's metadata.

        Raises:
            InputError: The file cannot be written there.
        """
        write_record(path, self._contents)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "AttentionRecord":
        """Read a record that `save` wrote.

        Raises:
            InputError: There is no such file, or it is no record, is damaged, or of a version
                this one cannot read.
        """
        return cls(read_record(path))

    # ---- looking things up

    def _layer(self, layer: LayerId | str) -> LayerId:
        name = layer if isinstance(layer, str) else layer.name
        for one in self.layers:
            if one.name == name:
                return one
        near = get_close_matches(name, [one.name for one in self.layers], n=3, cutoff=0.1)
        raise InputError(
            "the layer must have been recorded",
            got=name,
            remedy=f"for example {', '.join(near)}" if near else "no layer was recorded",
        )

    def _stored_layer(self, layer: LayerId | str) -> LayerId:
        found = self._layer(layer)
        if found not in self._contents.stored(found.kind):
            raise InputError(
                "queries and keys of the layer must have been kept",
                got=f"{found.name} was reduced to a mean while recording",
                remedy="record without reduce=, or use the mean (self_attention, cross_attention)",
            )
        return found

    def _one_pass(self, step: int | float | None) -> CapturedPass:
        passes = self._contents.passes_at(step)
        if step is None and len(passes) > 1:
            raise InputError(
                "one step must be named when several were recorded",
                got="none",
                remedy=f"step= one of {', '.join(map(str, self.timesteps))}",
            )
        return passes[-1]

    def _mean(
        self,
        kind: str,
        hw: tuple[int, int] | None,
        level: int | None,
        layers: str | Sequence[str],
        step: int | float | None,
        heads: Sequence[int] | None,
    ) -> Tensor:
        found = averages.sources_of(self._contents, kind, hw=hw, levels=level, layers=layers)
        if len(found) > 1:
            raise InputError(
                "one grid must be named when several were recorded",
                got="none",
                remedy=f"hw= one of {', '.join(map(str, found))}, or level=",
            )
        [(grid, sources)] = found.items()
        mean = averages.average(self._contents, grid, sources, step=step, heads=heads)
        if mean.tokens is not None:
            raise InputError(
                "all tokens must have been kept",
                got=f"the columns {mean.tokens} of a TokenColumns reduction",
                remedy="use record.cross(token indices), or record without it",
            )
        # The caller may write to what it gets, but not into the record.
        return mean.values.clone() if any(mean is one for one in sources) else mean.values
