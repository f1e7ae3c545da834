"""One pass over a data set before anything is learned: what pictures show, and whether all is well.

What is wrong with the last of 100 000 masks should not be found after a night of training.
"""

import hashlib
import json
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool

from diffuseg.errors import DiffusegError, InputError
from diffuseg.files import atomic_path
from diffuseg.train.data import Progress
from diffuseg.train.segdiffusion.pictures import (
    IGNORE,
    KeptPictures,
    LabelledPictures,
    count_labels,
)

_TOLD = ("split", "seed", "root")  # what a data set may say of itself beside


@runtime_checkable
class _Files(Protocol):
    @property
    def fingerprint(self) -> str: ...


def data_key(pictures: LabelledPictures) -> str:
    """A data set in a few letters, as far as can be told without reading it."""
    told = {name: str(getattr(pictures, name, None)) for name in _TOLD}
    # Two folders may hold as many pictures of the same classes.
    told |= {"files": pictures.fingerprint} if isinstance(pictures, _Files) else {}
    facts = [pictures.name, list(pictures.classes), pictures.ignore, len(pictures), told]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:12]


def index_pictures(
    kept: KeptPictures, *, cache: Path | None = None, progress: Progress | None = None
) -> Bool[np.ndarray, "n k"]:
    """Read every picture once, and return which classes each shows.

    Args:
        kept: The pictures.
        cache: A folder; what was found is kept there, and a data set of the same name, part,
            classes and length is not read again.
        progress: Told (done, all).

    Raises:
        InputError: There is no picture or no class, there are more classes than labels, a picture
            cannot be read, a label is unknown or sizes differ, or no pixel has a class.

    Example:
        >>> index_pictures(KeptPictures(dataset)).any(0)  # doctest: +SKIP
        array([ True,  True,  True])
    """
    pictures = kept.pictures
    count, classes = len(pictures), pictures.classes
    if not count or not classes:
        raise InputError(
            "there must be pictures and classes to learn from",
            got=f"{count} pictures of {len(classes)} classes in {kept.name}",
            remedy="check the folder of the data set",
        )
    if len(classes) > IGNORE:
        raise InputError(
            f"there can be {IGNORE} classes at most",
            got=f"{len(classes)} in {kept.name}",
            remedy="leave out the rarest",
        )
    path = None if cache is None else cache / f"index-{data_key(pictures)}.npy"
    if path is not None and path.is_file():
        return np.load(path, allow_pickle=False)
    shown = np.zeros((count, len(classes)), dtype=bool)
    for number in range(count):
        shown[number, list(count_labels(_read(kept, number).labels))] = True
        if progress is not None:
            progress(number + 1, count)
    if not shown.any():
        raise InputError(
            "a pixel must have a class",
            got=f"only unknown ones in the {count} pictures of {kept.name}",
            remedy="check the values in the masks, and that they lie beside their pictures",
        )
    if path is not None:
        with atomic_path(path) as temporary:
            np.save(temporary, shown)
    return shown


def _read(kept: KeptPictures, number: int):
    try:
        return kept[number]
    except DiffusegError:
        raise
    except (OSError, ValueError, SyntaxError) as error:
        raise InputError(
            f"every picture of {kept.name} must have a mask, and both be readable",
            got=f"picture {number}: {error}",
            remedy="mend it or take it out",
        ) from error
