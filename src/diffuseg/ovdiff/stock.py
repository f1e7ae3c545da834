"""The two files of a class: written so that it is there whole or not at all, checked when read."""

import hashlib
import json
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from diffuseg.files import atomic_path
from diffuseg.ovdiff.entries import (
    PICTURES,
    BankEntry,
    Stored,
    describe,
    digest,
    pack_pictures,
    pack_prototypes,
    unpack_pictures,
    unpack_prototypes,
)

_LONGEST = 40  # Characters of a name in the names of its files.


class DamagedFile(Exception):
    """What is on disk is not what was written; the message says how."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stocked:
    """What a bank says of a class before its tensors are read.

    Attributes:
        name: Of the class.
        words: The name, then its synonyms.
        prompt: What its pictures were drawn from.
        recipe: Digest of what it is made with.
        file: Name of the file of its tensors.
        bytes: Size of that file.
        digests: SHA-256 of its tensors, "prototypes" and "pictures".
        counts: By extractor: width, grid, and prototypes by sign and kind.
        pictures: How many are kept.
        size: Their height and width; empty without.
    """

    name: str
    words: tuple[str, ...]
    prompt: str
    recipe: str
    file: str
    bytes: int
    digests: Mapping[str, str]
    counts: Mapping[str, Mapping[str, Any]]
    pictures: int
    size: tuple[int, ...]


def stem_of(name: str) -> str:
    """Return what the names of a class's files begin with, whatever its name has in it.

    A part for people, ASCII on every disk; and a digest, by which names with equal parts differ.

    Example:
        >>> stem_of("Büro/../stuhl"), stem_of("火")
        ('buro-stuhl-31ec58c5168712c9', 'class-d4cfe8c82c9c3045')
    """
    told = hashlib.sha256(normal(name).encode()).hexdigest()[:16]
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().casefold()
    readable = re.sub(r"[^a-z0-9]+", "-", plain)[:_LONGEST].strip("-")
    return f"{readable or 'class'}-{told}"


def normal(name: str) -> str:
    """Return a name as it is compared: blanks and accents in one form."""
    return unicodedata.normalize("NFC", " ".join(name.split()))


def write_class(
    folder: Path, entry: BankEntry, *, stored: Stored, recipe: str, pictures: bool
) -> Stocked:
    """Write a class: its tensors, then, in one step, the JSON file that makes it be there.

    Raises:
        InputError: Numbers are not finite, or the folder cannot be written.
    """
    from safetensors.torch import save_file

    prototypes = pack_prototypes(entry, stored)
    seen = pack_pictures(entry) if pictures else {}
    digests = {"prototypes": digest(prototypes)} | ({"pictures": digest(seen)} if seen else {})
    stem = stem_of(entry.name)
    # Named by what is in it: who reads the JSON file of before still finds the tensors of before.
    content = hashlib.sha256("".join(digests.values()).encode()).hexdigest()[:12]
    target = folder / f"{stem}.{content}.safetensors"
    with atomic_path(target) as temporary:
        save_file({**prototypes, **seen}, temporary)
        size = temporary.stat().st_size
    stocked = Stocked(
        name=normal(entry.name),
        words=tuple(entry.words),
        prompt=entry.prompt,
        recipe=recipe,
        file=target.name,
        bytes=size,
        digests=digests,
        counts=describe(entry),
        pictures=len(entry.images) if seen and entry.images is not None else 0,
        size=tuple(entry.images.shape[1:3]) if seen and entry.images is not None else (),
    )
    json_file = folder / f"{stem}.json"
    with atomic_path(json_file) as temporary:
        text = json.dumps(asdict(stocked), indent=1, ensure_ascii=False)
        temporary.write_text(text + "\n", encoding="utf-8")
    # Tensors of before stay: somebody may be reading them, or about to name them (`Bank.tidy`).
    return stocked


def read_stocked(file: Path) -> Stocked:
    """Read the JSON file of a class.

    Raises:
        FileNotFoundError: It is not there.
        DamagedFile: It is not what was written.
    """
    try:
        held = json.loads(file.read_text(encoding="utf-8"))
        held |= {name: tuple(held[name]) for name in ("words", "size")}
        stocked = Stocked(**held)
        whole = stem_of(stocked.name) == file.stem and Path(stocked.file).name == stocked.file
    except FileNotFoundError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedFile(f"{file.name} cannot be read ({type(error).__name__})") from error
    if not whole:
        raise DamagedFile(f"{file.name} is of the class {stocked.name!r}")
    return stocked


def read_class(folder: Path, stocked: Stocked, *, pictures: bool) -> BankEntry:
    """Read the tensors of a class, every byte that is read compared with its digest.

    Raises:
        FileNotFoundError: They are not there.
        DamagedFile: They are not what was written.
    """
    prototypes, seen = _read_tensors(folder / stocked.file, pictures and stocked.pictures > 0)
    for part, tensors in (("prototypes", prototypes), ("pictures", seen)):
        if tensors and digest(tensors) != stocked.digests.get(part):
            raise DamagedFile(f"the {part} in {stocked.file} are not those that were written")
    try:
        images, fg, bg = unpack_pictures(seen) if seen else (None, None, None)
        return BankEntry(
            name=stocked.name,
            prompt=stocked.prompt,
            words=stocked.words,
            prototypes={one: unpack_prototypes(prototypes, one) for one in stocked.counts},
            images=images,
            fg=fg,
            bg=bg,
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedFile(f"{stocked.file} does not hold what it should ({error})") from error


def _read_tensors(file: Path, pictures: bool) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as held:
            names = set(held.keys())
            prototypes = {name: held.get_tensor(name) for name in sorted(names - set(PICTURES))}
            wanted = PICTURES if pictures else ()
            return prototypes, {name: held.get_tensor(name) for name in wanted if name in names}
    except FileNotFoundError:
        raise
    except (SafetensorError, OSError, ValueError, TypeError) as error:
        raise DamagedFile(f"{file.name} is cut short or no safetensors file ({error})") from error
