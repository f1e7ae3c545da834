"""What every method asks of a record before it works from it."""

from torch import Tensor

from diffuseg.attention import AttentionRecord
from diffuseg.errors import InputError


def check_finite(*maps: Tensor) -> None:
    """Make sure that maps hold numbers only.

    Raises:
        InputError: One holds NaN or infinity.
    """
    if not all(one.isfinite().all() for one in maps):
        raise InputError(
            "attention must be finite",
            got="a record with NaN or infinite maps",
            remedy="capture it again, in float32 if half precision overflows",
        )


def recorded_classes(record: AttentionRecord) -> tuple[str, ...]:
    """Return the classes whose tokens a record knows, in the user's order.

    Raises:
        InputError: There is none.
    """
    named = {span.name for span in record.header.spans}
    names = tuple(name for name in record.header.names if name in named)
    if not names:
        raise InputError(
            "the record must say which tokens name which class",
            got=f"a record of {record.header.model or 'an unnamed model'} without classes",
            remedy="capture it with classes: capture(image, model, needs, classes=...)",
        )
    return names
