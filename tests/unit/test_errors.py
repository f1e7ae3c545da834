"""Every message says what was expected, what came, and what to do."""

import pytest

from diffuseg.errors import CaptureError, DiffusegError, InputError, MissingExtra, WeightsError


@pytest.mark.parametrize(
    ("got", "shown"),
    [("two words", "two words"), ("", "''"), (" \n", "' \\n'"), ([], "[]"), (3, "3")],
)
def test_what_came_is_always_visible(got, shown):
    error = InputError("a name must be given", got=got, remedy="name one")
    assert str(error) == f"a name must be given\n  got: {shown}\n  fix: name one"


@pytest.mark.parametrize(
    ("kind", "builtin"),
    [
        (InputError, ValueError),
        (CaptureError, RuntimeError),
        (WeightsError, OSError),
        (MissingExtra, ImportError),
    ],
)
def test_each_is_also_the_builtin_that_callers_expect(kind, builtin):
    assert issubclass(kind, DiffusegError)
    assert issubclass(kind, builtin)


def test_a_missing_package_names_its_extra():
    error = MissingExtra("ray", extra="ray", purpose="running on a cluster")
    assert "pip install 'diffuseg[ray]'" in str(error)
