"""OVDiff: pictures drawn of every class, a bank of their prototypes, and pictures matched to it.

Names are loaded when they are first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from diffuseg.methods.ovdiff import OVDiff as OVDiff
    from diffuseg.ovdiff.bank import Bank as Bank
    from diffuseg.ovdiff.building import build_bank as build_bank
    from diffuseg.ovdiff.entries import BankEntry as BankEntry
    from diffuseg.ovdiff.explanation import Explanation as Explanation
    from diffuseg.ovdiff.explanation import explain as explain
    from diffuseg.ovdiff.pictures import contact_sheet as contact_sheet
    from diffuseg.ovdiff.recipe import Recipe as Recipe
    from diffuseg.ovdiff.segmenter import BankSegmenter as BankSegmenter
    from diffuseg.ovdiff.segmenter import open_segmenter as open_segmenter
    from diffuseg.ovdiff.supports import Supports as Supports
    from diffuseg.ovdiff.supports import draw_supports as draw_supports
    from diffuseg.ovdiff.things_stuff import is_stuff as is_stuff
    from diffuseg.ovdiff.things_stuff import prompt_name as prompt_name

_HOME = {
    "Bank": "ovdiff.bank",
    "BankEntry": "ovdiff.entries",
    "BankSegmenter": "ovdiff.segmenter",
    "Explanation": "ovdiff.explanation",
    "OVDiff": "methods.ovdiff",
    "Recipe": "ovdiff.recipe",
    "Supports": "ovdiff.supports",
    "build_bank": "ovdiff.building",
    "contact_sheet": "ovdiff.pictures",
    "draw_supports": "ovdiff.supports",
    "explain": "ovdiff.explanation",
    "is_stuff": "ovdiff.things_stuff",
    "open_segmenter": "ovdiff.segmenter",
    "prompt_name": "ovdiff.things_stuff",
}

__all__ = [
    "Bank",
    "BankEntry",
    "BankSegmenter",
    "Explanation",
    "OVDiff",
    "Recipe",
    "Supports",
    "build_bank",
    "contact_sheet",
    "draw_supports",
    "explain",
    "is_stuff",
    "open_segmenter",
    "prompt_name",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"diffuseg.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
