"""Wrong types: refused by the library's own message, or sooner where the suite checks all types."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from jaxtyping import TypeCheckError

from diffuseg.errors import InputError


@contextmanager
def refused(message: str) -> Iterator[None]:
    """Expect InputError with this message; run-time type checks of the suite may come first."""
    with pytest.raises((InputError, TypeCheckError)) as caught:
        yield
    if isinstance(caught.value, InputError):
        assert re.search(message, str(caught.value))
