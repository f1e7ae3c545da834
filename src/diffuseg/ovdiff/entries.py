"""One class of a bank as tensors and plain values: what is stored of it, packed and unpacked."""

import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, UInt8
from torch import Tensor

from diffuseg.errors import InputError
from diffuseg.methods.ovdiff.prototypes import CLASS, INSTANCE, PART, ClassPrototypes, Prototypes
from diffuseg.methods.ovdiff.settings import PrototypeKind
from diffuseg.ovdiff.recipe import digest_tensor

Stored = Literal["float32", "float16"]
"""How vectors lie on disk; they are float32 when read."""

PICTURES = ("pictures", "picture_ends", "fg", "bg")
"""Names of the tensors that hold pictures and masks."""

SIGNS = ("positive", "negative")
KINDS: Mapping[PrototypeKind, int] = {"class": CLASS, "instance": INSTANCE, "part": PART}

_TYPES: Mapping[Stored, torch.dtype] = {"float32": torch.float32, "float16": torch.float16}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BankEntry:
    """One class: what pixels are compared with, and the pictures it comes from.

    Whether the class is stuff is no part of it: that is a matter of the vocabulary it meets.

    Attributes:
        name: Of the class.
        prompt: What its pictures were drawn from.
        prototypes: By extractor.
        words: The name, then its synonyms; the name alone where nothing is said.
        images: The pictures, 8 bits a channel. None: not kept.
        fg, bg: Where in them the class is, and where it surely is not. None with the pictures.

    Raises:
        InputError: There is no name or no extractor, or pictures and masks do not belong together.
    """

    name: str
    prompt: str
    prototypes: Mapping[str, ClassPrototypes]
    words: tuple[str, ...] = ()
    images: UInt8[np.ndarray, "n h w 3"] | None = None
    fg: Bool[Tensor, "n h w"] | None = None
    bg: Bool[Tensor, "n h w"] | None = None

    def __post_init__(self) -> None:
        if not self.name.strip() or not self.prototypes:
            raise InputError(
                "a class of a bank must have a name and prototypes",
                got=f"the name {self.name!r}, prototypes of {list(self.prototypes)}",
                remedy="name it, and give prototypes by extractor",
            )
        sizes = {
            None if one is None else tuple(one.shape[:3]) for one in (self.images, self.fg, self.bg)
        }
        if len(sizes) != 1:
            raise InputError(
                f"the pictures of {self.name!r} must come with masks of their size",
                got=", ".join(map(str, sizes)),
                remedy="give images, fg and bg, or none of them",
            )
        if not self.words:
            object.__setattr__(self, "words", (self.name,))


def pack_prototypes(entry: BankEntry, stored: Stored) -> dict[str, Tensor]:
    """Return the tensors that are stored of all extractors.

    Raises:
        InputError: A number is not finite, or too large for what is stored.
    """
    packed: dict[str, Tensor] = {}
    for name, held in entry.prototypes.items():
        for sign, some in _signs(held):
            vectors = some.vectors.detach().cpu().to(_TYPES[stored])
            if not vectors.isfinite().all():
                raise InputError(
                    f"the prototypes of {entry.name!r} must be finite as {stored}",
                    got=f"NaN or infinity in {name}",
                    remedy="store float32, and run the model in float32",
                )
            packed[f"{name}/{sign}/vectors"] = vectors
            packed[f"{name}/{sign}/kinds"] = some.kinds.cpu()
            packed[f"{name}/{sign}/sources"] = some.sources.cpu()
        packed[f"{name}/cells"] = held.cells.cpu()
    return {name: tensor.contiguous() for name, tensor in packed.items()}


def unpack_prototypes(packed: Mapping[str, Tensor], extractor: str) -> ClassPrototypes:
    """Return the prototypes of one extractor.

    Raises:
        KeyError: Something is not there.
        ValueError: Shapes do not fit together.
    """
    both = {}
    for sign in SIGNS:
        vectors, kinds, sources = (
            packed[f"{extractor}/{sign}/{part}"] for part in ("vectors", "kinds", "sources")
        )
        if vectors.dim() != 2 or not kinds.shape == sources.shape == vectors.shape[:1]:
            raise ValueError(f"{extractor}/{sign} has {tuple(vectors.shape)} vectors")
        both[sign] = Prototypes(vectors=vectors.float(), kinds=kinds, sources=sources)
    cells = packed[f"{extractor}/cells"]
    if both["positive"].vectors.shape[1] != both["negative"].vectors.shape[1] or cells.dim() != 3:
        raise ValueError(f"{extractor} has signs of two widths, or cells {tuple(cells.shape)}")
    return ClassPrototypes(**both, cells=cells)


def pack_pictures(entry: BankEntry) -> dict[str, Tensor]:
    """Return the tensors that are stored of pictures and masks: PNG, and eight pixels a byte."""
    if entry.images is None or entry.fg is None or entry.bg is None:
        return {}
    import PIL.Image

    files: list[bytes] = []
    for picture in entry.images:
        file = io.BytesIO()
        PIL.Image.fromarray(picture).save(file, format="PNG")
        files.append(file.getvalue())
    joined = torch.from_numpy(np.frombuffer(b"".join(files), dtype=np.uint8).copy())
    masks = {
        name: torch.from_numpy(np.packbits(held.cpu().numpy(), axis=-1))
        for name, held in (("fg", entry.fg), ("bg", entry.bg))
    }
    ends = torch.tensor([len(file) for file in files]).cumsum(0)
    return {"pictures": joined, "picture_ends": ends, **masks}


def unpack_pictures(
    packed: Mapping[str, Tensor],
) -> tuple[UInt8[np.ndarray, "n h w 3"], Bool[Tensor, "n h w"], Bool[Tensor, "n h w"]]:
    """Return pictures, foreground and background.

    Raises:
        KeyError: Something is not there.
        ValueError, OSError: It is not what was packed.
    """
    import PIL.Image

    starts = [0, *packed["picture_ends"].tolist()]
    data = packed["pictures"].numpy().tobytes()
    pictures = []
    for start, end in pairwise(starts):
        with PIL.Image.open(io.BytesIO(data[start:end])) as picture:
            pictures.append(np.asarray(picture.convert("RGB")))
    images = np.stack(pictures)
    width = images.shape[2]
    fg, bg = (
        torch.from_numpy(np.unpackbits(packed[name].numpy(), axis=-1, count=width).astype(bool))
        for name in ("fg", "bg")
    )
    if not tuple(fg.shape) == tuple(bg.shape) == images.shape[:3]:
        raise ValueError(f"pictures {images.shape[:3]}, masks {tuple(fg.shape)}")
    return images, fg, bg


def describe(entry: BankEntry) -> dict[str, Any]:
    """Return what there is of a class, in numbers: prototypes by extractor, sign and kind."""
    told: dict[str, Any] = {}
    for name, held in entry.prototypes.items():
        told[name] = {
            "width": held.positive.vectors.shape[1],
            "grid": list(held.cells.shape[1:]),
            **{
                sign: {kind: int((some.kinds == value).sum()) for kind, value in KINDS.items()}
                for sign, some in _signs(held)
            },
        }
    return told


def digest(packed: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of named tensors, in any order."""
    return digest_tensor(*(packed[name] for name in sorted(packed)))


def _signs(held: ClassPrototypes) -> Iterator[tuple[str, Prototypes]]:
    return iter((("positive", held.positive), ("negative", held.negative)))
