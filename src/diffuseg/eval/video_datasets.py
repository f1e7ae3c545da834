"""Videos to score on, read from the folders they are published in, frame by frame.

Nothing is decoded before it is asked for. What a folder lacks is said when it is opened.
"""

import difflib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Generic, Protocol, TypeVar, runtime_checkable

import numpy as np
from jaxtyping import Integer, UInt8

from diffuseg.errors import InputError

VOID = 255

Item = TypeVar("Item", covariant=True)
Labels = Integer[np.ndarray, "h w"]


class Lazy(Generic[Item]):
    """A sequence whose items are made when they are asked for, and not kept.

    Example:
        >>> squares = Lazy(3, lambda i: i * i)
        >>> len(squares), squares[-1], list(squares)
        (3, 4, [0, 1, 4])
    """

    def __init__(self, n: int, make: Callable[[int], Item]) -> None:
        self._n = n
        self._make = make

    def __len__(self) -> int:
        return self._n

    def __getitem__(self, index: int) -> Item:
        if not -self._n <= index < self._n:
            raise IndexError(index)
        return self._make(index % self._n)

    def __iter__(self) -> Iterator[Item]:
        return (self._make(i) for i in range(self._n))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class VideoSample:
    """One video with its truth.

    Attributes:
        id: Names it within the data set.
        frames: The pictures, read as they are asked for.
        truth: Label of every pixel of a frame, the data set's `ignore` among them; None where the
            frame has none.
        fps: Frames a second.
        anchor: Index of the frame whose truth may be shown to a method.
        instances: 0 where there is no thing, else its number from 1; None: not known.
    """

    id: str
    frames: Lazy[UInt8[np.ndarray, "h w 3"]]
    truth: Lazy[Labels | None]
    fps: Fraction
    anchor: int = 0
    instances: Lazy[Labels] | None = None

    @property
    def annotated(self) -> int:
        """Number of frames that have a truth, decoded one by one."""
        return sum(one is not None for one in self.truth)


@runtime_checkable
class VideoDataset(Protocol):
    """Videos in a fixed order. Structural, like `Dataset`.

    One whose name and split leave open which videos it has also has a `seed` or a `fingerprint`:
    a run that was stopped goes on only with the same.

    Attributes:
        name: As users type it.
        split: Which part.
        classes: Names in the order of the labels; empty where labels are objects, numbered from 1
            in each video, and J&F is what is scored.
        ignore: Label of pixels that are not scored.
    """

    @property
    def name(self) -> str: ...
    @property
    def split(self) -> str: ...
    @property
    def classes(self) -> tuple[str, ...]: ...
    @property
    def ignore(self) -> int: ...
    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> VideoSample: ...


class SceneClips:
    """The first `n` clips of a stream of the procedural world.

    Args:
        split: "train", "val" or "test".
        seed: Which stream.
        n: Number of clips.
        frames: Frames a clip.
        hw: Height and width.

    Raises:
        InputError: A number is out of range, or the split is unknown.

    Example:
        >>> clips = SceneClips(n=1, frames=2, hw=(64, 64))
        >>> clips[0].id, clips[0].frames[1].shape, len(clips.classes)
        ('test-1-0', (64, 64, 3), 18)
    """

    name = "scenes-clips"
    ignore = VOID

    def __init__(
        self,
        *,
        split: str = "test",
        seed: int = 1,
        n: int = 20,
        frames: int = 28,
        hw: tuple[int, int] = (256, 256),
    ) -> None:
        from diffuseg.world import CLASSES, Clips

        if n < 1:
            raise InputError("the number of clips must be at least 1", got=n, remedy="use 20")
        self._clips = Clips(split, seed, hw, frames=frames)
        self._n = n
        self.seed = seed
        self.split = split
        # Not how many: the first of more clips are the same ones.
        self.fingerprint = f"{frames} frames of {hw[0]}x{hw[1]}"
        self.classes: tuple[str, ...] = tuple(CLASSES)

    def __len__(self) -> int:
        return self._n

    def __getitem__(self, index: int) -> VideoSample:
        if not 0 <= index < self._n:
            raise IndexError(index)
        clip = self._clips[index]
        n = len(clip.frames)
        return VideoSample(
            id=f"{clip.split}-{clip.seed}-{index}",
            frames=Lazy(n, lambda i: clip.frames[i]),
            truth=Lazy(n, lambda i: clip.labels[i]),
            instances=Lazy(n, lambda i: clip.instances[i]),
            fps=Fraction(clip.fps),
        )


VIDEO_DATASETS: Mapping[str, tuple[str, Mapping[str, object], str]] = {
    "camvid11": ("CamVid", {}, "val"),
    "camvid32": ("CamVid32", {}, "all"),
    "vspw124": ("Vspw", {}, "val"),
    "davis2016": ("Davis", {"year": 2016}, "val"),
    "davis2017": ("Davis", {"year": 2017}, "val"),
    "cityscapes19": ("Cityscapes", {}, "val"),
    "clvos23": ("Clvos", {}, "all"),
}
"""Every data set of files by name: its class in `video_layouts`, arguments, usual split."""


def open_video_dataset(
    name: str, root: str | os.PathLike[str], *, split: str | None = None
) -> VideoDataset:
    """Return a video data set by name.

    Args:
        name: One of `VIDEO_DATASETS`.
        root: Its folder.
        split: Which part; None: the one it is usually scored on.

    Raises:
        InputError: No such data set, or its folder lacks something.

    Example:
        >>> open_video_dataset("davis2017", "DAVIS").name  # doctest: +SKIP
        'davis2017'
    """
    if name not in VIDEO_DATASETS:
        near = difflib.get_close_matches(name, VIDEO_DATASETS, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise InputError(
            "the video data set must be a known one",
            got=name,
            remedy=f"{hint}use one of {', '.join(VIDEO_DATASETS)}",
        )
    from diffuseg.eval import video_layouts

    layout, arguments, usual = VIDEO_DATASETS[name]
    return getattr(video_layouts, layout)(root, **arguments, split=split or usual)
