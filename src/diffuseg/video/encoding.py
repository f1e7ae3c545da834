"""Video files out: a codec for the suffix, times as they were, a file whole or not at all."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
from jaxtyping import UInt8

from diffuseg.errors import InputError, MissingExtra
from diffuseg.files import atomic_path
from diffuseg.video.reading import Video

if TYPE_CHECKING:
    from av.video.stream import VideoStream

Draw = Callable[[Fraction, UInt8[np.ndarray, "h w 3"]], None]
"""Takes the time of a frame in seconds and its picture."""

# Codec, pixels where both sides are even, pixels otherwise, options; the first that is there.
_Choice = tuple[str, str, str, dict[str, str]]
_H264: _Choice = ("libx264", "yuv420p", "yuv444p", {"crf": "18", "preset": "medium"})
_MPEG4: _Choice = ("mpeg4", "yuv420p", "yuv420p", {"qscale": "2"})
_VP9: _Choice = ("libvpx-vp9", "yuv420p", "yuv444p", {"crf": "24", "b:v": "0", "row-mt": "1"})
_EXACT_H264: _Choice = ("libx264rgb", "rgb24", "rgb24", {"qp": "0"})
_EXACT_VP9: _Choice = ("libvpx-vp9", "gbrp", "gbrp", {"lossless": "1", "row-mt": "1"})
_FFV1: _Choice = ("ffv1", "bgr0", "bgr0", {})

_PLAYABLE: dict[str, tuple[_Choice, ...]] = {
    ".mp4": (_H264, _MPEG4),
    ".m4v": (_H264, _MPEG4),
    ".mov": (_H264, _MPEG4),
    ".mkv": (_H264, _MPEG4),
    ".webm": (_VP9,),
}
_EXACT: dict[str, tuple[_Choice, ...]] = {
    ".mp4": (_EXACT_H264,),
    ".m4v": (_EXACT_H264,),
    ".mov": (_EXACT_H264,),
    ".mkv": (_FFV1, _EXACT_H264),
    ".webm": (_EXACT_VP9,),
}
_FINEST_MPEG4 = 65_535

SUFFIXES = tuple(_PLAYABLE)
"""Of the video files that can be written."""


@contextmanager
def encode_video(
    path: str | os.PathLike[str], video: Video, *, lossless: bool = False
) -> Iterator[Draw]:
    """Yield a function that adds a frame to a new video; the file is there when the block ends.

    Frame rate and time base are those of `video`, as far as the container has them (Matroska and
    WebM count milliseconds). Sound is not copied. Sides that are not even are kept, with colours
    at full resolution, which some players do not know.

    Args:
        path: The file; its suffix says the container, one of `SUFFIXES`.
        video: Whose size, frame rate and time base the new one has.
        lossless: Whether pixels are kept exactly. Few players show such files other than .mkv.

    Raises:
        InputError: Another suffix, no codec for it, a frame of another size, no frame at all, or
            the file cannot be written.
        MissingExtra: PyAV is not installed.

    Example:
        >>> video = open_video("in.mp4")  # doctest: +SKIP
        >>> with encode_video("grey.mp4", video) as draw:  # doctest: +SKIP
        ...     for frame in video.frames():
        ...         draw(frame.time, frame.pixels // 2 + 64)
    """
    target = Path(path)
    check_suffix(target)
    try:
        import av
        from av.error import FFmpegError
    except ImportError as error:
        raise MissingExtra("av", extra="video", purpose="writing a video file") from error
    codec, even, odd, options = _choice(target.suffix.lower(), lossless)
    unit = video.time_base
    if codec == "mpeg4" and unit.denominator > _FINEST_MPEG4:
        unit = Fraction(1, _FINEST_MPEG4)
    height, width = video.size
    last = -1
    with atomic_path(target) as temporary:
        scale = {"video_track_timescale": str(unit.denominator)}
        try:
            with av.open(
                temporary, "w", options={} if target.suffix in (".mkv", ".webm") else scale
            ) as container:
                added = container.add_stream(codec, rate=video.fps, options=options)
                stream = cast("VideoStream", added)
                stream.height, stream.width = height, width
                stream.pix_fmt = even if height % 2 == width % 2 == 0 else odd
                stream.time_base = stream.codec_context.time_base = unit

                def draw(time: Fraction, pixels: UInt8[np.ndarray, "h w 3"]) -> None:
                    nonlocal last
                    if pixels.shape != (height, width, 3):
                        raise InputError(
                            f"frames must have the size of the video, {height}x{width}",
                            got=f"shape {pixels.shape}",
                            remedy="resize the labels to the video",
                        )
                    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), "rgb24")
                    # Two frames in one unit of a coarse time base would be one.
                    last = frame.pts = max(round(time / unit), last + 1)
                    frame.time_base = unit
                    frame.duration = max(1, round(1 / video.fps / unit))
                    container.mux(stream.encode(frame))

                yield draw
                if last < 0:
                    raise InputError(
                        "a video needs at least one frame", got="none", remedy="check the source"
                    )
                container.mux(stream.encode(None))
        except FFmpegError as error:
            raise InputError(
                "the video must be writable",
                got=f"{target}: {error.strerror or error}",
                remedy="free some space, or choose another output folder or suffix",
            ) from error


def check_suffix(path: Path) -> None:
    """Make sure that a video can be written under this name.

    Raises:
        InputError: It cannot.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(
            f"videos are written as {', '.join(SUFFIXES)}",
            got=str(path),
            remedy=f"for instance {path.with_suffix('.mp4')}",
        )


def _choice(suffix: str, lossless: bool) -> _Choice:
    from av import codecs_available

    choices = (_EXACT if lossless else _PLAYABLE)[suffix]
    for one in choices:
        if one[0] in codecs_available:
            return one
    raise InputError(
        f"PyAV must have one of the codecs {', '.join(one[0] for one in choices)}",
        got="a build without them",
        remedy="write .mkv, or install PyAV's own wheel: pip install av",
    )
