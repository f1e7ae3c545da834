"""A griffe extension: the docstrings' section "Example:" is the one griffe calls "Examples:".

Without it the lines after `>>>` would be rendered as prose.
"""

import re

import griffe


class Examples(griffe.Extension):
    """Rename the section in every docstring read."""

    def on_object(self, *, obj: griffe.Object, **kwargs: object) -> None:
        if obj.docstring is not None:
            renamed = re.sub(r"^( *)Example:$", r"\1Examples:", obj.docstring.value, flags=re.M)
            obj.docstring.value = renamed
