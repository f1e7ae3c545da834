"""Glue: one image, encoded once, in which things are selected click by click."""

import time
from collections.abc import Sequence
from dataclasses import replace

from diffuseg.asking import ask, read_words
from diffuseg.batch import Job, capture_batch
from diffuseg.errors import InputError
from diffuseg.image import Image, read_image
from diffuseg.methods.clicks import Clicks
from diffuseg.methods.interactive import Interactive, Prepared
from diffuseg.models import find_model
from diffuseg.result import Segmentation
from diffuseg.segmenter import seen_hw


class Interaction:
    """An image that has been shown to a model, ready to be pointed at.

    Made by `interact`. `segment` answers one question and remembers nothing; `add_point` and its
    like add to what has been pointed at so far, of which `result` is the answer.

    Attributes:
        image: The image.
        prepared: What selections are made from, whatever the user points at.
        seconds: How long the image took to be shown and prepared, by stage.
    """

    def __init__(self, image: Image, prepared: Prepared, seconds: dict[str, float]) -> None:
        self.image = image
        self.prepared = prepared
        self.seconds = seconds
        self._history: list[Clicks] = [Clicks()]

    def __repr__(self) -> str:
        return f"Interaction({self.image!r}, {len(self.clicks)} marks)"

    @property
    def clicks(self) -> Clicks:
        """What has been pointed at so far."""
        return self._history[-1]

    @property
    def result(self) -> Segmentation:
        """The answer to what has been pointed at so far.

        Raises:
            InputError: Nothing wanted has been pointed at yet.
        """
        return self.select(self.clicks)

    def segment(
        self,
        *,
        points: object = (),
        labels: object = None,
        boxes: object = (),
        lines: object = (),
        mask: object = (),
        negative_points: object = (),
        negative_boxes: object = (),
        negative_lines: object = (),
        negative_mask: object = (),
        keep_scores: bool = False,
    ) -> Segmentation:
        """Select what belongs to the places pointed at; what was added before does not count.

        All places are in pixels of the image, x (to the right) first. Single ones need no list.

        Args:
            points: (x, y) each.
            labels: For every point, 1 if it is wanted and 0 if not; None: all are wanted.
            boxes: (x0, y0, x1, y1) each, in any order of corners.
            lines: Sequences of points, joined by straight strokes.
            mask: An array of the image's height and width, not zero where the mask is; or several.
            negative_points: As `points`, not wanted; likewise the others.
            negative_boxes: As `boxes`.
            negative_lines: As `lines`.
            negative_mask: As `mask`.
            keep_scores: Whether the result carries the scores of both names.

        Returns:
            Labels at the image's own size, of the names "rest" (0) and "selected" (1).

        Raises:
            InputError: A place has another form or lies outside, or nothing is wanted.
        """
        clicks = Clicks.read(
            points=points,
            labels=labels,
            boxes=boxes,
            lines=lines,
            masks=mask,
            negative_points=negative_points,
            negative_boxes=negative_boxes,
            negative_lines=negative_lines,
            negative_masks=negative_mask,
        )
        return self.select(clicks, keep_scores=keep_scores)

    def select(self, clicks: Clicks, *, keep_scores: bool = False) -> Segmentation:
        """Select what belongs to marks; as `segment`."""
        start = time.perf_counter()
        found = self.prepared.select(clicks, scores=keep_scores)
        spent = {**self.seconds, "select": time.perf_counter() - start}
        rounded = {name: round(value, 6) for name, value in spent.items()}
        origin = replace(found.provenance, image=self.image.source, seconds=rounded)
        return replace(found, provenance=origin)

    def add_point(self, x: int | float, y: int | float, positive: bool = True) -> Segmentation:
        """Point at a pixel; return the new answer.

        Raises:
            InputError: It lies outside, or nothing wanted has been pointed at yet.
        """
        return self.add(Clicks.read(points=(x, y), labels=(int(positive),)))

    def add_box(
        self,
        x0: int | float,
        y0: int | float,
        x1: int | float,
        y1: int | float,
        positive: bool = True,
    ) -> Segmentation:
        """Draw a box by two opposite corners; return the new answer. As `add_point`."""
        box = (x0, y0, x1, y1)
        return self.add(Clicks.read(boxes=box) if positive else Clicks.read(negative_boxes=box))

    def add_line(
        self, points: Sequence[tuple[int | float, int | float]], positive: bool = True
    ) -> Segmentation:
        """Draw a line from point to point; return the new answer. As `add_point`."""
        line = [points]
        return self.add(Clicks.read(lines=line) if positive else Clicks.read(negative_lines=line))

    def add_mask(self, mask: object, positive: bool = True) -> Segmentation:
        """Lay a mask over the image; return the new answer. As `add_point`."""
        return self.add(Clicks.read(masks=mask) if positive else Clicks.read(negative_masks=mask))

    def add(self, clicks: Clicks) -> Segmentation:
        """Add marks; return the new answer. One that cannot be used is not added."""
        more = self.clicks + clicks
        found = self.select(more)
        self._history.append(more)
        return found

    def undo(self) -> None:
        """Take back what was added last; does nothing if there is nothing."""
        if len(self._history) > 1:
            self._history.pop()

    def reset(self) -> None:
        """Take back all that was added."""
        self._history = [Clicks()]


def interact(
    image: object,
    model: object = None,
    *,
    method: Interactive | None = None,
    classes: object = None,
    seed: int = 0,
    size: int | None = None,
    fit: str = "aspect",
) -> Interaction:
    """Show an image to a model once, so that things can be selected in it click by click.

    Args:
        image: A path, the bytes of a file, a Pillow image, a NumPy array or a torch tensor.
        model: As for `segment`.
        method: Settings of your own.
        classes: Words that are wanted besides what will be pointed at, as for `segment`.
        seed: Of the noise.
        size: Side of the square whose area the model sees; by default what it was trained at.
        fit: "aspect" keeps the image's proportions, "square" does not.

    Raises:
        InputError: The image or a class cannot be used, or there is no such model.
        WeightsError: The model's weights are not to be had.

    Example:
        >>> picture = interact("ball.png", "mini")  # doctest: +SKIP
        >>> picture.segment(points=[(40, 50)], negative_points=[(9, 9)])  # doctest: +SKIP
        Segmentation 256x256: rest 93.1 %, selected 6.9 % (mini (embedded), interactive)
        >>> picture.add_point(40, 50)["selected"].sum()  # doctest: +SKIP
        4521
    """
    if method is not None and not isinstance(method, Interactive):
        raise InputError(
            "what is pointed at is selected by the interactive method",
            got=repr(method),
            remedy="leave it out, or pass Interactive(...) with settings of your own",
        )
    start = time.perf_counter()
    held = read_image(image)
    read = time.perf_counter() - start
    chosen, words = method or Interactive(), read_words(classes)
    found = find_model(model)
    needs = chosen.needs(found, words=bool(words))
    job = Job(held, ask(found, needs, words), seen_hw(held, found, size, fit))
    [shot] = capture_batch([job], found, needs, seed)
    start = time.perf_counter()
    prepared = chosen.prepare(shot.record, held)
    seconds = {"read": read, **shot.seconds, "prepare": time.perf_counter() - start}
    return Interaction(held, prepared, seconds)
