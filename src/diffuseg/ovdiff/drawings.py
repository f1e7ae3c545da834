"""Pictures kept as they were drawn, so that other banks of the same pictures need not draw again.

Drawing is nearly all of a bank's cost. Masks, features and prototypes can be made anew from what
lies here: `Supports`, a file a class.
"""

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffuseg.files import atomic_path
from diffuseg.methods.ovdiff import OVDiff
from diffuseg.methods.settings import given
from diffuseg.ovdiff.recipe import FORMAT, drawn_with
from diffuseg.ovdiff.stock import stem_of
from diffuseg.ovdiff.supports import Progress, Supports, draw_supports
from diffuseg.prompts import ClassName

log = logging.getLogger(__name__)

_NUMBER = "number"


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawings:
    """A folder of support sets, for any number of models and settings.

    A file is for one class, model and way of drawing. Of more pictures than are asked for, the
    first are taken: picture i is the same however many are drawn.

    Attributes:
        path: The folder; made when something is kept.

    Example:
        >>> Drawings(path=Path("no-such-folder")).find(
        ...     ClassName(name="car"), {"model": {}, "pictures": {"number": 2}}
        ... ) is None
        True
    """

    path: Path

    def find(self, wanted: ClassName, way: Mapping[str, Any]) -> Supports | None:
        """Return the pictures of a class, or None if they are not there, too few or damaged.

        Args:
            wanted: The class, in the words that are drawn.
            way: The recipe's sections of how pictures are drawn, see `drawn_with`.
        """
        from safetensors import SafetensorError, safe_open

        number = int(way["pictures"][_NUMBER])
        try:
            with safe_open(self._file(wanted, way), framework="pt") as held:
                told = held.metadata() or {}
                images = held.get_slice("images")
                if images.get_shape()[0] < number:
                    return None
                return Supports(
                    name=wanted.name,
                    prompt=told["prompt"],
                    images=images[:number].numpy(),
                    attribution=held.get_slice("attribution")[:number],
                )
        except FileNotFoundError:
            return None
        except (SafetensorError, OSError, KeyError) as error:
            log.warning("the kept pictures of %r are drawn again (%s)", wanted.name, error)
            return None

    def keep(self, supports: Supports, wanted: ClassName, way: Mapping[str, Any]) -> Path:
        """Write the pictures of a class; a file that was there is replaced as a whole."""
        import torch
        from safetensors.torch import save_file

        target = self._file(wanted, way)
        tensors = {
            "images": torch.from_numpy(supports.images).contiguous(),
            "attribution": supports.attribution.contiguous(),
        }
        with atomic_path(target) as temporary:
            save_file(tensors, temporary, metadata={"prompt": supports.prompt})
        return target

    def _file(self, wanted: ClassName, way: Mapping[str, Any]) -> Path:
        pictures = {name: value for name, value in way["pictures"].items() if name != _NUMBER}
        told = json.dumps([FORMAT, way["model"], pictures, wanted.words], sort_keys=True)
        digest = hashlib.sha256(told.encode()).hexdigest()[:16]
        return self.path / f"{stem_of(wanted.name)}.{digest}.safetensors"


def draw_or_find(
    model: Any,
    classes: Sequence[ClassName],
    settings: OVDiff,
    drawings: Drawings,
    *,
    batch_size: int = 8,
    progress: Progress | None = None,
) -> Iterator[Supports]:
    """Yield the support set of every class, drawing and keeping those that are not there.

    Args:
        model: Draws.
        classes: In the words that are drawn.
        settings: Ready, see `OVDiff.ready`.
        drawings: Where pictures are kept.
        batch_size: Pictures drawn at once.
        progress: Told (pictures there or drawn, pictures in all).

    Raises:
        InputError: As `draw_supports`.
    """
    way = drawn_with(model, settings)
    number = given(settings.number)
    total = number * len(classes)
    missing: list[ClassName] = []
    for one in classes:
        kept = drawings.find(one, way)
        if kept is None:
            missing.append(one)
        else:
            yield kept
    if not missing:
        return
    before = total - number * len(missing)
    words = {one.name: one for one in missing}
    tell = None if progress is None else lambda done, _: progress(before + done, total)
    for supports in draw_supports(model, missing, settings, batch_size=batch_size, progress=tell):
        drawings.keep(supports, words[supports.name], way)
        yield supports
