"""The exceptions users meet, and the one shape their messages have.

Every message says three things: what was expected, what came instead, and what to do about it.
"""


class DiffusegError(Exception):
    """Base of every error the library raises on purpose.

    Args:
        expected: What must hold, as a sentence without a full stop.
        got: What was there instead; shown as given if it is text that is not blank, else by
            `repr`.
        remedy: What to do about it, imperative.

    Example:
        >>> print(DiffusegError("classes must be non-empty strings", got=[""], remedy="name one"))
        classes must be non-empty strings
          got: ['']
          fix: name one
    """

    def __init__(self, expected: str, *, got: object, remedy: str) -> None:
        self.expected = expected
        self.got = got
        self.remedy = remedy
        shown = got if isinstance(got, str) and got.strip() else repr(got)
        super().__init__(f"{expected}\n  got: {shown}\n  fix: {remedy}")


class InputError(DiffusegError, ValueError):
    """An argument, image, class list or file the caller gave cannot be used."""


class CaptureError(DiffusegError, RuntimeError):
    """Attention could not be recorded, or what was recorded is incomplete."""


class WeightsError(DiffusegError, OSError):
    """Model weights are missing, unreadable, or not of a supported kind."""


class MissingExtra(DiffusegError, ImportError):
    """An optional dependency is needed for what was asked."""

    def __init__(self, package: str, *, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the package {package!r}",
            got="it is not installed",
            remedy=f"pip install 'diffuseg[{extra}]'",
        )
