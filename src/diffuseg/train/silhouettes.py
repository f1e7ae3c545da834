"""Names for the regions of unlabelled scenes, found by clustering what the pictures alone show.

Stuff runs along a picture's border and things seldom do: pixels in colours that are rare there
stand out, and what hangs together is taken for a thing's silhouette. Silhouettes are described
without regard to place, size, turn, mirroring and colour, and clustered; so are the textures of the
rest. Numbers of clusters then stand for classes, as in DeepCluster (arXiv 1807.05520). Neither
masks nor captions are read, and what two touching things look like together is named by chance.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from scipy import ndimage

from diffuseg.errors import InputError

UNKNOWN = 255
"""Of pixels that are given no name: borders, things cut off, odd shapes, specks."""

_TO_YIQ = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
_TONES, _HUES = 16, 24  # cells of the histogram of a border's colours: brightness, and I and Q
_BORDER = 10
_COMMON = 0.05  # of the most frequent colour of the border
_SHADES = ((1.0, 1.0), (0.75, 0.3), (0.55, 0.2))  # shadows count as stuff: brightness, weight
_LEAST = 150  # pixels of a silhouette
_RINGS, _RAYS, _WAVES, _REACH = 12, 48, 9, 2.0  # polar samples; reach in root mean square radii
_INNER = 0.3  # weight of what is inside of a silhouette
_SHAPE_SIZE = 30  # numbers a silhouette is told by
_CELL = 8


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Region:
    """What stands out in one place of a picture.

    Args:
        picture: Which one.
        mask: Its pixels.
        shape: The description that is clustered, before its reduction; None where it is cut off.
    """

    picture: int
    mask: Bool[np.ndarray, "s s"]
    shape: Float[np.ndarray, " d"] | None


def name_regions(
    images: UInt8[np.ndarray, "n h w 3"],
    *,
    shapes: int,
    textures: int,
    typical: float,
    seed: int,
) -> UInt8[np.ndarray, "n s s"]:
    """Maps at half size: the cluster of each pixel's region.

    Args:
        images: Square, of even sides that are multiples of 16.
        shapes: Clusters of silhouettes, named from 0.
        textures: Clusters of the rest, named from `shapes`.
        typical: Share of the silhouettes that are named: those nearest to their cluster's centre.
        seed: Of the clustering.

    Raises:
        InputError: The sides do not fit, or fewer things stand out than clusters are asked for.
    """
    height, width = images.shape[1:3]
    if height != width or height % (2 * _CELL):
        raise InputError(
            f"the scenes must be square, their sides multiples of {2 * _CELL}",
            got=f"{height}x{width}",
            remedy='load them with load_pictures(folder, "scenes")',
        )
    maps = np.full((len(images), height // 2, width // 2), UNKNOWN, np.uint8)
    regions: list[Region] = []
    cells: list[Float[np.ndarray, "g g d"]] = []
    free: list[Bool[np.ndarray, "g g"]] = []
    clear = np.zeros(maps.shape, bool)
    for place, image in enumerate(images):
        planes = _half_planes(image)
        odd = standing_out(planes)
        regions += _find_regions(place, planes, odd)
        clear[place] = np.logical_not(ndimage.binary_dilation(odd, iterations=2))
        cells.append(describe_cells(planes))
        free.append(_in_cells(clear[place].astype(np.float32)).mean((1, 3)) > 0.95)
    whole = [region for region in regions if region.shape is not None]
    plain = np.stack(cells)[np.stack(free)]
    if len(whole) < shapes or len(plain) < textures:
        raise InputError(
            f"there must be {shapes} silhouettes and {textures} cells of texture to cluster",
            got=f"{len(whole)} and {len(plain)}",
            remedy="pass more scenes, or ask for fewer clusters",
        )
    known = shapes + _name_textures(np.stack(cells), plain, textures, seed)
    known = known.repeat(_CELL, axis=1).repeat(_CELL, axis=2)
    maps[clear] = known[clear]
    points = _reduce(np.stack([r.shape for r in whole if r.shape is not None]))
    names, distances = _cluster(points, shapes, seed)
    near = distances <= np.quantile(distances, typical)
    for region, name in zip(np.array(whole, object)[near], names[near], strict=True):
        maps[region.picture][region.mask] = name
    return maps


def standing_out(planes: Float[np.ndarray, "s s 3"]) -> Bool[np.ndarray, "s s"]:
    """The pixels whose colours are rare along the border of their picture.

    Args:
        planes: Brightness, I and Q, in parts of full brightness.
    """
    rim = np.ones(planes.shape[:2], bool)
    rim[_BORDER:-_BORDER, _BORDER:-_BORDER] = False
    counts = np.zeros(_TONES * _HUES * _HUES)
    for shade, weight in _SHADES:
        counts += weight * np.bincount(_color_cells(planes[rim] * shade), minlength=counts.size)
    smooth = ndimage.gaussian_filter(counts.reshape(_TONES, _HUES, _HUES), 1.0, mode="constant")
    common = smooth.ravel()[_color_cells(planes)] / smooth.max()
    rare = ndimage.uniform_filter(np.log(common + 1e-4), 3) < np.log(_COMMON)
    square = np.ones((3, 3))
    return ndimage.binary_closing(ndimage.binary_opening(rare, square), square)


def describe_shape(
    planes: Float[np.ndarray, "s s 3"], mask: Bool[np.ndarray, "s s"]
) -> Float[np.ndarray, " d"]:
    """A silhouette and what is in it, whatever its place, size, turn and hue.

    Sampled on rings around its centre, out to twice its mean radius. A ring is told by its first
    Fourier coefficients, each in the phase of the whole silhouette's; a turn shifts both, a mirror
    image conjugates both, so the real part stays. Inside are what is lighter, what is darker and
    what is of another hue than the median.
    """
    rows, columns = np.nonzero(mask)
    centre = np.array([rows.mean(), columns.mean()])
    radius = np.sqrt(((rows - centre[0]) ** 2 + (columns - centre[1]) ** 2).mean())
    rings = (np.arange(_RINGS) + 0.5)[:, None] / _RINGS * _REACH * radius
    rays = np.arange(_RAYS) / _RAYS * 2 * np.pi
    points = np.stack([centre[0] + rings * np.sin(rays), centre[1] + rings * np.cos(rays)])
    off = (planes - np.median(planes[mask], axis=0)) * (255 / 40)
    inner = ndimage.binary_erosion(mask, iterations=2).astype(np.float32) * _INNER
    hue = np.sqrt((off[..., 1:] ** 2).sum(-1))
    layers = [mask.astype(np.float32)]
    layers += [inner * one.clip(0, 1.5) for one in (off[..., 0], -off[..., 0], hue)]
    polar = np.stack([ndimage.map_coordinates(one, points, order=1) for one in layers])
    waves = np.fft.rfft(polar, axis=-1)[..., :_WAVES] / _RAYS
    phase = waves[0].sum(0)
    phase = phase / (np.abs(phase) + 1e-6)
    return (waves * phase.conj()).real.astype(np.float32).ravel()


def describe_cells(planes: Float[np.ndarray, "s s 3"]) -> Float[np.ndarray, "g g d"]:
    """Means and deviations of colour, and how strongly brightness changes which way."""
    light = planes[..., 0]
    found: list[Float[np.ndarray, "g g"]] = []
    for place in range(3):
        blocks = _in_cells(planes[..., place])
        found += [blocks.mean((1, 3)), blocks.std((1, 3))]
    down = np.abs(np.diff(light, axis=0, append=light[-1:]))
    across = np.abs(np.diff(light, axis=1, append=light[:, -1:]))
    changes = (down, across, np.abs(ndimage.laplace(light)))
    found += [_in_cells(one).mean((1, 3)) for one in changes]
    values = np.stack(found, axis=-1)
    # Roots, lest few strong textures outweigh all others.
    return np.sign(values) * np.sqrt(np.abs(values))


def _half_planes(image: UInt8[np.ndarray, "h w 3"]) -> Float[np.ndarray, "s s 3"]:
    height, width = image.shape[:2]
    half = image.reshape(height // 2, 2, width // 2, 2, 3).mean((1, 3), dtype=np.float32)
    return half @ (_TO_YIQ.T / 255).astype(np.float32)


def _color_cells(planes: Float[np.ndarray, "*n 3"]) -> Int[np.ndarray, "*n"]:
    tone = (planes[..., 0] * _TONES).astype(int).clip(0, _TONES - 1)
    hue = ((planes[..., 1:] + 0.4) / 0.8 * _HUES).astype(int).clip(0, _HUES - 1)
    return (tone * _HUES + hue[..., 0]) * _HUES + hue[..., 1]


def _find_regions(
    picture: int, planes: Float[np.ndarray, "s s 3"], odd: Bool[np.ndarray, "s s"]
) -> list[Region]:
    numbers = np.empty(odd.shape, np.int32)
    ndimage.label(odd, output=numbers)
    found: list[Region] = []
    for number, (down, across) in enumerate(ndimage.find_objects(numbers), start=1):
        mask = numbers == number
        if mask.sum() < _LEAST:
            continue
        cut = min(down.start, across.start) == 0 or max(down.stop, across.stop) == len(mask)
        shape = None if cut else describe_shape(planes, mask)
        found.append(Region(picture=picture, mask=mask, shape=shape))
    return found


def _in_cells(plane: Float[np.ndarray, "s s"]) -> Float[np.ndarray, "g c g c"]:
    grid = len(plane) // _CELL
    return plane.reshape(grid, _CELL, grid, _CELL)


def _reduce(points: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n r"]:
    """Principal components, each divided by the root of its deviation: halfway to whitening."""
    points = points - points.mean(0)
    values, vectors = np.linalg.eigh(np.cov(points.T))
    values, vectors = values[-_SHAPE_SIZE:], vectors[:, -_SHAPE_SIZE:]
    return points @ vectors / np.maximum(values, 1e-8) ** 0.25


def _name_textures(
    cells: Float[np.ndarray, "n g g d"], plain: Float[np.ndarray, "m d"], count: int, seed: int
) -> UInt8[np.ndarray, "n g g"]:
    from sklearn.cluster import KMeans

    mean, spread = plain.mean(0), plain.std(0) + 1e-6
    some = np.random.default_rng(seed).permutation(len(plain))[:10_000]
    found = KMeans(count, n_init=2, random_state=seed)  # type: ignore[arg-type]
    found.fit((plain[some] - mean) / spread)
    names = np.asarray(found.predict(((cells - mean) / spread).reshape(-1, cells.shape[-1])))
    return names.reshape(cells.shape[:3]).astype(np.uint8)


def _cluster(
    points: Float[np.ndarray, "n d"], count: int, seed: int
) -> tuple[Int[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """The cluster of each point, and how far from its centre it lies."""
    from sklearn.cluster import KMeans

    found = KMeans(count, n_init=4, random_state=seed)  # type: ignore[arg-type]
    names = np.asarray(found.fit_predict(points))
    return names, np.asarray(found.transform(points)).min(1)
