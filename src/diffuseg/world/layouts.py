"""Scenes and clips written to disk the way PASCAL VOC 2012 and DAVIS 2017 lie there.

A folder appears only when it is complete: it is written beside its final place under a temporary
name and moved there in one step.
"""

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
from jaxtyping import UInt8
from PIL import Image as PillowImage

from diffuseg.errors import InputError
from diffuseg.files import atomic_folder
from diffuseg.palettes import voc_palette
from diffuseg.world.painting import CLASSES
from diffuseg.world.scenes import Scene, Scenes, check_count
from diffuseg.world.videos import Clip, Clips

Stream = TypeVar("Stream", Scenes, Clips)

Progress = Callable[[int, int], None]
"""Called with (done, all) after every item."""

_QUALITY = 95  # of JPEG, as VOC's own pictures have


def write_voc(
    scenes: Scenes | Sequence[Scenes],
    root: str | os.PathLike[str],
    n: int,
    *,
    progress: Progress | None = None,
) -> Path:
    """Write the first `n` scenes of each stream in the layout of PASCAL VOC 2012.

    `JPEGImages/`, `SegmentationClass/` (0 is VOC's background, which scenes do not have; class
    index + 1 elsewhere), `SegmentationObject/` (0 is stuff), `ImageSets/Segmentation/<split>.txt`;
    besides, `names.txt` (line i names label i) and `captions.json` (id to phrasings).

    Args:
        scenes: One stream, or several of different splits.
        root: The folder to make; it must not exist or be empty.
        n: Scenes a stream, at least 1.
        progress: Called after every scene.

    Returns:
        The folder.

    Raises:
        InputError: `root` is taken, `n` is not positive, or two streams have the same split.

    Example:
        >>> import tempfile
        >>> root = write_voc(Scenes("val", hw=(64, 64)), Path(tempfile.mkdtemp()) / "voc", 2)
        >>> sorted(path.name for path in root.iterdir())[:3]
        ['ImageSets', 'JPEGImages', 'SegmentationClass']
    """
    streams = _streams(scenes)
    _check_items("scenes", n)
    palette = voc_palette(256)
    captions: dict[str, tuple[str, ...]] = {}
    with atomic_folder(root) as folder:
        for name in ("JPEGImages", "SegmentationClass", "SegmentationObject"):
            (folder / name).mkdir()
        for s, stream in enumerate(streams):
            names = []
            for i in range(n):
                scene = stream[i]
                name = f"{scene.split}_{scene.seed}_{scene.index:06d}"
                _write_scene(folder, name, scene, palette)
                captions[name] = scene.captions
                names.append(name)
                if progress is not None:
                    progress(s * n + i + 1, len(streams) * n)
            _write_lines(folder / "ImageSets" / "Segmentation" / f"{stream.split}.txt", names)
        _write_lines(folder / "names.txt", ["background", *CLASSES])
        (folder / "captions.json").write_text(json.dumps(captions, indent=1) + "\n")
    return Path(root)


def write_davis(
    clips: Clips | Sequence[Clips],
    root: str | os.PathLike[str],
    n: int,
    *,
    progress: Progress | None = None,
) -> Path:
    """Write the first `n` clips of each stream in the layout of DAVIS 2017.

    `JPEGImages/480p/<sequence>/00000.jpg`, `Annotations/480p/<sequence>/00000.png` (palette; the
    object's number, the same in every frame, 0 elsewhere), `ImageSets/2017/<split>.txt`; besides,
    `objects.json` (sequence to frame rate, caption and the kind and colour of every object). The
    folder is called 480p whatever the size, since readers look there. An object may enter after
    the first frame.

    Args:
        clips: One stream, or several of different splits.
        root: The folder to make; it must not exist or be empty.
        n: Clips a stream, at least 1.
        progress: Called after every clip.

    Returns:
        The folder.

    Raises:
        InputError: `root` is taken, `n` is not positive, or two streams have the same split.

    Example:
        >>> import tempfile
        >>> clips = Clips("val", hw=(64, 64), frames=2)
        >>> root = write_davis(clips, Path(tempfile.mkdtemp()) / "davis", 1)
        >>> (root / "ImageSets/2017/val.txt").read_text()
        'val_0_000000\\n'
    """
    streams = _streams(clips)
    _check_items("clips", n)
    palette = voc_palette(256)
    objects: dict[str, object] = {}
    with atomic_folder(root) as folder:
        for s, stream in enumerate(streams):
            names = []
            for i in range(n):
                clip = stream[i]
                name = f"{clip.split}_{clip.seed}_{clip.index:06d}"
                _write_clip(folder, name, clip, palette)
                objects[name] = {
                    "fps": clip.fps,
                    "caption": clip.caption,
                    "objects": {
                        str(k): {"kind": track.kind, "color": track.color}
                        for k, track in enumerate(clip.things, start=1)
                    },
                }
                names.append(name)
                if progress is not None:
                    progress(s * n + i + 1, len(streams) * n)
            _write_lines(folder / "ImageSets" / "2017" / f"{stream.split}.txt", names)
        (folder / "objects.json").write_text(json.dumps(objects, indent=1) + "\n")
    return Path(root)


def _streams(given: Stream | Sequence[Stream]) -> list[Stream]:
    streams = [given] if isinstance(given, Scenes | Clips) else list(given)
    splits = [stream.split for stream in streams]
    if not streams or len(set(splits)) != len(splits):
        raise InputError(
            "a data set is written from one or more streams of different splits",
            got=splits,
            remedy="pass one stream a split, for instance [Scenes('train'), Scenes('val')]",
        )
    return streams


def _check_items(what: str, n: int) -> None:
    if check_count("n", n) == 0:
        raise InputError(f"at least one of the {what} must be written", got=n, remedy="pass n=1")


def _write_scene(folder: Path, name: str, scene: Scene, palette: UInt8[np.ndarray, "n 3"]) -> None:
    _write_jpeg(folder / "JPEGImages" / f"{name}.jpg", scene.image)
    _write_mask(folder / "SegmentationClass" / f"{name}.png", scene.labels + 1, palette)
    _write_mask(folder / "SegmentationObject" / f"{name}.png", scene.instances, palette)


def _write_clip(folder: Path, name: str, clip: Clip, palette: UInt8[np.ndarray, "n 3"]) -> None:
    pictures = folder / "JPEGImages" / "480p" / name
    masks = folder / "Annotations" / "480p" / name
    pictures.mkdir(parents=True)
    masks.mkdir(parents=True)
    for f, (frame, instances) in enumerate(zip(clip.frames, clip.instances, strict=True)):
        _write_jpeg(pictures / f"{f:05d}.jpg", frame)
        _write_mask(masks / f"{f:05d}.png", instances, palette)


def _write_jpeg(path: Path, image: UInt8[np.ndarray, "h w 3"]) -> None:
    PillowImage.fromarray(image).save(path, quality=_QUALITY, subsampling=0)


def _write_mask(
    path: Path, mask: UInt8[np.ndarray, "h w"], palette: UInt8[np.ndarray, "n 3"]
) -> None:
    picture = PillowImage.fromarray(mask)
    picture.putpalette(palette.tobytes())
    picture.save(path)


def _write_lines(path: Path, lines: Sequence[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))
