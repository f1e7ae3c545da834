"""Scores of labels through time: mean IoU of a set of videos, and how steady they are (mVC).

Frames come one at a time: memory does not grow with the length of a video.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Integer, UInt8

from diffuseg.errors import InputError
from diffuseg.eval.metrics import ConfusionMatrix

Pair = tuple[Integer[np.ndarray, "_ _"], Integer[np.ndarray, "_ _"]]
"""Truth and prediction of a frame."""

LENGTHS = (8, 16)
"""Frames of the windows of mVC8 and mVC16."""

_LONGEST = 255


class Consistency:
    """Where the truth stands still for some frames: does the prediction stand still too (VC)?

    VC of a window of n frames is the share of pixels with a constant prediction among those with a
    constant truth; the prediction need not be right. A video of T frames has T - n windows, the
    first n frames the first of them: the very last one is left out, as in the published script.

    One pass: for every pixel the number of frames is kept for which it has not changed.

    Args:
        lengths: The n, each 2 to 255.

    Raises:
        InputError: A length is out of range.

    Example:
        >>> still, moving = np.zeros((1, 2), dtype=int), np.array([[0, 1]])
        >>> one = Consistency((2,))
        >>> for frame in (still, moving, moving, moving):
        ...     one.add(still, frame)
        >>> one.windows()[2].tolist()
        [0.5, 1.0]
    """

    def __init__(self, lengths: Sequence[int] = LENGTHS) -> None:
        if not lengths or not all(2 <= n <= _LONGEST for n in lengths):
            raise InputError(
                f"windows have 2 to {_LONGEST} frames", got=lengths, remedy="use (8, 16)"
            )
        self.lengths = tuple(lengths)
        self.n_frames = 0
        self._last: Pair | None = None
        self._runs: tuple[UInt8[np.ndarray, "h w"], UInt8[np.ndarray, "h w"]] | None = None
        self._values: dict[int, list[float]] = {n: [] for n in self.lengths}

    def add(
        self, truth: Integer[np.ndarray, "h w"], prediction: Integer[np.ndarray, "a b"]
    ) -> None:
        """Add the next frame.

        Raises:
            InputError: The sizes differ, from each other or from those of the frame before.
        """
        if truth.shape != prediction.shape or (
            self._last is not None and truth.shape != self._last[0].shape
        ):
            before = "" if self._last is None else f", before {self._last[0].shape}"
            raise InputError(
                "truth and prediction of all frames must have one size",
                got=f"{truth.shape} and {prediction.shape}{before}",
                remedy="resize the prediction to the truth",
            )
        if self._last is None or self._runs is None:
            self._runs = np.zeros(truth.shape, np.uint8), np.zeros(truth.shape, np.uint8)
        else:
            still = truth == self._last[0]
            _count(self._runs[0], still)
            _count(self._runs[1], still & (prediction == self._last[1]))
        # Copies: callers may fill one array again and again.
        self._last = truth.copy(), prediction.copy()
        self.n_frames += 1
        for n in self.lengths:
            if self.n_frames >= n:
                true = np.count_nonzero(self._runs[0] >= n - 1)
                both = np.count_nonzero(self._runs[1] >= n - 1)
                self._values[n].append(both / true if true else float("nan"))

    def windows(self) -> dict[int, Float[np.ndarray, " windows"]]:
        """Return VC of the windows of each length so far; NaN where the truth moved everywhere."""
        return {n: np.array(values[:-1]) for n, values in self._values.items()}


class VideoMetrics:
    """Mean IoU and mVC over a set of videos.

    mVC of a length is the mean over all windows of all videos together.

    Args:
        n_classes: Number of classes.
        ignore: Label of pixels whose class is not scored. They count for mVC.
        undecided: Label by which a prediction says "none of the classes".
        lengths: Frames of the windows.
        short: "each" leaves a video out of the mVC of windows it has no more frames than;
            "longest" leaves videos without more frames than the longest windows out of everything,
            mean IoU too, as the published script that computes all of them does.

    Raises:
        InputError: A setting is out of range.

    Example:
        >>> metrics = VideoMetrics(2, lengths=(2,))
        >>> frame = np.array([[0, 1]])
        >>> metrics.update("a", [(frame, frame)] * 3)
        >>> metrics.miou(), metrics.mvc(2), metrics.n_videos
        (1.0, 1.0, 1)
    """

    def __init__(
        self,
        n_classes: int,
        *,
        ignore: int = 255,
        undecided: int | None = None,
        lengths: Sequence[int] = LENGTHS,
        short: Literal["each", "longest"] = "each",
    ) -> None:
        if short not in ("each", "longest"):
            raise InputError('short must be "each" or "longest"', got=short, remedy='use "each"')
        self.lengths = Consistency(lengths).lengths
        self.short: Literal["each", "longest"] = short
        self.matrix = ConfusionMatrix(n_classes, ignore=ignore, undecided=undecided)
        self._windows: dict[str, dict[int, Float[np.ndarray, " windows"]]] = {}
        self._left_out: list[str] = []

    @property
    def n_videos(self) -> int:
        """Number of videos scored."""
        return len(self._windows)

    @property
    def left_out(self) -> tuple[str, ...]:
        """Videos that were too short to be scored at all."""
        return tuple(self._left_out)

    def update(self, name: str, pairs: Iterable[Pair]) -> None:
        """Score a video.

        Args:
            name: Of the video; each is scored once.
            pairs: Truth and prediction of every frame, in order.

        Raises:
            InputError: The video was scored before, a size changes, or a label is no class.
        """
        if name in self._windows or name in self._left_out:
            raise InputError("a video is scored once", got=name, remedy="give it another name")
        held = self.matrix
        part = ConfusionMatrix(held.n_classes, ignore=held.ignore, undecided=held.undecided)
        steady = Consistency(self.lengths)
        for truth, prediction in pairs:
            part.update(truth, prediction)
            steady.add(truth, prediction)
        if self.short == "longest" and steady.n_frames <= max(self.lengths):
            self._left_out.append(name)
            return
        self.matrix = held + part
        self._windows[name] = steady.windows()

    def __add__(self, other: "VideoMetrics") -> "VideoMetrics":
        """Return the scores of both sets of videos.

        Raises:
            InputError: The two do not count the same way, or share a video.
        """
        mine, theirs = ((one.lengths, one.short) for one in (self, other))
        twice = sorted(self._windows.keys() & other._windows.keys())
        if mine != theirs or twice:
            raise InputError(
                "scores can be added when windows and rules are the same and videos are not",
                got=f"{mine} and {theirs}, in both {twice}",
                remedy="score both parts with the same settings",
            )
        matrix = self.matrix + other.matrix
        total = VideoMetrics(
            matrix.n_classes,
            ignore=matrix.ignore,
            undecided=matrix.undecided,
            lengths=self.lengths,
            short=self.short,
        )
        total.matrix = matrix
        total._windows = self._windows | other._windows
        total._left_out = self._left_out + other._left_out
        return total

    def miou(self, average: str = "gt_present") -> float:
        """Mean IoU over all frames of all videos; see `ConfusionMatrix.miou`."""
        return self.matrix.miou(average)

    def mvc(self, length: int) -> float:
        """Mean VC over the windows of a length; NaN when there are none.

        Raises:
            InputError: Windows of this length were not counted.
        """
        if length not in self.lengths:
            raise InputError(
                f"windows of {', '.join(map(str, self.lengths))} frames were counted",
                got=length,
                remedy="pass lengths=",
            )
        values = np.concatenate([one[length] for one in self._windows.values()] or [np.array([])])
        known = values[~np.isnan(values)]
        return float(known.mean()) if known.size else float("nan")

    def windows(self, name: str, length: int) -> Float[np.ndarray, " windows"]:
        """VC of every window of a video, in order."""
        return self._windows[name][length]

    def summary(self) -> dict[str, Any]:
        """Return the scores as plain values."""
        return {
            "videos": self.n_videos,
            "frames": self.matrix.n_images,
            "left_out": list(self._left_out),
            "miou": self.miou(),
            "accuracy": self.matrix.accuracy(),
            "fwiou": self.matrix.fwiou(),
            **{f"mvc{n}": self.mvc(n) for n in self.lengths},
        }


def plain_consistency(
    truth: Integer[np.ndarray, "f h w"], prediction: Integer[np.ndarray, "f h w"], n: int
) -> Float[np.ndarray, " windows"]:
    """Return VC of every window, each looked at from its beginning: the definition, spelled out.

    Example:
        >>> plain_consistency(np.zeros((3, 1, 1), int), np.zeros((3, 1, 1), int), 2).tolist()
        [1.0]
    """
    values: list[float] = []
    for start in range(len(truth) - n):
        still = np.ones(truth.shape[1:], dtype=bool)
        steady = np.ones(truth.shape[1:], dtype=bool)
        for frame in range(start + 1, start + n):
            still &= truth[start] == truth[frame]
            steady &= prediction[start] == prediction[frame]
        true = np.count_nonzero(still)
        values.append(np.count_nonzero(still & steady) / true if true else float("nan"))
    return np.array(values)


def _count(runs: UInt8[np.ndarray, "h w"], still: Bool[np.ndarray, "h w"]) -> None:
    # One more where nothing changed, 0 elsewhere; the top does not overflow.
    np.minimum(runs, np.uint8(_LONGEST - 1), out=runs)
    runs += np.uint8(1)
    # 255 or 0: bytes by bytes, without conversion, is what makes this fast.
    runs &= np.negative(still.view(np.uint8))
