"""Labels of a video out: masks or overlays as video, indexed pictures, tracks of every label.

Each is a context that yields a function taking a frame and its labels. What it writes is there when
its block ends well; when the block raises, nothing is left of it.
"""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from fractions import Fraction
from pathlib import Path

import numpy as np
import PIL.Image
from jaxtyping import Integer, UInt8
from scipy import ndimage

from diffuseg.errors import InputError
from diffuseg.files import atomic_folder, atomic_path
from diffuseg.labelmaps import IGNORE, checked_names, integer_map
from diffuseg.palettes import UNDECIDED, voc_palette
from diffuseg.render import overlay
from diffuseg.result import Segmentation
from diffuseg.video.encoding import encode_video
from diffuseg.video.reading import Frame, Video

Add = Callable[[Frame, Integer[np.ndarray, "h w"]], None]
"""Takes a frame and the label of every pixel."""


@contextmanager
def mask_video(
    path: str | os.PathLike[str],
    video: Video,
    *,
    palette: UInt8[np.ndarray, "k 3"] | None = None,
    lossless: bool = False,
) -> Iterator[Add]:
    """Write labels as a video of their colours.

    Args:
        path: The file; its suffix says the container.
        video: Whose frame rate and time base it has.
        palette: The colour of every label; by default that of DAVIS and PASCAL VOC. Labels beyond
            it are grey.
        lossless: Whether every pixel has exactly its colour; see `encode_video`.

    Raises:
        InputError: See `encode_video`.

    Example:
        >>> with mask_video("masks.mkv", video, lossless=True) as add:  # doctest: +SKIP
        ...     for frame in video.frames():
        ...         add(frame, labels[frame.index])
    """
    colors = voc_palette(256) if palette is None else palette
    with encode_video(path, video, lossless=lossless) as draw:
        yield lambda frame, labels: draw(frame.time, paint_labels(labels, colors))


@contextmanager
def overlay_video(
    path: str | os.PathLike[str],
    video: Video,
    names: Sequence[str],
    *,
    opacity: float = 0.5,
    contours: bool = True,
    lossless: bool = False,
) -> Iterator[Add]:
    """Write the video with its labels in colour over it, each name in its own colour.

    Args:
        path: The file; its suffix says the container.
        video: The video segmented.
        names: The name of every label. Other labels are undecided; their pixels stay as they are.
        opacity: Of the colours, 0 to 1.
        contours: Whether the borders between labels are drawn.
        lossless: See `encode_video`.

    Raises:
        InputError: See `encode_video` and `render.overlay`.

    Example:
        >>> with overlay_video("overlay.mp4", video, ("car", "road")) as add:  # doctest: +SKIP
        ...     for frame in video.frames():
        ...         add(frame, labels[frame.index])
    """
    held = checked_names(names)

    def add(frame: Frame, labels: Integer[np.ndarray, "h w"]) -> None:
        decided = (labels >= 0) & (labels < len(held))
        seg = Segmentation(labels=np.where(decided, labels, IGNORE).astype(np.int32), names=held)
        picture = overlay(frame.pixels, seg, opacity=opacity, contours=contours, legend=False)
        draw(frame.time, np.asarray(picture))

    with encode_video(path, video, lossless=lossless) as draw:
        yield add


@contextmanager
def png_sequence(
    folder: str | os.PathLike[str], *, palette: UInt8[np.ndarray, "k 3"] | None = None
) -> Iterator[Add]:
    """Write labels as indexed PNG files, `00000.png` and on, as DAVIS takes results.

    Args:
        folder: The folder to make; it must not exist or be empty.
        palette: The colour of every label; by default that of DAVIS.

    Labels are written as they are, undecided pixels (65535) as 255.

    Raises:
        InputError: The folder is taken or cannot be written, or a label is not 0 to 255.

    Example:
        >>> with png_sequence("masks") as add:  # doctest: +SKIP
        ...     for frame in video.frames():
        ...         add(frame, labels[frame.index])
    """
    colors = (voc_palette(256) if palette is None else palette).tobytes()
    with atomic_folder(folder) as temporary:

        def add(frame: Frame, labels: Integer[np.ndarray, "h w"]) -> None:
            picture = PIL.Image.fromarray(_bytes(labels))
            picture.putpalette(colors)
            _save(picture, temporary / f"{frame.index:05d}.png")

        yield add


@contextmanager
def track_file(path: str | os.PathLike[str], video: Video, names: Sequence[str]) -> Iterator[Add]:
    """Write where each label is in every frame, as JSON.

    `video` has `source`, `size` (height, width), `fps` and `time_base` (fractions as text);
    `times` the seconds of every frame; `objects` one entry for every label seen, with `label`,
    `name`, `frames` (where it is visible), and for each of them `boxes` (top, left, bottom, right,
    the last two outside) and `areas` (pixels).

    Args:
        path: The file.
        video: The video segmented.
        names: The name of every label; pixels of other labels belong to nothing.

    Raises:
        InputError: The names are no names, or the file cannot be written.

    Example:
        >>> with track_file("tracks.json", video, ("car", "road")) as add:  # doctest: +SKIP
        ...     for frame in video.frames():
        ...         add(frame, labels[frame.index])
    """
    held = checked_names(names)
    times: list[float] = []
    tracks: dict[int, dict[str, list[object]]] = {}

    def add(frame: Frame, labels: Integer[np.ndarray, "h w"]) -> None:
        times.append(round(float(frame.time), 6))
        for label, box, area in label_boxes(labels, len(held)):
            track = tracks.setdefault(label, {"frames": [], "boxes": [], "areas": []})
            track["frames"].append(frame.index)
            track["boxes"].append(box)
            track["areas"].append(area)

    with atomic_path(path) as temporary:
        yield add
        about = {
            "source": Path(video.source).name,
            "size": video.size,
            "fps": _text(video.fps),
            "time_base": _text(video.time_base),
        }
        objects = [
            {"label": label, "name": held[label], **tracks[label]} for label in sorted(tracks)
        ]
        written = {"version": 1, "video": about, "times": times, "objects": objects}
        # Piece by piece: the text is longer than what it says.
        with temporary.open("w", encoding="utf-8") as file:
            json.dump(written, file)
            file.write("\n")


@contextmanager
def together(outputs: Sequence[AbstractContextManager[Add]]) -> Iterator[Add]:
    """Join several outputs to one: what is added goes to all of them.

    Example:
        >>> outputs = [png_sequence("masks"), track_file("tracks.json", video, names)]
        ... # doctest: +SKIP
        >>> with together(outputs) as add:  # doctest: +SKIP
        ...     for frame in video.frames():
        ...         add(frame, labels[frame.index])
    """
    with ExitStack() as stack:
        adders = [stack.enter_context(one) for one in outputs]

        def add(frame: Frame, labels: Integer[np.ndarray, "h w"]) -> None:
            for one in adders:
                one(frame, labels)

        yield add


def paint_labels(
    labels: Integer[np.ndarray, "h w"], palette: UInt8[np.ndarray, "k 3"]
) -> UInt8[np.ndarray, "h w 3"]:
    """Return the colour of every label, grey for labels that have none.

    Example:
        >>> paint_labels(np.array([[1, 65535]]), np.zeros((2, 3), dtype=np.uint8)).tolist()
        [[[0, 0, 0], [128, 128, 128]]]
    """
    colors = np.concatenate([palette, np.array([UNDECIDED], dtype=np.uint8)])
    held = integer_map(labels).astype(np.int64)
    return colors[np.where((held < 0) | (held >= len(palette)), len(palette), held)]


def label_boxes(
    labels: Integer[np.ndarray, "h w"], n: int
) -> list[tuple[int, tuple[int, int, int, int], int]]:
    """Return label, box and area of the labels below `n` that a map shows, in their order.

    Example:
        >>> label_boxes(np.array([[0, 2], [0, 2], [9, 0]]), 3)
        [(0, (0, 0, 3, 2), 3), (2, (0, 1, 2, 2), 2)]
    """
    held = integer_map(labels).astype(np.int64)
    shifted = np.where((held < 0) | (held >= n), 0, held + 1)
    areas = np.bincount(shifted.reshape(-1), minlength=n + 1)
    return [
        (i, (box[0].start, box[1].start, box[0].stop, box[1].stop), int(areas[i + 1]))
        for i, box in enumerate(ndimage.find_objects(shifted))
        if box is not None
    ]


def _bytes(labels: Integer[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w"]:
    held = integer_map(labels)
    undecided = held == IGNORE
    if ((held < 0) | (held > 255))[~undecided].any():
        raise InputError(
            "labels of indexed pictures must be 0 to 255",
            got=f"{held[~undecided].min()} to {held[~undecided].max()}",
            remedy="number the labels anew, or write a video",
        )
    return np.where(undecided, 255, held).astype(np.uint8)


def _save(picture: PIL.Image.Image, path: Path) -> None:
    try:
        picture.save(path)
    except OSError as error:
        raise InputError(
            "the output folder must be writable",
            got=f"{path.name}: {error.strerror or error}",
            remedy="free some space, or choose another output folder",
        ) from error


def _text(number: Fraction) -> str:
    return f"{number.numerator}/{number.denominator}"
