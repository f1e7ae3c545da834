"""Make a virtual environment with diffuseg and its pinned dependencies; standard library only.

PyTorch is the one package that must be chosen for the machine: without an NVIDIA GPU the CPU build
is installed (200 MB) instead of the default one of several gigabytes; with one, or on macOS, the
default build. A torch that is already in the environment is left alone.
"""

import argparse
import platform
import re
import shutil
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CPU_INDEX = "https://download.pytorch.org/whl/cpu"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv")
    parser.add_argument("--group", action="append", default=[], help="dependency group, e.g. dev")
    parser.add_argument("--extra", action="append", default=[], help="extra, e.g. train")
    parser.add_argument("--torch", choices=("auto", "cpu", "default"), default="auto")
    options = parser.parse_args()
    if sys.version_info < (3, 11):  # noqa: UP036 - this runs on whatever Python the user has
        print(f"diffuseg needs Python 3.11 or later; this is {platform.python_version()}")
        return 2
    folder = "Scripts" if platform.system() == "Windows" else "bin"
    python = options.venv / folder / "python"
    if not python.exists():
        venv.create(options.venv, with_pip=True)
        pip(python, "--upgrade", "pip>=25.1")  # the first pip that knows dependency groups
    if subprocess.run([python, "-c", "import torch"], capture_output=True, check=False).returncode:
        install_torch(python, options.torch)
    extras = f"[{','.join(options.extra)}]" if options.extra else ""
    groups = [f"--group={ROOT / 'pyproject.toml'}:{name}" for name in options.group]
    pip(python, "--editable", f"{ROOT}{extras}", *groups)
    return 0


def install_torch(python: Path, choice: str) -> None:
    """Install the pinned torch: the CPU build where no NVIDIA GPU is found."""
    pins = (ROOT / "constraints.txt").read_text()
    version = re.search(r"^torch==(\S+)$", pins, re.MULTILINE)
    if version is None:
        raise SystemExit("constraints.txt must pin torch")
    wants_cpu = choice == "cpu" or (
        choice == "auto" and platform.system() != "Darwin" and shutil.which("nvidia-smi") is None
    )
    if not wants_cpu:
        pip(python, f"torch=={version[1]}")
        return
    wheel = f"torch=={version[1]}+cpu"
    # A wheel at hand (pip's own find-links or index) is tried before PyTorch's CPU index.
    if pip(python, wheel, check=False) != 0:
        pip(python, wheel, "--extra-index-url", CPU_INDEX)


def pip(python: Path, *arguments: str, check: bool = True) -> int:
    """Run `pip install` inside the environment under the pinned versions."""
    command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    command += ["--constraint", str(ROOT / "constraints.txt"), *arguments]
    print("+", " ".join(command[1:]), flush=True)
    return subprocess.run(command, check=check).returncode


if __name__ == "__main__":
    raise SystemExit(main())
