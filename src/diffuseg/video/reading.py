"""Videos in: files of any container PyAV reads, animations, streams, folders of pictures.

Frames are decoded as they are asked for; memory does not grow with the length.
"""

import itertools
import os
import re
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import UInt8

from diffuseg.errors import InputError
from diffuseg.image import MAX_PIXELS, MIN_SIDE, SUFFIXES, read_image
from diffuseg.video.containers import (
    Opened,
    damaged,
    declared_seconds,
    frame_pixels,
    open_container,
    raw_frames,
    video_stream,
)

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame

FOLDER_FPS = 25
"""Frames a second of a folder of pictures, which does not say."""


class Frame(NamedTuple):
    """One picture of a video.

    Attributes:
        index: Its place, from 0.
        time: Seconds since the first frame, exact.
        pixels: Red, green and blue, upright.
    """

    index: int  # pyright: ignore[reportIncompatibleMethodOverride]
    time: Fraction
    pixels: UInt8[np.ndarray, "h w 3"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Video:
    """A video that is read as it is asked for.

    Attributes:
        source: The file, folder or address.
        size: Height and width of all frames, upright, in pixels.
        fps: Frames a second; their average where the rate varies.
        time_base: The unit in which the file counts time, in seconds.
        length: Number of frames the file declares; None: it does not say.
        seconds: Duration the file declares; None: it does not say.

    Example:
        >>> import tempfile
        >>> import PIL.Image
        >>> folder = Path(tempfile.mkdtemp())
        >>> for number in (10, 9):
        ...     PIL.Image.new("RGB", (48, 32)).save(folder / f"{number}.png")
        >>> video = open_video(folder, fps=5)
        >>> video, [str(frame.time) for frame in video.frames()]
        (Video 32x48, 5 frames a second, 2 frames, ['0', '1/5'])
    """

    source: str
    size: tuple[int, int]
    fps: Fraction
    time_base: Fraction
    length: int | None = None
    seconds: Fraction | None = None
    _pictures: tuple[Path, ...] = ()
    # Of a stream that can be read only once: what is open already.
    _live: "deque[Opened] | None" = field(default=None, compare=False, repr=False)

    def __repr__(self) -> str:
        length = "of unknown length" if self.length is None else f"{self.length} frames"
        rate = f"{float(self.fps):g} frames a second"
        return f"Video {self.size[0]}x{self.size[1]}, {rate}, {length}"

    @property
    def live(self) -> bool:
        """Whether it can be read only once."""
        return self._live is not None

    @property
    def expected(self) -> int | None:
        """About how many frames there are, for progress bars; None: not known."""
        if self.length is not None or self.seconds is None:
            return self.length
        return max(1, round(self.seconds * self.fps))

    def frames(self, start: int = 0) -> Iterator[Frame]:
        """Yield the frames in order.

        All good frames are yielded before an error is raised.

        Args:
            start: Index of the first frame wanted; those before are decoded, not converted.

        Raises:
            InputError: The video is damaged or ends early, its size changes, or it is a stream that
                was read before.
        """
        if self._pictures:
            return _read_pictures(self._pictures, self.size, self.time_base, start)
        return self._decoded(start)

    def _decoded(self, start: int) -> Iterator[Frame]:
        if self._live is None:
            container = open_container(self.source)
            stream = video_stream(container, self.source)
            opened = Opened(container, raw_frames(container, stream, self.source))
        elif self._live:
            opened = self._live.popleft()
        else:
            raise InputError(
                "a stream can be read only once",
                got=self.source,
                remedy="record it to a file first: ffmpeg -i ADDRESS -c copy recorded.mkv",
            )
        with opened.container:
            yield from _decode(opened.raw, self, start)


def open_video(
    source: str | os.PathLike[str], *, fps: float | int | Fraction | None = None
) -> Video:
    """Open a video; its first frame is decoded to make sure that it can be read.

    Args:
        source: A file in any container PyAV reads, animations among them; a folder of pictures in
            the order of the numbers in their names; a named pipe or an address such as
            "rtsp://…", which can be read only once.
        fps: Frames a second of a folder of pictures, by default 25. Files know theirs.

    Pictures are turned upright by the file's rotation; transparent pixels are laid over white.
    Pixels that are not square are left as they are stored.

    Raises:
        InputError: The source is missing, no video, has no frames or cannot be decoded; its size is
            out of range; `fps` is not positive or is given for a file.
        MissingExtra: PyAV is not installed, and the source is no folder.

    Example:
        >>> for frame in open_video("in.mp4").frames():  # doctest: +SKIP
        ...     print(frame.index, float(frame.time), frame.pixels.shape)
    """
    name = os.fspath(source)
    path = Path(name)
    # Not of addresses: they may be longer than names of files.
    if "://" not in name and path.is_dir():
        return _open_folder(path, FOLDER_FPS if fps is None else fps)
    if fps is not None:
        raise InputError(
            "the frame rate is given for folders of pictures only",
            got=f"fps={fps} for {name}",
            remedy="leave it out: the file has its own",
        )
    live = "://" in name or path.is_fifo()
    if not live and not path.is_file():
        raise InputError(
            "the video must exist",
            got=f"no file or folder at {name}",
            remedy="check the path",
        )
    container = open_container(name)
    opened = False
    try:
        video = _probe(container, name, live=live)
        opened = live
    finally:
        if not opened:
            container.close()
    return video


def natural_key(name: str) -> tuple[tuple[int, int, str], ...]:
    """Order names by the numbers in them: "f9" before "f10".

    Example:
        >>> sorted(["f10", "f9", "a"], key=natural_key)
        ['a', 'f9', 'f10']
    """
    parts = re.findall(r"[0-9]+|[^0-9]+", name)
    return tuple((0, int(p), "") if p[0] in "0123456789" else (1, 0, p) for p in parts)


# Folders of pictures.


def _open_folder(folder: Path, fps: float | int | Fraction) -> Video:
    rate = Fraction(fps).limit_denominator(100_000) if fps > 0 else Fraction(0)
    if rate <= 0:
        raise InputError("the frame rate must be positive", got=fps, remedy="use for instance 25")
    try:
        files = list(folder.iterdir())
    except OSError as error:
        raise InputError(
            "the folder must be readable",
            got=f"{folder}: {error.strerror or error}",
            remedy="check its permissions",
        ) from error
    found = [
        file for file in files if file.suffix.lower() in SUFFIXES and not file.name.startswith(".")
    ]
    if not found:
        raise InputError(
            "the folder must contain the frames of a video",
            got=f"no pictures in {folder}",
            remedy=f"files are found by their suffix: {', '.join(SUFFIXES)}",
        )
    pictures = sorted(found, key=lambda file: (natural_key(file.stem), file.name))
    for one, other in itertools.pairwise(pictures):
        if natural_key(one.stem) == natural_key(other.stem):
            raise InputError(
                "every frame of a folder must have a number of its own",
                got=f"{one.name} and {other.name}",
                remedy="keep masks and other pictures in another folder",
            )
    size = read_image(pictures[0]).hw
    return Video(
        source=str(folder),
        size=size,
        fps=rate,
        time_base=1 / rate,
        length=len(pictures),
        seconds=len(pictures) / rate,
        _pictures=tuple(pictures),
    )


def _read_pictures(
    pictures: tuple[Path, ...], size: tuple[int, int], time_base: Fraction, start: int
) -> Iterator[Frame]:
    for index, path in enumerate(pictures[start:], start=start):
        pixels = read_image(path).pixels
        if pixels.shape[:2] != size:
            raise _changed_size(path.name, index, size, pixels.shape[:2])
        yield Frame(index, index * time_base, pixels)


# Containers.


def _probe(container: "InputContainer", name: str, *, live: bool) -> Video:
    stream = video_stream(container, name)
    fps = stream.average_rate or stream.guessed_rate or stream.base_rate or Fraction(FOLDER_FPS)
    raw = raw_frames(container, stream, name)
    first = next(raw, None)
    if first is None:
        raise InputError(
            "the video must have at least one frame",
            got=f"{name}: none that can be decoded",
            remedy="record or copy it again",
        )
    size = frame_pixels(first).shape[:2]
    _check_size(size)
    return Video(
        source=name,
        size=size,
        fps=Fraction(fps),
        time_base=Fraction(stream.time_base or 1 / Fraction(fps)),
        length=stream.frames or None,
        seconds=declared_seconds(container, stream),
        _live=deque([Opened(container, itertools.chain([first], raw))]) if live else None,
    )


def _decode(decoded: Iterator["VideoFrame"], video: Video, start: int) -> Iterator[Frame]:
    first: Fraction | None = None
    last, longest, shown, index = Fraction(0), 1 / video.fps, Fraction(0), -1
    for index, raw in enumerate(decoded):
        time = index / video.fps
        if raw.pts is not None and raw.time_base:
            stamp = raw.pts * Fraction(raw.time_base)
            first = stamp if first is None else first
            time = stamp - first
        if index:
            # Some files repeat time stamps, or go back; time has to go on.
            time = max(time, last + video.time_base)
            longest = max(longest, time - last)
        last = time
        shown = (raw.duration or 0) * Fraction(raw.time_base or 0)
        if index < start and (raw.height, raw.width) in (video.size, video.size[::-1]):
            continue
        pixels = frame_pixels(raw)
        if pixels.shape[:2] != video.size:
            raise _changed_size(video.source, index, video.size, pixels.shape[:2])
        if index >= start:
            yield Frame(index, time, pixels)
    _check_complete(video, index + 1, last + max(shown, 3 * longest))


def _check_complete(video: Video, n: int, end: Fraction) -> None:
    # Fewer frames than declared alone prove nothing: an edit list may hide some of them. The time
    # alone proves little: the last frame may be shown for long, hence the three longest gaps.
    if video.seconds is None or end >= video.seconds or (video.length or n + 1) <= n:
        return
    raise damaged(video.source, n, f"it ends before the {float(video.seconds):.2f} s it declares")


def _check_size(size: tuple[int, int]) -> None:
    if min(size) < MIN_SIDE or size[0] * size[1] > MAX_PIXELS:
        raise InputError(
            f"frames must have sides of {MIN_SIDE} pixels or more and at most "
            f"{MAX_PIXELS // 1_000_000} million pixels",
            got=f"{size[0]} high, {size[1]} wide",
            remedy="scale the video: ffmpeg -i in.mp4 -vf scale=640:-2 out.mp4",
        )


def _changed_size(
    name: str, index: int, size: tuple[int, int], other: tuple[int, ...]
) -> InputError:
    return InputError(
        "all frames of a video must have one size",
        got=f"{name}: {other[0]}x{other[1]} at frame {index}, {size[0]}x{size[1]} before",
        remedy="scale the video to one size: ffmpeg -i in.mp4 -vf scale=640:360 out.mp4",
    )
