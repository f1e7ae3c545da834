"""Images cut into regions without classes by several people: BSDS500."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int32, Integer

from diffuseg.errors import InputError
from diffuseg.eval.dataset_facts import find_facts
from diffuseg.eval.image_files import ImageFiles, check_sizes, need_files, read_picture, read_values
from diffuseg.eval.image_lists import by_stem, first_folder, first_items, inside
from diffuseg.eval.video_files import missing, need_folder
from diffuseg.image import Image


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RegionSample:
    """One picture and how people cut it.

    Attributes:
        id: Names it within the data set.
        image: The picture.
        people: The region of every pixel, one map a person; numbers mean nothing beyond it.
        boundaries: Thin lines between them, one map a person, where the release stores them.
    """

    id: str
    image: Image
    people: tuple[Int32[np.ndarray, "h w"], ...]
    boundaries: tuple[Bool[np.ndarray, "h w"], ...] = ()


class Bsds500:
    """BSDS500: `BSDS500/data/images/SPLIT/ID.jpg` with `groundTruth/SPLIT/ID.mat`.

    Or, without MATLAB's files, `images/SPLIT/ID.jpg` with `gt/SPLIT/ID_PERSON.png`, 16-bit labels.

    Args:
        root: The folder, or one above it.
        split: "train", "val" or "test".
        limit: Only the first so many images.

    Raises:
        InputError: Something is missing.

    Example:
        >>> len(Bsds500("BSDS500")[0].people)  # doctest: +SKIP
        5
    """

    name = "bsds500"
    seed: int | None = None

    def __init__(
        self, root: str | os.PathLike[str], *, split: str = "test", limit: int | None = None
    ) -> None:
        facts = find_facts(self.name)
        folder = inside(Path(root), ("data", "BSDS500/data"), ("images",))
        pictures = need_folder(folder / "images" / split, facts.title, facts.layout)
        truth = first_folder(
            folder, (f"groundTruth/{split}", f"gt/{split}"), facts.title, facts.layout
        )
        self.split = split
        held = first_items(list(by_stem(pictures).items()), limit)
        people: dict[str, list[Path]] = {stem: [] for stem, _ in held}
        for path in sorted(truth.iterdir()):
            owner = path.stem if path.suffix == ".mat" else path.stem.rpartition("_")[0]
            if path.suffix in (".mat", ".png") and owner in people:
                people[owner].append(path)
        lacking = [stem for stem, found in people.items() if not found]
        if lacking or not held:
            got = f"none for {len(lacking)} of {len(held)}, the first {lacking[0]}" if held else ""
            raise missing(
                "a cut of every picture" if held else "pictures",
                got or f"none in {pictures}",
                f"complete {truth if held else pictures}",
            )
        self._people = people
        self.files = tuple(
            ImageFiles(id=stem, picture=path, mask=people[stem][0]) for stem, path in held
        )
        need_files(self.name, self.files)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> RegionSample:
        """Read a picture and all its cuts.

        Raises:
            IndexError: There is no such image.
            InputError: A file is damaged, or sizes differ.
        """
        if not 0 <= index < len(self.files):
            raise IndexError(index)
        held = self.files[index]
        pixels = read_picture(held.picture)
        cuts: list[Int32[np.ndarray, "h w"]] = []
        lines: list[Bool[np.ndarray, "h w"]] = []
        for path in self._people[held.id]:
            matlab = path.suffix == ".mat"
            found, drawn = _read_matlab(path) if matlab else ([read_values(path)], [])
            for one in [*found, *drawn]:
                own = ImageFiles(id=held.id, picture=held.picture, mask=path)
                check_sizes(own, (pixels.shape[0], pixels.shape[1]), (one.shape[0], one.shape[1]))
            cuts += [one.astype(np.int32) for one in found]
            lines += drawn
        return RegionSample(
            id=held.id,
            image=Image(pixels=pixels, source=held.picture.name),
            people=tuple(cuts),
            # Of some people only, they would not be these people's.
            boundaries=tuple(lines) if len(lines) == len(cuts) else (),
        )


def open_regions(
    name: str,
    root: str | os.PathLike[str],
    *,
    split: str | None = None,
    limit: int | None = None,
) -> Bsds500:
    """Return a data set of regions by name: "bsds500".

    Raises:
        InputError: Another data set, or its folder lacks something.

    Example:
        >>> open_regions("bsds500", "BSDS500").split  # doctest: +SKIP
        'test'
    """
    facts = find_facts(name, "images")
    if facts.name != Bsds500.name:
        raise InputError(
            "a data set of regions is asked for", got=name, remedy='use "bsds500", or open_dataset'
        )
    return Bsds500(root, split=split or facts.split, limit=limit)


def check_regions(regions: Bsds500, *, progress: Callable[[int, int], None] | None = None) -> None:
    """Read everything once.

    Raises:
        InputError: Some files are damaged or of different sizes; how many, and the first of them.
    """
    bad: list[str] = []
    for i in range(len(regions)):
        try:
            regions[i]
        except InputError as error:
            bad.append(str(error.got))
        if progress is not None:
            progress(i + 1, len(regions))
    if bad:
        raise InputError(
            f"every picture of {regions.name} must have cuts of its size",
            got=f"{len(bad)} of {len(regions)} are not right, the first: {bad[0]}",
            remedy="extract these files again",
        )


def _read_matlab(
    path: Path,
) -> tuple[list[Integer[np.ndarray, "h w"]], list[Bool[np.ndarray, "h w"]]]:
    """The cuts of one picture and their boundaries: a row of cells, each a struct of both."""
    from scipy.io import loadmat

    try:
        cells = loadmat(path, variable_names=["groundTruth"])["groundTruth"].ravel()
        cuts = [np.asarray(cell["Segmentation"][0, 0]).astype(np.int32) for cell in cells]
        stored = [cell for cell in cells if "Boundaries" in (cell.dtype.names or ())]
        lines = [np.asarray(cell["Boundaries"][0, 0]).astype(bool) for cell in stored]
    # A damaged file can raise almost anything.
    except Exception as error:
        raise InputError(
            "the cuts must be a MATLAB file with groundTruth",
            got=f"{path}: {error!r}",
            remedy="extract it again",
        ) from error
    return cuts, lines
