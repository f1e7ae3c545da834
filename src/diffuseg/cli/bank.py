"""Commands on banks, the folders of prototypes that OVDiff compares pictures with."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from diffuseg.cli.options import (
    BatchOption,
    DeviceOption,
    JsonOption,
    ModelOption,
    OfflineOption,
    QuietOption,
    SetOption,
    VerboseOption,
    given,
)
from diffuseg.cli.terminal import (
    FAILED,
    print_json,
    print_table,
    progress_bar,
    show_logs,
    stderr,
    stdout,
)
from diffuseg.errors import InputError

if TYPE_CHECKING:
    from diffuseg.ovdiff import Bank
    from diffuseg.ovdiff.stock import Stocked

app = typer.Typer(help="Build, extend and look at OVDiff's banks of classes.", no_args_is_help=True)

BankArgument = Annotated[Path, typer.Argument(metavar="BANK", help="Folder of the bank.")]
NamesArgument = Annotated[list[str] | None, typer.Argument(metavar="[CLASS]…", help="Else all.")]
NewClassesOption = Annotated[
    str, typer.Option("--classes", "-c", help='What to draw: "car, tree, sofa|couch".')
]
PicturesOption = Annotated[
    bool, typer.Option("--pictures/--no-pictures", help="Keep what was drawn, to be looked at.")
]
EmptyOption = Annotated[
    str | None,
    typer.Option("--on-empty", help="Of classes in none of their pictures: error or skip."),
]
FixOption = Annotated[
    bool | None,
    typer.Option("--fix-names/--as-written", help="Draw tvmonitor as monitor, and the like."),
]


@app.command()
def build(
    bank: BankArgument,
    classes: NewClassesOption,
    model: ModelOption = None,
    settings: SetOption = None,
    stored: Annotated[
        str | None, typer.Option("--dtype", help="float32, or float16 for half the size.")
    ] = None,
    pictures: PicturesOption = True,
    on_empty: EmptyOption = None,
    fix_names: FixOption = None,
    batch_size: BatchOption = None,
    device: DeviceOption = None,
    offline: OfflineOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Draw pictures of classes and keep what is learned from them; go on where it was stopped."""
    show_logs(quiet=quiet, verbose=verbose)
    from diffuseg.methods import parse_settings, with_settings
    from diffuseg.ovdiff import OVDiff, build_bank

    chosen = with_settings(OVDiff(), parse_settings(settings or []))
    _check_choice("--on-empty", on_empty, ("error", "skip"))
    _check_choice("--dtype", stored, ("float32", "float16"))
    options = given(
        stored=stored, on_empty=on_empty, fix_names=fix_names, batch_size=batch_size,
        device=device, offline=offline,
    )  # fmt: skip
    before = _names(bank)
    with progress_bar("drawing", quiet=quiet) as advance:
        built = build_bank(
            classes, bank, model, chosen, keep_pictures=pictures, progress=advance, **options
        )
    new = [name for name in built.names if name not in before]
    if as_json:
        print_json({"bank": str(bank), "added": new, "classes": list(built.names)})
    elif not quiet:
        stdout().print(f"{len(built.names)} classes in {bank}, {len(new)} new", markup=False)


@app.command()
def add(
    bank: BankArgument,
    classes: NewClassesOption,
    model: ModelOption = None,
    pictures: PicturesOption = True,
    on_empty: EmptyOption = None,
    fix_names: FixOption = None,
    batch_size: BatchOption = None,
    device: DeviceOption = None,
    offline: OfflineOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Add classes to a bank, with the model and settings it was built with."""
    from diffuseg.ovdiff import Bank

    Bank.open(bank)
    build(
        bank, classes, model=model, pictures=pictures, on_empty=on_empty, fix_names=fix_names,
        batch_size=batch_size, device=device, offline=offline, as_json=as_json, quiet=quiet,
        verbose=verbose,
    )  # fmt: skip


@app.command("list")
def list_(bank: BankArgument, as_json: JsonOption = False, verbose: VerboseOption = False) -> None:
    """Name the classes of a bank, and what it was built with."""
    show_logs(quiet=False, verbose=verbose)
    from diffuseg.ovdiff import Bank

    held = Bank.open(bank)
    rows = held.stock()
    if as_json:
        print_json({**_about(held), "classes": [one.name for one in rows]})
        return
    size = sum(one.bytes for one in rows)
    stdout().print(
        f"{len(rows)} classes, {_bytes(size)}; model {held.model}, {held.stored}, "
        f"recipe {held.recipe.digest[:12]}",
        style="dim",
        markup=False,
    )
    for one in rows:
        stdout().print(" | ".join(one.words), markup=False)


@app.command()
def remove(
    bank: BankArgument,
    classes: Annotated[list[str], typer.Argument(metavar="CLASS…")],
    quiet: QuietOption = False,
) -> None:
    """Delete classes from a bank."""
    from diffuseg.ovdiff import Bank

    held = Bank.open(bank)
    for name in classes:
        held.remove(name)
    if not quiet:
        stdout().print(f"{len(held.names)} classes in {bank}", markup=False)


@app.command()
def inspect(
    bank: BankArgument,
    classes: NamesArgument = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="A PNG: pictures with their masks.")
    ] = None,
    pictures: Annotated[int | None, typer.Option(help="Of each class on it.")] = None,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Show what there is of every class: prototypes, pictures, whether it is stuff, damage."""
    show_logs(quiet=False, verbose=verbose)
    from diffuseg.ovdiff import Bank

    held = Bank.open(bank)
    chosen = [held.look(name) for name in classes] if classes else held.stock()
    damaged = held.damaged()
    if classes:
        damaged = {one.name: damaged[one.name] for one in chosen if one.name in damaged}
    if as_json:
        rows = [_described(one) for one in chosen]
        print_json({**_about(held), "classes": rows, "damaged": damaged})
    else:
        head = ("class", "is", "features", "width", "positive", "negative", "pictures", "size")
        print_table(head, [row for one in chosen for row in _rows(one)])
        stdout().print("positive and negative: of the class, pictures, parts", style="dim")
    for name, fault in damaged.items():
        stderr().print(f"{name}: {fault}", style="bold red", markup=False)
    if output is not None:
        from diffuseg.files import atomic_path
        from diffuseg.ovdiff.pictures import contact_sheet

        names = [one.name for one in chosen if one.name not in damaged]
        sheet = contact_sheet(held, names, **given(pictures=pictures))
        with atomic_path(output) as temporary:
            sheet.save(temporary)
        if not as_json:
            stdout().print(str(output), markup=False)
    if damaged:
        raise typer.Exit(FAILED)


@app.command()
def explain(
    bank: BankArgument,
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="A picture.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="A PNG: the sheet.")] = Path(
        "explanation.png"
    ),
    classes: Annotated[
        str | None, typer.Option("--classes", "-c", help="What to look for. Else all of the bank.")
    ] = None,
    model: ModelOption = None,
    settings: SetOption = None,
    regions: Annotated[int | None, typer.Option(help="How many regions.")] = None,
    each: Annotated[int | None, typer.Option(help="Prototypes of each region.")] = None,
    device: DeviceOption = None,
    offline: OfflineOption = None,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Segment a picture and draw what decided each region: parts of which drawn pictures."""
    show_logs(quiet=False, verbose=verbose)
    from diffuseg.api import find_model
    from diffuseg.methods import parse_settings, with_settings
    from diffuseg.ovdiff import Bank, OVDiff, open_segmenter
    from diffuseg.ovdiff import explain as run

    held = Bank.open(bank)
    chosen = with_settings(OVDiff(), parse_settings(settings or []))
    loaded = find_model(model or held.model or None, device=device, offline=offline)
    segmenter = open_segmenter(held, loaded, chosen, classes)
    found = run(image, None, segmenter, **given(regions=regions, reasons_each=each))
    found.save(output)
    if as_json:
        print_json({"sheet": str(output), "regions": found.table()})
        return
    head = ("region", "share", "decided by", "of its votes", "pictures")
    rows = [
        (
            row.name,
            f"{100 * row.share:.1f} %",
            str(row),
            f"{100 * row.vote:.0f} %",
            ", ".join(map(str, row.pictures)),
        )
        for row in found.rows
    ]
    print_table(head, rows)
    stdout().print(str(output), markup=False)


def _names(bank: Path) -> tuple[str, ...]:
    from diffuseg.ovdiff import Bank

    return Bank.open(bank).names if (bank / "manifest.json").exists() else ()


def _about(bank: "Bank") -> dict[str, object]:
    return {
        "bank": str(bank.path),
        "model": bank.model,
        "dtype": bank.stored,
        "digest": bank.recipe.digest,
        "recipe": bank.recipe.values,
        "settings": bank.settings,
    }


def _described(one: "Stocked") -> dict[str, object]:
    return {
        "name": one.name,
        "words": list(one.words),
        "prompt": one.prompt,
        "stuff": _is_stuff(one),
        "prototypes": one.counts,
        "pictures": one.pictures,
        "picture_hw": list(one.size),
        "bytes": one.bytes,
    }


def _rows(one: "Stocked") -> list[tuple[str, ...]]:
    """A row an extractor; what is the same in all of them stands in the first."""
    rows: list[tuple[str, ...]] = []
    for number, (name, counts) in enumerate(one.counts.items()):
        signs = (" ".join(map(str, counts[sign].values())) for sign in ("positive", "negative"))
        first = number == 0
        size = f" of {one.size[0]}x{one.size[1]}" if one.pictures else ""
        rows.append(
            (
                " | ".join(one.words) if first else "",
                ("stuff" if _is_stuff(one) else "thing") if first else "",
                name,
                str(counts["width"]),
                *signs,
                f"{one.pictures or 'none'}{size}" if first else "",
                _bytes(one.bytes) if first else "",
            )
        )
    return rows


def _is_stuff(one: "Stocked") -> bool:
    from diffuseg.ovdiff import is_stuff
    from diffuseg.prompts import ClassName

    return is_stuff([ClassName(name=one.name, words=tuple(one.words))])[0]


def _bytes(number: int) -> str:
    return f"{number / 1e6:.1f} MB" if number >= 1e5 else f"{number / 1e3:.0f} kB"


def _check_choice(option: str, value: str | None, choices: tuple[str, ...]) -> None:
    if value is not None and value not in choices:
        raise InputError(
            f"{option} must be {' or '.join(choices)}", got=value, remedy=f"use {choices[0]}"
        )
