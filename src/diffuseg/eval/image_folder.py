"""A data set of one's own: a folder of pictures, masks and names."""

from pathlib import Path

from diffuseg.errors import InputError
from diffuseg.eval.dataset_facts import find_facts
from diffuseg.eval.image_files import ImageSet
from diffuseg.eval.image_lists import (
    PathLike,
    first_folder,
    first_items,
    listed_names,
    paired_files,
)
from diffuseg.eval.label_sets import numbered_labels
from diffuseg.eval.video_files import need_file, need_folder


class Folder(ImageSet):
    """Pictures and masks of one's own: `images`, `masks`, `names.txt`.

    Line i of `names.txt`, counted from 0, names label i. A mask is a grey or palette PNG with the
    name of its picture; 255 is not scored (65535 if there are more than 255 classes). A split is
    `images/SPLIT` with `masks/SPLIT`, or a list `SPLIT.txt` of names; "all" is everything. The
    folders may be called as PASCAL VOC's: `JPEGImages`, `SegmentationClass`,
    `ImageSets/Segmentation/SPLIT.txt`.

    Args:
        root: The folder.
        split: Which part.
        limit: Only the first so many images.

    Raises:
        InputError: Something is missing, or a name stands twice.

    Example:
        >>> import tempfile
        >>> from diffuseg.world import Scenes
        >>> from diffuseg.world.layouts import write_voc
        >>> root = write_voc(Scenes("val", hw=(64, 64)), Path(tempfile.mkdtemp()) / "voc", 2)
        >>> data = Folder(root)
        >>> len(data), data.classes[:2], data[1].truth.shape
        (2, ('background', 'ball'), (64, 64))
    """

    def __init__(self, root: PathLike, *, split: str = "all", limit: int | None = None) -> None:
        facts = find_facts("folder", "images")
        folder = need_folder(Path(root), facts.title, facts.layout)
        pictures = first_folder(folder, ("images", "JPEGImages"), facts.title, facts.layout)
        masks = first_folder(folder, ("masks", "SegmentationClass"), facts.title, facts.layout)
        stems: list[str] | None = None
        if split != "all" and (pictures / split).is_dir():
            pictures, masks = (
                need_folder(one / split, facts.title, facts.layout) for one in (pictures, masks)
            )
        elif split != "all":
            lists = (f"{split}.txt", f"ImageSets/Segmentation/{split}.txt")
            chosen = next((one for one in lists if (folder / one).is_file()), lists[0])
            stems = listed_names(folder, chosen)
        names = _read_names(need_file(folder, "names.txt"))
        files = first_items(paired_files(pictures, masks, stems), limit)
        ignore = 255 if len(names) <= 255 else 65535
        super().__init__("folder", split=split, labels=numbered_labels(names, ignore), files=files)


def _read_names(path: Path) -> tuple[str, ...]:
    try:
        lines = path.read_text(encoding="utf-8-sig").rstrip().splitlines()
    except UnicodeDecodeError as error:
        raise InputError(
            "names must be written in UTF-8", got=f"{path}: {error}", remedy="save it so"
        ) from error
    names = [" ".join(line.split()) for line in lines]
    wrong = [i for i, one in enumerate(names) if not one or one in names[:i]]
    if wrong or not names:
        got = f"line {wrong[0] + 1} is {names[wrong[0]] or 'empty'!r}" if wrong else "no names"
        raise InputError(
            "every line of names.txt must have a name of its own",
            got=f"{path}: {got}",
            remedy="name label i in line i, counted from 0, and no label twice",
        )
    return tuple(names)
