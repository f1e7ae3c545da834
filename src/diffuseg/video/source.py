"""Frames of anything that has some, a few at a time."""

import os
from collections.abc import Iterable, Iterator
from itertools import islice

from diffuseg.errors import DiffusegError, InputError
from diffuseg.image import read_image
from diffuseg.video.reading import Video, open_video
from diffuseg.video.seeing import Pixels


class Source:
    """Frames in order; an error is kept until all good ones are used.

    Args:
        frames: A file, folder or address, a `Video`, or anything that yields pictures.
        start: The first that is wanted.
    """

    def __init__(self, frames: object, start: int) -> None:
        self._frames = _pixels(frames, start)
        self._size: tuple[int, ...] | None = None
        self._error: DiffusegError | None = None

    def take(self, count: int) -> list[Pixels]:
        """As many frames as there are, up to a number."""
        taken: list[Pixels] = []
        if self._error is not None:
            return taken
        try:
            for pixels in islice(self._frames, count):
                if self._size not in (None, pixels.shape):
                    raise InputError(
                        "all frames of a video must have one size",
                        got=f"{pixels.shape[0]}x{pixels.shape[1]} after "
                        f"{self._size[0]}x{self._size[1]}",
                        remedy="bring them to one size first",
                    )
                self._size = pixels.shape
                taken.append(pixels)
        except DiffusegError as error:
            self._error = error
        return taken

    def check(self) -> None:
        """Raise what was kept."""
        if self._error is not None:
            raise self._error


def _pixels(frames: object, start: int) -> Iterator[Pixels]:
    if isinstance(frames, str | os.PathLike):
        frames = open_video(frames)
    if isinstance(frames, Video):
        return (one.pixels for one in frames.frames(start))
    if not isinstance(frames, Iterable):
        raise InputError(
            "frames must be a file, a folder, a Video or pictures in order",
            got=type(frames).__name__,
            remedy='give "in.mp4", or a list of arrays',
        )
    return (read_image(one).pixels for one in islice(frames, start, None))
