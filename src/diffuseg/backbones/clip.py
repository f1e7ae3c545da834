"""CLIP: pictures and texts in one space, for naming what is seen and for judging pictures."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from diffuseg.backbones.companions import (
    check_known,
    find_companion,
    load_image_files,
    load_part,
    load_text_files,
    read_images,
)
from diffuseg.backbones.loading import pick_device, pick_dtype
from diffuseg.backbones.outputs import outputs_of
from diffuseg.errors import InputError
from diffuseg.image import Image
from diffuseg.prompts import ClassName, parse_classes

if TYPE_CHECKING:
    from transformers import CLIPModel, CLIPTextConfig, PreTrainedTokenizerBase
    from transformers.image_processing_utils import BaseImageProcessor
else:
    CLIPModel = nn.Module
    PreTrainedTokenizerBase = BaseImageProcessor = object

TEMPLATES: tuple[str, ...] = ("{}", "a {}", "a photo of a {}", "a picture of a {}", "there is a {}")
"""Prompts a name is put into; their embeddings are averaged (CLIP's paper, section 3.1.4)."""

Dense = Literal["keys", "tokens"]
"""Which vectors of a layer of the image tower; "tokens" are its output."""

_BATCH = 32


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Clip:
    """A frozen pair of towers.

    Attributes:
        name: As the user asked for it.
        source: Where the weights came from.
        model: transformers' `CLIPModel`.
        tokenizer: Of the text tower.
        processor: Brings pictures to the image tower's size and range.
        vocabulary: Every word it knows, where the list is closed.
    """

    name: str
    source: str
    model: CLIPModel
    tokenizer: PreTrainedTokenizerBase
    processor: BaseImageProcessor
    vocabulary: tuple[str, ...] | None = None

    @property
    def device(self) -> torch.device:
        """Where the towers are."""
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        """The towers' precision."""
        return self.model.dtype

    @property
    def context(self) -> int:
        """Longest text, in tokens with start and end."""
        text = cast("CLIPTextConfig", self.model.config.text_config)
        return int(text.max_position_embeddings)

    @property
    def patch(self) -> int:
        """Pixels a grid cell of the image tower."""
        return int(cast(Any, self.model.config.vision_config).patch_size)

    @property
    def size(self) -> int:
        """Pixels of the side its positions were learned at."""
        return int(cast(Any, self.model.config.vision_config).image_size)

    @property
    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and deviation of the pixels of a channel that the image tower was taught with."""
        held = cast(Any, self.processor)
        return tuple(map(float, held.image_mean)), tuple(map(float, held.image_std))

    def __repr__(self) -> str:
        return f"CLIP {self.name} from {self.source} ({self.dtype} on {self.device})"

    @torch.no_grad()
    def embed_images(self, images: object) -> Float[Tensor, "b d"]:
        """Unit vectors of pictures, float32.

        Args:
            images: One picture or several, of anything `diffuseg.image.read_image` takes.

        Raises:
            InputError: There is none, or one cannot be read.
        """
        rows = []
        for part in _batches(read_images(images)):
            pixels = self.processor([image.pixels for image in part], return_tensors="pt")
            values = pixels["pixel_values"].to(self.device, self.dtype)
            rows.append(_features(self.model.get_image_features(pixel_values=values)))
        return torch.cat(rows)

    @torch.no_grad()
    def embed_pixels(self, images: Float[Tensor, "b 3 s s"]) -> Float[Tensor, "b d"]:
        """Unit vectors of pictures brought to the image tower's size by the caller.

        Args:
            images: Pixels in [0, 1], sides of `size`.
        """
        mean, std = (
            torch.tensor(value, device=self.device)[:, None, None] for value in self.statistics
        )
        pixels = ((images.to(self.device).float() - mean) / std).to(self.dtype)
        rows = [
            _features(self.model.get_image_features(pixel_values=part))
            for part in pixels.split(_BATCH)
        ]
        return torch.cat(rows)

    @torch.no_grad()
    def embed_texts(self, texts: str | Sequence[str], *, cut: bool = False) -> Float[Tensor, "b d"]:
        """Unit vectors of texts, float32.

        Args:
            texts: One or several.
            cut: Whether texts that are too long are cut off.

        Raises:
            InputError: There is none, one is not text or too long, or has a word the model cannot
                know.
        """
        listed = [texts] if isinstance(texts, str) else list(texts)
        if not listed or not all(isinstance(text, str) and text.strip() for text in listed):
            raise InputError(
                "texts must be one or more strings that are not empty",
                got=texts,
                remedy='for example "a photo of a car"',
            )
        check_known(self.name, self.vocabulary, listed)
        most = {"truncation": True, "max_length": self.context} if cut else {}
        batch = self.tokenizer(listed, padding=True, return_tensors="pt", **most)
        ids: Int[Tensor, "b t"] = batch["input_ids"]
        if ids.shape[1] > self.context:
            lengths = batch["attention_mask"].sum(1)
            longest = listed[int(lengths.argmax())]
            raise InputError(
                f"a text may have at most {self.context} tokens",
                got=f"{int(lengths.max())} tokens: {longest!r}",
                remedy="shorten it",
            )
        rows = [
            _features(self.model.get_text_features(input_ids=part.to(self.device)))
            for part in ids.split(256)
        ]
        return torch.cat(rows)

    def embed_names(
        self, names: object, *, templates: Sequence[str] = TEMPLATES
    ) -> Float[Tensor, "k d"]:
        """Unit vectors of classes: the mean over all templates and synonyms, brought to length 1.

        Args:
            names: "car, tree", or a list whose items are names or tuples of synonyms.
            templates: Texts with one "{}" each.

        Raises:
            InputError: A template without "{}", or names that cannot be used.
        """
        return self._embed_classes(parse_classes(names), templates)

    def zero_shot(
        self, images: object, names: object, *, templates: Sequence[str] = TEMPLATES
    ) -> Float[Tensor, "b k"]:
        """Probabilities of the names for every picture: softmax of the scaled similarities.

        Args:
            images: One picture or several.
            names: As for `embed_names`.
            templates: As for `embed_names`.

        Raises:
            InputError: Images, names or templates cannot be used.

        Example:
            >>> clip = load_clip("mini")  # doctest: +SKIP
            >>> clip.zero_shot("scene.png", "car, tree").shape  # doctest: +SKIP
            torch.Size([1, 2])
        """
        told = self.embed_names(names, templates=templates)
        scale = self.model.logit_scale.detach().float().exp()
        return (scale * self.embed_images(images) @ told.T).softmax(dim=1)

    def score(
        self, image: object, names: object, *, templates: Sequence[str] = TEMPLATES
    ) -> dict[str, float]:
        """Probability of every name for one picture.

        Raises:
            InputError: As `zero_shot`, or there are several pictures.
        """
        classes = parse_classes(names)
        read = read_images(image)
        if len(read) != 1:
            raise InputError(
                "score takes one image", got=f"{len(read)} images", remedy="use zero_shot"
            )
        values = self.zero_shot(read, classes, templates=templates)[0].tolist()
        return {item.name: value for item, value in zip(classes, values, strict=True)}

    @torch.no_grad()
    def features(
        self,
        images: Float[Tensor, "b 3 H W"],
        what: Dense = "keys",
        *,
        layer: int = -2,
        statistics: tuple[Sequence[float], Sequence[float]] | None = None,
    ) -> Float[Tensor, "b h w d"]:
        """One vector a patch of the image tower, heads side by side, float32; CLS is left out.

        Args:
            images: Pixels in [0, 1]; sides must be multiples of `patch`, and need not be equal:
                positions are interpolated.
            what: "keys" or "tokens" of the layer.
            layer: Counted from 0, or from -1 backwards. The last but one is what OVDiff uses.
            statistics: Mean and deviation that pixels are brought to; None: the tower's own.

        Raises:
            InputError: A side is no multiple of `patch`, or `what` or `layer` is not there.

        Example:
            >>> clip = load_clip("mini")  # doctest: +SKIP
            >>> clip.features(torch.zeros(1, 3, 96, 192)).shape  # doctest: +SKIP
            torch.Size([1, 12, 24, 128])
        """
        tower = cast(Any, self.model.vision_model)
        layers, (height, width) = tower.encoder.layers, images.shape[-2:]
        if height % self.patch or width % self.patch or not height or not width:
            raise InputError(
                f"image sides must be multiples of {self.patch} pixels",
                got=f"{height}x{width}",
                remedy="resize the images",
            )
        if what not in get_args(Dense) or not -len(layers) <= layer < len(layers):
            raise InputError(
                f"what must be keys or tokens, of one of {len(layers)} layers",
                got=f"{what!r} of layer {layer}",
                remedy='try "keys" of layer -2',
            )
        mean, std = (
            torch.tensor(value, device=self.device)[:, None, None]
            for value in statistics or self.statistics
        )
        pixels = ((images.to(self.device).float() - mean) / std).to(self.dtype)
        block = layers[layer]
        with outputs_of([block.self_attn.k_proj if what == "keys" else block]) as caught:
            tower(pixel_values=pixels, interpolate_pos_encoding=True)
        grid = (height // self.patch, width // self.patch)
        return caught[0][:, 1:].float().unflatten(1, grid)

    def _embed_classes(
        self, classes: Sequence[ClassName], templates: Sequence[str]
    ) -> Float[Tensor, "k d"]:
        listed = [templates] if isinstance(templates, str) else list(templates)
        if not listed or not all(isinstance(one, str) and "{}" in one for one in listed):
            raise InputError(
                'every template must be text with "{}" where the name goes',
                got=templates,
                remedy='for example "a photo of a {}"',
            )
        counts = [len(listed) * len(item.words) for item in classes]
        texts = [
            _with_article(template, word)
            for item in classes
            for word in item.words
            for template in listed
        ]
        means = [part.mean(0) for part in self.embed_texts(texts).split(counts)]
        return nn.functional.normalize(torch.stack(means), dim=1)


def load_clip(
    name: str | os.PathLike[str] = "mini",
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    offline: bool | None = None,
) -> Clip:
    """Load a CLIP pair.

    Args:
        name: "mini" (embedded), a hub id such as "openai/clip-vit-large-patch14", or a folder in
            transformers format.
        device: For instance "cpu" or "cuda:1"; by default the first there is of CUDA, Apple's GPU
            and the CPU.
        dtype: "fp32", "fp16" or "bf16"; by default fp32 on the CPU and fp16 elsewhere.
        offline: Never use the network; by default as HF_HUB_OFFLINE says.

    Raises:
        InputError: No such name, device or dtype.
        WeightsError: The weights are not to be had, damaged, or of another kind.

    Example:
        >>> load_clip("mini", device="cpu")  # doctest: +SKIP
        CLIP mini from embedded (torch.float32 on cpu)
    """
    from transformers import CLIPModel

    place = pick_device(device)
    precision = pick_dtype(dtype, place)
    found = find_companion(name, "clip", {"CLIPModel"}, offline=offline)
    return Clip(
        name=found.name,
        source=found.source,
        model=load_part(CLIPModel, found, precision, place),
        tokenizer=load_text_files(found),
        processor=load_image_files(found),
        vocabulary=found.vocabulary,
    )


def _with_article(template: str, word: str) -> str:
    """The name in the template, "a {}" becoming "an {}" before a vowel."""
    if word[:1].lower() in "aeiou" and "a {}" in template:
        template = template.replace("a {}", "an {}")
    return template.replace("{}", word)


def _features(output: object) -> Float[Tensor, "b d"]:
    """The projected vectors; older transformers return them bare."""
    vectors = getattr(output, "pooler_output", output)
    if not isinstance(vectors, Tensor):
        raise TypeError(f"transformers returned a {type(output).__name__}")
    return nn.functional.normalize(vectors.float(), dim=-1)


def _batches(images: Sequence[Image]) -> Iterator[Sequence[Image]]:
    for start in range(0, len(images), _BATCH):
        yield images[start : start + _BATCH]
