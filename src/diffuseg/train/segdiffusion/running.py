"""How a training is carried out: what changes no number of it, its batches' sizes aside."""

import resource
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

import torch

from diffuseg.errors import InputError
from diffuseg.train.segdiffusion.batches import MaskBatch
from diffuseg.train.segdiffusion.mixing import Source

if TYPE_CHECKING:
    from accelerate import Accelerator


@runtime_checkable
class Told(Protocol):
    """Told how far something is."""

    def __call__(self, done: int, total: int, note: str = "") -> None: ...


@runtime_checkable
class Meter(Protocol):
    """Opens a progress bar for a title."""

    def __call__(self, title: str) -> AbstractContextManager[Told]: ...


@contextmanager
def silent(title: str) -> Iterator[Told]:
    """No progress bar."""
    yield lambda done, total, note="": None


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """How a training is carried out.

    Attributes:
        per_device: Pictures a process takes at once; the rest of an update's is accumulated in
            parts. None: all at once.
        minutes: After so many the state is saved and the training ends, to be taken up again.
        save_every: Steps between states, each in the place of the one before.
        keep_every: Steps between states that stay.
        validate_every: Steps between validations.
        validation_steps: Of denoising, in them.
        export: Which weights are written in the end: the "last", or the "best" of the validations.
        merge: Whether low-rank updates are merged into a whole model rather than written alone.
        gibibytes: Of pictures kept in memory.
        cpu: Whether to stay on the CPU where there is something faster.
        preset: Settings of the method that are written beside the weights.

    Raises:
        InputError: A number is not above 0.
    """

    per_device: int | None = None
    minutes: float | None = None
    save_every: int = 500
    keep_every: int = 2000
    validate_every: int = 500
    validation_steps: int = 4
    export: Literal["last", "best"] = "last"
    merge: bool = False
    gibibytes: float = 2.0
    cpu: bool = False
    preset: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = ("save_every", "keep_every", "validate_every", "validation_steps", "gibibytes")
        for name in (*names, "per_device", "minutes"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise InputError(f"{name} must be above 0", got=value, remedy="leave it out")


def count_parts(images: int, per_device: int | None, processes: int) -> tuple[int, int]:
    """Parts of an update on every process, and the pictures of each.

    Raises:
        InputError: They do not come out even.

    Example:
        >>> count_parts(32, 4, 2)
        (4, 4)
    """
    each = per_device or max(1, images // processes)
    parts, rest = divmod(images, each * processes)
    if rest or not parts:
        raise InputError(
            "pictures of an update must be a multiple of processes times pictures at once",
            got=f"{images} with {processes} processes of {each}",
            remedy=f"set images to a multiple of {each * processes}, or per_device to a divisor",
        )
    return parts, each


class Ahead:
    """Draws the next batch while the last is learned from.

    Args:
        source: Draws.
        pool: Where.
        images: Of a batch.
        rank: Of the process.
        parts: Batches of an update.
    """

    def __init__(
        self, source: Source, pool: ThreadPoolExecutor, *, images: int, rank: int, parts: int
    ) -> None:
        self._source, self._pool, self._parts = source, pool, parts
        self._images, self._rank = images, rank
        self._next: tuple[int, int, Future[MaskBatch]] | None = None

    def draw(self, step: int, part: int) -> MaskBatch:
        """Return a batch, the one drawn ahead if it is that."""
        held = self._next
        known = held is not None and held[:2] == (step, part)
        batch = (held[2] if held is not None and known else self._ask(step, part)).result()
        after = (step, part + 1) if part + 1 < self._parts else (step + 1, 0)
        self._next = (after[0], after[1], self._ask(*after))
        return batch

    def _ask(self, step: int, part: int) -> Future[MaskBatch]:
        return self._pool.submit(
            self._source.draw, step, images=self._images, rank=self._rank, part=part
        )


def time_limit(accelerator: "Accelerator", minutes: float | None) -> Callable[[], bool]:
    """Whether time is up, on all processes alike."""
    began = time.monotonic()

    def is_up() -> bool:
        if minutes is None:
            return False
        up = time.monotonic() - began >= minutes * 60
        if accelerator.num_processes == 1:
            return up
        votes = torch.tensor(float(up), device=accelerator.device)
        return torch.as_tensor(accelerator.reduce(votes, reduction="sum")).item() > 0

    return is_up


def peak_gigabytes(device: torch.device) -> float:
    """The most memory used so far: of the accelerator, else of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
