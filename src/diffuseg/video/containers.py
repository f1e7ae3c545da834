"""Files and streams decoded with PyAV: opened, their frames one by one, what is damaged."""

import os
from collections.abc import Iterator
from fractions import Fraction
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import UInt8

from diffuseg.errors import InputError, MissingExtra

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream


class Opened(NamedTuple):
    """A container that is being read, and the frames still to come."""

    container: "InputContainer"
    raw: Iterator["VideoFrame"]


def open_container(name: str) -> "InputContainer":
    """Open a file or an address.

    Raises:
        InputError: It is no complete video.
        MissingExtra: PyAV is not installed.
    """
    try:
        import av
        from av.error import FFmpegError
    except ImportError as error:
        raise MissingExtra("av", extra="video", purpose="reading a video file") from error
    try:
        return av.open(name, mode="r", metadata_errors="replace")
    except (FFmpegError, OSError, ValueError) as error:
        empty = os.path.isfile(name) and os.path.getsize(name) == 0
        why = "an empty file" if empty else getattr(error, "strerror", None) or error
        raise InputError(
            "the file must be a complete video",
            got=f"{name}: {why}",
            remedy="play it in a viewer; a recording that was cut off may lack its index: copy or "
            "record it again",
        ) from error


def video_stream(container: "InputContainer", name: str) -> "VideoStream":
    """The stream of moving pictures.

    Raises:
        InputError: There is none.
    """
    from av.stream import Disposition

    for stream in container.streams.video:
        # The cover of a song is a video stream of one picture.
        if not stream.disposition & Disposition.attached_pic:
            return stream
    kinds = sorted({stream.type for stream in container.streams}) or ["nothing"]
    raise InputError(
        "the file must have a video stream",
        got=f"{name}: only {', '.join(kinds)}"
        + (", the video being a cover picture" if "video" in kinds else ""),
        remedy="choose a file that has moving pictures",
    )


def declared_seconds(container: "InputContainer", stream: "VideoStream") -> Fraction | None:
    """Duration the file declares, the shorter where there are two; None: it does not say."""
    of_stream = stream.duration and stream.time_base and stream.duration * stream.time_base
    # That of the file may be of its sound.
    alone = len(container.streams) == 1 or of_stream
    of_file = alone and container.duration and Fraction(container.duration, 1_000_000)
    known = [Fraction(one) for one in (of_stream, of_file) if one and one > 0]
    return min(known, default=None)


def raw_frames(
    container: "InputContainer", stream: "VideoStream", name: str
) -> Iterator["VideoFrame"]:
    """Yield decoded frames.

    What cannot be decoded before the first one is left out: recordings of a broadcast begin
    anywhere.

    Raises:
        InputError: A later one cannot be decoded.
    """
    from av.error import FFmpegError, InvalidDataError

    found = 0
    try:
        for packet in container.demux(stream):
            try:
                decoded = packet.decode()
            except InvalidDataError:
                if found:
                    raise
                continue
            for frame in decoded:
                if frame.is_corrupt:
                    if not found:
                        continue
                    raise damaged(name, found, "a frame that is only partly there")
                found += 1
                yield frame
    except (FFmpegError, OSError) as error:
        raise damaged(name, found, getattr(error, "strerror", None) or error) from error


def frame_pixels(raw: "VideoFrame") -> UInt8[np.ndarray, "h w 3"]:
    """A decoded frame in red, green and blue, upright, transparent pixels over white."""
    if any(component.is_alpha for component in raw.format.components):
        rgba = raw.to_ndarray(format="rgba")
        alpha = rgba[..., 3:].astype(np.uint16)
        mixed = rgba[..., :3] * alpha + 255 * (255 - alpha)
        pixels = ((mixed + 127) // 255).astype(np.uint8)
    else:
        pixels = raw.to_ndarray(format="rgb24")
    turns = round(raw.rotation / 90) % 4
    return np.ascontiguousarray(np.rot90(pixels, turns)) if turns else pixels


def damaged(name: str, n: int, why: object) -> InputError:
    """What to raise of a video of which `n` frames could be read."""
    return InputError(
        "the video must be complete and undamaged",
        got=f"{name}: {why}; {n} frames could be read",
        remedy="copy it again, or keep what is readable: "
        "ffmpeg -err_detect ignore_err -i in.mp4 out.mp4",
    )
