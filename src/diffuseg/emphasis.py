"""Weights written into a prompt: "a photograph of a dog++ (running fast)1.3".

The way of writing is the one prompt weighting is known by (`word++`, `(some words)1.3`); what the
weights do to a token's vector is said where prompts are embedded.
"""

import re

Stress = tuple[int, int, float]
"""Characters `start` to `stop` (excluded) of a text, and how strongly they count."""

PLUS = 1.1
"""What one "+" multiplies by."""

# Not in "C++11" or "a+b", where they are letters of a word.
_PLUSES = re.compile(r"\++(?![\w+])")
_RUN = re.compile(r"\++")
_NUMBER = re.compile(r"(?:\d+(?:\.\d+)?|\.\d+)(?!\w)")


def read_emphasis(prompt: str) -> tuple[str, tuple[Stress, ...]]:
    r"""Take the weights out of a prompt.

    Each "+" right behind a word or behind a group in parentheses multiplies its weight by 1.1; a
    number behind a group is its weight. Weights of nested groups multiply. Parentheses are not part
    of the text, with a weight or without, unless one has no partner or follows a backslash. A
    hyphen is text wherever it stands.

    Returns:
        The text, and the parts of it that are weighted, inner ones first.

    Example:
        >>> read_emphasis("a (red car)1.5 on grass")
        ('a red car on grass', ((2, 9, 1.5),))
        >>> text, [(start, stop, weight)] = read_emphasis("a photograph of traffic light++")
        >>> text[start:stop], round(weight, 4)
        ('light', 1.21)
    """
    pairs = _pairs(prompt)
    written: list[str] = []
    opened: list[int] = [0]  # where in the text the groups that are open began
    stressed: list[Stress] = []

    def weigh(start: int, weight: float) -> None:
        if weight != 1 and start < len(written):
            stressed.append((start, len(written), weight))

    at = 0
    while at < len(prompt):
        letter = prompt[at]
        pluses = _PLUSES.match(prompt, at)
        if letter == "\\" and prompt[at + 1 : at + 2] in ("(", ")", "+", "\\"):
            written.append(prompt[at + 1])
            at += 2
        elif letter == "(" and at in pairs:
            opened.append(len(written))
            at += 1
        elif letter == ")" and at in pairs:
            pluses, number = _PLUSES.match(prompt, at + 1), _NUMBER.match(prompt, at + 1)
            at += 1
            start = opened.pop()
            if pluses:
                weigh(start, PLUS ** len(pluses.group()))
                at = pluses.end()
            elif number:
                weigh(start, float(number.group()))
                at = number.end()
        elif pluses and at and not prompt[at - 1].isspace() and prompt[at - 1] not in "()":
            start = len(written)
            while start > opened[-1] and not written[start - 1].isspace():
                start -= 1
            weigh(start, PLUS ** len(pluses.group()))
            at = pluses.end()
        else:
            run = _RUN.match(prompt, at)
            written += run.group() if run else letter
            at = run.end() if run else at + 1
    return "".join(written), tuple(stressed)


def _pairs(prompt: str) -> set[int]:
    """The places of parentheses that have a partner."""
    pairs: set[int] = set()
    waiting: list[int] = []
    for match in re.finditer(r"\\.|[()]", prompt):
        if match.group() == "(":
            waiting.append(match.start())
        elif match.group() == ")" and waiting:
            pairs |= {waiting.pop(), match.start()}
    return pairs
