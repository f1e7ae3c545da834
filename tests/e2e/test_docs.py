"""The documentation, run: every Python block, every `diffuseg` command, every example.

What is done with a fenced block of README.md or docs/**/*.md:

* `python` blocks of a page run in order, in one namespace and one empty folder a page.
* `bash` blocks run in the same folder, line by line, through the command line's own `main`; a line
  that is not a `diffuseg` command needs a mark.
* Anything else (`text`, `make`, …) is not run.

Marks stand in an HTML comment on the line above a block:

* `<!-- no-run: REASON -->` the block is not run; a Python block must still compile.
* `<!-- output -->` the `text` block is, to the letter, what the block before it printed.
* `<!-- exit: N -->` the last command of the `bash` block ends with this exit code.
"""

import contextlib
import importlib.util
import io
import json
import logging
import re
import shlex
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from types import ModuleType

import pytest

import diffuseg
from diffuseg.backbones.catalog import KNOWN
from diffuseg.backbones.weights import embedded_folder
from diffuseg.eval.runner import identify
from diffuseg.methods import METHODS, OVDiff, SegDiffusion, find_method

REPOSITORY = Path(__file__).resolve().parents[2]
DOCS = REPOSITORY / "docs"
PAGES = [REPOSITORY / "README.md", *sorted(DOCS.rglob("*.md"))]
EXAMPLES = sorted((REPOSITORY / "examples").glob("*.py"))
RUN = ("python", "bash")
MARKS = ("no-run", "output", "exit")
_FENCE = re.compile(r"^(?P<indent> *)```(?P<language>[\w-]*)\s*$")
_MARK = re.compile(r"^ *<!-- (?P<name>[a-z-]+)(: (?P<value>.*\S))? -->$")

needs_mini = pytest.mark.skipif(
    not embedded_folder("mini").is_dir(), reason="the embedded model is not trained yet"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """One fenced block: its language, text, place and mark."""

    page: Path
    line: int
    language: str
    text: str
    mark: str = ""
    value: str = ""

    @property
    def place(self) -> str:
        return f"{name_of(self.page)}:{self.line}"


def name_of(path: Path) -> str:
    return path.relative_to(REPOSITORY).as_posix()


def read_blocks(page: Path, text: str | None = None) -> list[Block]:
    """Every fenced block of a page, in order."""
    lines = (page.read_text(encoding="utf-8") if text is None else text).splitlines()
    blocks: list[Block] = []
    start: int | None = None
    for number, line in enumerate(lines):
        fence = _FENCE.match(line)
        if fence is None:
            continue
        if start is None:
            start = number
            continue
        opened = _FENCE.match(lines[start])
        assert opened is not None
        indent = len(opened["indent"])
        mark = _MARK.match(lines[start - 1]) if start else None
        known = mark is not None and mark["name"] in MARKS
        blocks.append(
            Block(
                page=page,
                line=start + 1,
                language=opened["language"],
                text="".join(f"{one[indent:]}\n" for one in lines[start + 1 : number]),
                mark=mark["name"] if mark is not None and known else "",
                value=(mark["value"] or "") if mark is not None and known else "",
            )
        )
        start = None
    assert start is None, f"{name_of(page)}:{start} is never closed"
    return blocks


BLOCKS = {page: read_blocks(page) for page in PAGES}
EVERY = [block for blocks in BLOCKS.values() for block in blocks]


# ---- how pages are written


def test_every_unrun_block_gives_its_reason():
    empty = [block.place for block in EVERY if block.mark == "no-run" and len(block.value) < 10]
    assert not empty, f"<!-- no-run: REASON --> without a reason: {empty}"


def test_marks_stand_where_they_mean_something():
    for block in EVERY:
        where = f"{block.place}: {block.mark}"
        if block.mark == "no-run":
            assert block.language in RUN, f"{where} on a block that is never run"
        if block.mark == "output":
            before = [one for one in BLOCKS[block.page] if one.line < block.line]
            assert block.language == "text", where
            assert before, f"{where} of nothing"
            assert before[-1].language in RUN, f"{where} of a block that does not run"
            assert before[-1].mark != "no-run", f"{where} of a block that does not run"
        if block.mark == "exit":
            assert block.language == "bash", where
            assert block.value.isdigit(), where


def test_every_block_says_what_it_is():
    assert not [block.place for block in EVERY if not block.language]


@pytest.mark.parametrize(
    "block", [b for b in EVERY if b.language == "python"], ids=lambda b: b.place
)
def test_python_block_compiles(block: Block):
    compile(block.text, block.place, "exec")


def test_bash_blocks_are_commands_of_ours_or_marked():
    others = [
        f"{block.place}: {command}"
        for block in EVERY
        if block.language == "bash" and block.mark != "no-run"
        for command in commands_of(block)
        if command[0] != "diffuseg"
    ]
    assert not others, "commands that are not run must be marked <!-- no-run: REASON -->"


def test_a_mark_is_read_from_the_line_above():
    text = "<!-- no-run: takes a day -->\n```python\na = 1\n```\n\n```text\nb\n```\n"
    first, second = read_blocks(DOCS / "x.md", text)
    assert (first.mark, first.value, first.text, first.line) == (
        "no-run",
        "takes a day",
        "a = 1\n",
        2,
    )
    assert (second.mark, second.language) == ("", "text")


# ---- what pages say


def commands_of(block: Block) -> list[list[str]]:
    lines = block.text.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def run_python(block: Block, namespace: dict[str, object]) -> str:
    # Line numbers of a traceback are those of the page.
    code = compile("\n" * block.line + block.text, block.place, "exec")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(code, namespace)
    return printed.getvalue()


def run_command(words: list[str], monkeypatch: pytest.MonkeyPatch) -> tuple[int, str, str]:
    """Run the command line in this process; returns exit code, output and errors."""
    from diffuseg.cli import main

    out, err = io.StringIO(), io.StringIO()
    monkeypatch.setattr(sys, "argv", words)
    code = 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as stop:
            code = int(stop.code or 0)
    return code, out.getvalue(), err.getvalue()


def run_bash(block: Block, monkeypatch: pytest.MonkeyPatch) -> str:
    commands = commands_of(block)
    wanted = [0] * len(commands)
    wanted[-1] = int(block.value) if block.mark == "exit" else 0
    shown = ""
    for words, code in zip(commands, wanted, strict=True):
        got, out, err = run_command(words, monkeypatch)
        assert got == code, f"{block.place}: {shlex.join(words)} ended with {got}:\n{out}{err}"
        shown += out + (err if code else "")
    return shown


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working folder, and everything a page may switch put back behind it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("NO_COLOR", "1")
    logger = logging.getLogger("diffuseg")
    held = logger.handlers, logger.level, logger.propagate
    yield tmp_path
    logger.handlers, logger.level, logger.propagate = held


@needs_mini
@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_page_runs(page: Path, folder: Path, monkeypatch: pytest.MonkeyPatch):
    namespace: dict[str, object] = {"__name__": "__page__"}
    printed = ""
    for block in BLOCKS[page]:
        if block.mark == "output":
            assert printed == block.text, f"{block.place} is not what the block before it printed"
        elif block.language in RUN and block.mark != "no-run":
            is_python = block.language == "python"
            printed = run_python(block, namespace) if is_python else run_bash(block, monkeypatch)


@needs_mini
@pytest.mark.parametrize("example", EXAMPLES, ids=name_of)
def test_example_runs(example: Path, folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "argv", [example.name])
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        code = compile(example.read_text(encoding="utf-8"), str(example), "exec")
        exec(code, {"__name__": "__main__", "__file__": str(example)})
    assert printed.getvalue()


# ---- what pages repeat


def load_numbers() -> ModuleType:
    spec = importlib.util.spec_from_file_location("numbers_", REPOSITORY / "scripts" / "docs.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


CARD = REPOSITORY / "src" / "diffuseg" / "world" / "mini" / "README.md"


@pytest.mark.parametrize("page", [*PAGES, CARD], ids=name_of)
def test_generated_parts_are_up_to_date(page: Path):
    text = page.read_text(encoding="utf-8")
    assert load_numbers().filled(text) == text, "run: python scripts/docs.py"


def test_a_number_follows_its_report(tmp_path: Path):
    script = load_numbers()
    report = {"miou": 0.5, "acc": 0.75, "n_images": 3, "metrics": {"miou_things": 0.25}}
    (tmp_path / "some.json").write_text(json.dumps(report))
    text = "<!-- number: some.json metrics.miou_things -->?<!-- /number --> on "
    text += "<!-- number: some.json n_images -->?<!-- /number -->"
    assert script.filled(text, assets=tmp_path) == text.replace("?", "25.0", 1).replace("?", "3", 1)
    assert script.PENDING in script.filled(text.replace("some.json", "none.json"), assets=tmp_path)


@needs_mini
@pytest.mark.parametrize("report", sorted((DOCS / "assets").glob("*.json")), ids=lambda p: p.stem)
def test_numbers_are_of_the_model_in_the_package(report: Path):
    told = json.loads(report.read_text(encoding="utf-8"))
    model = diffuseg.load(told["model"]["name"], device="cpu")
    method = find_method(told["method"])
    if report.stem.endswith("-plain"):
        # As in the papers, whatever the preset says.
        alone = {"attention": 0.0, "attention_new": 0.0}
        method = replace(method, **(alone if isinstance(method, SegDiffusion) else {"edges": 0}))
    again = "the model or its preset has changed: evaluate again, then python scripts/docs.py"
    if isinstance(method, OVDiff):
        # One image would take a bank of all classes, and minutes of drawing.
        assert identify(model)["unet_sha256"] == told["model"]["unet_sha256"], again
        ready = json.loads(json.dumps(asdict(method.ready(model.preset["ovdiff"]))))
        assert ready | {"bank": told["parameters"]["bank"]} == told["parameters"], again
        return
    found = diffuseg.evaluate(told["dataset"], method=method, model=model, limit=1)
    assert found.model["unet_sha256"] == told["model"]["unet_sha256"], again
    assert found.to_dict()["parameters"] == told["parameters"], again


@needs_mini
def test_ablations_are_of_the_model_in_the_package():
    folder = DOCS / "assets" / "ablations"
    if not (folder / "rows.json").is_file():
        pytest.skip("the ablations are not measured yet")
    rows = json.loads((folder / "rows.json").read_text(encoding="utf-8")).values()
    curves = json.loads((folder / "curves.json").read_text(encoding="utf-8"))
    models = [one["model"] for one in [*rows, curves] if "model" in one]
    told = {one["unet_sha256"] for one in models if "unet_sha256" in one}
    again = (
        "the model has changed: python scripts/ablations.py --report DIR; python scripts/docs.py"
    )
    assert told == {identify(diffuseg.load("mini", device="cpu"))["unet_sha256"]}, again


@needs_mini
def test_the_card_is_of_the_model_in_the_package():
    quality = CARD.with_name("quality.json")
    if not quality.is_file():
        pytest.skip("the quality of the embedded model is not measured yet")
    told = json.loads(quality.read_text(encoding="utf-8"))["model"]
    again = (
        "the model has changed: diffuseg quality --report DIR, python scripts/docs.py --quality DIR"
    )
    assert identify(diffuseg.load("mini", device="cpu")) == told, again


def test_catalog_is_told_in_full():
    page = (DOCS / "guides" / "weights.md").read_text(encoding="utf-8")
    for row in KNOWN.values():
        assert f"| `{row.name}` |" in page
        assert not [one for one in row.ids if f"`{one}`" not in page]


@pytest.mark.parametrize("name", METHODS)
def test_every_setting_of_a_method_is_explained(name: str):
    page = (DOCS / "methods" / f"{name}.md").read_text(encoding="utf-8")
    missing = [one.name for one in fields(METHODS[name]) if f"| `{one.name}` |" not in page]
    assert not missing
    assert f"`{name}`" in PAGES[0].read_text(encoding="utf-8")


def test_reference_has_every_public_name():
    page = (DOCS / "reference.md").read_text(encoding="utf-8")
    told = {line.split(".")[-1] for line in page.splitlines() if line.startswith("::: diffuseg.")}
    told |= set(re.findall(r"`(\w+)`", page))
    assert not set(diffuseg.__all__) - told


def test_readme_is_short():
    assert len(PAGES[0].read_text(encoding="utf-8").splitlines()) <= 150


def test_readme_links_lead_somewhere():
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", PAGES[0].read_text(encoding="utf-8"))
    missing = [link for link in links if not (REPOSITORY / link).exists()]
    if not embedded_folder("mini").is_dir():
        missing = [link for link in missing if not link.endswith("demo.png")]
    assert links
    assert not missing
