"""The processes and devices of a training."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from accelerate import Accelerator
from accelerate.state import AcceleratorState


@contextmanager
def accelerated(
    *, cpu: bool, precision: Literal["no", "bf16"] | None = None
) -> Iterator[Accelerator]:
    """The processes and devices of a training, forgotten afterwards.

    accelerate holds its settings for the whole process, and refuses another training others.

    Args:
        cpu: Whether to stay on the CPU where there is something faster.
        precision: Of automatic mixed precision; None: as the launcher says.

    Example:
        >>> with accelerated(cpu=True, precision="bf16") as one, accelerated(cpu=True) as other:
        ...     one.num_processes == other.num_processes
        True
    """
    accelerator = Accelerator(cpu=cpu, mixed_precision=precision)
    try:
        yield accelerator
    finally:
        AcceleratorState._reset_state()
