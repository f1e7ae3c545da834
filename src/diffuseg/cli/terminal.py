"""The command line's manners: errors in colour, bars only where somebody watches, exit codes.

Machines read standard output; people read standard error.
"""

import json
import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import typer
from typer.core import TyperGroup

from diffuseg.errors import DiffusegError, InputError

if TYPE_CHECKING:
    from rich.console import Console

    from diffuseg.result import Segmentation

FAILED, USAGE, INTERRUPTED = 1, 2, 130


@runtime_checkable
class Advance(Protocol):
    """Called with (done, all), and a few words to stand beside the bar."""

    def __call__(self, done: int, total: int, note: str = "") -> None: ...


class Commands(TyperGroup):
    """A group of commands that ends with a clear message instead of a traceback."""

    def invoke(self, ctx):
        """Run a command; turn errors users can act on into messages and exit codes."""
        try:
            return super().invoke(ctx)
        except DiffusegError as error:
            show_error(error)
            raise typer.Exit(USAGE if isinstance(error, InputError) else FAILED) from None
        except KeyboardInterrupt:
            stderr().print("stopped", style="yellow")
            raise typer.Exit(INTERRUPTED) from None


def stderr() -> "Console":
    """Return a console on standard error, as it is now."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, soft_wrap=True)


def stdout() -> "Console":
    """Return a console on standard output, as it is now."""
    from rich.console import Console

    return Console(highlight=False, soft_wrap=True)


def show_error(error: DiffusegError, where: str = "") -> None:
    """Print what was expected, what came and what to do."""
    from rich.text import Text

    got = error.got if isinstance(error.got, str) else repr(error.got)
    stderr().print(
        Text.assemble(
            ("error: ", "bold red"),
            where,
            (error.expected, "bold"),
            ("\n  got: ", "yellow"),
            got,
            ("\n  fix: ", "green"),
            error.remedy,
        )
    )


def show_logs(*, quiet: bool, verbose: bool) -> None:
    """Send the library's log to standard error: warnings, or with `verbose` everything."""
    level = logging.ERROR if quiet else logging.INFO if verbose else logging.WARNING
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
    logger = logging.getLogger("diffuseg")
    logger.handlers = [handler]
    logger.setLevel(level)
    logger.propagate = False


@contextmanager
def progress_bar(title: str, *, quiet: bool = False) -> Iterator[Advance]:
    """Yield a function to call with (done, all): a bar with rate and time left, on a terminal only.

    Example:
        >>> with progress_bar("counting", quiet=True) as advance:
        ...     advance(1, 2)
    """
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = stderr()
    if quiet or not console.is_terminal:
        yield lambda done, total, note="": None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(title, total=None, rate="")

        def advance(done: int, total: int, note: str = "") -> None:
            elapsed = bar.tasks[0].elapsed or 0.0
            rate = f"{done / elapsed:.1f}/s" if elapsed > 0 and done else ""
            bar.update(task, completed=done, total=total, rate=f"{rate} {note}".strip())

        yield advance


def print_json(held: object) -> None:
    """Print a value as JSON on standard output."""
    sys.stdout.write(json.dumps(held, indent=2) + "\n")


def print_markdown(text: str) -> None:
    """Print a page on standard output; unlike other output it is broken to the width there is."""
    from rich.markdown import Markdown

    # Without this the lines of lists would be cut off.
    stdout().print(Markdown(text), soft_wrap=False)


def show_preview(seg: "Segmentation", image: object = None) -> None:
    """Print a small picture of a result on standard output."""
    from diffuseg.render.terminal import preview

    console = stdout()
    console.print(preview(seg, image, console=console))


def print_table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    """Print a table on standard output."""
    from rich import box
    from rich.table import Table

    table = Table(*head, box=box.SIMPLE_HEAD, pad_edge=False)
    for row in rows:
        table.add_row(*row)
    stdout().print(table)


def print_sections(sections: Mapping[str, Mapping[str, str]]) -> None:
    """Print names and values by section on standard output."""
    console = stdout()
    for section, rows in sections.items():
        console.print(section, style="bold")
        for name, value in rows.items():
            console.print(f"  {name}: {value}", markup=False)
