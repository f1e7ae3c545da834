"""Commands about this machine: its models, its packages."""

from diffuseg.cli.options import (
    JsonOption,
)
from diffuseg.cli.terminal import (
    print_json,
    print_sections,
    print_table,
)


def models(as_json: JsonOption = False) -> None:
    """List the known models and which are on this machine."""
    from diffuseg.backbones import list_models

    rows = list_models()
    if as_json:
        print_json(
            [
                {
                    "name": row.model.name,
                    "about": row.model.about,
                    "here": row.here,
                    "source": row.source,
                    "ids": list(row.model.ids),
                    "licence": row.model.licence,
                    "size": row.model.size,
                    "prediction": row.model.prediction,
                    "gigabytes": list(row.model.gigabytes),
                }
                for row in rows
            ]
        )
        return
    print_table(
        ("name", "here", "pixels", "GB fp32/16", "licence", "about"),
        [
            (
                row.model.name,
                row.here,
                str(row.model.size),
                "-" if not row.model.ids else "{:.1f}/{:.1f}".format(*row.model.gigabytes),
                row.model.licence,
                row.model.about,
            )
            for row in rows
        ],
    )


def doctor(as_json: JsonOption = False) -> None:
    """Print versions, devices, extras and models, for a bug report."""
    from diffuseg.doctor import examine

    found = examine()
    if as_json:
        print_json(found)
    else:
        print_sections(found)
