"""Who is at work on what, among processes that share a folder."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: work may be done twice there, never wrongly.
    fcntl = None


@contextmanager
def claim(path: Path, *, wait: bool = False) -> Iterator[bool]:
    """Yield whether this process holds the claim; it ends with the block, or with the process.

    The system keeps it and not what the file says, so a killed process leaves no claim behind.
    Where the disk cannot tell (some network disks), everybody's claim is granted.

    Args:
        path: Of a file for it, made and deleted here, its folder too.
        wait: Until who holds it is done.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "claims" / "dog"
        >>> with claim(file) as held, claim(file) as twice:
        ...     held, twice
        (True, False)
    """
    held, number = _take(path, wait)
    try:
        yield held
    finally:
        if number is not None:
            if held:
                path.unlink(missing_ok=True)
            os.close(number)
            with suppress(OSError):  # Others are at work.
                path.parent.rmdir()


def _take(path: Path, wait: bool) -> tuple[bool, int | None]:
    if fcntl is None:
        return True, None
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            number = os.open(path, os.O_CREAT | os.O_RDWR)
        except FileNotFoundError:  # Somebody has just deleted the folder.
            continue
        try:
            fcntl.flock(number, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False, number
        except OSError:
            return True, number
        try:
            if os.path.samestat(os.fstat(number), path.stat()):
                return True, number
        except FileNotFoundError:
            pass
        os.close(number)  # Its holder deleted it when done: this one is nobody's file.
