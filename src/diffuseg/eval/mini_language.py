"""How well the miniature's CLIP pair and captioner know the world, on scenes they never saw.

Val and test scenes come from other random streams than the training's and hold (colour, thing)
pairs that no training scene has.
"""

import re
from collections.abc import Sequence
from itertools import count

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from diffuseg.backbones.captioner import Captioner
from diffuseg.backbones.clip import TEMPLATES, Clip
from diffuseg.errors import InputError
from diffuseg.world.scenes import COLORS, STUFF, THINGS, Scene, Scenes

_NOUN = re.compile(rf"\b({'|'.join((*THINGS, *STUFF))})\b")
_COLORED = re.compile(rf"\b({'|'.join(COLORS)}) ({'|'.join(THINGS)})\b")


def single_scenes(
    number: int, *, split: str = "test", seed: int = 0, hw: tuple[int, int] = (256, 256)
) -> list[Scene]:
    """The first scenes of a stream that show a single thing.

    Example:
        >>> [len(scene.things) for scene in single_scenes(2, split="val", hw=(64, 64))]
        [1, 1]
    """
    scenes = Scenes(split, seed=seed, hw=hw)
    found = (index for index in count() if len(scenes.layout(index).sprites) == 1)
    return [scenes[next(found)] for _ in range(number)]


def distinct_scenes(
    number: int, *, split: str = "test", seed: int = 0, hw: tuple[int, int] = (256, 256)
) -> list[Scene]:
    """The first scenes of a stream no two of which show the same coloured things on the same stuff.

    Example:
        >>> len(distinct_scenes(2, split="val", hw=(64, 64)))
        2
    """
    scenes = Scenes(split, seed=seed, hw=hw)
    found: dict[frozenset[str], int] = {}
    for index in count():
        layout = scenes.layout(index)
        content = {f"{sprite.color} {sprite.kind}" for sprite in layout.sprites}
        found.setdefault(frozenset(content | set(layout.stuff)), index)
        if len(found) == number:
            break
    return [scenes[index] for index in found.values()]


def zero_shot_accuracy(
    clip: Clip, scenes: Sequence[Scene], *, templates: Sequence[str] = TEMPLATES
) -> dict[str, float]:
    """Shares of single-thing scenes named rightly, by the most similar name.

    Args:
        clip: The pair.
        scenes: For instance of `single_scenes`.
        templates: Prompts that are averaged.

    Returns:
        "things": among the 12 kinds. "stuff": the best of the 6 is one of those present.
        "colors": among the 8, with the thing's kind told ("a red car"). "pairs": colour and kind at
        once, among all 96. "unseen_things", "unseen_colors", "unseen_pairs": the same over scenes
        whose pair training never showed. "scenes", "unseen": how many there were.

    Raises:
        InputError: A scene has another number of things than one.
    """
    if not scenes or any(len(scene.things) != 1 for scene in scenes):
        raise InputError(
            "scenes with a single thing are wanted",
            got=f"{len(scenes)} scenes, not all of them such",
            remedy="use single_scenes",
        )
    seen = clip.embed_images([scene.image for scene in scenes])
    pairs = [f"{color} {kind}" for kind in THINGS for color in COLORS]
    by_kind = seen @ clip.embed_names(list(THINGS), templates=templates).T
    by_stuff = seen @ clip.embed_names(list(STUFF), templates=templates).T
    by_pair = seen @ clip.embed_names(pairs, templates=templates).T
    rows: dict[str, list[bool]] = {"things": [], "stuff": [], "colors": [], "pairs": []}
    for index, scene in enumerate(scenes):
        (thing,) = scene.things
        told = by_pair[index].reshape(len(THINGS), len(COLORS))[THINGS.index(thing.kind)]
        rows["things"].append(_best(by_kind[index], THINGS) == thing.kind)
        rows["stuff"].append(_best(by_stuff[index], STUFF) in scene.stuff)
        rows["colors"].append(_best(told, COLORS) == thing.color)
        rows["pairs"].append(_best(by_pair[index], pairs) == f"{thing.color} {thing.kind}")
    unseen = np.array([scene.things[0].held_out for scene in scenes])
    result = {name: float(np.mean(hits)) for name, hits in rows.items()}
    if unseen.any():
        result |= {
            f"unseen_{name}": float(np.array(rows[name])[unseen].mean())
            for name in ("things", "colors", "pairs")
        }
    return result | {"scenes": float(len(scenes)), "unseen": float(unseen.sum())}


def retrieval_recall(
    clip: Clip, scenes: Sequence[Scene], *, candidates: int = 64
) -> dict[str, float]:
    """How often the best match among `candidates` is the right one (R@1), in both directions.

    Args:
        clip: The pair.
        scenes: For instance of `distinct_scenes`; used in groups of `candidates`, the rest left
            out. Their full captions are searched.
        candidates: Captions (and pictures) to choose from.

    Returns:
        "image_to_text", "text_to_image", "candidates", "scenes".

    Raises:
        InputError: There are fewer scenes than candidates.
    """
    groups = len(scenes) // candidates
    if not groups:
        raise InputError(
            "there must be at least as many scenes as candidates",
            got=f"{len(scenes)} scenes, {candidates} candidates",
            remedy="pass more scenes",
        )
    used = scenes[: groups * candidates]
    seen = clip.embed_images([scene.image for scene in used])
    told = clip.embed_texts([scene.caption for scene in used])
    hits = torch.zeros(2)
    for image, text in zip(seen.split(candidates), told.split(candidates), strict=True):
        likeness = (image @ text.T).cpu()
        right = torch.arange(candidates)
        hits[0] += (likeness.argmax(1) == right).sum()
        hits[1] += (likeness.argmax(0) == right).sum()
    shares = (hits / len(used)).tolist()
    return {
        "image_to_text": shares[0],
        "text_to_image": shares[1],
        "candidates": float(candidates),
        "scenes": float(len(used)),
    }


def caption_accuracy(captioner: Captioner, scenes: Sequence[Scene]) -> dict[str, float]:
    """`noun_accuracy` of what a captioner says about the scenes."""
    return noun_accuracy(captioner.caption([scene.image for scene in scenes]), scenes)


def noun_accuracy(captions: Sequence[str], scenes: Sequence[Scene]) -> dict[str, float]:
    """Nouns (things and stuff) of captions against those the scenes show.

    Returns:
        "precision": share of the named nouns that are there. "recall": share of the nouns there
        that are named. "f1": their harmonic mean. "colors": share of the rightly named things
        whose colour is right too. "whole": share of captions with every noun and no other.
        "scenes": how many there were.

    Raises:
        InputError: There is no scene, or not a caption for each.

    Example:
        >>> scene = Scenes("val", hw=(64, 64))[0]
        >>> noun_accuracy([scene.caption], [scene])["f1"]
        1.0
    """
    if not scenes or len(captions) != len(scenes):
        raise InputError(
            "there must be one caption for each of at least one scene",
            got=f"{len(captions)} captions, {len(scenes)} scenes",
            remedy="pass as many of both",
        )
    named = right = there = whole = kinds = colors = 0
    for scene, caption in zip(scenes, captions, strict=True):
        found, truth = set(_NOUN.findall(caption)), set(scene.names)
        named, right, there = named + len(found), right + len(found & truth), there + len(truth)
        whole += found == truth
        told = {kind: color for color, kind in _COLORED.findall(caption)}
        kinds += sum(thing.kind in found for thing in scene.things)
        colors += sum(told.get(thing.kind) == thing.color for thing in scene.things)
    return {
        "precision": right / max(named, 1),
        "recall": right / there,
        "f1": 2 * right / (named + there),
        "colors": colors / max(kinds, 1),
        "whole": whole / len(scenes),
        "scenes": float(len(scenes)),
    }


def _best(likeness: Float[Tensor, " k"], names: Sequence[str]) -> str:
    return names[int(likeness.argmax())]
