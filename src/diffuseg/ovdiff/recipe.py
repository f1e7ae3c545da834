"""What a bank is made with: networks and the settings that decide its numbers; and their hash."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import nn

from diffuseg.errors import InputError
from diffuseg.methods.ovdiff import OVDiff
from diffuseg.ovdiff.fingerprint import fingerprint

FORMAT = 1
"""Version of what lies in a bank; part of every recipe."""

_PICTURES = (*("number", "template", "negative", "guidance", "steps", "scheduler", "seed", "size"),)
_CUTS = ("mask_rule", "cut_threshold", "cuts", "cut_size")


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What the classes of a bank are made with; banks of one recipe may exchange classes.

    Where weights lie is no part of it, what they are is: a bank can be passed on.

    Attributes:
        values: Plain JSON values in sections: "format", "model", "pictures", "masks", "features"
            (a section for every extractor) and "prototypes".

    Raises:
        InputError: Something in it is no plain JSON value.

    Example:
        >>> Recipe(values={"pictures": {"number": 32}}).digest[:8]
        'd4da99c1'
    """

    values: Mapping[str, Any]

    def __post_init__(self) -> None:
        try:
            plain = json.loads(json.dumps(dict(self.values), allow_nan=False))
        except (TypeError, ValueError) as error:
            raise InputError(
                "a recipe must hold plain JSON values",
                got=str(error),
                remedy="give numbers, strings, booleans, lists and dicts of them",
            ) from error
        object.__setattr__(self, "values", plain)

    @property
    def digest(self) -> str:
        """SHA-256 of all that is in it, in any order."""
        text = json.dumps(self.values, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def extractors(self) -> tuple[str, ...]:
        """Whose features are in the bank."""
        return tuple(self.values.get("features", {}))

    def differences(self, wanted: "Recipe", *, whole: bool = False) -> list[str]:
        """Return what is not as `wanted` has it, a line each; empty if this bank will do.

        Args:
            wanted: What is asked for. It may leave sections and extractors out.
            whole: Whether this one must not have more than `wanted` either.

        Example:
            >>> held = Recipe(values={"pictures": {"number": 32, "steps": 30}})
            >>> held.differences(Recipe(values={"pictures": {"number": 8}}))
            ['pictures.number is 32, not 8']
        """
        held, asked = dict(_leaves(self.values)), dict(_leaves(wanted.values))
        names = [*asked, *(name for name in held if whole and name not in asked)]
        return [
            f"{name} is {_shown(held, name)}, not {_shown(asked, name)}"
            for name in names
            if held.get(name, _MISSING) != asked.get(name, _MISSING)
        ]


def make_recipe(
    model: Any, settings: OVDiff, extractors: Mapping[str, Any], proposer: Any = None
) -> Recipe:
    """Return the recipe of a model, settings and what they use.

    Only settings that can make a difference are in it: those of MaskCut where there is MaskCut.

    Args:
        model: The diffusion model that draws.
        settings: Ready, see `OVDiff.ready`.
        extractors: By name; what they are is their `identity`.
        proposer: What proposes masks; its `identity`, if it has one, is compared where given.

    Raises:
        InputError: An identity is not made of plain JSON values.
    """
    masks: dict[str, object] = {"proposals": settings.proposals, "fallback": settings.fallback}
    if settings.proposals != "none":
        masks |= {name: getattr(settings, name) for name in _CUTS}
        identity = getattr(proposer, "identity", None)
        if identity is None and proposer is not None:
            named = getattr(proposer, "__qualname__", type(proposer).__name__)
            identity = {"name": named}
        if identity is not None:
            masks["proposer"] = identity
    return Recipe(
        values={
            "format": FORMAT,
            **drawn_with(model, settings),
            "masks": masks,
            "features": {name: one.identity for name, one in extractors.items()},
            "prototypes": {"parts": settings.parts, "seed": settings.prototype_seed},
        }
    )


def drawn_with(model: Any, settings: OVDiff) -> dict[str, Any]:
    """Return the sections of a recipe that decide what is drawn: "model" and "pictures"."""
    pictures = {name: getattr(settings, name) for name in _PICTURES}
    pictures["size"] = settings.size or model.size
    # The authors' defects change what is drawn and cut.
    pictures["defects"] = settings.profile == "release"
    return {"model": identify(model), "pictures": pictures}


def kept_settings(settings: OVDiff) -> dict[str, object]:
    """Return the settings that decide what is in a bank, to be taken up when it is opened.

    Example:
        >>> kept_settings(OVDiff(parts=8, stride=64))
        {'parts': 8}
    """
    names = [one.name for one in fields(OVDiff)]
    building = names[: names.index("prototype_seed") + 1]
    held = {name: getattr(settings, name) for name in building}
    return {name: value for name, value in held.items() if value is not None}


def identify(model: Any) -> dict[str, object]:
    """Return what tells a model from others: its precision and a digest of each of its networks.

    Names and places do not count: the same weights from a hub or a folder are the same model.
    """
    found: dict[str, object] = {"precision": str(model.dtype).removeprefix("torch.")}
    for holder in (model, getattr(model, "tower", None)):
        for name in _attributes(holder):
            part = getattr(holder, name)
            if isinstance(part, nn.Module):
                found[name] = fingerprint(part)
    alphas = getattr(model, "alphas", None)
    if isinstance(alphas, torch.Tensor):
        found["schedule"] = digest_tensor(alphas)[:16]
    return found


def digest_tensor(*tensors: torch.Tensor) -> str:
    """Return the SHA-256 of tensors: of their types, shapes and every byte.

    Example:
        >>> digest_tensor(torch.zeros(2)) == digest_tensor(torch.zeros(2, dtype=torch.int32))
        False
    """
    told = hashlib.sha256()
    for tensor in tensors:
        held = tensor.detach().cpu().contiguous()
        told.update(f"{held.dtype} {tuple(held.shape)}\n".encode())
        told.update(
            held.view(torch.uint8).numpy().tobytes()
            if held.dim()
            else bytes(str(held.item()), "ascii")
        )
    return told.hexdigest()


_MISSING = object()


def _attributes(holder: object) -> list[str]:
    slots = getattr(type(holder), "__dataclass_fields__", {})
    return sorted(slots or getattr(holder, "__dict__", {}))


def _leaves(values: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, object]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{path}{name}.")
        else:
            yield f"{path}{name}", value


def _shown(leaves: Mapping[str, object], name: str) -> str:
    return json.dumps(leaves[name], ensure_ascii=False) if name in leaves else "left out"
