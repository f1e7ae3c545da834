"""What pictures are compared by: grids of feature vectors of frozen networks.

Karazija and others (2023), section 3.3: queries of a diffusion model's cross-attention, keys of
vision transformers, keys or tokens of CLIP's image tower. All take 8-bit pictures, several of one
size at once, and give float32; a picture's features do not depend on its neighbours.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol, runtime_checkable

import numpy as np
import PIL.Image
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from diffuseg import ops
from diffuseg.attention import layers_of, record
from diffuseg.attention.layers import LayerId, select_layers
from diffuseg.backbones import Diffusion, Features, seeded_noise
from diffuseg.backbones.clip import Clip, Dense
from diffuseg.errors import InputError
from diffuseg.methods.ovdiff import OVDiff
from diffuseg.methods.ovdiff.features import join_queries
from diffuseg.methods.ovdiff.maskcut import mask_cut
from diffuseg.methods.settings import given
from diffuseg.models import find_clip, find_vit
from diffuseg.ovdiff.fingerprint import fingerprint

MAE = "facebook/vit-mae-base"
"""What "mae" is where nobody says."""

_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_OPENAI = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))

# A bank's pictures beside windows: 512 where these are 448.
_SUPPORT = 512 / 448
_LONGEST = 800 / 448  # sides of a window

# Pictures that go through a network at once.
_BATCH = 8

Picture = UInt8[np.ndarray, "_ _ 3"]
Proposer = Callable[[Sequence[Picture]], list[Bool[Tensor, "r H W"]]]
"""Pictures to masks of what might be a thing in each of them; possibly none."""


@runtime_checkable
class Extractor(Protocol):
    """Pictures to grids of feature vectors.

    Attributes:
        name: As in `OVDiff.extractors`.
        identity: All that features of a bank's pictures depend on beside the picture and the
            diffusion model, plain JSON values.
    """

    @property
    def name(self) -> str: ...
    @property
    def identity(self) -> dict[str, object]: ...

    def __call__(
        self, pictures: Sequence[Picture], *, support: bool = False
    ) -> Float[Tensor, "b gh gw d"]:
        """Features of pictures of one size; `support`: of those a bank is built from."""
        ...


def find_extractors(model: Diffusion, settings: OVDiff) -> dict[str, Extractor]:
    """Return the extractors that settings name, in their order, networks loaded.

    Args:
        model: Which draws the pictures, and whose companions "dino" and "clip" are by default.
        settings: Ready ones.

    Raises:
        InputError: A layer or timestep that a network does not have.
        WeightsError: A network is not to be had.

    Example:
        >>> import diffuseg as ds  # doctest: +SKIP
        >>> find_extractors(ds.load("mini"), OVDiff().ready())["sd"].name  # doctest: +SKIP
        'sd'
    """
    found: dict[str, Extractor] = {}
    for name in given(settings.extractors):
        if name == "sd":
            found[name] = _queries(model, settings)
        elif name in ("clip", "clip-tokens"):
            what: Dense = "keys" if name == "clip" else "tokens"
            clip = find_clip(settings.clip, model)
            layer = given(settings.clip_layer)
            zoom = given(settings.clip_zoom)
            found[name] = ClipFeatures(name=name, clip=clip, what=what, layer=layer, zoom=zoom)
        else:
            whose = settings.dino if name == "dino" else settings.mae or MAE
            layer = given(settings.vit_layer)
            # 512 for a picture of 448 where positions were learned at 224, as their ratio is.
            side = given(settings.side) if name == "dino" else None
            vit = find_vit(whose, model)
            zoom = given(settings.vit_zoom)
            found[name] = VitKeys(name=name, vit=vit, layer=layer, side=side, zoom=zoom)
    return found


def find_proposer(model: Diffusion, settings: OVDiff) -> Proposer:
    """Return what proposes masks: MaskCut on keys of a ViT, or, for "none", nothing at all.

    Args:
        model: Whose ViT is taken by default.
        settings: Ready ones.

    Raises:
        InputError: A layer that the ViT does not have, or proposals that are given elsewhere.
        WeightsError: The ViT is not to be had.
    """
    if given(settings.proposals) == "none":
        return lambda pictures: [
            torch.zeros(0, *one.shape[:2], dtype=torch.bool) for one in pictures
        ]
    if settings.proposals == "given":
        raise InputError(
            "the proposals of such a bank come from a function of yours",
            got="no function",
            remedy='pass proposer= to build_bank, or use proposals="maskcut"',
        )
    return MaskCut(vit=find_vit(settings.dino, model), settings=settings)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DiffusionQueries:
    """Queries of cross-attention, at a little noise, with the empty prompt.

    The noise is the same for every picture (the authors' depends on their order), and the mean of
    the encoder is taken, not a sample of it.

    Attributes:
        model: The diffusion model.
        layers: Whose queries.
        size: Side of the square that pictures are brought to.
        timestep: Level of the noise.
        seed: Of the noise.
    """

    model: Diffusion
    layers: tuple[LayerId, ...]
    size: int
    timestep: int
    seed: int
    name: str = field(default="sd", init=False)

    @property
    def identity(self) -> dict[str, object]:
        """What a bank made with this is known by."""
        # The model itself is in the recipe of a bank already.
        return {
            "layers": [layer.name for layer in self.layers],
            "size": self.size,
            "timestep": self.timestep,
            "noise_seed": self.seed,
        }

    @torch.no_grad()
    def __call__(
        self, pictures: Sequence[Picture], *, support: bool = False
    ) -> Float[Tensor, "b gh gw d"]:
        """Features of pictures, on the finest grid of the layers."""
        text = self.model.embed("")
        parts: list[Tensor] = []
        for pixels in _brought(pictures, (self.size, self.size)).split(_BATCH):
            latents = self.model.encode(pixels)
            channels, height, width = latents.shape[1:]
            noise = seeded_noise((channels, height, width), self.seed).to(latents)
            noisy = self.model.add_noise(latents, self.timestep, noise)
            names = tuple(layer.name for layer in self.layers)
            recorder = record(self.model, layers=names, kinds="cross", device=None, early_exit=True)
            with recorder as held:
                recorder.run(partial(self.model.denoise, noisy, self.timestep, text))
            queries = [ops.merge_heads(held.queries(layer)) for layer in self.layers]  # [b, n, d]
            grids = [held.grid(layer) for layer in self.layers]
            parts.append(join_queries(queries, grids, max(max(grids))))
        return torch.cat(parts)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class VitKeys:
    """Keys of a vision transformer.

    Attributes:
        name: "dino" or "mae".
        vit: The network.
        layer: Whose keys.
        side: Shorter side of a whole picture before windows are cut from it. Windows then keep
            their scale, the picture's shorter side being `zoom` times what positions were learned
            at. None: windows are brought to a square of that side.
        zoom: 2 for 448 where positions were learned at 224.
    """

    name: str
    vit: Features
    layer: int
    side: int | None
    zoom: float = 2.0

    @property
    def identity(self) -> dict[str, object]:
        """What a bank made with this is known by."""
        return {**_vit_identity(self.vit, self.layer), "zoom": self.zoom}

    def __call__(
        self, pictures: Sequence[Picture], *, support: bool = False
    ) -> Float[Tensor, "b gh gw d"]:
        """Features of pictures, a vector a patch."""
        pixels = _brought(pictures, self._hw(_hw_of(pictures), support))
        parts = [self.vit.features(part, "keys", layer=self.layer) for part in pixels.split(_BATCH)]
        return torch.cat(parts)

    def _hw(self, hw: tuple[int, int], support: bool) -> tuple[int, int]:
        patch, wanted = self.vit.patch, self.vit.size * self.zoom
        if self.side is None:
            whole = _whole(wanted, patch)
            return whole, whole
        if support:
            # Such pictures are squares of the diffusion model's size.
            scale = wanted * _SUPPORT / min(hw)
        else:
            scale = wanted / self.side
            scale = min(scale, wanted / min(hw), wanted * _LONGEST / max(hw))
        return _whole(hw[0] * scale, patch), _whole(hw[1] * scale, patch)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ClipFeatures:
    """Keys, or the output, of a layer of CLIP's image tower.

    Pixels have ImageNet's statistics where a tower was taught with OpenAI's, as the authors' code
    has it, paper and all; a tower taught with others sees its own.

    Attributes:
        name: "clip" or "clip-tokens".
        clip: The pair.
        what: "keys" or "tokens".
        layer: Of the image tower.
        zoom: How much larger windows are seen than what its positions were learned at.
    """

    name: str
    clip: Clip
    what: Dense
    layer: int
    zoom: float = 2.0

    @property
    def identity(self) -> dict[str, object]:
        """What a bank made with this is known by."""
        return {
            "weights": fingerprint(self.clip.model.vision_model),
            "what": self.what,
            "layer": self.layer,
            "zoom": self.zoom,
            "statistics": [list(one) for one in self._statistics],
        }

    @property
    def _statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        own = self.clip.statistics
        return _IMAGENET if np.allclose(own, _OPENAI, atol=1e-4) else own

    def __call__(
        self, pictures: Sequence[Picture], *, support: bool = False
    ) -> Float[Tensor, "b gh gw d"]:
        """Features of pictures, a vector a patch."""
        scale = self.zoom * (_SUPPORT if support else 1.0)
        side = _whole(self.clip.size * scale, self.clip.patch)
        parts = [
            self.clip.features(part, self.what, layer=self.layer, statistics=self._statistics)
            for part in _brought(pictures, (side, side)).split(_BATCH)
        ]
        return torch.cat(parts)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MaskCut:
    """Proposals by normalised cuts of a ViT's keys.

    Attributes:
        vit: The network.
        settings: Ready ones.
    """

    vit: Features
    settings: OVDiff

    @property
    def identity(self) -> dict[str, object]:
        """What a bank made with this is known by, beside the settings."""
        return _vit_identity(self.vit, given(self.settings.vit_layer))

    def __call__(self, pictures: Sequence[Picture]) -> list[Bool[Tensor, "r H W"]]:
        """Masks for pictures of one size, at that size."""
        side = _whole(float(given(self.settings.cut_size)), self.vit.patch)
        layer, size = given(self.settings.vit_layer), _hw_of(pictures)
        keys = [
            grid
            for part in _brought(pictures, (side, side)).split(_BATCH)
            for grid in self.vit.features(part, "keys", layer=layer).cpu()
        ]
        cut = partial(
            mask_cut,
            threshold=given(self.settings.cut_threshold),
            number=given(self.settings.cuts),
            size=size,
        )
        return [cut(one) for one in keys]


def _queries(model: Diffusion, settings: OVDiff) -> DiffusionQueries:
    chosen = select_layers(layers_of(model), names=given(settings.layers), kinds=("cross",))
    timestep = given(settings.timestep)
    if timestep >= model.timesteps:
        raise InputError(
            f"the timestep must be one of the model's {model.timesteps}",
            got=timestep,
            remedy="use 200, the paper's",
        )
    return DiffusionQueries(
        model=model,
        layers=chosen,
        size=settings.size or model.size,
        timestep=timestep,
        seed=given(settings.noise_seed),
    )


def _vit_identity(vit: Features, layer: int) -> dict[str, object]:
    return {
        "weights": fingerprint(getattr(vit, "model")),  # noqa: B009
        "layer": layer,
        "statistics": [list(getattr(vit, name, ())) for name in ("mean", "std")],
    }


def _whole(side: float, patch: int) -> int:
    """The nearest side of whole patches."""
    return max(1, round(side / patch)) * patch


def _hw_of(pictures: Sequence[Picture]) -> tuple[int, int]:
    sizes = {one.shape[:2] for one in pictures}
    if len(sizes) != 1:
        raise InputError(
            "pictures that are looked at together must be one or more of one size",
            got=", ".join(f"{h}x{w}" for h, w in sorted(sizes)) or "none",
            remedy="look at them one by one",
        )
    return sizes.pop()


def _brought(pictures: Sequence[Picture], hw: tuple[int, int]) -> Float[Tensor, "b 3 h w"]:
    """Pictures at a height and width, by Lanczos where they have another, in [0, 1]."""
    seen = [lanczos(one, hw) for one in pictures]
    if not seen:
        raise InputError("there must be a picture", got="none", remedy="pass one or more")
    return torch.from_numpy(np.stack(seen)).permute(0, 3, 1, 2).float().div_(255)


def lanczos(picture: Picture, hw: tuple[int, int]) -> Picture:
    """Return a picture at a height and width.

    Example:
        >>> lanczos(np.zeros((8, 8, 3), np.uint8), (4, 6)).shape
        (4, 6, 3)
    """
    if picture.shape[:2] == hw:
        return picture
    whole = PIL.Image.fromarray(picture)
    return np.asarray(whole.resize((hw[1], hw[0]), PIL.Image.Resampling.LANCZOS))
