"""Words find their pixels: a second loss on cross-attention, from pictures and captions alone.

Denoising teaches what a noun looks like only where noise hides it, and among the words of one
caption only. Here several pictures are set together and shown under the nouns of all of them and
some more, at the noise levels segmentation uses. What is known of a pixel then is which caption it
lies under, so its attention must go to the nouns of that caption (a loss on sets of labels), and
every noun of a caption must win some pixels of its picture (multiple-instance learning). The same
is asked of the maps after products with the self-attention, which has to keep together what
belongs together.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from diffuseg.train.recipe import GroundingRecipe
from diffuseg.world.scenes import STUFF, THINGS
from diffuseg.world.tokenizer import END, START

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

    from diffuseg.train.denoiser import Denoiser

_STAGES = ("up_blocks.1", "up_blocks.2", "up_blocks.3")
_MIDDLE = ".attentions.1."  # the layer iSeg refines with is one of these
_TINY = 1e-6
_NEIGHBOURS = tuple(
    (down, across) for down in range(3) for across in range(-2, 3) if (down, across) > (0, 0)
)
_ALIKE = 0.5  # latents have unit variance


@dataclass(frozen=True, kw_only=True, slots=True)
class Words:
    """Token ids of what prompts are built from."""

    start: int
    end: int
    joiner: int
    opening: tuple[int, ...]
    nouns: Int[Tensor, " classes"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Tiles:
    """The pictures mosaics are made of, and which nouns the captions of each one name."""

    values: Float[Tensor, "n 2 4 h w"]
    nouns: Bool[Tensor, "n classes"]
    words: Words


@dataclass(frozen=True, kw_only=True, slots=True)
class Mosaics:
    """Pictures set together in `grid` rows and columns, with one prompt a mosaic.

    `columns` are the places of its nouns in its prompt; `allowed` says which of them the captions
    of each tile name. Where there are fewer nouns, False and column 0 fill the rest. `top` is the
    share of a tile's pixels that every noun of its captions has to win. The first mosaics come a
    second time at the end, under one of their nouns alone: the one of `alone_of` in `columns`, at
    place `alone_at` of the prompt. After those, the first `wordless` ones come under the empty
    prompt.
    """

    clean: Float[Tensor, "rows 4 h w"]
    noise: Float[Tensor, "rows 4 h w"]
    timesteps: Int[Tensor, " rows"]
    tokens: Int[Tensor, "rows t"]
    columns: Int[Tensor, "b k"]
    named: Bool[Tensor, "b k"]
    allowed: Bool[Tensor, "b tiles k"]
    alone_of: Int[Tensor, " a"]
    alone_at: Int[Tensor, " a"]
    wordless: int
    grid: tuple[int, int]
    top: float

    def to(self, device: torch.device) -> "Mosaics":
        """The same on another device."""
        held = {one.name: getattr(self, one.name) for one in fields(self)}
        return replace(
            self, **{name: x.to(device) for name, x in held.items() if isinstance(x, Tensor)}
        )


def find_words(tokenizer: "CLIPTokenizer") -> Words:
    """The ids of the world's nouns and of the words between them."""
    vocabulary = tokenizer.get_vocab()

    def ids(words: Sequence[str]) -> list[int]:
        return [vocabulary[f"{word}</w>"] for word in words]

    return Words(
        start=vocabulary[START],
        end=vocabulary[END],
        joiner=ids(["and"])[0],
        opening=tuple(ids(["a", "photo", "of"])),
        nouns=torch.tensor(ids((*THINGS, *STUFF))),
    )


def read_tiles(
    values: Float[Tensor, "n 2 4 h w"], tokens: Int[Tensor, "n k t"], words: Words
) -> Tiles:
    """Pictures and the nouns of their captions, all phrasings together."""
    nouns = torch.stack([(tokens == noun).flatten(1).any(1) for noun in words.nouns], dim=1)
    return Tiles(values=values, nouns=nouns, words=words)


def draw_mosaics(tiles: Tiles, recipe: GroundingRecipe, *, key: tuple[int, ...]) -> Mosaics:
    """Draw the mosaics of one step, a pure function of `key`."""
    rng = np.random.default_rng(key)
    down, across = recipe.grid
    grid = (down, across) if rng.random() < 0.5 else (across, down)
    size = (recipe.batch, grid[0] * grid[1])
    rows = rng.integers(len(tiles.values), size=size)
    mirrored = rng.integers(2, size=size)
    parts = tiles.values[torch.from_numpy(rows), torch.from_numpy(mirrored)].float()
    joined = parts.unflatten(1, grid).permute(0, 3, 1, 4, 2, 5)
    clean = joined.flatten(4, 5).flatten(2, 3).contiguous()  # [b, 4, h, w]
    prompts: list[list[int]] = []
    places: list[list[int]] = []
    allowed: list[Tensor] = []
    for row in rows:
        named = tiles.nouns[torch.from_numpy(row)]  # [tiles, classes]
        present = named.any(0).numpy()
        others = rng.permutation(np.flatnonzero(~present))[: rng.integers(recipe.most_absent + 1)]
        listed = rng.permutation(np.concatenate([np.flatnonzero(present), others]))
        opening = tiles.words.opening if rng.random() < 0.5 else ()
        prompt, at = _write(tiles.words, opening, tiles.words.nouns[listed].tolist())
        prompts.append(prompt)
        places.append(at)
        allowed.append(named[:, torch.from_numpy(listed)])
    alone_of, alone_at = [], []
    for prompt, at in list(zip(prompts, places, strict=True))[: recipe.alone]:
        opening = tiles.words.opening if rng.random() < 0.5 else ()
        alone_of.append(int(rng.integers(len(at))))
        prompts.append(_write(tiles.words, opening, [prompt[at[alone_of[-1]]]])[0])
        alone_at.append(len(prompts[-1]) - 1)
    prompts += [[tiles.words.start]] * recipe.wordless
    again = [*range(len(rows)), *range(len(alone_of)), *range(recipe.wordless)]
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    longest = max(map(len, prompts)) + 1
    most = max(map(len, places))
    return Mosaics(
        clean=clean[again],
        noise=torch.randn(clean.shape, generator=generator)[again],
        timesteps=torch.from_numpy(rng.integers(recipe.last_timestep + 1, size=len(rows)))[again],
        tokens=torch.tensor([one + [tiles.words.end] * (longest - len(one)) for one in prompts]),
        columns=torch.tensor([one + [0] * (most - len(one)) for one in places]),
        named=torch.tensor([[True] * len(one) + [False] * (most - len(one)) for one in places]),
        allowed=torch.stack(
            [nn.functional.pad(one, (0, most - one.shape[1]), value=False) for one in allowed]
        ),
        alone_of=torch.tensor(alone_of, dtype=torch.long),
        alone_at=torch.tensor(alone_at, dtype=torch.long),
        wordless=recipe.wordless,
        grid=grid,
        top=float(rng.uniform(*recipe.top)),
    )


def _write(
    words: Words, opening: Sequence[int], nouns: Sequence[int]
) -> tuple[list[int], list[int]]:
    """A prompt that lists nouns, and their places in it."""
    prompt, places = [words.start, *opening], []
    for number, noun in enumerate(nouns):
        if number:
            prompt.append(words.joiner)
        places.append(len(prompt))
        prompt.append(noun)
    return prompt, places


@contextmanager
def watch(unet: nn.Module, stages: Sequence[str]) -> Iterator[dict[str, dict[str, Tensor]]]:
    """Keep the queries ("to_q") and keys ("to_k") of the attention layers of some blocks.

    Unlike a record of attention they keep their gradients.
    """
    kept: dict[str, dict[str, Tensor]] = {}
    handles: list[RemovableHandle] = []
    for path, module in unet.named_modules():
        layer, _, part = path.rpartition(".")
        wanted = part in ("to_q", "to_k") and layer.endswith((".attn1", ".attn2"))
        if wanted and path.startswith(tuple(stages)):
            hook = partial(_keep, kept.setdefault(layer, {}), part)
            handles.append(module.register_forward_hook(hook))
    try:
        yield kept
    finally:
        for handle in handles:
            handle.remove()


def _keep(
    store: dict[str, Tensor], part: str, module: nn.Module, inputs: object, output: Tensor
) -> None:
    store[part] = output


def lend_keys(
    layers: Sequence[Mapping[str, Tensor]], count: int
) -> list[dict[str, Float[Tensor, "rows n d"]]]:
    """The queries of the last `count` rows beside the keys of the first as many."""
    return [{"to_q": one["to_q"][-count:], "to_k": one["to_k"][:count]} for one in layers]


def wordless_loss(
    found: Float[Tensor, "w n k"], shares: Float[Tensor, "b n k"]
) -> Float[Tensor, ""]:
    """How far shares of pixels that saw no words are from those of the same pixels that did."""
    wanted = shares[: len(found)].detach()
    return -(wanted * (found + _TINY).log()).sum(2).mean()


def attention(
    layer: Mapping[str, Tensor], heads: int, mask: Bool[Tensor, "b m"] | None = None
) -> Float[Tensor, "b n m"]:
    """The mean of the heads' attention, from the queries and keys of a layer."""
    q, k = (layer[part].unflatten(-1, (heads, -1)).transpose(1, 2) for part in ("to_q", "to_k"))
    scores = (q @ k.transpose(-1, -2)).float() * q.shape[-1] ** -0.5
    if mask is not None:
        scores = scores.masked_fill(~mask[:, None, None], -1e4)
    return scores.softmax(-1).mean(1)


def share_out(maps: Float[Tensor, "rows n t"], mosaics: Mosaics) -> Float[Tensor, "b n k"]:
    """What part of every pixel each of a mosaic's nouns has, for as many mosaics as maps."""
    places = mosaics.columns[: len(maps), None].expand(-1, maps.shape[1], -1)
    nouns = maps[: len(places)].gather(2, places) * mosaics.named[: len(maps), None]
    return nouns / nouns.sum(2, keepdim=True).clamp_min(_TINY)


def alone_loss(
    maps: Float[Tensor, "rows n t"], shares: Float[Tensor, "b n k"], mosaics: Mosaics
) -> Float[Tensor, ""]:
    """How far a noun's attention in a prompt of its own is from its share among other nouns."""
    rows = torch.arange(len(mosaics.alone_of), device=maps.device)
    found = maps[len(shares) + rows, :, mosaics.alone_at].clamp(_TINY, 1 - _TINY)
    wanted = shares[rows, :, mosaics.alone_of].detach()
    energy = wanted * found.log() + (1 - wanted) * (1 - found).log()
    return -energy.sum() / max(1, energy.numel())


def grounding_loss(shares: Float[Tensor, "b n k"], mosaics: Mosaics) -> Float[Tensor, ""]:
    """How far the nouns' shares of the pixels are from what the captions allow.

    Args:
        shares: What part of every pixel each noun has; they add up to 1.
        mosaics: What was shown.
    """
    rows, columns = mosaics.grid
    height, width = mosaics.clean.shape[2:]
    factor = round((height * width / shares.shape[1]) ** 0.5)
    cells = (rows, height // factor // rows, columns, width // factor // columns)
    parts = shares.unflatten(1, cells).transpose(2, 3)
    tiles = parts.flatten(3, 4).flatten(1, 2)  # [b, tiles, n / tiles, k]
    inside = (tiles * mosaics.allowed[:, :, None]).sum(-1)
    kept = max(1, round(mosaics.top * tiles.shape[2]))
    won = tiles.topk(kept, dim=2).values.mean(2)[mosaics.allowed]
    return -(inside + _TINY).log().mean() - (won + _TINY).log().mean()


def edge_loss(shares: Float[Tensor, "b n k"], clean: Float[Tensor, "b 4 h w"]) -> Float[Tensor, ""]:
    """How often neighbours that look alike belong to different nouns (a gated CRF's energy).

    Obukhov and others, Gated CRF Loss for Weakly Supervised Semantic Image Segmentation, 2019:
    pairs within a few cells, weighed by how alike the latents are.
    """
    height, width = clean.shape[2:]
    maps = shares.transpose(1, 2).unflatten(2, (height, width))
    energy, total = shares.new_zeros(()), shares.new_zeros(())
    for down, across in _NEIGHBOURS:
        one = (slice(None), slice(None), slice(0, height - down))
        two = (slice(None), slice(None), slice(down, height))
        left = slice(max(0, -across), width - max(0, across))
        right = slice(max(0, across), width - max(0, -across))
        apart = (clean[*one, left] - clean[*two, right]).square().sum(1)
        alike = (-apart / (2 * _ALIKE**2)).exp()
        split = 1 - (maps[*one, left] * maps[*two, right]).sum(1)
        energy = energy + (alike * split).sum()
        total = total + alike.sum()
    return energy / total


def mosaic_loss(
    network: "Denoiser", mosaics: Mosaics, alphas: Float[Tensor, " s"], recipe: GroundingRecipe
) -> Float[Tensor, ""]:
    """Show mosaics to a network and rate the attention of its decoder's fine blocks."""
    level = alphas[mosaics.timesteps][:, None, None, None]
    noisy = level.sqrt() * mosaics.clean + (1 - level).sqrt() * mosaics.noise
    visible = mosaics.tokens != network.end_id
    with watch(network.unet, _STAGES) as kept:
        network(noisy, mosaics.timesteps, mosaics.tokens, True)
    losses: list[Tensor] = []
    for stage in _STAGES:
        layers = {name: one for name, one in kept.items() if name.startswith(stage)}
        cross = [one for name, one in layers.items() if name.endswith("attn2")]
        own = [
            one
            for name, one in layers.items()
            if name.endswith("attn1") and (recipe.completing == "all" or _MIDDLE in name)
        ]
        maps = _mean_attention(cross, network.heads, visible)
        shares = share_out(maps, mosaics)
        spreading = _mean_attention(own, network.heads)[: len(shares)]
        rated = [shares]
        for _ in range(recipe.products):
            rated.append(spreading @ rated[-1])
        for one in rated:
            losses.append(grounding_loss(one, mosaics))
            if recipe.edges and shares.shape[1] == noisy[0, 0].numel():
                losses[-1] = losses[-1] + recipe.edges * edge_loss(one, mosaics.clean[: len(one)])
        if recipe.wordless:
            lent = lend_keys(cross, recipe.wordless)
            unseen = _mean_attention(lent, network.heads, visible[: recipe.wordless])
            losses[-1] = losses[-1] + wordless_loss(share_out(unseen, mosaics), shares)
        if recipe.alone:
            losses[-1] = losses[-1] + alone_loss(maps, shares, mosaics)
    return torch.stack(losses).mean()


def _mean_attention(
    layers: Sequence[Mapping[str, Tensor]], heads: int, mask: Bool[Tensor, "b m"] | None = None
) -> Float[Tensor, "b n m"]:
    return torch.stack([attention(one, heads, mask) for one in layers]).mean(0)
