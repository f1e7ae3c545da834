"""A folder of classes, each with its prototypes: built once, extended class by class, shared.

    BANK/manifest.json                            what all classes are made with; written once
    BANK/classes/NAME-HASH.json                   one class: its name, prompt, numbers, digests
    BANK/classes/NAME-HASH.CONTENT.safetensors    its tensors

The classes of a bank are the JSON files in the folder: no list is ever rewritten, so that any
number of processes may add to it at once.
"""

import json
import logging
import os
import secrets
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import get_args

from diffuseg.errors import InputError
from diffuseg.files import atomic_path
from diffuseg.methods.ovdiff import OVDiff
from diffuseg.methods.settings import with_preset
from diffuseg.ovdiff.entries import BankEntry, Stored
from diffuseg.ovdiff.recipe import FORMAT, Recipe
from diffuseg.ovdiff.stock import (
    DamagedFile,
    Stocked,
    normal,
    read_class,
    read_stocked,
    stem_of,
    write_class,
)

log = logging.getLogger(__name__)

_MANIFEST = "manifest.json"
# Seconds after which a file that nothing refers to is no work in progress.
_STALE = 3600.0


@dataclass(frozen=True, slots=True)
class Bank:
    """A folder of classes; see `Bank.create`, `Bank.open` and `build_bank`.

    Nothing is kept in memory: what other processes add is seen.

    Attributes:
        path: The folder.
        recipe: What all its classes are made with.
        stored: How vectors lie on disk: "float32", or "float16" for half the size.
        settings: Those of `OVDiff` the recipe comes from, see `adopt`.
        model: Name of the model that draws the pictures, for people.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp()) / "bank"
        >>> bank = Bank.create(folder, Recipe(values={"pictures": {"number": 4}}))
        >>> bank.names, bank.missing(["dog"])
        ((), ('dog',))
    """

    path: Path
    recipe: Recipe
    stored: Stored = "float32"
    settings: Mapping[str, object] = field(default_factory=dict, repr=False)
    model: str = ""

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        recipe: Recipe,
        *,
        stored: str = "float32",
        settings: Mapping[str, object] | None = None,
        model: str = "",
    ) -> "Bank":
        """Make a bank, or open the one that is there if it is made with the same.

        Raises:
            InputError: There is another, or the folder cannot be written.
        """
        if stored not in get_args(Stored):
            raise InputError(
                "vectors are stored as float32 or float16", got=stored, remedy="use float32"
            )
        target = Path(path) / _MANIFEST
        if not target.exists():
            held: dict[str, object] = {"format": FORMAT, "model": model, "stored": stored}
            held |= {"digest": recipe.digest, "recipe": recipe.values, "settings": settings or {}}
            _write_once(target, json.dumps(held, indent=1, ensure_ascii=False) + "\n")
        bank = cls.open(path)
        bank.check(recipe, whole=True)
        if bank.stored != stored:
            raise InputError(
                f"the bank {path} must store vectors as asked for",
                got=f"{bank.stored}, not {stored}",
                remedy=f"use {bank.stored}, or another folder",
            )
        return bank

    @classmethod
    def open(cls, path: str | os.PathLike[str], recipe: Recipe | None = None) -> "Bank":
        """Open a bank.

        Args:
            path: Its folder.
            recipe: What it must be made with, as far as it says.

        Raises:
            InputError: There is no bank, it cannot be read, or it is made with something else.
        """
        target = Path(path) / _MANIFEST
        try:
            held = json.loads(target.read_text(encoding="utf-8"))
            version = held["format"]
            bank = cls(
                path=Path(path),
                recipe=Recipe(values=held["recipe"]),
                stored=held["stored"],
                settings=held["settings"],
                model=held["model"],
            )
            fault = "" if bank.recipe.digest == held["digest"] else "the recipe was changed"
        except (FileNotFoundError, NotADirectoryError):
            raise InputError(
                f"a bank must be a folder with a {_MANIFEST}",
                got=f"none in {path}",
                remedy='build one: diffuseg bank build FOLDER --classes "dog, cat"',
            ) from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise _bad_manifest(target, f"{type(error).__name__}: {error}") from error
        if version != FORMAT:
            raise InputError(
                f"the bank must be of format {FORMAT}",
                got=f"format {version} in {path}",
                remedy="use the version of diffuseg it was built with, or build it anew",
            )
        if fault:
            raise _bad_manifest(target, fault)
        if recipe is not None:
            bank.check(recipe)
        return bank

    def check(self, recipe: Recipe, *, whole: bool = False) -> None:
        """Make sure that the bank is made as a recipe says.

        Args:
            recipe: What is asked for; it may leave extractors and sections out.
            whole: Whether the bank must not have more than that either.

        Raises:
            InputError: It is not. The message says in what they differ.
        """
        differences = self.recipe.differences(recipe, whole=whole)
        if differences:
            raise InputError(
                f"the bank {self.path} must be made with the networks and settings of this run",
                got="in the bank " + ", ".join(differences),
                remedy="load the model it was built with and leave its settings out, or build "
                "another bank in a new folder",
            )

    def adopt(self, settings: OVDiff) -> OVDiff:
        """Return settings, those that decide what is in a bank, if left open, as the bank's."""
        return with_preset(settings, self.settings)

    @property
    def names(self) -> tuple[str, ...]:
        """Its classes in alphabetical order, but for those whose JSON file cannot be read."""
        return tuple(one.name for one in self.stock())

    def stock(self) -> list[Stocked]:
        """Return what the bank says of its classes, in alphabetical order."""
        found: list[Stocked] = []
        for file in self._files():
            try:
                found.append(read_stocked(file))
            except FileNotFoundError:  # Removed meanwhile.
                continue
            except DamagedFile as error:
                log.warning("%s is left out: %s", self.path, error)
        return sorted(found, key=lambda one: (one.name.casefold(), one.name))

    def damaged(self) -> dict[str, str]:
        """Return which classes (or files) are damaged and how; every tensor is read."""
        found: dict[str, str] = {}
        for file in self._files():
            name = file.name
            try:
                name = read_stocked(file).name
                self.get(name, pictures=True)
            except FileNotFoundError:
                continue
            except DamagedFile as error:
                found[name] = str(error)
            except InputError as error:
                found[name] = str(error.got)
        return found

    def missing(self, names: Iterable[str]) -> tuple[str, ...]:
        """Return the names that are no class of it, or one whose files are not whole."""
        return tuple(name for name in names if not self._is_whole(name))

    def look(self, name: str) -> Stocked:
        """Return what the bank says of a class.

        Args:
            name: Case counts only where classes differ in nothing else.

        Raises:
            InputError: There is no such class, or its JSON file cannot be read.
        """
        try:
            return read_stocked(self._json(name))
        except DamagedFile as error:
            raise self._is_damaged(name, str(error)) from error
        except FileNotFoundError:
            names = {one.name: one for one in self.stock()}
        same = [one for one in names if one.casefold() == normal(name).casefold()]
        if len(same) == 1:
            return names[same[0]]
        near = same or get_close_matches(name, names, n=3)
        hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
        half = any(self._classes.glob(f"{stem_of(name)}.*.safetensors"))
        raise InputError(
            f"the class must be in the bank {self.path}",
            got=f"{name!r}, of which only tensors are there" if half else repr(name),
            remedy=f"{hint}add it: diffuseg bank add {self.path} --classes {name!r}",
        )

    def get(self, name: str, *, pictures: bool = False) -> BankEntry:
        """Return a class, every byte that is read compared with its digest.

        Args:
            name: As for `look`.
            pictures: Whether pictures and masks are read too, if the bank keeps them.

        Raises:
            InputError: There is no such class, or its files are damaged.
        """
        try:
            return self._load(name, pictures)
        except FileNotFoundError:
            # Another may have been put in its place since its JSON file was read.
            try:
                return self._load(name, pictures)
            except FileNotFoundError:
                raise self._is_damaged(name, "its tensors are not there") from None

    def add(
        self, entry: BankEntry, *, replace: bool = False, keep_pictures: bool = True
    ) -> Stocked:
        """Write a class; no file of another is touched. It is there whole or not at all.

        Args:
            entry: Made as the bank's recipe says, for all its extractors.
            replace: Whether it may take the place of the class of that name.
            keep_pictures: Whether its pictures and masks are written too.

        Raises:
            InputError: The class is there, its extractors are not the bank's, a number is not
                finite, or the folder cannot be written.
        """
        if not replace and self._holds(entry.name):
            raise InputError(
                "a class may be added to a bank once",
                got=f"{entry.name!r} is in {self.path}",
                remedy="remove it first, or pass replace=True",
            )
        if set(entry.prototypes) != set(self.recipe.extractors):
            raise InputError(
                f"{entry.name!r} must have prototypes of the bank's extractors",
                got=", ".join(entry.prototypes),
                remedy=f"give those of {', '.join(self.recipe.extractors)}",
            )
        return write_class(
            self._classes,
            entry,
            stored=self.stored,
            recipe=self.recipe.digest,
            pictures=keep_pictures,
        )

    def remove(self, name: str) -> None:
        """Delete a class, damaged or not.

        Raises:
            InputError: There is no such class.
        """
        file = self._json(name)
        if not file.exists() and not any(self._classes.glob(f"{stem_of(name)}.*.safetensors")):
            file = self._json(self.look(name).name)
        file.unlink(missing_ok=True)
        for tensors in self._classes.glob(f"{file.stem}.*.safetensors"):
            tensors.unlink(missing_ok=True)

    def tidy(self) -> None:
        """Delete what killed processes have left behind, unless it is from the last hour."""
        used = {stem_of(one.name): one.file for one in self.stock()}
        for file in self._classes.glob("*"):
            stem = file.name.partition(".")[0]
            left = file.name.startswith(".diffuseg-")
            if file.suffix == ".safetensors" and not left:
                # Those of a damaged JSON file may be all there is of a class.
                left = used.get(stem, file.name) != file.name
                left |= not (self._classes / f"{stem}.json").exists()
            try:
                if left and time.time() - file.stat().st_mtime > _STALE:
                    file.unlink()
            except OSError:  # Gone, or not ours.
                continue

    @property
    def _classes(self) -> Path:
        return self.path / "classes"

    def _json(self, name: str) -> Path:
        return self._classes / f"{stem_of(name)}.json"

    def _files(self) -> list[Path]:
        # What is being written begins with a dot.
        return [file for file in self._classes.glob("*.json") if not file.name.startswith(".")]

    def _load(self, name: str, pictures: bool) -> BankEntry:
        held = self.look(name)
        if held.recipe != self.recipe.digest:
            raise self._is_damaged(held.name, "it was made with other networks or settings")
        try:
            return read_class(self._classes, held, pictures=pictures)
        except DamagedFile as error:
            raise self._is_damaged(held.name, str(error)) from error

    def _is_whole(self, name: str) -> bool:
        try:
            return self._whole(self.look(name))
        except InputError:
            return False

    def _holds(self, name: str) -> bool:
        """Whether there is a class of just that name, its files whole."""
        try:
            return self._whole(read_stocked(self._json(name)))
        except (FileNotFoundError, DamagedFile):
            return False

    def _whole(self, held: Stocked) -> bool:
        try:
            return (self._classes / held.file).stat().st_size == held.bytes
        except OSError:
            return False

    def _is_damaged(self, name: str, fault: str) -> InputError:
        return InputError(
            f"the class {name!r} of the bank {self.path} must be as it was written",
            got=fault,
            remedy=f"diffuseg bank remove {self.path} {name!r}, then diffuseg bank add "
            f"{self.path} --classes {name!r}; the other classes are not affected",
        )


def _write_once(target: Path, text: str) -> None:
    """Write a file that is not there; one that somebody else has written first stays."""
    whole = target.with_name(f".diffuseg-{secrets.token_hex(6)}.manifest")
    with atomic_path(whole) as temporary:
        temporary.write_text(text, encoding="utf-8")
    try:
        os.link(whole, target)
    except FileExistsError:
        pass
    except OSError:  # A disk without links.
        if not target.exists():
            os.replace(whole, target)
    finally:
        whole.unlink(missing_ok=True)


def _bad_manifest(target: Path, fault: str) -> InputError:
    return InputError(
        "the manifest of a bank must be as it was written",
        got=f"{target}: {fault}",
        remedy="restore the file, or build another bank in a new folder",
    )
