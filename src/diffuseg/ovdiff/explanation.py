"""Why a picture has the masks it has: the prototypes that decided each region, and their pictures.

As figure A.4 of OVDiff (Karazija and others, 2023): a region leads back to the drawn pictures of
its class, to one of them (instance), to alike parts of several (part), or to all (class). The
similarities that were averaged have no one winner, so every window and extractor votes.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from jaxtyping import Bool, Shaped, UInt8
from scipy.ndimage import binary_erosion, label
from torch import Tensor

from diffuseg.errors import InputError
from diffuseg.files import atomic_path
from diffuseg.methods.ovdiff.explaining import Reason, Winners, reasons, support_cells, winners
from diffuseg.methods.ovdiff.prototypes import INSTANCE
from diffuseg.methods.ovdiff.windows import Box
from diffuseg.ovdiff.entries import KINDS, BankEntry
from diffuseg.ovdiff.segmenter import BankSegmenter
from diffuseg.ovdiff.views import View
from diffuseg.palettes import color_of
from diffuseg.render import strip
from diffuseg.result import Segmentation

_DIM = 0.35  # Of what a panel is not about.
_KIND_NAMES = {number: name for name, number in KINDS.items()}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Because:
    """A region, and the prototype that decided most of it.

    Attributes:
        name: Of the region, as the result has it.
        mask: The region, at the image's size.
        share: Of the image.
        extractor: Whose features decided.
        owner: The class whose prototype it is: of background, that of somebody.
        kind: "class", "instance" or "part".
        source: Number of the picture of an instance, of the cluster of a part; -1 of a class.
        similarity: Mean over the cells it won.
        vote: Its part of all votes on the region.
        pictures: Numbers of the drawn pictures it comes from, those with most of it first.
        masks: Where in each of them.
    """

    name: str
    mask: Bool[np.ndarray, "H W"]
    share: float
    extractor: str
    owner: str
    kind: str
    source: int
    similarity: float
    vote: float
    pictures: tuple[int, ...]
    masks: Bool[np.ndarray, "n h w"]

    def __str__(self) -> str:
        number = f" {self.source}" if self.source >= 0 else ""
        sign = "around " if self.owner != self.name else ""
        return f"{self.extractor}: {self.kind}{number} {sign}{self.owner} {self.similarity:.2f}"


@dataclass(frozen=True, kw_only=True, eq=False)
class Explanation:
    """What decided the regions of a picture, the largest first.

    Attributes:
        image: The picture.
        segmentation: What is explained.
        rows: A region and a prototype each.
        supports: The drawn pictures, by class.
    """

    image: UInt8[np.ndarray, "H W 3"]
    segmentation: Segmentation
    rows: tuple[Because, ...]
    supports: Mapping[str, UInt8[np.ndarray, "n h w 3"]]

    def table(self) -> list[dict[str, object]]:
        """Return the rows as plain values: what was decided, how much, by what, how alike."""
        return [
            {
                "name": row.name,
                "share": round(row.share, 4),
                "extractor": row.extractor,
                "class": row.owner,
                "kind": row.kind,
                "source": row.source,
                "pictures": list(row.pictures),
                "similarity": round(row.similarity, 4),
                "vote": round(row.vote, 4),
            }
            for row in self.rows
        ]

    @cached_property
    def sheet(self) -> PIL.Image.Image:
        """Every row drawn: the region, then the parts of drawn pictures that it is most like."""
        columns = 1 + max(len(row.pictures) for row in self.rows)
        panels: list[UInt8[np.ndarray, "_ _ 3"]] = []
        titles: list[str] = []
        for row in self.rows:
            color = np.array(color_of(row.name))
            panels.append(_lit(self.image, row.mask, color))
            titles.append(f"{row.name} {100 * row.share:.0f} %")
            seen = self.supports[row.owner]
            for number, mask in zip(row.pictures, row.masks, strict=True):
                panels.append(_lit(seen[number], mask, color))
                titles.append(str(row) if number == row.pictures[0] else f"picture {number}")
            for _ in range(columns - 1 - len(row.pictures)):
                panels.append(np.full_like(seen[0], 255))
                titles.append("")
        return strip(panels, titles, columns=columns, height=224)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the sheet as a picture; return the path.

        Raises:
            InputError: The path cannot be written to, or its suffix is no picture's.
        """
        target = Path(path)
        if target.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
            raise InputError(
                "an explanation is written as a picture", got=str(path), remedy='use "why.png"'
            )
        with atomic_path(target) as temporary:
            self.sheet.save(temporary)
        return target


@torch.no_grad()
def explain(
    image: object,
    classes: object = None,
    segmenter: BankSegmenter | None = None,
    *,
    regions: int = 8,
    reasons_each: int = 1,
    pictures: int = 3,
    least: float = 0.01,
) -> Explanation:
    """Segment an image and find what decided its regions.

    Args:
        image: In any form `read_image` takes.
        classes: As for the segmenter.
        segmenter: From `open_segmenter`, or `build_segmenter` with the method "ovdiff"; its bank
            must have kept its pictures. None: the library's own bank and "mini".
        regions: How many connected regions, the largest first.
        reasons_each: Prototypes shown of each.
        pictures: Drawn pictures shown of each prototype.
        least: Share of the image below which a region is left out, unless it is the largest of its
            class.

    Raises:
        InputError: The image or a class cannot be used; the bank has no pictures, or nothing that
            decided anything: without negatives the background has no reason.

    Example:
        >>> find = open_segmenter("bank", "mini")  # doctest: +SKIP
        >>> explain("ball.png", "ball, grass", find).save("why.png")  # doctest: +SKIP
    """
    if segmenter is None:
        from diffuseg.ovdiff.segmenter import open_segmenter

        segmenter = open_segmenter(classes=classes)
    [view] = segmenter.view([image], [classes])
    [seg] = segmenter.segment_views([view])
    asked = _Asked(segmenter, view, seg, _vote(segmenter, view, seg), pictures)
    found = _regions(seg, regions, least)
    rows = [row for name, mask in found for row in asked.because(name, mask, reasons_each)]
    if not rows:
        raise InputError(
            "there must be a region that a prototype has decided",
            got=repr(seg),
            remedy='use background="prototypes", a smaller `least`, or classes the image shows',
        )
    supports = {name: asked.pictures_of(asked.entry(name)) for name in {one.owner for one in rows}}
    return Explanation(
        image=view.image.pixels, segmentation=seg, rows=tuple(rows), supports=supports
    )


@dataclass(frozen=True, slots=True)
class _Vote:
    """What one window says by one extractor."""

    box: Box
    extractor: str
    won: Winners


@dataclass(frozen=True, slots=True)
class _Asked:
    """A picture that was segmented, and all votes on its cells."""

    segmenter: BankSegmenter
    view: View
    seg: Segmentation
    votes: Sequence[_Vote]
    most: int

    def because(self, name: str, mask: Bool[np.ndarray, "H W"], most: int) -> list[Because]:
        """The prototypes that have most votes on a region."""
        listed, found = self.view.listed, list[tuple[str, Reason]]()
        for extractor, vocabulary in listed.vocabularies.items():
            mine = [one for one in self.votes if one.extractor == extractor]
            cells = [
                _sampled(torch.from_numpy(mask.copy()), one.box, self.view.hw, one.won.labels.shape)
                for one in mine
            ]
            pairs = [(one.won, vocabulary.to("cpu")) for one in mine]
            found += [(extractor, reason) for reason in reasons(pairs, cells)]
        total = sum(reason.weight for _, reason in found)
        found.sort(key=lambda pair: -pair[1].weight)
        rows: list[Because] = []
        for extractor, reason in found[:most]:
            owner = listed.names[reason.owner]
            numbers, masks = self._support(extractor, reason)
            rows.append(
                Because(
                    name=name,
                    mask=mask,
                    share=float(mask.mean()),
                    extractor=extractor,
                    owner=owner,
                    kind=_KIND_NAMES[reason.kind],
                    source=reason.source,
                    similarity=reason.weight / max(1, reason.cells),
                    vote=reason.weight / max(total, 1e-12),
                    pictures=numbers,
                    masks=masks,
                )
            )
        return rows

    def entry(self, name: str) -> BankEntry:
        """A class of the bank, by its name in the result."""
        listed = self.view.listed
        return self.segmenter.bank.get(listed.stored[listed.names.index(name)], pictures=True)

    def pictures_of(self, entry: BankEntry) -> UInt8[np.ndarray, "n h w 3"]:
        """The drawn pictures of a class."""
        if entry.images is None:
            raise InputError(
                "the bank must have kept its pictures",
                got=f"none of {entry.name!r} in {self.segmenter.bank.path}",
                remedy="build the class again with keep_pictures=True",
            )
        return entry.images

    def _support(
        self, extractor: str, reason: Reason
    ) -> tuple[tuple[int, ...], Bool[np.ndarray, "n h w"]]:
        """The drawn pictures with most of what a prototype is the mean of, and where."""
        entry = self.entry(self.view.listed.names[reason.owner])
        size = self.pictures_of(entry).shape[1:3]
        cells = support_cells(
            entry.prototypes[extractor],
            kind=reason.kind,
            source=reason.source,
            negative=reason.negative,
        )
        counts = cells.flatten(1).sum(1)
        order = torch.argsort(counts, descending=True, stable=True)[: self.most].tolist()
        if reason.kind == INSTANCE:
            order = [reason.source]
        shown = [number for number in order if counts[number]] or order[:1]
        planes = torch.nn.functional.interpolate(cells[shown, None].float(), size=size)
        return tuple(shown), planes[:, 0].bool().numpy()


def _vote(segmenter: BankSegmenter, view: View, seg: Segmentation) -> list[_Vote]:
    """The winning prototype of every cell of every window, for the label it was given."""
    background = seg.names != view.listed.names
    labels = torch.from_numpy(seg.labels.astype(np.int64)) + (0 if background else 1)
    negatives = segmenter.settings.background == "prototypes"
    votes: list[_Vote] = []
    for _, box, name, features in segmenter.features([view]):
        vocabulary = view.listed.vocabularies[name]
        grid = (features.shape[0], features.shape[1])
        won = winners(
            features,
            vocabulary,
            selected=view.selected,
            background=negatives,
            labels=_sampled(labels, box, view.hw, grid).to(features.device),
        )
        votes.append(_Vote(box, name, _on_cpu(won)))
    return votes


def _on_cpu(won: Winners) -> Winners:
    return Winners(labels=won.labels.cpu(), rows=won.rows.cpu(), similarity=won.similarity.cpu())


def _sampled(
    plane: Shaped[Tensor, "H W"], box: Box, hw: tuple[int, int], grid: Sequence[int]
) -> Shaped[Tensor, "h w"]:
    """What an image has at the centres of the cells of a window.

    Args:
        plane: Of the image's size.
        box: In the picture that windows are cut from.
        hw: Of that picture.
        grid: Cells of the window.
    """
    at = [
        ((low + (torch.arange(cells) + 0.5) * (high - low) / cells) * (length / side))
        .long()
        .clamp_max(length - 1)
        for low, high, cells, length, side in zip(
            box[:2], box[2:], grid, plane.shape, hw, strict=True
        )
    ]
    return plane[at[0][:, None], at[1][None]]


def _regions(
    seg: Segmentation, most: int, least: float
) -> list[tuple[str, Bool[np.ndarray, "H W"]]]:
    """The largest connected regions; of every class the largest, however small."""
    found: list[tuple[int, str, Bool[np.ndarray, "H W"]]] = []
    for region in seg:
        parts = np.zeros(region.mask.shape, dtype=np.int32)
        label(region.mask, output=parts)
        areas = np.bincount(parts.ravel(), minlength=2)
        found += [
            (int(areas[number]), region.name, parts == number)
            for number in range(1, len(areas))
            if areas[number] >= least * parts.size or areas[number] == areas[1:].max()
        ]
    found.sort(key=lambda one: -one[0])
    return [(name, mask) for _, name, mask in found[:most]]


def _lit(
    picture: UInt8[np.ndarray, "h w 3"], mask: Bool[np.ndarray, "h w"], color: np.ndarray
) -> UInt8[np.ndarray, "H W 3"]:
    """A picture, large enough for a thin line, dim but for a mask, which is outlined."""
    times = -(-256 // min(mask.shape))
    wide = PIL.Image.fromarray(picture)
    wide = wide.resize((wide.width * times, wide.height * times), PIL.Image.Resampling.BICUBIC)
    inside = mask.repeat(times, 0).repeat(times, 1)
    drawn = np.asarray(wide).astype(np.float32)
    drawn[~inside] *= _DIM
    core = np.asarray(binary_erosion(inside, iterations=2), dtype=bool)
    drawn[inside & ~core] = color
    return np.rint(drawn).astype(np.uint8)
