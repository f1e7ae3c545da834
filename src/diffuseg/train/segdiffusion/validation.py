"""How good the masks are that a network in training denoises, on pictures that stay the same.

Few steps, noise that is a function of the picture alone: figures of one run compare with each
other. What a model reaches is for the evaluation to say.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Int64, UInt8
from torch import Tensor, nn

from diffuseg.image import Image, to_tensor, working_hw
from diffuseg.methods.segdiffusion.codec import mask_shares
from diffuseg.methods.segdiffusion.ensemble import label_classes
from diffuseg.methods.segdiffusion.sampling import denoise_masks
from diffuseg.methods.segdiffusion.schedule import ddim_schedule, one_step_latents
from diffuseg.ops import resize
from diffuseg.palettes import name_palette
from diffuseg.segdiffusion.autoencoder import decode_channel, encode_pixels
from diffuseg.train.segdiffusion.pictures import IGNORE, Crop, KeptPictures, count_labels
from diffuseg.train.segdiffusion.step import MaskLearner

_ROWS = 8  # masks denoised at once
_SHOWN = 4  # pictures of a panel
_GREY = 96


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Checks:
    """What is looked at, always the same.

    Attributes:
        kept: The pictures.
        size: Pixels of the side they are seen at, where they are square.
        multiple: What sides are multiples of.
        unasked: Classes that are not asked for: the background.
        hidden: Classes never learned, which are measured by themselves, too.
        steps: Of denoising; 1 for what is trained on a single one.
        most: Classes asked of a picture, those it shows first.
        places: Of the classes among all that are learned; None: they are all.
        name: Of the data set, for what is found of several.
    """

    kept: KeptPictures
    size: int
    multiple: int = 64
    unasked: Sequence[str] = ()
    hidden: Sequence[str] = ()
    steps: int = 4
    most: int = 32
    places: tuple[int, ...] | None = None
    name: str = ""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Found:
    """What a validation found.

    Attributes:
        values: By name: miou, that of hidden classes, positive_iou of single masks, negative_area
            of masks of what is not there, and iou/NAME by class.
        panel: Pictures, true and found classes side by side.
    """

    values: dict[str, float | None]
    panel: UInt8[np.ndarray, "h w 3"]


@torch.no_grad()
def validate(learner: MaskLearner, network: nn.Module, checks: Checks) -> Found:
    """Segment pictures and compare.

    Args:
        learner: Knows all but the network.
        network: As it is called here.
        checks: What is looked at.
    """
    learner, was = replace(learner, unet=network), network.training
    network.eval()
    count = len(checks.kept.pictures.classes)
    crossed = np.zeros((3, count), dtype=np.int64)  # both, true, found
    positive: list[float] = []
    negative: list[float] = []
    panel: list[np.ndarray] = []
    for number in range(len(checks.kept)):
        whole = checks.kept[number]
        asked = _asked(whole, checks, number)
        shares = class_shares(learner, whole, asked, checks, seed=number)
        background = _places(checks, checks.unasked)
        labels, _ = label_classes(
            list(shares), whole.labels.shape, background="threshold" if background else "none"
        )
        found = np.array([*background[:1], *asked], dtype=np.int64)[labels]
        crossed += _cross(whole.labels, found, count)
        for one, share in zip(asked, shares, strict=True):
            _single(whole.labels, one, share.cpu().numpy() >= 0.5, positive, negative)
        if len(panel) < _SHOWN:
            panel.append(_strip(whole, found, checks.kept.pictures.classes))
    network.train(was)
    return Found(values=_values(crossed, positive, negative, checks), panel=_stack(panel))


def validate_all(learner: MaskLearner, network: nn.Module, checks: Sequence[Checks]) -> Found:
    """Segment pictures of all data sets.

    Args:
        learner: Knows all but the network.
        network: As it is called here.
        checks: What is looked at, of every set.

    Returns:
        What was found of the only set; of several the mean over them, and NAME/VALUE of each.
    """
    found = [validate(learner, network, one) for one in checks]
    if len(found) == 1:
        return found[0]
    values: dict[str, float | None] = {}
    for name in dict.fromkeys(n for one in found for n in one.values if "/" not in n):
        held = [one.values.get(name) for one in found]
        values[name] = _mean(one for one in held if one is not None)
    for check, one in zip(checks, found, strict=True):
        values |= {f"{check.name}/{name}": value for name, value in one.values.items()}
    return Found(values=values, panel=_stack([one.panel for one in found]))


def class_shares(
    learner: MaskLearner, whole: Crop, asked: Sequence[int], checks: Checks, *, seed: int
) -> Float[Tensor, "k h w"]:
    """How far pixels belong to classes, at the picture's size."""
    device, hw = learner.texts.device, whole.labels.shape
    seen = working_hw(hw, size=checks.size, multiple=checks.multiple)
    pixels = to_tensor(Image(pixels=whole.pixels, source=""), seen) * 2 - 1
    picture = encode_pixels(learner.vae, pixels).to(device)
    noise = torch.randn(picture.shape, generator=torch.Generator().manual_seed(seed)).to(device)
    schedule = ddim_schedule(learner.levels, checks.steps)
    channels = []
    for first in range(0, len(asked), _ROWS):
        classes = tuple(_learned_as(checks, one) for one in asked[first : first + _ROWS])
        rows = len(classes)

        def network(x: Tensor, time: int, classes: tuple[int, ...] = classes) -> Tensor:
            times = torch.full((len(x),), time, device=device)
            return learner.denoise(x, times, classes).float()

        if learner.end_to_end:
            start = torch.zeros_like(noise).expand(rows, -1, -1, -1)
            inputs = torch.cat([picture.expand(rows, -1, -1, -1), start], 1)
            latents = one_step_latents(network(inputs, len(learner.levels) - 1), learner.levels)
        else:
            latents = denoise_masks(network, picture, noise.expand(rows, -1, -1, -1), schedule)
        channels.append(decode_channel(learner.vae, latents))
    return resize(mask_shares(torch.cat(channels))[:, None], hw)[:, 0]


def _learned_as(checks: Checks, one: int) -> int:
    return one if checks.places is None else checks.places[one]


def _places(checks: Checks, names: Sequence[str]) -> list[int]:
    return [number for number, one in enumerate(checks.kept.pictures.classes) if one in names]


def _asked(whole: Crop, checks: Checks, number: int) -> list[int]:
    """The classes a picture shows, and others up to a number, which are always the same."""
    unasked = set(_places(checks, checks.unasked))
    here = [one for one in count_labels(whole.labels) if one not in unasked]
    others = [
        one
        for one in range(len(checks.kept.pictures.classes))
        if one not in unasked and one not in here
    ]
    rng = np.random.default_rng([number, len(others)])
    more = rng.permutation(others)[: max(checks.most - len(here), 0)]
    return sorted([*here, *(int(one) for one in more)])


def _cross(
    truth: UInt8[np.ndarray, "h w"], found: Int[np.ndarray, "h w"], count: int
) -> Int64[np.ndarray, "3 k"]:
    known = truth != IGNORE
    true, found = truth[known].astype(np.int64), found[known]
    both = true[true == found]
    return np.stack([np.bincount(one, minlength=count) for one in (both, true, found)])


def _single(
    truth: UInt8[np.ndarray, "h w"],
    one: int,
    mask: Bool[np.ndarray, "h w"],
    positive: list[float],
    negative: list[float],
) -> None:
    known = truth != IGNORE
    wanted, mask = truth == one, mask & known
    if wanted.any():
        positive.append(float((wanted & mask).sum() / (wanted | mask).sum()))
    elif known.any():
        negative.append(float(mask.sum() / known.sum()))


def _values(
    crossed: Int64[np.ndarray, "3 k"],
    positive: list[float],
    negative: list[float],
    checks: Checks,
) -> dict[str, float | None]:
    """Means over the classes that some picture shows."""
    both, true, found = crossed
    union = true + found - both
    shown = {int(one): float(both[one] / union[one]) for one in np.flatnonzero(true)}
    hidden = _places(checks, checks.hidden)
    values = {
        "miou": _mean(shown.values()),
        "positive_iou": _mean(positive),
        "negative_area": _mean(negative),
    }
    if hidden:
        values["learned_miou"] = _mean(v for one, v in shown.items() if one not in hidden)
        values["hidden_miou"] = _mean(v for one, v in shown.items() if one in hidden)
    names = checks.kept.pictures.classes
    return values | {f"iou/{names[one]}": value for one, value in shown.items()}


def _mean(values) -> float | None:
    held = list(values)
    return float(np.mean(held)) if held else None


def _strip(
    whole: Crop, found: Int[np.ndarray, "h w"], names: Sequence[str]
) -> UInt8[np.ndarray, "h w3 3"]:
    colours = np.full((IGNORE + 1, 3), _GREY, np.uint8)
    colours[: len(names)] = name_palette(names)
    return np.concatenate([whole.pixels, colours[whole.labels], colours[found]], 1)


def _stack(strips: list[np.ndarray]) -> UInt8[np.ndarray, "h w 3"]:
    """Strips below each other, narrower ones filled up."""
    width = max(strip.shape[1] for strip in strips)
    filled = [np.pad(one, ((0, 0), (0, width - one.shape[1]), (0, 0))) for one in strips]
    return np.concatenate(filled)
