"""Where a result comes from."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from importlib import metadata

import numpy as np

from diffuseg.errors import InputError


def _installed_version() -> str:
    try:
        return metadata.version("diffuseg")
    except metadata.PackageNotFoundError:
        return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """Where a segmentation comes from: enough to make it again.

    Attributes:
        model: Name or path of the model, or "".
        method: Name of the method, or "".
        parameters: The method's settings, plain JSON values only.
        seed: Seed of the noise, where there was any.
        caption: The text that names come from, where there was any.
        seconds: Time of each stage.
        image: Name of the image file, or "array".
        image_hw: Height and width of the image.
        working_hw: Height and width at which the model saw it.
        version: Version of diffuseg.

    Raises:
        InputError: A parameter or time is no plain JSON value.
    """

    model: str = ""
    method: str = ""
    parameters: Mapping[str, object] = field(default_factory=dict)
    seed: int | None = None
    caption: str = ""
    seconds: Mapping[str, float] = field(default_factory=dict)
    image: str = ""
    image_hw: tuple[int, int] | None = None
    working_hw: tuple[int, int] | None = None
    version: str = field(default_factory=_installed_version)

    def __post_init__(self) -> None:
        object.__setattr__(self, "parameters", _plain(self.parameters, "parameters"))
        object.__setattr__(self, "seconds", _plain(self.seconds, "seconds"))

    def to_dict(self) -> dict[str, object]:
        """Return the fields as plain JSON values.

        Example:
            >>> Provenance(model="mini", image_hw=(256, 256)).to_dict()["image_hw"]
            [256, 256]
        """
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        return {name: list(v) if isinstance(v, tuple) else v for name, v in values.items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, object]) -> "Provenance":
        """Return the provenance `to_dict` wrote; fields of other versions are left out.

        Example:
            >>> Provenance.from_dict({"model": "mini", "colour": "of a later version"}).model
            'mini'
        """
        known = {one.name for one in fields(cls)}
        held = {
            name: tuple(value) if name.endswith("_hw") and isinstance(value, list) else value
            for name, value in values.items()
            if name in known
        }
        return cls(**held)  # type: ignore[arg-type]


def _plain(values: Mapping[str, object], what: str) -> dict[str, object]:
    try:
        # The round trip gives what a reader of the file will see: lists for tuples, and a copy.
        return json.loads(json.dumps(dict(values), allow_nan=False, default=_number))
    except (TypeError, ValueError) as error:
        raise InputError(
            f"the {what} of a provenance must be named plain JSON values",
            got=str(error),
            remedy="store numbers, strings, booleans, lists and dicts of them",
        ) from error


def _number(value: object) -> object:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} is not a plain JSON value")
