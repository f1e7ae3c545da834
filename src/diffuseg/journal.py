"""A file of JSON lines that tells a run what it has done before."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from diffuseg.errors import InputError
from diffuseg.files import atomic_path


def read_journal(path: Path) -> list[dict[str, object]]:
    """Return the rows of a journal up to the first that is not whole; none if there is no file.

    A process that is killed while it writes leaves half a line at most.

    Example:
        >>> read_journal(Path("no-such-file.jsonl"))
        []
    """
    if not path.is_file():
        return []
    rows: list[dict[str, object]] = []
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]:
        try:
            row = json.loads(line)
        except ValueError:
            break
        if not isinstance(row, dict):
            break
        rows.append(row)
    return rows


def write_journal(path: Path, rows: Iterable[Mapping[str, object]]) -> None:
    """Write a journal anew, as a whole."""
    with atomic_path(path) as temporary:
        temporary.write_text(_lines(rows), encoding="utf-8")


def extend_journal(path: Path, rows: Iterable[Mapping[str, object]]) -> None:
    """Append rows to a journal, making it if it is not there.

    Raises:
        InputError: The file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(_lines(rows))
    except OSError as error:
        raise InputError(
            "the output folder must be writable",
            got=f"{path}: {error.strerror or error}",
            remedy="choose a folder you may write to",
        ) from error


def _lines(rows: Iterable[Mapping[str, object]]) -> str:
    return "".join(f"{json.dumps(row)}\n" for row in rows)
