"""Reading how a U-Net is called and what its modules return; checks of record and intervene."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real

from torch import Tensor, nn

from diffuseg.attention.layers import Site, as_tuple
from diffuseg.errors import CaptureError, InputError

_NAMES_SHOWN = 3


@dataclass(frozen=True, slots=True)
class UNetCall:
    """What a U-Net was called with, as far as recording needs it."""

    shape: tuple[int, ...]
    timestep: Tensor | int | float
    tokens: int

    @property
    def latent_hw(self) -> tuple[int, int]:
        return self.shape[-2], self.shape[-1]

    @property
    def frames(self) -> int:
        """Frames of a video; 1 for an image."""
        return self.shape[1] if len(self.shape) == 5 else 1

    @property
    def step(self) -> int | float:
        """The timestep as a number: whole where it is (SVD's are not)."""
        given = self.timestep
        values = given.flatten().tolist() if isinstance(given, Tensor) else [given]
        if len(set(values)) > 1:
            raise CaptureError(
                "all rows of a batch must be at the same timestep",
                got=values,
                remedy="call the U-Net once for every timestep",
            )
        number = float(values[0])
        return int(number) if number.is_integer() else number


def read_call(args: Sequence, kwargs: dict) -> UNetCall:
    """Read a U-Net's arguments, positional or by keyword, as a forward pre-hook gets them."""
    given = dict(zip(("sample", "timestep", "encoder_hidden_states"), args, strict=False)) | kwargs
    text = given.get("encoder_hidden_states")
    tokens = 0 if text is None else text.shape[1]
    return UNetCall(tuple(given["sample"].shape), given["timestep"], tokens)


def output_tensor(output: object) -> Tensor:
    """Return the tensor of a module's output: itself, a tuple's first, or diffusers' `.sample`.

    Raises:
        CaptureError: The output is nothing of the kind.
    """
    if isinstance(output, Tensor):
        return output
    sample = getattr(output, "sample", None)
    if isinstance(sample, Tensor):
        return sample
    if isinstance(output, tuple | list) and output and isinstance(output[0], Tensor):
        return output[0]
    raise CaptureError(
        "a feature must be the output of a module that returns a tensor, or a tuple that starts "
        "with one",
        got=type(output).__name__,
        remedy="name a block, a resnet, a transformer or a layer",
    )


def check_steps(steps: object) -> tuple[int | float, ...] | None:
    """Return timesteps as a tuple, None for all.

    Raises:
        InputError: No number, or no timestep at all.
    """
    if steps is None:
        return None
    given = as_tuple(steps, Real, "steps must be timesteps")
    if not given:
        raise InputError("steps must name a timestep", got=steps, remedy="pass None for all")
    return given


def find_step(step: int | float, among: Sequence[int | float]) -> int | float | None:
    """Return the timestep meant by `step`, whatever float precision it went through."""
    return next((one for one in among if math.isclose(step, one, rel_tol=1e-6)), None)


def check_not_fused(sites: Sequence[Site]) -> None:
    """Raise CaptureError if a layer computes queries, keys and values in one projection."""
    # diffusers' flag `fused_projections` stays set after unfusing; the processor tells.
    fused = [s.layer.name for s in sites if _processor_name(s.attention).startswith("Fused")]
    if fused:
        raise CaptureError(
            "queries and keys must be computed by projections of their own",
            got=f"fused projections in {some_of(fused)}",
            remedy="call unfuse_qkv_projections() first",
        )


def _processor_name(attention: nn.Module) -> str:
    return type(getattr(attention, "processor", None)).__name__


def some_of(names: Sequence[str]) -> str:
    """Return the first few names, and how many more there are."""
    more = len(names) - _NAMES_SHOWN
    return ", ".join(names[:_NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")
