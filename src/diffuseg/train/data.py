"""The miniature's training set: rendered scenes and parts of them, with captions, in shards.

Only images and captions are written: no mask reaches the training. (The world consults its own
masks to know which things a crop still shows, as a person captioning the crop would.)
"""

import re
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image as PillowImage

from diffuseg.files import atomic_path
from diffuseg.train.recipe import MiniRecipe
from diffuseg.world.captions import Noun, caption_things
from diffuseg.world.scenes import CLASSES, COLORS, Scene, Scenes

CAPTIONS = 3  # phrasings kept for each picture; the last names only some of the objects
_THING_SEEN = 0.35  # share of a thing's visible pixels that must be in the crop to be named
_STUFF_SEEN = 0.08  # share of the crop a stuff region must cover to be named
_NO_COLOR = 0.3  # share of phrasings without colours
_COLORED = re.compile(rf"\ban? ({'|'.join(COLORS)}) ")
KINDS = ("scenes", "crops", "windows", "pairs")
Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Pictures:
    """Pictures of one size with their phrasings."""

    images: UInt8[np.ndarray, "n h w 3"]
    captions: list[tuple[str, ...]]


def _captions(
    things: Sequence[Noun], stuff: Sequence[str], rng: np.random.Generator
) -> tuple[str, ...]:
    named = len(things) + len(stuff)
    kept: list[int] = rng.permutation(named).tolist()[: rng.integers(1, named + 1)]
    some_things = [things[i] for i in kept if i < len(things)]
    some_stuff = [stuff[i - len(things)] for i in kept if i >= len(things)]
    phrases = [caption_things(things, stuff, rng) for _ in range(CAPTIONS - 1)]
    phrases.append(caption_things(some_things, some_stuff, rng))
    return tuple(_plainer(phrase, rng) for phrase in phrases)


def _plainer(phrase: str, rng: np.random.Generator) -> str:
    """Now and then drop the colours ("a car") or the articles too ("car"), as class lists do."""
    draw = rng.random()
    if draw < _NO_COLOR:
        phrase = _COLORED.sub("" if draw < _NO_COLOR / 2 else "a ", phrase)
    return phrase


def crop_scene(
    scene: Scene, rng: np.random.Generator, *, side: int
) -> tuple[UInt8[np.ndarray, "s s 3"], tuple[str, ...]]:
    """A random square crop (half to all of the shorter side), shrunk to `side`, with captions."""
    height, width = scene.labels.shape
    short = min(height, width)
    extent = int(rng.integers(short // 2, short + 1))
    top = int(rng.integers(0, height - extent + 1))
    left = int(rng.integers(0, width - extent + 1))
    return _cut(scene, rng, top=top, left=left, extent=extent, side=side)


def frame_scene(
    scene: Scene, rng: np.random.Generator, *, side: int
) -> tuple[UInt8[np.ndarray, "s s 3"], tuple[str, ...]]:
    """A window of `side` pixels around one visible thing, a quarter off centre at most.

    Not shrunk: things have the size they have in whole scenes, and cover more of the picture.
    """
    shown = np.unique(scene.instances[scene.instances > 0])
    rows, columns = np.nonzero(scene.instances == rng.choice(shown))
    corner = [
        int(np.clip(at.mean() + rng.uniform(-0.75, -0.25) * side, 0, length - side))
        for at, length in zip((rows, columns), scene.labels.shape, strict=True)
    ]
    return _cut(scene, rng, top=corner[0], left=corner[1], extent=side, side=side)


def frame_pair(
    scene: Scene, rng: np.random.Generator, *, side: int
) -> tuple[UInt8[np.ndarray, "s s 3"], tuple[str, ...]]:
    """The smallest square around two of the things, with some margin, shrunk to `side`.

    In a window on one thing its noun need only find what stands out; between two it has to choose.
    A scene with one thing gives a window on it.
    """
    shown = np.unique(scene.instances[scene.instances > 0])
    if len(shown) < 2:
        return frame_scene(scene, rng, side=side)
    rows, columns = np.nonzero(np.isin(scene.instances, rng.choice(shown, 2, replace=False)))
    spans = [(int(at.min()), int(at.max()) + 1) for at in (rows, columns)]
    wanted = max(last - first for first, last in spans) * rng.uniform(1.0, 1.2)
    extent = int(np.clip(wanted, side, min(scene.labels.shape)))
    corner = []
    for (first, last), length in zip(spans, scene.labels.shape, strict=True):
        lowest, highest = sorted((last - extent, first))
        corner.append(int(np.clip(rng.integers(lowest, highest + 1), 0, length - extent)))
    return _cut(scene, rng, top=corner[0], left=corner[1], extent=extent, side=side)


def _cut(
    scene: Scene, rng: np.random.Generator, *, top: int, left: int, extent: int, side: int
) -> tuple[UInt8[np.ndarray, "s s 3"], tuple[str, ...]]:
    window = np.s_[top : top + extent, left : left + extent]
    instances, labels = scene.instances[window], scene.labels[window]
    whole = np.bincount(scene.instances.ravel(), minlength=len(scene.things) + 1)
    seen = np.bincount(instances.ravel(), minlength=len(scene.things) + 1)
    things = [
        (thing.color, thing.kind)
        for position, thing in enumerate(scene.things, start=1)
        if seen[position] >= _THING_SEEN * whole[position]
    ]
    areas = np.bincount(labels.ravel(), minlength=len(CLASSES))
    stuff = [s for s in scene.stuff if areas[CLASSES.index(s)] >= _STUFF_SEEN * extent * extent]
    if not things and not stuff:
        stuff = [max(scene.stuff, key=lambda name: areas[CLASSES.index(name)])]
    picture = PillowImage.fromarray(scene.image[window]).resize(
        (side, side),
        PillowImage.Resampling.BOX if extent > side else PillowImage.Resampling.BICUBIC,
    )
    return np.asarray(picture), _captions(things, stuff, rng)


def shard_count(recipe: MiniRecipe) -> int:
    """In how many files the pictures are kept."""
    return -(-recipe.scenes // recipe.shard)


def shard_path(folder: Path, kind: str, shard: int) -> Path:
    """The file of one shard of a kind, of `KINDS`."""
    return folder / f"{kind}-{shard:04d}.npz"


def render_shard(recipe: MiniRecipe, folder: Path, shard: int) -> int:
    """Render what is missing of one shard of every kind; returns its number."""
    missing = [kind for kind in KINDS if not shard_path(folder, kind, shard).exists()]
    if not missing:
        return shard
    scenes = Scenes(split="train", seed=recipe.seed, hw=(recipe.size, recipe.size))
    images: dict[str, list[UInt8[np.ndarray, "h w 3"]]] = {kind: [] for kind in KINDS}
    captions: dict[str, list[tuple[str, ...]]] = {kind: [] for kind in KINDS}
    for index in range(shard * recipe.shard, min((shard + 1) * recipe.shard, recipe.scenes)):
        scene = scenes[index]
        rng = np.random.default_rng([recipe.seed, index])
        nouns = [(thing.color, thing.kind) for thing in scene.things]
        images["scenes"].append(scene.image)
        captions["scenes"].append(_captions(nouns, scene.stuff, rng))
        for kind, cut in (
            ("crops", crop_scene),
            ("windows", frame_scene),
            ("pairs", frame_pair),
        ):
            for _ in range(recipe.crops):
                picture, phrases = cut(scene, rng, side=recipe.crop_size)
                images[kind].append(picture)
                captions[kind].append(phrases)
    for kind in missing:
        path = shard_path(folder, kind, shard)
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            np.savez(file, images=np.stack(images[kind]), captions=np.array(captions[kind]))
    return shard


def render_pictures(
    recipe: MiniRecipe, folder: Path, *, workers: int, progress: Progress | None = None
) -> None:
    """Render every missing shard into `folder`, in `workers` processes."""
    folder.mkdir(parents=True, exist_ok=True)
    shards = range(shard_count(recipe))
    done = 0
    with ProcessPoolExecutor(max_workers=workers) as pool:
        jobs = [pool.submit(render_shard, recipe, folder, shard) for shard in shards]
        for job in as_completed(jobs):
            job.result()
            done += 1
            if progress is not None:
                progress(done, len(shards))


def load_pictures(folder: Path, kind: str, shards: Iterable[int] | None = None) -> Pictures:
    """Read back shards of a kind, in order."""
    paths = sorted(folder.glob(f"{kind}-*.npz"))
    if shards is not None:
        paths = [shard_path(folder, kind, shard) for shard in shards]
    images, captions = [], []
    for path in paths:
        with np.load(path) as file:
            images.append(file["images"])
            captions += [tuple(str(phrase) for phrase in row) for row in file["captions"]]
    return Pictures(images=np.concatenate(images), captions=captions)
