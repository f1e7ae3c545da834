"""What a recipe is, and which printed rows have none."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Task = Literal["evaluate", "sweep", "video"]

NO_NUMBER: Mapping[str, str] = {
    "segdiffusion": "its supplement shows pictures and prints no number",
    "dinoseg": "DiffSeg's appendix shows curves of the DINO baseline and prints no number",
}
"""Methods of the papers that have no figure to make again."""

NOT_RUN: Mapping[tuple[str, str], str] = {
    ("DiffSegmenter", "Table 3 (WSSS)"): "a ResNet-101 segmenter trained on the masks: export them "
    "with pseudo-masks and train it elsewhere",
    ("OVDiff with SAM masks", "text"): "SAM's masks are no part of this library",
    ("OVDiff with Grounded SAM masks", "text"): "Grounded SAM's masks are no part of this library",
    ("OVDiff with synonym lists", "text"): "the lists of synonyms are not published",
    ("OVDiff keeping bg prototypes of stuff classes", "text"): "no setting here keeps them",
    ("OVDiff stuff filter without thing/stuff split", "text"): "no setting here leaves it out",
    ("OVDiff no part prototypes for stuff", "text"): "no setting here leaves only these out",
    ("OVDiff oracle thing/stuff", "text"): "the oracle's lists are not published",
    ("OVDiff(+CutLER+DINO&CLIP)", "open vocabulary"): "figures of an earlier preprint",
    ("OVDiff", "Table 2 (open vocabulary)"): "figures of an earlier preprint",
}
"""Rows, by method and table, that no recipe makes, and why not."""


CUTLER = (
    "the paper proposes masks by CutLER, whose weights are not part of this library: build the "
    "bank with build_bank(proposer=...); MaskCut's masks, which stand in, may be further off"
)
TAGS = (
    "the paper takes the classes of an image from a list its tagging network wrote; CLIP's filter "
    "stands in, or --labels FILE"
)
SWEPT = "the paper sweeps the background threshold on the split that is scored, and so does this"
READING = "the paper does not say what of the image is refined: this is one reading of it"


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """One row of a paper's table, and what makes it.

    Attributes:
        name: As users type it.
        task: "evaluate"; "sweep": the best of the settings in `grid`; "video".
        method: By name.
        settings: Fields of the method that are not its own defaults.
        model: By name, as in the catalog.
        dataset: By name.
        split: Of the data set.
        expected: What is printed, by the name figures have in reports; per cent.
        tolerance: Points by which a run may be off and count as reproduced; None: nothing is
            claimed, for the reason `differs` has.
        paper: Where it stands, see `PublishedRow`; with `table`.
        given: What the method is told, as for `evaluate`; None: what it needs.
        average: The rule of the mean IoU.
        noise_seed: Of the noise.
        names: Whose words for the classes, see `open_dataset`.
        limit: Only the first so many videos.
        grid: Values of the settings that are swept.
        oracles: What is known of the truth that is scored.
        differs: In what it cannot be the paper's run; "": in nothing known.
    """

    name: str
    task: Task
    method: str
    settings: Mapping[str, object]
    model: str
    dataset: str
    split: str
    expected: Mapping[str, float]
    tolerance: float | None
    paper: str
    table: str
    given: str | None = None
    average: str = "gt_present"
    noise_seed: int = 0
    names: str | None = None
    limit: int | None = None
    grid: Mapping[str, tuple[object, ...]] | None = None
    oracles: tuple[str, ...] = ()
    differs: str = ""

    @property
    def kind(self) -> Literal["images", "videos"]:
        """What is scored one by one."""
        return "videos" if self.task == "video" else "images"
