"""What a run is taken up from: one file of tensors and plain facts, replaced as a whole.

Everything drawn is a function of the step (see `batches`), so no generator has a state to keep.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from diffuseg.errors import InputError
from diffuseg.files import atomic_path
from diffuseg.train.segdiffusion.recipe import SegRecipe

LATEST, BEST = "latest.safetensors", "best.safetensors"
_LEARNED, _AVERAGE, _MOMENTS = "learned|", "average|", "moments|"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFacts:
    """What is known of a run beside its weights.

    Attributes:
        recipe: Its numbers, by name.
        base: The model it began from.
        data: The data set, see `data_key`.
        scheduler: Configuration of the scheduler masks are denoised with.
        start: Name of the folder its weights began from, if not the base's; it may be moved.
        step: Updates done.
        best: Highest mIoU of a validation, None before the first.
        best_step: When that was.
        validation: What the last validation found.
        skipped: Updates left out because a loss or gradient was no number.
        in_a_row: How many of them were the last ones.
        empty: Parts without any pixel that is known.
        parts: Processes, parts and pictures a part: what is drawn depends on them.
        seconds: Spent so far.
    """

    recipe: Mapping[str, object]
    base: str
    data: str
    scheduler: Mapping[str, object]
    start: str | None = None
    step: int = 0
    best: float | None = None
    best_step: int = 0
    validation: Mapping[str, float | None] = field(default_factory=dict)
    skipped: int = 0
    in_a_row: int = 0
    empty: int = 0
    parts: tuple[int, int, int] = (1, 1, 1)
    seconds: float = 0.0


def plain_recipe(recipe: SegRecipe) -> dict[str, object]:
    """A recipe as JSON would bring it back.

    Example:
        >>> plain_recipe(SegRecipe())["zoom"]
        [0.5, 2.0]
    """
    return json.loads(json.dumps(asdict(recipe)))


def check_same_run(found: RunFacts, asked: RunFacts, path: Path) -> None:
    """Make sure that a run that is taken up is the one that is asked for.

    Raises:
        InputError: Names what differs.
    """
    # A run from before there was a number went by what is its default now.
    held = {**plain_recipe(SegRecipe()), **found.recipe}
    differs = [
        f"{name}: {held[name]!r} there, {value!r} here"
        for name, value in asked.recipe.items()
        if held[name] != value
    ]
    differs += [
        f"{name}: {getattr(found, name)!r} there, {getattr(asked, name)!r} here"
        for name in ("base", "data", "scheduler", "start")
        if getattr(found, name) != getattr(asked, name)
    ]
    if differs:
        raise InputError(
            "a work folder holds one run, which is taken up with the numbers it has",
            got=f"{path} with " + "; ".join(differs),
            remedy="use those, or another work folder for a new run",
        )


def save_state(
    path: Path,
    learned: Mapping[str, nn.Parameter],
    average: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
    facts: RunFacts,
) -> None:
    """Write the state of a run; the file that was there is replaced when it is whole."""
    tensors = {_LEARNED + name: value for name, value in learned.items()}
    tensors |= {_AVERAGE + name: value for name, value in average.items()}
    for name, value in learned.items():
        for moment, held in optimizer.state.get(value, {}).items():
            tensors[f"{_MOMENTS}{name}|{moment}"] = held
    on_cpu = {name: one.detach().cpu().contiguous() for name, one in tensors.items()}
    with atomic_path(path) as temporary:
        save_file(on_cpu, temporary, metadata={"facts": json.dumps(asdict(facts))})


def read_facts(path: Path) -> RunFacts:
    """What is known of the run that a file is of.

    Raises:
        InputError: It is not such a file.
    """
    try:
        with safe_open(path, framework="pt") as file:
            held = json.loads(file.metadata()["facts"])
        held["parts"] = tuple(held["parts"])
        known = {one.name for one in fields(RunFacts)}
        return RunFacts(**{name: value for name, value in held.items() if name in known})
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            "the state of a run must be a whole file that a training wrote",
            got=f"{path}: {error}",
            remedy="take one of the older files beside it, renamed, or begin in another folder",
        ) from error


def load_state(
    path: Path,
    learned: Mapping[str, nn.Parameter],
    average: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
) -> RunFacts:
    """Load a state into what learns, its average and the optimizer, and return its facts.

    Raises:
        InputError: It is the state of something else.
    """
    facts = read_facts(path)
    with safe_open(path, framework="pt") as file, torch.no_grad():
        names = set(file.keys())
        _check_names(path, names, learned)
        for name, value in learned.items():
            value.copy_(file.get_tensor(_LEARNED + name))
            average[name].copy_(file.get_tensor(_AVERAGE + name))
        for full in sorted(one for one in names if one.startswith(_MOMENTS)):
            name, moment = full.removeprefix(_MOMENTS).rsplit("|", 1)
            held = file.get_tensor(full)
            # Adam's count of steps lies on the CPU wherever the weights are.
            placed = held if moment == "step" else held.to(learned[name].device)
            optimizer.state[learned[name]][moment] = placed
    return facts


def load_average(path: Path, learned: Mapping[str, nn.Parameter]) -> None:
    """Load the averaged weights of a run into what learns.

    Raises:
        InputError: Something else learned in that run.
    """
    with safe_open(path, framework="pt") as file, torch.no_grad():
        _check_names(path, set(file.keys()), learned)
        for name, value in learned.items():
            value.copy_(file.get_tensor(_AVERAGE + name))


def _check_names(path: Path, names: set[str], learned: Mapping[str, nn.Parameter]) -> None:
    there = {name.removeprefix(_LEARNED) for name in names if name.startswith(_LEARNED)}
    odd = sorted(there ^ set(learned))
    if odd:
        raise InputError(
            "a run can go on with what learned in it",
            got=f"{path}, where {len(odd)} weights are others, such as {odd[0]}",
            remedy="use the same weights (full or lora), rank and layers",
        )
    with safe_open(path, framework="pt") as file:
        for name, value in learned.items():
            shape = tuple(file.get_slice(_LEARNED + name).get_shape())
            if shape != tuple(value.shape):
                raise InputError(
                    "a run can go on with what learned in it",
                    got=f"{path}, where {name} is {shape}, here {tuple(value.shape)}",
                    remedy="use the same base, weights (full or lora), rank and layers",
                )
