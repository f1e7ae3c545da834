"""Pictures segmented by masks denoised from noise: a picture and names in, a segmentation out.

What can be shared is: a picture is encoded once for all classes and runs, a prompt once for all
pictures, and masks are denoised together whatever picture, class and run they are of. Of masks that
are done, sums and the highest so far are all that is kept.
"""

import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import islice

import torch
from jaxtyping import Float
from torch import Tensor

from diffuseg import ops
from diffuseg.attention import AttentionRecord
from diffuseg.backbones import TextEmbedding
from diffuseg.errors import InputError
from diffuseg.image import read_image
from diffuseg.methods.attend import Attend
from diffuseg.methods.segdiffusion import SegDiffusion
from diffuseg.methods.segdiffusion.codec import mask_shares
from diffuseg.methods.segdiffusion.ensemble import (
    Moments,
    Spread,
    label_classes,
    pool_names,
    pool_runs,
)
from diffuseg.methods.segdiffusion.noise import start_noise
from diffuseg.methods.segdiffusion.sampling import denoise_masks
from diffuseg.methods.segdiffusion.schedule import Schedule, one_step_latents
from diffuseg.methods.settings import given
from diffuseg.models import model_name
from diffuseg.prompts import ClassName
from diffuseg.provenance import Provenance
from diffuseg.result import Segmentation
from diffuseg.segdiffusion.autoencoder import decode_channel, encode_pixels
from diffuseg.segdiffusion.pictures import View, fitted_hw, padded_pixels, picture_key
from diffuseg.segmenter import Segmenter

BACKGROUND = "background"
"""Name of what is none of the classes."""

# Prompts read at once, and prompts that are kept; one of SD 2.1 is 315 kB.
_READ, _KEPT = 32, 512
# Pictures, and masks, that go through the autoencoder at once.
_CODED = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskSegmenter(Segmenter):
    """A model that denoises masks, with settings: an image in, a segmentation out.

    Made by `opening.open_segmenter`, or by `build_segmenter` for the method "segdiffusion".

    Attributes:
        schedule: The steps from noise to a mask.
        attending: Looks for the classes with the base model's attention; None: that has no share.
        texts: Prompts the model has read; shared by copies.
    """

    schedule: Schedule
    attending: Segmenter | None = None
    texts: "OrderedDict[str, TextEmbedding]" = field(
        default_factory=OrderedDict, repr=False, compare=False
    )

    def many(
        self,
        images: Sequence[object],
        classes: Sequence[object] | None = None,
        captions: Sequence[object] | None = None,
    ) -> list[Segmentation]:
        """Segment several images; masks of one size are denoised together.

        Args:
            images: In any form `read_image` takes.
            classes: One class list an image; None, or None for an image: `self.classes`.
            captions: Not for this method.

        Raises:
            InputError: An image cannot be read, or a class is not usable.
        """
        start = time.perf_counter()
        views = self.view(images, classes, captions)
        seconds = {"read": (time.perf_counter() - start) / max(1, len(views))}
        groups: dict[tuple[int, int], list[int]] = {}
        for number, view in enumerate(views):
            groups.setdefault(view.padded, []).append(number)
        results: dict[int, Segmentation] = {}
        for group in groups.values():
            found = self.segment_views([views[number] for number in group], seconds)
            results |= zip(group, found, strict=True)
        return [results[number] for number in range(len(views))]

    def check(self) -> None:
        """Make sure there are classes, and that the model can read their names.

        Raises:
            InputError: Not so.
        """
        _, prompts, _ = self._prompts(self.classes)
        self._read(prompts)
        if self.attending is not None:
            replace(self.attending, classes=self.classes).check()

    def capture(
        self,
        image: object,
        classes: object = None,
        *,
        caption: object = None,
        everything: bool = False,
    ) -> AttentionRecord:
        """Refuse: there is no record this method could work from.

        Raises:
            InputError: Always.
        """
        raise InputError(
            "a record can be had for methods that work from one",
            got="Seg-diffusion, which denoises masks",
            remedy='use another method, such as "attend", with a model that draws pictures',
        )

    def view(
        self,
        images: Sequence[object],
        classes: Sequence[object] | None = None,
        captions: Sequence[object] | None = None,
    ) -> list[View]:
        """Read images, and find what is asked of each; as `many`."""
        if any(one is not None for one in captions or ()):
            raise InputError(
                "Seg-diffusion looks for classes", got="a caption", remedy="name classes instead"
            )
        held = [read_image(image) for image in images]
        views = []
        for image, one in zip(held, self._asked(held, classes), strict=True):
            hw = fitted_hw(image.hw, given(self.settings.side))
            scale = self.model.scale
            known, prompts, owners = self._prompts(one)
            views.append(
                View(
                    image=image,
                    key=picture_key(image),
                    hw=hw,
                    padded=(-(-hw[0] // scale) * scale, -(-hw[1] // scale) * scale),
                    classes=known,
                    prompts=prompts,
                    owners=owners,
                )
            )
        return views

    @torch.no_grad()
    def segment_views(
        self, views: Sequence[View], seconds: Mapping[str, float] | None = None
    ) -> list[Segmentation]:
        """Segment what `view` has prepared, of one padded size.

        Args:
            views: The pictures.
            seconds: What was spent on each before.
        """
        start = time.perf_counter()
        clock: dict[str, float] = {}
        clock |= dict.fromkeys(("text", "encode", "denoise", "decode", "label"), 0.0)
        read = self._read([prompt for view in views for prompt in view.prompts])
        clock["text"] = time.perf_counter() - start
        latents = self._encode(views)
        clock["encode"] = time.perf_counter() - start - clock["text"]
        attended = [self._attend(view) for view in views]
        if self.attending is not None:
            clock["attend"] = time.perf_counter() - start - sum(clock.values())
        shares = self._shares(views, latents, read, clock)
        pairs = zip(views, attended, strict=True)
        found = [self._label(view, shares, maps) for view, maps in pairs]
        clock["label"] = time.perf_counter() - start - sum(clock.values())
        spent = {**(seconds or {}), **{name: one / len(views) for name, one in clock.items()}}
        rounded = {name: round(one, 6) for name, one in spent.items()}
        return [replace(one, provenance=replace(one.provenance, seconds=rounded)) for one in found]

    @property
    def settings(self) -> SegDiffusion:
        """The method, ready."""
        if not isinstance(self.method, SegDiffusion):
            raise InputError(
                "masks are denoised by Seg-diffusion",
                got=repr(self.method),
                remedy="build another segmenter for another method",
            )
        return self.method

    def _prompts(
        self, classes: tuple[ClassName, ...] | None
    ) -> tuple[tuple[ClassName, ...], tuple[str, ...], tuple[int, ...]]:
        """Classes, and what is asked for with the class of each."""
        if not classes:
            raise InputError(
                "Seg-diffusion must be told classes", got="none", remedy='name some: "car, tree"'
            )
        method = self.settings
        if method.background != "none" and BACKGROUND in [one.name for one in classes]:
            raise InputError(
                "the background is either a class of yours or where no class is likely",
                got=f"the class {BACKGROUND!r} and background={method.background!r}",
                remedy='leave the class out, or use background="none"',
            )
        most = 1 if method.names == "first" else None
        asked = [(number, word) for number, one in enumerate(classes) for word in one.words[:most]]
        self.model.check_words([word for _, word in asked])
        template = given(method.template)
        prompts = tuple(template.replace("{}", word) for _, word in asked)
        return classes, prompts, tuple(number for number, _ in asked)

    def _read(self, prompts: Iterable[str]) -> Mapping[str, TextEmbedding]:
        """Prompts as the model reads them; each is read once as long as it is kept."""
        wanted = dict.fromkeys(prompts)
        missing = [one for one in wanted if one not in self.texts]
        for start in range(0, len(missing), _READ):
            some = missing[start : start + _READ]
            found = self.model.embed(some)
            self.texts.update((one, found[row : row + 1]) for row, one in enumerate(some))
        for one in wanted:
            self.texts.move_to_end(one)
        while len(self.texts) > max(_KEPT, len(wanted)):
            self.texts.popitem(last=False)
        return {one: self.texts[one] for one in wanted}

    def _encode(self, views: Sequence[View]) -> Float[Tensor, "b c h w"]:
        parts = []
        for start in range(0, len(views), _CODED):
            some = views[start : start + _CODED]
            pixels = torch.cat([padded_pixels(one.image, one.hw, one.padded) for one in some])
            parts.append(encode_pixels(self.model.vae, pixels * 2 - 1, max_batch=_CODED))
        return torch.cat(parts).to(self.model.device)

    def _attend(self, view: View) -> Float[Tensor, "k h w"] | None:
        """A map a class, as far as the base model's attention says."""
        if self.attending is None or not isinstance(self.attending.method, Attend):
            return None
        words = [one.words for one in view.classes]
        maps, names = self.attending.method.class_maps(self.attending.capture(view.image, words))
        return maps[[names.index(name) for name in view.names]]

    def _shares(
        self,
        views: Sequence[View],
        latents: Float[Tensor, "b c h w"],
        read: Mapping[str, TextEmbedding],
        clock: dict[str, float],
    ) -> Iterator[Float[Tensor, "h w"]]:
        """Yield every run of every name of every picture, in that order."""
        runs = given(self.settings.runs)
        begun = [self._begin(view, latents.shape[1:]) for view in views]
        rows = (
            (number, prompt, run)
            for number, view in enumerate(views)
            for prompt in view.prompts
            for run in range(runs)
        )
        while some := list(islice(rows, given(self.settings.batch))):
            started = time.perf_counter()
            text = TextEmbedding.concat([read[prompt] for _, prompt, _ in some])
            picture = latents[[number for number, _, _ in some]]
            noise = torch.stack([begun[number][run] for number, _, run in some])
            done = self._denoise(picture, noise.to(latents), text)
            denoised = time.perf_counter()
            channel = decode_channel(self.model.vae, done, max_batch=_CODED)
            shares = mask_shares(channel)
            clock["denoise"] += denoised - started
            clock["decode"] += time.perf_counter() - denoised
            for (number, _, _), share in zip(some, shares, strict=True):
                height, width = views[number].hw
                yield share[:height, :width]

    def _begin(self, view: View, shape: Sequence[int]) -> Float[Tensor, "n c h w"]:
        method, (channels, height, width) = self.settings, shape
        if method.start == "zeros":
            return torch.zeros(given(method.runs), channels, height, width)
        return start_noise(
            (channels, height, width),
            seed=given(method.seed),
            picture=view.key,
            runs=given(method.runs),
        )

    def _denoise(
        self,
        picture: Float[Tensor, "r c h w"],
        start: Float[Tensor, "r c h w"],
        text: TextEmbedding,
    ) -> Float[Tensor, "r c h w"]:
        if self.settings.start == "zeros":
            levels = self.schedule.levels
            seen = torch.cat([picture, start], 1)
            done = one_step_latents(self.model.denoise(seen, len(levels) - 1, text), levels)
        else:
            network = partial(self._call, text=text)
            done = denoise_masks(network, picture, start, self.schedule)
        if not bool(done.isfinite().all()):
            raise InputError(
                "the latents of masks must be finite",
                got=f"others, of a U-Net in {str(self.model.dtype).removeprefix('torch.')}",
                remedy='load the model with dtype="bf16" or dtype="fp32"',
            )
        return done

    def _call(
        self, x: Float[Tensor, "r c h w"], timestep: int, text: TextEmbedding
    ) -> Float[Tensor, "r c2 h w"]:
        return self.model.denoise(x, timestep, text)

    def _label(
        self,
        view: View,
        shares: Iterator[Float[Tensor, "h w"]],
        attended: Float[Tensor, "k h w"] | None,
    ) -> Segmentation:
        method, size = self.settings, view.image.hw
        background = method.background or "threshold"
        spread = Spread(size)
        planes = pool_names(self._pooled(view, shares, spread), view.owners)
        labels, scores = label_classes(
            planes if attended is None else self._blended(view, planes, attended),
            size,
            background=background,
            threshold=given(method.threshold),
            keep=self.keep_scores,
        )
        return Segmentation(
            labels=labels,
            names=view.names if background == "none" else (BACKGROUND, *view.names),
            scores=scores,
            uncertainty=spread.result(),
            provenance=Provenance(
                model=model_name(self.model),
                method="segdiffusion",
                parameters=asdict(method),
                seed=method.seed,
                image=view.image.source,
                image_hw=view.image.hw,
                working_hw=view.hw,
            ),
        )

    def _pooled(
        self, view: View, shares: Iterator[Float[Tensor, "h w"]], spread: Spread
    ) -> Iterator[Float[Tensor, "h w"]]:
        """Yield the mask of one name after the other, its runs pooled."""
        method = self.settings
        for _ in view.owners:
            runs = islice(shares, given(method.runs))
            if method.reduction == "mean":
                moments = Moments()
                for run in runs:
                    moments.add(run)
                pooled = moments.pooled()
            else:
                pooled = pool_runs(torch.stack(list(runs)), given(method.reduction))
            spread.add(pooled)
            yield pooled.share

    def _blended(
        self,
        view: View,
        planes: Iterator[Float[Tensor, "h w"]],
        attended: Float[Tensor, "k h w"],
    ) -> Iterator[Float[Tensor, "h w"]]:
        """Yield the mask of one class after the other, with what the attention says of it."""
        method = self.settings
        for name, plane, one in zip(view.names, planes, attended, strict=True):
            new = method.learned is not None and name not in method.learned
            share = given(method.attention_new if new else method.attention)
            seen = ops.resize(one[None, None].to(plane), view.hw)[0, 0]
            yield (1 - share) * plane + share * seen
