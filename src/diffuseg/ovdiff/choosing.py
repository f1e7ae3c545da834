"""Which classes of a vocabulary a picture is compared with: those CLIP sees, and all stuff."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from diffuseg.backbones.clip import Clip
from diffuseg.methods.ovdiff.prefilter import Rule, Subset, best_subset, first_stage, prompt_of
from diffuseg.ovdiff.extractors import Picture, lanczos

# Sides of the two steps in which the authors shrink pictures, relative to what CLIP sees: 512, 224.
_BETWEEN = 512 / 224

# Texts whose embeddings are kept: of 512 numbers each, 40 MB.
_KEPT = 20_000


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Prefilter:
    """Chooses classes by texts about one ("a dog") and about several ("a dog and a cat").

    Stuff is not asked about: it always stays.

    Attributes:
        clip: What pictures and texts are compared by.
        rule: As in `OVDiff.prefilter`.
        candidates: How many classes at most are combined.
    """

    clip: Clip
    rule: Rule
    candidates: int
    # The same few combinations come again and again.
    _texts: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False)

    def __call__(
        self, pictures: Sequence[Picture], names: Sequence[str], stuff: Sequence[bool]
    ) -> list[list[int]]:
        """Return the numbers of the classes that stay, ascending, for each picture.

        Args:
            pictures: Of any sizes.
            names: Of all classes, as texts have them.
            stuff: Which of them are stuff.

        Raises:
            InputError: CLIP cannot know a name.
        """
        asked = [number for number, is_so in enumerate(stuff) if not is_so]
        always = [number for number, is_so in enumerate(stuff) if is_so]
        if not asked:
            return [list(always) for _ in pictures]
        single = self._embed([prompt_of([names[one]]) for one in asked])
        found: list[list[int]] = []
        for image in self._see(pictures):
            left = first_stage(image, single, self.rule, self.candidates)
            best = best_subset(image, lambda subsets: self._about(subsets, names, asked), left)
            found.append(sorted([*always, *(asked[one] for one in best)]))
        return found

    def _about(
        self, subsets: Sequence[Subset], names: Sequence[str], asked: Sequence[int]
    ) -> Float[Tensor, "m d"]:
        return self._embed([prompt_of([names[asked[one]] for one in each]) for each in subsets])

    def _embed(self, texts: Sequence[str]) -> Float[Tensor, "m d"]:
        unknown = [text for text in dict.fromkeys(texts) if text not in self._texts]
        if len(self._texts) + len(unknown) > _KEPT:
            self._texts.clear()
            unknown = list(dict.fromkeys(texts))
        if unknown:
            vectors = self.clip.embed_texts(unknown, cut=True).cpu()
            self._texts.update(zip(unknown, vectors, strict=True))
        return torch.stack([self._texts[text] for text in texts])

    def _see(self, pictures: Sequence[Picture]) -> Float[Tensor, "b d"]:
        between = round(self.clip.size * _BETWEEN)
        planes = [
            torch.from_numpy(lanczos(one, (between, between)).copy()).permute(2, 0, 1)
            for one in pictures
        ]
        side = self.clip.size
        # Not smoothed, as the authors have it: figures depend on it.
        seen = F.interpolate(torch.stack(planes).float() / 255, size=(side, side), mode="bilinear")
        return self.clip.embed_pixels(seen).cpu()
