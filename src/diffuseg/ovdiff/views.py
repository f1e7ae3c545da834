"""What is compared: a list of classes with its prototypes, and a picture with its windows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from diffuseg.errors import InputError
from diffuseg.image import Image
from diffuseg.methods.ovdiff import OVDiff
from diffuseg.methods.ovdiff.matching import Vocabulary, assemble
from diffuseg.methods.ovdiff.windows import Box
from diffuseg.methods.settings import given
from diffuseg.ovdiff.bank import Bank
from diffuseg.ovdiff.extractors import Picture
from diffuseg.ovdiff.things_stuff import Overrides, is_stuff, prompt_name
from diffuseg.prompts import ClassName

BACKGROUND = "background"
"""Name of what is none of the classes."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Listed:
    """A list of classes, ready to be compared with.

    Attributes:
        names: As results have them.
        stored: As the bank has them.
        texts: As CLIP is asked for them.
        stuff: Which are stuff.
        vocabularies: By extractor.
    """

    names: tuple[str, ...]
    stored: tuple[str, ...]
    texts: tuple[str, ...]
    stuff: tuple[bool, ...]
    vocabularies: Mapping[str, Vocabulary]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class View:
    """A picture, the classes it is compared with, and where it is looked at.

    Attributes:
        image: As the user gave it.
        pixels: As windows are cut from it.
        listed: All classes.
        selected: Numbers of those the pre-filter left.
        boxes: Windows, and how often each counts.
    """

    image: Image
    pixels: Picture
    listed: Listed
    selected: tuple[int, ...]
    boxes: Mapping[Box, int]

    @property
    def hw(self) -> tuple[int, int]:
        """Height and width of what windows are cut from."""
        return self.pixels.shape[0], self.pixels.shape[1]


def list_classes(
    classes: Sequence[ClassName],
    bank: Bank,
    method: OVDiff,
    extractors: Sequence[str],
    *,
    stuff: Overrides | None,
    embed: Any,
    device: torch.device,
) -> Listed:
    """Return classes with their prototypes.

    Args:
        classes: All in the bank, each under its name or a synonym.
        bank: Where they are.
        method: Ready.
        extractors: Names of those windows are compared by.
        stuff: Which classes are stuff where the table is not to be asked, see `is_stuff`.
        embed: Measures names that the table does not know; None: they are things.
        device: Where windows are compared.

    Raises:
        InputError: A class is not in the bank.
    """
    stored = tuple(stored_name(bank, one) for one in classes)
    entries = [bank.get(name) for name in stored]
    names = tuple(one.name for one in classes)
    corrected = method.profile == "default"
    kinds = is_stuff(classes, overrides=stuff, embed=embed, corrected=corrected)
    return Listed(
        names=names,
        stored=stored,
        texts=tuple(prompt_name(name) for name in names),
        stuff=kinds,
        vocabularies={
            name: assemble(
                [entry.prototypes[name] for entry in entries],
                kinds,
                kinds=given(method.kinds),
                stuff_threshold=given(method.stuff_threshold),
            ).to(device)
            for name in extractors
        },
    )


def check_background(classes: Sequence[ClassName], method: OVDiff) -> None:
    """Make sure that the background is not there twice.

    Raises:
        InputError: It is a class, and found from the scores.
    """
    if method.background != "none" and BACKGROUND in [one.name for one in classes]:
        raise InputError(
            "the background is either a class of yours or found from the scores",
            got=f"the class {BACKGROUND!r} and background={method.background!r}",
            remedy='leave the class out, or use background="none"',
        )


def stored_name(bank: Bank, one: ClassName) -> str:
    """What a bank has a class under: its name, or else a synonym."""
    there = [word for word in one.words if not bank.missing([word])]
    return there[0] if there else one.name
