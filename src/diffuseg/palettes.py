"""Colours for labels: the PASCAL VOC palette, and one fixed colour per class name.

A class has the same colour in every image because its colour is a function of its name alone. The
colours come from one wheel of 256, chosen once by farthest-point sampling in OKLab under normal
vision and under simulated protanopia, deuteranopia and tritanopia (Machado et al. 2009), the first
18 by hand and annealing: those keep a distance of at least 0.08 from each other in all four. More
than about twenty colours cannot be told apart by everybody, whatever the palette; drawings carry
contours and a legend for that reason.
"""

import re
import zlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8

from diffuseg.errors import InputError

Color = tuple[int, int, int]

BACKGROUND: Color = (48, 48, 48)
UNDECIDED: Color = (128, 128, 128)

_BACKGROUND_NAMES = frozenset({"background", "other", "others", "void", "unlabeled", "unlabelled"})
_NUMBERED = re.compile(r"(?:segment|cluster|region|class|label|object|instance) (\d+)")

_WHEEL = (
    "2277e6 fff6b2 770008 442290 a2c400 e60011 e680aa 66ddff 774c66 66aaff eebbaa 4c1144 b26680 "
    "d400bb c4ffff b29955 b2e600 447700 0000f6 c626ff 004c39 5e5eaa 7100c6 a11c09 00aa8e ff42d9 "
    "00d984 8e84d0 399700 68265e 00ff8e aa008e ff6813 4c5500 ff138e ff97e3 8e684c 394c84 8eaac6 "
    "ffa15e a1ecc6 9755d0 bd71ff 978455 8e00ec 2f7b97 f6d97b 2f3900 bd0055 0009bd d0ff5e 8ec6d0 "
    "d05eb3 c6aa8e 00684c 68aa00 264cff 688ea1 ffbdff d984f6 a14c84 2f8eff bdb3ff 842f39 421c68 "
    "aa5500 d04255 c68484 5ebd7b d06839 4cf6ff 004cb3 84097b ff7b68 c6d05e 00c6ec 842faa 5e1c2f "
    "00688e 8e4c39 5e8471 7b5eff 003955 ffd9ff 554cd9 aa00d0 6871b3 84e397 d0a139 bd4ca1 4c421c "
    "5e09aa 00ec68 b35ee3 ffbd2f 3909d9 c6eca1 d0bd84 a197d9 00844c 71a1aa 0900a1 ff68d0 e3a1b3 "
    "e31cd9 0097bd 847b26 bd1ca1 ff5e8e 84bda1 971355 a1ffd9 553997 a1d0aa 8e0900 00a15e c68e00 "
    "4c68c6 713968 ec4cf6 4c682f d0002f 8e9771 7b1342 1c397b ff4239 d9bde3 bd84bd d91c8e b37b97 "
    "97b355 00aad0 ff09bd 7b7bec 97d926 7bf65e a14209 e368aa 395539 8e5568 09bd42 aa8400 d0d9aa "
    "8e6897 9742b3 ffd0d0 71d05e d071e3 c6aad9 847bb3 8e8eec a1d9d9 c67168 5e4c97 7b421c 8e397b "
    "aa39e3 008e8e ffd000 c6977b 390984 00bdb3 005555 2fe3bd ffec00 bd5e39 423968 d94c84 84aa84 "
    "e38ec6 f6aac6 4c5e7b c62f71 d97b68 bd55c6 7b42c6 7b5e97 b30071 7b9742 bdffa1 8e2fff 0039aa "
    "551c55 6800e3 aa4cb3 687139 d0b34c 42715e ffe3b3 7bffbd 841397 97394c f68e09 ff8e84 d097e3 "
    "97ff00 552f1c 55aa5e 712f13 a16868 004226 a168ff 718e71 a17197 5e09ff 5e137b ec42a1 687bd0 "
    "552f4c ec8eff ffaaf6 715e00 bd97b3 4c4c71 00d000 c61cd0 7bbdd9 5584a1 e3f684 b34255 84ece3 "
    "e326aa d9d084 005ebd 4c39d0 aa6800 c6d0f6 ffaa8e 428e5e 7155e3 a1c6f6 bd71c6 e35555 8497bd "
    "5e2f84 bd844c 71d0bd 5e8e42 a1aaec f600ff 71b3a1 aaec84 0068e3 b3002f 5e4cb3 84b313 b3aa71 "
    "9700bd ff7be3 684c84 d98e97 4ca11c 557b5e 97c697 844ca1 008e00"
)

# Common class names, each with its own place on the wheel near the colour one would expect.
# fmt: off
_NAMED = {
    "ball": "b2e600", "box": "774c66", "tent": "b29955", "star": "fff6b2", "ring": "b26680",
    "moon": "66ddff", "house": "4c1144", "tree": "447700", "car": "e60011", "fish": "e680aa",
    "flower": "d400bb", "mushroom": "442290", "grass": "a2c400", "sand": "eebbaa",
    "water": "2277e6", "brick": "770008", "snow": "c4ffff", "sky": "66aaff", "person": "ff8e84",
    "dog": "8e4c39", "cat": "ffa15e", "bird": "00bdb3", "horse": "7b421c", "cow": "978455",
    "sheep": "d0d9aa", "elephant": "847bb3", "bear": "552f1c", "zebra": "d9bde3",
    "giraffe": "ffbd2f", "bus": "f68e09", "truck": "a14209", "train": "7b42c6",
    "bicycle": "5ebd7b", "motorcycle": "bd0055", "airplane": "a1aaec", "boat": "0039aa",
    "traffic light": "ffd000", "traffic sign": "ffec00", "stop sign": "d0002f", "bench": "aa6800",
    "rider": "ff4239", "pole": "bd97b3", "fence": "c6977b", "vegetation": "00844c",
    "terrain": "97b355", "building": "8e5568", "wall": "7b5e97", "road": "8e397b",
    "sidewalk": "e31cd9", "chair": "bd5e39", "couch": "553997", "table": "8e684c", "bed": "687bd0",
    "potted plant": "00a15e", "tv": "1c397b", "laptop": "4c68c6", "bottle": "428e5e",
    "cup": "d097e3", "bowl": "f6aac6", "banana": "f6d97b", "apple": "d04255", "orange": "d0a139",
    "pizza": "d0b34c", "cake": "ffaaf6", "book": "aa5500", "clock": "ff97e3", "vase": "71d0bd",
    "backpack": "394c84", "umbrella": "aa00d0", "handbag": "d94c84", "tie": "5e137b",
    "suitcase": "715e00", "frisbee": "00d984", "ski": "71a1aa", "kite": "ec4cf6",
    "skateboard": "84b313", "surfboard": "00c6ec", "toilet": "c6d0f6", "sink": "8ec6d0",
    "refrigerator": "a1c6f6", "oven": "712f13", "microwave": "713968", "keyboard": "4c4c71",
    "mouse": "c6aa8e", "phone": "004cb3", "remote": "aa4cb3", "scissors": "ff5e8e",
    "teddy bear": "bd844c", "toothbrush": "7bffbd", "knife": "a197d9", "fork": "7b7bec",
    "spoon": "c6aad9", "glass": "a1ecc6", "sandwich": "b3aa71", "carrot": "ff6813",
    "broccoli": "4c682f", "hot dog": "d06839", "donut": "d98e97", "ceiling": "ffe3b3",
    "floor": "8e9771", "window": "a1d9d9", "door": "a16868", "curtain": "a14c84",
    "carpet": "842f39", "cabinet": "687139", "shelf": "c67168", "mirror": "84ece3",
    "lamp": "e3f684", "pillow": "e3a1b3", "stairs": "718e71", "blanket": "5e5eaa",
    "mountain": "844ca1", "hill": "7b9742", "river": "0097bd", "sea": "005ebd", "lake": "2f7b97",
    "beach": "d9d084", "rock": "8e6897", "earth": "4c5500", "dirt": "97394c", "path": "d0bd84",
    "field": "c6d05e", "forest": "004c39", "plant": "4ca11c", "bush": "5e8e42", "leaf": "71d05e",
    "cloud": "ffd9ff", "ice": "4cf6ff", "fog": "ffd0d0", "sun": "d0ff5e", "bridge": "a17197",
    "roof": "b34255", "tower": "684c84", "street": "5e4c97", "pavement": "d05eb3",
    "stone": "b37b97", "wood": "847b26", "metal": "8497bd", "fire": "e35555", "food": "ffaa8e",
    "fruit": "e368aa", "vehicle": "b3002f", "animal": "aa8400", "furniture": "a11c09",
    "hair": "4c421c", "face": "a1d0aa", "hand": "ff7b68", "hat": "841397", "shirt": "2f8eff",
    "dress": "ec42a1", "shoe": "551c55",
    "aeroplane": "a1aaec", "motorbike": "bd0055", "sofa": "553997", "dining table": "8e684c",
    "diningtable": "8e684c", "pottedplant": "00a15e", "tvmonitor": "1c397b", "pedestrian": "ff8e84",
}
# fmt: on


def color_of(name: str) -> Color:
    """Return the fixed colour of a class name, as 8-bit red, green, blue.

    Case, underscores and outer spaces do not matter. "background" and its like are dark grey; the
    names of unsupervised results ("segment 3") take the wheel in order; common class names have a
    colour of their own; any other name is hashed onto the wheel (CRC-32), so that two rare names
    can meet on one colour, with a chance of 1 in 256 a pair.

    Example:
        >>> color_of("sky"), color_of("Sky_") == color_of("sky")
        ((102, 170, 255), True)
    """
    plain = " ".join(name.lower().replace("_", " ").split())
    if plain in _BACKGROUND_NAMES:
        return BACKGROUND
    if plain in _NAMED:
        return _color(_NAMED[plain])
    numbered = _NUMBERED.fullmatch(plain)
    place = int(numbered[1]) if numbered else zlib.crc32(plain.encode())
    wheel = _WHEEL.split()
    return _color(wheel[place % len(wheel)])


def name_palette(names: Sequence[str]) -> UInt8[np.ndarray, "k 3"]:
    """Return the colour of every name, in order.

    Example:
        >>> name_palette(["grass", "background"]).tolist()
        [[162, 196, 0], [48, 48, 48]]
    """
    colors = [color_of(name) for name in names]
    return np.array(colors, dtype=np.uint8).reshape(-1, 3)


def _color(code: str) -> Color:
    return int(code[:2], 16), int(code[2:4], 16), int(code[4:], 16)


def voc_palette(n: int) -> UInt8[np.ndarray, "n 3"]:
    """Return the first `n` colours of the PASCAL VOC palette.

    The bits of the index are dealt to red, green and blue in turn, to the highest place first (VOC
    development kit, `VOClabelcolormap`). Label files with it look the same in every VOC tool.

    Raises:
        InputError: `n` is negative or beyond the 2**24 colours there are.

    Example:
        >>> voc_palette(3).tolist()
        [[0, 0, 0], [128, 0, 0], [0, 128, 0]]
    """
    if not 0 <= n <= 1 << 24:
        raise InputError(
            "a VOC palette has between 0 and 16777216 colours",
            got=n,
            remedy="ask for fewer colours",
        )
    index = np.arange(n, dtype=np.int64)
    colors = np.zeros((n, 3), dtype=np.uint8)
    for bit in range(8):
        for channel in range(3):
            value = (index >> (3 * bit + channel)) & 1
            colors[:, channel] |= (value << (7 - bit)).astype(np.uint8)
    return colors
