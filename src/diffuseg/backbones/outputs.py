"""What modules inside a network put out while it runs."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def outputs_of(modules: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """Yield a list that holds the outputs of modules called inside, in the order of `modules`.

    Example:
        >>> layer = nn.Identity()
        >>> with outputs_of([layer]) as caught:
        ...     _ = layer(torch.ones(2))
        >>> caught[0].tolist()
        [1.0, 1.0]
    """
    caught: list[Tensor] = [torch.empty(0)] * len(modules)

    def keep(place: int, output: object) -> None:
        first = output[0] if isinstance(output, tuple) else output
        if isinstance(first, Tensor):
            caught[place] = first

    hooks = [
        module.register_forward_hook(lambda _m, _i, output, place=place: keep(place, output))
        for place, module in enumerate(modules)
    ]
    try:
        yield caught
    finally:
        for hook in hooks:
            hook.remove()
