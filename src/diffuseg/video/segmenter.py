"""Videos segmented batch by batch: VidSeg and EmerDiff, with a model, on frames of any source.

Memory does not grow with the length: the last batch is held back, as only then is known whether the
next one is full; frames before the anchor are held until it has come.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Int32

from diffuseg.api import build_segmenter
from diffuseg.backbones import Diffusion, VideoDiffusion
from diffuseg.errors import DiffusegError, InputError
from diffuseg.methods.settings import given
from diffuseg.methods.vidseg import VidSeg
from diffuseg.methods.vidseg.batching import (
    Batch,
    batches,
    cluster_settings,
    label_batch,
    start_context,
)
from diffuseg.methods.vidseg.context import Clusters, ContextModel
from diffuseg.models import find_model, model_name
from diffuseg.prompts import parse_classes
from diffuseg.video.methods import VIDEO_METHODS, ready_for, word_reader
from diffuseg.video.naming import (
    Named,
    check_proportions,
    find_words,
    number_names,
    read_anchor,
    words_of_clusters,
)
from diffuseg.video.pixels import pixel_labels
from diffuseg.video.seeing import Pixels, Seen, look
from diffuseg.video.source import Source

log = logging.getLogger(__name__)

# Rows of latents in a call of the U-Net: 14 frames, both halves.
_ROWS = 28


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class VideoLabels:
    """One frame segmented.

    Attributes:
        index: Its place, from 0.
        labels: Of every pixel.
        names: Of every label, in order.
        pixels: The frame.
    """

    index: int
    labels: Int32[np.ndarray, "h w"]
    names: tuple[str, ...]
    pixels: Pixels


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Chain:
    """What the next batch starts from.

    Attributes:
        model: By which it is labelled.
        values: All labels there are.
        names: Theirs, and of labels that are not there.
    """

    model: ContextModel
    values: tuple[int, ...]
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Piece:
    """Frames that were segmented together; a later piece overwrites what it shares.

    Attributes:
        first: Index of the first.
        labels: Of each.
        frames: The pictures.
        chain: For the next piece.
    """

    first: int
    labels: list[Int32[np.ndarray, "h w"]]
    frames: list[Pixels]
    chain: Chain


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class VideoSegmenter:
    """A model, settings and what labels mean: frames in, labels out.

    Made by `open_video_segmenter`.

    Attributes:
        model: Stable Diffusion, or Stable Video Diffusion.
        settings: Ready for it.
        named: What it is told.
        anchor: Index of the frame it is told that of.
        looks: Frames of the anchor's batch in which words are looked for, the anchor among them.
        rows: Most rows of latents in a call of the U-Net.
        method: Name.
    """

    model: Any
    settings: VidSeg
    named: Named
    anchor: int = 0
    looks: int = 1
    rows: int = _ROWS
    method: str = "vidseg"

    def __call__(self, frames: object) -> Iterator[VideoLabels]:
        """Segment frames in order, see `segment_video`."""
        held: Piece | None = None
        failed: DiffusegError | None = None
        try:
            for piece in self.pieces(frames):
                if held is not None:
                    yield from _labelled(held, piece.first)
                held = piece
        except DiffusegError as error:
            failed = error
        if held is not None:
            yield from _labelled(held, held.first + len(held.labels))
        if failed is not None:
            raise failed

    def pieces(
        self, frames: object, *, done: int = 0, chain: Chain | None = None
    ) -> Iterator[Piece]:
        """Segment frames a piece at a time; the first goes from frame 0 to the anchor's batch.

        Args:
            frames: As for `segment_video`.
            done: Frames that need not be done again: the end of an earlier piece.
            chain: What that piece gave; the same pieces follow as did or would have then.

        Raises:
            InputError: Frames cannot be read, there are none, or their size changes. Pieces of all
                good frames come first.
        """
        size = given(self.settings.batch)
        begin = max(0, done - size) if chain is not None else 0
        source = Source(frames, begin)
        if chain is None:
            whole = (self.anchor // size + 1) * size
            held = source.take(whole + size)
            ended = len(held) < whole + size
            if ended and not 0 <= self.anchor < len(held):
                source.check()
                raise InputError(
                    "the anchor must be a frame of the video" if held else "a video has frames",
                    got=f"frame {self.anchor} of {len(held)}",
                    remedy="count frames from 0",
                )
            now = held if ended else held[:whole]
            piece = self._opening(now)
            yield piece
            chain, at = piece.chain, len(now)
            last, held = now[-size:], held[len(now) :]
        else:
            last, held, at = source.take(done - begin), [], done
        while new := held or source.take(size):
            # The last batch is moved back to be full.
            frames_now = [*last, *new][-size:]
            first = at + len(new) - len(frames_now)
            labels, chain = self._continued(frames_now, chain)
            at += len(new)
            yield Piece(first=first, labels=labels, frames=frames_now, chain=chain)
            last, held = frames_now, []
        source.check()

    def _opening(self, frames: list[Pixels]) -> Piece:
        """The frames up to the anchor's batch: from there back to the first."""
        labels: dict[int, Int32[np.ndarray, "h w"]] = {}
        plan = batches(len(frames), given(self.settings.batch), anchor=self.anchor)
        chains: list[Chain] = []
        for batch in plan:
            pixels = [frames[i] for i in batch.frames]
            if batch.after is None:
                found, chain = self._started(pixels, batch)
            else:
                found, chain = self._continued(pixels, chains[batch.after])
            chains.append(chain)
            labels |= {i: found[i - batch.frames.start] for i in batch.kept}
        onward = max(range(len(plan)), key=lambda number: plan[number].frames.stop)
        return Piece(
            first=0,
            labels=[labels[i] for i in range(len(frames))],
            frames=frames,
            chain=chains[onward],
        )

    def _started(
        self, frames: list[Pixels], batch: Batch
    ) -> tuple[list[Int32[np.ndarray, "h w"]], Chain]:
        """The anchor's batch."""
        settings, seen = self.settings, self._seen(frames)
        place, names = self.anchor - batch.frames.start, self.named.names
        mask, words, clusters = self.named.mask, None, None
        if mask is not None:
            check_proportions(mask.numpy(), (frames[0].shape[0], frames[0].shape[1]))
        clustered = settings.classifier == "centroids" or settings.naming == "text"
        if clustered:
            clusters = cluster_settings(settings, seen.features)
        if self.named.find is not None:
            places = _spread(len(frames), place, self.looks)
            cells, names = find_words(self.named, [frames[i] for i in places], seen.grid)
            mask = cells[0]
            if clusters is not None:
                words = words_of_clusters(clusters, places, cells)
        model = start_context(
            settings, seen.features, seen.grid, mask=mask, names=words, clusters=clusters,
            anchor=place,
        )  # fmt: skip
        chain = Chain(model=model, values=model.known, names=names)
        return self._finished(seen, frames, chain, clusters)

    def _continued(
        self, frames: list[Pixels], chain: Chain
    ) -> tuple[list[Int32[np.ndarray, "h w"]], Chain]:
        return self._finished(self._seen(frames), frames, chain)

    def _seen(self, frames: list[Pixels]) -> Seen:
        return look(self.model, self.settings, frames, rows=self.rows)

    def _finished(
        self, seen: Seen, frames: list[Pixels], chain: Chain, clusters: Clusters | None = None
    ) -> tuple[list[Int32[np.ndarray, "h w"]], Chain]:
        labelled = label_batch(
            self.settings, chain.model, seen.features, seen.grid, tracked=seen.tracked,
            clusters=clusters,
        )  # fmt: skip
        found = pixel_labels(
            self.model, self.settings, seen, labelled, frames, chain.values, rows=self.rows
        )
        return found, replace(chain, model=labelled.model)


def open_video_segmenter(
    model: object = None,
    settings: VidSeg | None = None,
    *,
    method: str = "vidseg",
    anchor: object = None,
    anchor_frame: int = 0,
    classes: object = None,
    clusters: int | None = None,
    namer: object = "attend",
    namer_model: object = None,
    class_filter: object = None,
    looks: int = 1,
    rows: int = _ROWS,
) -> VideoSegmenter:
    """Return a callable that segments videos; see `segment_video` for the arguments.

    Raises:
        InputError: Something named does not exist or does not fit.
        WeightsError: The model's weights are not to be had.

    Example:
        >>> find = open_video_segmenter("mini", clusters=6)  # doctest: +SKIP
        >>> for frame in find("in.mp4"):  # doctest: +SKIP
        ...     print(frame.index, frame.labels.shape)
    """
    if method not in VIDEO_METHODS:
        raise InputError(
            "the method must be one that segments videos",
            got=method,
            remedy=f"use one of {', '.join(VIDEO_METHODS)}",
        )
    told = [one is not None for one in (anchor, classes, clusters)]
    if sum(told) > 1:
        raise InputError(
            "labels come from a mask, from words, or from clusters alone",
            got="more than one of anchor, classes and clusters",
            remedy="choose one; their number with words or a mask is the setting clusters",
        )
    if looks < 1 or rows < 1 or anchor_frame < 0:
        raise InputError(
            "looks and rows must be 1 or more, the anchor's frame 0 or more",
            got=(looks, rows, anchor_frame),
            remedy="leave them out",
        )
    mask = None if anchor is None else read_anchor(anchor)
    if namer_model is not None and classes is None:
        raise InputError(
            "a model that finds words is for classes",
            got=str(namer_model),
            remedy="leave namer_model out, or give classes",
        )
    held: Diffusion | VideoDiffusion = find_model(model, backbone="video")
    chosen = ready_for(held, settings or VidSeg(), method, anchor, classes, clusters)
    find = None
    if classes is not None:
        reader = word_reader(held, namer_model)
        find = build_segmenter(reader, namer, classes, class_filter=class_filter)
        names = tuple(one.name for one in parse_classes(classes))
    elif mask is not None:
        names = number_names(mask)
    else:
        names = tuple(f"cluster {one}" for one in range(given(chosen.clusters)))
    log.info("model %s, method %s", model_name(held), method)
    return VideoSegmenter(
        model=held,
        settings=chosen,
        named=Named(names=names, mask=mask, find=find),
        anchor=anchor_frame,
        looks=looks,
        rows=rows,
        method=method,
    )


def segment_video(
    frames: object,
    model: object = None,
    *,
    settings: VidSeg | None = None,
    method: str = "vidseg",
    anchor: object = None,
    anchor_frame: int = 0,
    classes: object = None,
    clusters: int | None = None,
    namer: object = "attend",
    namer_model: object = None,
    class_filter: object = None,
    looks: int = 1,
    rows: int = _ROWS,
) -> Iterator[VideoLabels]:
    """Segment a video frame after frame; all of it is never held.

    Args:
        frames: A file, folder or address, see `open_video`; a `Video`; an array `f h w 3`; or
            anything that yields pictures, of which all have one size.
        model: As for `segment`; Stable Diffusion 1.x or 2.x, Stable Video Diffusion ("svd"), "mini"
            or "mini-svd".
        settings: Of VidSeg. What is left open comes from the method, the model's preset, the paper.
        method: "vidseg", or "emerdiff": every frame by itself.
        anchor: Labels of one frame: an array, or a PNG with a number for every pixel. Any size.
        anchor_frame: Which frame; those before it are held until it has come.
        classes: Instead: words, found in the anchor's frame by `namer`.
        clusters: Instead: how many parts without names. What is done if nothing is given.
        namer: A method of images that looks for words.
        namer_model: What it runs on; the model itself by default, unless that reads no words.
        class_filter: What says which of the classes are there, as for `segment`.
        looks: Frames of the anchor's batch in which words are looked for.
        rows: Most rows of latents in a call of the U-Net; fewer need less memory.

    Yields:
        The frames with their labels, in order. With a mask labels are its own.

    Raises:
        InputError: A frame cannot be read, after all that could; an argument does not fit.
        WeightsError: The model's weights are not to be had.

    Example:
        >>> for one in segment_video("in.mp4", "mini", classes="ball, grass"):  # doctest: +SKIP
        ...     print(one.index, one.names)
    """
    find = open_video_segmenter(
        model,
        settings,
        method=method,
        anchor=anchor,
        anchor_frame=anchor_frame,
        classes=classes,
        clusters=clusters,
        namer=namer,
        namer_model=namer_model,
        class_filter=class_filter,
        looks=looks,
        rows=rows,
    )
    return find(frames)


def _labelled(piece: Piece, end: int) -> Iterator[VideoLabels]:
    """The frames of a piece that no later one has."""
    for place, (labels, pixels) in enumerate(zip(piece.labels, piece.frames, strict=True)):
        if (index := piece.first + place) < end:
            yield VideoLabels(index=index, labels=labels, names=piece.chain.names, pixels=pixels)


def _spread(count: int, place: int, looks: int) -> list[int]:
    """A frame, and others evenly over the batch."""
    others = np.linspace(0, count - 1, min(looks, count)).round().astype(int).tolist()
    kept = [one for one in dict.fromkeys(others) if one != place]
    return [place, *kept[: looks - 1]]
