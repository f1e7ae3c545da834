"""Writing files so that a reader never meets half of one."""

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from diffuseg.errors import InputError


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path`; move it there when the block ends well.

    The temporary file has the same suffix (libraries choose a format by it) and lies in the same
    folder (so that the move is one step of the file system). Missing parent folders are made. When
    the block raises, the temporary file is removed and `path` is what it was before.

    Raises:
        InputError: `path` is a folder, or its parent folder cannot be made or written to.

    Example:
        >>> import tempfile
        >>> target = Path(tempfile.mkdtemp()) / "note.txt"
        >>> with atomic_path(target) as temporary:
        ...     _ = temporary.write_text("done")
        >>> target.read_text(), [file.name for file in target.parent.iterdir()]
        ('done', ['note.txt'])
    """
    target = Path(path)
    if target.is_dir():
        raise InputError(
            "the output must be a file name", got=f"the folder {target}", remedy="add a file name"
        )
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            "the folder of the output must exist or be makeable",
            got=f"{target.parent}: {error.strerror or error}",
            remedy="choose an output folder you may write to",
        ) from error
    if not os.access(target.parent, os.W_OK):
        raise InputError(
            "the folder of the output must be writable",
            got=str(target.parent),
            remedy="choose an output folder you may write to",
        )
    temporary = target.with_name(f".diffuseg-{secrets.token_hex(6)}{target.suffix}")
    try:
        yield temporary
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield an empty folder that becomes `path` when the block ends well, else vanishes.

    Raises:
        InputError: `path` exists and is not empty, or the folder above it cannot be written to.

    Example:
        >>> import tempfile
        >>> target = Path(tempfile.mkdtemp()) / "notes"
        >>> with atomic_folder(target) as folder:
        ...     _ = (folder / "note.txt").write_text("done")
        >>> [file.name for file in target.iterdir()]
        ['note.txt']
    """
    target = Path(path)
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise InputError(
            "the folder to write must not exist yet, or be empty",
            got=f"{target}, which is not",
            remedy="choose another folder, or remove this one first",
        )
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".diffuseg-{secrets.token_hex(6)}")
        temporary.mkdir()
    except OSError as error:
        raise InputError(
            "the folder above the output must be writable",
            got=f"{target.parent}: {error.strerror or error}",
            remedy="choose an output folder you may write to",
        ) from error
    try:
        yield temporary
        if target.exists():
            target.rmdir()  # not every system moves onto a folder, even an empty one
        os.replace(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
