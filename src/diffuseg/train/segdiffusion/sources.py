"""What a training draws from: data sets looked at, samplers of pictures and classes over them."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from accelerate import Accelerator

from diffuseg.errors import InputError
from diffuseg.train.segdiffusion.batches import BatchSource
from diffuseg.train.segdiffusion.indexing import data_key, index_pictures
from diffuseg.train.segdiffusion.mixing import Merged, MixedSource, Source, balance_sets
from diffuseg.train.segdiffusion.pictures import KeptPictures, LabelledPictures
from diffuseg.train.segdiffusion.queries import QuerySampler
from diffuseg.train.segdiffusion.recipe import SegRecipe
from diffuseg.train.segdiffusion.relations import spoken
from diffuseg.train.segdiffusion.running import Meter, Running
from diffuseg.train.segdiffusion.validation import Checks

BACKGROUND = "background"
"""The class that is never asked for: it is what is none of the others."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Drawn:
    """What batches come from.

    Attributes:
        source: Draws them.
        learned: The classes that are asked for, as they are said.
    """

    source: Source
    learned: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Latents:
    """What a model's latents are like.

    Attributes:
        channels: How many.
        scale: Pixels a cell.
        timesteps: How many noise levels there are.
    """

    channels: int
    scale: int
    timesteps: int


def describe_data(merged: Merged) -> str:
    """What tells data from others: sets, shares, and which of their classes are related."""
    mixture = merged.mixture
    told = [f"{one.name}-{data_key(one)}" for one in mixture.sets]
    if len(told) > 1:
        told = [f"{share:.6g} {one}" for share, one in zip(mixture.shares, told, strict=True)]
    pairs = [
        f"{pictures.classes[a]}~{pictures.classes[b]}"
        for pictures, table in zip(mixture.sets, merged.related, strict=True)
        if table is not None
        for a, b in np.argwhere(np.triu(table))
    ]
    digest = hashlib.sha256(" ".join(pairs).encode()).hexdigest()[:12]
    return " + ".join(told) + (f", {len(pairs)} related pairs {digest}" if pairs else "")


def prepare_sources(
    merged: Merged,
    work: Path,
    recipe: SegRecipe,
    accelerator: Accelerator,
    running: Running,
    latents: Latents,
    meter: Meter,
) -> Drawn:
    """Look at all pictures of all sets, and make what draws from them.

    Raises:
        InputError: Something is wrong with a data set, which is named.
    """
    mixture, without = merged.mixture, merged.find(recipe.without)
    samplers: list[QuerySampler] = []
    sources: list[BatchSource] = []
    for number, (pictures, label) in enumerate(zip(mixture.sets, mixture.labels, strict=True)):
        kept = KeptPictures(
            pictures, gibibytes=running.gibibytes * mixture.shares[number], name=label
        )
        title = "looking at all pictures" + (f" of {label}" if len(mixture.sets) > 1 else "")
        # One process reads, the others find what it wrote.
        with accelerator.main_process_first(), meter(title) as told:
            shown = index_pictures(kept, cache=work, progress=told)
        sampler = QuerySampler(
            pictures.classes,
            shown,
            without=without[number],
            unasked=tuple(name for name in pictures.classes if name == BACKGROUND),
            queries=recipe.queries,
            negatives=recipe.negatives,
            least=recipe.least,
            related=merged.related[number],
            name=label,
        )
        samplers.append(sampler)
        sources.append(
            BatchSource(
                wholes=kept,
                sampler=sampler,
                recipe=recipe,
                channels=latents.channels,
                scale=latents.scale,
                timesteps=latents.timesteps,
                places=None if len(mixture.sets) == 1 else merged.places[number],
            )
        )
    learned = _learned(samplers, merged)
    if len(sources) == 1:
        return Drawn(source=sources[0], learned=learned)
    balance_sets(samplers, merged)
    mixed = MixedSource(sources=tuple(sources), shares=mixture.shares, seed=recipe.seed)
    return Drawn(source=mixed, learned=learned)


def _learned(samplers: Sequence[QuerySampler], merged: Merged) -> tuple[str, ...]:
    found = {
        place
        for sampler, places in zip(samplers, merged.places, strict=True)
        for place, seen in zip(places, sampler.learned, strict=True)
        if seen
    }
    return tuple(spoken(merged.classes[place]) for place in sorted(found))


def prepare_checks(
    merged: Merged,
    validation: LabelledPictures | Sequence[LabelledPictures] | None,
    recipe: SegRecipe,
    running: Running,
) -> tuple[Checks, ...]:
    """What is looked at now and then: nothing, or pictures of every set.

    Raises:
        InputError: The pictures are of other classes, or something is wrong with them.
    """
    if validation is None:
        return ()
    looked = (validation,) if isinstance(validation, LabelledPictures) else tuple(validation)
    mixture, hidden = merged.mixture, merged.find(recipe.without)
    if len(looked) != len(mixture.sets):
        raise InputError(
            "there must be pictures to validate on of every data set, in the same order",
            got=f"{len(looked)} for {len(mixture.sets)}",
            remedy="give as many, or none",
        )
    checks: list[Checks] = []
    for number, (one, pictures) in enumerate(zip(looked, mixture.sets, strict=True)):
        label = mixture.labels[number]
        if tuple(one.classes) != tuple(pictures.classes):
            raise InputError(
                "pictures to validate on must have the classes of those that are learned from",
                got=f"{len(one.classes)} classes, and {len(pictures.classes)} of {label}",
                remedy="take another part of the same data set",
            )
        kept = KeptPictures(
            one, gibibytes=running.gibibytes / len(looked), name=f"{label}, to validate on"
        )
        index_pictures(kept)
        checks.append(
            Checks(
                kept=kept,
                size=recipe.crop,
                unasked=tuple(name for name in pictures.classes if name == BACKGROUND),
                hidden=hidden[number],
                steps=1 if recipe.objective == "one-step" else running.validation_steps,
                places=None if len(looked) == 1 else merged.places[number],
                name=label,
            )
        )
    return tuple(checks)
