"""iSeg's settings by task and data set, as its code has them, and the heads it was tuned to."""

from collections.abc import Mapping
from typing import Literal, get_args

from diffuseg.methods.dialects import Dialect, DialectName, Task, Wording, dialect_template

Profile = Literal[
    "pseudo-mask-voc",
    "pseudo-mask-coco",
    "open-vocabulary-voc",
    "open-vocabulary-context",
    "open-vocabulary-coco",
]

ISEG_PRESETS: Mapping[Profile, Mapping[str, object]] = {
    "pseudo-mask-voc": {"ent": 0.015, "iterations": 10, "background": "square", "heads": "voc"},
    "pseudo-mask-coco": {"ent": 0.1, "iterations": 10, "background": "threshold", "heads": "all"},
    "open-vocabulary-voc": {"ent": 0.015, "iterations": 8, "background": "square", "heads": "voc"},
    "open-vocabulary-context": {
        "ent": 0.002,
        "iterations": 5,
        "background": "square",
        "heads": "all",
    },
    "open-vocabulary-coco": {
        "ent": 0.2,
        "iterations": 10,
        "background": "threshold",
        "heads": "all",
    },
}
"""What differs; where the paper names one number for all (lambda 0.01, N 10), this is the code."""

VOC_HEADS: Mapping[int, tuple[int, ...]] = {
    2: (5, 6, 8, 13, 21, 22, 25, 27, 28),
    4: (
        *(0, 1, 2, 3, 6, 8, 12, 13, 14, 16, 17, 19, 20, 22, 24, 27, 28, 30, 32, 33, 34, 41, 43),
        *(44, 46, 47, 51, 52, 58, 59, 60, 76, 77, 78, 81, 83, 87, 88, 93, 94, 96),
    ),
}
"""Heads used on VOC, by level; counted over the level's layers in forward order.

For Stable Diffusion 2.1-base only. They were tuned, how is not published.
"""

VOC_HEAD_COUNTS: Mapping[int, int] = {2: 30, 4: 100}
"""Heads those layers have in all."""


def profile_texts(
    profile: Profile, wording: Wording = "reference", *, legacy: bool = False
) -> tuple[str, Dialect]:
    """Return the prompt of a profile and how it names classes.

    Example:
        >>> template, dialect = profile_texts("open-vocabulary-context")
        >>> template, dialect.name
        ('a photograph of {} and other object and background', 'context')
    """
    task, name = _parts(profile)
    return dialect_template(name, task, wording), Dialect(name=name, legacy=legacy)


def _parts(profile: Profile) -> tuple[Task, DialectName]:
    return next(
        (task, name)
        for task in get_args(Task)
        for name in get_args(DialectName)
        if f"{task}-{name}" == profile
    )
