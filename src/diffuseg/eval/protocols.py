"""What a method was told of the truth, in words: every report names it, comparisons look at it."""

from collections.abc import Mapping
from typing import Any

_MATCHED = (
    "segments have no names: in each image the truth matches them to classes one to one so that "
    "most pixels agree (per-image Hungarian, as DiffSeg and iSeg are published)"
)
PROTOCOLS: dict[tuple[bool, str], str] = {
    (True, "classes"): "the classes present in each image are given; the method chooses among them",
    (True, "vocabulary"): (
        "the names of all classes are given; a filter keeps those it finds in the image, and the "
        "method chooses among them"
    ),
    (True, "nothing"): "nothing is given; a segment counts if it has the name of its class",
    (False, "nothing"): _MATCHED,
    (False, "count"): f"the number of classes of each image is given; {_MATCHED}",
    (False, "mean_count"): f"the average number of classes is given; {_MATCHED}",
}
"""In words, by whether segments have names and what is given."""

VIDEO_PROTOCOLS: Mapping[str, str] = {
    "anchor": "the truth of one frame is given; that frame is scored too, but not for J and F",
    "classes": "the names of the classes the anchor's frame shows are given, no mask",
}
"""The same of videos."""

ORACLES: Mapping[str, str] = {
    "image-labels": "the classes present in each image are given (image-level labels)",
    "class-count": "the number of classes is given",
    "image-hungarian": "the truth of each image decides which segment is which class (per-image "
    "Hungarian)",
    "first-frame": "the truth of one frame of each video is given",
    "first-frame-labels": "the classes one frame of each video shows are given",
    "best-scale": "of several scales the truth says which is best, for the split (ODS) and in each "
    "image (OIS)",
    "tuned-on-split": "settings, such as a background threshold, were chosen on the split that is "
    "scored",
}
"""What a method may know of the truth it is scored on, by the name reports and papers' rows use."""

EVAL_SPLIT = "eval split (oracle)"
"""What a report says a threshold was chosen on, if that is the split that is scored."""

_FLAGS: Mapping[str, str] = {
    "uses_gt_image_labels": "image-labels",
    "uses_gt_class_count": "class-count",
    "uses_gt_assignment": "image-hungarian",
    "uses_gt_first_frame": "first-frame",
    "uses_gt_scale": "best-scale",
}


def find_oracles(report: Mapping[str, Any]) -> tuple[str, ...]:
    """Return which of `ORACLES` a report's figures rest on, by its other fields.

    Args:
        report: As its JSON has it, of any version.

    Example:
        >>> find_oracles({"uses_gt_assignment": True, "chosen_on": "test", "split": "test"})
        ('image-hungarian', 'tuned-on-split')
        >>> find_oracles({"protocol": VIDEO_PROTOCOLS["anchor"]})
        ('first-frame',)
    """
    found = {name for flag, name in _FLAGS.items() if report.get(flag)}
    if report.get("protocol") == VIDEO_PROTOCOLS["anchor"]:
        found.add("first-frame")
    if report.get("protocol") == VIDEO_PROTOCOLS["classes"]:
        found.add("first-frame-labels")
    chosen = report.get("chosen_on")
    if (chosen and chosen == report.get("split")) or _threshold(report) == EVAL_SPLIT:
        found.add("tuned-on-split")
    return tuple(name for name in ORACLES if name in found)


def find_given(report: Mapping[str, Any]) -> str:
    """Return what a method was told, in one word; "" if a report does not say.

    Example:
        >>> find_given({"protocol": PROTOCOLS[True, "vocabulary"]})
        'vocabulary'
    """
    if report.get("given"):
        return str(report["given"])
    text = report.get("protocol")
    known = {words: told for (_, told), words in PROTOCOLS.items()}
    known |= {words: told for told, words in VIDEO_PROTOCOLS.items()}
    return known.get(str(text), "")


def chosen_words(chosen_on: str | None, split: str) -> str:
    """Return in words what settings were chosen on.

    Example:
        >>> chosen_words("val", "val"), chosen_words("val", "test"), chosen_words(None, "test")
        ('eval split (oracle)', 'the split val', 'given beforehand')
    """
    if chosen_on is None:
        return "given beforehand"
    return EVAL_SPLIT if chosen_on == split else f"the split {chosen_on}"


def oracle_line(oracles: tuple[str, ...] | list[str]) -> str:
    """Return in a sentence what of the truth a method knew.

    Example:
        >>> oracle_line(("class-count",))
        'Oracle: `class-count`, the number of classes is given.'
    """
    if not oracles:
        return "Oracle: none; nothing of the truth scored was known."
    return "Oracle: " + "; ".join(f"`{one}`, {ORACLES[one]}" for one in oracles) + "."


def _threshold(report: Mapping[str, Any]) -> object:
    held = report.get("threshold")
    return held.get("chosen_on") if isinstance(held, Mapping) else None
