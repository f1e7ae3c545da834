"""Parity with the references' own numbers: every file of a family, every size taken from the file.

A test marked `golden("FAMILY")` runs once for every file `FAMILY*.npz` of the folder named by
DIFFUSEG_GOLDEN (by default `../shared/golden` beside the repository) and gets its arrays as the
fixture `golden`.
"""

import os
from collections.abc import Generator
from pathlib import Path

import numpy as np
import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


def golden_folder() -> Path:
    return Path(os.environ.get("DIFFUSEG_GOLDEN", REPOSITORY / ".." / "shared" / "golden"))


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "golden(family): runs over every file FAMILY*.npz")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    marker = metafunc.definition.get_closest_marker("golden")
    if marker is None:
        return
    family, folder = marker.args[0], golden_folder()
    files = sorted(folder.glob(f"{family}*.npz"))
    if files:
        metafunc.parametrize("golden", files, ids=[file.stem for file in files], indirect=True)
    else:
        reason = f"no {family}*.npz in {folder}"
        metafunc.parametrize(
            "golden", [pytest.param(None, marks=pytest.mark.skip(reason))], ids=[family]
        )


class Golden:
    """The arrays of one golden file, and the list of what did not agree with it.

    `check` never raises: the outputs of a file are steps of one computation, and the first that is
    off says more than the last. The test fails at its end with all of them, in order.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with np.load(path, allow_pickle=False) as file:
            self.arrays = {name: file[name] for name in file.files}
        self.problems: list[str] = []
        self.differences: dict[str, float] = {}

    def __getitem__(self, name: str) -> np.ndarray:
        return self.arrays[name]

    def __contains__(self, name: str) -> bool:
        return name in self.arrays

    def scalar(self, name: str) -> float | int | str:
        return self.arrays[name].item()

    def check(self, name: str, got: object, *, atol: float = 0.0, rtol: float = 0.0) -> None:
        """Compare with the array `name`; tolerance 0 means equal. NaN agrees with NaN only."""
        want, have = self.arrays[name], np.asarray(got)
        if want.shape != have.shape:
            self.problems.append(f"{name}: shape {have.shape}, expected {want.shape}")
            return
        a, b = have.astype(np.float64), want.astype(np.float64)
        difference = np.where(np.isnan(a) & np.isnan(b) | (a == b), 0.0, np.abs(a - b))
        difference = np.nan_to_num(difference, nan=np.inf)
        self.differences[name] = float(difference.max(initial=0.0))
        wrong = difference > atol + rtol * np.abs(np.nan_to_num(b))
        if wrong.any():
            worst = np.unravel_index(int(difference.argmax()), difference.shape)
            place = [int(i) for i in worst]
            self.problems.append(
                f"{name}: {int(wrong.sum())} of {wrong.size} values off; largest difference "
                f"{difference[worst]:.3g} at {place}: {have[worst]!r}, expected {want[worst]!r}"
            )

    def settle(self) -> None:
        if not self.differences and not self.problems:
            pytest.fail(f"{self.path.name}: nothing was compared", pytrace=False)
        if self.problems:
            listed = "\n  ".join(self.problems)
            pytest.fail(f"{self.path.name}, first step off first:\n  {listed}", pytrace=False)


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Golden:
    return Golden(request.param)


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    result = yield
    if isinstance(held := pyfuncitem.funcargs.get("golden"), Golden):
        worst = max(held.differences.values(), default=0.0)
        pyfuncitem.user_properties.append(("largest_difference", worst))
        held.settle()
    return result
