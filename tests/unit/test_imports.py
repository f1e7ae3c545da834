"""The house stands: imports point one way, heavy packages wait, `import diffuseg` is light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import diffuseg

ROOT = Path(diffuseg.__file__).parent

# A room may import the rooms above it and other modules of its own row; see ARCHITECTURE.md.
ROWS: tuple[frozenset[str], ...] = (
    frozenset({"errors"}),
    frozenset({"palettes", "files", "journal"}),
    frozenset({"image", "ops", "provenance", "labelmaps", "result", "render", "export"}),
    frozenset({"prompts", "emphasis", "attention"}),
    frozenset({"backbones", "methods"}),
    frozenset(
        {
            *("api", "asking", "batch", "completion", "filtering", "image_labels", "interaction"),
            *("models", "ovdiff", "segdiffusion", "segmenter"),
        }
    ),
    frozenset({"eval", "file_runs", "folders", "doctor", "pseudo_masks", "video"}),
    frozenset({"cli"}),
)
# Rooms beside the main line, and all they may import.
ASIDE: dict[str, frozenset[str]] = {
    "world": frozenset({"world", "errors", "files", "palettes"}),
    "train": frozenset(
        {
            *("train", "world", "errors", "files", "journal", "palettes", "image", "ops"),
            *("backbones", "methods", "segdiffusion"),
        }
    ),
}
# Who may import a room beside the main line.
VISITORS: dict[str, frozenset[str]] = {
    "world": frozenset({"world", "train", "eval", "cli"}),
    "train": frozenset({"train", "cli"}),
}
HEAVY = {"diffusers", "transformers", "sklearn", "gradio", "ray", "av", "peft", "tensorboard"}
MODULES = sorted(ROOT.rglob("*.py"))


def room_of(path: Path) -> str:
    first = path.relative_to(ROOT).parts[0]
    return first.removesuffix(".py")


def imported(tree: ast.AST, *, package: str) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names.add(node.module or "")
            if node.module == package:
                names |= {f"{package}.{alias.name}" for alias in node.names}
    return names


def rooms_imported(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    names = {
        name.split(".")[1]
        for name in imported(tree, package="diffuseg")
        if "." in name and name.startswith("diffuseg.")
    }
    return {name for name in names if (ROOT / name).is_dir() or (ROOT / f"{name}.py").exists()}


def at_module_level(tree: ast.Module) -> ast.Module:
    """The statements that run on import: no function bodies, nothing for type checkers only."""
    kept: list[ast.stmt] = []
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        kept.append(node)
    return ast.Module(body=kept, type_ignores=[])


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_imports_point_one_way(path):
    room, used = room_of(path), rooms_imported(path)
    for visited, visitors in VISITORS.items():
        if visited in used:
            assert room in visitors, f"{room} imports {visited}"
    if room in ASIDE:
        assert used <= ASIDE[room], f"{room} imports {sorted(used - ASIDE[room])}"
        return
    if room in ("__init__", "__main__"):
        return
    row = next((i for i, rooms in enumerate(ROWS) if room in rooms), None)
    assert row is not None, f"the room {room!r} has no place in the table: say what it may import"
    above = frozenset().union(*ROWS[: row + 1]) | ASIDE.keys()
    assert used <= above, f"{room} imports {sorted(used - above)} from below"


def test_methods_import_no_backbone():
    for path in (ROOT / "methods").rglob("*.py"):
        assert "backbones" not in rooms_imported(path), path


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_heavy_packages_are_imported_inside_functions(path):
    tree = at_module_level(ast.parse(path.read_text()))
    found = {name.split(".")[0] for name in imported(tree, package="diffuseg")} & HEAVY
    assert not found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_the_sources_do_not_print(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id != "print", f"line {node.lineno}: use logging"


def loaded_after(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


@pytest.mark.parametrize("module", ["diffuseg", "diffuseg.cli"])
def test_import_is_light(module):
    loaded = loaded_after(f"import {module}")
    assert not loaded & {"torch", "numpy", "PIL", "scipy", *HEAVY}


def test_every_public_name_exists_and_is_what_it_says():
    for name in diffuseg.__all__:
        assert getattr(diffuseg, name) is not None
        assert name in dir(diffuseg)
    with pytest.raises(AttributeError, match="no attribute 'segmnt'"):
        diffuseg.segmnt  # noqa: B018


def test_no_module_hides_a_public_function():
    rooms = {room_of(path) for path in MODULES}
    assert not rooms & set(diffuseg.__all__)
