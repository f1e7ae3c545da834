"""A video in, files out; what is done is kept batch by batch, so that a run can be taken up."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, fields, replace
from itertools import chain as chain_up
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from diffuseg.errors import DiffusegError, InputError
from diffuseg.methods.vidseg.context import ContextModel
from diffuseg.models import model_name
from diffuseg.video.encoding import SUFFIXES
from diffuseg.video.journal import VideoRun, source_stamp
from diffuseg.video.naming import check_proportions
from diffuseg.video.reading import Frame, Video, open_video
from diffuseg.video.segmenter import Chain, VideoSegmenter
from diffuseg.video.writing import (
    Add,
    mask_video,
    overlay_video,
    png_sequence,
    together,
    track_file,
)

_TENSORS = ("references", "labels", "bank", "bank_labels", "ranks")


@dataclass(frozen=True, slots=True, kw_only=True)
class Outputs:
    """Where results go.

    Attributes:
        overlay: A video with its labels over it.
        masks: A video of the labels' colours.
        pictures: A folder of indexed PNG files.
        tracks: A JSON file of every label's boxes and areas.
    """

    overlay: Path | None = None
    masks: Path | None = None
    pictures: Path | None = None
    tracks: Path | None = None

    @property
    def paths(self) -> tuple[Path, ...]:
        """Those there are."""
        held = (getattr(self, one.name) for one in fields(self))
        return tuple(one for one in held if one is not None)


def read_outputs(
    named: Sequence[str | os.PathLike[str]], masks: str | os.PathLike[str] | None = None
) -> Outputs:
    """Return what is meant by file names: a video is an overlay, .json tracks, a folder pictures.

    Args:
        named: One of each kind at most.
        masks: The video of colours.

    Raises:
        InputError: Another suffix, two of a kind, or none at all.

    Example:
        >>> read_outputs(["out.mp4", "masks"]).pictures.name
        'masks'
    """
    found: dict[str, Path] = {} if masks is None else {"masks": Path(masks)}
    for one in map(Path, named):
        suffix = one.suffix.lower()
        kind = {".json": "tracks", "": "pictures"}.get(suffix)
        kind = "overlay" if suffix in SUFFIXES else kind
        if kind is None or kind in found:
            raise InputError(
                f"outputs are a video ({', '.join(SUFFIXES)}), a .json file and a folder, "
                "one of each at most",
                got=str(one),
                remedy="for example -o out.mp4 -o masks -o tracks.json",
            )
        found[kind] = one
    if not found:
        raise InputError("there must be an output", got="none", remedy="for example -o out.mp4")
    return Outputs(**found)


def segment_file(
    source: str | os.PathLike[str] | Video,
    outputs: Outputs,
    segmenter: VideoSegmenter,
    *,
    resume: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Segment a video and write the results; return the number of frames.

    Called again after having been stopped, it goes on with the batch it was at. A stream that can
    be read only once is written as it comes, and cannot be taken up again.

    Args:
        source: As for `open_video`, or what it returns.
        outputs: From `read_outputs`.
        segmenter: From `open_video_segmenter`.
        resume: False begins anew whatever is there.
        progress: Called with (done, all) after every batch; all is 0 where it is not known.

    Raises:
        InputError: A frame cannot be read; then the outputs have all before it. Or an output cannot
            be written, or the anchor's mask is of another video; that is noticed before.
    """
    video = source if isinstance(source, Video) else open_video(source)
    report = progress or (lambda done, total: None)
    _check_before(video, outputs, segmenter)
    if video.live:
        return _stream(video, outputs, segmenter, report)
    run = VideoRun(outputs.paths[0], key=_key(video, segmenter), resume=resume)
    state = run.state()
    chain = None if state is None else _chain(segmenter, state)
    done = run.n_frames if chain is not None else 0
    report(done, video.expected or 0)
    failed: DiffusegError | None = None
    try:
        for piece in segmenter.pieces(video, done=done, chain=chain):
            chain = piece.chain
            run.keep(piece.first, piece.labels, _state(chain))
            report(run.n_frames, video.expected or run.n_frames)
    except DiffusegError as error:
        failed = error
    if chain is not None and run.n_frames:
        frames = video.frames()
        with together(_writers(outputs, video, chain.names)) as add:
            for labels in run.labels():
                add(next(frames), labels)
    if failed is not None:
        raise failed
    n = run.n_frames
    run.discard()
    return n


def _check_before(video: Video, outputs: Outputs, segmenter: VideoSegmenter) -> None:
    """Notice now, not after hours, what cannot be."""
    if (mask := segmenter.named.mask) is not None:
        check_proportions(mask.numpy(), video.size)
    folder = outputs.pictures
    empty = folder is None or (folder.is_dir() and not any(folder.iterdir()))
    if folder is not None and folder.exists() and not empty:
        raise InputError(
            "the folder to write must not exist yet, or be empty",
            got=f"{folder}, which is not",
            remedy="choose another folder, or remove this one first",
        )
    for path in outputs.paths:
        if path.exists() and os.path.exists(video.source) and path.samefile(video.source):
            raise InputError(
                "the output must not be the video itself",
                got=str(path),
                remedy="choose another name: the video would be overwritten",
            )
        if path != folder and path.is_dir():
            raise InputError(
                "the output must be a file name",
                got=f"the folder {path}",
                remedy="add a file name",
            )
        above = path.absolute().parent
        while not os.path.exists(above):
            above = above.parent
        if not (above.is_dir() and os.access(above, os.W_OK | os.X_OK)):
            raise InputError(
                "the folder of the output must be writable",
                got=f"{path}: {above} is not",
                remedy="choose an output folder you may write to",
            )


def _stream(
    video: Video,
    outputs: Outputs,
    segmenter: VideoSegmenter,
    report: Callable[[int, int], None],
) -> int:
    times: dict[int, Frame] = {}

    def kept() -> Iterator[object]:
        for frame in video.frames():
            times[frame.index] = frame
            yield frame.pixels

    found = segmenter(kept())
    first = next(found)
    n = 0
    failed: DiffusegError | None = None
    rest = chain_up([first], found)
    with together(_writers(outputs, video, first.names)) as add:
        while True:
            try:
                one = next(rest, None)
            except DiffusegError as error:
                failed, one = error, None
            if one is None:
                break
            add(times.pop(one.index), one.labels)
            n += 1
            report(n, 0)
    if failed is not None:
        raise failed
    return n


def _writers(
    outputs: Outputs, video: Video, names: Sequence[str]
) -> list[AbstractContextManager[Add]]:
    writers: list[AbstractContextManager[Add]] = []
    if outputs.overlay is not None:
        writers.append(overlay_video(outputs.overlay, video, names))
    if outputs.masks is not None:
        writers.append(mask_video(outputs.masks, video))
    if outputs.pictures is not None:
        writers.append(png_sequence(outputs.pictures))
    if outputs.tracks is not None:
        writers.append(track_file(outputs.tracks, video, names))
    return writers


def _key(video: Video, segmenter: VideoSegmenter) -> str:
    """Of everything labels depend on."""
    named = segmenter.named
    mask = None if named.mask is None else hashlib.sha256(named.mask.numpy().tobytes()).hexdigest()
    held = [
        source_stamp(video.source), model_name(segmenter.model), asdict(segmenter.settings),
        segmenter.anchor, segmenter.looks, named.names, mask, repr(named.find and (
            model_name(named.find.model), named.find.method, named.find.class_filter)),
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(held, default=str).encode()).hexdigest()


def _state(chain: Chain) -> Mapping[str, np.ndarray]:
    held = {name: getattr(chain.model, name) for name in _TENSORS}
    state = {name: one.cpu().numpy() for name, one in held.items() if isinstance(one, Tensor)}
    return {
        **state,
        "updates": np.array(chain.model.updates),
        "values": np.array(chain.values),
        "names": np.array(chain.names),
    }


def _chain(segmenter: VideoSegmenter, state: Mapping[str, np.ndarray]) -> Chain:
    settings, device = segmenter.settings, segmenter.model.device
    model = ContextModel(
        classifier=settings.classifier or "knn",
        neighbours=settings.neighbours or 4,
        memory=settings.memory or 0,
        seed=settings.seed or 0,
    )
    tensors = {name: torch.from_numpy(state[name]).to(device) for name in _TENSORS if name in state}
    return Chain(
        model=replace(model, **tensors, updates=int(state["updates"])),
        values=tuple(state["values"].tolist()),
        names=tuple(state["names"].tolist()),
    )
