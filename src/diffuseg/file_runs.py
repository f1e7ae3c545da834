"""Many files through a segmenter: batches, a journal to resume by, one bad file stops no other."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from importlib import metadata
from pathlib import Path

from diffuseg.api import Segmenter, model_name
from diffuseg.errors import DiffusegError
from diffuseg.image import Image, read_image
from diffuseg.journal import extend_journal, read_journal, write_journal
from diffuseg.methods import method_name
from diffuseg.result import Segmentation

JOURNAL = ".diffuseg.jsonl"
"""In an output folder: what has been done, from which files, with which settings."""


@dataclass(frozen=True, slots=True)
class Input:
    """An image file, and the path of its results without suffix, relative to the output folder."""

    path: Path
    stem: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of one image.

    Attributes:
        path: The image.
        outputs: Files written, or found from an earlier run.
        segmentation: The result; None if the image was skipped or failed.
        error: What was wrong with it.
        skipped: Whether an earlier run had done it.
    """

    path: Path
    outputs: tuple[Path, ...] = ()
    segmentation: Segmentation | None = None
    error: DiffusegError | None = None
    skipped: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What is done with every file of a run.

    Attributes:
        settings: A key of everything the results depend on, beside the file; see `settings_key`.
        segment: Several images to their results. May raise for one of them: they are then tried
            one by one.
        outputs: The files an input leads to.
        write: Writes the result of an input and its image, all files or none, and returns them.
        facts: What else an input's results depend on, plain JSON values.
    """

    settings: str
    segment: Callable[[Sequence[Input], Sequence[Image]], Sequence[Segmentation]]
    outputs: Callable[[Input], tuple[Path, ...]]
    write: Callable[[Segmentation, Input, Image], tuple[Path, ...]]
    facts: Callable[[Input], Mapping[str, object]] = lambda _: {}


def run_files(
    inputs: Sequence[Input], out: Path, work: Work, *, resume: bool, batch_size: int
) -> Iterator[Outcome]:
    """Do the work on files and yield what became of each, in order.

    Args:
        inputs: The files.
        out: The output folder, where the journal is kept.
        work: What is done.
        resume: Skip files whose results are there, from the same file with the same settings.
        batch_size: Images at a time.
    """
    if not inputs:
        return
    journal = out / JOURNAL
    rows = read_journal(journal)
    if journal.exists():
        write_journal(journal, rows)  # without the line a killed run may have left unfinished
    done = {row.get("stem"): row for row in rows} if resume else {}
    for start in range(0, len(inputs), batch_size):
        batch = inputs[start : start + batch_size]
        outcomes: dict[Input, Outcome] = {}
        images: dict[Input, Image] = {}
        stamps: dict[Input, dict[str, object]] = {}
        for one in batch:
            try:
                stamps[one] = {"settings": work.settings, "file": _file_stamp(one.path)}
                stamps[one] |= json.loads(json.dumps(dict(work.facts(one))))
                outputs = work.outputs(one)
                row = done.get(one.stem, {})
                same = all(row.get(key) == value for key, value in stamps[one].items())
                if same and all(path.exists() for path in outputs):
                    outcomes[one] = Outcome(path=one.path, outputs=outputs, skipped=True)
                    continue
                images[one] = read_image(one.path)
            except DiffusegError as error:
                outcomes[one] = Outcome(path=one.path, error=error)
        for one, result in _segment_batch(work, images):
            if isinstance(result, DiffusegError):
                outcomes[one] = Outcome(path=one.path, error=result)
                continue
            try:
                outputs = work.write(result, one, images[one])
            except DiffusegError as error:
                outcomes[one] = Outcome(path=one.path, error=error)
                continue
            extend_journal(journal, [{"stem": one.stem, **stamps[one]}])
            outcomes[one] = Outcome(path=one.path, outputs=outputs, segmentation=result)
        yield from (outcomes[one] for one in batch)


def settings_key(segmenter: Segmenter, **more: object) -> str:
    """Return a short key of a segmenter's settings, of the weights' names and of the version.

    Args:
        segmenter: The segmenter.
        more: What else the results depend on.
    """
    method = segmenter.method
    settings = {
        "model": model_name(segmenter.model),
        "preset": dict(segmenter.model.preset),
        "method": method_name(method),
        "settings": asdict(method) if is_dataclass(method) else repr(method),  # type: ignore[arg-type]
        "classes": [one.words for one in segmenter.classes or ()],
        "caption": segmenter.caption and segmenter.caption.text,
        "filter": repr(segmenter.class_filter),
        "captioner": str(getattr(segmenter.captioner, "name", segmenter.captioner)),
        "seed": segmenter.seed,
        "size": [segmenter.size, segmenter.fit],
        "scores": segmenter.keep_scores,
        "version": metadata.version("diffuseg"),
        **more,
    }
    text = json.dumps(settings, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _segment_batch(
    work: Work, images: dict[Input, Image]
) -> Iterator[tuple[Input, Segmentation | DiffusegError]]:
    if not images:
        return
    try:
        results = work.segment(list(images), list(images.values()))
    except DiffusegError:
        # One by one, to learn which it is and to keep the others.
        for one, image in images.items():
            try:
                yield one, work.segment([one], [image])[0]
            except DiffusegError as error:
                yield one, error
        return
    yield from zip(images, results, strict=True)


def _file_stamp(path: Path) -> list[int] | None:
    try:
        held = path.stat()
    except OSError:
        return None
    return [held.st_size, held.st_mtime_ns]
