"""From names to a bank: draw, tell the class from what is around it, look, pool, store."""

import logging
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from diffuseg.backbones import Diffusion
from diffuseg.errors import InputError
from diffuseg.methods.ovdiff import OVDiff
from diffuseg.methods.ovdiff.foreground import split_foreground
from diffuseg.methods.ovdiff.prototypes import pool_prototypes, shrink_masks
from diffuseg.methods.settings import given
from diffuseg.models import find_model
from diffuseg.ovdiff.bank import Bank
from diffuseg.ovdiff.claims import claim
from diffuseg.ovdiff.drawings import Drawings, draw_or_find
from diffuseg.ovdiff.entries import BankEntry
from diffuseg.ovdiff.extractors import Extractor, Proposer, find_extractors, find_proposer
from diffuseg.ovdiff.recipe import kept_settings, make_recipe
from diffuseg.ovdiff.stock import stem_of
from diffuseg.ovdiff.supports import Supports, draw_supports
from diffuseg.ovdiff.things_stuff import prompt_name
from diffuseg.prompts import ClassName, parse_classes

log = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
OnEmpty = Literal["error", "skip"]


def build_bank(
    classes: object,
    path: str | os.PathLike[str],
    model: object = None,
    settings: OVDiff | None = None,
    *,
    stored: str | None = None,
    keep_pictures: bool = True,
    on_empty: OnEmpty = "error",
    fix_names: bool = True,
    batch_size: int = 8,
    drawings: str | os.PathLike[str] | None = None,
    proposer: Proposer | None = None,
    device: str | None = None,
    offline: bool | None = None,
    progress: Progress | None = None,
) -> Bank:
    """Build a bank, or go on with one: classes that are there stay as they are.

    A class is there whole or not at all, so that a build that was stopped goes on where it was, to
    the class. Several may build one bank at once: none draws what another is at, or has drawn.

    Args:
        classes: As for `parse_classes`.
        path: Folder of the bank.
        model: Draws the pictures: a name, hub id or folder, or a loaded model. None: the one of
            the bank that is there, else as for `build_segmenter`.
        settings: The fields up to `prototype_seed` count. Those left open are as in the bank that
            is there, else as the model's preset and the profile have them.
        stored: "float32" or "float16", half the size. None: as the bank that is there, else
            "float32".
        keep_pictures: Whether pictures and masks are stored, to be looked at and to explain.
        on_empty: Of a class that is in none of its pictures: "error" when all others are done, or
            "skip".
        fix_names: Whether prompts have plain words for data sets' spellings; see `prompt_name`.
        batch_size: Pictures drawn at once.
        drawings: Folder where pictures are kept as they were drawn, and looked for: another bank
            of the same pictures need not draw them again. None: they are not kept there.
        proposer: What proposes masks: called with pictures of one size, it returns some for each,
            `r H W`; such as SAM's or CutLER's. Its `identity`, a dict, tells it from others; else
            its name does. None: as the settings say.
        device: Where a model that is named is loaded.
        offline: Never use the network.
        progress: Told (pictures drawn, pictures to draw) after every batch.

    Raises:
        InputError: The model does not know a word, the bank there was made with something else or
            has a class under other words, or a class is in none of its pictures. What was built
            before stays.
        WeightsError: Weights are not to be had.

    Example:
        >>> bank = build_bank("dog, cat", "my-bank", "sd1.5")  # doctest: +SKIP
        >>> bank.names  # doctest: +SKIP
        ('cat', 'dog')
    """
    parsed = parse_classes(classes)
    there = Bank.open(path) if (Path(path) / "manifest.json").exists() else None
    named = there.model if there is not None and there.model and model is None else model
    found: Diffusion = find_model(named, device=device, offline=offline)
    chosen = settings or OVDiff()
    if there is not None:
        chosen = there.adopt(chosen)
        stored = stored or there.stored
    if proposer is not None:
        chosen = replace(chosen, proposals="given")
    chosen = chosen.ready(found.preset.get("ovdiff"))
    spoken = {one.name: _spoken(one) if fix_names else one for one in parsed}
    # Nothing is drawn before the first is asked for: this is to have all words checked.
    draw_supports(found, list(spoken.values()), chosen, batch_size=batch_size)
    extractors = find_extractors(found, chosen)
    proposer = proposer or find_proposer(found, chosen)
    bank = Bank.create(
        path,
        make_recipe(found, chosen, extractors, proposer),
        stored=stored or "float32",
        settings=kept_settings(chosen),
        model=found.name,
    )
    for one in parsed:
        _check_words(bank, one)
    bank.tidy()
    kept = None if drawings is None else Drawings(path=Path(drawings))
    work = _Work(found, chosen, extractors, proposer, keep_pictures, batch_size, kept, progress)
    empty = _build(bank, parsed, spoken, work)
    if empty and on_empty == "error":
        raise InputError(
            "every class must be in one of its pictures at least",
            got=f"none with {', '.join(map(repr, empty))}, after {given(chosen.number)} drawn each",
            remedy='leave them out, pass on_empty="skip", use other words (a tuple of synonyms), '
            "or build another bank with more pictures (number) or another template",
        )
    return bank


@dataclass(frozen=True, slots=True)
class _Work:
    """What every class of a build is made with."""

    model: Diffusion
    settings: OVDiff
    extractors: Mapping[str, Extractor]
    proposer: Proposer
    keep_pictures: bool
    batch_size: int
    drawings: Drawings | None
    progress: Progress | None


def _build(
    bank: Bank, classes: Sequence[ClassName], spoken: Mapping[str, ClassName], work: _Work
) -> list[str]:
    """Build what is missing; returns the classes that are in none of their pictures."""
    number = given(work.settings.number)
    # As many classes as fill whole batches.
    share = work.batch_size // math.gcd(work.batch_size, number)
    words = {one.name: one.words for one in classes}
    empty: list[str] = []
    left = list(bank.missing(words))
    total = len(left) * number
    while left:
        with ExitStack() as claims:
            held: list[str] = []
            for name in left:
                if len(held) < share and claims.enter_context(claim(_file(bank, name))):
                    held.append(name)
            if not held:  # Others are at all that is left.
                claims.enter_context(claim(_file(bank, left[0]), wait=True))
                held = [left[0]]
            mine = [spoken[name] for name in bank.missing(held)]
            before = total - number * (len(left) - len(held) + len(mine))
            drawn = _draw(work, mine, before, total) if mine else ()
            for supports in drawn:
                entry = _make_entry(supports, words[supports.name], work)
                if entry is None:
                    empty.append(supports.name)
                else:
                    bank.add(entry, keep_pictures=work.keep_pictures)
        done = {*held, *empty}
        left = [name for name in bank.missing(left) if name not in done]
        if work.progress is not None:
            work.progress(total - len(left) * number, total)
    return empty


@torch.no_grad()
def _make_entry(supports: Supports, words: tuple[str, ...], work: _Work) -> BankEntry | None:
    """One class from its pictures; None if it is in none of them."""
    settings, pictures = work.settings, list(supports.images)
    fg, bg = split_foreground(
        supports.attribution, work.proposer(pictures), settings, size=pictures[0].shape[0]
    )
    prototypes: dict[str, Any] = {}
    for name, extractor in work.extractors.items():
        features = extractor(pictures, support=True)
        if not shrink_masks(fg, (features.shape[1], features.shape[2])).any():
            log.warning("%r is in none of its pictures as %s sees them", supports.name, name)
            return None
        prototypes[name] = pool_prototypes(
            features,
            fg,
            bg,
            parts=given(settings.parts),
            seed=given(settings.prototype_seed),
            name=supports.name,
        )
    log.info("built %r from %r", supports.name, supports.prompt)
    return BankEntry(
        name=supports.name,
        prompt=supports.prompt,
        words=words,
        prototypes=prototypes,
        images=supports.images,
        fg=fg,
        bg=bg,
    )


def _spoken(one: ClassName) -> ClassName:
    words = tuple(dict.fromkeys(prompt_name(word) for word in one.words))
    if words != one.words:
        log.info("%r is drawn as %s", one.name, ", ".join(map(repr, words)))
    return replace(one, words=words)


def _check_words(bank: Bank, wanted: ClassName) -> None:
    if bank.missing([wanted.name]):
        return
    held = bank.look(wanted.name)
    known = {word.casefold() for word in held.words}
    if not {word.casefold() for word in wanted.words} <= known:
        raise InputError(
            f"the class {held.name!r} of the bank {bank.path} must be of the same words",
            got=f"{' | '.join(wanted.words)}, there {' | '.join(held.words)}",
            remedy=f"remove it first: diffuseg bank remove {bank.path} {held.name!r}",
        )


def _file(bank: Bank, name: str) -> Path:
    return bank.path / "claims" / f"{stem_of(name)}.lock"


def _draw(work: _Work, classes: Sequence[ClassName], before: int, total: int) -> Iterator[Supports]:
    tell = work.progress
    counted = None if tell is None else lambda done, _: tell(before + done, total)
    model, settings, size = work.model, work.settings, work.batch_size
    if work.drawings is None:
        return draw_supports(model, classes, settings, batch_size=size, progress=counted)
    return draw_or_find(model, classes, settings, work.drawings, batch_size=size, progress=counted)
